"""What `uscl evaluate` compares: names of the zoo, timm's, files, random networks, and methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

import uscl_zoo
from uscl_zoo import store
from uscl_zoo.authors import read_backbone
from uscl_zoo.card import ARCHITECTURES, Card, Input, all_cards, read_card
from uscl_zoo.checkpoint import statistics_in
from uscl_zoo.errors import DataError, UnknownModelError, UsclError
from uscl_zoo.files import expanded
from uscl_zoo.registry import model_info

from .infold import METHOD, Setting, method_recipe
from .probe import random_network
from .seen import Material, Seen, seen_by

#: How a randomly initialised network is asked for, alone or with `:` and an architecture.
RANDOM = "random"
#: How timm asks for a network in a folder, such as `uscl finetune` leaves.
LOCAL = "local-dir:"

#: Height and width of random networks that nothing else gives a size.
SIZE = 224
#: Mean and standard deviation by channel.
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# What there is to say of what is on no card.
_UNSEEN = {"random": "untrained", "method": "pretrained within the folds"}
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
        folder: of the card, where it is not one of the zoo's.
    """

    spec: str
    kind: str
    shape: Input
    build: Callable[[int, Path | None], nn.Module]
    identity: str
    card: Card | None = None
    folder: Path | None = None

    @property
    def varies(self) -> bool:
        """Whether another seed gives other weights."""
        return self.kind in ("random", "method")

    def has_seen(self, material: Material) -> Seen:
        """What of the data it was trained on, as far as its card and corpus tell."""
        if self.card is None:
            return Seen(_UNSEEN.get(self.kind, "not known: it has no card"))
        return seen_by(self.card, material, self.folder)


def contenders(
    specs: Sequence[str], setting: Setting, statistics: Statistics | None = None
) -> list[Contender]:
    """Find out what the models of the command line are.

    Random networks are given frames of the size that the others are: of the largest that is no
    method's, or of the methods', or alone of `SIZE`.

    Args:
        specs: see `contender`.
        setting: of what is pretrained here.
        statistics: of the checkpoint files that do not say theirs.

    Raises:
        DataError: if statistics are given, and no model is a file.
    """
    made = {
        spec: contender(spec, setting, statistics=statistics)
        for spec in specs
        if not _is_random(spec)
    }
    if statistics is not None and all(one.kind != "file" for one in made.values()):
        raise DataError("--mean and --std are of checkpoint files, and no MODEL is one")
    fixed = [one.shape.size[1] for one in made.values() if one.kind != "method"]
    size = max(fixed) if fixed else setting.size if made else SIZE
    return [made.get(spec) or contender(spec, setting, size) for spec in specs]


def _is_random(spec: str) -> bool:
    return spec == RANDOM or spec.startswith(f"{RANDOM}:")


def contender(
    spec: str, setting: Setting, size: int = SIZE, statistics: Statistics | None = None
) -> Contender:
    """Find out what a model of the command line is.

    Args:
        spec: a name of the zoo or of timm, a checkpoint file, `local-dir:` with a folder of timm's,
            `random`, `random:resnet50`, or `method:` with a recipe.
        setting: of what is pretrained here.
        size: height and width of the frames of random networks.
        statistics: mean and std of a checkpoint file that does not say its own.

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
    if _is_random(spec):
        architecture = spec.partition(":")[2] or ARCHITECTURES[0]
        _known(architecture)
        name = f"{architecture}_uscl"
        shape = Input((3, size, size), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return Contender(spec, "random", shape, lambda seed, _: random_network(name, seed), spec)
    if spec.startswith(LOCAL):
        return _of_folder(spec)
    if Path(spec).is_file():
        return _of_file(Path(spec), statistics)
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


def _of_file(path: Path, statistics: Statistics | None) -> Contender:
    """A checkpoint of whichever architecture its tensors fit."""
    refused: list[str] = []
    for architecture in ARCHITECTURES:
        try:
            network = _load(path, architecture)
        except UsclError as error:
            refused.append(str(error))
            continue
        digest = store.sha256_of(path)
        card, folder = _card_of(path, digest)
        one = _fixed(str(path), "file", network, digest, card, folder)
        if card is not None:
            return replace(one, shape=card.input)
        # only safetensors have a place to say it in
        own = statistics_in(path) if path.suffix == ".safetensors" else None
        if own is None and statistics is None:
            raise DataError(
                f"{path}: does not say what mean and std its frames had; add --mean and --std, as "
                "--mean 0.5 --std 0.25 for weights of this zoo's first recipes"
            )
        mean, std = own or statistics  # type: ignore[misc]
        return replace(one, shape=replace(one.shape, mean=mean, std=std))
    raise DataError(f"{path}: fits no architecture of the zoo: {refused[0]}")


def _card_of(path: Path, digest: str) -> tuple[Card | None, Path | None]:
    """The card of a file that is known by its content: the one beside it, or one of the zoo."""
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        card = read_card(beside)
        if card.weights.sha256 == digest:
            return card, path.parent
    for card in all_cards().values():
        if card.weights.sha256 == digest:
            return card, None
    return None, None


def _fixed(
    spec: str,
    kind: str,
    network: nn.Module,
    identity: str,
    card: Card | None = None,
    folder: Path | None = None,
) -> Contender:
    """A contender whose weights are what they are."""
    config = resolve_model_data_config(network)
    shape = Input(tuple(config["input_size"]), tuple(config["mean"]), tuple(config["std"]))
    return Contender(spec, kind, shape, lambda *_: network, identity, card, folder)


def _of_folder(spec: str) -> Contender:
    """A network of timm with the weights beside its `config.json`."""
    folder = expanded(spec.removeprefix(LOCAL))
    try:
        network: Any = timm.create_model(f"{LOCAL}{folder}", pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{folder}: no network that timm can load ({type(error).__name__}: {reason}); there "
            "should be a config.json that names its architecture, and model.safetensors"
        ) from error
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    identity = " ".join(store.sha256_of(path) for path in files)
    # `uscl finetune` leaves one beside its model
    cards = [read_card(path) for path in folder.glob("*.yaml")]
    card = next((card for card in cards if card.weights.sha256 in identity.split()), None)
    return _fixed(spec, "folder", network, identity, card, folder)


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
