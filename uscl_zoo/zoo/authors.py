"""Bringing in checkpoints that others publish, bit for bit, as cards of the user's own.

The authors of USCL, Meta-USCL and HiCo keep their ResNet in a `Sequential` named `features`, whose
children 0, 1 and 4-7 hold tensors; torchvision and timm name the same tensors `conv1`, `bn1` and
`layer1`-`layer4`. Values are never touched: only names change.
"""

from __future__ import annotations

import io
import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..checks import beyond_white
from ..errors import CardError, CheckpointError, DataError
from ..files import check_output, expanded, locked, refuse_whole, written
from ..records import read_json, write_yaml
from ..release import release
from . import checkpoint
from .card import ARCHITECTURES, MODELS, Card, Input, Training, Weights, read_card
from .catalogue import home, packaged_cards
from .checkpoint import Channels
from .digests import sha256_of

#: Keys under which training scripts wrap a state dict.
_WRAPPERS = ("state_dict", "weight")

_STAGES = {"features.0.": "conv1.", "features.1.": "bn1."} | {
    f"features.{stage + 3}.": f"layer{stage}." for stage in range(1, 5)
}

#: Projections and classifiers, which a backbone does without.
_HEAD = re.compile(r"(l1|l2|fc|fc1|fc2|linear)\.(weight|bias)")

#: What torchvision and timm normalise by for what they trained on ImageNet, and its classes.
IMAGENET: tuple[Channels, Channels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENET_CLASSES = 1000
#: What the code of USCL, Meta-USCL and HiCo does.
_AUTHORS: tuple[Channels, Channels] = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

#: The largest ResNet-50 with heads and optimizer is a tenth of this.
_LARGEST = 4 << 30


def import_checkpoint(
    path: str | Path,
    name: str,
    folder: str | Path | None = None,
    *,
    overwrite: bool = False,
    licence: str | None = None,
    summary: str | None = None,
    origin: str | None = None,
    statistics: tuple[Channels, Channels] | None = None,
) -> Card:
    """Turn a checkpoint that others publish into a card and weights of the user's own.

    Reads the layouts of USCL, Meta-USCL and HiCo and those of torchvision and timm; pickled by
    `torch.save`, plain or under `state_dict` or `weight`, or as safetensors; with or without heads
    and the `module.` of DataParallel. Nothing in the file is executed. Every tensor is written as
    it was read, float32 or float16; batch counts that old files lack become 0.

    Args:
        path: the checkpoint.
        name: `<model>.<tag>`, e.g. `resnet18_uscl.us4`, which says what architecture to expect.
            Where uscl-zoo has a card of that name, what it says holds for the import.
        folder: to write `<name>.safetensors` and `<name>.yaml` to; the user's own, where
            `create_model` finds them, when None.
        overwrite: replace other weights of that name.
        licence: of the weights, as an SPDX identifier, for names without a card.
        summary: one line for tables, for names without a card.
        origin: where the file was published, for names without a card.
        statistics: mean and standard deviation that its frames were normalised by, of intensities
            in 0-1, for a file that does not say: neither in itself (see `recognised`), nor in a
            `config.json` of timm's beside it, nor by its name.

    Returns:
        The card, as read back from its file.

    Raises:
        CheckpointError: if the file is unreadable, or holds anything but the backbone's tensors
            (120 of ResNet-18, 318 of ResNet-50) and heads; it lists what is missing, extra and
            mis-shaped.
        CardError: if the name is not one of the zoo's kind.
        DataError: if other weights of that name are in the way, or the file itself is, another
            process imports it, nothing says what its frames were normalised by, or two things say
            it differently.
    """
    path = expanded(path)
    folder = expanded(folder) if folder else home()
    refuse_whole(folder)
    card = _card(name, licence, summary, origin)
    weights, card_file = folder / card.weights.file, folder / f"{name}.yaml"
    content = read_content(path)
    state = read_backbone(path, card.architecture, content)
    card = _normalised(card, path, content, statistics)
    try:
        for output in (weights, card_file):
            check_output(output, [path])
        with locked(folder, name):
            with written(weights) as partial:
                checkpoint.write_backbone(state, partial, card.architecture, half=False)
                card = _described(card, path, partial)
                if not overwrite:
                    _refuse_other(weights, card_file, card)
                # from here to its end there is no card, rather than one of other weights
                card_file.unlink(missing_ok=True)
            # after the weights: a card must not promise a file that is not there yet
            write_yaml(card_file, card)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: the weights of {path} cannot be written there ({error.strerror}); make "
            "room or name another folder with USCL_ZOO_WEIGHTS"
        ) from error
    return read_card(card_file)


