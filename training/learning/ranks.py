"""Processes that train together, as `torchrun` starts them: who they are, what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from uscl_zoo.errors import DataError


@dataclass(frozen=True)
class Ranks:
    """The processes that train together.

    Attributes:
        rank: this one, from 0; rank 0 speaks and writes for all.
        world: how many there are.
        local: this one among those of its machine, which picks its GPU.
        control: a group for what hosts tell each other, apart from the gradients; None if alone.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    control: Any = None

    def share(self, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This rank's videos of a batch; the shares of all differ by one at most."""
        return np.array_split(batch, self.world)[self.rank]

    def counts(self, own: int) -> list[int]:
        """How many videos of a batch every rank has, given how many this one has."""
        if self.world == 1:
            return [own]
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([own]), group=self.control)
        return [int(count) for count in counts]

    def place(self, own: int) -> tuple[int, int]:
        """Videos of the whole batch, and how many of them lie with the ranks before this one."""
        counts = self.counts(own)
        return sum(counts), sum(counts[: self.rank])

    def gather(self, z: Tensor) -> Tensor:
        """Stack (n, D) of every rank; the gradient of each row is summed over ranks."""
        if self.world == 1:
            return z
        gathered: Tensor = _Gather.apply(z, self)
        return gathered

    def total(self, count: Tensor) -> Tensor:
        """A number summed over ranks, without a gradient."""
        if self.world == 1:
            return count
        summed = count.detach().clone()
        dist.all_reduce(summed)
        return summed

    def any(self, asked: bool) -> bool:
        """Whether any rank says so."""
        if self.world == 1:
            return asked
        flag = torch.tensor([float(asked)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flag.item())

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.world > 1:
            dist.barrier(group=self.control)


ALONE = Ranks()


@contextmanager
def join(device: str | None) -> Iterator[tuple[Ranks, str | None]]:
    """Meet the other ranks, if `torchrun` has started any.

    Args:
        device: as asked for; `cuda` stands for the GPU that is this rank's.

    Yields:
        The ranks, and the device of this one.

    Raises:
        DataError: if one GPU is named for several ranks.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE, device
        return
    if device is not None and ":" in device:
        raise DataError(
            f"`device={device}`: {world} ranks cannot share it; give cuda or cpu, and each rank "
            "takes the GPU of its number"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() if device is None else device == "cuda"
    if cuda:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        control = dist.new_group(backend="gloo")
        ranks = Ranks(dist.get_rank(), world, local, control)
        yield ranks, f"cuda:{local}" if cuda else "cpu"
        # gloo aborts a rank whose peer has left while its threads are at work
        ranks.wait()
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All-gather of unequal shares whose backward sums over ranks.

    Every rank's loss reads every rank's rows, so the gradient of a row is the sum of what all ranks
    have for it; a gather that hands back only this rank's own part gives a gradient of another
    direction and size.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, ranks: Ranks) -> Tensor:
        counts = ranks.counts(len(z))
        ctx.before, ctx.own = sum(counts[: ranks.rank]), len(z)
        padded = z.new_zeros(max(counts), z.shape[1])
        padded[: len(z)] = z
        shares = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(shares, padded)
        return torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.before : ctx.before + ctx.own], None


class _Sum(torch.autograd.Function):
    """Sum over ranks; so is the gradient, since every rank's loss reads the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch of all ranks on a CPU, which torch's own refuses."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) by the statistics of every rank's images."""
        if not self.training or not dist.is_initialized():
            normalised: Tensor = super().forward(input)
            return normalised
        # sums of float32 depend on how the ranks cut the batch; of float64 hardly
        x = input.double()
        own = x.new_full((1,), x.numel() // x.shape[1])
        sums = torch.cat([x.sum((0, 2, 3)), own])
        *first, count = _Sum.apply(sums).split([x.shape[1], 1])
        mean = first[0] / count
        centred = x - mean[:, None, None]
        # the second pass, over what is centred, loses no digits
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            momentum = self.momentum or 0.0
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(
                (variance * count / (count - 1)).to(self.running_var.dtype), momentum
            )
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        shown: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return shown.to(input.dtype)


def synchronise(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm normalise over the batch of all ranks; names and values stay.

    Args:
        network: with its batch norms within other modules, as those of ResNets are.
        device: where it computes.
    """
    if device.type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            synchronised = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            synchronised.load_state_dict(child.state_dict())
            setattr(network, name, synchronised)
        else:
            synchronise(child, device)
