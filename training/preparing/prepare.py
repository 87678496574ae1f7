"""Raw videos to a FrameStore: decode once, keep a few frames a second, remember whose they are."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from uscl_zoo.checks import real, seed_of
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.files import Address, check_folder, expanded, is_ours, locked, written
from uscl_zoo.names import cell
from uscl_zoo.records import to_plain, write_text, write_yaml
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.sources import history_of, state_of

from ..learning.frames import (
    BEAM,
    COLUMNS,
    DESCRIPTION,
    FRAMES,
    MANIFEST,
    ORIGIN,
    FrameStore,
    manifest_of,
)
from .fingerprints import SCENE, Prints, clusters, find_pairs
from .labels import Annotation, SubjectPattern, Table, hold_out, unify
from .parts import _PART, PARTS, Sampling, clear, content_of, decode_all, part_of, parts_in
from .sources import CorpusPlan, Item, items_in, items_named, items_of
from .spdx import allows, canonical

SKIPPED, LEFT_OUT, CORPUS = "skipped.csv", "left_out.csv", "corpus.yaml"
#: What is written into the folder of a store.
_NAMES = (DESCRIPTION, FRAMES, MANIFEST, PARTS, SKIPPED, LEFT_OUT, CORPUS)


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    Attributes:
        store: the finished store.
        skipped: sources that could not be decoded, with the reason.
        unannotated: videos without a row in the table, kept as unlabelled.
        reused: how many videos an earlier, interrupted call had already decoded.
        left_out: items that were not wanted, with the reason.
    """

    store: FrameStore
    skipped: tuple[tuple[str, str], ...]
    unannotated: tuple[str, ...]
    reused: int
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def unclean(self) -> tuple[str, ...] | None:
        """Videos in which no beam was detected, kept as they are; None if not asked to clean."""
        beams: dict[str, Any] | None = self.store.description.get("beams")
        if beams is None:
            return None
        return tuple(name for name, beam in beams.items() if not beam["cleaned"])


