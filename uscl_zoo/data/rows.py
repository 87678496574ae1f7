"""Which files the rows of a table mean: the one place where its names meet those of files."""

from __future__ import annotations

import dataclasses
import itertools
import os
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import DataError, one_line
from ..files import expanded
from ..ultrasound import images, reading
from ..ultrasound.clip import OnDamage
from ..ultrasound.masks import masks_left_out
from ..ultrasound.sources import Named, name_sources, named
from .annotations import Annotation, Table, fold, known_subject, nearly_alike

#: Lines of a list in a message.
_LISTED = 20

# --------------------------------------------------------------------------- one row, one file


@dataclass(frozen=True)
class Matched:
    """What came of matching a table with files.

    Attributes:
        rows: annotations by file, in the order of the files.
        keys: of these rows, as the file column has them.
        lost: keys of rows without a file.
        notes: what had to be bent, what is there twice and what is lost, in words.
    """

    rows: dict[Path, Annotation]
    keys: dict[Path, str]
    lost: tuple[str, ...]
    notes: tuple[str, ...]


def assign(
    table: Table, files: Mapping[Path, Sequence[str]], *, every_row: bool = False
) -> Matched:
    """Give each row its file: a row names one file, and a file has one row at most.

    A row names its file by a path from one of the folders that `files` count from, by the end of
    its path, its name, or its stem. What names no file so is tried again as a path of Windows, or
    of another machine, whose rows count from the folder that they have in common; then without
    spaces around names; then in any case; then with accents composed or not (NFC, NFD). What had to
    be bent is noted.

    Args:
        table: of annotations.
        files: the names of each, as paths from the folders that a row may count from.
        every_row: whether a row without a file is an error.

    Raises:
        DataError: listing rows that name several files, files with rows that disagree, or rows
            without a file, if there are no others or `every_row`.
    """
    matched = _assign(table, files)
    _check_lost(table, matched, files, every_row)
    return matched


def _assign(table: Table, files: Mapping[Path, Sequence[str]]) -> Matched:
    keys = {key: _plain(key, table.path.parent) for key in table.rows}
    owners: dict[str, list[Path]] = {}
    bent: dict[str, list[str]] = defaultdict(list)
    left = dict.fromkeys(table.rows)
    for how, bend_key, bend in _bends(table.rows):
        if not left:
            break
        index = _Index(files, bend)
        for key in list(left):
            for spelt in keys[key] if bend_key is None else bend_key(key):
                if owner := index.find(bend(spelt)):
                    owners[key] = owner
                    del left[key]
                    if how or key in table.spaced:
                        bent[how or _SPACES].append(f"{key!r} is {owner[0].name!r}")
                    break
    several = [f"{key!r}: {', '.join(map(str, of))}" for key, of in owners.items() if len(of) > 1]
    if several:
        raise DataError(
            f"{table.path}: {len(several)} rows name several files each; a row should have the "
            f"path of its file: {_listed(several)}"
        )
    of_file: dict[Path, list[str]] = defaultdict(list)
    for key, (file,) in owners.items():
        of_file[file].append(key)
    doubled = [
        f"{file}: {', '.join(map(repr, keys))}"
        for file, keys in of_file.items()
        if len({_said(table.rows[key], key) for key in keys}) > 1
        or not table.contradictory.isdisjoint(keys)
    ]
    if doubled:
        raise DataError(
            f"{table.path}: {len(doubled)} files have two rows that disagree; keep one of each: "
            f"{_listed(doubled)}"
        )
    again = [
        str(file)
        for file, keys in of_file.items()
        if len(keys) > 1 or not table.repeated.isdisjoint(keys)
    ]
    notes = [
        f"{table.path.name}: {len(rows)} rows name their file {how}: {_listed(rows, 3)}"
        for how, rows in bent.items()
    ]
    if again:
        notes.append(
            f"{table.path.name}: {len(again)} files have several rows, which agree: "
            f"{_listed(again, 3)}"
        )
    chosen = {file: of_file[file][0] for file in files if file in of_file}
    return Matched(
        rows={file: table.rows[key] for file, key in chosen.items()},
        keys=chosen,
        lost=tuple(left),
        notes=tuple(map(one_line, notes)),
    )


