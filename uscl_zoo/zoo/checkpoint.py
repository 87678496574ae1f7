"""Weights files: which tensors a backbone has, and reading and writing them safely."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checks import beyond_white
from ..errors import CheckpointError
from ..files import written

Shape = tuple[int, ...]
#: Of red, green and blue, of intensities in 0-1.
Channels = tuple[float, float, float]


@lru_cache
def backbone_shapes(architecture: str, classes: int = 0) -> dict[str, Shape]:
    """Names and shapes of the tensors of a backbone in timm's keys, by default without classifier.

    ResNet-18 has 120, ResNet-50 has 318; a classifier has two more.
    """
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=classes)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(
    shapes: Mapping[str, Shape], architecture: str, where: str, classes: int = 0
) -> None:
    """Refuse anything but exactly the tensors of the backbone, and of a classifier if there is one.

    Raises:
        CheckpointError: listing what is missing, extra and mis-shaped.
    """
    expected = backbone_shapes(architecture, classes)
    faults = {
        "missing": [name for name in expected if name not in shapes],
        "extra": [name for name in shapes if name not in expected],
        "mis-shaped": [
            f"{name} {tuple(shapes[name])} instead of {shape}"
            for name, shape in expected.items()
            if name in shapes and tuple(shapes[name]) != shape
        ],
    }
    listed = "; ".join(
        f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names
    )
    if listed:
        raise CheckpointError(
            f"{where}: does not hold the {len(expected)} tensors of {architecture} ({listed})"
        )


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_file(path: Path, architecture: str, classes: int = 0) -> None:
    """Check names, shapes and types in the header of a safetensors file, reading no tensor.

    timm loads non-strictly whenever the class counts differ, so a file with none of the right keys
    would pass as a randomly initialised network. This is asked first.

    Raises:
        CheckpointError: if it is no safetensors file or holds other tensors.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        types = {name: part.get_dtype() for name, part in slices.items()}
    check_shapes(shapes, architecture, str(path), classes)
    for name, kind in types.items():
        allowed = ("I64",) if name.endswith("num_batches_tracked") else ("F16", "BF16", "F32")
        if kind not in allowed:
            raise CheckpointError(
                f"{path}: {name} is of type {kind}, not one of {', '.join(allowed)}"
            )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: is no readable safetensors file ({error})") from error


def said_in(path: Path) -> dict[str, str]:
    """What the header of a safetensors file says of it.

    Raises:
        CheckpointError: if it is no safetensors file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def statistics_in(path: Path) -> tuple[Channels, Channels] | None:
    """Read from the header of a safetensors file what its network was trained to be normalised by.

    Args:
        path: of the file; its metadata may hold `mean` and `std`, three numbers each, of
            intensities in 0-1, with spaces between them.

    Returns:
        Mean and standard deviation by channel; None where the file says nothing of them.

    Raises:
        CheckpointError: if it is no safetensors file, has one of the two without the other, or they
            are not three finite numbers, positive ones for `std`.
    """
    metadata = said_in(path)
    said = [key for key in ("mean", "std") if key in metadata]
    if not said:
        return None
    if len(said) == 1:
        raise CheckpointError(
            f"{path}: its metadata has `{said[0]}` alone; mean and std go together"
        )
    mean = _channels(path, "mean", metadata["mean"])
    std = _channels(path, "std", metadata["std"], positive=True)
    if (wrong := beyond_white(mean, std)) is not None:
        raise CheckpointError(f"{path}: in its metadata {wrong}")
    return mean, std


def _channels(path: Path, key: str, text: str, positive: bool = False) -> Channels:
    try:
        red, green, blue = (float(number) for number in text.split())
    except ValueError:
        red = green = blue = math.nan
    if not all(math.isfinite(v) and (v > 0 or not positive) for v in (red, green, blue)):
        kind = "positive numbers" if positive else "numbers"
        raise CheckpointError(
            f"{path}: `{key}` in its metadata should be three {kind} with spaces between them, "
            f"not {text!r}"
        )
    return red, green, blue


def metadata_of(mean: Channels, std: Channels) -> dict[str, str]:
    """Write mean and standard deviation as `statistics_in` reads them."""
    return {key: " ".join(map(str, values)) for key, values in (("mean", mean), ("std", std))}


def same_tensors(one: Path, other: Path) -> bool:
    """Whether two safetensors files can be read and hold the same tensors, bit for bit."""
    try:
        with _opened(one) as first, _opened(other) as second:
            return set(first.keys()) == set(second.keys()) and all(
                torch.equal(first.get_tensor(name), second.get_tensor(name))
                for name in first.keys()  # noqa: SIM118
            )
    except CheckpointError:
        return False


def write_backbone(
    state: Mapping[str, Tensor],
    path: Path,
    architecture: str,
    half: bool = True,
    classes: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a backbone in timm's keys, by default its convolutions in half precision.

    Half precision halves the file. Its rounding moved the embeddings of 59 POCUS frames by 0.15 %
    of their length in the median and 0.45 % at most (resnet18_uscl.pocus, on a CPU).
    Batch-norm's running variances span more than half precision does, and stay as they are.

    Args:
        state: tensors by timm's names.
        path: of the safetensors file, replaced whole.
        architecture: whose tensors they should be.
        half: round convolutions to float16; otherwise every tensor is written bit for bit.
        classes: of the classifier, 0 for none.
        metadata: what the file should say of itself in its header, e.g. what `metadata_of` gives.

    Raises:
        CheckpointError: if tensors are missing, extra, mis-shaped or not finite.
        WriteError: if the file cannot be written.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(shapes, architecture, "the state dict", classes)
    tensors = {}
    for name, tensor in state.items():
        stored = tensor.detach().cpu().contiguous()
        if half and stored.ndim == 4:
            stored = stored.half()
        if stored.is_floating_point() and not stored.isfinite().all():
            raise CheckpointError(f"{name}: has values that are not finite; not written to {path}")
        tensors[name] = stored
    with written(path) as partial:
        # not save_file, whose files nobody else may read; `format` is what transformers asks of a
        # safetensors file before it loads it
        content = save(tensors, metadata={**(metadata or {}), "format": "pt"})
        partial.write_bytes(_settled(content))


def _settled(content: bytes) -> bytes:
    """A safetensors file whose metadata are in order: safetensors shuffles them each time.

    The same weights are then the same bytes, and have one digest.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header = {key: dict(sorted(value.items())) for key, value in header.items()}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # tensors begin at a multiple of eight bytes
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]
