"""Raw videos to a FrameStore: decode once, keep a few frames a second, remember whose they are."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError, UsclError
from uscl_zoo.records import write_text
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.beam import opencv
from uscl_zoo.ultrasound.cleaning import Cleaner
from uscl_zoo.ultrasound.clip import Clip
from uscl_zoo.ultrasound.sources import files_of, state_of

from .frames import BEAM, COLUMNS, DESCRIPTION, FRAMES, MANIFEST, FrameStore, manifest_of
from .labels import Annotation, hold_out, unify

PARTS, SKIPPED = "parts", "skipped.csv"


@dataclass(frozen=True)
class Sampling:
    """How frames are taken from a video.

    Attributes:
        rate: frames a second. A folder of frames is taken whole: it has been sampled already.
        size: height and width in pixels; the aspect ratio is not kept (METHOD, step 2).
        clean: crop each video to its beam first, blank the rest and take out what is drawn inside.
    """

    rate: float = 3.0
    size: int = 224
    clean: bool = False

    def settings(self) -> dict[str, Any]:
        """As stores have it; `clean` only where it was asked for, as older stores lack it."""
        settings = asdict(self)
        if not self.clean:
            del settings["clean"]
        return settings


@dataclass(frozen=True)
class Report:
    """What `prepare` did.

    Attributes:
        store: the finished store.
        skipped: sources that could not be decoded, with the reason.
        unannotated: videos without a row in the table, kept as unlabelled.
        reused: how many videos an earlier, interrupted call had already decoded.
    """

    store: FrameStore
    skipped: tuple[tuple[str, str], ...]
    unannotated: tuple[str, ...]
    reused: int

    @property
    def unclean(self) -> tuple[str, ...] | None:
        """Videos whose beam could not be told, kept as they are; None if not asked to clean."""
        beams: dict[str, Any] | None = self.store.description.get("beams")
        if beams is None:
            return None
        return tuple(name for name, beam in beams.items() if not beam["cleaned"])


def prepare(
    videos: Sequence[Path] | Mapping[str, Path],
    output: Path,
    annotate: Callable[[str], Annotation | None],
    *,
    sampling: Sampling | None = None,
    classes: Sequence[str] | None = None,
    unlabelled: Sequence[str] = (),
    holdout: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    origin: dict[str, str | None] | None = None,
    progress: bool = True,
) -> Report:
    """Decode videos into a FrameStore.

    Each video becomes a part of its own, moved into place when it is whole, so an interrupted call
    continues where it was and memory holds one frame a worker, however many videos there are.

    Args:
        videos: files and folders, which are searched; or sources by the names to give them.
        output: folder of the store.
        annotate: subject, label and licence of a video by its name; None where it has no row.
        sampling: rate and size; 3 frames a second of 224x224 by default.
        classes: the declared classes; None declares every label found.
        unlabelled: labels to drop.
        holdout: share of the subjects of each class to hold out.
        seed: of the choice of held-out subjects.
        strict: fail if any source cannot be decoded.
        overwrite: replace a finished store.
        workers: processes; None for one a core.
        origin: name, url and citation of the collection, for the card.
        progress: show a bar.

    Returns:
        The store and what was left out of it.

    Raises:
        DataError: if nothing is found, a label is undeclared, or a store is in the way.
        UnreadableError: if nothing can be decoded, or something cannot and `strict`.
    """
    sampling = sampling or Sampling()
    sources = dict(videos) if isinstance(videos, Mapping) else _name_sources(videos)
    if not sources:
        raise DataError(f"{', '.join(map(str, videos))}: no video or folder of frames in it")

    # labels first: a typo in a column should not cost an hour of decoding
    found = {name: annotate(name) for name in sources}
    unannotated = tuple(name for name, row in found.items() if row is None)
    annotations = unify(
        {name: row or Annotation(subject=name) for name, row in found.items()}, classes, unlabelled
    )

    fingerprint = _fingerprint(sources, sampling, annotations, holdout, seed)

    if (output / DESCRIPTION).exists():
        existing = _open(output, overwrite)
        if existing is not None and existing.description.get("fingerprint") == fingerprint:
            skipped = [(s["source"], s["reason"]) for s in existing.description["skipped"]]
            _refuse_skipped(skipped, strict)
            return Report(existing, tuple(skipped), unannotated, len(existing.videos))
        if not overwrite:
            raise DataError(
                f"{output}: holds a store of other videos, labels or settings; "
                "choose another folder or add --overwrite"
            )
        # the description goes first: a folder without one is never taken for a store
        (output / DESCRIPTION).unlink()

    (output / PARTS).mkdir(parents=True, exist_ok=True)
    skipped, reused = _decode_all(sources, output / PARTS, sampling, workers, progress)
    _refuse_skipped(skipped, strict)
    unreadable = {source for source, _ in skipped}
    kept = [name for name, source in sources.items() if str(source) not in unreadable]
    if not kept:
        raise UnreadableError(
            f"none of {len(sources)} sources can be decoded; the first: {skipped[0][1]}"
        )
    held = hold_out({name: annotations[name] for name in kept}, holdout, seed)
    description = {
        "sampling": sampling.settings(),
        "origin": origin or {},
        "holdout": holdout,
        "seed": seed,
        "held_out_subjects": sorted(held),
        "fingerprint": fingerprint,
        "skipped": [{"source": source, "reason": reason} for source, reason in skipped],
    }
    _assemble(output, {name: sources[name] for name in kept}, annotations, held, description)
    return Report(FrameStore(output), tuple(skipped), unannotated, reused)


def _open(output: Path, overwrite: bool) -> FrameStore | None:
    try:
        return FrameStore(output)
    except UnreadableError as error:
        if not overwrite:
            raise UnreadableError(f"{error} with --overwrite") from error
        return None


def _name_sources(videos: Sequence[Path]) -> dict[str, Path]:
    """Name every source by its path within the folder it was found in."""
    sources: dict[str, Path] = {}
    # `a` and `a/b` may both be named: a video in both is still one video
    seen: set[Path] = set()
    for root in (Path(video).expanduser() for video in videos):
        for source in reading.find([root]):
            if source.resolve() in seen:
                continue
            seen.add(source.resolve())
            # `.` has no name of its own
            own = source.name or source.resolve().name
            name = own if source == root else source.relative_to(root).as_posix()
            if name in sources:
                raise DataError(
                    f"{source} and {sources[name]} would both be named {name!r}; "
                    "prepare their common folder instead"
                )
            sources[name] = source
    return sources


def _fingerprint(
    sources: dict[str, Path],
    sampling: Sampling,
    annotations: dict[str, Annotation],
    holdout: float,
    seed: int,
) -> str:
    """One digest of all that a store depends on, without reading any video."""
    rows = [[name, state_of(sources[name]), asdict(annotations[name])] for name in sources]
    return _digest([rows, sampling.settings(), holdout, seed])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _refuse_skipped(skipped: Sequence[tuple[str, str]], strict: bool) -> None:
    if skipped and strict:
        raise UnreadableError(
            f"{len(skipped)} sources cannot be decoded and --strict was given; the first: "
            f"{skipped[0][1]}"
        )


def _decode_all(
    sources: dict[str, Path],
    parts: Path,
    sampling: Sampling,
    workers: int | None,
    progress: bool,
) -> tuple[list[tuple[str, str]], int]:
    """Decode what has no part yet; returns what could not be, and how many parts there were."""
    todo = [s for n, s in sources.items() if not _is_done(_part(parts, n), s, sampling)]
    # the largest first: begun last, a long one would leave the other workers idle
    todo.sort(key=lambda source: -sum(size for _, size, _ in state_of(source)))
    names = {source: name for name, source in sources.items()}
    reused = len(sources) - len(todo)
    workers = min(workers or os.cpu_count() or 1, max(len(todo), 1))
    skipped: list[tuple[str, str]] = []
    bar = tqdm(total=len(sources), initial=reused, unit="video", disable=not progress)
    with bar:
        for source, error in _outcomes(todo, names, parts, sampling, workers):
            if error is not None:
                skipped.append((str(source), error))
                bar.write(f"skipped {error}")
            bar.update()
    return sorted(skipped), reused


def _outcomes(
    todo: Sequence[Path], names: dict[Path, str], parts: Path, sampling: Sampling, workers: int
) -> Iterator[tuple[Path, str | None]]:
    if workers == 1:
        for source in todo:
            yield source, _decode(source, _part(parts, names[source]), sampling)
        return
    # Any other start imports torch anew, which takes as long as decoding fifty videos. A fork would
    # inherit the locks of torch's threads, but decoding calls nothing of torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        futures: dict[Future[str | None], Path] = {
            pool.submit(_decode, source, _part(parts, names[source]), sampling): source
            for source in todo
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this worker once the process that feeds it is killed: it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _part(parts: Path, name: str) -> Path:
    """Where the part of a video lives; its name is hashed because it may hold folders."""
    return parts / hashlib.sha256(name.encode()).hexdigest()[:32]


def _is_done(part: Path, source: Path, sampling: Sampling) -> bool:
    try:
        about = json.loads(part.with_suffix(".json").read_text())
        size = part.with_suffix(".u8").stat().st_size
    except (OSError, ValueError):
        return False
    return bool(
        about["state"] == state_of(source)
        and about["sampling"] == sampling.settings()
        and size == len(about["times"]) * sampling.size**2 * 3
    )


def _decode(source: Path, part: Path, sampling: Sampling) -> str | None:
    """Decode one source into a part; returns the reason if it cannot be decoded.

    The description is written after the frames, so that a part with one is whole.
    """
    times: list[float] = []
    partial = part.with_suffix(".u8.partial")
    try:
        state = state_of(source)
        cleaner = _cleaner(source, sampling)
        with partial.open("wb") as stream:
            for time, frame in reading.sample(source, rate=sampling.rate, grey=True):
                if cleaner is not None:
                    frame, _ = cleaner(frame)
                side = (sampling.size, sampling.size)
                small = frame.resize(side, Image.Resampling.BILINEAR)
                stream.write(small.convert("RGB").tobytes())
                times.append(round(time, 6))
        if not times:
            raise UnreadableError(f"{source}: holds no frame")
        about = {
            "state": state,
            "sampling": sampling.settings(),
            "times": times,
            "sha256": content_of(source),
        }
        if cleaner is not None:
            about["beam"] = _record(cleaner)
    except MissingDependencyError:
        # not the video's fault: skipping would leave every video out for want of a library
        raise
    except (UsclError, OSError) as error:
        partial.unlink(missing_ok=True)
        return str(error)
    partial.replace(part.with_suffix(".u8"))
    write_text(part.with_suffix(".json"), json.dumps(about))
    return None


def _cleaner(source: Path, sampling: Sampling) -> Cleaner | None:
    """Looks at frames all over a source, in a pass of its own; None if not asked to."""
    if not sampling.clean:
        return None
    opencv().setNumThreads(1)  # other processes have the other cores

    def decode() -> Iterator[reading.Frame]:
        # the second pass tells of damage
        return reading.sample(source, rate=sampling.rate, on_damage=lambda _: None)

    return Cleaner.of(Clip(decode, source, reading.read(source).facts))


def _record(cleaner: Cleaner) -> dict[str, Any]:
    beam = cleaner.beam
    return {
        "kind": beam.kind,
        "box": beam.box,
        "apex": beam.apex,
        "angles": beam.angles,
        "radii": beam.radii,
        "confidence": beam.confidence,
        "colour": cleaner.colour,
        "cleaned": cleaner.sure,
    }


def content_of(source: Path) -> str:
    """SHA-256 of a file, or of the files of a folder in order."""
    digest = hashlib.sha256()
    for file in files_of(source):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _assemble(
    output: Path,
    sources: dict[str, Path],
    annotations: dict[str, Annotation],
    held: set[str],
    description: dict[str, Any],
) -> None:
    """Join the parts into the store; the description is written last and makes it one."""
    parts = {name: _part(output / PARTS, name) for name in sources}
    abouts = {n: json.loads(p.with_suffix(".json").read_text()) for n, p in parts.items()}
    side = description["sampling"]["size"]
    total = sum(len(about["times"]) for about in abouts.values())
    rows: list[tuple[object, ...]] = []
    beams = {name: about["beam"] for name, about in abouts.items() if "beam" in about}
    for name in parts:
        note = annotations[name]
        geometry = [json.dumps(beams[name])] if beams else []
        split = "heldout" if note.subject in held else "train"
        for i, time in enumerate(abouts[name]["times"]):
            whose = (name, note.subject, note.label or "", split)
            rows.append((*whose, i, time, sources[name], note.licence or "", *geometry))
    partial = output / f"{FRAMES}.partial"
    # a stream, not a memory map: on a full disk this is an error, and a map would end the process
    with partial.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (total, side, side, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts.values():
            with part.with_suffix(".u8").open("rb") as decoded:
                shutil.copyfileobj(decoded, stream, 1 << 20)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(output / FRAMES)
    write_text(output / MANIFEST, manifest_of(rows, [*COLUMNS, BEAM] if beams else COLUMNS))
    skipped = io.StringIO(newline="")
    reasons = csv.writer(skipped, lineterminator="\n")
    reasons.writerow(["source", "reason"])
    reasons.writerows([s["source"], s["reason"]] for s in description["skipped"])
    write_text(output / SKIPPED, skipped.getvalue())
    contents = {name: about["sha256"] for name, about in abouts.items()}
    splits = {name: annotations[name].subject in held for name in parts}
    description = description | {
        "frames": total,
        "videos": len(parts),
        "sources_sha256": contents,
        **({"beams": beams} if beams else {}),
        "digest": _digest(
            [contents, {n: asdict(annotations[n]) for n in parts}, splits, description["sampling"]]
        ),
    }
    write_text(output / DESCRIPTION, json.dumps(description, indent=1))
    shutil.rmtree(output / PARTS)
