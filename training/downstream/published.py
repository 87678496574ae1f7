"""Public data sets as they are published: their folders and tables, labels, subjects and folds.

A loader checks what it reads, and reports what it left out.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uscl_zoo.data.annotations import Table
from uscl_zoo.data.rows import assign, report_lost
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.files import open_file
from uscl_zoo.ultrasound import images as image_files
from uscl_zoo.ultrasound import reading, video
from uscl_zoo.ultrasound.masks import is_mask

from ..preparing.fingerprints import Prints, clusters, find_pairs
from ..preparing.labels import Annotation, read_table, unify
from .collection import Collection, collect


@dataclass(frozen=True)
class Known:
    """What is known of a data set without looking at it."""

    read: Callable[..., tuple[Collection, dict[str, int] | None]]
    name: str | None = None
    targets: tuple[str, ...] = ("label",)
    options: tuple[str, ...] = ()
    url: str | None = None
    citation: str | None = None
    licence: str | None = None


# ------------------------------------------------------------------------------ one a data set

#: The paper's three classes, by the prefix of a file's name.
_POCUS = {"cov": "COVID-19", "pneu": "Bacterial pneumonia", "reg": "regular"}


def _pocus(
    known: Known, data: Path, target: str, folds: int, stills: bool = False
) -> tuple[Collection, None]:
    path = _child(data, "dataset_metadata.csv", known=known)
    columns = _spelt(path, "Filename", "Label", "Patient ID / Name", "License")
    table = read_table(path, *columns)
    roots = [_child(data, "videos", "pocus_videos", known=known)]
    if stills:
        roots.append(_child(data, "images", "pocus_images", known=known))
    files: dict[str, tuple[Path, Annotation]] = {}
    left: Counter[str] = Counter()
    for root in roots:
        suffixes = video.SUFFIXES | ({".gif"} if root == roots[0] else image_files.SUFFIXES)
        # in the order of `uscl prepare`, on which draws depend
        sources = reading.find(root)
        rows = assign(table, {s: [s.relative_to(root).as_posix()] for s in sources}).rows
        for source in sources:
            # as `uscl prepare` names videos; stills by their folder, as both have a convex one
            name = source.relative_to(root if root == roots[0] else data).as_posix()
            prefix = re.split(r"[-_]", source.name)[0].casefold()
            row = rows.get(source)
            if "label_uncertain" in source.parts:
                left["whose label is uncertain"] += 1
            elif source.suffix.lower() not in suffixes:
                left["that are no video" if root == roots[0] else "that are no still"] += 1
            elif row is None or row.label is None:
                left[f"without a row in {path.name}"] += 1
            elif row.label.casefold() == "viral pneumonia":
                left["of viral pneumonia, which is not in the paper's task,"] += 1
            elif row.label.casefold() != _POCUS.get(prefix, "").casefold():
                left["whose label is not that of its name"] += 1
            else:
                files[name] = source, row
    notes = [f"{count} files {why} left out" for why, count in left.items()]
    return _collected(known, data, files, notes, tuple(_POCUS.values())), None


#: Smallest correlation of two of its images that show one scene: looked at pair by pair.
BUSI_CORRELATION = 0.4


def _busi(
    known: Known, data: Path, target: str, folds: int, grouped: bool = True
) -> tuple[Collection, None]:
    classes = ("benign", "malignant", "normal")
    roots = {label: _child(data, label, known=known) for label in classes}
    files: dict[str, tuple[Path, Annotation]] = {}
    masks = 0
    for label, root in roots.items():
        for source in sorted(root.iterdir(), key=reading.natural_key):
            if source.suffix.lower() not in image_files.SUFFIXES:
                continue
            if is_mask(source):
                masks += 1
                continue
            name = f"{label}/{source.name}"
            files[name] = source, Annotation(name, label)
    notes = [f"{masks} masks left out"] if masks else []
    if grouped:
        files = _of_one_scene(files, notes)
    else:
        notes.append("no subjects are known, so each image counts as its own")
    return replace(_collected(known, data, files, notes, classes), subjects=grouped), None


def _of_one_scene(
    files: Mapping[str, tuple[Path, Annotation]], notes: list[str]
) -> dict[str, tuple[Path, Annotation]]:
    """Near-duplicates as one subject; those that differ in class left out, whichever is right."""
    names = list(files)
    prints = Prints.of(_opened(files[name][0]) for name in names)
    own = np.arange(len(names))
    pairs = find_pairs(prints, own, own, correlation=BUSI_CORRELATION)
    number = clusters(len(names), pairs.first, pairs.second)
    members: dict[int, list[str]] = {}
    for name, of in zip(names, number.tolist(), strict=True):
        members.setdefault(of, []).append(name)
    kept = {}
    contradictory, repeated = [], []
    for group in members.values():
        if len({files[name][1].label for name in group}) > 1:
            contradictory.append(" = ".join(group))
            continue
        if len(group) > 1:
            repeated.append(len(group))
        for name in group:
            source, row = files[name]
            kept[name] = source, replace(row, subject=group[0])
    notes.append(
        f"no patients are known: {sum(repeated)} images show {len(repeated)} scenes, each of which "
        "is one subject; any other image is its own"
    )
    if contradictory:
        notes.append(
            f"{len(files) - len(kept)} images of {len(contradictory)} scenes that are in two "
            f"classes left out: {'; '.join(contradictory)}"
        )
    # in the order of the files
    return {name: kept[name] for name in names if name in kept}


def _opened(source: Path) -> Image.Image:
    return next(reading.iterate(source)).image


def _bus_bra(
    known: Known, data: Path, target: str, folds: int
) -> tuple[Collection, dict[str, int] | None]:
    data = _within(data, "bus_data.csv")
    path = _child(data, "bus_data.csv", known=known)
    wanted = {"pathology": "Pathology", "birads": "BIRADS"}[target]
    table = read_table(path, *_spelt(path, "ID", wanted, "Case"))
    images = _child(data, "Images", known=known)
    files, notes = _matched(images, image_files.SUFFIXES, table)
    collection = _collected(known, data, files, notes)
    if folds not in (5, 10):
        note = f"official folds are 5 or 10, and {folds} were asked for"
        return replace(collection, notes=(*collection.notes, note)), None
    path = _child(data, f"{folds}-fold-cv.csv", known=known)
    division = read_table(path, *_spelt(path, "ID", "kFold")).rows
    official: dict[str, int] = {}
    for name in collection.sources:
        row = division.get(Path(name).stem)
        if row is None or row.label is None or not re.fullmatch(r"\d+(\.0)?", row.label):
            raise DataError(f"{path}: no fold for {Path(name).stem}; {where_from(known)}")
        official[name] = int(float(row.label))
    sides: dict[str, set[int]] = {}
    for name, fold in official.items():
        sides.setdefault(collection.annotations[name].subject, set()).add(fold)
    torn = sorted(case for case, of in sides.items() if len(of) > 1)
    if torn:
        raise DataError(
            f"{path}: {len(torn)} cases are in two folds, the first: {torn[0]}; {where_from(known)}"
        )
    return collection, official


def _covid_blues(known: Known, data: Path, target: str, folds: int) -> tuple[Collection, None]:
    data = _within(data, "lus_videos")
    root = _child(data, "lus_videos", known=known)
    pattern = re.compile(r"patient_(\d+)_[LR]\d(_\d+)?", re.IGNORECASE)
    notes: list[str] = []
    rows: dict[str, Annotation] = {}
    stems = [source.stem for source in root.iterdir() if source.suffix.lower() in video.SUFFIXES]
    whose = {stem: match.group(1) for stem in stems if (match := pattern.fullmatch(stem))}
    if len(whose) < len(stems):
        notes.append(f"{len(stems) - len(whose)} videos not named by patient left out")
    if target == "covid":
        path = _child(data, "clinical_variables.csv", known=known)
        patients = read_table(path, *_spelt(path, "patient_id", "cov_test")).rows
        words = {"1": "COVID-19", "0": "no COVID-19"}
        for stem, patient in whose.items():
            row = patients.get(patient)
            label = words.get(_whole(row.label)) if row else None
            rows[stem] = Annotation(patient, label, known.licence)
    else:
        path = _child(data, "severity.csv", known=known)
        column = {"a-lines": "A-lines", "b-lines": "B-lines", "severity": "Severity Score"}[target]
        scores = read_table(path, *_spelt(path, "video_file", column))
        yes = {"yes": column, "no": f"no {column}"}
        files = {Path(name): [name] for name in (f"{stem}.mp4" for stem in stems)}
        scored = assign(scores, files)
        notes += report_lost(scores, scored.lost)
        for stem, patient in whose.items():
            row = scored.rows.get(Path(f"{stem}.mp4"))
            label = _whole(row.label) if row else ""
            if target != "severity":
                label = yes.get(label.casefold(), "")
            rows[stem] = Annotation(patient, label or None, known.licence)
    labelled, more = _matched(root, video.SUFFIXES, Table(path, rows))
    return _collected(known, data, labelled, [*notes, *more]), None


def _whole(value: str | None) -> str:
    """`2.0` is the score 2; spreadsheets write one and the other."""
    return re.sub(r"\.0+$", "", value or "")


def _own(
    known: Known, data: Path, target: str, folds: int, **columns: Any
) -> tuple[Collection, None]:
    if data.is_dir() != (known is LOADERS["folder"]):
        kind = "folder" if data.is_dir() else "file"
        raise DataError(f"{data}: is a {kind}; `folder` takes a folder per class, `csv` a table")
    return collect(data, **columns), None


LOADERS = {
    "pocus": Known(
        _pocus,
        "POCUS lung ultrasound",
        ("diagnosis",),
        ("stills",),
        "https://github.com/jannisborn/covid19_ultrasound",
        "Born et al., Applied Sciences 11(2):672, 2021, doi 10.3390/app11020672",
    ),
    "busi": Known(
        _busi,
        "BUSI breast ultrasound",
        ("diagnosis",),
        ("grouped",),
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        "Al-Dhabyani et al., Data in Brief 28:104863, 2020, doi 10.1016/j.dib.2019.104863",
    ),
    "bus-bra": Known(
        _bus_bra,
        "BUS-BRA breast ultrasound",
        ("pathology", "birads"),
        (),
        "https://doi.org/10.5281/zenodo.8231412",
        "Gómez-Flores et al., Medical Physics 51(4):3110-3123, 2024, doi 10.1002/mp.16812",
        "CC BY 4.0",
    ),
    "covid-blues": Known(
        _covid_blues,
        "COVID-BLUES lung ultrasound",
        ("covid", "a-lines", "b-lines", "severity"),
        (),
        "https://github.com/NinaWie/COVID-BLUES",
        "Wiedemann et al., IEEE Journal of Biomedical and Health Informatics, 2025",
        "CC BY-NC-ND 4.0",
    ),
    "folder": Known(_own, options=("subject_pattern", "classes", "exclude")),
    "csv": Known(
        _own,
        options=(
            *("file_column", "label_column", "subject_column", "subject_pattern"),
            *("classes", "exclude", "every_row"),
        ),
    ),
}


# ------------------------------------------------------------------------------ what they share


def where_from(known: Known) -> str:
    """What to do about a data set that is not whole: where to get it."""
    return f"get {known.name} from {known.url}" if known.url else "check the path"


def _child(folder: Path, *names: str, known: Known) -> Path:
    """A file or folder by its name, in whatever case."""
    wanted = [name.casefold() for name in names]
    there = {path.name.casefold(): path for path in folder.iterdir()} if folder.is_dir() else {}
    for name in wanted:
        if name in there:
            return there[name]
    raise DataError(f"{folder}: has no {names[0]}; {where_from(known)}")


def _within(data: Path, name: str) -> Path:
    """The folder that holds `name`: the one given, or the only one in it, as archives unpack."""
    if not data.is_dir():
        return data
    inner = [path for path in data.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for folder in (data, *inner):
        if any(path.name.casefold() == name.casefold() for path in folder.iterdir()):
            return folder
    return data


def _spelt(path: Path, *columns: str) -> list[str]:
    """Columns as the table spells them: case and spaces at their ends are not a difference."""
    try:
        with io.TextIOWrapper(open_file(path), newline="", encoding="utf-8-sig") as stream:
            header = next(csv.reader(stream), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableError(f"{path}: is no readable CSV in UTF-8 ({error})") from error
    spelling = {column.strip().casefold(): column for column in header}
    # what is missing is `read_table`'s to say
    return [spelling.get(column.casefold(), column) for column in columns]


def _matched(
    root: Path, suffixes: frozenset[str], table: Table
) -> tuple[dict[str, tuple[Path, Annotation]], list[str]]:
    """The files of a folder that have a row with a label, and what was left out."""
    files = [source for source in root.iterdir() if source.suffix.lower() in suffixes]
    files.sort(key=reading.natural_key)
    matched = assign(table, {file: [file.name] for file in files})
    rows = matched.rows
    labelled = {file.name: (file, row) for file, row in rows.items() if row.label is not None}
    notes = list(matched.notes)
    if len(rows) < len(files):
        unknown = len(files) - len(rows)
        notes.append(f"{unknown} files without a row in {table.path.name} left out")
    if len(labelled) < len(rows):
        unlabelled = len(rows) - len(labelled)
        notes.append(f"{unlabelled} files without a label in {table.path.name} left out")
    return labelled, [*notes, *report_lost(table, matched.lost)]


def _collected(
    known: Known,
    data: Path,
    files: Mapping[str, tuple[Path, Annotation]],
    notes: Sequence[str],
    classes: Sequence[str] | None = None,
) -> Collection:
    rows = unify({name: row for name, (_, row) in files.items()}, classes)
    rows = {name: replace(row, licence=row.licence or known.licence) for name, row in rows.items()}
    labels = {row.label for row in rows.values()}
    if len(labels) < 2:
        raise DataError(
            f"{data}: {len(rows)} labelled files of {len(labels)} classes, and two are needed; "
            f"{where_from(known)}"
        )
    return Collection(
        sources={name: source for name, (source, _) in files.items()},
        annotations=rows,
        subjects=True,
        notes=tuple(notes),
    )
