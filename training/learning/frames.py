"""The FrameStore: sampled frames of many videos as one memory map and a manifest.

A store is a folder of three files: `frames.npy`, uint8 (frames, height, width, 3), which NumPy
opens without reading it; `manifest.csv`, a row a frame in the same order; and `store.json`, what it
was made of. A video's frames are neighbours, in the order of time.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import io
import json
import sys
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.files import open_file
from uscl_zoo.names import cell, plain

FRAMES, MANIFEST, DESCRIPTION = "frames.npy", "manifest.csv", "store.json"
#: Columns of the manifest. `frame` is the index within the video, `time` is in seconds.
COLUMNS = ("video", "subject", "label", "split", "frame", "time", "source", "licence")
#: A further column of stores of a corpus: the key of the source that a video is of.
ORIGIN = "origin"
#: A further column of stores of `uscl prepare --clean`: the geometry of the beam, as JSON.
BEAM = "beam"
SPLITS = ("train", "heldout")
#: Columns of names, which may hold anything and are written by `names.cell`.
_TEXTS = frozenset({"video", "subject", "label", "source", "licence"})


@dataclass(frozen=True)
class Video:
    """A video of the store.

    Attributes:
        name: unique in the store: the path of the source within its folder.
        subject: whom it shows; two videos of one subject never fall on two sides of a split.
        label: its class, None if unlabelled.
        split: `train` or `heldout`.
        source: the file it was decoded from.
        licence: as its owner states it, None if unknown.
        first: row of its first frame.
        count: how many frames it has.
        origin: key of its source in a corpus of several; None in a store of one.
    """

    name: str
    subject: str
    label: str | None
    split: str
    source: str
    licence: str | None
    first: int
    count: int
    origin: str | None = None


class FrameStore:
    """Frames of many videos, opened for reading.

    Attributes:
        folder: where it lives.
        frames: uint8 (N, H, W, 3), memory-mapped.
        times: float64 (N,), seconds from the start of the video.
        videos: in the order of the store.
        description: what `uscl prepare` recorded in store.json.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / DESCRIPTION).is_file():
            unfinished = (self.folder / "parts").is_dir()
            hint = "its preparation was interrupted: run it again" if unfinished else "is no store"
            raise DataError(f"{self.folder}: {hint} (`uscl prepare VIDEOS -o {self.folder}`)")
        try:
            self.description: dict[str, Any] = json.loads((self.folder / DESCRIPTION).read_text())
            # a pipe would be waited for
            open_file(self.folder / FRAMES).close()
            mapped = np.load(self.folder / FRAMES, mmap_mode="r")
            self._offset = int(mapped.offset)
            self.frames: npt.NDArray[np.uint8] = mapped
            self.times, self.videos = _read_manifest(self.folder / MANIFEST)
        # a table cut off in the middle of a row lacks its last columns
        except (OSError, ValueError, LookupError, TypeError, EOFError, csv.Error) as error:
            raise UnreadableError(
                f"{self.folder}: damaged store ({type(error).__name__}: {error}); prepare it again"
            ) from error
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or self.frames.dtype != np.uint8:
            raise UnreadableError(
                f"{self.folder / FRAMES}: should be uint8 (N, H, W, 3), not {self.frames.dtype} "
                f"{self.frames.shape}"
            )
        if len(self.times) != len(self.frames):
            raise UnreadableError(
                f"{self.folder}: {MANIFEST} has {len(self.times)} rows, {FRAMES} has "
                f"{len(self.frames)} frames; prepare it again"
            )

    def read(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Read frames from the file, past the memory map.

        The pages of a map count as resident memory of the process, and of a store larger than
        memory there is no end of them.

        Args:
            rows: which, (N,).
            out: uint8 (N, H, W, 3) to read into; None for a new array.

        Raises:
            UnreadableError: if the file ends before a frame does.
        """
        if out is None:
            out = np.empty((len(rows), *self.frames.shape[1:]), np.uint8)
        size = int(np.prod(self.frames.shape[1:]))
        # unbuffered: a buffer would read on behind every frame
        with (self.folder / FRAMES).open("rb", buffering=0) as stream:
            for row, frame in zip(rows.tolist(), out, strict=True):
                if not 0 <= row < len(self.frames):
                    raise IndexError(f"row {row} of {len(self.frames)}")
                stream.seek(self._offset + row * size)
                if stream.readinto(frame.data) != size:
                    raise UnreadableError(
                        f"{self.folder / FRAMES}: ends within frame {row}; prepare it again"
                    )
        return out

    @property
    def digest(self) -> str:
        """SHA-256 over the content of every source and the settings of the preparation."""
        return str(self.description["digest"])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label that occurs, sorted."""
        return tuple(sorted({v.label for v in self.videos if v.label is not None}))

    def select(self, split: str) -> list[Video]:
        """The videos of one split."""
        return [video for video in self.videos if video.split == split]

    def holding_out(self, subjects: Collection[str]) -> FrameStore:
        """The same frames with other subjects held out, and another digest for it."""
        absent = set(subjects) - {video.subject for video in self.videos}
        if absent:
            raise DataError(f"{self.folder}: no such subject: {', '.join(sorted(absent))}")
        other = copy.copy(self)
        other.videos = [
            dataclasses.replace(video, split="heldout" if video.subject in subjects else "train")
            for video in self.videos
        ]
        basis = "\n".join([self.digest, *sorted(subjects)])
        other.description = self.description | {
            "digest": hashlib.sha256(basis.encode()).hexdigest(),
        }
        return other

    def summary(self, videos: Sequence[Video]) -> dict[str, Any]:
        """Counts of some videos: videos, frames, subjects, classes, licences."""
        return {
            "videos": len(videos),
            "frames": sum(v.count for v in videos),
            "subjects": len({v.subject for v in videos}),
            "classes": dict(sorted(Counter(v.label or "unlabelled" for v in videos).items())),
            "licences": dict(sorted(Counter(v.licence or "not stated" for v in videos).items())),
        }

    def sources(self, videos: Sequence[Video]) -> list[dict[str, Any]]:
        """Whose some videos are: a mapping a source, in the order of the corpus.

        Returns:
            Name, url and citation of each source that has any of them, and the counts of
            `summary` of just its own. A store of one collection has one.
        """
        recorded = self.description
        known: dict[str | None, dict[str, Any]]
        known = dict(recorded["sources"]) if "sources" in recorded else {None: recorded["origin"]}
        own: dict[str | None, list[Video]] = {key: [] for key in known}
        for video in videos:
            own[video.origin].append(video)
        return [
            {
                "name": facts.get("name") or self.folder.resolve().name,
                "url": facts.get("url"),
                "citation": facts.get("citation"),
                **self.summary(own[key]),
            }
            for key, facts in known.items()
            if own[key] or None in known
        ]

    @property
    def is_clean(self) -> bool:
        """Whether its frames were cut to the beam and cleaned."""
        return bool(self.description["sampling"].get("clean", False))

    @property
    def is_grey(self) -> bool:
        """Whether red, green and blue are known to be the same in every frame."""
        return bool(self.description.get("grey", False))


def manifest_of(rows: Iterable[Sequence[object]], columns: Sequence[str] = COLUMNS) -> str:
    """The text of a manifest.

    Args:
        rows: a frame each, with a value a column.
        columns: their names.
    """
    texts = [column in _TEXTS for column in columns]
    table = io.StringIO(newline="")
    manifest = csv.writer(table, lineterminator="\n")
    manifest.writerow(columns)
    manifest.writerows(
        [cell(str(value)) if text else value for value, text in zip(row, texts, strict=True)]
        for row in rows
    )
    return table.getvalue()


def _read_manifest(path: Path) -> tuple[npt.NDArray[np.float64], list[Video]]:
    """The time of every row, and the videos, which own neighbouring rows.

    Rows are forgotten once their video is read: all at once they would fill gigabytes.
    """
    times = array("d")
    videos: list[Video] = []
    with io.TextIOWrapper(open_file(path), newline="", encoding="utf-8") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        name, subject, label, split, _, time, source, licence = map(header.index, COLUMNS)
        origin = header.index(ORIGIN) if ORIGIN in header else None
        # the reader of a blank line has nothing
        for _, of_video in groupby(filter(None, rows), itemgetter(name)):
            own = list(of_video)
            row, first = own[0], len(times)
            times.extend(float(one[time]) for one in own)
            if row[split] not in SPLITS:
                raise ValueError(f"row {first + 2} of {MANIFEST} has the split {row[split]!r}")
            videos.append(
                Video(
                    name=plain(row[name]),
                    # one string for all videos of a subject, and so on
                    subject=sys.intern(plain(row[subject])),
                    label=sys.intern(plain(row[label])) or None,
                    split=sys.intern(row[split]),
                    source=plain(row[source]),
                    licence=sys.intern(plain(row[licence])) or None,
                    first=first,
                    count=len(times) - first,
                    origin=None if origin is None else sys.intern(row[origin]),
                )
            )
    if len({video.name for video in videos}) != len(videos):
        raise ValueError(f"the rows of a video are not neighbours in {MANIFEST}")
    return np.array(times), videos
