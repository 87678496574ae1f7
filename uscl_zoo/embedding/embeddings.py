"""Embeddings, and the files they are kept in: npz, CSV and Parquet."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.tables import Tabular
from ..errors import DataError, MissingDependencyError, one_line
from ..files import check_output, expanded, written
from ..names import cell

#: What embeddings can be written as.
SUFFIXES = (".npz", ".csv", ".parquet")
#: How these files begin.
BEGINS = {".npz": b"PK", ".csv": b"source,", ".parquet": b"PAR1"}

# Rows that are written at a time.
_ROWS = 8192


@dataclass(frozen=True, repr=False)
class Embeddings(Tabular):
    """N embeddings of D numbers, and where each came from; a table for pandas, Polars and Arrow.

    Attributes:
        features: float32 (N, D), as the global pooling leaves them.
        sources: the file or folder of each, N; of a subject, its first. An image in memory is
            called `image`, or one of several `image 3`.
        frames: int64 (N,), number of the frame among those sampled from its source, from 0; of a
            clip or subject, that of its first.
        times: float64 (N,), seconds since the source's first frame, NaN where it does not say; of a
            clip or subject, that of its first frame.
        counts: int64 (N,), frames averaged: 1 for a frame.
        skipped: sources that could not be read, and why.
        subjects: whose each is, N; None if nobody asked.
    """

    features: NDArray[np.float32]
    sources: list[Path]
    frames: NDArray[np.int64]
    times: NDArray[np.float64]
    counts: NDArray[np.int64]
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    subjects: list[str] | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        count, width = self.features.shape
        left = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Embeddings({count} × {width}, of {len(set(self.sources))} sources{left})"

    def columns(self) -> dict[str, Any]:
        """The columns of the CSV, features as float32."""
        whose = [] if self.subjects is None else [list(map(one_line, self.subjects))]
        vectors = np.ascontiguousarray(self.features.T)
        columns = [_texts(self.sources), *whose, self.frames, self.times, self.counts, *vectors]
        return dict(zip(_names(self), columns, strict=True))

    def save(self, path: str | Path) -> Path:
        """Write one row a frame, clip or subject, whole or not at all.

        `.npz` holds the attributes under their names, paths as text, and loads without pickle.
        In names, what is no UTF-8 or breaks a line is escaped, and in CSV a leading `=`, which a
        spreadsheet would calculate, has a quote before it.
        `.csv` has the columns source, subject if there are subjects, frame, time_s, frames_averaged
        and feature_0 …, with the digits that give back the same float32; an unknown time is left
        empty. `.parquet` has the same columns, features as float32.

        Args:
            path: ends in `.npz`, `.csv` or `.parquet`; its folder is made if need be.

        Returns:
            The path.

        Raises:
            DataError: if the suffix is another, or the file cannot be written.
            MissingDependencyError: for Parquet without pyarrow.
        """
        return write(path, lambda: iter([self]), self.skipped)


def concatenate(blocks: Iterable[Embeddings]) -> Embeddings:
    """Join embeddings of one network, at least one."""
    blocks = list(blocks)
    subjects = [s for block in blocks for s in block.subjects or ()]
    return Embeddings(
        np.concatenate([block.features for block in blocks]),
        [source for block in blocks for source in block.sources],
        np.concatenate([block.frames for block in blocks]),
        np.concatenate([block.times for block in blocks]),
        np.concatenate([block.counts for block in blocks]),
        [line for block in blocks for line in block.skipped],
        None if blocks[0].subjects is None else subjects,
    )


def average_subjects(blocks: Iterable[Embeddings]) -> Embeddings:
    """Average the clips of each subject, so that a long clip counts no more than a short one.

    Args:
        blocks: a row a clip, with subjects, at least one.

    Returns:
        A row a subject, in the order of their first clips.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    clips: dict[str, int] = {}
    counts: dict[str, int] = {}
    first: dict[str, tuple[Path, int, float]] = {}
    for block in blocks:
        assert block.subjects is not None
        for i, subject in enumerate(block.subjects):
            row = block.features[i].astype(np.float64)
            sums[subject] = sums[subject] + row if subject in sums else row
            clips[subject] = clips.get(subject, 0) + 1
            counts[subject] = counts.get(subject, 0) + int(block.counts[i])
            origin = (block.sources[i], int(block.frames[i]), float(block.times[i]))
            first.setdefault(subject, origin)
    sources, frames, times = zip(*first.values(), strict=True)
    return Embeddings(
        np.stack([sums[s] / clips[s] for s in sums]).astype(np.float32),
        list(sources),
        np.array(frames, np.int64),
        np.array(times, np.float64),
        np.array(list(counts.values()), np.int64),
        subjects=list(sums),
    )


