"""Embeddings of images, DICOM and videos: one vector a frame, a clip or a subject."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from .annotations import SubjectPattern, Table
from .checkpoint import folder_of
from .embeddings import BEGINS, Embeddings, average_subjects, check_suffix, concatenate, write
from .errors import DataError, MissingDependencyError, UsclError
from .files import check_output, parts_of
from .inference import batched, infer
from .network import Network, load
from .parts import NAMES, Parts, Row, mean_of
from .release import release
from .rows import own_subjects, survey
from .ultrasound.reading import DamageWarning
from .ultrasound.sources import Look, Named, decode_ahead, files_of, state_of

__all__ = [
    "Embeddings",
    "Written",
    "check_suffix",
    "digest",
    "embed",
    "embed_frames",
    "embed_to",
]

Pool = Literal["frame", "clip", "subject"]
#: A pattern, see `annotations.SubjectPattern`; a table; or what names a subject by the path of a
#: source within its folder, None where it is not known.
Subjects = str | Table | Callable[[str], str | None]


@dataclass(frozen=True)
class Written:
    """What `embed_to` wrote.

    Attributes:
        path: of the file.
        rows: number of embeddings.
        width: numbers in each.
        sources: how many files and folders they are of.
        resumed: how many of these an earlier, interrupted call had done.
        skipped: sources that could not be read, and why.
        notes: what of a table was bent or lost, in words.
    """

    path: Path
    rows: int
    width: int
    sources: int
    resumed: int
    skipped: list[tuple[Path, str]]
    notes: tuple[str, ...] = ()


def embed(
    model: nn.Module | str | Path,
    paths: str | Path | Iterable[str | Path],
    pool: Pool = "frame",
    rate: float | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
    *,
    subjects: Subjects | None = None,
    workers: int | None = None,
    every_row: bool = False,
    clean: bool | None = None,
) -> Embeddings:
    """Embed images, DICOM files, videos and folders of them.

    Batches run on across sources, so a thousand stills take no longer than a thousand frames, and
    threads decode ahead of the network. What cannot be read is skipped and named; a video that
    breaks off early gives the frames before that and a `DamageWarning`.

    Args:
        model: whatever `network.load` takes: a name, the folder of a model, a timm network, with
            or without a classifier. Its input size and normalisation are its own.
        paths: files and folders, as for `ultrasound.reading.find`.
        pool: `frame` for one row a sampled frame, `clip` for the mean over those of a source,
            `subject` for the mean over the clips of a subject.
        rate: frames a second to sample from videos; None for those of the network, which are 3
            where it does not say.
        batch_size: frames at a time.
        device: to compute on. If None, a network stays where it is, and one named goes to a GPU
            where there is one. A network given is left on the device.
        progress: show a bar.
        subjects: a pattern, see `annotations.SubjectPattern`; a table of `annotations.read_table`;
            or what names the subject of a source by its path within the folder given, e.g.
            `lambda name: name[:4]`. A source whose subject is None or unknown is its own.
        workers: threads that decode; None for one a core.
        every_row: whether a row of the table without a file is an error.
        clean: whether frames are cut to the beam, and cleaned of what is drawn in it; as the
            network was made if None.

    Raises:
        DataError: if nothing can be read, or an argument is out of range.
        UnreadableError: if a path does not exist.
        UnknownModelError: if no model is of that name.
        MissingDependencyError: if there are videos or DICOM files whose library is not installed.
    """
    sources, whose, notes = _survey(paths, pool, subjects, every_row)
    for note in notes:
        warnings.warn(note, DamageWarning, stacklevel=2)
    network = load(model, device)
    skipped: list[tuple[Path, str]] = []
    blocks = []
    run = _rows(network, sources, network.look(rate, clean), batch_size, workers, progress, skipped)
    with contextlib.closing(run):
        for row in run:
            blocks.append(_block(row if pool == "frame" else mean_of(row), sources, whose))
    if not blocks:
        raise _none_readable(sources, skipped)
    result = average_subjects(blocks) if pool == "subject" else concatenate(blocks)
    result.skipped.extend(skipped)
    return result


def embed_to(
    output: str | Path,
    model: nn.Module | str | Path,
    paths: str | Path | Iterable[str | Path],
    pool: Pool = "frame",
    rate: float | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
    *,
    subjects: Subjects | None = None,
    workers: int | None = None,
    every_row: bool = False,
    clean: bool | None = None,
) -> Written:
    """Embed as `embed` does, into a file; a call that was interrupted continues where it was.

    Beside the output grows a folder, `OUTPUT.parts`, of what is done; it goes when the output is
    written. Twice a minute something is added to it, so no more than that is lost. A part counts
    only for the same network, sampling and release, and for files that have not changed since.
    Memory does not grow with the number of files. One process at a time may write to an output.

    Args:
        output: as for `Embeddings.save`.
        model: as for `embed`, and so are all that follow.
        paths: see there.
        pool: see there.
        rate: see there.
        batch_size: see there.
        device: see there.
        progress: see there.
        subjects: see there.
        workers: see there.
        every_row: see there.
        clean: see there.

    Raises:
        DataError: as `embed` and `Embeddings.save`; if the output is an input, `OUTPUT.parts` is
            another's, or another process writes to the output.
        UnreadableError: as `embed`.
        UnknownModelError: as `embed`.
        MissingDependencyError: as `embed` and `Embeddings.save`.
    """
    output = check_suffix(output)
    sources, whose, notes = _survey(paths, pool, subjects, every_row)
    home = None if isinstance(model, nn.Module) else folder_of(model)
    inputs = chain.from_iterable(map(files_of, sources))
    check_output(output, inputs, [home] if home else [], BEGINS[output.suffix.lower()])
    with parts_of(output, NAMES) as folder:
        network = load(model, device)
        look = network.look(rate, clean)
        told = [digest(network.module), repr(network.transform), look, pool == "frame"]
        parts = Parts(folder, json.dumps([release(), *told]))
        return _embed_by_parts(
            output,
            parts,
            network,
            sources,
            whose,
            notes,
            pool=pool,
            look=look,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )


def _embed_by_parts(
    output: Path,
    parts: Parts,
    network: Network,
    sources: Sequence[Path],
    whose: Sequence[str] | None,
    notes: tuple[str, ...],
    *,
    pool: Pool,
    look: Look,
    batch_size: int,
    workers: int | None,
    progress: bool,
) -> Written:
    states = [json.dumps(state_of(source)) for source in sources]
    todo = [i for i, source in enumerate(sources) if not parts.has(source, states[i])]
    resumed = len(sources) - len(todo)
    skipped: list[tuple[Path, str]] = []
    left = [sources[i] for i in todo]
    run = _rows(network, left, look, batch_size, workers, progress, skipped, resumed)
    try:
        with contextlib.closing(run):
            for row in run:
                place = todo[row.source]
                parts.add(sources[place], states[place], row if pool == "frame" else mean_of(row))
    finally:
        parts.flush()
    found = [i for i, source in enumerate(sources) if parts.has(source, states[i])]
    if not found:
        raise _none_readable(sources, skipped)

    def blocks() -> Iterator[Embeddings]:
        return parts.blocks([sources[i] for i in found], whose and [whose[i] for i in found])

    rows, width = parts.size([sources[i] for i in found])
    if pool == "subject":
        result = average_subjects(blocks())
        write(output, lambda: iter([result]), skipped)
        rows = len(result)
    else:
        write(output, blocks, skipped)
    parts.remove()
    return Written(output, rows, width, len(found), resumed, skipped, notes)


def embed_frames(
    model: nn.Module | str | Path,
    frames: Iterable[Image.Image | NDArray[Any]],
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> NDArray[np.float32]:
    """Embed frames that are in memory, or that an iterator gives.

    Args:
        model: as for `embed`.
        frames: anything that `ultrasound.rgb.to_frame` takes, e.g. uint8 (N, H, W, 3).
        batch_size: as for `embed`.
        device: as for `embed`.

    Returns:
        float32 (N, D).

    Raises:
        DataError: if there are no frames, or one is not an image.
    """
    network = load(model, device)
    resized = (network.transform.resize(frame) for frame in frames)
    features = list(
        infer(network.module, network.transform.normalise, batched(resized, batch_size))
    )
    if not features:
        raise DataError("there are no frames to embed")
    return np.concatenate(features)


def digest(network: nn.Module) -> str:
    """SHA-256 of all that a network's answers depend on: its kind, and every tensor."""
    found = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _survey(
    paths: str | Path | Iterable[str | Path],
    pool: str,
    subjects: Subjects | None,
    every_row: bool,
) -> tuple[list[Path], list[str] | None, tuple[str, ...]]:
    """Find the sources, and whose they are: a wrong column should not cost an hour of work."""
    if pool not in ("frame", "clip", "subject"):
        raise DataError(f"pool should be 'frame', 'clip' or 'subject', not {pool!r}")
    if pool == "subject" and subjects is None:
        raise DataError("pool 'subject' needs subjects: from a table, or a pattern of names")
    table = subjects if isinstance(subjects, Table) else None
    pattern = SubjectPattern(subjects) if isinstance(subjects, str) else None
    found = survey(paths, table, every_row=every_row)
    sources, notes = found.sources, list(found.notes)
    if not sources:
        raise DataError("there is nothing to embed: name a file or folder")
    if subjects is None:
        return [source.path for source in sources], None, ()

    def whose(source: Named) -> str | None:
        if pattern is not None:
            return pattern(source.within)
        if callable(subjects):
            return subjects(source.name)
        row = found.rows.get(source.path)
        return row.subject if row else None

    if table is not None:
        unknown = [source.name for source in sources if source.path not in found.rows]
        if unknown:
            notes.append(
                f"{len(unknown)} files have no row in {table.path}, each its own subject; "
                f"the first: {unknown[0]}"
            )
    return [source.path for source in sources], own_subjects(sources, whose), tuple(notes)


