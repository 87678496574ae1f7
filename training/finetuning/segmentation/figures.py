"""Figures of what was outlined on held-out subjects, each with an interval over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uscl_zoo.segmentation.regions import Region, overlap, painted

from ...downstream.bootstrap import Bootstrap, Score, Task
from ...downstream.metrics import interval
from . import precision
from .surface import dice, hausdorff95, iou

Floats = npt.NDArray[np.float64]

#: Intersection over union from which on a region is the one that is there.
SAME = 0.5
#: Bins of the reliability of pixels.
BINS = 20
#: Resamples of the average precision, each of which draws its curve anew.
_PRECISIONS = 500


@dataclass(frozen=True)
class Case:
    """A held-out image, judged.

    Attributes:
        row: of the store.
        name: of the image.
        subject: whose it is.
        size: height and width in pixels.
        spacing: height and width of a pixel in mm; None where it does not say.
        there: regions of the truth.
        predicted: all regions of the prediction, the surest first.
        said: those that are not below the confidence.
        dice: of each class, of the whole masks; NaN where it is neither there nor said.
        iou: as `dice`.
        distance: 95 % Hausdorff distance of each class in pixels; NaN where it is not both there
            and said.
        distance_mm: the same in mm; NaN without a spacing.
        hits: of each region of the truth, whether one of its class was said there.
        right: of each region of `predicted`, whether it is one that is there.
        away: from the training images.
        unlike: whether it is of another kind than they.
        pixels: (3, bins) of a segmentation: how many pixels have a probability of a class in each
            bin, the sum of these, and how many are of it.
    """

    row: int
    name: str
    subject: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    there: list[Region]
    predicted: list[Region]
    said: list[Region]
    dice: Floats
    iou: Floats
    distance: Floats
    distance_mm: Floats
    hits: list[bool]
    right: list[bool]
    away: float
    unlike: bool
    pixels: Floats | None = None

    @property
    def score(self) -> float:
        """Mean Dice of what is there or said; 1 where nothing is either."""
        known = self.dice[np.isfinite(self.dice)]
        return float(known.mean()) if len(known) else 1.0


def judge(
    row: int,
    name: str,
    subject: str,
    size: tuple[int, int],
    spacing: tuple[float, float] | None,
    there: list[Region],
    predicted: list[Region],
    confidence: float,
    classes: int,
    away: float,
    unlike: bool,
    pixels: Floats | None = None,
) -> Case:
    """Compare what was predicted in an image with what is there; arguments are those of `Case`."""
    said = [region for region in predicted if region.score >= confidence]
    truth, claim = painted(there, *size), painted(said, *size)
    columns = np.full((4, classes), np.nan)
    for label in range(classes):
        one, other = truth == label + 1, claim == label + 1
        if not one.any() and not other.any():
            continue
        columns[0, label], columns[1, label] = dice(one, other), iou(one, other)
        columns[2, label] = hausdorff95(one, other)
        if spacing is not None:
            columns[3, label] = hausdorff95(one, other, spacing)
    right, _ = match(there, predicted, size)
    _, hits = match(there, said, size)
    overlaps, areas, distance, distance_mm = columns
    return Case(
        row=row,
        name=name,
        subject=subject,
        size=size,
        spacing=spacing,
        there=there,
        predicted=predicted,
        said=said,
        dice=overlaps,
        iou=areas,
        distance=distance,
        distance_mm=distance_mm,
        hits=hits,
        right=right,
        away=away,
        unlike=unlike,
        pixels=pixels,
    )


def match(
    there: Sequence[Region], predicted: Sequence[Region], size: tuple[int, int], least: float = SAME
) -> tuple[list[bool], list[bool]]:
    """Pair regions with those that are there, the surest first, each with one of its class.

    Args:
        there: of the truth.
        predicted: of a prediction.
        size: of the frame.
        least: intersection over union.

    Returns:
        Of each that was predicted whether it is there, and of each that is there whether it
        was hit.
    """
    right, hits = [False] * len(predicted), [False] * len(there)
    for place in sorted(range(len(predicted)), key=lambda place: -predicted[place].score):
        best, chosen = least, -1
        for other, region in enumerate(there):
            if hits[other] or region.label != predicted[place].label:
                continue
            shared = overlap(predicted[place], region, *size)
            if shared >= best:
                best, chosen = shared, other
        if chosen >= 0:
            right[place] = hits[chosen] = True
    return right, hits


@dataclass(frozen=True)
class Figures:
    """What a model is worth.

    Attributes:
        rows: name of a figure, and its value by image and by subject; None where it has none.
        better: of each whether more is better.
        bootstrap: resampled held-out subjects.
        images: how many were judged.
        without_distance: images with something there or said that have no Hausdorff distance, as
            either was missing.
    """

    rows: dict[str, tuple[Score | None, Score | None]]
    bootstrap: Bootstrap
    images: int
    without_distance: int


def measure(
    cases: Sequence[Case], classes: Sequence[str], resamples: int, seed: int, masks: bool = True
) -> Figures:
    """Every figure with its 95 % interval.

    Args:
        cases: held-out images.
        classes: names.
        resamples: of the bootstrap over subjects.
        seed: of it.
        masks: whether there are masks, and not boxes alone.
    """
    subjects = tuple(sorted({case.subject for case in cases}))
    whose = np.array([subjects.index(case.subject) for case in cases])
    shows = np.array([int(bool(case.there)) for case in cases])
    none = np.empty(0, np.int64)
    task = Task(("none", "some"), none, np.arange(len(cases)), none, shows, whose, subjects)
    bootstrap = Bootstrap.draw(task, resamples, seed)
    weights = bootstrap.counts[:, whose].astype(np.float64)

    def by_image(values: Floats, counted: Floats | None = None) -> Score | None:
        """Mean over the images that have a value, or sum of values over sum of counts."""
        known = np.isfinite(values)
        if not known.any():
            return None
        top = weights @ np.where(known, values, 0)
        below = weights @ (known if counted is None else counted)
        with np.errstate(invalid="ignore", divide="ignore"):
            return interval(top / below)

    def by_subject(values: Floats, counted: Floats | None = None) -> Score | None:
        known = np.isfinite(values)
        count = np.zeros(len(subjects))
        total = np.zeros(len(subjects))
        np.add.at(total, whose[known], values[known])
        np.add.at(count, whose, known if counted is None else counted)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / count
        there = np.isfinite(mean)
        if not there.any():
            return None
        own = bootstrap.counts.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return interval((own @ np.where(there, mean, 0)) / (own @ there))

    def both(values: Floats, counted: Floats | None = None) -> tuple[Score | None, Score | None]:
        return by_image(values, counted), by_subject(values, counted)

    rows: dict[str, tuple[Score | None, Score | None]] = {}
    there = np.array(
        [[any(r.label == k for r in c.there) for k in range(len(classes))] for c in cases]
    )
    columns = {
        "Dice": np.array([case.dice for case in cases]),
        "IoU": np.array([case.iou for case in cases]),
        "95 % Hausdorff distance, px": np.array([case.distance for case in cases]),
        "95 % Hausdorff distance, mm": np.array([case.distance_mm for case in cases]),
    }
    for title, table in columns.items() if masks else ():
        # where it is there; what is said where nothing is, is counted below
        own = np.where(there, table, np.nan)
        rows[title] = both(_mean(own))
        for label, name in enumerate(classes) if len(classes) > 1 else ():
            rows[f"{title}, {name}"] = both(own[:, label])
    lesions = np.array([float(len(case.there)) for case in cases])
    hits = np.array([float(sum(case.hits)) for case in cases])
    rows[f"sensitivity by lesion (IoU ≥ {SAME:g})"] = both(
        np.where(lesions > 0, hits, np.nan), lesions
    )
    for label, name in enumerate(classes) if len(classes) > 1 else ():
        of = [
            [hit for hit, r in zip(c.hits, c.there, strict=True) if r.label == label] for c in cases
        ]
        counts = np.array([float(len(own)) for own in of])
        hits = np.array([float(sum(own)) for own in of])
        rows[f"sensitivity by lesion, {name}"] = both(np.where(counts > 0, hits, np.nan), counts)
    wrong = np.array([float(len(case.said) - sum(case.hits)) for case in cases])
    rows["false regions an image"] = both(wrong)
    empty = np.array([np.nan if case.there else float(not case.said) for case in cases])
    rows["images of none, of which none was said"] = both(empty)
    rows.update(_precisions(cases, len(classes), weights, masks))
    rows["expected calibration error of pixels"] = (_of_pixels(cases, weights), None)
    rows["expected calibration error of regions"] = (_calibration(cases, weights), None)
    rows["share flagged as unlike"] = both(np.array([float(case.unlike) for case in cases]))
    some = [case for case in cases if case.there or case.said]
    return Figures(
        rows={title: of for title, of in rows.items() if of != (None, None)},
        bootstrap=bootstrap,
        images=len(cases),
        without_distance=sum(not np.isfinite(case.distance).any() for case in some),
    )


def _mean(values: Floats) -> Floats:
    """Mean over the classes that have a value, (N,)."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=1) / known.sum(axis=1))


