"""Augmentation in batch on the device, one draw of parameters a frame.

Crop, flip and jitter are those of the authors' code (METHOD, step 2) with torchvision's definitions
and parameters, applied to a whole batch at once: torchvision's own transforms draw one set of
parameters a batch, and its functional forms take one factor for all samples. Rotation, gamma,
speckle and blur are for ultrasound, and off unless a recipe asks for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .execution import send
from .jitter import OPERATIONS, jitter
from .pairs import VIEW1, Purpose, stream
from .recipe import Recipe

_TRIES = 10
#: Values of the noise that speckle takes its own from; of larger frames, as many as two have.
_NOISE = 1 << 21


@dataclass(frozen=True)
class Draws:
    """Parameters of the augmentation of some frames.

    Attributes:
        box: float32 (N, 4), crop as top, left, height, width in whole pixels.
        flip: bool (N,).
        factor: float32 (N, 4) of brightness, contrast, saturation, and the hue shift in turns.
        order: int64 (N, 4), the jitter's operations in the order of their application.
        angle: float32 (N,), rotation in radians.
        gamma: float32 (N,), exponent of the intensities.
        speckle: float32 (N,), standard deviation of the noise, 0 for none.
        start: int64 (N,), where in `noise` it begins.
        blur: bool (N,).
    """

    box: Tensor
    flip: Tensor
    factor: Tensor
    order: Tensor
    angle: Tensor
    gamma: Tensor
    speckle: Tensor
    start: Tensor
    blur: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """Everything in it, in an order of its own."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def __getitem__(self, index: Tensor | slice) -> Draws:
        """The draws of some frames."""
        return Draws(*(part[index] for part in self.parts()))

    def to(self, device: torch.device) -> Draws:
        """The same draws on a device."""
        return Draws(*(send(part, device) for part in self.parts()))


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
    box = _boxes(rng, recipe, count, size)
    # last, so that what is drawn above is what it was before there were these
    angle, gamma, speckled, blurred, start = rng.random((5, count))
    speckle = np.where(speckled < recipe.speckle_rate, recipe.speckle, 0.0)
    gamma = np.exp((2 * gamma - 1) * recipe.gamma)
    angle = (2 * angle - 1) * recipe.rotation
    if recipe.method == "fixmatch":
        # its weak augmentation (section 2.3) moves the image and flips it, and leaves its light
        weak = slice(VIEW1, None, 3)
        factor[weak], gamma[weak] = (1, 1, 1, 0), 1
        angle[weak], speckle[weak], blurred[weak] = 0, 0, 1
    return Draws(
        box=torch.from_numpy(box).float(),
        flip=torch.from_numpy(flip),
        factor=torch.from_numpy(factor).float(),
        order=torch.from_numpy(order),
        angle=torch.from_numpy(angle).float(),
        gamma=torch.from_numpy(gamma).float(),
        speckle=torch.from_numpy(speckle).float(),
        start=torch.from_numpy((start * (_length_of_noise(size) - size**2)).astype(np.int64)),
        blur=torch.from_numpy(blurred < recipe.blur),
    )


def _length_of_noise(size: int) -> int:
    return max(_NOISE, 2 * size**2)


def draw_noise(recipe: Recipe, size: int, device: torch.device) -> Tensor:
    """What speckle takes its noise from: float32 (M,), standard normal; nothing without speckle.

    A stretch of a table that begins at a drawn place is the same on every device, and costs a step
    next to nothing.

    Args:
        recipe: seed, and whether there is any speckle.
        size: height and width of the stored frames.
        device: where it is wanted.
    """
    if not recipe.speckle:
        return torch.empty(0, device=device)
    rng = stream(recipe.seed, 0, Purpose.SPECKLE)
    drawn = rng.standard_normal(_length_of_noise(size), dtype=np.float32)
    return send(torch.from_numpy(drawn), device)


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


