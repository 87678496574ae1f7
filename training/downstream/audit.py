"""What is in data twice: within a data set, across splits and classes, in what weights have seen.

Near-duplicates are found by fingerprints, exact copies of files by their digests. Videos are
compared frame by frame and reported by their best pair of frames.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from uscl_zoo.annotations import fold
from uscl_zoo.card import all_cards, read_card
from uscl_zoo.errors import (
    DataError,
    MissingDependencyError,
    UnreadableError,
    UsclError,
    one_line,
)
from uscl_zoo.files import begins_with, check_folder, expanded
from uscl_zoo.names import cell
from uscl_zoo.records import write_text
from uscl_zoo.store import corpus_of
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.sources import decode_ahead, name_sources, named

from ..corpus import Corpus, read_corpus
from ..fingerprints import ALONE, CORRELATION, DISTANCE, Pairs, Prints, find_known, find_pairs
from ..frames import DESCRIPTION, FrameStore
from ..prepare import content_of
from . import pages
from .collection import sides
from .datasets import DATASETS, DataSet, load

PAGE, PAIRS = "report.html", "pairs.csv"
#: Pairs on the page with their pictures; the table has them all.
PICTURED = 300
# lines on the terminal of a kind of finding
_LISTED = 40
# pixels of a picture on the page
_HEIGHT = 180

#: What of a data set, by name, an audit wants otherwise than an evaluation.
_WHOLE: dict[str, dict[str, Any]] = {"busi": {"grouped": False}, "pocus": {"stills": True}}


@dataclass(frozen=True)
class Source:
    """An image or a video, of one of the data sets that are compared.

    Attributes:
        data: the name of its data set.
        name: within it.
        subject: whom it shows; None where that is not known.
        label: its class; None where it has none.
        split: its side of a division; None where there is none.
        path: of the file; None of a corpus.
    """

    data: str
    name: str
    subject: str | None = None
    label: str | None = None
    split: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        told = ", ".join(filter(None, (self.label, self.split)))
        return one_line(f"{self.name} ({told})" if told else self.name)


@dataclass(frozen=True)
class Data:
    """One of the data sets that are compared.

    Attributes:
        name: unique among them.
        sources: in order.
        notes: what was left out.
        store: with their frames; None where they are decoded.
    """

    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    store: FrameStore | None = None


@dataclass(frozen=True)
class Finding:
    """Two sources that show the same.

    Attributes:
        first: a source.
        second: another, or a video of a corpus.
        how: `same file`, `same picture` or `mirrored picture`.
        across: what lies between them: `classes`, `splits`, `data sets`, `corpus` or `subjects`.
        frames: of either the frame shown, counted as sampled; None of files and of a corpus.
        distance: of the hashes, in bits.
        correlation: of the textures; None where only the hashes are known.
    """

    first: Source
    second: Source
    how: str
    across: tuple[str, ...]
    frames: tuple[int | None, int | None]
    distance: int | None = None
    correlation: float | None = None

    @property
    def leaks(self) -> bool:
        """Whether a figure measured on one side would be too good, or a label is wrong."""
        return any(between != "subjects" for between in self.across)

    @property
    def measure(self) -> str:
        """How alike they are, in words."""
        parts = [self.how]
        if self.distance is not None:
            parts.append(f"{self.distance} bits apart")
        if self.correlation is not None:
            parts.append(f"correlation {self.correlation:.3f}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        data: that was compared.
        corpora: names of the weights it was compared with, and the videos these have seen.
        images: compared, by data set.
        findings: leaks first, most alike first.
        torn: subjects on several sides of a division, as (data set, subject, sides).
        skipped: sources that could not be read, and why.
        thresholds: in words.
        rate: frames a second of videos.
    """

    data: tuple[Data, ...]
    corpora: Mapping[str, int]
    images: Mapping[str, int]
    findings: tuple[Finding, ...]
    torn: tuple[tuple[str, str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    thresholds: str
    rate: float

    @property
    def leaks(self) -> bool:
        """Whether anything crosses splits, classes or data sets, or was trained on."""
        return bool(self.torn) or any(finding.leaks for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self._contents()]
        lines += [f"skipped {source}: {why}" for source, why in self.skipped]
        lines += [""]
        if not self.findings:
            lines.append("no two sources show the same picture")
        for between, found in self._by_kind().items():
            lines.append(f"{len(found)} pairs {between}")
            lines += [
                f"  {finding.first} = {finding.second}: {finding.measure}"
                for finding in found[:_LISTED]
            ]
            if len(found) > _LISTED:
                lines.append(f"  … and {len(found) - _LISTED} more")
        for data, subject, of in self.torn:
            lines.append(one_line(f"{data}: subject {subject} is on several sides: {of}"))
        return "\n".join(lines)

    def _contents(self) -> list[tuple[str, str]]:
        rows = []
        for data in self.data:
            labels = Counter(source.label for source in data.sources if source.label)
            subjects = {source.subject for source in data.sources if source.subject}
            parts = [f"{len(data.sources)} files", f"{self.images[data.name]} images"]
            parts += [f"{len(subjects)} subjects"] if subjects else []
            parts += [f"{label} {count}" for label, count in sorted(labels.items())]
            rows.append((data.name, ", ".join([*parts, *data.notes])))
        rows += [(name, f"has seen {count} videos") for name, count in self.corpora.items()]
        return rows

    def _by_kind(self) -> dict[str, list[Finding]]:
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            kind = "of one class"
            if finding.across:
                kind = f"across {', '.join(finding.across)}"
            elif finding.second.path is None:
                kind = "with what weights have seen, on the training side"
            kinds.setdefault(kind, []).append(finding)
        return kinds

    def save(self, folder: Path, progress: bool = False) -> None:
        """Write `pairs.csv`, all of them, and `report.html` with pictures, each whole."""
        check_report(folder)
        out = io.StringIO(newline="")
        sides = ["data", "name", "subject", "label", "split", "frame"]
        table = csv.writer(out, lineterminator="\n")
        table.writerow(
            ["how", "across", "distance", "correlation"]
            + [f"{place}_{column}" for place in ("first", "second") for column in sides]
        )
        for one in self.findings:
            row: list[object] = [one.how, " ".join(one.across), one.distance]
            row.append("" if one.correlation is None else f"{one.correlation:.4f}")
            for source, frame in zip((one.first, one.second), one.frames, strict=True):
                told = source.data, source.name, source.subject, source.label, source.split
                row += [*map(cell, told), "" if frame is None else frame]
            table.writerow(["" if value is None else value for value in row])
        write_text(folder / PAIRS, out.getvalue())
        write_text(folder / PAGE, self._page(progress))

    def _page(self, progress: bool) -> str:
        body = [pages.table([], [list(row) for row in self._contents()])]
        body.append(
            f"<p>{escape(self.thresholds)} Videos were sampled at {self.rate:g} frames a second "
            "and are shown by their best pair of frames.</p>"
        )
        if self.torn:
            rows = [list(row) for row in self.torn]
            body.append("<h2>Subjects on several sides</h2>")
            body.append(pages.table(["data", "subject", "sides"], rows))
        if not self.findings:
            body.append("<p>No two sources show the same picture.</p>")
        if len(self.findings) > PICTURED:
            body.append(
                f"<p class='note'>{PICTURED} of {len(self.findings)} pairs are shown; {PAIRS} has "
                "them all.</p>"
            )
        left = PICTURED
        with tqdm(total=min(left, len(self.findings)), unit="picture", disable=not progress) as bar:
            for between, found in self._by_kind().items():
                body.append(f"<h2>{len(found)} pairs {escape(between)}</h2>")
                for finding in found[:left]:
                    caption = f"{finding.first} = {finding.second}: {finding.measure}"
                    picture = self._picture(finding)
                    name = f"{finding.first.name} = {finding.second.name}"
                    body.append(pages.figure(name, "image/jpeg", picture, caption))
                    bar.update()
                left = max(left - len(found), 0)
        if self.skipped:
            body.append("<h2>Could not be read</h2>")
            body.append(pages.table([], [list(row) for row in self.skipped]))
        return pages.page(f"Audit of {', '.join(data.name for data in self.data)}", "".join(body))

    def _picture(self, finding: Finding) -> bytes:
        stores = {data.name: data.store for data in self.data}
        shown = []
        for source, frame in zip((finding.first, finding.second), finding.frames, strict=True):
            if source.path is None:
                # of a corpus nothing but fingerprints is known
                continue
            image = _frame(source, stores[source.data], frame or 0, self.rate).convert("RGB")
            shown.append(image.resize((round(_HEIGHT * image.width / image.height), _HEIGHT)))
        sheet = Image.new("RGB", (sum(image.width + 4 for image in shown) - 4, _HEIGHT), "white")
        left = 0
        for image in shown:
            sheet.paste(image, (left, 0))
            left += image.width + 4
        out = io.BytesIO()
        sheet.save(out, "JPEG", quality=80)
        return out.getvalue()


def check_report(folder: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Make sure, before the work is done, that a report can be saved to a folder.

    Raises:
        DataError: if files of that name in it are not of an earlier audit, or are inputs.
    """
    ours = begins_with(Path(folder) / PAIRS, b"how,across,")
    return check_folder(folder, ours, inputs, (PAIRS, PAGE))


def _frame(source: Source, store: FrameStore | None, index: int, rate: float) -> Image.Image:
    if store is not None:
        video = next(video for video in store.videos if video.name == source.name)
        return Image.fromarray(store.frames[video.first + index])
    assert source.path is not None
    frames = reading.sample(source.path, rate, on_damage=lambda message: None)
    return next(islice(frames, index, None)).image


# ------------------------------------------------------------------------------ what is compared


def audit(
    arguments: Sequence[str],
    *,
    rate: float = 1.0,
    distance: int = DISTANCE,
    correlation: float = CORRELATION,
    workers: int | None = None,
    progress: bool = True,
    **columns: Any,
) -> Audit:
    """Look for what is in data twice.

    Args:
        arguments: each a data set as `NAME:DIR`, a folder, a CSV, a store of `uscl prepare`, or the
            name or the YAML file of a card, whose training data is compared.
        rate: frames a second of videos; stores are taken whole.
        distance: largest Hamming distance of hashes, of 255 bits.
        correlation: smallest correlation of textures.
        workers: decoding threads; None for one a core.
        progress: show bars.
        **columns: of folders and CSVs, as `collect` takes them.

    Raises:
        DataError: if an argument is none of these, or there is no data but only cards.
        UnreadableError: if there is no such file or folder.
    """
    data: list[Data] = []
    corpora: dict[str, Corpus] = {}
    for argument in arguments:
        named = _corpus(argument)
        if named is not None:
            corpora[named[0]] = named[1]
        else:
            data.append(_open(argument, {one.name for one in data}, columns))
    if not data:
        raise DataError("only cards were given; name the data to compare with what they have seen")
    sources = [source for one in data for source in one.sources]
    taken = [_fingerprint(one, rate, workers, progress) for one in data]
    prints = Prints.join([part for one in taken for part in one.prints])
    counts = np.array([len(part) for one in taken for part in one.prints], np.int64)
    owner = np.repeat(np.arange(len(sources)), counts)
    starts = np.cumsum(counts) - counts
    digests = [digest for one in taken for digest in one.digests]

    # one subject looks alike; only what lies between classes or splits is news
    keys = [(s.data, s.subject or i, s.label, s.split) for i, s in enumerate(sources)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = np.array([numbers[key] for key in keys], np.int64)
    pairs = find_pairs(
        prints, owner, group[owner], distance=distance, correlation=correlation, progress=progress
    )
    findings = []
    for i, j, bits, alike, mirrored in _rows(pairs):
        first, second = sources[owner[i]], sources[owner[j]]
        same = digests[owner[i]] is not None and digests[owner[i]] == digests[owner[j]]
        how = "same file" if same else "mirrored picture" if mirrored else "same picture"
        frames = i - int(starts[owner[i]]), j - int(starts[owner[j]])
        findings.append(Finding(first, second, how, _across(first, second), frames, bits, alike))
    for name, corpus in corpora.items():
        findings += _seen(name, corpus, sources, digests, prints, owner, starts, progress)
    findings.sort(key=lambda finding: (not finding.leaks, not finding.across, finding.across))
    return Audit(
        data=tuple(data),
        corpora={name: len(corpus.digests) for name, corpus in corpora.items()},
        images={
            one.name: sum(len(part) for part in of.prints)
            for one, of in zip(data, taken, strict=True)
        },
        findings=tuple(findings),
        torn=tuple(_torn(data)),
        skipped=tuple(row for one in taken for row in one.skipped),
        thresholds=(
            f"Two images show the same where their hashes are at most {distance} of 255 bits apart "
            f"and their textures correlate by at least {correlation:g}; with a corpus, of which "
            f"only hashes are known, where they are at most {ALONE} bits apart."
        ),
        rate=rate,
    )


def _corpus(argument: str) -> tuple[str, Corpus] | None:
    """Name and fingerprints of a card, if the argument is one."""
    path = expanded(argument)
    if path.suffix == ".yaml" and path.is_file():
        card, folder = read_card(path), path.parent
    elif argument in all_cards() and not path.exists():
        card, folder = all_cards()[argument], None
    else:
        return None
    file = corpus_of(card, folder)
    if file is None:
        raise DataError(
            f"{card.name}: there are no fingerprints of what it was trained on; "
            "`uscl corpus CARD --data STORE` takes them"
        )
    return card.name, read_corpus(file)


def _open(argument: str, names: set[str], columns: Mapping[str, Any]) -> Data:
    known, _, rest = argument.partition(":")
    path = expanded(rest if known in DATASETS and rest else argument)
    if not path.exists():
        raise UnreadableError(
            f"{argument}: no such file, folder or card; a data set is NAME:DIR, of "
            f"{', '.join(DATASETS)}"
        )
    own = one_line(path.resolve().name)
    own = f"{known}:{own}" if known in DATASETS and rest and known != own else own
    name = next(n for n in (own, *(f"{own} {i}" for i in range(2, 99))) if n not in names)
    if (path / DESCRIPTION).is_file():
        store = FrameStore(path)
        rows = [
            Source(name, v.name, v.subject, v.label, v.split, Path(v.source)) for v in store.videos
        ]
        return Data(name, tuple(rows), (), store)
    given = {key: value for key, value in columns.items() if value is not None}
    if known in DATASETS and rest:
        own_columns = given if known in ("folder", "csv") else _WHOLE.get(known, {})
        read = load(known, path, **own_columns)
    elif path.is_dir():
        given = _of_kind(given, "subject_pattern", "exclude")
        if division := sides(path):
            return _of_sides(name, path, division, given)
        return _of_folder(name, path, given)
    else:
        whose = ("subject_column", "subject_pattern", "every_row")
        read = load(
            "csv", path, **_of_kind(given, "file_column", "label_column", *whose, "exclude")
        )
    return _of_collection(name, read)


def _of_kind(given: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key in keys}


def _of_sides(
    name: str, path: Path, division: Mapping[str, Path], columns: Mapping[str, Any]
) -> Data:
    """A folder with a folder a side, each with a folder per class or without."""
    rows: list[Source] = []
    notes: list[str] = []
    for side, folder in division.items():
        own = _of_folder(name, folder, columns)
        rows += [replace(row, name=f"{side}/{row.name}", split=side) for row in own.sources]
        notes += [f"{side}: {note}" for note in own.notes]
    return Data(name, tuple(rows), tuple(notes))


def _of_folder(name: str, folder: Path, columns: Mapping[str, Any]) -> Data:
    try:
        read = load("folder", folder, **columns)
    except DataError:
        return Data(name, tuple(_unlabelled(name, folder)))
    return _of_collection(name, read)


def _of_collection(name: str, read: DataSet) -> Data:
    folds = read.folds or {}
    rows = []
    for source, file in read.collection.sources.items():
        row = read.collection.annotations[source]
        subject = row.subject if read.collection.subjects else None
        split = f"fold {folds[source]}" if source in folds else None
        rows.append(Source(name, source, subject, row.label, split, file))
    return Data(name, tuple(rows), read.collection.notes)


def _unlabelled(name: str, folder: Path) -> list[Source]:
    """The images and videos of a folder without classes; numbered stills are no clip here."""
    found = [source for source, _ in name_sources([folder])]
    if [source.path for source in found] == [folder]:
        found = [named(image, folder) for image in reading.images_in(folder)]
    return [Source(name, source.name, path=source.path) for source in found]


@dataclass(frozen=True)
class _Taken:
    """Fingerprints by source, in order; none of what could not be read."""

    prints: list[Prints]
    digests: list[str | None]
    skipped: list[tuple[str, str]]


def _fingerprint(data: Data, rate: float, workers: int | None, progress: bool) -> _Taken:
    taken = _Taken([], [], [])
    if data.store is not None:
        known = data.store.description.get("sources_sha256", {})
        for video in tqdm(data.store.videos, data.name, unit="video", disable=not progress):
            rows = data.store.frames[video.first : video.first + video.count]
            taken.prints.append(Prints.of(Image.fromarray(row) for row in rows))
            taken.digests.append(known.get(video.name))
        return taken
    paths = [source.path for source in data.sources if source.path is not None]
    with (
        closing(decode_ahead(paths, rate, lambda image: Prints.of([image]), workers)) as decoded,
        tqdm(total=len(paths), desc=data.name, unit="file", disable=not progress) as bar,
    ):
        for path, frames in zip(paths, decoded, strict=True):
            try:
                taken.prints.append(Prints.join([one for _, one in frames]))
                taken.digests.append(content_of(path))
            except MissingDependencyError:
                # not the file's fault: skipping would leave all of its kind out
                raise
            except (UsclError, OSError) as error:
                taken.prints.append(Prints.join([]))
                taken.digests.append(None)
                taken.skipped.append((one_line(str(path)), str(error)))
            bar.update()
    return taken


# ------------------------------------------------------------------------------ what is found


def _rows(pairs: Pairs) -> list[tuple[int, int, int, float, bool]]:
    columns = (pairs.first, pairs.second, pairs.distance, pairs.correlation, pairs.mirrored)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _across(first: Source, second: Source) -> tuple[str, ...]:
    between = []
    if first.label and second.label and fold(first.label) != fold(second.label):
        between.append("classes")
    if first.data != second.data:
        between.append("data sets")
    else:
        if first.split != second.split:
            between.append("splits")
        if first.subject and second.subject and first.subject != second.subject:
            between.append("subjects")
    return tuple(between)


def _seen(
    name: str,
    corpus: Corpus,
    sources: Sequence[Source],
    digests: Sequence[str | None],
    prints: Prints,
    owner: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    progress: bool,
) -> list[Finding]:
    """What of the sources weights were trained on: each source's best match."""
    data = f"corpus of {name}"
    place = {digest: number for number, digest in enumerate(corpus.digests)}
    found: dict[int, Finding] = {}

    def across(source: Source) -> tuple[str, ...]:
        # that what was trained on was trained on is as it should be
        return () if source.split == "train" else ("corpus",)

    for i, (source, digest) in enumerate(zip(sources, digests, strict=True)):
        if digest in place:
            video = Source(data, f"video {place[digest]} of {data}")
            found[i] = Finding(source, video, "same file", across(source), (0, None))
    pairs = find_known(prints, owner, corpus.hashes, corpus.owner, progress=progress)
    for row, other, bits, _, mirrored in _rows(pairs):
        i = int(owner[row])
        if i in found:
            continue
        video = Source(data, f"video {corpus.owner[other]} of {data}")
        how = "mirrored picture" if mirrored else "same picture"
        frames = row - int(starts[i]), None
        found[i] = Finding(sources[i], video, how, across(sources[i]), frames, bits)
    return [found[i] for i in sorted(found)]


def _torn(data: Sequence[Data]) -> list[tuple[str, str, str]]:
    rows = []
    for one in data:
        sides: dict[str, set[str]] = {}
        for source in one.sources:
            if source.subject and source.split:
                sides.setdefault(source.subject, set()).add(source.split)
        rows += [
            (one.name, subject, ", ".join(sorted(of)))
            for subject, of in sorted(sides.items())
            if len(of) > 1
        ]
    return rows
