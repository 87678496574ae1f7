"""Labelled images and videos of one's own, decoded, and the split of their subjects."""

from __future__ import annotations

from dataclasses import dataclass

from uscl_zoo.data.collection import Collection, collect, is_wanted, sides
from uscl_zoo.errors import DataError

from ..frames import FrameStore, Video

__all__ = ["Collection", "Split", "collect", "is_wanted", "sides", "split"]


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


def _subjects(videos: list[Video]) -> dict[str, set[str]]:
    """The subjects of each class."""
    subjects: dict[str, set[str]] = {}
    for video in videos:
        subjects.setdefault(video.label or "", set()).add(video.subject)
    return subjects
