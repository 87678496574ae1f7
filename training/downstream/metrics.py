"""Figures of a classifier, each with its interval from a bootstrap over subjects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .bootstrap import LEAST, Bootstrap, Floats, Score

#: Bins of the expected calibration error and of the reliability diagram.
BINS = 10
# resamples at a time: weights of 100 by 100,000 frames are 80 MB
_CHUNK = 100


@dataclass(frozen=True)
class Judged:
    """Frames, clips or subjects of which the truth is known, and what was said of them.

    Attributes:
        unit: `frame`, `clip` or `subject`.
        classes: in the order of the columns; of a regression the name of the number.
        probabilities: (N, classes); of a regression numbers.
        target: int64 (N,); of several labels 0, 1 or NaN, and of numbers themselves, (N, classes).
        subject: int64 (N,), an index into the subjects of the bootstrap.
        answered: bool (N,), False for "cannot tell"; of numbers whether they are within the
            interval that was said.
        unlike: bool (N,), flagged as another kind of image.
        said: bool (N, classes), of several labels those that are said; None for what is at least a
            half.
    """

    unit: str
    classes: tuple[str, ...]
    probabilities: Floats
    target: npt.NDArray[Any]
    subject: npt.NDArray[np.int64]
    answered: npt.NDArray[np.bool_]
    unlike: npt.NDArray[np.bool_]
    said: npt.NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The most probable class, int64 (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1))


def resampled(judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
    """Every figure by its name, of all subjects and of each resample.

    A class that is absent, from the data or from a resample, counts in no mean over classes.

    Args:
        judged: N of them.
        bootstrap: resampled subjects.

    Returns:
        Accuracy, balanced accuracy, macro F1, macro AUROC (one against the rest), recall and
        precision of each class, expected calibration error, the share answered, the accuracy among
        the answered, and the share flagged as another kind of image; each (resamples + 1,).
    """
    return over(bootstrap, judged.subject, lambda weights: _figures(judged, weights))


def compared(judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
    """The figures of `resampled` that networks are compared by, (resamples + 1,) each."""

    def figures(weights: Floats) -> dict[str, Floats]:
        is_class = judged.target[:, None] == np.arange(len(judged.classes))
        hit = judged.predicted == judged.target
        recall = (weights @ (is_class & hit[:, None])) / (weights @ is_class)
        return {
            "macro AUROC": _mean(_aurocs(judged.probabilities, is_class, weights)),
            "balanced accuracy": _mean(recall),
            **{f"recall of {c}": recall[:, i] for i, c in enumerate(judged.classes)},
        }

    return over(bootstrap, judged.subject, figures)


def over(
    bootstrap: Bootstrap,
    subject: npt.NDArray[np.int64],
    figures: Callable[[Floats], dict[str, Floats]],
) -> dict[str, Floats]:
    """Figures of every resample, some at a time.

    Args:
        bootstrap: resampled subjects.
        subject: (N,), an index into them.
        figures: of weights (R, N), by name, (R,) each.
    """
    parts: list[dict[str, Floats]] = []
    for start in range(0, len(bootstrap.counts), _CHUNK):
        weights = bootstrap.counts[start : start + _CHUNK][:, subject].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(figures(weights))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measured(values: Floats, subjects: int) -> Score:
    """A figure with its interval, if the subjects can give one.

    There is none of fewer than `LEAST` subjects, and none where every resample says the same: of
    ten that are all right, no resample has a wrong one.

    Args:
        values: of all subjects and of each resample.
        subjects: the fewest that the figure is about.
    """
    score = interval(values)
    if subjects < LEAST or score.low == score.high:
        return Score(score.value, np.nan, np.nan)
    return score


def interval(values: Floats) -> Score:
    """As `Bootstrap.score`, over the resamples that have a value; NaN where none has."""
    known = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(known):
        return Score(np.nan, np.nan, np.nan)
    return Bootstrap.score(np.concatenate([values[:1], known]))


def _figures(judged: Judged, weights: Floats) -> dict[str, Floats]:
    predicted, target = judged.predicted, judged.target
    is_class = target[:, None] == np.arange(len(judged.classes))
    is_said = predicted[:, None] == np.arange(len(judged.classes))
    hit = (predicted == target).astype(np.float64)
    there, said = weights @ is_class, weights @ is_said
    right = weights @ (is_class & is_said)
    total = weights.sum(axis=1)
    recall = right / there
    f1 = np.where(there > 0, 2 * right / (there + said), np.nan)
    aurocs = _aurocs(judged.probabilities, is_class, weights)
    answered = weights @ judged.answered
    figures = {
        "accuracy": weights @ hit / total,
        "balanced accuracy": _mean(recall),
        "macro F1": _mean(f1),
        "macro AUROC": _mean(aurocs),
        "expected calibration error": calibration_error(judged, weights),
        "share answered": answered / total,
        "accuracy where answered": weights @ (hit * judged.answered) / answered,
        "share flagged as unlike": weights @ judged.unlike / total,
    }
    for i, label in enumerate(judged.classes):
        figures[f"recall of {label}"] = recall[:, i]
        figures[f"precision of {label}"] = right[:, i] / said[:, i]
    return figures


def _aurocs(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats) -> Floats:
    """One column against the rest, (R, columns)."""
    columns = zip(scores.T, positive.T, strict=True)
    return np.stack([auroc(own, is_one, weights) for own, is_one in columns], axis=1)


def _mean(values: Floats) -> Floats:
    """Mean over the classes that have a value, (R,); NaN where none has."""
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0).sum(axis=1) / known.sum(axis=1))


def auroc(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve under several weightings, ties counted half.

    Args:
        scores: (N,).
        positive: (N,).
        weights: (R, N), how often each counts.

    Returns:
        (R,), NaN where one side has no weight.
    """
    order = scores.argsort(kind="stable")
    _, start = np.unique(scores[order], return_index=True)
    ups = np.add.reduceat(weights[:, order] * positive[order], start, axis=1)
    downs = np.add.reduceat(weights[:, order] * ~positive[order], start, axis=1)
    below = downs.cumsum(axis=1) - downs
    return np.asarray((ups * (below + downs / 2)).sum(axis=1) / (ups.sum(axis=1) * downs.sum(1)))


def bins(judged: Judged) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    """Which bin of confidence each falls in, bool (N, BINS); confidence and hit, (N,)."""
    confidence = judged.probabilities.max(axis=1)
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    hit = (judged.predicted == judged.target).astype(np.float64)
    return number[:, None] == np.arange(BINS), confidence, hit


def calibration_error(judged: Judged, weights: Floats) -> Floats:
    """Expected calibration error of the most probable class in ten equal bins, (R,)."""
    member, confidence, hit = bins(judged)
    gaps = weights @ (member * (confidence - hit)[:, None])
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))
