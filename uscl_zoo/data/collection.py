"""Labelled images and videos of one's own: a folder a class, or a table of files."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..errors import DataError, UnreadableError, one_line
from ..files import expanded
from ..ultrasound import reading
from ..ultrasound.masks import counted, folders_of_masks, masks_left_out, some
from ..ultrasound.sources import Named, named
from ..zoo.catalogue import refuse_model
from .annotations import (
    Annotation,
    SubjectPattern,
    Table,
    fold,
    known,
    read_frame,
    read_table,
    words_of,
)
from .rows import absolute, alike, survey

#: Folders of a division of a data set, which are no classes, and what they are called in words.
_SIDES = {
    "train": re.compile(r"(?:train|training|trn|trainval)"),
    "val": re.compile(r"(?:val|valid|validation|dev|development)"),
    "test": re.compile(r"(?:test|testing|tst|eval|evaluation|held[\W_]?out|holdout)"),
    "fold": re.compile(r"(?:folds?|splits?|cv)[\W_]*(?:\d+|[a-z])"),
}
#: Words that say the same beside others, as `01_train` and `externalTest`, where there are both.
_WORDS = {
    "train": {"train", "training", "trn", "trainval", "learn", "learning", "seen"},
    "val": {"val", "valid", "validate", "validation", "dev", "development"},
    "test": {"test", "testing", "tst", "eval", "evaluation", "holdout", "unseen", "external"},
}
# `imagesTr` and `imagesTs`; TR and TS alone are of valves
_SHORT = {"tr": "train", "ts": "test", "te": "test", "va": "val"}
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
# Folders that say where, of whom or when, and not what is seen: a word and a number or letter, a
# long number, a year, a day
_NO_CLASS = re.compile(
    r"(?:(?:site|cent(?:er|re)|hospital|clinic|klinik|institut(?:e|ion)?|lab|pat(?:ient)?|pt|"
    r"subj(?:ect)?|sub|case|person|participant|volunteer|id|device|scanner|machine|vendor|probe|"
    r"transducer|batch|part|session|visit|exam(?:ination)?|study|series|scan|acquisition|cam(?:era)?|"
    r"video|clip|cine|frames?|im(?:age|g)s?|reader|observer|operator|folder|new folder)s?"
    r"[\W_]*(?:\d+|[a-z])?|[ps][\W_]?\d{2,}|\d{4,}|0\d{2,}|(?:\d{1,4}[-_.]){2}\d{1,4})[\W_]*",
    re.IGNORECASE,
)
_SET = re.compile(r"[\W_]*(?:set|data|images?|imgs?|videos?|split|\d+)$")


@dataclass(frozen=True)
class Collection:
    """Labelled sources.

    Attributes:
        sources: by name.
        annotations: by name; every one has a label.
        subjects: whether subjects are known; otherwise each source is its own.
        notes: what was left out, in words.
    """

    sources: dict[str, Path]
    annotations: dict[str, Annotation]
    subjects: bool
    notes: tuple[str, ...]


class Labels(Protocol):
    """What labels are: classes, numbers, or several labels a file."""

    asked: ClassVar[str]

    def join(
        self, columns: Sequence[str]
    ) -> Callable[[Mapping[str, str | None]], str | None] | None:
        """What makes one label of several columns; None for one as it is."""
        ...

    def texts(self, labels: Mapping[str, str], data: str) -> dict[str, str]:
        """Labels by file in one form."""
        ...


def collect(
    data: Path,
    table: Any = None,
    *,
    file_column: str = "Filename",
    label_column: str | Sequence[str] | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    every_row: bool = False,
    goal: Labels | None = None,
) -> Collection:
    """Find the labelled images and videos of a folder with a folder per class, or of a CSV.

    In the folder of a class each image is a picture of its own, and a folder within it is searched
    as usual. The rows of a table name files as for `rows.assign`, from its folder or `data`.

    Args:
        data: the folder or the CSV.
        table: a CSV, or a data frame of pandas or Polars, of the files in the folder; None if
            `data` is one itself, or a folder per class.
        file_column: of the table: paths, names or stems.
        label_column: of the CSV; several are joined by the goal.
        subject_column: of the CSV.
        subject_pattern: see `SubjectPattern`.
        classes: the only ones to take, in any case, with `*` for what they have in common; None
            for all.
        exclude: patterns of file names to leave out.
        every_row: whether a row of the CSV without a file is an error.
        goal: what labels are, where they are no classes.

    Raises:
        UnreadableError: if there is no such file or folder, or the CSV cannot be read.
        DataError: if it does not give what is needed, as at least two classes, or the folders are a
            division of the data and no classes.
    """
    refuse_model(data)
    notes: list[str] = []
    file_column, labels = str(file_column), words_of(label_column)
    subject_column = None if subject_column is None else str(subject_column)
    classes = None if classes is None else words_of(classes)
    exclude = words_of(exclude)
    pattern = None if subject_pattern is None else SubjectPattern(subject_pattern)
    if not data.exists() or (table is not None and not data.is_dir()):
        kind = "folder" if table is not None else "file or folder"
        raise UnreadableError(f"{data}: no such {kind}")
    if table is None and data.is_dir():
        for argument, given in (
            ("label_column", bool(labels)),
            ("subject_column", subject_column is not None),
            ("every_row", every_row),
        ):
            if given:
                raise DataError(f"{data}: `{argument}` is of a CSV, and this is a folder")
        files = _of_folder(data, pattern, notes)
    else:
        if not labels:
            asked = "the class" if goal is None else goal.asked
            raise DataError(f"{data}: `label_column` is missing: which column is {asked}?")
        if subject_column is not None and pattern is not None:
            raise DataError("`subject_column` and `subject_pattern` exclude each other")
        if goal is None and len(labels) > 1:
            raise DataError(
                f"`label_column` was given {len(labels)} times; several are of `task=multilabel`"
            )
        columns = (file_column, labels, subject_column)
        join = None if goal is None else goal.join(labels)
        if table is None:
            home, rows = data.parent, read_table(data, *columns, join=join)
        elif isinstance(table, (str, Path)):
            home, rows = data, read_table(expanded(table), *columns, join=join)
        else:
            home, rows = data, read_frame(table, data / "the data frame", *columns, join=join)
        files = of_table(rows, home, pattern, every_row, notes)
    # what a table itself says is compared where it is read
    whose = [row.subject for _, row in files.values()] if pattern is not None else []
    folders = [row.label for _, row in files.values() if row.label and not labels]
    notes += alike(whose, folders)
    kept = {
        name: (source, row)
        for name, (source, row) in files.items()
        if not any(fnmatch(source.name, pattern) for pattern in exclude)
    }
    if len(kept) < len(files):
        notes.append(f"{len(files) - len(kept)} files left out by name ({', '.join(exclude)})")
    labelled = {
        name: (source, row) for name, (source, row) in kept.items() if is_wanted(row.label, classes)
    }
    if len(labelled) < len(kept):
        other = Counter(row.label or "no label" for _, row in kept.values())
        other.subtract(row.label for _, row in labelled.values() if row.label)
        counted = ", ".join(f"{label} {count}" for label, count in sorted((+other).items()))
        notes.append(f"{len(kept) - len(labelled)} files left out by class ({counted})")
    # what was left out may be why it cannot serve
    aside = "".join(f"; {note}" for note in notes[:3])
    if goal is not None:
        try:
            texts = goal.texts({n: row.label or "" for n, (_, row) in labelled.items()}, str(data))
        except DataError as error:
            raise DataError(f"{error}{aside}") from error
        labelled = {
            name: (source, dataclasses.replace(row, label=texts[name]))
            for name, (source, row) in labelled.items()
        }
    elif len({fold(row.label or "") for _, row in labelled.values()}) < 2:
        kinds = sorted({row.label or "" for _, row in labelled.values()})
        raise DataError(
            f"{data}: has {len(labelled)} files of less than two classes"
            f"{f' ({kinds[0]})' if kinds else ''}; give a folder per class, or a CSV and its "
            f"`label_column`{aside}"
        )
    subjects = subject_column is not None or pattern is not None
    if not subjects:
        notes.append(
            "no subjects are known, so each file counts as its own; if subjects have several, "
            "name the column or pattern, or the figures will be too good"
        )
    return Collection(
        sources={name: source for name, (source, _) in labelled.items()},
        annotations={name: row for name, (_, row) in labelled.items()},
        subjects=subjects,
        notes=tuple(notes),
    )


def sides(data: Path) -> dict[str, Path]:
    """The folders of a division such as `train`, `val` and `test`, in a folder; none without one.

    Two of different kinds are one, and several folds. Of a single one its own folders tell: they
    are the classes if it is alone, or if another beside it has the name of one of them.
    """
    folders = [entry for entry in reading.entries(data) if entry.is_dir()]
    kinds: dict[str, list[Path]] = {}
    # `busi_train` beside `busi_test`: what all begin with is the name of the data
    shared = os.path.commonprefix([folder.name.casefold() for folder in folders])  # noqa: RUF071
    begin = len(re.sub(r"[^\W_]*$", "", shared)) if len(folders) > 1 else 0
    by_word: dict[str, list[Path]] = {}
    for folder in folders:
        name = folder.name.casefold().strip()
        words = {name, _SET.sub("", name), name[begin:], _SET.sub("", name[begin:])}
        for kind, pattern in _SIDES.items():
            if any(map(pattern.fullmatch, words)):
                kinds.setdefault(kind, []).append(folder)
                break
        for kind in _kinds_by_word(folder.name):
            by_word.setdefault(kind, []).append(folder)
    if "train" in by_word and len(by_word) > 1:
        for kind, of in by_word.items():
            kinds[kind] = list(dict.fromkeys([*kinds.get(kind, ()), *of]))
    divided = list(dict.fromkeys(folder for of in kinds.values() for folder in of))
    names = {folder.name.casefold() for folder in folders}
    nested = {
        entry.name.casefold()
        for folder in divided
        for entry in reading.entries(folder)
        if entry.is_dir()
    }
    alone = len(names) == 1 and bool(nested)
    if len(kinds) > 1 or len(kinds.get("fold", ())) > 1 or alone or nested & names:
        return {folder.name: folder for folder in sorted(divided, key=reading.natural_key)}
    return {}


def _kinds_by_word(name: str) -> set[str]:
    """What sides of a division a name has words of."""
    tokens = [token.casefold() for token in _TOKEN.findall(name)]
    kinds = {kind for kind, words in _WORDS.items() if not words.isdisjoint(tokens)}
    # a data set, a set and a folder of images are of either side
    joined = [re.sub(r"(?:data)?set$|images?$", "", token) for token in tokens]
    kinds |= {kind for kind, words in _WORDS.items() if not words.isdisjoint(joined)}
    if len(tokens) > 1 and tokens[-2] in {"image", "images", "frames", "videos"}:
        kinds |= {_SHORT[tokens[-1]]} if tokens[-1] in _SHORT else set()
    return kinds


def _doubts(
    data: Path, folders: Sequence[Path], loose: Sequence[Path], subjects: bool
) -> list[str]:
    """What in a folder per class looks as if the classes were others, in words.

    Args:
        data: the folder.
        folders: that are taken for classes.
        loose: files beside them.
        subjects: whether somebody says what in a path is the subject.
    """
    said = []
    if loose:
        said.append(f"{data}: {counted(loose)} in no class, and left out: {some(data, loose)}")
    inside = {
        folder: {entry.name for entry in reading.entries(folder) if entry.is_dir()}
        for folder in folders
    }
    divided = [folder.name for folder in folders if inside[folder] and sides(folder)]
    if divided:
        said.append(
            f"{data}: the division within {', '.join(divided)} is not kept: subjects are divided "
            "here"
        )
    # of subjects the names have numbers
    shared = {name for name in set.intersection(*inside.values()) if not re.search(r"\d", name)}
    if len(folders) > 1 and len(shared) > 1 and not divided:
        said.append(
            f"{data}: each of {', '.join(folder.name for folder in folders)} has folders "
            f"{', '.join(sorted(shared))}; if those are the classes, give a CSV of all"
        )
    counted_ = Counter(name for of in inside.values() for name in of if re.search(r"\d", name))
    again = [name for name, times in sorted(counted_.items()) if times > 1]
    if len(again) > 1 and not subjects and not divided:
        said.append(
            f"{data}: folders {_first(again)} are in several of "
            f"{', '.join(folder.name for folder in folders)}; if they are the classes, give a CSV "
            "of all, and if they are subjects, a `subject_pattern`"
        )
    if len(folders) > 1 and all(_NO_CLASS.fullmatch(folder.name) for folder in folders):
        said.append(
            f"{data}: {_first([folder.name for folder in folders])} are taken for classes, and are "
            "named as sites, subjects, scanners or files are; if they are none, give a CSV of all"
        )
    return list(map(one_line, said))


def _first(names: Sequence[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def is_wanted(label: str | None, classes: Sequence[str] | None) -> bool:
    """Whether a label is one of those asked for, in any case, as `breast *` asks for several."""
    if label is None or classes is None:
        return label is not None
    own = fold(label)
    return any(own == fold(one) or fnmatch(own, fold(one)) for one in classes)


def _of_folder(
    data: Path, pattern: SubjectPattern | None, notes: list[str]
) -> dict[str, tuple[Path, Annotation]]:
    if division := sides(data):
        raise DataError(
            f"{data}: {', '.join(division)} divide the data and are no classes; give one of them, "
            f"as {data / next(iter(division))}, or a CSV of all: subjects are divided here"
        )
    files: dict[str, tuple[Path, Annotation]] = {}
    own = reading.entries(data)
    masks = folders_of_masks([entry for entry in own if entry.is_dir()])
    folders = [entry for entry in own if entry.is_dir() and entry not in masks]
    if masks:
        notes.append(masks_left_out(data, masks))
    if folders:
        loose = [entry for entry in own if not entry.is_dir()]
        notes += _doubts(data, folders, loose, pattern is not None)
    for folder in folders:
        try:
            sources = reading.find([folder], on_damage=notes.append)
        except DataError as error:
            notes.append(str(error))
            continue
        # numbered stills of one size look like a clip, and are a class here
        for source in reading.images_in(folder) if sources == [folder] else sources:
            of = named(source, data)
            subject = None if pattern is None else pattern(of.within)
            files[of.name] = source, Annotation(subject or of.name, known(folder.name))
    return files


def of_table(
    table: Table, home: Path, pattern: SubjectPattern | None, every_row: bool, notes: list[str]
) -> dict[str, tuple[Path, Annotation]]:
    """The files that the rows of a table name, and their rows, by name.

    Args:
        table: of annotations.
        home: the folder that its rows count from.
        pattern: of the subjects, in place of those of the table.
        every_row: whether a row without a file is an error.
        notes: is given what had to be bent, and what is lost.

    Raises:
        DataError: as `rows.assign`.
    """
    # files that rows name by their paths need no search, and may be anywhere
    files = {key: absolute(home / key) for key in table.rows}
    direct = {key: path for key, path in files.items() if path.is_file()}
    inside = absolute(home)
    areas = [path for path in direct.values() if not path.is_relative_to(inside)]
    areas = [home, *areas] if len(direct) < len(files) else list(direct.values())
    surveyed = survey(areas, table, every_row=every_row, on_damage=notes.append)
    notes += surveyed.notes
    rows: dict[str, tuple[Path, Annotation]] = {}
    for source in surveyed.sources:
        if (row := surveyed.rows.get(source.path)) is None:
            continue
        path = absolute(source.path)
        within = Path(os.path.relpath(path, inside)).as_posix()
        of = Named(path, one_line(within), within)
        if pattern is not None:
            row = dataclasses.replace(row, subject=pattern(within) or of.name)
        rows[of.name] = source.path, row
    return rows
