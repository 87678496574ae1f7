"""Regions: what touches is one, and outlines in COCO's forms are the pixels they were made of."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as tools

from uscl_zoo.segmentation.regions import (
    Region,
    components,
    overlap,
    painted,
    polygons,
    region_of,
    rle,
)


def blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = rng.random((40, 56))
    for _ in range(8):
        rough = (rough + np.roll(rough, 1, 0) + np.roll(rough, 1, 1) + np.roll(rough, -1, 1)) / 4
    return np.asarray(rough > np.quantile(rough, 0.75))


@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_the_pixels_that_they_are_of(seed: int) -> None:
    mask = blobs(seed)
    parts, holes = polygons(mask)
    filled = tools.decode(tools.merge(tools.frPyObjects(parts, *mask.shape))).astype(bool)
    assert (filled & ~mask).any() == holes
    assert not (mask & ~filled).any()
    decoded = tools.decode(tools.frPyObjects(rle(mask), *mask.shape)).astype(bool)
    assert (decoded == mask).all()


def test_what_touches_by_a_corner_is_one_region_and_specks_are_none() -> None:
    labels = np.zeros((200, 200), np.uint8)
    labels[10:30, 10:30] = 1
    labels[30:40, 30:40] = 1
    labels[100:150, 100:150] = 2
    labels[199, 199] = 2
    labels[60, 60:64] = 1
    found = components(labels, 2)
    assert [(one.label, one.area) for one in found] == [(0, 500.0), (0, 4.0), (1, 2500.0)]
    assert found[0].window == (10, 10, 40, 40)
    assert (painted(found, 200, 200) > 0).sum() == (labels > 0).sum() - 1


def test_a_region_that_stands_out_of_its_frame_is_cut() -> None:
    box = Region(0, (-5.0, -5.0, 5.0, 5.0))
    assert box.whole(10, 10).sum() == 25
    assert Region(0, (8.0, 8.0, 20.0, 20.0)).whole(10, 10).sum() == 4


def test_overlap_is_of_masks_or_of_boxes_where_one_has_none() -> None:
    square = np.zeros((10, 10), bool)
    square[2:6, 2:6] = True
    one = region_of(square, 0)
    other = region_of(np.roll(square, 2, 1), 0)
    assert one is not None
    assert other is not None
    assert overlap(one, other, 10, 10) == pytest.approx(8 / 24)
    assert overlap(one, Region(0, (2.0, 2.0, 6.0, 4.0)), 10, 10) == pytest.approx(8 / 16)
    assert region_of(np.zeros((4, 4), bool), 0) is None


def test_areas_in_mm_need_a_spacing() -> None:
    region = region_of(np.ones((3, 4), bool), 0)
    assert region is not None
    assert region.area_in_mm(None) is None
    assert region.area_in_mm((0.5, 0.2)) == pytest.approx(1.2)
