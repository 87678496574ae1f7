"""Folds: every labelled video is judged once, by what was fitted without its subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from uscl_zoo.data import splits
from uscl_zoo.errors import DataError

from ..learning.frames import FrameStore, Video
from .sample import Sample


@dataclass(frozen=True)
class Folds:
    """Labelled videos of a store and the fold each is judged in.

    Attributes:
        videos: labelled, in the order of the store.
        fold: int64 (videos,), from 0.
        classes: in the order of the targets.
        official: whether the data set's own.
    """

    videos: tuple[Video, ...]
    fold: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    official: bool

    @property
    def count(self) -> int:
        """How many folds."""
        return int(self.fold.max()) + 1

    def held_out(self, number: int) -> set[str]:
        """The subjects judged in a fold."""
        pairs = zip(self.videos, self.fold, strict=True)
        return {video.subject for video, fold in pairs if fold == number}

    def sample(self) -> Sample:
        """Every labelled frame."""
        return Sample.of(self.videos, self.classes)

    def of_frames(self) -> npt.NDArray[np.int64]:
        """The fold of every frame of `sample`, int64 (N,)."""
        return np.repeat(self.fold, [video.count for video in self.videos])


def draw_folds(store: FrameStore, count: int = 5, seed: int = 0) -> Folds:
    """Folds of about equal classes, no subject in two (scikit-learn's StratifiedGroupKFold).

    Args:
        store: with labels.
        count: how many.
        seed: of the draw.

    Raises:
        DataError: if a class has fewer subjects than there are folds.
    """
    videos, classes = _labelled(store)
    labels = [video.label or "" for video in videos]
    subjects = [video.subject for video in videos]
    fold = splits.draw_folds(labels, subjects, count, seed, str(store.folder))
    return Folds(tuple(videos), fold, classes, official=False)


def some_subjects(
    target: npt.NDArray[np.int64], subject: npt.NDArray[np.int64], share: float, key: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Subjects to learn from, where there are to be fewer: a share of each class, at least one.

    A smaller share is part of a larger one of the same key.

    Args:
        target: (N,), the class of each training frame.
        subject: (N,), whose it is.
        share: above 0, up to 1.
        key: of the draw.
    """
    rng = np.random.default_rng(list(key))
    chosen = []
    for label in np.unique(target):
        order = rng.permutation(np.unique(subject[target == label]))
        chosen.append(order[: max(round(share * len(order)), 1)])
    return np.concatenate(chosen)


def official_folds(store: FrameStore, fold: Mapping[str, int]) -> Folds:
    """The folds a data set is published with.

    Args:
        store: with labels.
        fold: of each video, by its name.

    Raises:
        DataError: if a video has none, or a subject is in two.
    """
    videos, classes = _labelled(store)
    absent = [video.name for video in videos if video.name not in fold]
    if absent:
        raise DataError(f"{store.folder}: {len(absent)} have no official fold, first {absent[0]}")
    numbers = sorted({fold[video.name] for video in videos})
    places = np.array([numbers.index(fold[video.name]) for video in videos])
    labels = [video.label or "" for video in videos]
    splits.check_folds(labels, [video.subject for video in videos], places, str(store.folder))
    return Folds(tuple(videos), places, classes, official=True)


def _labelled(store: FrameStore) -> tuple[list[Video], tuple[str, ...]]:
    videos = [video for video in store.videos if video.label is not None]
    classes = store.labels
    if len(classes) < 2:
        raise DataError(
            f"{store.folder}: folds of a classification need two classes, not "
            f"{', '.join(classes) or 'none'}"
        )
    return videos, classes
