"""Public ultrasound data sets by name, and one's own: what is in them, whose it is, on what terms.

A loader reads a data set as it is published, checks what it finds, and says what it left out.
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

from uscl_zoo.annotations import Table
from uscl_zoo.errors import DataError, UnreadableError, one_line
from uscl_zoo.files import expanded, open_file
from uscl_zoo.rows import assign, told_lost
from uscl_zoo.ultrasound import images as image_files
from uscl_zoo.ultrasound import reading, video

from ..fingerprints import Prints, clusters, find_pairs
from ..frames import FrameStore, Video
from ..labels import Annotation, read_table, unify
from .collection import Collection, collect, is_wanted


@dataclass(frozen=True)
class DataSet:
    """A labelled data set.

    Attributes:
        name: of POCUS as the cards of weights trained on it have it.
        collection: sources by name, their labels, subjects and licences, and what was left out.
        folds: official fold of each source by name, as the data set numbers them; None where it
            has none.
        url: where it is published.
        citation: how its authors ask to be cited.
        licence: as its authors state it; None where they do not, or file by file, on annotations.
        target: what its labels tell apart.
        targets: what they could be asked to.
        store: whose frames are judged, where nothing is to be decoded; None otherwise.
        videos: of the store, those that are judged.
    """

    name: str
    collection: Collection
    folds: dict[str, int] | None
    url: str | None
    citation: str | None
    licence: str | None
    target: str
    targets: tuple[str, ...]
    store: FrameStore | None = None
    videos: tuple[Video, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the data set and of the sources it is made of."""
        return (self.name, *(str(source["name"]) for source in self._sources()))

    @property
    def texts(self) -> tuple[str, ...]:
        """In which its addresses stand."""
        sources = self._sources()
        found = [self.url, self.citation]
        found += [source[key] for source in sources for key in ("url", "citation")]
        return tuple(text for text in found if text)

    def _sources(self) -> list[dict[str, Any]]:
        return [] if self.store is None else self.store.sources(self.videos)


def load_store(
    folder: Path, *, classes: Sequence[str] | None = None, everyone: bool = False
) -> DataSet:
    """Take the labelled videos of a store of `uscl prepare`, by default of its held-out subjects.

    A backbone that was trained on the store has seen the labels of all others.

    Args:
        folder: of the store.
        classes: the only labels to take, in any case and with `*` for what they have in common;
            None for all.
        everyone: take all subjects.

    Raises:
        DataError: if nobody is held out, or less than two classes are left.
    """
    store = FrameStore(folder)
    labelled = [video for video in store.videos if video.label is not None]
    sides = [video for video in labelled if everyone or video.split == "heldout"]
    if not sides:
        raise DataError(
            f"{folder}: has {len(labelled)} labelled videos, and none of a held-out subject; "
            "for a backbone that was not trained on it, add --all-subjects"
        )
    videos = tuple(video for video in sides if is_wanted(video.label, classes))
    labels = sorted({video.label or "" for video in videos})
    if len(labels) < 2:
        there = ", ".join(sorted({video.label or "" for video in sides}))
        raise DataError(
            f"{folder}: {len(labels)} classes of {', '.join(classes or ['any'])}, and two are "
            f"needed; labels: {there}"
        )
    whom = {video.subject for video in videos}
    trained = len({video.subject for video in videos if video.split == "train"})
    if everyone:
        note = f"all {len(whom)} subjects of the store, of whom {trained} are not held out"
    else:
        note = f"the {len(whom)} held-out subjects of the store, and no other; folds within them"
    notes = [note]
    if len(videos) < len(sides):
        notes.append(f"{len(sides) - len(videos)} videos of other classes left out")
    own = store.sources(videos)
    origin = store.description.get("origin") or {}
    name = str(origin.get("name") or store.folder.resolve().name)
    return DataSet(
        name=f"{name} ({', '.join(classes)})" if classes else name,
        collection=Collection({}, {}, True, tuple(notes)),
        folds=None,
        url=own[0]["url"] if len(own) == 1 else None,
        citation="; ".join(source["citation"] for source in own if source["citation"]) or None,
        licence=None,
        target="label",
        targets=("label",),
        store=store,
        videos=videos,
    )


def load(
    name: str, data: Path, *, target: str | None = None, folds: int = 5, **columns: Any
) -> DataSet:
    """Read a data set.

    Args:
        name: one of `DATASETS`.
        data: its folder; of `csv`, the file.
        target: what to tell apart, one of the data set's `targets`; None for the first.
        folds: how many official folds are wanted, where a data set has several divisions.
        **columns: of `folder` and `csv`, what `collect` takes; of `pocus`, `stills=True` for its
            images as well; of `busi`, `grouped=False` for every image as its own subject, the
            contradictory ones too.

    Raises:
        UnreadableError: if there is no such folder, or a table in it cannot be read.
        DataError: if the name, the target or an option is unknown, or something is missing: what,
            where, and where to get it.
    """
    if name not in _LOADERS:
        raise DataError(f"no data set {name!r}; known are {', '.join(DATASETS)}")
    known = _LOADERS[name]
    data = expanded(data)
    if not data.exists():
        raise UnreadableError(f"{data}: no such file or folder; {_where(known)}")
    if target is not None and target not in known.targets:
        raise DataError(f"{name} has no target {target!r}, only {', '.join(known.targets)}")
    unknown = sorted(set(columns) - set(known.options))
    if unknown:
        allowed = ", ".join(known.options) or "none"
        raise DataError(f"{name} has no option {unknown[0]!r}; it has {allowed}")
    target = target or known.targets[0]
    collection, official = known.read(known, data, target, folds, **columns)
    return DataSet(
        name=known.name or one_line(data.resolve().stem),
        collection=collection,
        folds=official,
        url=known.url,
        citation=known.citation,
        licence=known.licence,
        target=target,
        targets=known.targets,
    )


