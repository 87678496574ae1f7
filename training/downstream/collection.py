"""Labelled images and videos of one's own, and the three-way split of their subjects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound import images as image_files
from uscl_zoo.ultrasound import reading

from ..frames import FrameStore, Video
from ..labels import Annotation, from_name, hold_out, read_table


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


def collect(
    data: Path,
    *,
    file_column: str = "Filename",
    label_column: str | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = ("*_mask*",),
) -> Collection:
    """Find the labelled images and videos of a folder with a folder per class, or of a CSV.

    In the folder of a class each image is a picture of its own, and a folder within it is searched
    as usual. The files of a CSV are paths from its folder, or are looked for in it by name.

    Args:
        data: the folder or the CSV.
        file_column: of the CSV: paths, names or stems.
        label_column: of the CSV.
        subject_column: of the CSV.
        subject_pattern: of a folder: regular expression whose first group is the subject.
        classes: the only ones to take, in any case, with `*` for what they have in common; None
            for all.
        exclude: patterns of file names to leave out.

    Raises:
        UnreadableError: if there is no such file or folder, or the CSV cannot be read.
        DataError: if it does not give at least two classes.
    """
    notes: list[str] = []
    if data.is_dir():
        found = _of_folder(data, subject_pattern, notes)
        known = subject_pattern is not None
    else:
        if label_column is None:
            raise DataError(f"{data}: --label-column is missing: which column is the class?")
        found = _of_table(data, file_column, label_column, subject_column, notes)
        known = subject_column is not None
    kept = {
        name: (source, row)
        for name, (source, row) in found.items()
        if not any(fnmatch(source.name, pattern) for pattern in exclude)
    }
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} files left out by name ({', '.join(exclude)})")
    labelled = {
        name: (source, row) for name, (source, row) in kept.items() if is_wanted(row.label, classes)
    }
    if len(labelled) < len(kept):
        other = Counter(row.label or "no label" for _, row in kept.values())
        other.subtract(row.label for _, row in labelled.values() if row.label)
        named = ", ".join(f"{label} {count}" for label, count in sorted((+other).items()))
        notes.append(f"{len(kept) - len(labelled)} files left out by class ({named})")
    if len({(row.label or "").casefold() for _, row in labelled.values()}) < 2:
        raise DataError(
            f"{data}: has {len(labelled)} files of less than two classes; "
            "give a folder per class, or a CSV and its --label-column"
        )
    if not known:
        notes.append(
            "no subjects are known, so each file counts as its own; if subjects have several, "
            "name the column or pattern, or the figures will be too good"
        )
    return Collection(
        sources={name: source for name, (source, _) in labelled.items()},
        annotations={name: row for name, (_, row) in labelled.items()},
        subjects=known,
        notes=tuple(notes),
    )


def is_wanted(label: str | None, classes: Sequence[str] | None) -> bool:
    """Whether a label is one of those asked for, in any case, as `breast *` asks for several."""
    if label is None or classes is None:
        return label is not None
    own = label.casefold()
    return any(own == one.casefold() or fnmatch(own, one.casefold()) for one in classes)


def _of_folder(
    data: Path, pattern: str | None, notes: list[str]
) -> dict[str, tuple[Path, Annotation]]:
    found: dict[str, tuple[Path, Annotation]] = {}
    for folder in sorted(path for path in data.iterdir() if path.is_dir() and path.name[0] != "."):
        try:
            sources = reading.find([folder])
        except DataError as error:
            notes.append(str(error))
            continue
        # numbered stills of one size look like a clip, and are a class here
        for source in images_in(folder) if sources == [folder] else sources:
            name = source.relative_to(data).as_posix()
            subject = name if pattern is None else from_name(name, None, pattern).subject
            found[name] = source, Annotation(subject, folder.name)
    return found


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order, each a picture of its own."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    images = (file for file in files if file.suffix.lower() in image_files.SUFFIXES)
    return sorted(images, key=reading.natural_key)


def _of_table(
    path: Path,
    file_column: str,
    label_column: str,
    subject_column: str | None,
    notes: list[str],
) -> dict[str, tuple[Path, Annotation]]:
    table = read_table(path, file_column, label_column, subject_column)
    found: dict[str, tuple[Path, Annotation]] = {}
    absent = set()
    for key in table.rows:
        source = path.parent / key
        row = table.find(key) if source.exists() else None
        if row is None:
            absent.add(key)
        else:
            found[key] = source, row
    if absent:
        taken = {source.resolve() for source, _ in found.values()}
        matched = set()
        candidates = reading.find([path.parent])
        candidates += [
            file for folder in candidates if folder.is_dir() for file in images_in(folder)
        ]
        for source in candidates:
            name = source.relative_to(path.parent).as_posix()
            row = None if source.resolve() in taken else table.find(name)
            if row is not None:
                found[name] = source, row
                matched |= {name.casefold(), source.name.casefold(), source.stem.casefold()}
        lost = sorted(key for key in absent if key.casefold() not in matched)
        if lost:
            notes.append(f"{len(lost)} rows of {path.name} have no file, the first: {lost[0]}")
    return found


@dataclass(frozen=True)
class Split:
    """Videos by what they are for; no subject is in two of them."""

    train: list[Video]
    validation: list[Video]
    held_out: list[Video]


def split(store: FrameStore, share: float, seed: int) -> Split:
    """Choose validation subjects among those of a store that are not held out.

    Args:
        store: with held-out videos; those without a label are left out.
        share: of the subjects of each class.
        seed: of the choice.

    Raises:
        DataError: if two classes are not on all three sides.
    """
    labelled = [video for video in store.videos if video.label is not None]
    rest = [video for video in labelled if video.split == "train"]
    notes = {video.name: Annotation(video.subject, video.label) for video in rest}
    # another stream than the one that chose the held-out subjects
    chosen = hold_out(notes, share, seed + 1)
    parts = Split(
        train=[video for video in rest if video.subject not in chosen],
        validation=[video for video in rest if video.subject in chosen],
        held_out=[video for video in labelled if video.split == "heldout"],
    )
    for side in dataclasses.fields(parts):
        labels = {video.label for video in getattr(parts, side.name)}
        if len(labels) < 2:
            counts: dict[str, set[str]] = {}
            for video in labelled:
                counts.setdefault(video.label or "", set()).add(video.subject)
            named = ", ".join(f"{label} {len(who)}" for label, who in sorted(counts.items()))
            raise DataError(
                f"two classes need at least three subjects each, to train on, to stop on and to "
                f"be judged on; subjects by class: {named}"
            )
    return parts