def prepare(
    videos: Sequence[Path] | Mapping[str, Path] | CorpusPlan,
    output: Path,
    annotate: Callable[[str], Annotation | None] | Table | None = None,
    *,
    sampling: Sampling | None = None,
    classes: Sequence[str] | None = None,
    unlabelled: Sequence[str] = (),
    licences: Sequence[str] = (),
    only_annotated: bool = False,
    near_duplicates: bool = False,
    holdout: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    subject_pattern: str | None = None,
    every_row: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    origin: dict[str, str | None] | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = reading.warn,
) -> Report:
    """Decode videos into a FrameStore.

    Each video becomes a part of its own, moved into place when it is whole, so an interrupted call
    continues where it was and memory holds one frame a worker, however many videos there are.
    Near-duplicates are detected among the fingerprints of one source at a time, 8 KiB a frame.

    Args:
        videos: files and folders, which are searched; sources by the names to give them; or a
            corpus, which has tables of its own.
        output: folder of the store.
        annotate: subject, label and licence of a video by its name, None where it has no row; or,
            of files and folders, a table, whose rows also say which stills and folders are items
            of their own.
        sampling: rate and size; 3 frames a second of 224x224 by default.
        classes: the declared classes; None declares every label there is.
        unlabelled: labels to drop.
        licences: SPDX identifiers; items that they do not allow are left out. None given: all.
        only_annotated: leave out what has no row.
        near_duplicates: take subjects that share a picture for one. A corpus says so a source.
        holdout: share of the subjects of each class to hold out.
        seed: of the choice of held-out subjects.
        strict: fail if any source cannot be decoded.
        subject_pattern: of subjects, see `SubjectPattern`; None for those that `annotate` gives.
        every_row: fail if a row of a table has no file.
        overwrite: replace a finished store.
        workers: processes; None for one a core, with `ray` of the cluster.
        ray: where to decode instead of here: `local` for workers of Ray on this machine, or the
            address of a cluster, whose machines need not see the folder of the store. An
            interrupted call may be continued either way.
        origin: name, url and citation of the collection, for the card. A corpus has its own.
        progress: show a bar.
        tell: called with a line for whatever of files and tables is left out, lost or bent; a
            `DamageWarning` unless given.

    Returns:
        The store and what was left out of it.

    Raises:
        DataError: if there is nothing, or nothing that is wanted, a label is undeclared, a row does
            not name one file, a store, another's files or an input is in the way, another process
            prepares into the same folder, or there is no such cluster.
        UnreadableError: if nothing can be decoded, or something cannot and `strict`.
    """
    seed = seed_of(seed)
    output = expanded(output)
    holdout = real("holdout", holdout, 0, 1, ends=True)
    output = check_folder(output, _is_ours(output), _inputs(videos, annotate), _NAMES)
    sampling = sampling or Sampling()
    with locked(output), parts_in(output) as parts:
        plan = videos if isinstance(videos, CorpusPlan) else None
        # labels first: a typo in a column should not cost an hour of decoding
        pattern = None if subject_pattern is None else SubjectPattern(subject_pattern)
        items, left_out = _items(videos, annotate, pattern, every_row, tell)
        items, unwanted = _choose(items, licences, only_annotated)
        left_out = [*left_out, *unwanted]
        if not items:
            counts = Counter(reason for _, reason in left_out)
            counted = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
            raise DataError(f"nothing is left of {len(left_out)} items: {counted}")
        unannotated = tuple(name for name, item in items.items() if not item.annotated)
        annotations = unify({n: item.annotation for n, item in items.items()}, classes, unlabelled)
        alike = _sources_with_near_duplicates(plan, near_duplicates)
        asked: dict[str, Any] = {}
        if licences:
            asked["licences"] = sorted(map(canonical, licences))
        if only_annotated:
            asked["only_annotated"] = True
        if near_duplicates:
            asked["near_duplicates"] = True
        if plan is not None:
            asked["corpus"] = to_plain(plan)

        fingerprint = _fingerprint(items, sampling, annotations, holdout, seed, asked)

        if (output / DESCRIPTION).exists():
            existing = _open(output, overwrite)
            same = existing is not None and existing.description.get("fingerprint") == fingerprint
            if existing is not None and same and not _changed(existing, items):
                skipped = [(s["source"], s["reason"]) for s in existing.description["skipped"]]
                _refuse_skipped(skipped, strict)
                reused = len(existing.videos)
                clear(parts)
                return Report(existing, tuple(skipped), unannotated, reused, tuple(left_out))
            if not overwrite:
                raise DataError(
                    f"{output}: holds a store of other videos, labels or settings; "
                    "choose another folder or add `overwrite=True`"
                )
        skipped, reused = decode_all(items, parts, sampling, workers, progress, ray)
        _refuse_skipped(skipped, strict)
        unreadable = {source for source, _ in skipped}
        kept = {name: item for name, item in items.items() if str(item.path) not in unreadable}
        if not kept:
            raise UnreadableError(
                f"none of {len(items)} sources can be decoded; the first: {skipped[0][1]}"
            )
        annotations = {name: annotations[name] for name in kept}
        merged = {}
        for key in alike:
            own = [name for name, item in kept.items() if item.origin == key]
            before = len({annotations[name].subject for name in own})
            one = _scenes(own, annotations, parts, sampling.size, progress)
            # of all sources, as two may show the same people
            annotations = {
                name: replace(row, subject=one.get(row.subject, row.subject))
                for name, row in annotations.items()
            }
            after = len({annotations[name].subject for name in own})
            merged[key or ""] = {"videos": len(own), "subjects": before, "scenes": after}
        held = hold_out(annotations, holdout, seed)
        description: dict[str, Any] = {
            "sampling": sampling.settings(),
            "origin": origin or {},
            "holdout": holdout,
            "seed": seed,
            "held_out_subjects": sorted(held),
            "fingerprint": fingerprint,
            "skipped": [{"source": source, "reason": reason} for source, reason in skipped],
            **asked,
        }
        if merged:
            description["scenes"] = merged
        if left_out:
            description["left_out"] = dict(Counter(reason for _, reason in left_out).most_common())
        if plan is not None:
            description["origin"] = {"name": plan.name, "url": plan.url, "citation": plan.citation}
            description["sources"] = {
                key: {"name": source.name, "url": source.url, "citation": source.citation}
                for key, source in plan.sources.items()
            }
        _assemble(output, kept, annotations, held, description, left_out)
        return Report(FrameStore(output), tuple(skipped), unannotated, reused, tuple(left_out))


def _is_ours(output: Path) -> bool:
    """Whether a folder is a store, or begun to be one: by what is in it, `parts` is any name."""
    if (output / DESCRIPTION).is_file():
        return True
    parts = output / PARTS
    return parts.is_dir() and all(
        _PART.fullmatch(path.name) or is_ours(path.name) for path in parts.iterdir()
    )


def _inputs(
    videos: Sequence[Path] | Mapping[str, Path] | CorpusPlan,
    annotate: Callable[[str], Annotation | None] | Table | None,
) -> list[Path]:
    table = [annotate.path] if isinstance(annotate, Table) else []
    if isinstance(videos, CorpusPlan):
        return [Path(root) for root in videos.roots.values()]
    return [*(videos.values() if isinstance(videos, Mapping) else videos), *table]


