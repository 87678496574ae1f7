"""Cross-validation: what networks say of training subjects that they were not trained on.

How sure one may be of pixels and of regions, and the threshold for other kinds of image come from
it, so that the held-out subjects choose nothing. Its networks see their images as often as the one
that is kept: in half of the epochs they are less sure of themselves than it will be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from uscl_zoo.answers import Statistics
from uscl_zoo.segmentation.model import Pixels, Trust

from ...downstream.sample import Sample
from ...learning.pairs import Purpose, stream
from ..crossing import FOLDS, folds_of
from ..judging import QUANTILE, threshold_of
from ..loop import fit
from ..tuning import SURVEYED
from ..work import identity, keep, kept
from .fit import Rows
from .gather import Decoded
from .teaching import Teaching


@dataclass(frozen=True)
class Calibration:
    """What makes answers of what a network says.

    Attributes:
        pixels: how sure one may be of them.
        trust: of the regions.
        threshold: of the distance from the training images.
        images: it was fitted on.
    """

    pixels: Pixels
    trust: Trust
    threshold: float
    images: int


def folds(decoded: Decoded, seed: int) -> list[tuple[Rows, Rows]]:
    """Rows to train on and to answer for, a pair a fold, of the subjects that are not held out.

    Raises:
        DataError: if there are fewer subjects than folds.
    """
    rows = decoded.train
    _, target = np.unique(decoded.strata(rows), return_inverse=True)
    _, subject = np.unique(decoded.subjects(rows), return_inverse=True)
    sample = Sample(rows, target, np.arange(len(rows)), subject)
    return [(rows[own], rows[other]) for own, other in folds_of(sample, seed)]


def survey(task: Teaching, network: nn.Module, rows: Rows) -> Statistics:
    """The statistics of the images that a network was trained on, at most `SURVEYED` of them."""
    draw = stream(task.settings.seed, 0, Purpose.VIDEOS)
    chosen = np.sort(draw.permutation(rows)[:SURVEYED])
    return Statistics.of(np.stack([textures for _, textures in task.ask(network, chosen)]))


def calibrate(task: Teaching, work: Path, tick: Callable[[float, str], object]) -> Calibration:
    """Train a network a fold, and fit on what each says of the subjects left out.

    Args:
        task: what is trained.
        work: folder for checkpoints and the answers of finished folds, which are not made again.
        tick: called after each step, with what to say.

    Raises:
        Interrupted: as `fit`.
        DataError: as `folds`.
    """
    settings = task.settings
    parts: list[dict[str, npt.NDArray[Any]]] = []
    asked: list[Rows] = []
    for number, (own, other) in enumerate(folds(task.decoded, task.settings.seed), start=1):
        draw = stream(task.settings.seed, number, Purpose.VALIDATION)
        other = np.sort(draw.permutation(other)[: SURVEYED // FOLDS])
        asked.append(other)
        path = work / f"fold{number}.npz"
        learner = task.learner(own, settings)
        of = identity(settings, own, other)
        if (done := kept(path, of)) is not None:
            parts.append(done)
            tick(float(settings.epochs * learner.steps), "")
            continue

        def of_fold(cost: float, text: str, number: int = number) -> None:
            tick(cost, text and f"fold {number}/{FOLDS}, {text}")

        fit(learner, work / f"fold{number}", of_fold)
        seen = survey(task, learner.network, own)
        answers = list(task.ask(learner.network, other))
        part = task.evidence([one for one, _ in answers], other)
        part["distance"] = seen.distance(np.stack([textures for _, textures in answers]))
        keep(path, of, part)
        parts.append(part)
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    pixels, trust = task.settle(whole, np.concatenate(asked))
    return Calibration(
        pixels=pixels,
        trust=trust,
        threshold=threshold_of(whole["distance"], QUANTILE),
        images=len(whole["distance"]),
    )