class Shown(NamedTuple):
    """What the frames of a checkpoint were normalised by.

    Attributes:
        mean: of intensities in 0-1.
        std: of the same.
        how: by what this is known, for people.
        said: whether the file says so, rather than looking like one that was.
    """

    mean: Channels
    std: Channels
    how: str
    said: bool


def recognised(path: Path, content: bytes) -> Shown | None:
    """What a checkpoint's frames were normalised by, where the file or its place shows it.

    Args:
        path: the checkpoint; timm's `config.json` may be beside it.
        content: of the file.

    Returns:
        Mean and standard deviation; None if nothing shows them.

    Raises:
        CheckpointError: if it cannot be read, or says something malformed.
    """
    if content[8:9] == b"{" and (said := checkpoint.statistics_in(path)) is not None:
        return Shown(*said, "its metadata", True)
    state = _state_dict(content, path)
    # of the two architectures of the zoo one has blocks of three convolutions
    deep = any(".conv3." in str(key) for key in state)
    if (said := _beside(path, "resnet50" if deep else "resnet18")) is not None:
        return Shown(*said, "config.json beside it", True)
    names = {str(key).removeprefix("module.") for key in state}
    if any(name.startswith(theirs) for name in names for theirs in _STAGES):
        return Shown(*_AUTHORS, "the layout of the authors of USCL", False)
    head = state.get("fc.bias", state.get("module.fc.bias"))
    if isinstance(head, Tensor) and tuple(head.shape) == (_IMAGENET_CLASSES,):
        # of torchvision and timm alike: of these architectures there is none with others
        return Shown(*IMAGENET, "the 1,000 classes of ImageNet", False)
    return None


