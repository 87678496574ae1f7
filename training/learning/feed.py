"""Frames on the device, by row of the store, wherever they live."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .execution import place_for, send
from .frames import FrameStore

Rows = npt.NDArray[np.int64]

#: Batches read ahead of the step that takes them.
_AHEAD = 2
#: Bytes copied to a device at a time.
_CHUNK = 1 << 28


class Feed:
    """Gives batches of frames in the order in which they are asked for.

    Frames on the device are indexed there. From host memory or disk a thread gathers the batches to
    come into a staging buffer, pinned for CUDA, and sends them ahead of their step.

    Args:
        store: the frames.
        device: where they go.
        place: `device`, `host` or `disk`; None for the first that has room.
    """

    def __init__(self, store: FrameStore, device: torch.device, place: str | None = None) -> None:
        self.store, self.device = store, device
        self.place = place_for(store.frames.nbytes, device, place)
        self._resident: Tensor | None = None
        if self.place != "disk":
            self._resident = _load(store, device if self.place == "device" else None)

    def __str__(self) -> str:
        where = {"device": f"in the memory of {self.device}", "host": "in host memory"}
        size = self.store.frames.nbytes / 1e9
        return f"{size:.2f} GB of frames {where.get(self.place, 'on disk')}"

    def take(self, rows: Rows) -> Tensor:
        """One batch: uint8 (N, H, W, 3) on the device."""
        if self._resident is None:
            return torch.from_numpy(self.store.read(rows)).to(self.device)
        index = send(torch.from_numpy(rows), self._resident.device)
        return self._resident.index_select(0, index).to(self.device)

    def stream(self, batches: Sequence[Rows]) -> Iterator[Tensor]:
        """Batches one after another, read ahead where that helps."""
        if self._resident is not None and self._resident.device.type == self.device.type:
            return map(self.take, batches)
        return self._read_ahead(batches)

    def _read_ahead(self, batches: Sequence[Rows]) -> Iterator[Tensor]:
        cuda = self.device.type == "cuda"
        stream: Any = torch.cuda.Stream(self.device) if cuda else None
        waiting: queue.Queue[tuple[Tensor, Any] | BaseException] = queue.Queue(_AHEAD)
        with _Reader(waiting) as reader:

            def gather() -> None:
                for rows in batches:
                    if reader.stopped.is_set():
                        return
                    staged = self._stage(rows)
                    if not cuda:
                        reader.put((staged, None))
                        continue
                    with torch.cuda.stream(stream):
                        sent = staged.to(self.device, non_blocking=True)
                        arrived = stream.record_event()
                    reader.put((sent, (arrived, staged)))

            reader.start(gather)
            for _ in batches:
                item = waiting.get()
                if isinstance(item, BaseException):
                    raise item
                frames, sending = item
                if sending is not None:
                    arrived, _ = sending
                    torch.cuda.current_stream(self.device).wait_event(arrived)
                    # the allocator must not reuse it for the side stream while a step reads it
                    frames.record_stream(torch.cuda.current_stream(self.device))
                yield frames

    def _stage(self, rows: Rows) -> Tensor:
        shape = (len(rows), *self.store.frames.shape[1:])
        pinned = self.device.type == "cuda"
        staged = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        if self._resident is None:
            self.store.read(rows, staged.numpy())
        else:
            torch.index_select(self._resident, 0, torch.from_numpy(rows), out=staged)
        return staged


class _Reader:
    """A thread that fills a queue and can be stopped, and whose errors reach who waits for it."""

    def __init__(self, waiting: queue.Queue[Any]) -> None:
        self.waiting, self.stopped = waiting, threading.Event()
        self.thread: threading.Thread | None = None

    def start(self, work: Any) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self.put(error)

        self.thread = threading.Thread(target=run, name="frames", daemon=True)
        self.thread.start()

    def put(self, item: Any) -> None:
        while not self.stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.waiting.put(item, timeout=0.1)
                return

    def __enter__(self) -> _Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopped.set()
        if self.thread is not None:
            self.thread.join()


def _load(store: FrameStore, device: torch.device | None) -> Tensor:
    """All frames in memory, copied piece by piece: they may fill half of it."""
    shape = store.frames.shape
    pinned = device is None and torch.cuda.is_available()
    frames = torch.empty(shape, dtype=torch.uint8, device=device, pin_memory=pinned)
    step = max(1, _CHUNK // int(np.prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = np.arange(start, min(start + step, shape[0]))
        frames[start : start + len(rows)] = torch.from_numpy(store.read(rows))
    return frames
