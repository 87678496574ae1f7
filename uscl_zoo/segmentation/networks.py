"""The networks that outline: smp's decoders, and torchvision's detectors, on encoders of timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import DataError, MissingDependencyError

#: Of smp, by its own names: they give a class a pixel.
SEGMENTERS = ("unet", "unetplusplus", "fpn", "deeplabv3plus", "pspnet", "manet", "linknet", "pan")
#: Of torchvision: they give boxes, the first with masks.
DETECTORS = ("maskrcnn", "fasterrcnn")
#: What is built if nobody says.
USUAL = {"segmentation": "unet", "detection": "maskrcnn"}


def smp() -> Any:
    """segmentation_models_pytorch.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise MissingDependencyError(
            "outlines need segmentation-models-pytorch: pip install 'uscl-zoo[segmentation]'"
        ) from error
    return segmentation_models_pytorch


def check_name(task: str, network: str | None) -> str:
    """The network of a task, or the usual one.

    Raises:
        DataError: naming those that there are.
    """
    known = SEGMENTERS if task == "segmentation" else DETECTORS
    network = network or USUAL[task]
    if network not in known:
        raise DataError(f"`network` should be one of {', '.join(known)}, not {network!r}")
    return network


def build_segmenter(network: str, encoder: str, classes: int) -> nn.Module:
    """A network of smp with random weights.

    Args:
        network: one of `SEGMENTERS`.
        encoder: timm's name of it, e.g. `resnet18`.
        classes: without the background, which is the first of its outputs.
    """
    built: nn.Module = smp().create_model(
        network, encoder_name=f"tu-{encoder}", encoder_weights=None, classes=classes + 1
    )
    return built


def config_of(network: nn.Module, encoder: str, classes: int) -> dict[str, Any]:
    """The `config.json` by which smp makes the network: its class and the arguments of it.

    Its encoder is timm's own name, so that what loads it needs nothing of this package. smp hands
    on whatever else there is to timm, which refuses it; classes and input are in `predict.json`.

    Args:
        network: as `build_segmenter` made it.
        encoder: as for `build_segmenter`.
        classes: without the background.
    """
    return {
        "_model_class": type(network).__name__,
        "encoder_name": f"tu-{encoder}",
        "encoder_weights": None,
        "in_channels": 3,
        "classes": classes + 1,
    }


def begin_with(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the encoder of a network the weights of a backbone, all of them.

    Args:
        network: as `build_segmenter` made it.
        state: of the backbone, in timm's names, without a classifier.
    """
    encoder: Any = network.encoder
    encoder.model.load_state_dict(dict(state))


def maps_and_textures(network: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What a segmenter says of frames.

    Args:
        network: as `build_segmenter` made it.
        inputs: (N, 3, H, W).

    Returns:
        Logits (N, classes + 1, H, W), and the mean activations (N, D) of the encoder's first two
        stages, which are texture and contrast.
    """
    features = network.encoder(inputs)
    logits: Tensor = network.segmentation_head(network.decoder(features))
    # the first is the image itself, the second what comes before the stages
    return logits, features_means(features[2:4])


def features_means(stages: Any) -> Tensor:
    """Mean activations of some stages, (N, D)."""
    import torch

    return torch.cat([stage.mean((2, 3)) for stage in stages], dim=1)