def _beside(path: Path, own: str) -> tuple[Channels, Channels] | None:
    """What timm wrote beside weights of that architecture that it saved, or of the Hub."""
    config = path.with_name("config.json")
    if path.name not in ("model.safetensors", "pytorch_model.bin") or not config.is_file():
        return None
    said = read_json(config)
    shape = said.get("pretrained_cfg") if isinstance(said, Mapping) else None
    if not isinstance(shape, Mapping) or shape.get("mean") is None or shape.get("std") is None:
        return None
    named = said.get("architecture")
    if named is not None and MODELS.get(str(named), named) != own:
        # of weights that were here before, or of others
        raise CheckpointError(
            f"{config}: is of a {named}, and {path.name} beside it holds a {own}; move one of them"
        )
    try:
        return check_statistics(shape["mean"], shape["std"])
    except (DataError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config}: {error}") from error


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of three channels, if they can be.

    Raises:
        DataError: if they are not three numbers in 0-1 each, or one of `std` is 0.
    """
    if len(mean) != 3 or not all(math.isfinite(value) for value in mean):
        raise DataError(f"mean should be three numbers, of intensities in 0-1, not {mean!r}")
    if len(std) != 3 or not all(0 < value < math.inf for value in std):
        raise DataError(f"std should be three positive numbers, not {std!r}")
    if (wrong := beyond_white(mean, std)) is not None:
        raise DataError(wrong)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _normalised(
    card: Card, path: Path, content: bytes, given: tuple[Channels, Channels] | None
) -> Card:
    """The card with the mean and standard deviation that belong to the weights."""
    shown = recognised(path, content)
    ways = [] if shown is None else [shown[:3]]
    if given is not None:
        ways.append((*check_statistics(*given), "what is given (`statistics`)"))
    if card.name in packaged_cards():
        ways.append((card.input.mean, card.input.std, f"the card of {card.name}"))
    if not ways:
        raise DataError(
            f"{path}: does not show what mean and std its frames were normalised by; give them "
            "(`statistics`): 0.485,0.456,0.406 and 0.229,0.224,0.225 if it began as ImageNet's "
            "of torchvision or timm and they were kept"
        )
    mean, std, first = ways[0]
    for other_mean, other_std, other in ways[1:]:
        if (other_mean, other_std) != (mean, std):
            raise DataError(
                f"{path}: by {first} its mean and std are {_spelt(mean)} and {_spelt(std)}, and by "
                f"{other} {_spelt(other_mean)} and {_spelt(other_std)}; choose another name, or "
                "leave out what is wrong"
            )
    method = card.training.method
    if (mean, std) == IMAGENET and card.name not in packaged_cards():
        method = "supervised" if shown is not None and shown[:2] == IMAGENET else method
    return replace(
        card,
        input=replace(card.input, mean=mean, std=std),
        training=replace(card.training, method=method),
    )


def _spelt(values: Channels) -> str:
    return ",".join(f"{value:g}" for value in values)


def read_backbone(path: Path, architecture: str, content: bytes | None = None) -> dict[str, Tensor]:
    """Read the backbone's tensors from a checkpoint, under timm's names, heads left out.

    Args:
        path: the checkpoint, see `import_checkpoint`.
        architecture: whose tensors to expect.
        content: of the file, where it has been read: what was hashed is then what is used.

    Returns:
        Tensors by name, bit for bit those of the file, in the order of timm's state dict.

    Raises:
        CheckpointError: if it cannot be read, or its tensors are not those of the architecture.
    """
    state: dict[str, Tensor] = {}
    heads = set()
    content = read_content(path) if content is None else content
    for key, value in _state_dict(content, path).items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: holds {type(value).__name__} under {str(key)[:60]!r} where a state dict "
                "has a tensor; import a file that holds the network's state dict alone"
            )
        key = key.removeprefix("module.")
        if head := _HEAD.fullmatch(key):
            heads.add(head[1])
            continue
        for theirs, ours in _STAGES.items():
            if key.startswith(theirs):
                key = ours + key.removeprefix(theirs)
        if key in state:
            raise CheckpointError(f"{path}: holds {key} twice, under different names")
        state[key] = value
    expected = checkpoint.backbone_shapes(architecture)
    for name in expected:
        # PyTorch counts batches since 0.4.1; inference does not look at the count
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        checkpoint.check_shapes(shapes, architecture, str(path))
    except CheckpointError as error:
        aside = f"; heads, which are left out: {', '.join(sorted(heads))}" if heads else ""
        raise CheckpointError(f"{error}{aside}") from None
    for name in expected:
        _check_values(name, state[name], path)
    return {name: state[name] for name in expected}


def _check_values(name: str, tensor: Tensor, path: Path) -> None:
    counts = name.endswith("num_batches_tracked")
    allowed = (torch.int64,) if counts else (torch.float32, torch.float16)
    if tensor.layout is not torch.strided or tensor.dtype not in allowed:
        kinds = " or ".join(str(kind).removeprefix("torch.") for kind in allowed)
        raise CheckpointError(
            f"{path}: {name} is {tensor.dtype} ({tensor.layout}), not dense {kinds}"
        )
    if not tensor.isfinite().all():
        raise CheckpointError(f"{path}: {name} has values that are not finite")
    if (counts or name.endswith("running_var")) and (tensor < 0).any():
        raise CheckpointError(f"{path}: {name} has negative values, which it cannot")


def _card(name: str, licence: str | None, summary: str | None, origin: str | None) -> Card:
    """The card that the import will fill in."""
    packaged = packaged_cards().get(name)
    if packaged is not None:
        if packaged.has_weights:
            raise DataError(
                f"{name}: comes with uscl-zoo and its weights are known; choose another tag"
            )
        return packaged
    models = [f"{architecture}_uscl" for architecture in ARCHITECTURES]
    model, _, tag = name.partition(".")
    if model not in models or not re.fullmatch(r"[a-z0-9_]+", tag):
        raise CardError(
            f"{name}: should be {' or '.join(models)}, a dot, and a tag of small letters, digits "
            "and underscores"
        )
    return Card(
        name=name,
        architecture=model.removesuffix("_uscl"),
        summary=summary or "imported weights",
        weights=Weights(file=f"{name}.safetensors", origin=origin),
        # of the authors' code; `_normalised` has the last word
        input=Input((3, 224, 224), *_AUTHORS),
        training=Training(method="uscl", sources=()),
        licence=licence,
        intended_use="Research; nothing is known of these weights but the file they came from.",
        limits=("Not a medical device; not for diagnosis or treatment.",),
    )


def _described(card: Card, source: Path, weights: Path) -> Card:
    """The card with the digest of the converted weights, and of the file they came from."""
    came_from = f"{source.name} (SHA-256 {sha256_of(source)}), converted bit for bit"
    return replace(
        card,
        weights=replace(card.weights, sha256=sha256_of(weights), bytes=weights.stat().st_size),
        training=replace(card.training, code=f"{came_from} by uscl-zoo {release()}"),
    )


def _refuse_other(weights: Path, card_file: Path, card: Card) -> None:
    if os.path.lexists(weights):
        there = sha256_of(weights) if weights.is_file() else None
        if there != card.weights.sha256:
            raise DataError(
                f"{weights}: is there already with other weights; choose another tag or overwrite "
                "it (`overwrite=True`)"
            )
    elif card_file.exists() and read_card(card_file).weights.sha256 != card.weights.sha256:
        raise DataError(
            f"{card_file}: is there already and describes other weights; choose another tag or "
            "overwrite it (`overwrite=True`)"
        )


# ------------------------------------------------------------------------- reading, suspiciously


def read_content(path: Path) -> bytes:
    """The bytes of a checkpoint, unless it is far too large for one.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: is no file; name the checkpoint that was downloaded")
        size = path.stat().st_size
        if size > _LARGEST:
            raise CheckpointError(f"{path}: has {size} bytes, too many for a ResNet's checkpoint")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def _state_dict(file: bytes, path: Path) -> Mapping[Any, Any]:
    """What the file holds, out of its wrappers."""
    content = _parse(file, path)
    # once each, and not for ever: a pickle may well contain itself
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__} where a state dict was expected; import a "
            "file that holds the network's state dict"
        )
    return content


