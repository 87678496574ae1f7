"""Many sources through a network: decoded ahead, in batches across them, a row of answers each."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from ..checks import whole
from ..cluster import DEADLY
from ..errors import MissingDependencyError, UsclError
from ..inference import Answer, batched, infer
from ..network import Network
from ..ultrasound.reading import DamageWarning
from ..ultrasound.sources import Look, Source, decode_ahead, ends_its_reader, path_of
from .parts import Parts, Row, mean_of


def run(
    network: Network,
    sources: Sequence[Source],
    look: Look,
    skipped: list[tuple[Path, str]],
    *,
    answer: Answer | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = True,
    done: int = 0,
    fill: bool = False,
    watch: Callable[[Source], AbstractContextManager[Any]] = nullcontext,
) -> Generator[Row, None, None]:
    """Put the frames of each source that can be read through a network, a row a source, in order.

    Batches run on across sources, and threads decode ahead. Close the iterator if it is not gone
    through to its end. A source that breaks off early gives the frames before that, and at the end
    a `DamageWarning`.

    Args:
        network: whose answers are wanted.
        sources: files and folders, and clips in memory.
        look: how they are looked at.
        skipped: is given those that cannot be read, and why.
        answer: what to take of the network; its embeddings if None.
        batch_size: frames at a time.
        workers: threads that decode; None for one a core.
        progress: show a bar.
        done: how many more sources there were, which are done, for the bar.
        fill: the last batch up to its size: in what order numbers are summed may depend on how many
            frames there are, and so the last bit of an answer on what else is asked for.
        watch: see `decode_ahead`.

    Raises:
        DataError: if an argument is out of range.
        MissingDependencyError: if a library that one of the files needs is not installed.
    """
    batch_size = whole("batch_size", batch_size, 1)
    workers = None if workers is None else whole("workers", workers, 1)
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
            watch,
        )
        total = done + len(sources)
        bar = tqdm(total=total, initial=done, unit="source", disable=not progress)
        with contextlib.closing(opened), bar:
            for number, frames_of in enumerate(opened):
                times: list[float] = []
                try:
                    for when, pixels in frames_of:
                        times.append(when)
                        yield pixels
                except MissingDependencyError:
                    # not the file's fault: every other would be skipped as well
                    raise
                except (UsclError, OSError) as error:
                    if times:
                        damaged.append(str(error))
                    else:
                        path = path_of(sources[number])
                        skipped.append((path, str(error).removeprefix(f"{path}: ")))
                if times:
                    decoded.append((number, times))
                bar.update()

    given = frames()
    batches = batched(given, batch_size)
    held: list[NDArray[np.float32]] = []
    with (
        contextlib.closing(given),
        contextlib.closing(
            infer(
                network.module,
                network.transform.normalise,
                _filled(batches, batch_size) if fill else batches,
                answer,
            )
        ) as answers,
    ):
        # once more at the end: the last source is known to be whole when there are no more frames
        for features in chain(answers, [None]):
            if features is not None:
                held.append(features)
            count = sum(map(len, held))
            if not decoded or len(decoded[0][1]) > count:
                continue
            joined = np.concatenate(held)
            while decoded and len(decoded[0][1]) <= len(joined):
                number, times = decoded.popleft()
                size = len(times)
                yield Row(number, joined[:size], np.array(times), np.ones(size, np.int64))
                joined = joined[size:]
            held = [joined]
    for message in damaged:
        warnings.warn(message, DamageWarning, stacklevel=3)


def _filled(
    batches: Iterator[NDArray[np.uint8]], size: int
) -> Generator[NDArray[np.uint8], None, None]:
    """Batches of one size: the last has its last frame more often."""
    for batch in batches:
        yield np.pad(batch, ((0, size - len(batch)), *[(0, 0)] * 3), "edge")


def complete(
    parts: Parts,
    network: Network,
    sources: Sequence[Path],
    look: Look,
    answer: Answer | None = None,
    *,
    mean: bool = False,
    batch_size: int,
    workers: int | None,
    progress: bool,
    fill: bool = False,
    through: Callable[..., Generator[Row, None, None]] | None = None,
) -> list[tuple[Path, str]]:
    """Put what parts lack of some sources through a network, as `run` does, and into them.

    Interrupted, what is done is on disk. What was being read when an earlier call was killed is
    read by a process of its own first, and left out if it ends that as well.

    Args:
        parts: of an earlier call, or none.
        network: see `run`, and so all that follow.
        sources: see there.
        look: see there.
        answer: see there.
        mean: whether a row is the mean over the frames of its source.
        batch_size: see there.
        workers: see there.
        progress: see there.
        fill: see there.
        through: what to call instead of `run`, whose rows may come in any order.

    Returns:
        Sources that cannot be read, and why.
    """
    left = parts.left(sources)
    deadly = [source for source in parts.were_read(left) if ends_its_reader(source, look)]
    skipped = [(source, DEADLY) for source in deadly]
    left = [source for source in left if source not in deadly]
    rows = (through or partial(run, watch=parts.reading))(
        network,
        left,
        look,
        skipped,
        answer=answer,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        done=len(sources) - len(left),
        fill=fill,
    )
    try:
        with contextlib.closing(rows):
            for row in rows:
                parts.add(left[row.source], mean_of(row) if mean else row)
    finally:
        parts.flush()
    return skipped


def digest(network: nn.Module) -> str:
    """SHA-256 of all that a network's answers depend on: its kind, and every tensor."""
    digest = hashlib.sha256(type(network).__name__.encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