def _items(
    videos: Sequence[Path] | Mapping[str, Path] | CorpusPlan,
    annotate: Callable[[str], Annotation | None] | Table | None,
    pattern: SubjectPattern | None,
    every_row: bool,
    tell: Callable[[str], None],
) -> tuple[dict[str, Item], list[tuple[str, str]]]:
    """What is to become a video, by name, and what cannot be one, with the reason."""
    if isinstance(videos, CorpusPlan):
        if annotate is not None:
            raise DataError(f"{videos.name}: a corpus has tables of its own")
        items, left_out = items_of(videos, every_row=every_row, tell=tell)
    else:
        if annotate is None:
            raise DataError(f"{', '.join(map(str, videos))}: whose are they? `annotate` says")
        if not isinstance(videos, Mapping):
            items = items_in(videos, annotate, pattern=pattern, every_row=every_row, tell=tell)
        elif isinstance(annotate, Table) or pattern is not None:
            raise DataError("sources that have names take neither a table nor a subject pattern")
        else:
            items = items_named(videos, annotate)
        left_out = []
    if not items:
        named = videos.name if isinstance(videos, CorpusPlan) else ", ".join(map(str, videos))
        raise DataError(f"{named}: no video or folder of frames in it")
    return items, left_out


def _choose(
    items: Mapping[str, Item], licences: Sequence[str], only_annotated: bool
) -> tuple[dict[str, Item], list[tuple[str, str]]]:
    """The wanted items, and the others with the reason."""
    # so that a misspelt one is an error however the items are licensed
    allowed = frozenset(map(canonical, licences))
    reasons: dict[str | None, str | None] = {}
    kept, left_out = {}, []
    for name, item in items.items():
        licence = item.annotation.licence
        if licence not in reasons:
            reasons[licence] = _why_not(licence, allowed) if allowed else None
        reason = "has no row" if only_annotated and not item.annotated else reasons[licence]
        if reason is None:
            kept[name] = item
        else:
            left_out.append((name, reason))
    return kept, left_out


def _why_not(licence: str | None, allowed: frozenset[str]) -> str | None:
    """Why licences on a list are not enough; None if they are."""
    if licence is None:
        return "states no licence"
    try:
        return None if allows(allowed, licence) else f"is licensed {licence}"
    except DataError:
        return f"has a licence that is mapped to no SPDX expression, {licence!r}"


def _sources_with_near_duplicates(
    plan: CorpusPlan | None, near_duplicates: bool
) -> tuple[str | None, ...]:
    if plan is None:
        return (None,) if near_duplicates else ()
    return tuple(
        key for key, source in plan.sources.items() if source.near_duplicates or near_duplicates
    )


def _scenes(
    names: Sequence[str],
    annotations: Mapping[str, Annotation],
    parts: Path,
    side: int,
    progress: bool,
) -> dict[str, str]:
    """For the subject of each of some videos the first of those with whom it shares a picture."""
    subjects = list(dict.fromkeys(annotations[name].subject for name in names))
    places = {subject: i for i, subject in enumerate(subjects)}
    counts: list[int] = []

    def frames() -> Iterator[Image.Image]:
        for name in tqdm(names, "fingerprints", unit="video", disable=not progress):
            # a map, as a video may be long
            values = np.memmap(part_of(parts, name).with_suffix(".u8"), np.uint8, "r")
            own = values.reshape(-1, side, side, 3)
            counts.append(len(own))
            yield from map(Image.fromarray, own)

    prints = Prints.of(frames())
    owner = np.repeat(np.arange(len(names)), counts)
    group = np.array([places[annotations[name].subject] for name in names])[owner]
    pairs = find_pairs(prints, owner, group, correlation=SCENE, progress=progress)
    number = clusters(len(subjects), group[pairs.first], group[pairs.second]).tolist()
    first: dict[int, str] = {}
    for subject, scene in zip(subjects, number, strict=True):
        first.setdefault(scene, subject)
    return {subject: first[scene] for subject, scene in zip(subjects, number, strict=True)}


def _open(output: Path, overwrite: bool) -> FrameStore | None:
    try:
        return FrameStore(output)
    except UnreadableError as error:
        if not overwrite:
            raise UnreadableError(f"{error} with `overwrite=True`") from error
        return None


def _fingerprint(
    items: Mapping[str, Item],
    sampling: Sampling,
    annotations: Mapping[str, Annotation],
    holdout: float,
    seed: int,
    asked: Mapping[str, Any],
) -> str:
    """One digest of all that a store depends on, without reading any video."""
    rows = [[name, state_of(items[name].path), asdict(annotations[name])] for name in items]
    basis: list[Any] = [rows, sampling.settings(), holdout, seed]
    # as they were before there was anything to ask for
    return _digest([*basis, _without_roots(asked)] if asked else basis)


