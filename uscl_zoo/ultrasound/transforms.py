"""From an image of any kind to what a network takes: a normalised tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg
from torch import nn

from ..checks import beyond_white
from ..errors import DataError, UnknownModelError
from ..records import read_json
from ..zoo.card import MODELS, Card
from ..zoo.catalogue import card_in, card_named, own_folder
from ..zoo.registry import statistics_of
from .rgb import resampling, to_frame


@dataclass(frozen=True)
class FrameTransform:
    """The deterministic transform of evaluation: resize, to 0-1, normalise.

    Both sides are resized, with antialiasing, and the aspect ratio is not kept. One channel is the
    luminance; more than three are red, green, blue in turn, as timm repeats the filters of a first
    convolution.

    Attributes:
        size: height and width in pixels.
        mean: one value a channel, of intensities in 0-1.
        std: one value a channel, of intensities in 0-1.
        interpolation: nearest, bilinear, bicubic or lanczos.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        resampling(self.interpolation)
        if not self.mean or len(self.mean) != len(self.std):
            raise DataError(f"mean and std should be as long: {self.mean}, {self.std}")
        if len(self.size) != 2 or not all(isinstance(s, int) and s > 0 for s in self.size):
            raise DataError(f"size should be height and width in pixels, not {self.size}")
        if not all(map(_is_number, self.mean)):
            raise DataError(f"mean should be finite numbers, not {self.mean}")
        if not all(_is_number(value) and value > 0 for value in self.std):
            raise DataError(f"std should be positive numbers, not {self.std}")
        if (wrong := beyond_white(self.mean, self.std)) is not None:
            raise DataError(wrong)

    @property
    def channels(self) -> int:
        """The number of channels of the result."""
        return len(self.mean)

    def __call__(self, image: Image.Image | NDArray[Any]) -> torch.Tensor:
        """Transform one image, anything that `to_frame` takes.

        Returns:
            A float32 tensor of shape (C, H, W).
        """
        return self.normalise(torch.from_numpy(self.resize(image))[None])[0]

    def resize(self, image: Image.Image | NDArray[Any]) -> NDArray[np.uint8]:
        """The first half: a frame of the network's size, a quarter of the tensor's bytes.

        Returns:
            uint8 (H, W, 3), or (H, W, 1) for a network that takes grey.
        """
        frame = to_frame(image)
        if self.channels == 1:
            frame = frame.convert("L")
        height, width = self.size
        frame = frame.resize((width, height), resampling(self.interpolation))
        return np.array(frame).reshape(height, width, -1)

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        """The second half, on whatever device the frames are.

        Args:
            frames: as `resize` gives them, uint8 (N, H, W, 3) or (N, H, W, 1).

        Returns:
            A float32 tensor of shape (N, C, H, W).
        """
        pixels = frames.permute(0, 3, 1, 2)
        channels = [c % pixels.shape[1] for c in range(self.channels)]
        pixels = pixels[:, channels].contiguous().float() / 255
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=frames.device)[:, None, None]
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def batch(self, images: Iterable[Image.Image | NDArray[Any]]) -> torch.Tensor:
        """Transform several images, e.g. an array (N, H, W, 3) of uint8.

        Returns:
            A float32 tensor of shape (N, C, H, W).
        """
        return torch.stack([self(image) for image in images])


def _named(name: str) -> Card | PretrainedCfg | Mapping[str, Any]:
    """What is known under a name of the zoo or of timm, or of a model's folder."""
    if (folder := own_folder(name)) is not None:
        if (folder / "predict.json").is_file():
            return card_in(folder)
        said = read_json(folder / "config.json")
        shape: Any = said.get("pretrained_cfg", said) if isinstance(said, Mapping) else None
        if not isinstance(shape, Mapping):
            raise DataError(f"{folder / 'config.json'}: should be a mapping with `pretrained_cfg`")
        return shape
    # timm knows of the zoo's what was there when it was registered, and not what came since
    if name.partition(".")[0] in MODELS:
        return card_named(name)
    try:
        return timm.get_pretrained_cfg(name) or card_named(name)
    except RuntimeError as error:
        raise UnknownModelError(f"{name}: timm knows the model, and not the tag") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _channels(config: Mapping[str, Any], key: str, count: int) -> tuple[float, ...]:
    """Mean or std of a configuration, for so many channels.

    Raises:
        DataError: if it is neither of one channel nor of three, nor of these.
    """
    values = config[key]
    if not isinstance(values, (list, tuple)) or len(values) not in (1, 3, count):
        raise DataError(f"{key} should be a number a channel, not {values!r}")
    if not all(map(_is_number, values)):
        raise DataError(f"{key} should be finite numbers, not {values!r}")
    return statistics_of(values, count)


def create_transform(model: nn.Module | Card | str | Path) -> FrameTransform:
    """Create the transform that a network or card asks for.

    A network is asked for the channels that its first convolution takes: timm goes on to report
    three for one created with `in_chans=1`.

    Args:
        model: a network that timm made, or anything built around one; a card; a model name; or the
            path of a model's folder.

    Raises:
        UnknownModelError: if no model is of that name.
        DataError: if the network does not say what input it was trained on.
    """
    asked: Any = model
    if isinstance(model, (str, Path)):
        asked = _named(str(model))
    elif not isinstance(model, (nn.Module, Card)):
        raise UnknownModelError(
            f"a transform is that of a model, and this is of {type(model).__name__}: "
            "`create_transform(model)(image)`"
        )
    channels = None
    if isinstance(asked, Card):
        config = {**vars(asked.input), "input_size": asked.input.size}
    elif isinstance(asked, (PretrainedCfg, Mapping)):
        config = _data_config(asked)
    else:
        config = _data_config(_pretrained_cfg(asked))
        convolutions = (m.in_channels for m in asked.modules() if isinstance(m, nn.Conv2d))
        channels = next(convolutions, None)
    size = config["input_size"]
    if not isinstance(size, (list, tuple)) or len(size) != 3:
        raise DataError(f"input_size should be channels, height and width, not {size!r}")
    channels = channels or size[0]
    return FrameTransform(
        size=(size[1], size[2]),
        mean=_channels(config, "mean", channels),
        std=_channels(config, "std", channels),
        interpolation=config["interpolation"],
    )


def _pretrained_cfg(model: nn.Module) -> Any:
    # wrappers (DataParallel, torch.compile, a U-Net's encoder) hold timm's network inside
    for module in model.modules():
        if cfg := getattr(module, "pretrained_cfg", None):
            return cfg
    raise DataError(
        f"{type(model).__name__} does not say what input it was trained on, as timm's networks do; "
        "build a FrameTransform with its size, mean and std"
    )


def _data_config(cfg: Any) -> dict[str, Any]:
    cfg = dict(cfg) if isinstance(cfg, Mapping) else vars(cfg)
    for key in ("input_size", "mean", "std"):
        # timm would take ImageNet's in its place
        if cfg.get(key) is not None and not cfg[key]:
            raise DataError(f"{key} is empty")
    try:
        return dict(resolve_data_config(pretrained_cfg=cfg))
    except (AssertionError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise DataError(f"its configuration of the input is malformed ({error!r})") from error
