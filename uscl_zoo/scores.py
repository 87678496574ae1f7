"""What a network says of frames: class probabilities, or an embedding where it has no classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from .embed import infer, pooled, prepare
from .errors import DataError
from .files import expanded
from .records import read_json
from .ultrasound.transforms import FrameTransform


@dataclass(frozen=True)
class Scorer:
    """A network, and what its answers mean.

    Attributes:
        network: of timm.
        transform: its input.
        classes: names of its outputs; none if it has no classifier.
        temperature: that its logits are divided by, 1 if nobody has calibrated it.
        name: for people.
    """

    network: nn.Module
    transform: FrameTransform
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    name: str = ""

    @classmethod
    def of(cls, model: nn.Module | str | Path, device: str | torch.device | None = None) -> Scorer:
        """Load what a user names.

        Args:
            model: a checkpoint of the zoo; a folder that holds a timm model, with or without
                `local-dir:` before it; or a timm network.
            device: as for `embed`.

        Raises:
            DataError: if it has a single output, or is on no device.
            UnknownModelError: if no model is of that name.
        """
        folder, temperature = None, 1.0
        name = type(model).__name__ if isinstance(model, nn.Module) else str(model)
        if not isinstance(model, nn.Module):
            folder = expanded(str(model).removeprefix("local-dir:"))
            if folder.is_dir():
                model, name = f"local-dir:{folder}", folder.resolve().name
                # `uscl finetune` keeps it there
                with suppress(OSError, ValueError, KeyError, TypeError):
                    answers = read_json(folder / "predict.json")
                    temperature = float(answers["temperature"])
            model = str(model)
        network, transform = prepare(model, device)
        count = int(getattr(network, "num_classes", 0) or 0)
        if count == 1:
            raise DataError(f"{name}: has one output, and so no classes to tell apart")
        config: Any = getattr(network, "pretrained_cfg", None) or {}
        names = config.get("label_names") if hasattr(config, "get") else None
        if not names or len(names) != count:
            names = [f"class {i}" for i in range(count)]
        return cls(network, transform, tuple(map(str, names)), temperature, name)

    @property
    def answer(self) -> Callable[[nn.Module, Tensor], Tensor]:
        """Logits (N, classes) or embeddings (N, D) of a network like this one."""
        return _logits if self.classes else pooled

    def __call__(
        self, frames: Iterable[Image.Image | NDArray[Any]], batch_size: int = 32
    ) -> NDArray[np.float64]:
        """Score frames.

        Returns:
            Probabilities (N, classes), or embeddings (N, D) if there are no classes.

        Raises:
            DataError: if there are no frames, or the network gives no vector a frame.
        """
        resized = map(self.transform.resize, frames)
        found = list(infer(self.network, self.transform, resized, batch_size, self.answer))
        if not found:
            raise DataError("there are no frames")
        outputs = np.concatenate(found).astype(np.float64)
        return self.probabilities(outputs) if self.classes else outputs

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Of logits (N, classes)."""
        scaled = logits.astype(np.float64) / self.temperature
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    outputs: Tensor = network(inputs)
    return outputs
