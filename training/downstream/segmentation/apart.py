"""Cross-validation: what networks say of training subjects that they were not trained on.

The temperature of the pixels, how sure one may be of a region, and the threshold for other kinds of
image come from it, so that the held-out subjects choose nothing.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression
from torch import nn

from uscl_zoo.answers import Statistics
from uscl_zoo.files import written
from uscl_zoo.segmentation.model import Trust, trusted

from ...pairs import Purpose, stream
from ..crossing import EPOCHS, FOLDS, folds_of
from ..judging import QUANTILE, threshold_of
from ..sample import Sample
from ..tuning import SURVEYED
from .figures import match
from .fit import Rows, fit
from .gather import Decoded
from .settings import Settings
from .teaching import Segmentation


@dataclass(frozen=True)
class Calibration:
    """What makes answers of what a network says.

    Attributes:
        temperature: of the pixels.
        trust: of the regions.
        threshold: of the distance from the training images.
        images: it was fitted on.
    """

    temperature: float
    trust: Trust
    threshold: float
    images: int


def of_a_fold(settings: Settings) -> Settings:
    """How the network of a fold is trained: more briefly than the one that is kept."""
    return dataclasses.replace(settings, epochs=math.ceil(settings.epochs * EPOCHS))


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


def survey(task: Segmentation, network: nn.Module, rows: Rows) -> Statistics:
    """The statistics of the images that a network was trained on, at most `SURVEYED` of them."""
    draw = stream(task.settings.seed, 0, Purpose.VIDEOS)
    chosen = np.sort(draw.permutation(rows)[:SURVEYED])
    return Statistics.of(np.stack([textures for _, textures in task.ask(network, chosen)]))


def calibrate(task: Segmentation, work: Path, tick: Callable[[str], object]) -> Calibration:
    """Train a network a fold, and fit on what each says of the subjects left out.

    Args:
        task: what is trained.
        work: folder for checkpoints and the answers of finished folds, which are not made again.
        tick: called after each step, with what to say.

    Raises:
        Interrupted: as `fit`.
        DataError: as `folds`.
    """
    settings = of_a_fold(task.settings)
    answers: list[tuple[int, npt.NDArray[np.float32]]] = []
    distances: list[float] = []
    for number, (own, other) in enumerate(folds(task.decoded, task.settings.seed), start=1):
        most = SURVEYED // FOLDS
        draw = stream(task.settings.seed, number, Purpose.VALIDATION)
        other = np.sort(draw.permutation(other)[:most])
        kept = work / f"fold{number}.npz"
        learner = task.learner(own, settings)
        if kept.is_file():
            with np.load(kept) as arrays:
                logits, away = arrays["logits"], arrays["distance"]
            for _ in range(settings.epochs * learner.steps):
                tick("")
        else:

            def told(text: str, number: int = number) -> None:
                tick(text and f"fold {number}/{FOLDS}, {text}")

            fit(learner, work / f"fold{number}", told)
            seen = survey(task, learner.network, own)
            found = list(task.ask(learner.network, other))
            # half precision is as exact as what a network of bf16 says
            logits = np.stack([one for one, _ in found]).astype(np.float16)
            away = seen.distance(np.stack([textures for _, textures in found]))
            content = io.BytesIO()
            np.savez(content, logits=logits, distance=away)
            with written(kept) as partial:
                partial.write_bytes(content.getvalue())
        pairs = zip(other.tolist(), logits, strict=True)
        answers += [(row, one.astype(np.float32)) for row, one in pairs]
        distances += away.tolist()
    temperature = fit_temperature(task, answers)
    return Calibration(
        temperature=temperature,
        trust=fit_trust(task, answers, temperature),
        threshold=threshold_of(np.array(distances), QUANTILE),
        images=len(answers),
    )


def fit_temperature(
    task: Segmentation, answers: Sequence[tuple[int, npt.NDArray[np.float32]]]
) -> float:
    """The temperature that minimises the negative log-likelihood of pixels, every subject alike."""
    parts = [task.pixels(logits, row) for row, logits in answers]
    logits = np.concatenate([one for one, _ in parts]).astype(np.float64)
    target = np.concatenate([one for _, one in parts])
    subjects = task.decoded.subjects(np.array([row for row, _ in answers]))
    _, whose, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    weights = np.repeat(1 / counts[whose], len(target) // len(answers))
    weights /= weights.sum()
    places = np.arange(len(target))

    def loss(log: float) -> float:
        scaled = logits / np.exp(log)
        scaled -= scaled.max(axis=1, keepdims=True)
        right = scaled[places, target] - np.log(np.exp(scaled).sum(axis=1))
        return float(-(weights @ right))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_trust(
    task: Segmentation,
    answers: Sequence[tuple[int, npt.NDArray[np.float32]]],
    temperature: float,
) -> Trust:
    """How sure one may be of regions: a logistic regression on those that were found.

    Its targets are Platt's (1999): of few regions that are all right, or all wrong, the plain
    likelihood would ask for certainty.
    """
    size = task.transform.size
    scores: list[float] = []
    shares: list[float] = []
    right: list[bool] = []
    for row, logits in answers:
        found = task.found(logits, temperature)
        own, _ = match(task.there(row), found, size)
        scores += [region.score for region in found]
        shares += [region.area / (size[0] * size[1]) for region in found]
        right += own
    return trust_of(np.array(scores), np.array(shares), np.array(right, bool))


def trust_of(
    scores: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64],
    right: npt.NDArray[np.bool_],
) -> Trust:
    """As `fit_trust`, of regions with some scores and shares of their frames."""
    count, hits = len(right), int(right.sum())
    if not count:
        return Trust()
    columns = np.stack([trusted(scores), np.log(np.maximum(shares, 1e-9))], axis=1)
    middle, spread = columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-6)
    scaled = (columns - middle) / spread
    chance = np.where(right, (hits + 1) / (hits + 2), 1 / (count - hits + 2))
    # each region is one of both kinds, by its target
    regression = LogisticRegression(C=1.0).fit(
        np.concatenate([scaled, scaled]),
        np.repeat([1, 0], count),
        sample_weight=np.concatenate([chance, 1 - chance]),
    )
    weights = regression.coef_[0] / spread
    offset = float(regression.intercept_[0] - weights @ middle)
    return Trust(float(weights[0]), float(weights[1]), offset, count)