@dataclass(frozen=True)
class _Known:
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
    known: _Known, data: Path, target: str, folds: int, stills: bool = False
) -> tuple[Collection, None]:
    path = _child(data, "dataset_metadata.csv", known=known)
    columns = _spelt(path, "Filename", "Label", "Patient ID / Name", "License")
    table = read_table(path, *columns)
    roots = [_child(data, "videos", "pocus_videos", known=known)]
    if stills:
        roots.append(_child(data, "images", "pocus_images", known=known))
    found: dict[str, tuple[Path, Annotation]] = {}
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
                found[name] = source, row
    notes = [f"{count} files {why} left out" for why, count in left.items()]
    return _collected(known, data, found, notes, tuple(_POCUS.values())), None


#: Smallest correlation of two of its images that show one scene: looked at pair by pair.
BUSI_CORRELATION = 0.4


def _busi(
    known: _Known, data: Path, target: str, folds: int, grouped: bool = True
) -> tuple[Collection, None]:
    classes = ("benign", "malignant", "normal")
    roots = {label: _child(data, label, known=known) for label in classes}
    found: dict[str, tuple[Path, Annotation]] = {}
    masks = 0
    for label, root in roots.items():
        for source in sorted(root.iterdir(), key=reading.natural_key):
            if source.suffix.lower() not in image_files.SUFFIXES:
                continue
            if reading.is_mask(source):
                masks += 1
                continue
            name = f"{label}/{source.name}"
            found[name] = source, Annotation(name, label)
    notes = [f"{masks} masks left out"] if masks else []
    if grouped:
        found = _of_one_scene(found, notes)
    else:
        notes.append("no subjects are known, so each image counts as its own")
    return replace(_collected(known, data, found, notes, classes), subjects=grouped), None


def _of_one_scene(
    found: Mapping[str, tuple[Path, Annotation]], notes: list[str]
) -> dict[str, tuple[Path, Annotation]]:
    """Near-duplicates as one subject; those that differ in class left out, whichever is right."""
    names = list(found)
    prints = Prints.of(_opened(found[name][0]) for name in names)
    own = np.arange(len(names))
    pairs = find_pairs(prints, own, own, correlation=BUSI_CORRELATION)
    number = clusters(len(names), pairs.first, pairs.second)
    members: dict[int, list[str]] = {}
    for name, of in zip(names, number.tolist(), strict=True):
        members.setdefault(of, []).append(name)
    kept = {}
    contradictory, repeated = [], []
    for group in members.values():
        if len({found[name][1].label for name in group}) > 1:
            contradictory.append(" = ".join(group))
            continue
        if len(group) > 1:
            repeated.append(len(group))
        for name in group:
            source, row = found[name]
            kept[name] = source, replace(row, subject=group[0])
    notes.append(
        f"no patients are known: {sum(repeated)} images show {len(repeated)} scenes, each of which "
        "is one subject; any other image is its own"
    )
    if contradictory:
        notes.append(
            f"{len(found) - len(kept)} images of {len(contradictory)} scenes that are in two "
            f"classes left out: {'; '.join(contradictory)}"
        )
    # in the order of the files
    return {name: kept[name] for name in names if name in kept}


def _opened(source: Path) -> Image.Image:
    return next(reading.iterate(source)).image


def _bus_bra(
    known: _Known, data: Path, target: str, folds: int
) -> tuple[Collection, dict[str, int] | None]:
    data = _within(data, "bus_data.csv")
    path = _child(data, "bus_data.csv", known=known)
    wanted = {"pathology": "Pathology", "birads": "BIRADS"}[target]
    table = read_table(path, *_spelt(path, "ID", wanted, "Case"))
    images = _child(data, "Images", known=known)
    found, notes = _matched(images, image_files.SUFFIXES, table)
    collection = _collected(known, data, found, notes)
    if folds not in (5, 10):
        note = f"official folds are 5 or 10, and {folds} were asked for"
        return replace(collection, notes=(*collection.notes, note)), None
    path = _child(data, f"{folds}-fold-cv.csv", known=known)
    division = read_table(path, *_spelt(path, "ID", "kFold")).rows
    official: dict[str, int] = {}
    for name in collection.sources:
        row = division.get(Path(name).stem)
        if row is None or row.label is None or not re.fullmatch(r"\d+(\.0)?", row.label):
            raise DataError(f"{path}: no fold for {Path(name).stem}; {_where(known)}")
        official[name] = int(float(row.label))
    sides: dict[str, set[int]] = {}
    for name, fold in official.items():
        sides.setdefault(collection.annotations[name].subject, set()).add(fold)
    torn = sorted(case for case, of in sides.items() if len(of) > 1)
    if torn:
        raise DataError(
            f"{path}: {len(torn)} cases are in two folds, the first: {torn[0]}; {_where(known)}"
        )
    return collection, official


