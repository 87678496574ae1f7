"""Cross-validation: what networks say of training subjects that they were not trained on.

The temperature and the thresholds of a model come from it, so that no subject has to be set apart
for them and every one that is not held out trains the network that is kept.
"""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold

from uscl_zoo.card import Input
from uscl_zoo.errors import DataError
from uscl_zoo.files import written

from .judging import OutOfFold, look, survey
from .sample import Rows, Sample
from .settings import Settings
from .tuning import Tuner, cost_of, fit

#: Two, each of which learns from half of the subjects in half of the epochs, cost half a network.
FOLDS, EPOCHS = 2, 0.5


def of_a_fold(settings: Settings) -> Settings:
    """How the network of a fold is trained: more briefly than the one that is kept."""
    return dataclasses.replace(settings, epochs=math.ceil(settings.epochs * EPOCHS))


def folds_of(sample: Sample, seed: int) -> list[tuple[Rows, Rows]]:
    """Places of the frames to train on and to answer for, a pair a fold; no subject is in both.

    Raises:
        DataError: if there are fewer subjects than folds.
    """
    if len(np.unique(sample.subject)) < FOLDS:
        raise DataError("one subject to train on is too few: the thresholds need two")
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # a class of one subject is in one fold alone, which is all that can be done
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(sample.target, sample.target, sample.subject))


def answer_apart(
    build: Callable[[], Any],
    frames: npt.NDArray[np.uint8],
    sample: Sample,
    settings: Settings,
    device: torch.device,
    shape: Input,
    work: Path | None = None,
    tick: Callable[[float, str], object] | None = None,
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

    Raises:
        Interrupted: as `fit`.
        DataError: as `folds_of`.
    """
    parts, settings = [], of_a_fold(settings)
    for number, (own, other) in enumerate(folds_of(sample, settings.seed), start=1):
        others = sample.take(other)
        others = others.take(others.thin(2 * settings.frames_per_clip))
        kept = None if work is None else work / f"fold{number}.npz"
        if kept is not None and kept.is_file():
            with np.load(kept) as arrays:
                logits, distance = arrays["logits"], arrays["distance"]
            if tick is not None:
                tick(cost_of(sample.take(own), settings, int(frames.shape[1])), "")
        else:
            tuner = Tuner(
                build(), frames, sample.take(own), settings, device, shape.mean, shape.std
            )
            folder = None if work is None else work / f"fold{number}"

            def told(cost: float, text: str, number: int = number) -> None:
                if tick is not None:
                    tick(cost, text and f"fold {number}/{FOLDS}, {text}")

            fit(tuner, folder, told)
            logits, textures = look(tuner, others.rows, shape)
            distance = survey(tuner, shape).distance(textures)
            if kept is not None:
                content = io.BytesIO()
                np.savez(content, logits=logits, distance=distance)
                with written(kept) as partial:
                    partial.write_bytes(content.getvalue())
        parts.append(OutOfFold(logits, others.target, others.subject, distance))
    return OutOfFold(
        logits=np.concatenate([part.logits for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        subject=np.concatenate([part.subject for part in parts]),
        distance=np.concatenate([part.distance for part in parts]),
    )