def _said(row: Annotation, key: str) -> Annotation:
    """A row without its own name, which stands for an unknown subject."""
    return dataclasses.replace(row, subject="") if row.subject == one_line(key) else row


def _check_lost(
    table: Table, matched: Matched, files: Mapping[Path, Sequence[str]], every_row: bool
) -> None:
    if matched.rows and not every_row:
        return
    if not matched.lost and (matched.rows or not table.rows):
        if every_row and table.nameless:
            raise DataError(f"{table.path}: {table.nameless} rows name no file at all")
        return
    listed = _listed([repr(key) for key in matched.lost])
    if matched.rows:
        raise DataError(
            f"{table.path}: {len(matched.lost)} of {len(table.rows)} rows have no file: {listed}"
        )
    first = next((names[0] for names in files.values()), None)
    there = f"; the files are named like {first!r}" if first else "; there are no files"
    raise DataError(
        f"{table.path}: none of its {len(table.rows)} rows names a file; is that the column, and "
        f"the folder?{there}, the rows: {listed}"
    )


def report_lost(table: Table, lost: Sequence[str]) -> list[str]:
    """A line about rows without a file, and one about those that name none."""
    said = []
    if lost:
        rows = f"{len(lost)} rows of {table.path.name} have no file"
        said += [f"{rows}, the first: {lost[0]}" if len(lost) == 1 else f"{rows}: {_listed(lost)}"]
    if table.nameless:
        said.append(f"{table.nameless} rows of {table.path.name} name no file at all")
    return list(map(one_line, said))


def report_unowned(table: Table, matched: Matched) -> list[str]:
    """A line about files of which the table does not say whom they show."""
    lost = [str(file) for file, key in matched.keys.items() if key in table.unowned]
    if not lost:
        return []
    return [
        one_line(
            f"{len(lost)} of {len(matched.keys)} files have no subject in {table.path.name}, and "
            f"each counts as its own; if several show one, the figures will be too good; the "
            f"first: {lost[0]}"
        )
    ]


def report_alike(matched: Matched) -> list[str]:
    """A line about subjects, and one about labels, that may well be one and count as several."""
    rows = matched.rows
    # whoever is not known is called as the row is
    subjects = [row.subject for f, row in rows.items() if row.subject != one_line(matched.keys[f])]
    return alike(subjects, [row.label for row in rows.values() if row.label is not None])


def alike(subjects: Iterable[str], labels: Iterable[str]) -> list[str]:
    """The same of any subjects and labels."""
    # of labels, case is no difference
    spelt = {fold(label): label for label in labels}
    return [
        f"{what} that may be one count as several: "
        + _listed([", ".join(map(repr, group[:3])) for group in groups], 3)
        for what, groups in (
            ("subjects", nearly_alike(subjects)),
            ("labels", nearly_alike(spelt.values())),
        )
        if groups
    ]


_SPACES = "with spaces around it"


def _bends(
    keys: Iterable[str],
) -> Iterator[tuple[str, Callable[[str], list[str]] | None, Callable[[str], str]]]:
    """What is tried in turn: in words, what it does to a key first, and to either."""
    yield "", None, str
    moved = _moved(keys)

    def unspaced(name: str) -> str:
        return "/".join(part.strip() for part in name.split("/"))

    def uncased(name: str) -> str:
        return unspaced(name).casefold()

    def composed(name: str) -> str:
        return unicodedata.normalize("NFC", uncased(unicodedata.normalize("NFC", name)))

    yield "as a path of Windows or of another machine", moved, str
    yield _SPACES, moved, unspaced
    yield "in another case", moved, uncased
    yield "with accents composed otherwise (NFC, NFD)", moved, composed


def _plain(key: str, home: Path) -> list[str]:
    """A key from the folder of its table, and as it is, but for `.` and `..`."""
    return [absolute(home / key).as_posix(), posixpath.normpath(key)]


