"""Who is in a video: from a table, or from the name of the file."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from .errors import DataError, UnreadableError
from .files import open_file

#: Lines of a list in a message.
_LISTED = 20

#: How a row may name a file, the surest first.
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: PurePosixPath(name).name,
    lambda name: PurePosixPath(name).stem,
    str.casefold,
    lambda name: PurePosixPath(name).name.casefold(),
    lambda name: PurePosixPath(name).stem.casefold(),
)
#: Of these, how many regard case.
_EXACT = 3


@dataclass(frozen=True)
class Annotation:
    """What is known of one video besides its pixels."""

    subject: str
    label: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Table:
    """Annotations by file, read from a CSV.

    Attributes:
        path: of the CSV, for messages.
        rows: annotations by file stem, file name or relative path, as the file column has them.
        contradictory: keys with rows that disagree; an error only if such a file is prepared.
        repeated: keys with several rows, whether they disagree or not.
    """

    path: Path
    rows: Mapping[str, Annotation]
    contradictory: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()

    def find(self, name: str) -> Annotation | None:
        """The annotation of a video: by relative path, file name or stem, then ignoring case.

        Raises:
            DataError: if the table has two rows for it that disagree.
        """
        path = PurePosixPath(name)
        for wanted in (name, path.name, path.stem):
            if wanted in self.rows:
                return self._only([wanted])
        for wanted in (name, path.name, path.stem):
            keys = self._folded.get(wanted.casefold())
            if keys:
                return self._only(keys)
        return None

    def assign(self, files: Mapping[Path, Sequence[str]]) -> dict[Path, str]:
        """Give each file its row: a row names one file, and a file has one row at most.

        Args:
            files: the names of each, as paths from the folders that a row may count from.

        Returns:
            The key of the row of each file that has one, in the order of the files.

        Raises:
            DataError: listing the rows that name several files, and the files with several rows.
        """
        indices: list[dict[str, list[Path]]] = []
        for spelling in _SPELLINGS:
            index: dict[str, list[Path]] = defaultdict(list)
            for file, names in files.items():
                for spelt in dict.fromkeys(map(spelling, names)):
                    index[spelt].append(file)
            indices.append(index)
        keys: dict[Path, list[str]] = defaultdict(list)
        several: list[str] = []
        for key in self.rows:
            named = self._named(key, indices)
            if len(named) > 1:
                several.append(f"{key!r}: {', '.join(map(str, named))}")
            for file in named:
                keys[file].append(key)
                if key in self.repeated:
                    keys[file].append(key)
        if several:
            raise DataError(
                f"{self.path}: {len(several)} rows name several files each; a row should have the "
                f"path of its file: {_listed(several)}"
            )
        doubled = [
            f"{file}: {', '.join(map(repr, of))}" for file, of in keys.items() if len(of) > 1
        ]
        if doubled:
            raise DataError(
                f"{self.path}: {len(doubled)} files have two rows; keep one of each: "
                f"{_listed(doubled)}"
            )
        return {file: keys[file][0] for file in files if file in keys}

    @staticmethod
    def _named(key: str, indices: Sequence[Mapping[str, list[Path]]]) -> list[Path]:
        for place, index in enumerate(indices):
            found = index.get(key if place < _EXACT else key.casefold())
            if found:
                return found
        return []

    @cached_property
    def _folded(self) -> dict[str, list[str]]:
        folded: dict[str, list[str]] = defaultdict(list)
        for key in self.rows:
            folded[key.casefold()].append(key)
        return folded

    def _only(self, keys: Sequence[str]) -> Annotation:
        rows = {self.rows[key] for key in keys}
        if len(rows) > 1 or not self.contradictory.isdisjoint(keys):
            raise DataError(f"{self.path}: two rows for {keys[0]!r} disagree; keep one")
        return rows.pop()


def read_table(
    path: Path,
    file_column: str,
    label_column: str | None = None,
    subject_column: str | None = None,
    licence_column: str | None = None,
    *,
    where: Mapping[str, str] | None = None,
) -> Table:
    """Read annotations from a CSV with a header.

    Args:
        path: of the CSV.
        file_column: paths, names or stems of files.
        label_column: class of the file.
        subject_column: whom it shows; without one, and in an empty cell, each row its own.
        licence_column: licence of the file.
        where: values by column that a row must have to be read.

    Raises:
        UnreadableError: if the file is no readable CSV.
        DataError: if a named column is missing, or no row is as `where` asks.
    """
    named_columns = (file_column, label_column, subject_column, licence_column, *(where or ()))
    try:
        # utf-8-sig: tables exported from spreadsheets begin with a byte-order mark
        # at once or not at all: a pipe in its place would be waited for
        with io.TextIOWrapper(open_file(path), newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            for column in named_columns:
                if column is not None and column not in columns:
                    named = ", ".join(repr(c) for c in columns if c)
                    raise DataError(f"{path}: no column {column!r}; it has {named or 'none'}")
            lines = list(reader)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: is not a CSV in UTF-8 ({error})") from error

    def cell(line: dict[str, str | None], column: str | None) -> str | None:
        return ((line[column] or "").strip() or None) if column is not None else None

    if where:
        lines = [line for line in lines if all(cell(line, c) == v for c, v in where.items())]
        if not lines:
            asked = ", ".join(f"{column} {value!r}" for column, value in where.items())
            raise DataError(f"{path}: has no row with {asked}")
    rows: dict[str, Annotation] = {}
    contradictory: set[str] = set()
    repeated: set[str] = set()
    for line in lines:
        key = cell(line, file_column)
        if key is None:
            continue
        licence = cell(line, licence_column)
        row = Annotation(
            subject=cell(line, subject_column) or key,
            label=cell(line, label_column),
            # "CC BY-NC -SA 4.0" and "CC BY-NC-SA 4.0" are one licence
            licence=re.sub(r"\s*-\s*", "-", licence) if licence else None,
        )
        if key in rows:
            repeated.add(key)
        if rows.setdefault(key, row) != row:
            contradictory.add(key)
    return Table(path, rows, frozenset(contradictory), frozenset(repeated))


def subject_of(name: str, pattern: str) -> str:
    """Read a subject off a name.

    Args:
        name: path of the video within its folder.
        pattern: regular expression whose first group is the subject.

    Raises:
        DataError: for a name without the pattern, or a pattern that is none.
    """
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise DataError(
            f"the subject pattern {pattern!r} is no regular expression ({error})"
        ) from error
    if not found or not found.groups() or not found.group(1):
        raise DataError(f"{name}: the subject pattern {pattern!r} finds no group in it")
    return found.group(1)


def _listed(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return "; ".join(lines[:_LISTED]) + more
