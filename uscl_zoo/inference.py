"""The one loop: frames in, a vector a frame out, on any device and in any precision."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .checks import whole
from .errors import DataError, reason

T = TypeVar("T")

# Characters of what torch says of a device; it can list all of its backends.
_LONGEST = 150

#: What is taken of a network: a vector a frame, (N, D).
Answer = Callable[[nn.Module, Tensor], Tensor]


def device_named(name: str | int | torch.device | None) -> torch.device:
    """The device of that name; None for CUDA where there is one.

    Raises:
        DataError: if there is none of that name, or it computes nothing.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    said = repr(name if isinstance(name, int) else str(name))
    if isinstance(name, bool) or not isinstance(name, (str, int, torch.device)):
        raise DataError(f"a device is named, as 'cpu' or 'cuda:0', not {name!r}")
    try:
        device = torch.device(name)
        # some are names of nothing, others are there and hold no numbers: `meta`
        torch.zeros(1, device=device).item()
    # whatever a backend that is not there comes to, an import that fails among it
    except Exception as error:
        why = reason(error)[:_LONGEST]
        raise DataError(f"device {said} cannot be used ({why}); try cpu") from error
    return device


def batched(
    frames: Iterable[NDArray[np.uint8]], batch_size: int = 32
) -> Generator[NDArray[np.uint8], None, None]:
    """Frames of one size, uint8 (H, W, C) each, as batches (N, H, W, C).

    Raises:
        DataError: if the size of a batch is none.
    """
    batch_size = whole("batch_size", batch_size, 1)
    given = iter(frames)
    while batch := list(islice(given, batch_size)):
        yield np.stack(batch)


def infer(
    module: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    batches: Iterable[NDArray[np.uint8] | Tensor],
    answer: Answer | None = None,
    precision: str = "float32",
) -> Generator[NDArray[np.float32], None, None]:
    """Put frames through a network, a batch at a time.

    On the CPU as many batches are computed side by side as torch has threads, each by one: threads
    that share a batch wait for each other at every layer. On a GPU there are two, so that it has
    work while the results of the other are fetched.

    Args:
        module: of timm, for instance; it answers in eval mode, and is left in the mode it was in.
        normalise: makes its input of a batch on its device, as `FrameTransform.normalise` does.
        batches: uint8 (N, H, W, C), on any device.
        answer: what to take of the network; `pooled` if None.
        precision: `float32` or `bf16`, of what the network computes; one of half precision computes
            in its own.

    Yields:
        float32 (N, D), in order.

    Raises:
        DataError: if a value is not finite.
    """
    return _run(module, normalise, batches, answer or pooled, precision, _fetched)


def outputs(
    module: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    batches: Iterable[NDArray[np.uint8] | Tensor],
    answer: Answer | None = None,
    precision: str = "float32",
) -> Generator[Tensor, None, None]:
    """As `infer`, but what it yields stays on the device, for which nothing has to wait."""
    return _run(module, normalise, batches, answer or pooled, precision, Tensor.float)


def _fetched(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.float().cpu().numpy()
    if not np.isfinite(array).all():
        raise DataError("the network gives values that are not finite; its weights may be damaged")
    return array


def _run(
    module: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    batches: Iterable[NDArray[np.uint8] | Tensor],
    answer: Answer,
    precision: str,
    take: Callable[[Tensor], T],
) -> Generator[T, None, None]:
    parameter = next(module.parameters())
    # what convolutions are fast in: 1.3 times on a CPU, and the weights can stay as they are
    layout = torch.channels_last
    half = precision == "bf16"

    @torch.inference_mode()
    def compute(batch: NDArray[np.uint8] | Tensor) -> T:
        pixels = torch.as_tensor(batch).to(parameter.device)
        inputs = normalise(pixels).to(parameter.dtype, memory_format=layout)
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=half):
            values = answer(module, inputs)
        return take(values)

    threads = torch.get_num_threads()
    side_by_side = threads if parameter.device.type == "cpu" else 2
    given = iter(batches)
    first = list(islice(given, 2))
    with evaluating(module):
        if len(first) < 2 or side_by_side == 1:
            for batch in chain(first, given):
                yield compute(batch)
            return
        # counted by thread; what is set last is what later threads begin with
        pool = ThreadPoolExecutor(side_by_side, "network", lambda: torch.set_num_threads(1))
        running: deque[Future[T]] = deque()
        try:
            for batch in chain(first, given):
                running.append(pool.submit(compute, batch))
                if len(running) > side_by_side:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def pooled(module: Any, inputs: Tensor) -> Tensor:
    """Embeddings (N, D): what comes before the classifier, if there is one.

    Raises:
        DataError: if the network does not give one vector a frame.
    """
    if hasattr(module, "forward_head"):
        features = module.forward_head(module.forward_features(inputs), pre_logits=True)
    else:
        features = module(inputs)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise DataError(
            f"{type(module).__name__} does not give one vector a frame; "
            "create it without features_only and with its global pooling"
        )
    return features


def logits(module: nn.Module, inputs: Tensor) -> Tensor:
    """What a classifier says before the softmax, (N, classes)."""
    outputs: Tensor = module(inputs)
    return outputs


def logits_and_textures(module: Any, inputs: Tensor) -> Tensor:
    """Logits of a ResNet, and behind them the mean activations of its first two stages."""
    last, stages = module.forward_intermediates(inputs, indices=5)
    textures = [stage.mean((2, 3)) for stage in stages[1:3]]
    return torch.cat([module.forward_head(last), *textures], dim=1)


def both_ways(answer: Answer) -> Answer:
    """What is the mean over a frame and its mirror image."""

    def averaged(module: nn.Module, inputs: Tensor) -> Tensor:
        return (answer(module, inputs) + answer(module, inputs.flip(3))) / 2

    return averaged


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A network in eval mode for a while."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