def _changed(store: FrameStore, items: Mapping[str, Item]) -> bool:
    """Whether a source has another content than it had, though it has its size and time."""
    made = (store.folder / DESCRIPTION).stat().st_mtime_ns
    known = store.description["sources_sha256"]
    for name, item in items.items():
        if name not in known or isinstance(item.path, Address):
            continue
        # the times of an archive's files can all be the same; of their last change nobody decides
        touched = max((entry[-1] for entry in history_of(item.path)), default=0)
        if touched > made and content_of(item.path) != known[name]:
            return True
    return False


def _without_roots(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A store is the same wherever its sources lay."""
    plain = dict(asked)
    if "corpus" in plain:
        plain["corpus"] = {key: of for key, of in plain["corpus"].items() if key != "roots"}
    return plain


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _refuse_skipped(skipped: Sequence[tuple[str, str]], strict: bool) -> None:
    if skipped and strict:
        raise UnreadableError(
            f"{len(skipped)} sources cannot be decoded and `strict=True` was given; the first: "
            f"{skipped[0][1]}"
        )


def _assemble(
    output: Path,
    items: Mapping[str, Item],
    annotations: dict[str, Annotation],
    held: set[str],
    description: dict[str, Any],
    left_out: Sequence[tuple[str, str]],
) -> None:
    """Join the parts into the store; the description is written last and makes it one."""
    parts = {name: part_of(output / PARTS, name) for name in items}
    abouts = {n: json.loads(p.with_suffix(".json").read_text()) for n, p in parts.items()}
    side = description["sampling"]["size"]
    total = sum(len(about["times"]) for about in abouts.values())
    rows: list[tuple[object, ...]] = []
    beams = {name: about["beam"] for name, about in abouts.items() if "beam" in about}
    of_corpus = "sources" in description
    columns = [*COLUMNS, *([ORIGIN] if of_corpus else []), *([BEAM] if beams else [])]
    for name in parts:
        note = annotations[name]
        more = [items[name].origin] if of_corpus else []
        more += [json.dumps(beams[name])] if beams else []
        split = "heldout" if note.subject in held else "train"
        for i, time in enumerate(abouts[name]["times"]):
            whose = (name, note.subject, note.label or "", split)
            rows.append((*whose, i, time, items[name].path, note.licence or "", *more))
    frames: dict[str, str] = {}
    # before the rest, as a folder without one is never taken for a store; one that was there stays
    # until all is decoded
    (output / DESCRIPTION).unlink(missing_ok=True)
    # a stream, not a memory map: on a full disk this is an error, and a map would end the process
    with written(output / FRAMES) as partial, partial.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (total, side, side, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        for name, part in parts.items():
            digest = hashlib.sha256()
            with part.with_suffix(".u8").open("rb") as decoded:
                while piece := decoded.read(1 << 20):
                    digest.update(piece)
                    stream.write(piece)
            frames[name] = digest.hexdigest()
            if abouts[name].get("frames", frames[name]) != frames[name]:
                part.with_suffix(".json").unlink()
                raise DataError(
                    f"{part.with_suffix('.u8')}: was changed since it was decoded from "
                    f"{items[name].path}; the same call decodes that again"
                )
    write_text(output / MANIFEST, manifest_of(rows, columns))
    skipped = [(s["source"], s["reason"]) for s in description["skipped"]]
    _write_reasons(output / SKIPPED, "source", skipped)
    # files that only some stores have: none of an earlier one may stay
    (output / LEFT_OUT).unlink(missing_ok=True)
    (output / CORPUS).unlink(missing_ok=True)
    if left_out:
        _write_reasons(output / LEFT_OUT, "item", left_out)
    if "corpus" in description:
        write_yaml(output / CORPUS, description["corpus"])
    contents = {name: about["sha256"] for name, about in abouts.items()}
    splits = {name: annotations[name].subject in held for name in parts}
    basis: list[Any] = [contents, {n: asdict(annotations[n]) for n in parts}, splits]
    basis.append(description["sampling"])
    if of_corpus:
        basis.append(_without_roots({"corpus": description["corpus"]}))
    description = description | {
        "frames": total,
        "videos": len(parts),
        "grey": all(about["grey"] for about in abouts.values()),
        "sources_sha256": contents,
        "frames_sha256": frames,
        **({"beams": beams} if beams else {}),
        "digest": _digest(basis),
    }
    write_text(output / DESCRIPTION, json.dumps(description, indent=1))
    clear(output / PARTS)


def _write_reasons(path: Path, what: str, reasons: Sequence[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow([what, "reason"])
    table.writerows([cell(name), cell(reason)] for name, reason in reasons)
    write_text(path, text.getvalue())