def augment(
    images: Tensor,
    draws: Draws,
    recipe: Recipe,
    size: int | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Rotate, crop, flip, jitter, change as ultrasound does, and normalise.

    On a CPU one image after another, each of which stays in the cache from the first operation to
    the last; elsewhere the whole batch at once, in a form that a compiler can fuse and a CUDA graph
    can hold.

    Args:
        images: float32 (N, C, H, W) in 0-1; C is 3, or 1 for frames without colour.
        draws: of N images, on the same device.
        recipe: what to do at all, mean and std.
        size: side of the result in pixels, no larger than the images'; None for theirs.
        noise: as `draw_noise` gives it; without it there is no speckle.

    Returns:
        float32 (N, 3, size, size).
    """
    if images.device.type != "cpu":
        return augment_batch(images, draws, recipe, size, noise)
    size = size or images.shape[-1]
    shape = (len(images), 3, size, size)
    augmented = torch.empty(shape, memory_format=torch.contiguous_format)
    shift, scale = normalising(recipe)
    for i, drawn in enumerate(each(draws)):
        image = augment_one(_planes(images[i : i + 1]), drawn, recipe, size, noise)
        torch.addcmul(shift, image, scale, out=augmented[i : i + 1])
    return augmented


def augment_batch(
    images: Tensor,
    draws: Draws,
    recipe: Recipe,
    size: int | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """What `augment` does, to the whole batch at once; arguments and result are the same."""
    size = size or images.shape[-1]
    if recipe.rotation:
        images = rotate(images, draws.angle)
    if size < images.shape[-1]:
        images = shrunk_crop(images, draws.box, draws.flip, size)
    else:
        images = resized_crop(images, draws.box, draws.flip)
    images = jitter(images, draws.factor, draws.order, _jitters(recipe, images.shape[1]))
    return normalise(_as_ultrasound(images, draws, recipe, noise), recipe)


class Drawn(NamedTuple):
    """Parameters of the augmentation of one frame, as those of `Draws`."""

    box: list[int]
    flip: bool
    factor: list[float]
    order: list[int]
    angle: float = 0.0
    gamma: float = 1.0
    speckle: float = 0.0
    start: int = 0
    blur: bool = False


def each(draws: Draws) -> list[Drawn]:
    """The draws of every frame, on the host."""
    box, *rest = draws.parts()
    columns = (box.int(), *rest)
    return [Drawn(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]


def planes_of(frame: Tensor) -> Tensor:
    """uint8 (H, W, 3) to float32 (1, C, H, W) in 0-1; C is 1 where all three channels are the same.

    Most ultrasound frames have no colour, and a third of the work then does.
    """
    if _without_colour(*frame.unbind(2)):
        return frame[None, None, :, :, 0].float().div_(255)
    planes = frame.permute(2, 0, 1)[None]
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _planes(image: Tensor) -> Tensor:
    if image.shape[1] == 1 or _without_colour(*image.unbind(1)):
        return image[:, :1]
    return image.contiguous()


def _without_colour(red: Tensor, green: Tensor, blue: Tensor) -> bool:
    return torch.equal(red, green) and torch.equal(green, blue)


def augment_one(
    planes: Tensor,
    drawn: Drawn,
    recipe: Recipe,
    size: int | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """What `augment` does to one image before it is normalised.

    The image stays in the cache from the first operation to the last.

    Args:
        planes: float32 (1, C, H, W) in 0-1, as `planes_of` gives them.
        drawn: parameters.
        recipe: what to do at all.
        size: side of the result; None for that of the planes.
        noise: as `draw_noise` gives it.

    Returns:
        float32 (1, C, size, size).
    """
    side = planes.shape[-1]
    size = size or side
    if recipe.rotation:
        planes = rotate(planes, torch.tensor([drawn.angle]))
    top, left, height, width = drawn.box
    # plane after plane: of several at once torch makes channels last, at twice the price
    crop = planes[:, :, top : top + height, left : left + width].transpose(0, 1)
    # a filter where the view is smaller than the frame, as `shrunk_crop` has it
    image = F.interpolate(
        crop, (size, size), mode="bilinear", align_corners=False, antialias=size < side
    )
    image = image.transpose(0, 1)
    if drawn.flip:
        image = image.flip(3)
    wanted = _jitters(recipe, image.shape[1])
    for operation in drawn.order:
        if operation in wanted:
            image = OPERATIONS[operation](image, drawn.factor[operation])
    if recipe.gamma:
        image = image.pow(drawn.gamma)
    if drawn.speckle and noise is not None:
        own = noise[drawn.start : drawn.start + size * size].view(size, size)
        image = torch.addcmul(image, image, own, value=drawn.speckle).clamp_(0, 1)
    return _blurred(image) if drawn.blur else image


def _as_ultrasound(images: Tensor, draws: Draws, recipe: Recipe, noise: Tensor | None) -> Tensor:
    """Gamma, speckle and blur of a batch; what a recipe does not ask for is not computed."""
    if recipe.gamma:
        images = images.pow(draws.gamma.view(-1, 1, 1, 1))
    if recipe.speckle and noise is not None:
        height, width = images.shape[-2:]
        pixel = torch.arange(height * width, device=images.device)
        own = noise[draws.start[:, None] + pixel].view(-1, 1, height, width)
        images = (images + images * own * draws.speckle.view(-1, 1, 1, 1)).clamp(0, 1)
    if recipe.blur:
        images = torch.where(draws.blur.view(-1, 1, 1, 1), _blurred(images), images)
    return images


def _blurred(images: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _jitters(recipe: Recipe, channels: int) -> tuple[int, ...]:
    """Numbers of the operations of the jitter that can change an image of so many channels.

    Saturation and hue of a frame without colour would compute it again.
    """
    asked = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    return tuple(i for i, most in enumerate(asked) if most and (channels > 1 or i < 2))


def normalising(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Shift and scale, each (1, 3, 1, 1): shift + image · scale is `normalise(image)`."""
    mean, std = _statistics(recipe, torch.device("cpu"))
    return -mean / std, 1 / std


def to_float(frames: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in 0-1."""
    return frames.permute(0, 3, 1, 2).float().div_(255)


def normalise(images: Tensor, recipe: Recipe) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel."""
    mean, std = _statistics(recipe, images.device)
    return (images - mean) / std


def _statistics(recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (
        # filled where they are used: a CUDA graph cannot hold a copy from the host
        torch.stack([torch.full((1, 1), value, device=device) for value in values])[None]
        for values in (recipe.mean, recipe.std)
    )
    return mean, std


def resized_crop(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Crop every image to its own box, resize it back and mirror some.

    Bilinear between the two nearest rows and columns *of the crop*: within a grey level of cropping
    with Pillow, where `grid_sample` would bleed pixels from outside of the crop into its border.

    Args:
        images: float32 (N, C, H, W).
        box: (N, 4): top, left, height, width; no side longer than the image's, so that nothing
            shrinks and nothing has to be filtered.
        flip: bool (N,).
    """
    height, width = images.shape[-2:]
    above, below, down = _neighbours(box[:, 0], box[:, 2], height)
    left, right, across = _neighbours(box[:, 1], box[:, 3], width)
    left, right, across = (
        torch.where(flip[:, None], values.flip(1), values) for values in (left, right, across)
    )
    image = torch.arange(len(images), device=images.device)[:, None, None]

    def pixels(row: Tensor, column: Tensor) -> Tensor:  # (N, H, W, C)
        return images.permute(0, 2, 3, 1)[image, row[:, :, None], column[:, None, :]]

    across = across[:, None, :, None]
    upper = torch.lerp(pixels(above, left), pixels(above, right), across)
    lower = torch.lerp(pixels(below, left), pixels(below, right), across)
    return torch.lerp(upper, lower, down[:, :, None, None]).permute(0, 3, 1, 2)


def shrunk_crop(images: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop every image to its own box, resize that with a filter and mirror some.

    As Pillow does it: a triangle as wide as a pixel of the result, clamped to the crop. Two batched
    products of matrices.

    Args:
        images: float32 (N, C, H, W).
        box: (N, 4): top, left, height, width.
        flip: bool (N,).
        size: side of the result in pixels.

    Returns:
        float32 (N, C, size, size).
    """
    height, width = images.shape[-2:]
    rows = _triangles(box[:, 0], box[:, 2], height, size)
    columns = _triangles(box[:, 1], box[:, 3], width, size)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _triangles(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """The share of each of `side` pixels in each of `size` points of a stretch: (N, size, side)."""
    start, length = start[:, None, None], length[:, None, None]
    pixel = torch.arange(side, device=start.device, dtype=torch.float32)
    point = torch.arange(size, device=start.device, dtype=torch.float32)[:, None] + 0.5
    scale = length / size
    away = (pixel + 0.5 - start - point * scale).abs()
    weight = (1 - away / scale.clamp(min=1)).clamp(min=0)
    weight = weight * ((pixel >= start) & (pixel < start + length))
    return weight / weight.sum(dim=2, keepdim=True)


def shrink(images: Tensor, size: int) -> Tensor:
    """Whole images in another size, smaller or the same: float32 (N, C, size, size)."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Turn every image about its middle; what comes in from outside is black.

    Args:
        images: float32 (N, C, H, W), as high as wide.
        angle: (N,), in radians.
    """
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = (torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)


def _neighbours(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the pixels before and behind each of `size` points, and how far it is between."""
    start, length = start[:, None], length[:, None]
    pixel = torch.arange(size, device=start.device, dtype=torch.float32)
    point = start + (pixel + 0.5) * (length / size) - 0.5
    before = point.floor()
    last = start + length - 1
    return (
        torch.maximum(before, start).long(),
        torch.minimum(before + 1, last).long(),
        point - before,
    )
