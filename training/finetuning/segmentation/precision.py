"""COCO's average precision of boxes and masks, with intervals over resampled subjects.

pycocotools matches what was predicted to what is there; the curve over the images of each resample
is drawn here from its matches, as it draws the one over all.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from uscl_zoo.errors import MissingDependencyError
from uscl_zoo.segmentation.regions import Region

Floats = npt.NDArray[np.float64]
#: Recalls at which COCO takes the precision.
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Scene:
    """An image: what is there, and what was predicted with whatever score.

    Attributes:
        size: height and width.
        there: regions of the truth.
        predicted: of a prediction.
    """

    size: tuple[int, int]
    there: Sequence[Region]
    predicted: Sequence[Region]


@dataclass(frozen=True)
class Matched:
    """What was predicted of a class in all images, the surest first.

    Attributes:
        image: int64 (D,), where each is.
        hit: bool (T, D), whether it is one that is there, at each threshold of IoU.
        there: int64 (N,), how many there are in each image.
    """

    image: npt.NDArray[np.int64]
    hit: npt.NDArray[np.bool_]
    there: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Precision:
    """Average precision of some images.

    Attributes:
        matched: by class.
        thresholds: of IoU, 0.5 to 0.95.
        own: what pycocotools itself says: AP, AP50 and AP75; NaN where nothing is there.
    """

    matched: tuple[Matched, ...]
    thresholds: Floats
    own: tuple[float, float, float]

    def resampled(self, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """AP, AP50 and AP75, (R,) each, with every image counted so many times.

        Args:
            weights: (R, N).
        """
        values = np.full((len(weights), len(self.matched), len(self.thresholds)), np.nan)
        for label, one in enumerate(self.matched):
            for turn, weight in enumerate(weights):
                values[turn, label] = _average(one, weight)
        known = np.isfinite(values)
        counts = np.maximum(known.any(axis=2).sum(axis=1), 0)

        def mean(chosen: Any) -> Floats:
            part = np.where(known, values, 0)[:, :, chosen]
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(part.sum(axis=(1, 2)) / (counts * part.shape[2]))

        places = [int(np.argmin(np.abs(self.thresholds - at))) for at in (0.5, 0.75)]
        return mean(slice(None)), mean([places[0]]), mean([places[1]])


def _average(one: Matched, weight: Floats) -> Floats:
    """Average precision at each threshold, (T,), by COCO's 101 recalls; NaN if nothing is there."""
    there = float(weight @ one.there)
    if not there:
        return np.full(len(one.hit), np.nan)
    own = weight[one.image]
    up = np.cumsum(own * one.hit, axis=1)
    down = np.cumsum(own * ~one.hit, axis=1)
    recall = up / there
    precision = up / np.maximum(up + down, np.spacing(1))
    # the best that is to be had at this recall or a higher one
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precisions = np.zeros((len(one.hit), len(_RECALLS)))
    for row in range(len(one.hit)):
        # rounding of weights must not pass over a recall that is reached
        places = np.searchsorted(recall[row] + 1e-12, _RECALLS, side="left")
        inside = places < recall.shape[1]
        precisions[row, inside] = best[row, places[inside]]
    return np.asarray(precisions.mean(axis=1))


def measure(scenes: Sequence[Scene], classes: int, kind: str) -> Precision:
    """Match what was predicted to what is there.

    Args:
        scenes: the images.
        classes: how many.
        kind: `bbox` or `segm`.

    Raises:
        MissingDependencyError: if pycocotools is not installed.
    """
    try:
        from pycocotools import mask as tools
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingDependencyError(
            "average precision needs pycocotools: pip install 'uscl-zoo[segmentation]'"
        ) from error

    def entry(region: Region, image: int, size: tuple[int, int], number: int) -> dict[str, Any]:
        left, top, right, bottom = region.box
        one: dict[str, Any] = {
            "id": number,
            "image_id": image,
            "category_id": region.label + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": region.area if kind == "segm" else (right - left) * (bottom - top),
            "iscrowd": 0,
            "score": region.score,
        }
        if kind == "segm":
            one["segmentation"] = tools.encode(np.asfortranarray(region.whole(*size), np.uint8))
        return one

    there: list[dict[str, Any]] = []
    predicted: list[dict[str, Any]] = []
    for image, scene in enumerate(scenes, start=1):
        for regions, into in ((scene.there, there), (scene.predicted, predicted)):
            for region in regions:
                into.append(entry(region, image, scene.size, len(into) + 1))
    with contextlib.redirect_stdout(io.StringIO()):
        truth, said = COCO(), COCO()
        shared = {
            "images": [
                {"id": i, "height": s.size[0], "width": s.size[1]}
                for i, s in enumerate(scenes, start=1)
            ],
            "categories": [{"id": i + 1, "name": str(i)} for i in range(classes)],
            "info": {},
        }
        truth.dataset, said.dataset = (
            shared | {"annotations": there},
            shared | {"annotations": predicted},
        )
        truth.createIndex()
        said.createIndex()
        judge = COCOeval(truth, said, kind)
        judge.evaluate()
        judge.accumulate()
    thresholds = np.asarray(judge.params.iouThrs, np.float64)
    own = judge.eval["precision"][:, :, :, 0, -1]
    return Precision(
        matched=tuple(_matched(judge, label, len(scenes), thresholds) for label in range(classes)),
        thresholds=thresholds,
        own=(_own(own), _own(own[thresholds == 0.5]), _own(own[np.isclose(thresholds, 0.75)])),
    )


def _own(values: Any) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def _matched(judge: Any, label: int, images: int, thresholds: Floats) -> Matched:
    """The matches of a class over all images and sizes of regions."""
    areas = len(judge.params.areaRng)
    # by class, then by range of areas, of which the first is all, then by image
    start = label * areas * images
    scores, hits, places = [], [], []
    there = np.zeros(images, np.int64)
    for image, own in enumerate(judge.evalImgs[start : start + images]):
        if own is None:
            continue
        there[image] = int((np.asarray(own["gtIgnore"]) == 0).sum())
        scores.append(np.asarray(own["dtScores"], np.float64))
        hits.append(np.asarray(own["dtMatches"]).reshape(len(thresholds), -1) > 0)
        places.append(np.full(len(own["dtScores"]), image, np.int64))
    score = np.concatenate([np.empty(0), *scores])
    order = np.argsort(-score, kind="mergesort")
    return Matched(
        image=np.concatenate([np.empty(0, np.int64), *places])[order],
        hit=np.concatenate([np.empty((len(thresholds), 0), bool), *hits], axis=1)[:, order],
        there=there,
    )
