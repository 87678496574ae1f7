"""How a classifier is fine-tuned, and what is sensible for data of some size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from uscl_zoo.checks import real, whole
from uscl_zoo.errors import DataError

#: Networks of the best effort.
MEMBERS = 3
TRAIN = ("head", "last", "all")
EFFORTS = ("quick", "normal", "best")
#: Side of the images as a share of the network's, and of the steps at which it ends. Smaller ones
#: first took half of the time and much of what was learned (docs/finetune.md).
SIZES = ((1.0, 1.0),)


#: Frames a step, and the clips from which on.
_BATCHES = ((64, 10_000), (32, 200), (16, 64), (8, 0))
#: Least area of a crop, and the clips from which on: of few, small ones mislead; of 612, large
#: ones had less AUROC than the plain script, and small ones had not (docs/finetune.md).
_CROPS = ((0.4, 500), (0.8, 0))


@dataclass(frozen=True)
class Settings:
    """How a classifier is fine-tuned.

    Attributes:
        train: what is trained: `head`, the classifier; `last`, the last residual block and the
            classifier (the paper's); `all`. What is not is frozen, batch statistics included.
        batch_statistics: let batch-norm in what is trained use and learn those of the batches. Of
            few steps it would not learn enough, and judge by statistics that fit no data.
        probe: begin with the classifier that a logistic regression on the frozen features gives,
            its penalty chosen by folds of the training subjects; otherwise with a random one.
        epochs: passes; 0 leaves it at the beginning.
        batch_size: frames a step.
        optimizer: `adam`, whose decay is coupled with the gradient, or `adamw`.
        learning_rate: after the warm-up; a cosine takes it to 0.
        head_rate: of the classifier, times that.
        warmup: share of the steps in which the rate rises.
        weight_decay: on what is trained.
        label_smoothing: share of the target spread evenly over the classes.
        class_power: frames weigh (frames of their class) to the power of minus this: 1 lets every
            class count the same, 0 every frame.
        frames_per_clip: at most so many frames of a clip an epoch, others each time; 0 for all.
        crop: least area of a crop, as a share of the frame's. Smaller ones miss what the label is
            about, and teach that what looks normal is not (docs/finetune.md).
        rotation: angle is drawn from ± this, in radians.
        brightness: factor is drawn from 1 ± this.
        contrast: factor is drawn from 1 ± this.
        gamma: intensities are raised to e to the power of a draw from ± this.
        sizes: side of the images as a share of the network's, each with the share of the steps at
            which it ends; the last is (1, 1).
        members: networks that are trained from the same start, with this seed, the next and so on;
            the result has the mean of their weights and batch statistics.
        average: the result is the exponential average of the weights, by this factor a step; 0 for
            those of the last step.
        flips: an answer is the mean over a frame and its mirror image.
        precision: `float32`, `bf16` or `auto`, as in pretraining.
        seed: of the new classifier and of every draw.
    """

    train: str = "all"
    batch_statistics: bool = True
    probe: bool = False
    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 4e-4
    head_rate: float = 3.0
    warmup: float = 0.1
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    class_power: float = 0.5
    frames_per_clip: int = 4
    crop: float = 0.8
    rotation: float = 0.25
    brightness: float = 0.3
    contrast: float = 0.3
    gamma: float = 0.3
    sizes: tuple[tuple[float, float], ...] = SIZES
    members: int = 1
    average: float = 0.0
    flips: bool = True
    precision: str = "auto"
    seed: int = 0


#: Bounds of what is given for fine-tuning, by argument; the end of a range of real numbers counts
#: where it may be taken.
_WHOLE: dict[str, tuple[int, int | None]] = {
    "size": (32, 4096),
    "folds": (2, None),
    "epochs": (0, None),
    "batch_size": (2, None),
    "resamples": (2, None),
    "workers": (1, None),
}
_REAL: dict[str, tuple[float, float, bool]] = {
    "holdout": (0, 1, False),
    "rate": (0, np.inf, False),
    "confidence": (0, 1, True),
    "learning_rate": (0, 1e3, False),
    "label_smoothing": (0, 0.99, True),
}


def check_given(**given: Any) -> dict[str, Any]:
    """The numbers that somebody gave for fine-tuning, as Python's own; None stays.

    Raises:
        DataError: before the work, naming an argument that is none or beyond its bounds.
    """
    own: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            own[name] = None
        elif name in _WHOLE:
            own[name] = whole(name, value, *_WHOLE[name])
        else:
            above, below, ends = _REAL[name]
            own[name] = real(name, value, above, below, ends=ends)
    return own


#: The paper's downstream protocol (METHOD, baselines): the last epoch is the result.
PAPER = Settings(
    train="last",
    epochs=100,
    optimizer="adam",
    learning_rate=1e-2,
    head_rate=1.0,
    warmup=0.0,
    weight_decay=1e-4,
    label_smoothing=0.0,
    class_power=0.0,
    frames_per_clip=0,
    crop=0.8,
    rotation=0.0,
    brightness=0.0,
    contrast=0.0,
    gamma=0.0,
    flips=False,
    precision="float32",
)


def sensible(
    clips: int,
    effort: str = "normal",
    train: str | None = None,
    own: Mapping[str, Any] | None = None,
    **given: Any,
) -> Settings:
    """Settings for data of some size.

    Everything is trained, in 30 epochs up to 1,000 clips and in fewer the more there are, so that
    the work grows with their root; batches grow with the data. `quick` trains the last block alone,
    from the classifier of a regression on; `best` averages the weights of three networks.

    Args:
        clips: to train on, stills among them.
        effort: one of `EFFORTS`.
        train: as in `Settings`; None to choose.
        own: settings of the task that differ from those for classes.
        **given: settings that are fixed; None for one to choose.

    Raises:
        DataError: if effort or train is none of those.
    """
    if effort not in EFFORTS:
        raise DataError(f"effort should be one of {', '.join(EFFORTS)}, not {effort!r}")
    quick, best = effort == "quick", effort == "best"
    train = train or ("last" if quick else "all")
    if train not in TRAIN:
        raise DataError(f"train should be one of {', '.join(TRAIN)}, not {train!r}")
    most = 7 if quick else 30
    epochs = int(np.clip(round(most * np.sqrt(1000 / max(clips, 1))), 5, most))
    chosen: dict[str, Any] = {
        # a regression has nothing left to descend to
        "epochs": 0 if train == "head" else epochs,
        # where all of the backbone learns as well, a classifier that fits it already holds it back
        "probe": train != "all",
        "members": MEMBERS if best and train != "head" else 1,
        "batch_statistics": train == "all",
        # of few clips too, an epoch should be some steps
        "batch_size": next(size for size, least in _BATCHES if clips >= least),
        "crop": next(area for area, least in _CROPS if clips >= least),
    }
    fixed = {key: value for key, value in given.items() if value is not None}
    return Settings(train=train, **{**chosen, **(own or {}), **fixed})
