"""How well two masks agree: overlap, and the distance of their outlines."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import (  # type: ignore[import-untyped]
    binary_erosion,
    distance_transform_edt,
)

from uscl_zoo.segmentation.regions import Mask


def dice(one: Mask, other: Mask) -> float:
    """Twice the intersection over the sum of both; 1 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union (Jaccard); 1 where both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def hausdorff95(one: Mask, other: Mask, spacing: tuple[float, float] = (1.0, 1.0)) -> float:
    """The 95th percentile of the distances between two outlines, both ways together.

    Each pixel of an outline has its distance to the other outline; the percentile is over those of
    both, as medpy has it. Pixels at the rim of the image are of the outline.

    Args:
        one: bool (H, W).
        other: bool (H, W).
        spacing: height and width of a pixel, in the unit of the result.

    Returns:
        NaN where either is empty.
    """
    if not one.any() or not other.any():
        return float("nan")
    both = one | other
    rows, columns = np.flatnonzero(both.any(axis=1)), np.flatnonzero(both.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    first, second = _outline(one[window]), _outline(other[window])
    distances = [
        _to(second, spacing)[first],
        _to(first, spacing)[second],
    ]
    return float(np.percentile(np.concatenate(distances), 95))


def _outline(mask: Mask) -> Mask:
    return np.asarray(mask & ~binary_erosion(mask))


def _to(outline: Mask, spacing: tuple[float, float]) -> npt.NDArray[Any]:
    return np.asarray(distance_transform_edt(~outline, sampling=spacing))
