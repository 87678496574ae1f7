"""The one door: from whatever names a network to one that answers, verified where it can be."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from .answers import (
    ANSWERS,
    STATISTICS,
    Answers,
    Statistics,
    read_model,
    read_statistics,
    softmax,
    warn_unguarded,
)
from .errors import CheckpointError, DataError, DigestError, UnknownModelError, UsclError
from .errors import reason as why
from .files import expanded
from .inference import (
    Answer,
    batched,
    both_ways,
    device_named,
    infer,
    logits,
    logits_and_textures,
    pooled,
)
from .ultrasound.sources import Look
from .ultrasound.transforms import FrameTransform, create_transform
from .zoo import authors, checkpoint, weights_cache
from .zoo.card import ARCHITECTURES, MODELS, Card, Input, read_card
from .zoo.catalogue import all_cards, card_named, is_picture
from .zoo.checkpoint import Channels
from .zoo.configs import card_config

#: How timm asks for a network in a folder, and for one of the Hub.
LOCAL, HUB = "local-dir:", "hf-hub:"
#: Frames a second at which a clip is looked at, where the network does not say.
RATE = 3.0

# What comes of a configuration of wrong types.
_WRONG = (TypeError, AttributeError, AssertionError)

Floats = NDArray[np.float64]
Frame = Image.Image | NDArray[Any]


class UnverifiedWarning(UserWarning):
    """Weights that no card names a digest of, and that nobody can vouch for."""


@dataclass(frozen=True, repr=False)
class Network:
    """A network that answers, and what is known of it.

    Attributes:
        reference: as it was asked for.
        kind: `zoo`, `model` (a folder of `uscl finetune`), `folder`, `hub`, `timm`, `file`, or
            `module` for one that was given.
        name: for people.
        module: of timm, in eval mode, on its device.
        transform: its input.
        classes: names of its outputs; none if it has no classifier.
        card: what is known of the weights; None where there is none.
        folder: of the card, where it is not one of the zoo's.
        sha256: of the weights that are used; None where they are not of one file.
        verified: whether that is the digest of the card.
        answers: how its logits become answers; None but for a model of `uscl finetune`.
        statistics: of its training images; None as `answers`.
    """

    reference: str
    kind: str
    name: str
    module: nn.Module
    transform: FrameTransform
    classes: tuple[str, ...] = ()
    card: Card | None = None
    folder: Path | None = None
    sha256: str | None = None
    verified: bool = False
    answers: Answers | None = None
    statistics: Statistics | None = None

    def __repr__(self) -> str:
        of = f"{len(self.classes)} classes" if self.classes else "embeddings"
        return f"Network({self.name!r}, {of}, {self.licence or 'licence not stated'})"

    @property
    def licence(self) -> str | None:
        """Of the weights, as an SPDX identifier; None where nobody says."""
        if self.card is not None:
            return self.card.licence
        config: Any = getattr(self.module, "pretrained_cfg", None) or {}
        said = config.get("license") if hasattr(config, "get") else None
        return None if said is None else str(said)

    @property
    def temperature(self) -> float:
        """What its logits are divided by, 1 if nobody has calibrated it."""
        return 1.0 if self.answers is None else self.answers.temperature

    @property
    def rate(self) -> float:
        """Frames a second at which it looks at a clip."""
        return RATE if self.answers is None else self.answers.rate

    @property
    def flips(self) -> bool:
        """Whether what it says is the mean over a frame and its mirror image."""
        return self.answers is not None and self.answers.flips

    def look(self, rate: float | None = None, clean: bool | None = None) -> Look:
        """How it looks at a clip: as it was made to, but for what is said here.

        Args:
            rate: frames a second.
            clean: whether frames are cut to the beam, and cleaned of what is drawn in it.
        """
        made = self.answers
        return Look(
            self.rate if rate is None else rate,
            clean=made is not None and made.clean if clean is None else clean,
            grey=made is not None and made.grey,
        )

    def run(self, frames: Iterable[Frame], batch_size: int = 32) -> tuple[Floats, Floats]:
        """What it makes of frames.

        Args:
            frames: anything that `ultrasound.transforms.to_frame` takes.
            batch_size: frames at a time.

        Returns:
            Calibrated probabilities (N, classes), numbers (N, 1) of a regression, or embeddings (N,
            D) if there are no classes; and distances (N,) from the training images, NaN where there
            are no statistics of them.

        Raises:
            DataError: if it has a single output, or gives no vector a frame.
        """
        batches = batched((self.transform.resize(frame) for frame in frames), batch_size)
        values = list(infer(self.module, self.transform.normalise, batches, self.wanted))
        if not values:
            return np.empty((0, len(self.classes))), np.empty(0)
        return self.said(np.concatenate(values))

    @property
    def wanted(self) -> Answer:
        """What is taken of the module for an answer, which `said` puts into words.

        Raises:
            DataError: if it has a single output.
        """
        if len(self.classes) == 1 and self.answers is None:
            raise DataError(f"{self.name}: has one output, and so no classes to tell apart")
        wanted: Answer = pooled if not self.classes else logits
        if self.statistics is not None:
            wanted = logits_and_textures
        return both_ways(wanted) if self.flips else wanted

    def said(self, outputs: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """What `run` returns, of what `wanted` took of the module, (N, ...)."""
        count = len(self.classes)
        distances = np.full(len(outputs), np.nan)
        if self.statistics is not None:
            distances = self.statistics.distance(outputs[:, count:])
        if not self.classes:
            return outputs.astype(np.float64), distances
        if self.answers is not None:
            return self.answers.of(outputs[:, :count]), distances
        return softmax(outputs[:, :count], self.temperature), distances

    def is_unlike(self, distances: Floats) -> bool:
        """Whether a clip of such frames is of another kind than the training images."""
        if self.answers is None:
            return False
        return bool(np.median(distances) > self.answers.threshold)

    def __call__(self, frames: Iterable[Frame], batch_size: int = 32) -> Floats:
        """Probabilities (N, classes) of frames, or embeddings (N, D), as `run` gives them.

        Raises:
            DataError: if there are no frames.
        """
        values = self.run(frames, batch_size)[0]
        if not len(values):
            raise DataError("there are no frames")
        return values


#: What `load` takes: a name, the path of a folder or file, a network, or one loaded before.
Reference = str | Path | nn.Module | Network


def load(
    reference: Reference,
    device: str | torch.device | None = None,
    *,
    statistics: tuple[Channels, Channels] | None = None,
) -> Network:
    """Load what a user names.

    Where a card names the digest of the weights, the bytes that are used are the ones whose digest
    was taken. Where none does, an `UnverifiedWarning` says so.

    Args:
        reference: a name of the zoo, or of timm; the YAML of a card with its weights beside it; a
            folder of a model of `uscl finetune`, or of any network of timm, with or without
            `local-dir:` before it; `hf-hub:` and a repository; a checkpoint file of any layout that
            `uscl import` takes; or a network, of timm or loaded before.
        device: to compute on. If None, a network stays where it is, and one that is named goes to a
            GPU where there is one.
        statistics: mean and standard deviation of the input, for a checkpoint file that does not
            say its own.

    Raises:
        UnknownModelError: if nothing is of that name.
        DigestError: if a file is not the one that its card names.
        DataError: if a folder holds none, the device cannot be used, or a file says nothing of its
            mean and standard deviation.
        UsclError: if its weights cannot be had.
    """
    if isinstance(reference, nn.Module):
        name = type(reference).__name__
        loaded = _described("", "module", name, reference)
    elif isinstance(reference, Network):
        loaded = reference
    else:
        if not isinstance(reference, (str, Path)):
            raise UnknownModelError(
                f"a model is named, or is a network, and this is of {type(reference).__name__}; "
                "the model comes before the images"
            )
        # before the work: of a name that is none the network is not looked for
        device = device_named(device)
        try:
            loaded = _named(str(reference), statistics)
        except OSError as error:
            # of a folder that another user keeps to himself, even whether a file is there
            if isinstance(error, UsclError):
                raise
            where = error.filename or reference
            raise DataError(f"{where}: cannot be read ({why(error)})") from error
        loaded.module.eval()
        if not loaded.verified:
            warnings.warn(
                f"{loaded.reference}: its weights are not verified, as no card names their digest",
                UnverifiedWarning,
                stacklevel=2,
            )
    if any(weight.is_meta for weight in loaded.module.parameters()):
        raise DataError(f"{loaded.name}: has weights without numbers, on the device 'meta'")
    if device is None:
        return loaded
    place = device_named(device)
    try:
        return replace(loaded, module=loaded.module.to(place))
    except RuntimeError as error:
        # of no room, or a network whose weights are nowhere
        raise DataError(f"{loaded.name}: cannot be moved to {place} ({why(error)})") from error


def _named(reference: str, statistics: tuple[Channels, Channels] | None) -> Network:
    if reference.startswith(LOCAL):
        return _of_folder(reference, expanded(reference.removeprefix(LOCAL)))
    if reference.startswith(HUB):
        return _of_timm(reference, "hub")
    unknown = None
    try:
        card = card_named(reference)
    except UnknownModelError as error:
        unknown = error
    else:
        return _of_card(card, reference, "zoo", card.name, None)
    path = expanded(reference)
    if path.is_dir():
        return _of_folder(reference, path)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        card = read_card(path)
        return _of_card(card, reference, "file", card.name, path.parent)
    if is_picture(reference):
        raise UnknownModelError(
            f"{reference}: is an image or clip, and a model is wanted here; it comes before the "
            f"images, as in `embed('resnet18_uscl', {reference!r})`"
        )
    if path.is_file():
        return _of_file(reference, path, statistics)
    # of a checkpoint that the zoo lacks, timm would take the model's default
    if timm.is_model(reference) and reference.partition(".")[0] not in MODELS:
        return _of_timm(reference, "timm")
    raise UnknownModelError(
        f"{reference}: no file or folder, no model of timm, and of the zoo neither ({unknown})"
    )


def _of_card(card: Card, reference: str, kind: str, name: str, folder: Path | None) -> Network:
    """A network of the architecture and with the weights that a card names, byte for byte."""
    content = weights_cache.read_bytes(card, folder)
    count = len(card.classes)
    module = timm.create_model(card.architecture, num_classes=count, **card_config(card))
    module.load_state_dict(_tensors(content, card, name))
    return Network(
        reference=reference,
        kind=kind,
        name=name,
        module=module,
        transform=create_transform(card),
        classes=card.classes,
        card=card,
        folder=folder,
        sha256=card.weights.sha256,
        verified=True,
    )


def _tensors(content: bytes, card: Card, name: str) -> dict[str, Tensor]:
    """The tensors of a card's weights, all of them and no others."""
    try:
        state = load_tensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: is no readable safetensors file ({error})") from error
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    checkpoint.check_shapes(shapes, card.architecture, name, len(card.classes))
    return state


