"""Embeddings of images, DICOM and videos: one vector a frame, a clip or a subject."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.annotations import Table
from ..data.inputs import Inputs, find, on_disk, report_clips, whose
from ..data.rows import own_subjects
from ..errors import DataError
from ..files import check_output, parts_of
from ..inference import batched, infer
from ..network import Network, Reference, load
from ..release import release
from ..ultrasound.reading import DamageWarning
from ..ultrasound.sources import Look, Source, files_of, path_of
from ..zoo.catalogue import folder_of
from .embeddings import BEGINS, Embeddings, average_subjects, check_suffix, concatenate, write
from .parts import NAMES, Parts, Row, mean_of
from .running import complete, digest, run
from .spreading import spread

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
#: source within its folder, None where it is not known; or whom each of the things given shows.
Subjects = str | Table | Callable[[str], str | None] | Sequence[str | None]


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
    model: Reference,
    images: Inputs,
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
    """Embed files and folders of images, DICOM and videos, or images and clips in memory.

    Batches run on across sources, so a thousand stills take no longer than a thousand frames, and
    threads decode ahead of the network. What cannot be read is skipped and named; a video that
    breaks off early gives the frames before that and a `DamageWarning`.

    Args:
        model: whatever `network.load` takes: a name, the folder of a model, a timm network, with
            or without a classifier. Its input size and normalisation are its own.
        images: a file or folder, which is searched as by `ultrasound.reading.find`; a Pillow image,
            an array or a tensor; or several of these, see `inputs.one_by_one`.
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
            `lambda name: name[:4]`; or a list, whom each of `images` shows. A source whose subject
            is None or unknown is its own.
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
    sources, owners, notes = _survey(images, pool, subjects, every_row)
    for note in notes:
        warnings.warn(note, DamageWarning, stacklevel=2)
    network = load(model, device)
    skipped: list[tuple[Path, str]] = []
    blocks = []
    rows = run(
        network,
        sources,
        network.look(rate, clean),
        skipped,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    with contextlib.closing(rows):
        for row in rows:
            blocks.append(_block(row if pool == "frame" else mean_of(row), sources, owners))
    if not blocks:
        raise _none_readable(sources, skipped)
    result = average_subjects(blocks) if pool == "subject" else concatenate(blocks)
    result.skipped.extend(skipped)
    return result


def embed_to(
    output: str | Path,
    model: Reference,
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
    ray: str | None = None,
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
        workers: see there; with `ray` those of the cluster, None for one a core, or a GPU.
        every_row: see there.
        clean: see there.
        ray: where to compute instead of here: `local` for worker processes on this machine, or the
            address of a cluster of Ray. An interrupted call may be continued either way.

    Raises:
        DataError: as `embed` and `Embeddings.save`; if the output is an input, `OUTPUT.parts` is
            another's, another process writes to the output, or there is no such cluster.
        UnreadableError: as `embed`.
        UnknownModelError: as `embed`.
        MissingDependencyError: as `embed` and `Embeddings.save`.
    """
    output = check_suffix(output)
    given, owners, notes = _survey(on_disk(paths), pool, subjects, every_row)
    sources = [path_of(source) for source in given]
    home = folder_of(model) if isinstance(model, (str, Path)) else None
    inputs = chain.from_iterable(map(files_of, sources))
    check_output(output, inputs, [home] if home else [], BEGINS[output.suffix.lower()])
    with parts_of(output, NAMES) as folder:
        # the workers have the devices
        network = load(model, device if ray is None else "cpu")
        look = network.look(rate, clean)
        settings = [digest(network.module), repr(network.transform), look, pool == "frame"]
        parts = Parts(folder, json.dumps([release(), *settings]))
        return _embed_by_parts(
            output,
            parts,
            network,
            sources,
            owners,
            notes,
            pool=pool,
            look=look,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            through=None if ray is None else partial(spread, address=ray, device=device),
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
    through: Callable[..., Generator[Row, None, None]] | None,
) -> Written:
    left = parts.left(sources)
    resumed = len(sources) - len(left)
    skipped = complete(
        parts,
        network,
        sources,
        look,
        mean=pool != "frame",
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        # a call that goes on, or is spread, has other batches
        fill=True,
        through=through,
    )
    there = [i for i, source in enumerate(sources) if parts.has(source)]
    if not there:
        raise _none_readable(sources, skipped)

    def blocks() -> Iterator[Embeddings]:
        return parts.blocks([sources[i] for i in there], whose and [whose[i] for i in there])

    rows, width = parts.size([sources[i] for i in there])
    if pool == "subject":
        result = average_subjects(blocks())
        write(output, lambda: iter([result]), skipped)
        rows = len(result)
    else:
        write(output, blocks, skipped)
    parts.remove()
    return Written(output, rows, width, len(there), resumed, skipped, notes)


def embed_frames(
    model: Reference,
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


def _survey(
    given: Inputs,
    pool: str,
    subjects: Subjects | None,
    every_row: bool,
) -> tuple[list[Source], list[str] | None, tuple[str, ...]]:
    """Find the sources, and whose they are: a wrong column should not cost an hour of work."""
    if pool not in ("frame", "clip", "subject"):
        raise DataError(f"pool should be 'frame', 'clip' or 'subject', not {pool!r}")
    if pool == "subject" and subjects is None:
        raise DataError(
            "pool 'subject' needs subjects: from a table, a list, or a pattern of names"
        )
    table = subjects if isinstance(subjects, Table) else None
    gathered = find(given, table, every_row=every_row)
    notes = [*gathered.notes, *report_clips(given, gathered.sources)]
    if not gathered.sources:
        raise DataError("there is nothing to embed: name a file or folder, or give an image")
    if subjects is None:
        return gathered.sources, None, tuple(notes)
    if table is not None:
        unknown = [name.name for name in gathered.names if name.path not in gathered.rows]
        if unknown:
            notes.append(
                f"{len(unknown)} files have no row in {table.path}, each its own subject; "
                f"the first: {unknown[0]}"
            )
    return gathered.sources, own_subjects(gathered.names, whose(subjects, gathered)), tuple(notes)


def _none_readable(sources: Sequence[Source], skipped: list[tuple[Path, str]]) -> DataError:
    first = f"{skipped[0][0]}: {skipped[0][1]}"
    return DataError(f"none of {len(sources)} sources can be read; {first}")


def _block(row: Row, sources: Sequence[Source], whose: Sequence[str] | None) -> Embeddings:
    count = len(row.features)
    return Embeddings(
        row.features,
        [path_of(sources[row.source])] * count,
        np.arange(count, dtype=np.int64),
        row.times,
        row.counts,
        subjects=None if whose is None else [whose[row.source]] * count,
    )
