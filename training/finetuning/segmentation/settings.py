"""How a network that outlines is trained, and what is sensible for data of some size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from uscl_zoo.errors import DataError
from uscl_zoo.segmentation.networks import DETECTORS

from ...downstream.settings import EFFORTS


@dataclass(frozen=True)
class Settings:
    """How a network that outlines is trained.

    Attributes:
        network: of smp or torchvision.
        epochs: passes.
        batch_size: images a step.
        learning_rate: of the encoder after the warm-up; a cosine takes it to 0.
        head_rate: of what is new, times that.
        warmup: share of the steps in which the rate rises.
        weight_decay: of AdamW.
        dice: weight of the Dice loss of each class beside the cross-entropy of the pixels.
        crop: least area of a crop, as a share of the frame's.
        rotation: angle is drawn from ± this, in degrees.
        brightness: factor is drawn from 1 ± this.
        contrast: factor is drawn from 1 ± this.
        flips: an answer is the mean over a frame and its mirror image.
        precision: `float32`, `bf16` or `auto`.
        seed: of the new weights and of every draw.
    """

    network: str
    epochs: int = 40
    batch_size: int = 16
    learning_rate: float = 3e-4
    head_rate: float = 3.0
    warmup: float = 0.1
    weight_decay: float = 0.01
    dice: float = 1.0
    crop: float = 0.5
    rotation: float = 15.0
    brightness: float = 0.3
    contrast: float = 0.3
    flips: bool = True
    precision: str = "auto"
    seed: int = 0


#: Images a step, and the images from which on.
_BATCHES = ((32, 5_000), (16, 300), (8, 0))
#: Passes at most and at least, by effort, and the images from which on they become fewer.
_EPOCHS = {"quick": (10, 4), "normal": (40, 8), "best": (80, 16)}
_MANY = 1000


def sensible(images: int, network: str, effort: str = "normal", **given: Any) -> Settings:
    """Settings for data of some size: fewer passes the more images there are, by their root.

    Args:
        images: to train on.
        network: of smp or torchvision.
        effort: `quick`, `normal` or `best`.
        **given: settings that are fixed; None for one to choose.

    Raises:
        DataError: if effort is none of those.
    """
    if effort not in EFFORTS:
        raise DataError(f"effort should be one of {', '.join(EFFORTS)}, not {effort!r}")
    most, least = _EPOCHS[effort]
    chosen: dict[str, Any] = {
        "epochs": int(np.clip(round(most * np.sqrt(_MANY / max(images, 1))), least, most)),
        "batch_size": next(size for size, from_ in _BATCHES if images >= from_),
    }
    if network in DETECTORS:
        # heads of detectors are lost at the rates of a decoder; half precision gains them little
        chosen |= {"learning_rate": 1e-4, "precision": "float32", "flips": False}
    fixed = {key: value for key, value in given.items() if value is not None}
    return Settings(network=network, **{**chosen, **fixed})
