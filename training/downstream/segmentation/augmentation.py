"""Image and outlines changed together, by torchvision's transforms; every draw is keyed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from ...pairs import Purpose, stream
from .settings import Settings


def transform_of(settings: Settings, side: tuple[int, int]) -> Any:
    """What an image of training goes through, and with it its mask, or boxes and masks.

    The shape of speckle is left alone: nothing is sheared, and colours are those of grey.
    """
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(settings.rotation, interpolation=InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(
                side, scale=(settings.crop, 1.0), ratio=(3 / 4, 4 / 3), antialias=True
            ),
            v2.ColorJitter(brightness=settings.brightness, contrast=settings.contrast),
        ]
    )


def seeds(settings: Settings, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """A seed for each image of an epoch, int64 (N,)."""
    draws = stream(settings.seed, epoch, Purpose.AUGMENTATION)
    return np.asarray(draws.integers(0, 2**62, count))


def changed(
    transform: Any, frame: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], seed: int
) -> tuple[Tensor, Tensor]:
    """An image and its map of classes, changed in the same way.

    Args:
        transform: as `transform_of` gives it.
        frame: uint8 (H, W, 3).
        labels: uint8 (H, W).
        seed: of the draw.

    Returns:
        uint8 (3, H, W) and uint8 (H, W).
    """
    image = tv_tensors.Image(torch.from_numpy(np.array(frame)).permute(2, 0, 1))
    mask = tv_tensors.Mask(torch.from_numpy(np.array(labels)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, mask = transform(image, mask)
    return torch.as_tensor(image), torch.as_tensor(mask)