def _moved(keys: Iterable[str]) -> Callable[[str], list[str]]:
    """Make relative, of a path with a drive or root, what is below the folder all such share.

    As much of that folder as there is here is kept.
    """

    def parts(key: str) -> tuple[str, ...] | None:
        windows = PureWindowsPath(key)
        if windows.drive or (windows.root and "\\" in key):
            return windows.parts
        return PurePosixPath(key).parts if key.startswith("/") else None

    rooted = [[part.casefold() for part in of[:-1]] for of in map(parts, keys) if of is not None]
    # `zip` ends with the shortest
    alike = (len(set(column)) == 1 for column in zip(*rooted, strict=False))
    shared = sum(1 for _ in itertools.takewhile(bool, alike))

    def relative(key: str) -> list[str]:
        of = parts(key)
        if of is None:
            return [posixpath.normpath(key.replace("\\", "/"))]
        return ["/".join(of[start:]) for start in range(1, max(shared, 1) + 1)]

    return relative


class _Index:
    """Files by what a row may call them."""

    def __init__(self, files: Mapping[Path, Sequence[str]], bend: Callable[[str], str]) -> None:
        self._names = _Ends()
        self._stems = _Ends()
        for file, names in files.items():
            for name in dict.fromkeys(names):
                self._names.add(bend(name), file)
                self._stems.add(bend(posixpath.splitext(name)[0]), file)

    def find(self, key: str) -> list[Path]:
        return self._names.find(key) or self._stems.find(key)


class _Ends:
    """Files by how their paths end, the whole path before its end."""

    def __init__(self) -> None:
        self._whole: dict[str, dict[Path, None]] = defaultdict(dict)
        # by the last two parts, as a thousand folders may each have a `frame0.png`
        self._ends: dict[str, list[tuple[str, Path]]] = defaultdict(list)

    def add(self, name: str, file: Path) -> None:
        self._whole[name][file] = None
        parts = name.split("/")
        self._ends[parts[-1]].append((name, file))
        if len(parts) > 1:
            self._ends["/".join(parts[-2:])].append((name, file))

    def find(self, key: str) -> list[Path]:
        if key in self._whole:
            return list(self._whole[key])
        last = "/".join(key.split("/")[-2:])
        ends = (file for name, file in self._ends.get(last, ()) if name.endswith(f"/{key}"))
        return list(dict.fromkeys(ends))


def _listed(lines: Sequence[str], most: int = _LISTED) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


# -------------------------------------------------------------------------- sources and their rows


@dataclass(frozen=True)
class Survey:
    """The sources of files and folders, as a table has them.

    Attributes:
        sources: in order.
        rows: annotations by path, of those that have a row.
        notes: what had to be bent and what is lost, in words.
    """

    sources: tuple[Named, ...]
    rows: dict[Path, Annotation]
    notes: tuple[str, ...] = ()


def survey(
    paths: str | Path | Iterable[str | Path],
    table: Table | None = None,
    *,
    every_row: bool = False,
    on_damage: OnDamage = reading.warn,
) -> Survey:
    """Find the sources of files and folders, and their rows.

    A still with a row is a source, though its folder looks like a clip; a folder with a row is one,
    though it does not; and a mask with a row is one as well.

    Args:
        paths: as for `reading.find`.
        table: whose rows count from the paths given, and from its own folder.
        every_row: as for `assign`.
        on_damage: as for `reading.find`.

    Raises:
        UnreadableError: as `reading.find`.
        DataError: as `reading.find` and `assign`; if a folder has a row and so has a file in it.
    """
    if table is None:
        given = name_sources(paths, on_damage=on_damage)
        return Survey(tuple(source for source, _ in given), {})
    sources: dict[Path, Path] = {}
    masks: dict[Path, Path] = {}
    # `a` and `a/b` may both be given: a video in both is still one video
    seen: set[Path] = set()
    for area in [paths] if isinstance(paths, (str, Path)) else paths:
        drawn: list[Path] = []
        inside = name_sources([area], on_damage=on_damage, masks=drawn, table=table.path)
        for source, root in inside:
            if (real := source.path.resolve()) not in seen:
                seen.add(real)
                sources[source.path] = root
        masks |= dict.fromkeys(drawn, expanded(area))
    for path in masks.keys() & sources.keys():
        del masks[path]
    items, matched = _as_rows_have_it(sources, masks, table)
    names = {path: _names(path, area) for path, area in items.items()}
    _check_lost(table, matched, names, every_row)
    for root in dict.fromkeys(masks.values()):
        if left := [path for path, of in masks.items() if of == root and path not in items]:
            on_damage(masks_left_out(root, left))
    found_ = tuple(named(path, area) for path, area in items.items())
    lost = (*report_lost(table, matched.lost), *report_unowned(table, matched))
    return Survey(found_, matched.rows, (*matched.notes, *lost, *report_alike(matched)))


