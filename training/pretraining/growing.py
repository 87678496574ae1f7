"""A deeper network that begins by computing what a shallower one does.

ResNet-50 has the stem and the 3x3 kernels of ResNet-18, between 1x1 convolutions. A basic block is
two 3x3 convolutions; two bottlenecks do the same, if the first leaves its result in channels of its
own and the second adds to the stream. So a ResNet-50 can begin with what a ResNet-18 has learned,
instead of nothing (growing that keeps the function, after Net2Net, Chen et al., ICLR 2016). Two of
its stages have three bottlenecks for four convolutions; there one of the last two 3x3 kernels is
replaced by the 1x1 convolution that is nearest to it on given frames, whichever loses less.

The stream of a stage is four times as wide as its 3x3 kernels. Its first quarter is the stream of
the shallow network; the second takes what the first bottleneck of a pair leaves for the second. The
others are random features of the stage before, which nothing reads at first; in the last stage,
where the pooled features are read, they repeat the first.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from uscl_zoo.inference import evaluating

#: Ridge of the least squares, as a share of the mean square of what is regressed on.
RIDGE = 1e-3

#: How far below zero the second quarter is pushed to empty it, in units of its maximum.
EMPTIED = 1.5


#: Quarters of the stream of the last stage that are the shallow network's; else it is the first.
REPEATED = (0, 2, 3)

#: Of which networks which can be grown.
PAIRS = {("resnet18", "resnet50")}


def can_grow(shallow: str, deep: str) -> bool:
    """Whether a network of this architecture can be grown from one of that, by timm's names."""
    return (shallow, deep) in PAIRS


def carried(own: Tensor, width: int, last: bool) -> list[Tensor]:
    """The parts of a stage's stream in which a grown network has that of the shallow one.

    Args:
        own: (N, C, ...), or pooled features (N, C).
        width: channels of the shallow network there; C if the networks are of one architecture.
        last: whether it left the last stage.
    """
    if own.shape[1] == width:
        return [own]
    return [own[:, _quarter(number, width)] for number in (REPEATED if last else (0,))]


