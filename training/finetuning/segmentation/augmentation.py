"""Image and outlines changed together, by torchvision's transforms; every draw is keyed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import InterpolationMode, v2

from uscl_zoo.segmentation.regions import Region

from ...learning.pairs import Purpose, stream
from .settings import Settings

#: Pixels of a region that has to be left for it to be taught.
_LEAST = 8


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


def changed_regions(
    transform: Any,
    frame: npt.NDArray[np.uint8],
    regions: Sequence[Region],
    seed: int,
    masks: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its regions, changed in the same way; those that were cut away are left out.

    Args:
        transform: as `transform_of` gives it.
        frame: uint8 (H, W, 3).
        regions: in its pixels.
        seed: of the draw.
        masks: whether the regions have masks, from which their boxes are taken again.

    Returns:
        uint8 (3, H, W), and what a detector of torchvision is taught: `boxes`, `labels`, `masks`.
    """
    height, width = frame.shape[:2]
    image = tv_tensors.Image(torch.from_numpy(np.array(frame)).permute(2, 0, 1))
    labels = torch.tensor([region.label + 1 for region in regions], dtype=torch.int64)
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([region.box for region in regions], dtype=torch.float32).reshape(-1, 4),
        format="XYXY",
        canvas_size=(height, width),
    )
    drawn = None
    if masks:
        whole = [region.whole(height, width) for region in regions]
        stacked = np.stack(whole) if whole else np.empty((0, height, width), bool)
        drawn = tv_tensors.Mask(torch.from_numpy(stacked.astype(np.uint8)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = (image, boxes) if drawn is None else (image, boxes, drawn)
        image, boxes, *rest = transform(*given)
    target: dict[str, Tensor] = {"labels": labels, "boxes": torch.as_tensor(boxes)}
    if drawn is not None:
        own = torch.as_tensor(rest[0])
        left = own.flatten(1).sum(dim=1) >= _LEAST
        target["masks"] = own[left]
        target["boxes"] = masks_to_boxes(own[left]).float()
        # to the outer edges of the last pixels
        target["boxes"][:, 2:] += 1
    else:
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        left = (sides >= 2).all(dim=1)
        target["boxes"] = target["boxes"][left]
    target["labels"] = labels[left]
    return torch.as_tensor(image), target


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
