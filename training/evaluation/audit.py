"""What is in data twice: within a data set, across splits and classes, in what weights have seen.

Near-duplicates are detected by fingerprints, exact copies of files by their digests. Videos are
compared frame by frame and reported by their best pair of frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from uscl_zoo.data.annotations import fold
from uscl_zoo.errors import (
    DataError,
    MissingDependencyError,
    UnreadableError,
    UsclError,
    one_line,
)
from uscl_zoo.files import expanded
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.sources import decode_ahead, name_sources, named
from uscl_zoo.zoo.card import read_card
from uscl_zoo.zoo.catalogue import all_cards
from uscl_zoo.zoo.weights_cache import corpus_of

from ..downstream.collection import sides
from ..downstream.datasets import DATASETS, DataSet, load
from ..learning.frames import DESCRIPTION, FrameStore
from ..learning.seal import check_frames
from ..preparing.corpus import Corpus, read_corpus
from ..preparing.fingerprints import (
    ALONE,
    CORRELATION,
    DISTANCE,
    Pairs,
    Prints,
    find_known,
    find_pairs,
)
from ..preparing.parts import content_of
from .findings import Audit, Data, Finding, Source

#: What of a data set, by name, an audit wants otherwise than an evaluation.
_WHOLE: dict[str, dict[str, Any]] = {"busi": {"grouped": False}, "pocus": {"stills": True}}


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
        check_frames(store)
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
    sources = [source for source, _ in name_sources([folder])]
    if [source.path for source in sources] == [folder]:
        sources = [named(image, folder) for image in reading.images_in(folder)]
    return [Source(name, source.name, path=source.path) for source in sources]


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


# --------------------------------------------------------------------------- what is reported


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
    matches: dict[int, Finding] = {}

    def across(source: Source) -> tuple[str, ...]:
        # that what was trained on was trained on is as it should be
        return () if source.split == "train" else ("corpus",)

    for i, (source, digest) in enumerate(zip(sources, digests, strict=True)):
        if digest in place:
            video = Source(data, f"video {place[digest]} of {data}")
            matches[i] = Finding(source, video, "same file", across(source), (0, None))
    pairs = find_known(prints, owner, corpus.hashes, corpus.owner, progress=progress)
    for row, other, bits, _, mirrored in _rows(pairs):
        i = int(owner[row])
        if i in matches:
            continue
        video = Source(data, f"video {corpus.owner[other]} of {data}")
        how = "mirrored picture" if mirrored else "same picture"
        frames = row - int(starts[i]), None
        matches[i] = Finding(sources[i], video, how, across(sources[i]), frames, bits)
    return [matches[i] for i in sorted(matches)]


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
