"""What is done of a long embedding, on disk, so that an interrupted call goes on from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import written
from ..ultrasound.sources import Source, history_of, path_of
from .embeddings import Embeddings

# Rows, and seconds, after which what is done is put on disk.
_PART_ROWS, _PART_SECONDS = 8192, 30.0
# Parts that are held while their rows are read.
_OPEN = 3
#: Names of parts, half-written ones of earlier releases among them, and of marks of what is read.
NAMES = re.compile(r"\.?\d{8,}-\d+(\.\d+\.partial)?\.npz|[0-9a-f]{32}\.begun")


class Row(NamedTuple):
    """What one source gave: its frames, or their mean.

    Attributes:
        source: number of the source.
        features: float32 (n, D).
        times: float64 (n,).
        counts: int64 (n,).
    """

    source: int
    features: NDArray[np.float32]
    times: NDArray[np.float64]
    counts: NDArray[np.int64]


def mean_of(row: Row) -> Row:
    """The mean of the frames of a source, as one row."""
    mean = row.features.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    return Row(row.source, mean, row.times[:1], row.counts.sum(keepdims=True))


class Parts:
    """What is done of a long run, on disk: files of many sources each, every one whole.

    Attributes:
        folder: of the files.
        key: of what made them, besides the sources; files with another are not looked at.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key
        self._index: dict[str, tuple[str, Path, int, int]] = {}
        self._states: dict[Path, str] = {}
        self._rows: list[tuple[Path, str, Row]] = []
        self._waiting = 0
        self._since = time.monotonic()
        self._width = 0
        for path in sorted(folder.glob("*.npz")):
            # what cannot be read is made again
            with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
                self._take_in(path)

    def _take_in(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as part:
            if part["key"].item() != self.key:
                return
            self._width = int(part["width"])
            offset = 0
            for source, state, count in zip(
                part["sources"].tolist(),
                part["states"].tolist(),
                part["rows"].tolist(),
                strict=True,
            ):
                self._index[source] = (state, path, offset, count)
                offset += count

    def has(self, source: Path) -> bool:
        """Whether a source is done, and had not changed since when `left` looked."""
        return self._index.get(str(source), ("",))[0] == self._states[source]

    def left(self, sources: Sequence[Path]) -> list[Path]:
        """Which of some sources are not done, or have changed since."""
        for source in sources:
            if source not in self._states:
                self._states[source] = json.dumps(history_of(source))
        return [source for source in sources if not self.has(source)]

    @contextlib.contextmanager
    def reading(self, source: Source) -> Iterator[None]:
        """Leave a mark while a source is read, which stays if that ends the process."""
        mark = self._mark(path_of(source))
        with contextlib.suppress(OSError):  # of a full disk the rows tell
            mark.touch()
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def were_read(self, sources: Sequence[Path]) -> list[Path]:
        """Which of some sources were being read when an earlier call was killed."""
        return [source for source in sources if self._mark(source).exists()]

    def _mark(self, source: Path) -> Path:
        name = str(source).encode(errors="surrogatepass")
        return self.folder / f"{hashlib.sha256(name).hexdigest()[:32]}.begun"

    def size(self, sources: Sequence[Path]) -> tuple[int, int]:
        """Rows of these sources, and numbers in each."""
        return sum(self._index[str(source)][3] for source in sources), self._width

    def add(self, source: Path, row: Row) -> None:
        """Take in what a source gave, and put it on disk if there is much of it, or for long."""
        self._rows.append((source, self._states[source], row))
        self._waiting += len(row.features)
        if self._waiting >= _PART_ROWS or time.monotonic() - self._since >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Put on disk what has been added."""
        if not self._rows:
            return
        # as they may come in any order, and are taken in that of the sources
        self._rows.sort(key=lambda one: one[2].source)
        path = self.folder / f"{len(self._index):08}-{os.getpid()}.npz"
        sources, states, rows = zip(*self._rows, strict=True)
        with written(path) as partial, partial.open("wb") as stream:
            np.savez(
                stream,
                key=np.array(self.key),
                width=np.array(rows[0].features.shape[1]),
                sources=np.array([str(source) for source in sources], np.str_),
                states=np.array(states, np.str_),
                rows=np.array([len(row.features) for row in rows], np.int64),
                features=np.concatenate([row.features for row in rows]),
                times=np.concatenate([row.times for row in rows]),
                counts=np.concatenate([row.counts for row in rows]),
            )
        self._take_in(path)
        self._rows, self._waiting, self._since = [], 0, time.monotonic()

    def blocks(self, sources: Sequence[Path], whose: Sequence[str] | None) -> Iterator[Embeddings]:
        """The rows of sources, in their order, as many at a time as lie together in a part."""
        # rows that came in no order lie in turn in one part and the next
        opened: dict[Path, tuple[NDArray[Any], ...]] = {}
        start = 0
        while start < len(sources):
            _, path, offset, size = self._index[str(sources[start])]
            stop, sizes = start + 1, [size]
            while stop < len(sources):
                _, other, place, size = self._index[str(sources[stop])]
                if (other, place) != (path, offset + sum(sizes)):
                    break
                sizes.append(size)
                stop += 1
            if path not in opened:
                if len(opened) == _OPEN:
                    del opened[next(iter(opened))]
                with np.load(path, allow_pickle=False) as part:
                    opened[path] = part["features"], part["times"], part["counts"]
            features, times, counts = opened[path]
            some = slice(offset, offset + sum(sizes))
            owners = np.repeat(np.arange(start, stop), sizes).tolist()
            yield Embeddings(
                features[some],
                [sources[i] for i in owners],
                np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
                times[some],
                counts[some],
                subjects=None if whose is None else [whose[i] for i in owners],
            )
            start = stop

    def rows(self, sources: Sequence[Path]) -> Iterator[Row]:
        """What each source gave, by its number among them; of those that are not done nothing."""
        done = [number for number, source in enumerate(sources) if self.has(source)]
        place = 0
        for block in self.blocks([sources[number] for number in done], None):
            # each begins with its frame 0
            starts = np.flatnonzero(block.frames == 0)
            for start, stop in zip(starts, [*starts[1:], len(block)], strict=True):
                some = slice(start, stop)
                yield Row(done[place], block.features[some], block.times[some], block.counts[some])
                place += 1

    def remove(self) -> None:
        """Take away the parts, those of other calls to the same output too, and nothing else."""
        for path in self.folder.iterdir():
            if NAMES.fullmatch(path.name):
                path.unlink(missing_ok=True)
