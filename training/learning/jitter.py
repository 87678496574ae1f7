"""Brightness, contrast, saturation and hue, with torchvision's definitions, of a batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as torchvision rounds it


def jitter(
    images: Tensor, factor: Tensor, order: Tensor, wanted: tuple[int, ...] = (0, 1, 2, 3)
) -> Tensor:
    """Brightness, contrast, saturation and hue, to each image its own factors in its own order.

    Every operation is done to every image at each place, and one result kept: nothing here waits
    for the host to look at the order.

    Args:
        images: float32 (N, C, H, W) in 0-1.
        factor: (N, 4).
        order: int64 (N, 4).
        wanted: numbers of the operations to do.
    """
    for place in order.unbind(1) if wanted else ():
        done = images
        for number in wanted:
            result = OPERATIONS[number](images, factor[:, number].view(-1, 1, 1, 1))
            done = torch.where((place == number).view(-1, 1, 1, 1), result, done)
        images = done
    return images


def _luma(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images * sum(_GREY)
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])


def _blend(images: Tensor, other: Tensor, factor: Tensor | float) -> Tensor:
    return torch.lerp(other, images, factor).clamp_(0, 1)


def _brightness(images: Tensor, factor: Tensor | float) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor | float) -> Tensor:
    # the mean of the luma is the luma of the means
    return _blend(images, _luma(images.mean(dim=(2, 3), keepdim=True)), factor)


def _saturation(images: Tensor, factor: Tensor | float) -> Tensor:
    return _blend(images, _luma(images), factor)


def _hue(images: Tensor, shift: Tensor | float) -> Tensor:
    """Turn the colour circle, through HSV and back by the piecewise-linear closed form.

    A channel is value − chroma · clamp(2 − d, 0, 1), where d is how far the hue is, in sixths of
    the circle, from the colour that has none of that channel: cyan, magenta and yellow.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # where there is no colour every difference below is 0 as well
    share = chroma.clamp(min=1e-12).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue).mul_(share),
        torch.where(
            value == green,
            (blue - red).mul_(share).add_(2),
            (red - green).mul_(share).add_(4),
        ),
    )
    hue += 6 * shift
    hue = torch.sub(hue, (hue * (1 / 6)).floor_(), alpha=6)  # several times as fast as a remainder
    away = (
        (hue - 3).abs_(),
        torch.minimum((hue - 5).abs_(), hue + 1),
        torch.minimum((hue - 1).abs_(), 7 - hue),
    )
    least = torch.sub(value, chroma, alpha=2)
    turned = torch.empty_like(images)
    for channel, distance in enumerate(away):
        turned[:, channel : channel + 1] = torch.addcmul(least, chroma, distance.clamp_(1, 2))
    return turned


#: By the numbers that `Draws.order` holds.
OPERATIONS = (_brightness, _contrast, _saturation, _hue)