def _covid_blues(known: _Known, data: Path, target: str, folds: int) -> tuple[Collection, None]:
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
        notes += told_lost(scores, scored.lost)
        for stem, patient in whose.items():
            row = scored.rows.get(Path(f"{stem}.mp4"))
            label = _whole(row.label) if row else ""
            if target != "severity":
                label = yes.get(label.casefold(), "")
            rows[stem] = Annotation(patient, label or None, known.licence)
    found, more = _matched(root, video.SUFFIXES, Table(path, rows))
    return _collected(known, data, found, [*notes, *more]), None


def _whole(value: str | None) -> str:
    """`2.0` is the score 2; spreadsheets write one and the other."""
    return re.sub(r"\.0+$", "", value or "")


def _own(
    known: _Known, data: Path, target: str, folds: int, **columns: Any
) -> tuple[Collection, None]:
    if data.is_dir() != (known is _LOADERS["folder"]):
        kind = "folder" if data.is_dir() else "file"
        raise DataError(f"{data}: is a {kind}; `folder` takes a folder per class, `csv` a table")
    return collect(data, **columns), None


_LOADERS = {
    "pocus": _Known(
        _pocus,
        "POCUS lung ultrasound",
        ("diagnosis",),
        ("stills",),
        "https://github.com/jannisborn/covid19_ultrasound",
        "Born et al., Applied Sciences 11(2):672, 2021, doi 10.3390/app11020672",
    ),
    "busi": _Known(
        _busi,
        "BUSI breast ultrasound",
        ("diagnosis",),
        ("grouped",),
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        "Al-Dhabyani et al., Data in Brief 28:104863, 2020, doi 10.1016/j.dib.2019.104863",
    ),
    "bus-bra": _Known(
        _bus_bra,
        "BUS-BRA breast ultrasound",
        ("pathology", "birads"),
        (),
        "https://doi.org/10.5281/zenodo.8231412",
        "Gómez-Flores et al., Medical Physics 51(4):3110-3123, 2024, doi 10.1002/mp.16812",
        "CC BY 4.0",
    ),
    "covid-blues": _Known(
        _covid_blues,
        "COVID-BLUES lung ultrasound",
        ("covid", "a-lines", "b-lines", "severity"),
        (),
        "https://github.com/NinaWie/COVID-BLUES",
        "Wiedemann et al., IEEE Journal of Biomedical and Health Informatics, 2025",
        "CC BY-NC-ND 4.0",
    ),
    "folder": _Known(_own, options=("subject_pattern", "classes", "exclude")),
    "csv": _Known(
        _own,
        options=(
            *("file_column", "label_column", "subject_column", "subject_pattern"),
            *("classes", "exclude", "every_row"),
        ),
    ),
}

#: The names that `load` knows.
DATASETS = tuple(_LOADERS)


# ------------------------------------------------------------------------------ what they share


def _where(known: _Known) -> str:
    return f"get {known.name} from {known.url}" if known.url else "check the path"


def _child(folder: Path, *names: str, known: _Known) -> Path:
    """A file or folder by its name, in whatever case."""
    wanted = [name.casefold() for name in names]
    found = {path.name.casefold(): path for path in folder.iterdir()} if folder.is_dir() else {}
    for name in wanted:
        if name in found:
            return found[name]
    raise DataError(f"{folder}: has no {names[0]}; {_where(known)}")


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
    found = {file.name: (file, row) for file, row in rows.items() if row.label is not None}
    notes = list(matched.notes)
    if len(rows) < len(files):
        unknown = len(files) - len(rows)
        notes.append(f"{unknown} files without a row in {table.path.name} left out")
    if len(found) < len(rows):
        unlabelled = len(rows) - len(found)
        notes.append(f"{unlabelled} files without a label in {table.path.name} left out")
    return found, [*notes, *told_lost(table, matched.lost)]


def _collected(
    known: _Known,
    data: Path,
    found: Mapping[str, tuple[Path, Annotation]],
    notes: Sequence[str],
    classes: Sequence[str] | None = None,
) -> Collection:
    rows = unify({name: row for name, (_, row) in found.items()}, classes)
    rows = {name: replace(row, licence=row.licence or known.licence) for name, row in rows.items()}
    labels = {row.label for row in rows.values()}
    if len(labels) < 2:
        raise DataError(
            f"{data}: {len(rows)} labelled files of {len(labels)} classes, and two are needed; "
            f"{_where(known)}"
        )
    return Collection(
        sources={name: source for name, (source, _) in found.items()},
        annotations=rows,
        subjects=True,
        notes=tuple(notes),
    )
