"""Many sources through a network, by the workers of a cluster: what `running.run` does, by many."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..checks import whole
from ..cluster import DEADLY, Outcome, check_there, joined
from ..errors import DataError
from ..inference import Answer
from ..network import Network, load
from ..ultrasound.sources import Look
from .parts import Row
from .running import run

# Sources that are handed to a worker at once: a batch, where they are stills.
_TOGETHER = 32


def spread(
    network: Network,
    sources: Sequence[Path],
    look: Look,
    skipped: list[tuple[Path, str]],
    *,
    address: str,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool = True,
    done: int = 0,
    batch_size: int = 32,
    answer: Answer | None = None,
    fill: bool = False,
) -> Generator[Row, None, None]:
    """As `run`, but by the workers of a cluster, and in the order in which they are done.

    Each worker has a copy of the network, and reads files itself, from wherever they are: a disk
    that all share, or object storage.

    Args:
        network: see `run`, and so what is not said here.
        sources: files and folders, by names that hold on every machine.
        look: see there.
        skipped: see there.
        address: of the cluster, see `cluster.joined`.
        device: of the workers, see there.
        workers: how many; None for one a core, or a GPU.
        progress: see `run`.
        done: see there.
        batch_size: see there.
        answer: see there.
        fill: see there.

    Raises:
        DataError: as `run` and `cluster.joined`.
        MissingDependencyError: as `run` and `cluster.joined`.
    """
    batch_size = whole("batch_size", batch_size, 1)
    kind = None if device is None else str(device).partition(":")[0]
    if kind not in (None, "cpu", "cuda"):
        raise DataError(f"device {str(device)!r} cannot be used (workers have `cpu` or `cuda`)")
    if not sources:
        return
    unread: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=done + len(sources), initial=done, unit="source", disable=not progress)
        )
        cluster = stack.enter_context(joined(address, workers, kind))
        how = {"batch_size": batch_size, "answer": answer, "fill": fill, "workers": cluster.cores}
        make = partial(_Work, network, look, "cuda" if cluster.on_gpu else "cpu", how)
        outcomes = stack.enter_context(
            contextlib.closing(cluster.outcomes(make, sources, _TOGETHER))
        )
        for number, value, _ in outcomes:
            if isinstance(value, Row):
                yield value._replace(source=number)
            else:
                unread[number] = value or DEADLY
            bar.update()
    skipped += [(sources[number], unread[number]) for number in sorted(unread)]


class _Work:
    """What a worker does with sources."""

    def __init__(self, network: Network, look: Look, device: str, how: dict[str, Any]) -> None:
        torch.set_num_threads(how["workers"])
        self._network, self._look, self._how = load(network, device), look, how

    def __call__(self, jobs: Sequence[tuple[int, Path]]) -> Iterator[Outcome]:
        """In the order of the sources, as one by one: what comes twice has to be the same."""
        numbers, sources = zip(*jobs, strict=True)
        for source in sources:
            check_there(source)
        skipped: list[tuple[Path, str]] = []
        places = {source: place for place, source in enumerate(sources)}
        rows = run(self._network, sources, self._look, skipped, progress=False, **self._how)
        with contextlib.closing(rows):
            for row in rows:
                # known by now, as frames are decoded in order
                while skipped and places[skipped[0][0]] < row.source:
                    path, why = skipped.pop(0)
                    yield Outcome(numbers[places[path]], why)
                yield Outcome(numbers[row.source], row)
        for path, why in skipped:
            yield Outcome(numbers[places[path]], why)
