"""What `uscl evaluate` compares: names of the zoo, timm's, files, random networks, and methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import ResNet
from torch import nn

from uscl_zoo import network
from uscl_zoo.embedding.running import digest
from uscl_zoo.errors import DataError, UnknownModelError
from uscl_zoo.zoo.authors import read_backbone
from uscl_zoo.zoo.card import ARCHITECTURES, Card, Input
from uscl_zoo.zoo.registry import create_model

from ..learning.frames import FrameStore
from .infold import METHOD, Setting, method_recipe
from .seen import Material, Seen, seen_by

#: How a randomly initialised network is asked for, alone or with `:` and an architecture.
RANDOM = "random"
#: Height and width of random networks that nothing else gives a size.
SIZE = 224
#: Mean and standard deviation by channel.
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]

# What there is to say of what is on no card.
_UNSEEN = {"random": "untrained", "method": "pretrained within the folds"}


class Form(NamedTuple):
    """Frames as a model is shown them.

    Attributes:
        size: height and width in pixels.
        clean: cut to the beam and cleaned, as `uscl prepare --clean` makes them.
        grey: their brightness alone, in all channels.
    """

    size: int
    clean: bool = False
    grey: bool = False

    def __str__(self) -> str:
        kinds = [name for name in ("clean", "grey") if getattr(self, name)]
        return ", ".join([f"{self.size}²", *kinds])


@dataclass(frozen=True)
class Contender:
    """A model, as it was asked for.

    Attributes:
        spec: as it was asked for.
        kind: `random`, `method`, or what `network.load` says it is.
        shape: of the input.
        build: makes the network, without a classifier, from a seed and for `method` a weights file.
        identity: changes whenever the weights of a given seed or file do.
        card: None where there is none.
        folder: of the card, where it is not one of the zoo's.
        clean: whether it is to be shown cleaned frames; None where nobody says.
        grey: whether it is to be shown brightness alone.
    """

    spec: str
    kind: str
    shape: Input
    build: Callable[[int, Path | None], nn.Module]
    identity: str
    card: Card | None = None
    folder: Path | None = None
    clean: bool | None = None
    grey: bool = False

    @property
    def form(self) -> Form:
        """How its frames are made of a video."""
        return Form(self.shape.size[1], bool(self.clean), self.grey)

    def judged_on(self, store: FrameStore) -> Contender:
        """This, to be shown the frames of a store, which are cleaned or are not.

        Raises:
            DataError: if it is to be shown the others.
        """
        if self.clean is not None and self.clean != store.is_clean:
            words = {True: "cleaned", False: "whole"}
            raise DataError(
                f"{self.spec}: is to be shown {words[self.clean]} frames, and those of "
                f"{store.folder} are {words[store.is_clean]}; prepare another, or take them as "
                f"they are by `clean={store.is_clean}`"
            )
        return replace(self, clean=store.is_clean)

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
    specs: Sequence[str],
    setting: Setting,
    statistics: Statistics | None = None,
    clean: bool | None = None,
) -> list[Contender]:
    """Find out what the models of the command line are.

    Random networks are given frames of the size that the others are: of the largest that is no
    method's, or of the methods', or alone of `SIZE`.

    Args:
        specs: see `contender`.
        setting: of what is pretrained here.
        statistics: of the checkpoint files that do not say theirs.
        clean: whether all are shown cleaned frames; None for each as it was made.

    Raises:
        DataError: if statistics are given, and no model is a file.
    """
    made = {
        spec: contender(spec, setting, statistics=statistics, clean=clean)
        for spec in specs
        if not _is_random(spec)
    }
    if statistics is not None and all(one.kind != "file" for one in made.values()):
        raise DataError("`statistics` are of checkpoint files, and no model is one")
    fixed = [one.shape.size[1] for one in made.values() if one.kind != "method"]
    size = max(fixed) if fixed else setting.size if made else SIZE
    return [made.get(spec) or contender(spec, setting, size, clean=clean) for spec in specs]


def _is_random(spec: str) -> bool:
    return spec == RANDOM or spec.startswith(f"{RANDOM}:")


def contender(
    spec: str,
    setting: Setting,
    size: int = SIZE,
    statistics: Statistics | None = None,
    clean: bool | None = None,
) -> Contender:
    """Find out what a model of the command line is.

    Args:
        spec: whatever `network.load` takes, `random`, `random:resnet50`, or `method:` with a
            recipe.
        setting: of what is pretrained here.
        size: height and width of the frames of random networks.
        statistics: mean and std of a checkpoint file that does not say its own.
        clean: whether it is shown cleaned frames; None for as it was made.

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

        return Contender(spec, "method", shape, of_run, spec, clean=clean)
    if _is_random(spec):
        architecture = spec.partition(":")[2] or ARCHITECTURES[0]
        _known(architecture)
        name = f"{architecture}_uscl"
        shape = Input((3, size, size), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

        def drawn(seed: int, _: Path | None) -> nn.Module:
            return random_network(name, seed)

        return Contender(spec, "random", shape, drawn, spec, clean=clean)
    loaded = network.load(spec, "cpu", statistics=statistics)
    module: Any = loaded.module
    if loaded.classes:
        # what is compared are features
        module.reset_classifier(0)
    size_, mean, std = loaded.transform.size, loaded.transform.mean, loaded.transform.std
    shape = Input((3, *size_), mean, std, loaded.transform.interpolation)  # type: ignore[arg-type]
    identity = loaded.sha256 or digest(module)
    name = loaded.card.name if loaded.kind == "zoo" and loaded.card is not None else spec
    build, card, folder = (lambda *_: module), loaded.card, loaded.folder
    look = loaded.look(clean=clean)
    # of a backbone nobody says
    made = look.clean if loaded.answers is not None else clean
    return Contender(name, loaded.kind, shape, build, identity, card, folder, made, look.grey)


def _known(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise UnknownModelError(
            f"{RANDOM}:{architecture}: should be one of {', '.join(ARCHITECTURES)}"
        )


def _load(path: Path, architecture: str) -> nn.Module:
    network = create_model(f"{architecture}_uscl", num_classes=0)
    network.load_state_dict(read_backbone(path, architecture))
    return network


def random_network(name: str, seed: int) -> nn.Module:
    """A network as pretraining starts it, with every residual branch alive."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(name, num_classes=0, zero_init_last=False)


def random_like(module: nn.Module, seed: int) -> nn.Module:
    """A network of the architecture of another, as `random_network` has it.

    Raises:
        DataError: if it does not say its architecture.
    """
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    architecture = config.get("architecture")
    if not architecture or not timm.is_model(architecture):
        raise DataError(f"{type(module).__name__}: does not say its architecture")
    alive: dict[str, Any] = {"zero_init_last": False} if isinstance(module, ResNet) else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(architecture, num_classes=0, **alive)
    return network
