"""A training step as a CUDA graph: launched as one, whatever the number of its kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .steps import Sample

#: Steps done one kernel at a time before a step of that size is captured: they compile, choose
#: algorithms and make the optimiser's state, none of which a graph may do.
_BEFORE = 3


@dataclass
class _Size:
    """What is known of steps of one size: how many went by, and their graph once captured."""

    seen: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    sample: Sample | None = None


class Replay:
    """Does steps, and from the fourth of each batch and image size on replays them.

    A graph reads and writes the same memory each time, so every sample is copied to where the
    captured one lay. The steps before the capture are steps of the run like any other: capturing
    does nothing, replaying does.

    Args:
        update: does one step, without ever waiting for the device.
    """

    def __init__(self, update: Callable[[Sample, int], None]) -> None:
        self.update = update
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, sample: Sample, side: int) -> None:
        """Do the step of a sample, with views of so many pixels a side."""
        size = self._sizes.setdefault((len(sample.lam), side), _Size())
        size.seen += 1
        if size.seen <= _BEFORE:
            # capture wants what it warms up on to have run beside the main stream
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self.update(sample, side)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if size.graph is None or size.sample is None:
            size.sample = copy.deepcopy(sample)
            size.graph = torch.cuda.CUDAGraph()
            # of this thread alone: the one that reads frames ahead pins memory meanwhile, which a
            # capture of all threads does not survive
            with torch.cuda.graph(
                size.graph, self._pool, self._stream, capture_error_mode="thread_local"
            ):
                self.update(size.sample, side)
        for kept, new in zip(size.sample.tensors(), sample.tensors(), strict=True):
            kept.copy_(new)
        size.graph.replay()
