"""Cross-validation: what networks say of training subjects that they were not trained on.

The temperature and the thresholds of a model come from it, so that no subject has to be set apart
for them and every one that is not held out trains the network that is kept. Asked for with more
folds, it gives every figure as well, and no subject is held out.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from uscl_zoo.errors import DataError
from uscl_zoo.zoo.card import Input

from ..downstream.goal import Classes, Goal
from ..downstream.sample import Rows, Sample
from ..downstream.settings import Settings
from .judging import OutOfFold, look, survey
from .loop import fit
from .tuning import Tuner, cost_of
from .work import identity, keep, kept

#: Two, each of which learns from half of the subjects in half of the epochs, cost half a network.
FOLDS, EPOCHS = 2, 0.5


@dataclass(frozen=True)
class Plan:
    """How a cross-validation is done.

    Attributes:
        folds: how many.
        whole: whether its networks are trained as long as the one that is kept, and answer for
            every frame: the figures are theirs.
    """

    folds: int = FOLDS
    whole: bool = False

    def settings(self, settings: Settings) -> Settings:
        """How the network of a fold is trained: more briefly than the one that is kept, or not."""
        if self.whole:
            return dataclasses.replace(settings, members=1)
        return dataclasses.replace(settings, epochs=math.ceil(settings.epochs * EPOCHS))

    def asked(self, sample: Sample, other: Rows, settings: Settings) -> Rows:
        """Which of the frames of a fold the others' network answers for."""
        if self.whole:
            return other
        return other[sample.take(other).thin(2 * settings.frames_per_clip)]


def folds_of(
    sample: Sample, seed: int, count: int = FOLDS, goal: Goal | None = None
) -> list[tuple[Rows, Rows]]:
    """Places of the frames to train on and to answer for, a pair a fold; no subject is in both.

    Raises:
        DataError: if there are fewer subjects than folds.
    """
    if len(np.unique(sample.subject)) < count:
        if count == FOLDS:
            raise DataError("one subject to train on is too few: the thresholds need two")
        raise DataError(f"fewer subjects than `folds={count}`; ask for fewer")
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    strata = (goal or Classes()).strata(sample.target)
    with warnings.catch_warnings():
        # a class of one subject is in one fold alone, which is all that can be done
        warnings.simplefilter("ignore", UserWarning)
        try:
            return list(splitter.split(strata, strata, sample.subject))
        except ValueError:
            # of no stratum are there as many as folds
            return list(GroupKFold(count).split(strata, groups=sample.subject))


def answer_apart(
    build: Callable[[], Any],
    frames: npt.NDArray[np.uint8],
    sample: Sample,
    settings: Settings,
    device: torch.device,
    shape: Input,
    work: Path | None = None,
    tick: Callable[[float, str], object] | None = None,
    plan: Plan | None = None,
    goal: Goal | None = None,
) -> OutOfFold:
    """Train a network a fold and let it answer for the frames it was not trained on.

    Args:
        build: gives the network to begin with, anew each time.
        frames: uint8 (N, H, W, 3).
        sample: labelled frames to train on.
        settings: as for the network that is kept.
        device: to compute on.
        shape: of the input.
        work: folder for checkpoints and the answers of finished folds, which are not made again.
        tick: as for `fit`.
        plan: how; None for two folds, briefly.
        goal: what is to be said; None for classes.

    Raises:
        Interrupted: as `fit`.
        DataError: as `folds_of`.
    """
    plan = plan or Plan()
    parts, briefly = [], plan.settings(settings)
    for number, (own, other) in enumerate(
        folds_of(sample, settings.seed, plan.folds, goal), start=1
    ):
        places = plan.asked(sample, other, settings)
        others = sample.take(places)
        path = None if work is None else work / f"fold{number}.npz"
        of = identity(briefly, sample.take(own).rows, others.rows, sample.target)
        done = None if path is None else kept(path, of)
        if done is not None:
            logits, distance = done["logits"], done["distance"]
            if tick is not None:
                tick(cost_of(sample.take(own), briefly, int(frames.shape[1])), "")
        else:
            tuner = Tuner(
                build(), frames, sample.take(own), briefly, device, shape.mean, shape.std, goal
            )
            folder = None if work is None else work / f"fold{number}"

            def of_fold(cost: float, text: str, number: int = number) -> None:
                if tick is not None:
                    tick(cost, text and f"fold {number}/{plan.folds}, {text}")

            fit(tuner, folder, of_fold)
            logits, textures = look(tuner, others.rows, shape)
            distance = survey(tuner, shape).distance(textures)
            if path is not None:
                keep(path, of, {"logits": logits, "distance": distance})
        fold = np.full(len(places), number - 1)
        parts.append(OutOfFold(logits, others.target, others.subject, distance, places, fold))
    return OutOfFold.join(parts)
