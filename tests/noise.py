"""Frames of noise, and what torchvision makes of them."""

from __future__ import annotations

import numpy as np
import torchvision.transforms.functional as TF
from numpy.typing import NDArray
from torch import Tensor


def images(count: int, side: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Noise at two scales, with pure grey and black among it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, side // 8, side // 8, 3)).repeat(8, 1).repeat(8, 2)
    pixels = np.clip(coarse + rng.integers(-40, 40, (count, side, side, 3)), 0, 255)
    pixels[:, :8] = pixels[:, :8, :, :1]
    pixels[:, 8:12] = 0
    frames: NDArray[np.uint8] = pixels.astype(np.uint8)
    return frames


def theirs_jitter(image: Tensor, factor: list[float], order: tuple[int, ...]) -> Tensor:
    operations = (
        TF.adjust_brightness,
        TF.adjust_contrast,
        TF.adjust_saturation,
        TF.adjust_hue,
    )
    for operation in order:
        image = operations[operation](image, factor[operation])
    return image