@torch.no_grad()
def grow(shallow: nn.Module, architecture: str, images: Tensor) -> dict[str, Tensor]:
    """Weights with which a network of bottlenecks computes what one of basic blocks does.

    Random weights are drawn from torch's global generator.

    Args:
        shallow: timm's ResNet of basic blocks; left in the mode it was in.
        architecture: timm's name of a ResNet of bottlenecks, each stage of which has at most one
            fewer than there are 3x3 convolutions in the basic blocks.
        images: float32 (N, 3, H, W), normalised; the norms are set by them.

    Returns:
        A state dict in timm's keys.
    """
    source: Any = shallow
    deep: Any = timm.create_model(architecture, num_classes=0).eval()
    for part in ("conv1", "bn1"):
        getattr(deep, part).load_state_dict(getattr(source, part).state_dict())
    with evaluating(source):
        stream = source.maxpool(source.act1(source.bn1(source.conv1(images))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            blocks, bottlenecks = getattr(source, stage), getattr(deep, stage)
            stream = _grow_stage(blocks, bottlenecks, stream, stage == "layer4")
    return dict(deep.state_dict())


def _grow_stage(blocks: Any, bottlenecks: Any, stream: Tensor, last: bool) -> Tensor:
    """Fill the bottlenecks of a stage.

    Args:
        blocks: the basic blocks that they shall equal.
        bottlenecks: of the deep network, changed in place.
        stream: of the images, as it enters.
        last: whether the first quarter is repeated.

    Returns:
        The stream as it leaves.
    """
    width = int(blocks[0].conv1.weight.shape[0])
    copies = [_quarter(n, width) for n in (REPEATED if last else (0,))]
    free = iter(bottlenecks)
    left = len(bottlenecks)
    for number, block in enumerate(blocks):
        pair_left = 2 * (len(blocks) - number)
        first = next(free)
        if left < pair_left and number == len(blocks) - 1:
            stream = _fold(block, first, stream, width, copies)
            left -= 1
        else:
            offset = _first_of_pair(block, first, stream, width, copies)
            stream = first(stream)
            second = next(free)
            _second_of_pair(block, second, stream, width, copies, offset)
            stream = second(stream)
            left -= 2
    for idle in free:
        _measure(idle.bn1, idle.conv1(stream))
        inner = idle.act1(idle.bn1(idle.conv1(stream)))
        _measure(idle.bn2, idle.conv2(inner))
        inner = idle.act2(idle.bn2(idle.conv2(inner)))
        _measure(idle.bn3, idle.conv3(inner))
        idle.bn3.weight.zero_()
        stream = idle(stream)
    return stream


def _first_of_pair(
    block: Any, bottleneck: Any, stream: Tensor, width: int, copies: list[slice]
) -> Tensor:
    """The first convolution of a basic block, its result left in the second quarter.

    Returns:
        What stands above the true value in each channel of the first quarter, so that no negative
        one is cut off.
    """
    taken = int(block.conv1.weight.shape[1])
    inner = _inner(block.conv1, block.bn1, bottleneck, stream, slice(0, taken))
    hidden = bottleneck.act2(inner)
    scratch = _quarter(1, width)
    bottleneck.conv3.weight[scratch] = _identity(width)
    written = bottleneck.conv3(hidden)
    _measure(bottleneck.bn3, written)
    bottleneck.bn3.weight.zero_()
    _pass_on(bottleneck.bn3, scratch)
    offset = torch.zeros(width)
    if bottleneck.downsample is not None:
        convolution, norm = bottleneck.downsample
        kernel = torch.zeros(width, convolution.weight.shape[1], 1, 1)
        if block.downsample is None:
            kernel[:, :taken] = _identity(width)
        else:
            kernel[:, :taken] = block.downsample[0].weight
        for copy in copies:
            convolution.weight[copy] = kernel
        _measure(norm, convolution(stream))
        norm.weight[scratch] = 0
        for copy in copies:
            if block.downsample is None:
                _pass_on(norm, copy)
                continue
            for name, own in block.downsample[1].state_dict().items():
                if name != "num_batches_tracked":
                    getattr(norm, name)[copy] = own
        offset = _below_zero(norm(convolution(stream))[:, :width])
        for copy in copies:
            norm.bias[copy] += offset
    return offset


def _second_of_pair(
    block: Any, bottleneck: Any, stream: Tensor, width: int, copies: list[slice], offset: Tensor
) -> None:
    """The second convolution of a basic block, from the second quarter, which it empties."""
    scratch = _quarter(1, width)
    lift = _below_zero(_inner(block.conv2, block.bn2, bottleneck, stream, scratch))
    bottleneck.bn2.bias += lift
    inner = bottleneck.act2(_inner_of(bottleneck, stream))
    for copy in copies:
        bottleneck.conv3.weight[copy] = _identity(width)
    _measure(bottleneck.bn3, bottleneck.conv3(inner))
    bottleneck.bn3.weight.zero_()
    for copy in copies:
        _pass_on(bottleneck.bn3, copy)
        bottleneck.bn3.bias[copy] -= lift + offset
    bottleneck.bn3.bias[scratch] = -EMPTIED * stream[:, scratch].amax((0, 2, 3))


def _fold(block: Any, bottleneck: Any, stream: Tensor, width: int, copies: list[slice]) -> Tensor:
    """A whole basic block in one bottleneck: one of its two kernels as a 1x1 convolution.

    Returns:
        The stream as it leaves, of the way that comes nearer to the block on these images.
    """
    aimed = block(stream[:, :width])
    found = []
    for way in (_second_pointwise, _first_pointwise):
        way(block, bottleneck, stream, width, copies)
        result: Tensor = bottleneck(stream)
        error = float((result[:, :width] - aimed).square().mean())
        state = {name: value.clone() for name, value in bottleneck.state_dict().items()}
        found.append((error, state, result))
    _, state, nearest = min(found, key=lambda one: one[0])
    bottleneck.load_state_dict(state)
    return nearest


def _second_pointwise(
    block: Any, bottleneck: Any, stream: Tensor, width: int, copies: list[slice]
) -> None:
    """The first kernel as it is, the second as the nearest 1x1 convolution of what it left."""
    hidden = bottleneck.act2(_inner(block.conv1, block.bn1, bottleneck, stream, slice(0, width)))
    kernel, level = _nearest(hidden, block.bn2(block.conv2(hidden)))
    for copy in copies:
        bottleneck.conv3.weight[copy] = kernel
    bottleneck.conv3.weight[_quarter(1, width)] = _identity(width)
    _measure(bottleneck.bn3, bottleneck.conv3(hidden))
    bottleneck.bn3.weight.zero_()
    bottleneck.bn3.bias.zero_()
    for copy in copies:
        _pass_on(bottleneck.bn3, copy)
        bottleneck.bn3.bias[copy] += level
    if len(copies) > 1:
        _pass_on(bottleneck.bn3, _quarter(1, width))


def _first_pointwise(
    block: Any, bottleneck: Any, stream: Tensor, width: int, copies: list[slice]
) -> None:
    """The first as the nearest 1x1 convolution of the stream, the second kernel as it is."""
    own = stream[:, :width]
    kernel, level = _nearest(own, block.bn1(block.conv1(own)))
    bottleneck.conv1.weight.zero_()
    bottleneck.conv1.weight[:, :width] = kernel
    _measure(bottleneck.bn1, bottleneck.conv1(stream))
    _pass_on(bottleneck.bn1, slice(0, width))
    bottleneck.bn1.bias += level
    bottleneck.conv2.weight.copy_(block.conv2.weight)
    bottleneck.bn2.load_state_dict(block.bn2.state_dict())
    lift = _below_zero(_inner_of(bottleneck, stream))
    bottleneck.bn2.bias += lift
    inner = bottleneck.act2(_inner_of(bottleneck, stream))
    written = (*copies, _quarter(1, width)) if len(copies) > 1 else copies
    for copy in written:
        bottleneck.conv3.weight[copy] = _identity(width)
    _measure(bottleneck.bn3, bottleneck.conv3(inner))
    bottleneck.bn3.weight.zero_()
    bottleneck.bn3.bias.zero_()
    for copy in written:
        _pass_on(bottleneck.bn3, copy)
        bottleneck.bn3.bias[copy] -= lift


def _nearest(given: Tensor, aimed: Tensor) -> tuple[Tensor, Tensor]:
    """The 1x1 convolution and bias that come nearest to (N, D, H, W) from (N, C, H, W)."""
    inputs, outputs = (values.movedim(1, -1).flatten(0, -2).double() for values in (given, aimed))
    inputs_mean, outputs_mean = inputs.mean(0), outputs.mean(0)
    centred = inputs - inputs_mean
    gram = centred.T @ centred
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double)
    solution = torch.linalg.solve(gram, centred.T @ (outputs - outputs_mean)).T
    level = outputs_mean - solution @ inputs_mean
    return solution.float()[:, :, None, None], level.float()


def _inner(kernel: Any, norm: Any, bottleneck: Any, stream: Tensor, read: slice) -> Tensor:
    """Give a bottleneck the 3x3 convolution of a basic block, reading some channels of the stream.

    Returns:
        What comes out of its norm.
    """
    count = read.stop - read.start
    bottleneck.conv1.weight[:count] = 0
    bottleneck.conv1.weight[:count, read] = _identity(count)
    _measure(bottleneck.bn1, bottleneck.conv1(stream))
    _pass_on(bottleneck.bn1, slice(0, count))
    bottleneck.conv2.weight.zero_()
    bottleneck.conv2.weight[:, :count] = kernel.weight
    bottleneck.bn2.load_state_dict(norm.state_dict())
    return _inner_of(bottleneck, stream)


def _inner_of(bottleneck: Any, stream: Tensor) -> Tensor:
    inner = bottleneck.act1(bottleneck.bn1(bottleneck.conv1(stream)))
    result: Tensor = bottleneck.bn2(bottleneck.conv2(inner))
    return result


def _measure(norm: Any, values: Tensor) -> None:
    """Let a norm expect the statistics of these values (N, C, H, W)."""
    norm.running_mean.copy_(values.mean((0, 2, 3)))
    norm.running_var.copy_(values.var((0, 2, 3), unbiased=False))


def _pass_on(norm: Any, channels: slice) -> None:
    """Let a norm leave these channels as they are."""
    norm.weight[channels] = (norm.running_var[channels] + norm.eps).sqrt()
    norm.bias[channels] = norm.running_mean[channels]


def _below_zero(values: Tensor) -> Tensor:
    """How far each channel of (N, C, H, W) goes below zero."""
    return (-values.amin((0, 2, 3))).clamp(min=0)


def _quarter(number: int, width: int) -> slice:
    return slice(number * width, (number + 1) * width)


def _identity(width: int) -> Tensor:
    return torch.eye(width)[:, :, None, None]