def _precisions(
    cases: Sequence[Case], classes: int, weights: Floats, masks: bool
) -> dict[str, tuple[Score | None, Score | None]]:
    scenes = [precision.Scene(case.size, case.there, case.predicted) for case in cases]
    rows: dict[str, tuple[Score | None, Score | None]] = {}
    for kind, title in (("segm", "mask"), ("bbox", "box")):
        if kind == "segm" and not masks:
            continue
        one = precision.measure(scenes, classes, kind)
        values = one.resampled(weights[: _PRECISIONS + 1])
        for name, of in zip(("AP", "AP50", "AP75"), values, strict=True):
            rows[f"{title} {name}"] = (interval(of), None)
    return rows


def reliability(shares: Floats, there: npt.NDArray[np.bool_]) -> Floats:
    """How often pixels of some probability are of a class, (3, bins): `Case.pixels`.

    Args:
        shares: (classes, H, W), probabilities.
        there: (classes, H, W), whether they are.
    """
    bins = np.minimum((shares * BINS).astype(int), BINS - 1).ravel()
    columns = (None, shares.ravel(), there.ravel())
    return np.stack([np.bincount(bins, weights, minlength=BINS) for weights in columns])


def _of_pixels(cases: Sequence[Case], weights: Floats) -> Score | None:
    """Of the probabilities of pixels."""
    tables = [case.pixels for case in cases if case.pixels is not None]
    if len(tables) < len(cases):
        return None
    counts, sums, hits = np.einsum("rn,ncb->crb", weights, np.stack(tables))
    return interval(np.abs(sums - hits).sum(axis=1) / counts.sum(axis=1))


def _calibration(cases: Sequence[Case], weights: Floats) -> Score | None:
    """Of the scores of regions as the probability that they are there, in ten bins."""
    scores = np.array([region.score for case in cases for region in case.predicted])
    if not len(scores):
        return None
    right = np.array([one for case in cases for one in case.right], float)
    image = np.repeat(np.arange(len(cases)), [len(case.predicted) for case in cases])
    bins = np.minimum((scores * 10).astype(int), 9)[:, None] == np.arange(10)
    own = weights[:, image]
    gaps = own @ (bins * (scores - right)[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        return interval(np.abs(gaps).sum(axis=1) / own.sum(axis=1))
