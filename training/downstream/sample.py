"""Labelled frames, and whose they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..learning.frames import Video

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Labelled frames of a store.

    Attributes:
        rows: int64 (N,), of the store.
        target: int64 (N,), class; or float32 (N, outputs), see `goal.Goal.targets`.
        clip: int64 (N,), ascending.
        subject: int64 (N,).
    """

    rows: Rows
    target: npt.NDArray[Any]
    clip: Rows
    subject: Rows

    @classmethod
    def of(
        cls,
        videos: Sequence[Video],
        classes: Sequence[str],
        targets: npt.NDArray[Any] | None = None,
    ) -> Sample:
        """The frames of some videos, all of them labelled.

        Args:
            videos: of a store.
            classes: in the order of the targets.
            targets: of each video; None for its class.
        """
        counts = [video.count for video in videos]
        subjects = sorted({video.subject for video in videos})

        def spread(values: Sequence[int]) -> Rows:
            return np.repeat(np.array(values, dtype=np.int64), counts)

        starts = [np.arange(video.first, video.first + video.count) for video in videos]
        return cls(
            rows=np.concatenate([np.empty(0, np.int64), *starts]),
            target=(
                spread([classes.index(video.label or "") for video in videos])
                if targets is None
                else np.repeat(targets, counts, axis=0)
            ),
            clip=spread(range(len(videos))),
            subject=spread([subjects.index(video.subject) for video in videos]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Rows) -> Sample:
        """Some of the frames."""
        return Sample(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))

    def thin(self, most: int, key: npt.NDArray[np.float64] | None = None) -> Rows:
        """Places of at most so many frames of each clip, evenly spaced, or those of smallest key.

        Args:
            most: 0 for all.
            key: (N,), random numbers.
        """
        if most == 0:
            return np.arange(len(self))
        _, first, inverse, count = np.unique(
            self.clip, return_index=True, return_inverse=True, return_counts=True
        )
        rank = np.arange(len(self)) - first[inverse]
        if key is None:
            # the frames at which the share of the clip passes the next of `most` steps
            share = np.minimum(most, count)[inverse]
            kept = (rank * share) // count[inverse] != ((rank - 1) * share) // count[inverse]
            return np.flatnonzero(kept)
        order = np.lexsort((key, self.clip))
        return np.sort(order[rank < most])

    def weights(self) -> npt.NDArray[np.float64]:
        """Weights (N,) that sum to 1 and count every subject the same, however many frames."""
        share = 1.0 / np.bincount(self.subject)[self.subject]
        return np.asarray(share / share.sum())