def _parse(file: bytes, path: Path) -> Any:
    # safetensors begins with the length of its header, which is JSON
    if file[8:9] == b"{" or path.suffix == ".safetensors":
        try:
            return load(file)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path}: is no readable safetensors file ({_first_line(error)})"
            ) from error
    if file.startswith(b"PK"):
        _check_archive(file, path)
    try:
        with warnings.catch_warnings():
            # of unusual pickles; what is wrong with them is in the error
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its parsers do
        raise CheckpointError(
            f"{path}: is no checkpoint of tensors alone and was not loaded, since pickled code "
            f"would run ({_first_line(error)}); download it again, or ask its author for the "
            "state dict"
        ) from error


def _check_archive(file: bytes, path: Path) -> None:
    """Refuse archives that unpack to more than they are, and those whose checksums do not match.

    torch.load unpacks what is compressed, however large, and leaves checksums aside; torch.save
    never compresses.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(file)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(file):
                raise CheckpointError(
                    f"{path}: would unpack to more than its {len(file)} bytes, which no checkpoint "
                    "of PyTorch does; it was not loaded"
                )
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises whatever struct and its decompressors do
        raise CheckpointError(
            f"{path}: is a damaged checkpoint ({_first_line(error)}); download it again"
        ) from error
    if damaged is not None:
        raise CheckpointError(
            f"{path}: is damaged, {damaged[:80]!r} does not match its checksum; download it again"
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
