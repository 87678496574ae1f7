"""Augmentation in batch on the device, one draw of parameters a frame.

The operations are those of the authors' code (METHOD, step 2) with torchvision's definitions and
parameters, applied to a whole batch at once: torchvision's own transforms draw one set of
parameters a batch, and its functional forms take one factor for all samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .pairs import Purpose, stream
from .recipe import Recipe

_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as torchvision rounds it
_TRIES = 10


@dataclass(frozen=True)
class Draws:
    """Parameters of the augmentation of some frames.

    Attributes:
        box: float32 (N, 4), crop as top, left, height, width in whole pixels.
        flip: bool (N,).
        factor: float32 (N, 4) of brightness, contrast, saturation, and the hue shift in turns.
        order: int64 (N, 4), the jitter's operations in the order of their application.
    """

    box: Tensor
    flip: Tensor
    factor: Tensor
    order: Tensor

    def select(self, index: Tensor) -> Draws:
        """The draws of some frames."""
        return Draws(self.box[index], self.flip[index], self.factor[index], self.order[index])

    def to(self, device: torch.device) -> Draws:
        """The same draws on a device."""
        parts = (self.box, self.flip, self.factor, self.order)
        return Draws(*(part.to(device, non_blocking=True) for part in parts))


def draw(recipe: Recipe, epoch: int, videos: int, size: int) -> Draws:
    """Draw the augmentation of the three frames of every video for one epoch.

    Args:
        recipe: ranges and seed.
        epoch: the pass.
        videos: how many there are.
        size: height and width of the stored frames.

    Returns:
        Draws of 3 × videos frames; those of video v are 3v, 3v + 1 and 3v + 2.
    """
    rng = stream(recipe.seed, epoch, Purpose.AUGMENTATION)
    count = 3 * videos
    flip = rng.random(count) < recipe.flip
    low = np.array([1 - recipe.brightness, 1 - recipe.contrast, 1 - recipe.saturation, -recipe.hue])
    high = np.array([1 + recipe.brightness, 1 + recipe.contrast, 1 + recipe.saturation, recipe.hue])
    factor = low + (high - low) * rng.random((count, 4))
    order = rng.random((count, 4)).argsort(axis=1)
    return Draws(
        box=torch.from_numpy(_boxes(rng, recipe, count, size)).float(),
        flip=torch.from_numpy(flip),
        factor=torch.from_numpy(factor).float(),
        order=torch.from_numpy(order),
    )


def _boxes(rng: np.random.Generator, recipe: Recipe, count: int, size: int) -> np.ndarray:
    """Crop boxes as RandomResizedCrop draws them: the first of ten tries that fits."""
    u = rng.random((4, count, _TRIES))
    low, high = recipe.crop_scale
    area = size * size * (low + (high - low) * u[0])
    narrow, wide = math.log(recipe.crop_ratio[0]), math.log(recipe.crop_ratio[1])
    ratio = np.exp(narrow + (wide - narrow) * u[1])
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (width > 0) & (width <= size) & (height > 0) & (height <= size)
    # nothing fitted: the central crop nearest to the allowed ratios, which of a square is all of it
    # when the ratios allow one
    nearest = min(max(1.0, recipe.crop_ratio[0]), recipe.crop_ratio[1])
    whole_height, whole_width = min(size, round(size / nearest)), min(size, round(size * nearest))
    pick = fits.argmax(axis=1)
    rows = np.arange(count)
    height, width = height[rows, pick], width[rows, pick]
    top = np.floor(u[2][rows, pick] * (size - height + 1))
    left = np.floor(u[3][rows, pick] * (size - width + 1))
    none = ~fits.any(axis=1)
    height[none], width[none] = whole_height, whole_width
    top[none], left[none] = (size - whole_height) // 2, (size - whole_width) // 2
    return np.stack([top, left, height, width], axis=1)


def augment(images: Tensor, draws: Draws, recipe: Recipe) -> Tensor:
    """Crop, flip, jitter and normalise.

    Args:
        images: float32 (N, 3, H, W) in 0-1.
        draws: of N images, on the same device.
        recipe: mean and std.

    Returns:
        float32 (N, 3, H, W), channels last in memory.
    """
    images = resized_crop(images, draws.box, draws.flip)
    return normalise(jitter(images, draws.factor, draws.order), recipe)


def to_float(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in 0-1."""
    return frames.permute(0, 3, 1, 2).float().div_(255)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    mean = torch.tensor(recipe.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(recipe.std, device=images.device).view(1, 3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def resized_crop(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Crop every image to its own box, resize it back and mirror some.

    Resizing is a matrix product a side, with Pillow's triangle filter cut off at the crop's border:
    within a grey level of cropping with Pillow, where `grid_sample` would bleed pixels from
    outside of the crop into its border.

    Args:
        images: float32 (N, C, H, W).
        box: (N, 4): top, left, height, width.
        flip: bool (N,).
    """
    height, width = images.shape[-2:]
    rows = _resampling(box[:, 0], box[:, 2], height)
    columns = _resampling(box[:, 1], box[:, 3], width)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return torch.matmul(torch.matmul(rows[:, None], images), columns.mT[:, None])


def _resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Matrices (N, size, size) that resample [start, start + length) to `size` pixels."""
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    scale = (length / size)[:, None, None]
    centre = start[:, None, None] + (pixel[:, None] + 0.5) * scale
    # Pillow widens the triangle when it shrinks, which is what makes it antialias
    support = scale.clamp(min=1.0)
    weight = (1 - (pixel + 0.5 - centre).abs() / support).clamp_(min=0)
    inside = (pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None])
    weight = weight * inside
    return weight / weight.sum(dim=2, keepdim=True)


def jitter(images: Tensor, factor: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, to each image its own factors in its own order.

    Args:
        images: float32 (N, 3, H, W) in 0-1.
        factor: (N, 4).
        order: int64 (N, 4).
    """
    images = images.clone()
    for place in range(4):
        for operation, apply in enumerate((_brightness, _contrast, _saturation, _hue)):
            chosen = (order[:, place] == operation).nonzero()[:, 0]
            if len(chosen):
                images[chosen] = apply(images[chosen], factor[chosen, operation].view(-1, 1, 1, 1))
    return images


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[:, None]


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * images + (1 - factor) * other).clamp_(0, 1)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _luma(images).mean(dim=(2, 3), keepdim=True), factor)


def _saturation(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _luma(images), factor)


def _hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle, through HSV and back by the piecewise-linear closed form."""
    value, _ = images.max(dim=1, keepdim=True)
    low, _ = images.min(dim=1, keepdim=True)
    chroma = value - low
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = sector + 6 * shift
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = torch.remainder(offset + hue, 6.0)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(channels, dim=1)