def _none_readable(sources: Sequence[Path], skipped: list[tuple[Path, str]]) -> DataError:
    first = f"{skipped[0][0]}: {skipped[0][1]}"
    return DataError(f"none of {len(sources)} sources can be read; {first}")


def _block(row: Row, sources: Sequence[Path], whose: Sequence[str] | None) -> Embeddings:
    count = len(row.features)
    return Embeddings(
        row.features,
        [sources[row.source]] * count,
        np.arange(count, dtype=np.int64),
        row.times,
        row.counts,
        subjects=None if whose is None else [whose[row.source]] * count,
    )


def _rows(
    network: Network,
    sources: Sequence[Path],
    look: Look,
    batch_size: int,
    workers: int | None,
    progress: bool,
    skipped: list[tuple[Path, str]],
    done: int = 0,
) -> Generator[Row, None, None]:
    """Embed the frames of each source that can be read, in order; the others go to `skipped`."""
    if batch_size < 1:
        raise DataError(f"batch_size should be at least 1, not {batch_size}")
    if workers is not None and workers < 1:
        raise DataError(f"workers should be at least 1, not {workers}")
    damaged: list[str] = []
    # decoded to the end, and waiting for the network: number and times
    decoded: deque[tuple[int, list[float]]] = deque()

    def frames() -> Generator[NDArray[np.uint8], None, None]:
        opened = decode_ahead(
            sources,
            look,
            network.transform.resize,
            workers,
            damaged.append,
        )
        total = done + len(sources)
        bar = tqdm(total=total, initial=done, unit="source", disable=not progress)
        with contextlib.closing(opened), bar:
            for number, run in enumerate(opened):
                times: list[float] = []
                try:
                    for when, pixels in run:
                        times.append(when)
                        yield pixels
                except MissingDependencyError:
                    # not the file's fault: every other would be skipped as well
                    raise
                except (UsclError, OSError) as error:
                    if times:
                        damaged.append(str(error))
                    else:
                        reason = str(error).removeprefix(f"{sources[number]}: ")
                        skipped.append((sources[number], reason))
                if times:
                    decoded.append((number, times))
                bar.update()

    given = frames()
    held: list[NDArray[np.float32]] = []
    with (
        contextlib.closing(given),
        contextlib.closing(
            infer(network.module, network.transform.normalise, batched(given, batch_size))
        ) as run,
    ):
        # once more at the end: the last source is known to be whole when there are no more frames
        for features in chain(run, [None]):
            if features is not None:
                held.append(features)
            count = sum(map(len, held))
            if not decoded or len(decoded[0][1]) > count:
                continue
            whole = np.concatenate(held)
            while decoded and len(decoded[0][1]) <= len(whole):
                number, times = decoded.popleft()
                size = len(times)
                yield Row(number, whole[:size], np.array(times), np.ones(size, np.int64))
                whole = whole[size:]
            held = [whole]
    for message in damaged:
        warnings.warn(message, DamageWarning, stacklevel=3)
