"""Held-out subjects, resampled: figures with intervals, and differences that are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uscl_zoo.errors import DataError

from ..learning.frames import FrameStore, Video

Floats = npt.NDArray[np.float64]
#: Subjects that a 95 % interval needs: that five lie on one side of the truth happens by chance in
#: 2 of 2 to the power of 5 times, which is more than 5 %.
LEAST = 6


@dataclass(frozen=True)
class Task:
    """Frames to fit on and frames to judge on, of different subjects.

    Attributes:
        classes: in the order of the target's integers.
        train: rows of the store.
        test: rows of the store.
        train_target: int64, the class of each row.
        test_target: int64.
        test_subject: int64, an index into `subjects`.
        subjects: the held-out subjects.
    """

    classes: tuple[str, ...]
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    train_target: npt.NDArray[np.int64]
    test_target: npt.NDArray[np.int64]
    test_subject: npt.NDArray[np.int64]
    subjects: tuple[str, ...]


def make_task(store: FrameStore) -> Task:
    """The labelled frames of a store, by its split.

    Raises:
        DataError: if there are no two classes, or one is missing from a side of the split.
    """
    classes = store.labels
    if len(classes) < 2:
        raise DataError(
            f"{store.folder}: a probe needs two classes, and its labels are "
            f"{', '.join(classes) or 'none'}; prepare it with labels"
        )
    sides = {}
    for split in ("train", "heldout"):
        videos = [video for video in store.select(split) if video.label is not None]
        absent = [label for label in classes if label not in {v.label for v in videos}]
        if not videos or absent:
            raise DataError(
                f"{store.folder}: no {split} video of {', '.join(absent) or 'any class'}; "
                "a probe needs every class on both sides of the split"
            )
        sides[split] = videos
    subjects = tuple(sorted({video.subject for video in sides["heldout"]}))

    def spread(videos: Sequence[Video], value: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.repeat(np.array(value, dtype=np.int64), [video.count for video in videos])

    def rows(videos: Sequence[Video]) -> npt.NDArray[np.int64]:
        return np.concatenate([np.arange(v.first, v.first + v.count) for v in videos])

    train, test = sides["train"], sides["heldout"]
    return Task(
        classes=classes,
        train=rows(train),
        test=rows(test),
        train_target=spread(train, [classes.index(v.label or "") for v in train]),
        test_target=spread(test, [classes.index(v.label or "") for v in test]),
        test_subject=spread(test, [subjects.index(v.subject) for v in test]),
        subjects=subjects,
    )


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval, whose bounds are NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    def __format__(self, form: str) -> str:
        value, low, high = (format(v, form or ".3f") for v in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if self.bounded else value

    def __str__(self) -> str:
        return format(self, ".3f")


@dataclass(frozen=True)
class Bootstrap:
    """Resampled held-out subjects, shared by every model so that differences are paired.

    Subjects are drawn with replacement within the classes, as they were held out: an unstratified
    draw would often miss a class of few subjects, where balanced accuracy has no value.

    Attributes:
        task: whose held-out subjects.
        counts: int (resamples + 1, subjects), how often each is drawn; the first row is all ones.
    """

    task: Task
    counts: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, task: Task, resamples: int = 10_000, seed: int = 0) -> Bootstrap:
        """Draw the resamples."""
        subjects = len(task.subjects)
        per_class = np.zeros((subjects, len(task.classes)), dtype=np.int64)
        np.add.at(per_class, (task.test_subject, task.test_target), 1)
        stratum = per_class.argmax(axis=1)
        rng = np.random.default_rng(seed)
        counts = np.zeros((resamples + 1, subjects), dtype=np.int64)
        counts[0] = 1
        for label in np.unique(stratum):
            members = np.flatnonzero(stratum == label)
            share = np.full(len(members), 1 / len(members))
            counts[1:, members] = rng.multinomial(len(members), share, size=resamples)
        return cls(task, counts)

    def balanced_accuracy(self, predicted: npt.NDArray[np.int64]) -> Floats:
        """Balanced accuracy over the frames of each resample, (resamples + 1,)."""
        task = self.task
        shape = (len(task.subjects), len(task.classes))
        right, total = np.zeros(shape), np.zeros(shape)
        where = (task.test_subject, task.test_target)
        np.add.at(total, where, 1)
        np.add.at(right, where, predicted == task.test_target)
        weight = self.counts @ total
        with np.errstate(invalid="ignore"):
            recall = np.where(weight > 0, (self.counts @ right) / weight, np.nan)
        return np.asarray(np.nanmean(recall, axis=1))

    @staticmethod
    def score(values: Floats) -> Score:
        """The figure itself and the percentile interval of its resamples."""
        low, high = np.quantile(values[1:], (0.025, 0.975))
        return Score(float(values[0]), float(low), float(high))