def absolute(path: Path) -> Path:
    """A path from the root without `.` and `..`, through the same links."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _names(path: Path, area: Path) -> list[str]:
    """What a row may call a file or folder: within its folder, and from the root."""
    own = path.parent.resolve() / path.name if path.name else path.resolve()
    whole = [own.as_posix(), absolute(path).as_posix()]
    return [path.name or own.name if path == area else path.relative_to(area).as_posix(), *whole]


def _as_rows_have_it(
    areas: Mapping[Path, Path], masks: Mapping[Path, Path], table: Table
) -> tuple[dict[Path, Path], Matched]:
    """The items as a table has them, each with the folder it is in, and their rows."""
    folders = _folders_of_stills(areas)
    candidates = {path: _names(path, area) for path, area in areas.items()}
    candidates |= {path: _names(path, areas[files[0]]) for path, files in folders.items()}
    first = _assign(table, candidates)
    for folder, files in folders.items():
        if folder in first.keys:
            _refuse_both(table, folder, [file for file in files if file in first.keys])
    whole = {
        file: folder for folder, files in folders.items() if folder in first.keys for file in files
    }
    inside = {
        clip: {image: _names(image, area) for image in reading.images_in(clip)}
        for clip, area in areas.items()
        if clip.is_dir()
    }
    for clip, own in inside.items():
        if clip in first.keys:
            _refuse_both(table, clip, [i for i in own if not table.rows.keys().isdisjoint(own[i])])
    loose = {
        image: of
        for clip, own in inside.items()
        if clip not in first.keys
        for image, of in own.items()
    }
    loose |= {path: _names(path, area) for path, area in masks.items()}
    left = dataclasses.replace(table, rows={key: table.rows[key] for key in first.lost})
    second = _assign(left, loose)
    apart = {image.parent for image in second.keys if image not in masks}

    items: dict[Path, Path] = {}
    for path, area in areas.items():
        if path in apart:
            items.update(dict.fromkeys(reading.images_in(path), area))
        else:
            items[whole.get(path, path)] = area
    items |= {path: area for path, area in masks.items() if path in second.keys}
    return items, Matched(
        first.rows | second.rows,
        first.keys | second.keys,
        second.lost,
        first.notes + second.notes,
    )


def _folders_of_stills(areas: Mapping[Path, Path]) -> dict[Path, list[Path]]:
    """Folders of nothing but stills, which a row may name though their names look like no clip."""
    stills: dict[Path, list[Path]] = defaultdict(list)
    mixed: set[Path] = set()
    for path, area in areas.items():
        above = [path.parent, *path.parent.parents] if path != area else []
        above = above[: above.index(area) + 1] if area in above else above[:1]
        if path.suffix.lower() in images.SUFFIXES and not path.is_dir():
            if above:
                stills[path.parent].append(path)
            above = above[1:]
        mixed.update(above)
    return {folder: files for folder, files in stills.items() if folder not in mixed}


def _refuse_both(table: Table, folder: Path, files: Sequence[Path]) -> None:
    if files:
        raise DataError(
            f"{table.path}: {folder} has a row, and so have {len(files)} images in it; keep one or "
            f"the other: {_listed(list(map(str, sorted(files))))}"
        )


def own_subjects(sources: Sequence[Named], subjects: Sequence[str | None]) -> list[str]:
    """The subject of each source; one of whom nobody knows is its own, whatever it is called."""
    subjects = [known_subject(subject) for subject in subjects]
    counts = Counter(source.name for source in sources)
    taken = {subject for subject in subjects if subject is not None}
    return [
        subject
        or (
            source.name
            if counts[source.name] == 1 and source.name not in taken
            else one_line(source.path.as_posix())
        )
        for subject, source in zip(subjects, sources, strict=True)
    ]
