"""From probabilities of frames to figures: by frame, clip and subject, with intervals, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from .bootstrap import Bootstrap, Floats, Score, Task
from .folds import Folds
from .metrics import Judged, interval, resampled

#: What is compared between models.
COMPARED = ("balanced accuracy", "macro AUROC")
#: Figures of `metrics` about declining to answer, which no protocol here does.
_UNASKED = ("share answered", "accuracy where answered", "share flagged as unlike")


def bootstrap_of(folds: Folds, resamples: int, seed: int) -> Bootstrap:
    """Resampled subjects, each judged once over all folds."""
    sample, none = folds.sample(), np.empty(0, np.int64)
    subjects = tuple(sorted({video.subject for video in folds.videos}))
    task = Task(
        classes=folds.classes,
        train=none,
        test=sample.rows,
        train_target=none,
        test_target=sample.target,
        test_subject=sample.subject,
        subjects=subjects,
    )
    return Bootstrap.draw(task, resamples, seed)


def units(probabilities: Floats, folds: Folds) -> list[Judged]:
    """Frames, clips and subjects, those that are not the same thing.

    A clip has the mean of its frames, a subject that of its clips. A subject whose clips are of
    several classes has none and is left out.

    Args:
        probabilities: (N, classes), of the frames of `folds.sample()`.
        folds: what was judged.
    """
    sample = folds.sample()
    clip_subject, clip_target = _firsts(sample.clip, sample.subject, sample.target)
    clips = _means(probabilities, sample.clip)
    people = _means(clips, clip_subject)
    person = np.arange(len(people))
    person_target = _firsts(clip_subject, clip_target)[0]
    several = np.unique(clip_subject[clip_target != person_target[clip_subject]])
    known = np.setdiff1d(person, several)
    judged = [_judged("clip", folds, clips, clip_target, clip_subject)]
    if len(sample) > len(clips):
        judged.insert(0, _judged("frame", folds, probabilities, sample.target, sample.subject))
    if len(people) < len(clips):
        judged.append(_judged("subject", folds, people[known], person_target[known], known))
    return judged


def _firsts(
    owner: npt.NDArray[np.int64], *values: npt.NDArray[np.int64]
) -> list[npt.NDArray[np.int64]]:
    """The value of the first member of each owner."""
    first = np.unique(owner, return_index=True)[1]
    return [value[first] for value in values]


def _means(values: Floats, owner: npt.NDArray[np.int64]) -> Floats:
    total = np.zeros((int(owner.max()) + 1, values.shape[1]))
    np.add.at(total, owner, values)
    return np.asarray(total / np.bincount(owner)[:, None])


def _judged(
    unit: str,
    folds: Folds,
    probabilities: Floats,
    target: npt.NDArray[np.int64],
    subject: npt.NDArray[np.int64],
) -> Judged:
    every = np.ones(len(target), bool)
    return Judged(unit, folds.classes, probabilities, target, subject, every, ~every)


@dataclass(frozen=True)
class Figures:
    """A model under a protocol, averaged over seeds, in one unit.

    Attributes:
        unit: `frame`, `clip` or `subject`.
        scores: by name.
        spread: standard deviation of each over seeds, NaN of a single one.
        compared: of `COMPARED`, by name, of all subjects and of each resample.
    """

    unit: str
    scores: dict[str, Score]
    spread: dict[str, float]
    compared: dict[str, Floats]


def figures(probabilities: Floats, folds: Folds, bootstrap: Bootstrap) -> list[Figures]:
    """Measure every seed and average, resample by resample.

    Args:
        probabilities: (seeds, N, classes), of the frames of `folds.sample()`.
        folds: what was judged.
        bootstrap: of its subjects.
    """
    by_seed = [
        [(unit.unit, resampled(unit, bootstrap)) for unit in units(one, folds)]
        for one in probabilities
    ]
    by_unit = []
    for parts in zip(*by_seed, strict=True):
        unit, first = parts[0]
        names = [name for name in first if name not in _UNASKED]
        values = {name: np.stack([part[name] for _, part in parts]) for name in names}
        spread = {
            name: float(np.std(value[:, 0], ddof=1)) if len(value) > 1 else float("nan")
            for name, value in values.items()
        }
        means = {name: value.mean(axis=0) for name, value in values.items()}
        scores = {name: interval(mean) for name, mean in means.items()}
        by_unit.append(Figures(unit, scores, spread, {name: means[name] for name in COMPARED}))
    return by_unit


@dataclass(frozen=True)
class Difference:
    """Two models on the same subjects: the first minus the second.

    Attributes:
        first: name.
        second: name.
        metric: of `COMPARED`.
        share: of the training subjects that both were fitted on.
        difference: with its paired interval.
        p: two-sided, from the resamples that lie on the other side of 0.
        corrected: p after Holm's correction for all comparisons of the table in that metric.
    """

    first: str
    second: str
    metric: str
    share: float
    difference: Score
    p: float
    corrected: float


def differences(
    compared: Mapping[float, Mapping[str, Figures]], against: str | None = None
) -> list[Difference]:
    """Compare models, by metric, share and pair.

    Args:
        compared: figures of one unit and bootstrap, by share of the training subjects and model.
        against: the model that the others are compared with; None for every two.
    """
    made: list[Difference] = []
    for metric in COMPARED:
        rows = [
            (first, second, share, models[first].compared[metric] - models[second].compared[metric])
            for share, models in compared.items()
            for first, second in _pairs(list(models), against)
        ]
        raw = [two_sided(values) for *_, values in rows]
        made += [
            Difference(first, second, metric, share, interval(values), p, corrected)
            for (first, second, share, values), p, corrected in zip(
                rows, raw, holm(raw), strict=True
            )
        ]
    return made


def _pairs(models: Sequence[str], against: str | None) -> list[tuple[str, str]]:
    if against is None:
        return list(combinations(models, 2))
    return [(model, against) for model in models if model != against]


def two_sided(values: Floats) -> float:
    """Bootstrap p that the figure is 0: twice the smaller tail, never below 2 / (resamples + 1)."""
    known = values[1:][np.isfinite(values[1:])]
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(2 * (tail + 1) / (len(known) + 1), 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Correct for as many comparisons (Holm, Scand. J. Statistics 6:65, 1979)."""
    corrected, highest = [0.0] * len(p), 0.0
    for rank, place in enumerate(np.argsort(p, kind="stable").tolist()):
        highest = max(highest, min((len(p) - rank) * p[place], 1.0))
        corrected[place] = highest
    return corrected
