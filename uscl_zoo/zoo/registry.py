"""Networks of the zoo, made by timm with the verified weights of their cards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load as load_tensors
from timm.models import PretrainedCfg, ResNet, build_model_with_cfg
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import DataError, UnknownModelError, UsclError
from . import checkpoint, weights_cache
from .card import MODELS, read_card
from .catalogue import card_named, own_folder
from .configs import pretrained_cfg_of

_LAYERS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet50": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
}
#: Where timm may take weights from; naming one in a configuration overrides the card.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id")


def _refuse_foreign(
    architecture: str,
) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    def check(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        shapes = {n: tuple(t.shape) for n, t in state.items() if not n.startswith("fc.")}
        checkpoint.check_shapes(shapes, architecture, "the weights given to timm")
        # timm would round a first convolution that it adapts to other channels to half precision
        return state | {"conv1.weight": state["conv1.weight"].float()}

    return check


def statistics_of(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Mean or standard deviation of red, green and blue, for so many channels.

    Grey has their average; more than three are red, green and blue in turn, as timm repeats the
    filters of a first convolution.
    """
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(islice(cycle(values), channels))


class GreyConv2d(nn.Conv2d):
    """A first convolution that takes normalised grey and sees it as its three channels.

    Where each channel has a mean and a deviation of its own, adding up the filters, as timm does,
    makes another network, and no fold of the difference into filters and batch norm is right at the
    border, which is padded with zeros: with another colour. So the filters stay as they are, and
    the grey is normalised anew for each.

    Args:
        colour: of three channels.
        mean: of the three, of intensities in 0-1.
        std: of the three, of intensities in 0-1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, colour: nn.Conv2d, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take over the filters of a convolution."""
        super().__init__(
            colour.in_channels,
            colour.out_channels,
            colour.kernel_size,  # type: ignore[arg-type]
            colour.stride,  # type: ignore[arg-type]
            colour.padding,  # type: ignore[arg-type]
            bias=False,
        )
        self.weight = colour.weight
        self.in_channels = 1
        (grey_mean,), (grey_std,) = statistics_of(mean, 1), statistics_of(std, 1)
        scale = torch.tensor([grey_std / s for s in std])
        shift = torch.tensor([(grey_mean - m) / s for m, s in zip(mean, std, strict=True)])
        # they are the card's, no parameters: the state is that of the network of three channels
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve grey (N, 1, H, W), normalised by the average mean and standard deviation."""
        return super().forward(input * self.scale + self.shift)


class _Undrawn(TorchFunctionMode):
    """Draws no filters: those of a file are about to take their place.

    PyTorch draws them once and timm again, which takes three times as long as all the rest. What
    else is drawn, as a new classifier, is.
    """

    _OF_FILTERS = (nn.init.kaiming_uniform_, nn.init.kaiming_normal_, Tensor.normal_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._OF_FILTERS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.ndim == 4:
                return tensor
        return func(*args, **kwargs)


def create(
    model: str,
    pretrained: bool,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """What the entry points do; the arguments are those that timm gives them."""
    architecture = MODELS[model]
    overlay = dict(pretrained_cfg_overlay or {})
    if isinstance(pretrained_cfg, PretrainedCfg):
        pretrained_cfg = pretrained_cfg.to_dict()
    if isinstance(pretrained_cfg, dict):
        # a configuration of the user's own, e.g. with a `file`; what it leaves out is the card's
        overlay = pretrained_cfg | overlay
        pretrained_cfg = None
    card = card_named(f"{model}.{pretrained_cfg}" if pretrained_cfg else model)
    located = None
    if pretrained and not any(overlay.get(source) for source in _SOURCES):
        located = weights_cache.locate(card, cache_dir=cache_dir)
        checkpoint.check_file(located.path, architecture)
        overlay["file"] = str(located.path)
    if kwargs.get("features_only"):
        # features have no classifier, and timm would cut one out of weights that have none
        kwargs["num_classes"] = 0
    shown = {"mean": card.input.mean, "std": card.input.std, **overlay}
    grey = kwargs.get("in_chans") == 1 and any(len(set(shown[key])) > 1 for key in ("mean", "std"))
    if grey:
        kwargs["in_chans"] = 3
    # a file that was checked has every filter, and timm takes no other number of them
    filled = located is not None and kwargs.get("pretrained_strict", True)
    with _Undrawn() if filled else nullcontext():
        network: nn.Module = build_model_with_cfg(
            ResNet,
            model,
            pretrained,
            pretrained_cfg=pretrained_cfg_of(card).to_dict(),
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=_refuse_foreign(architecture),
            cache_dir=cache_dir,
            **_LAYERS[architecture],
            **kwargs,
        )
    if located is not None:
        located.recheck()
    if grey:
        _take_grey(network, shown["mean"], shown["std"])
    return network


def _take_grey(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Put a `GreyConv2d` in the place of the first convolution, wherever timm has it."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, GreyConv2d(first, mean, std))


def create_model(name: str | Path, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Create a backbone of the zoo, or the network of a model's folder.

    Args:
        name: a model, e.g. `resnet18_uscl`, or a checkpoint of it, e.g. `resnet18_uscl.pocus`; or
            the path of a folder that `uscl finetune` or timm wrote.
        pretrained: load the weights, verified; otherwise the network is randomly initialised.
        **kwargs: timm's, e.g. `num_classes`, `in_chans`, `features_only`, `cache_dir`.

    Returns:
        A timm model, in the mode of training: `.eval()` it to embed. Without `num_classes` it maps
        frames (N, 3, H, W) to embeddings (N, `num_features`), or, from the folder of a model, to
        its logits (N, classes).

    Raises:
        UnknownModelError: naming the nearest models.
        WeightsNotFoundError: saying where was looked and what to do.
        DigestError: if a file is not the one of the card.
    """
    if not isinstance(name, (str, Path)):
        raise UnknownModelError(
            f"a model is created by its name, as 'resnet18_uscl', not {type(name).__name__}; "
            "`uscl_zoo.Embedder(model)(images)` takes images"
        )
    name = str(name)
    if ":" not in name:  # timm's own schemes, e.g. `local-dir:`, are timm's to judge
        if (folder := own_folder(name)) is not None:
            return _of_folder(folder, pretrained, kwargs)
        card_named(name)
    if isinstance(kwargs.get("pretrained_cfg"), dict):
        # what it leaves out is this checkpoint's; timm would forget the tag, and take the default's
        given = kwargs.pop("pretrained_cfg")
        kwargs["pretrained_cfg_overlay"] = given | (kwargs.get("pretrained_cfg_overlay") or {})
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    return model


def _of_folder(folder: Path, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """The network of a folder; where there is a card, of the very bytes that it names."""
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    cards = [read_card(path) for path in sorted(folder.glob("*.yaml"))]
    if pretrained and cards and not any(overlay.get(source) for source in _SOURCES):
        overlay["state_dict"] = load_tensors(weights_cache.read_bytes(cards[0], folder))
    try:
        model: nn.Module = timm.create_model(
            f"local-dir:{folder}", pretrained=pretrained, pretrained_cfg_overlay=overlay, **kwargs
        )
    # a configuration may say anything, and timm asserts, compares and indexes
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, UsclError):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{folder}: holds no model of timm that can be made so ({reason})"
        ) from error
    return model