def _of_folder(reference: str, folder: Path) -> Network:
    """A model of `uscl finetune`, or what else timm can load."""
    name = folder.resolve().name
    if (folder / ANSWERS).is_file():
        card, answers = read_model(folder)
        seen = read_statistics(folder / STATISTICS, answers)
        loaded = _of_card(card, reference, "model", name, folder)
        stages: Any = loaded.module.feature_info
        wide = sum(stage["num_chs"] for stage in stages[1:3])
        if len(seen.mean) != wide:
            raise CheckpointError(
                f"{folder / STATISTICS}: holds statistics of {len(seen.mean)} numbers, where "
                f"{card.architecture} has {wide}; copy the model's folder again"
            )
        frames = f"{answers.validation_frames} validation frames"
        warn_unguarded(folder / ANSWERS, answers.threshold, frames)
        return replace(loaded, answers=answers, statistics=seen)
    if (folder / STATISTICS).exists():
        raise DataError(
            f"{folder}: is a model of `uscl finetune` without its {ANSWERS}, which says when it "
            "cannot tell; copy the model's folder again"
        )
    # a card beside weights is to be kept, whoever wrote the two
    for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
        card = read_card(path)
        if card.has_weights and (folder / card.weights.file).exists():
            return _of_card(card, reference, "folder", name, folder)
    try:
        module: Any = timm.create_model(f"{LOCAL}{folder}", pretrained=True)
    # a configuration may say anything, and timm asserts, compares and indexes
    except (OSError, RuntimeError, ValueError, LookupError, *_WRONG) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{folder}: holds no model, of `uscl finetune` or of timm ({type(error).__name__}: "
            f"{reason}); timm's have a config.json that names the architecture, and weights"
        ) from error
    return _described(reference, "folder", name, module, folder)


