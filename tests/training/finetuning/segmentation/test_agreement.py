"""Dice, Hausdorff's distance and COCO's precision, against values that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from uscl_zoo.segmentation.regions import Region, region_of
from uscl_zoo.training.finetuning.segmentation.figures import judge, match, measure
from uscl_zoo.training.finetuning.segmentation.precision import Scene
from uscl_zoo.training.finetuning.segmentation.precision import measure as precision
from uscl_zoo.training.finetuning.segmentation.surface import dice, hausdorff95, iou

SIZE = (40, 50)


def square(left: int, top: int, side: int, label: int = 0, score: float = 1.0) -> Region:
    mask = np.zeros(SIZE, bool)
    mask[top : top + side, left : left + side] = True
    found = region_of(mask, label, score)
    assert found is not None
    return found


def test_agreement_of_squares() -> None:
    one, other = square(5, 5, 10).whole(*SIZE), square(9, 5, 10).whole(*SIZE)
    assert dice(one, other) == pytest.approx(0.6)
    assert iou(one, other) == pytest.approx(60 / 140)
    assert hausdorff95(one, one) == 0
    # of two that are shifted by 4 the vertical sides are 4 apart
    assert hausdorff95(one, other) == pytest.approx(4)
    assert hausdorff95(one, other, (1.0, 0.5)) == pytest.approx(2)
    nothing = np.zeros(SIZE, bool)
    assert np.isnan(hausdorff95(one, nothing))
    assert (dice(nothing, nothing), dice(one, nothing)) == (1, 0)


def test_at_the_rim_of_the_image_is_an_outline() -> None:
    whole, inner = np.ones(SIZE, bool), np.zeros(SIZE, bool)
    inner[2:-2, 2:-2] = True
    assert hausdorff95(whole, inner) == pytest.approx(2)


def test_a_region_is_found_once_and_by_its_class() -> None:
    there = [square(5, 5, 10)]
    found = [square(5, 5, 10, score=0.5), square(6, 5, 10, score=0.9), square(5, 5, 10, 1, 0.99)]
    assert match(there, found, SIZE) == ([False, True, False], [True])


def cases(seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)

    def at() -> int:
        return int(rng.integers(0, 25))

    scenes = []
    for _ in range(12):
        labels = [label for label in (0, 1) if rng.random() < 0.7]
        there = [square(at(), at(), 12, label) for label in labels]
        found = [
            square(
                max(0, int(r.box[0]) + int(rng.integers(-3, 4))), int(r.box[1]), 12, r.label, score
            )
            for r, score in zip(there, rng.random(len(there)), strict=True)
        ]
        found += [square(at(), at(), 9, 0, float(rng.random()))]
        scenes.append(Scene(SIZE, there, found))
    return scenes


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_precision_is_that_of_pycocotools_and_of_repeated_images(kind: str) -> None:
    scenes = cases(0)
    whole = precision(scenes, 2, kind)
    weights = np.ones((2, len(scenes)))
    weights[1, :4], weights[1, 4:8] = 0, 2
    ours = np.array(whole.resampled(weights))
    assert ours[:, 0] == pytest.approx(whole.own)
    again = precision(scenes[4:8] * 2 + scenes[8:], 2, kind).own
    # equal scores of repeated images may stand in another order
    assert ours[:, 1] == pytest.approx(again, abs=0.02)


def test_figures_of_images_that_are_known() -> None:
    def case(row: int, subject: str, there: list[Region], found: list[Region]) -> object:
        return judge(row, f"{row}", subject, SIZE, (0.5, 0.5), there, found, 0.5, 1, 0.1, row == 3)

    images = [
        case(0, "a", [square(5, 5, 10)], [square(5, 5, 10, score=0.9)]),
        case(1, "a", [square(5, 5, 10)], []),
        case(2, "b", [square(5, 5, 10)], [square(9, 5, 10, score=0.8)]),
        case(3, "c", [], [square(5, 5, 10, score=0.7)]),
        case(4, "d", [], [square(5, 5, 10, score=0.2)]),
    ]
    figures = measure(images, ("lesion",), 50, 0)  # type: ignore[arg-type]

    def value(name: str, unit: int = 0) -> float:
        score = figures.rows[name][unit]
        assert score is not None
        return score.value

    assert value("Dice") == pytest.approx((1 + 0 + 0.6) / 3)
    assert value("Dice", 1) == pytest.approx((0.5 + 0.6) / 2)
    assert value("95 % Hausdorff distance, px") == pytest.approx(2)
    assert value("95 % Hausdorff distance, mm") == pytest.approx(1)
    assert value("sensitivity by lesion (IoU ≥ 0.5)") == pytest.approx(1 / 3)
    assert value("false regions an image") == pytest.approx(2 / 5)
    assert value("images of none, of which none was said") == pytest.approx(1 / 2)
    assert value("share flagged as unlike") == pytest.approx(1 / 5)
    assert figures.without_distance == 2
    # of a detector nothing is known of pixels; else all images count as they have pixels
    assert "expected calibration error of pixels" not in figures.rows
    table = np.zeros((3, 20))
    table[:, 10], table[:, 18] = (100, 52, 40), (10, 9.2, 10)
    sure = [replace(one, pixels=table) for one in images]  # type: ignore[type-var]
    figures = measure(sure, ("lesion",), 50, 0)  # type: ignore[arg-type]
    assert value("expected calibration error of pixels") == pytest.approx((12 + 0.8) / 110)
