"""Regions of an image: connected parts of a mask, their outlines, and how sure one is of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ultrasound import morphology

Mask = NDArray[np.bool_]
#: A class a pixel, uint8: 0 is the background, and n the n-th class.
Labels = NDArray[np.uint8]
#: Left, top, right and bottom in pixels; right and bottom are the first outside.
Box = tuple[float, float, float, float]

#: Regions of a class in a frame at most, as COCO counts them; the largest.
MOST = 100
#: Share of a frame below which a region is a speck, and none.
SPECK = 1e-4


@dataclass(frozen=True)
class Region:
    """A part of a frame that belongs to one class.

    Attributes:
        label: its class, from 0.
        box: around it.
        mask: bool, of the pixels of the box, as wide and high as `window` says; None where there
            is a box alone.
        score: of a prediction, how sure it is, 0-1; 1 for what is known.
    """

    label: int
    box: Box
    mask: Mask | None = None
    score: float = 1.0

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the pixels that the mask stands for."""
        left, top = int(np.floor(self.box[0])), int(np.floor(self.box[1]))
        if self.mask is None:
            return left, top, int(np.ceil(self.box[2])), int(np.ceil(self.box[3]))
        return left, top, left + self.mask.shape[1], top + self.mask.shape[0]

    @property
    def area(self) -> float:
        """In pixels: of the mask, or of the box where there is none."""
        if self.mask is not None:
            return float(self.mask.sum())
        left, top, right, bottom = self.box
        return max(right - left, 0.0) * max(bottom - top, 0.0)

    def area_in_mm(self, spacing: tuple[float, float] | None) -> float | None:
        """In mm²; None where the size of a pixel, (height, width) in mm, is not known."""
        return None if spacing is None else self.area * spacing[0] * spacing[1]

    def whole(self, height: int, width: int) -> Mask:
        """The mask of the whole frame; of a region without one the pixels of its box."""
        full = np.zeros((height, width), bool)
        left, top, right, bottom = self.window
        own = np.ones((bottom - top, right - left), bool) if self.mask is None else self.mask
        # boxes of others may stand out of the frame
        rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
        seen = own[max(-top, 0) :, max(-left, 0) :]
        target = full[rows, columns]
        target |= seen[: target.shape[0], : target.shape[1]]
        return full

    def scored(self, score: float) -> Region:
        """The same with another score."""
        return replace(self, score=score)


def opencv() -> Any:
    """OpenCV, which connects pixels and walks around them."""
    return morphology.opencv("outlining", "segmentation")


def region_of(mask: Mask, label: int, score: float = 1.0) -> Region | None:
    """A mask of a whole frame as a region; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    inner = np.array(mask[top:bottom, left:right], bool)
    return Region(label, (left, top, right, bottom), inner, score)


def components(labels: Labels, classes: int) -> list[Region]:
    """The regions of a map of classes: pixels of a class that touch, by a side or corner.

    Args:
        labels: uint8 (H, W).
        classes: how many there are, the background not counted.

    Returns:
        The regions, those of a class from the largest on; no specks (`SPECK`), and no more than
        `MOST` of a class.
    """
    cv2 = opencv()
    least = max(SPECK * labels.size, 1)
    regions: list[Region] = []
    for label in range(classes):
        own = (labels == label + 1).astype(np.uint8)
        if not own.any():
            continue
        _, numbered, stats, _ = cv2.connectedComponentsWithStats(own, connectivity=8)
        order = np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable") + 1
        for number in order[:MOST].tolist():
            left, top, width, height, area = stats[number].tolist()
            if area < least:
                break
            inner = numbered[top : top + height, left : left + width] == number
            regions.append(Region(label, (left, top, left + width, top + height), inner))
    return regions


def painted(regions: Sequence[Region], height: int, width: int) -> Labels:
    """Regions as a map of classes, uint8 (H, W); where two lie over each other, the surer."""
    labels = np.zeros((height, width), np.uint8)
    for region in sorted(regions, key=lambda region: region.score):
        labels[region.whole(height, width)] = region.label + 1
    return labels


def polygons(mask: Mask) -> tuple[list[list[float]], bool]:
    """The outlines of a mask along the edges of its pixels, and whether it has holes.

    Args:
        mask: bool (H, W).

    Returns:
        For each part x, y, x, y, … in pixels, as COCO has them, where (0, 0) is the upper left
        corner of the first pixel. Holes, which COCO's polygons cannot have, are filled.
    """
    cv2 = opencv()
    # at twice the size a contour through the middles of pixels is a quarter of a pixel off
    large = np.kron(np.pad(mask, 1), np.ones((2, 2), bool)).astype(np.uint8)
    contours, tree = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer: list[list[float]] = []
    holes = False
    for contour, place in zip(contours, tree[0] if tree is not None else (), strict=True):
        if place[3] >= 0:
            holes = True
            continue
        # from pixels of the large mask to places of the small one, whose pixels have a width
        edges = (contour[:, 0].astype(float) + 0.5) / 2 - 1
        if len(edges) >= 3:
            outer.append(edges.ravel().round(2).tolist())
    return outer, holes


def rle(mask: Mask) -> dict[str, Any]:
    """A mask as COCO's uncompressed run lengths, by columns, beginning with the background."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    if flat.size and flat[0]:
        counts = [0, *counts]
    return {"size": list(mask.shape), "counts": counts}


def overlap(one: Region, other: Region, height: int, width: int) -> float:
    """Intersection over union of two regions: of their masks, or of boxes where one has none."""
    if one.mask is None or other.mask is None:
        left, top = (max(one.box[i], other.box[i]) for i in (0, 1))
        right, bottom = (min(one.box[i], other.box[i]) for i in (2, 3))
        shared = max(right - left, 0.0) * max(bottom - top, 0.0)
        plain = (replace(one, mask=None), replace(other, mask=None))
        union = sum(region.area for region in plain) - shared
    else:
        first, second = one.whole(height, width), other.whole(height, width)
        shared, union = float((first & second).sum()), float((first | second).sum())
    return shared / union if union else 0.0