def _of_timm(reference: str, kind: str) -> Network:
    try:
        module: Any = timm.create_model(reference, pretrained=True)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{reference}: timm could not get its weights ({type(error).__name__}: {reason}); is "
            "the Hub in reach?"
        ) from error
    return _described(reference, kind, reference, module)


def _described(
    reference: str, kind: str, name: str, module: nn.Module, folder: Path | None = None
) -> Network:
    """A network of timm, by what it says of itself."""
    count = int(getattr(module, "num_classes", 0) or 0)
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    names = config.get("label_names") if hasattr(config, "get") else None
    if not names or len(names) != count:
        names = [f"class {i}" for i in range(count)]
    classes = tuple(map(str, names))
    try:
        transform = create_transform(module)
    except DataError as error:
        raise DataError(f"{reference or name}: {error}") from error
    return Network(reference, kind, name, module, transform, classes, folder=folder)


def _of_file(reference: str, path: Path, statistics: tuple[Channels, Channels] | None) -> Network:
    """A checkpoint of whichever architecture its tensors fit."""
    content = authors.read_content(path)
    digest = hashlib.sha256(content).hexdigest()
    card, folder = _card_of(path, digest)
    refused: list[str] = []
    for architecture in ARCHITECTURES:
        try:
            state = authors.read_backbone(path, architecture, content)
        except UsclError as error:
            refused.append(str(error))
            continue
        shape = None if card is None else card.input
        if shape is None:
            own = authors.recognised(path, content)
            if own is None and statistics is None:
                raise DataError(
                    f"{path}: does not say what mean and std its frames had; give them "
                    "(`statistics`), as 0.5 and 0.25 for weights of this zoo's first recipes"
                )
            # who says it knows better than what it looks like, and the file better than both
            if own is not None and (own.said or statistics is None):
                statistics = own.mean, own.std
            assert statistics is not None
            shape = Input((3, 224, 224), *statistics)
        module = timm.create_model(architecture, num_classes=0, **card_config(shape))
        module.load_state_dict(state)
        return Network(
            reference=reference,
            kind="file",
            name=str(path),
            module=module,
            transform=create_transform(module),
            card=card,
            folder=folder,
            sha256=digest,
            verified=card is not None,
        )
    raise DataError(f"{path}: fits no architecture of the zoo: {refused[0]}")


def _card_of(path: Path, digest: str) -> tuple[Card | None, Path | None]:
    """The card of a file that is known by its content: the one beside it, or one of the zoo.

    Raises:
        DigestError: if the card beside it names another digest.
    """
    beside = path.with_suffix(".yaml")
    if beside.is_file():
        card = read_card(beside)
        if card.weights.sha256 == digest:
            return card, path.parent
        if card.weights.sha256 is not None and card.weights.file == path.name:
            raise DigestError(
                f"{path}: is not the file of the card beside it: expected SHA-256 "
                f"{card.weights.sha256}, found {digest}; get either again"
            )
    for card in all_cards().values():
        if card.weights.sha256 == digest:
            return card, None
    return None, None
