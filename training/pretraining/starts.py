"""Weights to begin with and to learn from: a name of the zoo, one of timm's, or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from uscl_zoo.errors import CheckpointError, DataError
from uscl_zoo.files import expanded
from uscl_zoo.zoo.authors import read_backbone
from uscl_zoo.zoo.card import ARCHITECTURES
from uscl_zoo.zoo.catalogue import model_info, own_folder
from uscl_zoo.zoo.checkpoint import backbone_shapes, statistics_in
from uscl_zoo.zoo.digests import sha256_of
from uscl_zoo.zoo.registry import create_model

from ..learning import augment
from ..learning.frames import FrameStore, Video
from ..learning.recipe import Recipe, replace
from .growing import can_grow, grow

#: Frames by which the norms of a grown encoder are set.
GROWN_ON = 256

#: How a network of timm's is asked for.
TIMM = "timm:"

Statistics = tuple[float, float, float]


@dataclass(frozen=True)
class Start:
    """A network with weights, without a classifier.

    Attributes:
        reference: as it was asked for.
        network: in the mode of evaluation, on the CPU.
        architecture: timm's name.
        mean: of each channel of its input, intensities in 0-1.
        std: likewise.
        sha256: of the file; of the tensors where timm gave them.
        licence: as its card or timm states it, None if unknown.
    """

    reference: str
    network: nn.Module
    architecture: str
    mean: Statistics
    std: Statistics
    sha256: str
    licence: str | None

    def recorded(self) -> dict[str, str | None]:
        """What a run records of it."""
        return {"reference": self.reference, "sha256": self.sha256, "licence": self.licence}


def load_start(reference: str) -> Start:
    """Load a network by reference, verified where a digest is known.

    Args:
        reference: a checkpoint of the zoo by name, the folder of a model, `timm:` with a name of
            timm's, or a file of timm's keys whose metadata say mean and std.

    Raises:
        UnknownModelError: if there is none of that name.
        DataError: if a file does not say what mean and std belong to it, or timm has no weights.
        CheckpointError: if a file holds other tensors than those of an architecture of the zoo.
    """
    if reference.startswith(TIMM):
        return _of_timm(reference)
    path = expanded(reference)
    if path.is_file():
        return _of_file(reference, path)
    card = model_info(reference)
    name = card.name if own_folder(reference) is None else reference
    network = create_model(name, pretrained=True, num_classes=0).eval()
    return Start(
        reference=name,
        network=network,
        architecture=card.architecture,
        mean=card.input.mean,
        std=card.input.std,
        sha256=str(card.weights.sha256),
        licence=card.licence,
    )


def settled(recipe: Recipe) -> tuple[Recipe, Start | None]:
    """A recipe with the mean and std of the weights it begins with, and those weights.

    Raises:
        UsclError: as `load_start`.
    """
    if recipe.init is None:
        return recipe, None
    start = load_start(recipe.init)
    return replace(recipe, mean=start.mean, std=start.std), start


def _of_timm(reference: str) -> Start:
    name = reference.removeprefix(TIMM)
    try:
        network: nn.Module = timm.create_model(name, pretrained=True, num_classes=0).eval()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{reference}: timm could not get it ({type(error).__name__}: {reason}); is it a name "
            "of timm's, and the Hub in reach?"
        ) from error
    cfg: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return Start(
        reference=reference,
        network=network,
        architecture=str(cfg["architecture"]),
        mean=_three(cfg["mean"]),
        std=_three(cfg["std"]),
        sha256=digest.hexdigest(),
        licence=cfg.get("license"),
    )


def _of_file(reference: str, path: Path) -> Start:
    state, architecture = None, ""
    refused: list[str] = []
    for architecture in ARCHITECTURES:
        try:
            state = read_backbone(path, architecture)
            break
        except CheckpointError as error:
            refused.append(str(error))
    if state is None:
        raise CheckpointError(f"{path}: fits no architecture of the zoo: {refused[0]}")
    statistics = statistics_in(path)
    if statistics is None:
        raise DataError(
            f"{path}: its metadata do not say what mean and std belong to it; write them there, as "
            "`uscl export` does, or name a checkpoint of the zoo"
        )
    network = timm.create_model(architecture, num_classes=0).eval()
    network.load_state_dict(state)
    mean, std = statistics
    return Start(
        reference=reference,
        network=network,
        architecture=architecture,
        mean=mean,
        std=std,
        sha256=sha256_of(path),
        licence=None,
    )


def _three(values: tuple[float, ...]) -> Statistics:
    red, green, blue = values
    return float(red), float(green), float(blue)


def begun_with(
    start: Start, recipe: Recipe, store: FrameStore, videos: Sequence[Video]
) -> dict[str, Tensor]:
    """The tensors that the encoder of a run begins with, the same each time.

    Args:
        start: to take them from.
        recipe: architecture, statistics, sizes and seed.
        store: of the run.
        videos: that it trains on; an encoder that has to be grown sees the middle frames of 256.

    Raises:
        CheckpointError: as `fit`.
    """

    def frames() -> Tensor:
        places = np.linspace(0, len(videos) - 1, min(len(videos), GROWN_ON)).astype(int)
        rows = [videos[place].first + videos[place].count // 2 for place in places]
        side = recipe.sizes[0][0] if recipe.sizes else int(store.frames.shape[1])
        images = augment.to_float(torch.from_numpy(np.stack([store.frames[row] for row in rows])))
        return augment.normalise(augment.shrink(images, side), recipe)

    return fit(start, recipe.architecture, frames, recipe.seed)


def fit(
    start: Start, architecture: str, frames: Callable[[], Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """The tensors that an encoder begins with.

    Of the same architecture all of them. A ResNet of bottlenecks is grown from one of basic blocks:
    it begins by computing nearly what that one does (see `growing`).

    Args:
        start: to take them from.
        architecture: timm's name of the encoder.
        frames: float32 (N, 3, H, W), normalised as the start takes them, called if the encoder has
            to be grown.
        seed: of what is random in a grown one.

    Returns:
        Tensors by the encoder's names.

    Raises:
        CheckpointError: if it does not fit and no way to grow it is known.
    """
    state, shapes = start.network.state_dict(), backbone_shapes(architecture)
    fitting = {k: t for k, t in state.items() if shapes.get(k) == tuple(t.shape)}
    if len(fitting) == len(shapes):
        return fitting
    if not can_grow(start.architecture, architecture):
        raise CheckpointError(
            f"init: a {architecture} cannot begin with {start.reference} ({start.architecture}); "
            "name weights of its own architecture, or of a ResNet-18 for a ResNet-50"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return grow(start.network, architecture, frames())
