"""Labelled images and videos of one's own, decoded, and the split of their subjects."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from uscl_zoo.data.collection import Collection, collect, is_wanted, sides
from uscl_zoo.errors import DataError

from ..learning.frames import FrameStore, Video
from .goal import Goal

__all__ = ["Collection", "Split", "collect", "divide", "everyone", "is_wanted", "sides", "split"]

#: Subjects without which there is nothing to train on and to judge by, where there are no classes.
FEWEST = 4


@dataclass(frozen=True)
class Split:
    """Videos by what they are for; no subject is in both."""

    train: list[Video]
    held_out: list[Video]


def split(store: FrameStore) -> Split:
    """The labelled videos of a store, by its split.

    Raises:
        DataError: if two classes do not have two subjects to train on and one to be judged on.
    """
    labelled = [video for video in store.videos if video.label is not None]
    parts = Split(
        train=[video for video in labelled if video.split == "train"],
        held_out=[video for video in labelled if video.split == "heldout"],
    )
    trained, judged = _subjects(parts.train), _subjects(parts.held_out)
    if sum(len(who) >= 2 for who in trained.values()) < 2 or len(judged) < 2:
        counts = _subjects(labelled)
        named = ", ".join(f"{label} {len(who)}" for label, who in sorted(counts.items()))
        raise DataError(
            "two classes need at least three subjects each, two to train on and one to be judged "
            f"on; subjects by class: {named}"
        )
    return parts


def divide(store: FrameStore, goal: Goal, share: float, seed: int, none: bool = False) -> Split:
    """The labelled videos of a store, of what is no class, with subjects held out here.

    Classes are held out by the store itself.

    Args:
        store: of which no subject is held out, or some are.
        goal: what is said of a file.
        share: of the subjects to hold out.
        seed: of which.
        none: hold out none.

    Raises:
        DataError: if there are too few subjects.
    """
    labelled = [video for video in store.videos if video.label is not None]
    subjects = sorted({video.subject for video in labelled})
    if len(subjects) < FEWEST:
        raise DataError(f"{len(subjects)} subjects are too few: {FEWEST} are needed")
    if none:
        return Split(train=labelled, held_out=[])
    held = {video.subject for video in labelled if video.split == "heldout"}
    if not held:
        outputs = goal.outputs([video.label or "" for video in labelled], ())
        strata = goal.strata(goal.targets([video.label or "" for video in labelled], outputs))
        count = min(len(subjects), 20)
        groups = np.array([subjects.index(video.subject) for video in labelled])
        parts = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # of a rare kind there are fewer than parts
            warnings.simplefilter("ignore", UserWarning)
            try:
                tests = [test for _, test in parts.split(strata, strata, groups)]
            except ValueError:
                tests = [test for _, test in GroupKFold(count).split(strata, groups=groups)]
        wanted = min(max(round(share * count), 1), count - 1)
        held = {labelled[i].subject for test in tests[:wanted] for i in test}
    return Split(
        train=[video for video in labelled if video.subject not in held],
        held_out=[video for video in labelled if video.subject in held],
    )


def everyone(store: FrameStore, folds: int) -> Split:
    """All labelled videos of a store, to train on: of a cross-validation.

    Raises:
        DataError: if fewer than two classes have a subject a fold.
    """
    labelled = [video for video in store.videos if video.label is not None]
    who = _subjects(labelled)
    if sum(len(of) >= folds for of in who.values()) < 2:
        named = ", ".join(f"{label} {len(of)}" for label, of in sorted(who.items()))
        raise DataError(
            f"`folds={folds}` needs two classes of as many subjects; subjects by class: {named}"
        )
    return Split(train=labelled, held_out=[])


def _subjects(videos: list[Video]) -> dict[str, set[str]]:
    """The subjects of each class."""
    subjects: dict[str, set[str]] = {}
    for video in videos:
        subjects.setdefault(video.label or "", set()).add(video.subject)
    return subjects
