"""What `uscl evaluate` compares: names of the zoo, timm's, files, random networks, and methods."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

import uscl_zoo
from uscl_zoo import store
from uscl_zoo.authors import read_backbone
from uscl_zoo.card import ARCHITECTURES, Card, Input
from uscl_zoo.errors import DataError, UnknownModelError, UsclError
from uscl_zoo.registry import model_info

from ..corpus import read_corpus
from .infold import METHOD, Setting, method_recipe
from .probe import random_network

#: How a randomly initialised network is asked for, alone or with `:` and an architecture.
RANDOM = "random"
#: How timm asks for a network in a folder, such as `uscl finetune` leaves.
LOCAL = "local-dir:"

# What timm reads weights from.
_WEIGHTS = {".safetensors", ".bin", ".pth", ".pt"}


@dataclass(frozen=True)
class Contender:
    """A model, as it was asked for.

    Attributes:
        spec: as it was asked for.
        kind: `zoo`, `timm`, `folder`, `file`, `random` or `method`.
        shape: of the input.
        build: makes the network, without a classifier, from a seed and for `method` a weights file.
        identity: changes whenever the weights of a given seed or file do.
        card: None where there is none.
    """

    spec: str
    kind: str
    shape: Input
    build: Callable[[int, Path | None], nn.Module]
    identity: str
    card: Card | None = None

    @property
    def varies(self) -> bool:
        """Whether another seed gives other weights."""
        return self.kind in ("random", "method")

    def has_seen(self, name: str, digests: Collection[str]) -> str:
        """`in corpus` if the card names this data set, or its corpus has files of it.

        Args:
            name: of the data set.
            digests: SHA-256 of its files.
        """
        if self.card is None:
            return ""
        path = store.corpus_of(self.card)
        same = set(digests) & set(read_corpus(path).digests) if path is not None else ()
        if same:
            return f"in corpus ({len(same)} of {len(digests)} files)"
        named = name in {source.name for source in self.card.training.sources}
        return "in corpus" if named else ""


def contender(spec: str, setting: Setting) -> Contender:
    """Find out what a model of the command line is.

    Args:
        spec: a name of the zoo or of timm, a checkpoint file, `local-dir:` with a folder of timm's,
            `random`, `random:resnet50`, or `method:` with a recipe.
        setting: of what is pretrained here, and of the random networks beside it.

    Raises:
        UnknownModelError: if it is none of them.
        UsclError: if its weights cannot be had.
    """
    if spec.startswith(METHOD):
        recipe = method_recipe(spec, setting, 0)
        shape = Input((3, setting.size, setting.size), recipe.mean, recipe.std)

        def of_run(seed: int, weights: Path | None) -> nn.Module:
            assert weights is not None
            return _load(weights, recipe.architecture)

        return Contender(spec, "method", shape, of_run, spec)
    if spec == RANDOM or spec.startswith(f"{RANDOM}:"):
        architecture = spec.partition(":")[2] or ARCHITECTURES[0]
        _known(architecture)
        name = f"{architecture}_uscl"
        shape = Input((3, setting.size, setting.size), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return Contender(spec, "random", shape, lambda seed, _: random_network(name, seed), spec)
    if spec.startswith(LOCAL):
        return _of_folder(spec)
    if Path(spec).is_file():
        return _of_file(Path(spec))
    try:
        card = model_info(spec)
    except UnknownModelError as error:
        if not timm.is_model(spec):
            raise UnknownModelError(
                f"{spec}: no file, no model of timm, and of the zoo neither ({error})"
            ) from error
        return _of_timm(spec)
    network = uscl_zoo.create_model(spec, pretrained=True, num_classes=0)
    return _fixed(card.name, "zoo", network, str(card.weights.sha256), card)


def _known(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UnknownModelError(
            f"{RANDOM}:{architecture}: should be one of {', '.join(ARCHITECTURES)}"
        )


def _of_file(path: Path) -> Contender:
    """A checkpoint of whichever architecture its tensors fit."""
    refused: list[str] = []
    for architecture in ARCHITECTURES:
        try:
            network = _load(path, architecture)
        except UsclError as error:
            refused.append(str(error))
            continue
        return _fixed(str(path), "file", network, store.sha256_of(path))
    raise DataError(f"{path}: fits no architecture of the zoo: {refused[0]}")


def _fixed(
    spec: str, kind: str, network: nn.Module, identity: str, card: Card | None = None
) -> Contender:
    """A contender whose weights are what they are."""
    config = resolve_model_data_config(network)
    shape = Input(tuple(config["input_size"]), tuple(config["mean"]), tuple(config["std"]))
    return Contender(spec, kind, shape, lambda *_: network, identity, card)


def _of_folder(spec: str) -> Contender:
    """A network of timm with the weights beside its `config.json`."""
    folder = Path(spec.removeprefix(LOCAL)).expanduser()
    try:
        network: Any = timm.create_model(f"{LOCAL}{folder}", pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{folder}: no network that timm can load ({type(error).__name__}: {reason}); there "
            "should be a config.json that names its architecture, and model.safetensors"
        ) from error
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    return _fixed(spec, "folder", network, " ".join(store.sha256_of(path) for path in files))


def _of_timm(name: str) -> Contender:
    try:
        network: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{name}: timm could not get its weights ({type(error).__name__}: {reason}); is the "
            "Hub in reach?"
        ) from error
    return _fixed(name, "timm", network, f"{name} {timm.__version__}")


def _load(path: Path, architecture: str) -> nn.Module:
    network = uscl_zoo.create_model(f"{architecture}_uscl", num_classes=0)
    network.load_state_dict(read_backbone(path, architecture))
    return network