def write(
    path: str | Path,
    blocks: Callable[[], Iterator[Embeddings]],
    skipped: list[tuple[Path, str]],
) -> Path:
    """Write embeddings block by block, whole or not at all; memory holds one block.

    Args:
        path: as for `Embeddings.save`.
        blocks: gives them from the first, each time it is called.
        skipped: sources that could not be read, and why.

    Returns:
        The path.

    Raises:
        DataError: as `Embeddings.save`.
        MissingDependencyError: as `Embeddings.save`.
    """
    path = check_output(check_suffix(path), begins=BEGINS[Path(path).suffix.lower()])
    with written(path) as partial:
        if path.suffix.lower() == ".npz":
            _write_npz(partial, lambda: _even(blocks()), skipped)
        elif path.suffix.lower() == ".csv":
            _write_csv(partial, blocks())
        else:
            _write_parquet(partial, _even(blocks()))
    return path


def _even(blocks: Iterable[Embeddings]) -> Iterator[Embeddings]:
    """The same rows, so many at a time: what is written should not tell how they came about."""
    held: list[Embeddings] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count >= _ROWS:
            whole = concatenate(held)
            yield _cut(whole, 0, _ROWS)
            held, count = [_cut(whole, _ROWS, len(whole))], count - _ROWS
    if count:
        yield concatenate(held)


def _cut(block: Embeddings, start: int, stop: int) -> Embeddings:
    some = slice(start, stop)
    return Embeddings(
        block.features[some],
        block.sources[some],
        block.frames[some],
        block.times[some],
        block.counts[some],
        subjects=None if block.subjects is None else block.subjects[some],
    )


def _write_npz(
    path: Path, blocks: Callable[[], Iterator[Embeddings]], skipped: list[tuple[Path, str]]
) -> None:
    texts = {"sources": 1, "subjects": 0}
    rows, width = 0, 0
    for block in blocks():
        rows, width = rows + len(block), block.features.shape[1]
        texts["sources"] = max([texts["sources"], *map(len, _texts(block.sources))])
        texts["subjects"] = max([texts["subjects"], *map(len, _texts(block.subjects or ()))])
    columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "features": (np.dtype(np.float32), (rows, width)),
        "frames": (np.dtype(np.int64), (rows,)),
        "times": (np.dtype(np.float64), (rows,)),
        "counts": (np.dtype(np.int64), (rows,)),
        **{name: (np.dtype(f"<U{long}"), (rows,)) for name, long in texts.items() if long},
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        # numpy's own writer would want each whole column in memory
        for name, (dtype, shape) in columns.items():
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as stream:
                about = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(stream, about)
                for block in blocks():
                    values = getattr(block, name)
                    if name in texts:
                        values = _texts(values)
                    stream.write(np.ascontiguousarray(values, dtype).tobytes())
        with archive.open(_entry("skipped.npy"), "w") as stream:
            lines = np.array([_texts(line) for line in skipped], np.str_)
            np.lib.format.write_array(stream, lines.reshape(-1, 2), allow_pickle=False)


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry of an archive, without the time: the same rows are the same bytes."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o600 << 16
    return entry


def _texts(names: Iterable[str | Path]) -> list[str]:
    """Names as files hold them: what is no UTF-8 in a path, or breaks a line, is escaped."""
    return [one_line(str(name)) for name in names]


def _names(block: Embeddings) -> list[str]:
    whose = [] if block.subjects is None else ["subject"]
    features = (f"feature_{i}" for i in range(block.features.shape[1]))
    return ["source", *whose, "frame", "time_s", "frames_averaged", *features]


def _write_csv(path: Path, blocks: Iterator[Embeddings]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        for number, block in enumerate(blocks):
            if not number:
                writer.writerow(_names(block))
            for i, vector in enumerate(block.features):
                whose = [] if block.subjects is None else [cell(block.subjects[i])]
                seconds = "" if math.isnan(block.times[i]) else f"{block.times[i]:.6g}"
                numbers = (f"{value:.9g}" for value in vector)
                about = [cell(block.sources[i]), *whose, block.frames[i], seconds, block.counts[i]]
                writer.writerow([*about, *numbers])


def _write_parquet(path: Path, blocks: Iterator[Embeddings]) -> None:
    import pyarrow
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        writer: Any = None
        for block in blocks:
            table = pyarrow.table(block)
            if writer is None:
                # a stream, as Arrow takes no path that is not UTF-8
                stream = stack.enter_context(path.open("wb"))
                writer = stack.enter_context(parquet.ParquetWriter(stream, table.schema))
            writer.write_table(table)


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that embeddings can be written to a path.

    Raises:
        DataError: naming the suffixes that can be.
        MissingDependencyError: for Parquet without pyarrow.
    """
    path = expanded(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: the name should end in {', '.join(SUFFIXES[:-1])} or .parquet")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{path}: Parquet needs pyarrow; install it by: pip install 'uscl-zoo[parquet]'"
        )
    return path
