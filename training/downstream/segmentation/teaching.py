"""The networks of each task: how one is begun, taught, and asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from uscl_zoo.segmentation.model import found_in, outputs
from uscl_zoo.segmentation.networks import begin_with, build_segmenter
from uscl_zoo.segmentation.regions import Region, components
from uscl_zoo.ultrasound.transforms import FrameTransform

from ..gathering import Base
from .fit import Learner, Lesson, PixelLesson, Rows
from .gather import Decoded
from .settings import Settings

Floats = npt.NDArray[np.float64]
#: Pixels of an image that tell of the temperature: neighbours say the same.
_PIXELS = 1024


class Segmentation:
    """A class a pixel, by a network of smp.

    Args:
        base: backbone to begin with.
        decoded: images and maps of classes.
        settings: how.
        transform: of the network.
        classes: without the background.
        device: to compute on.
    """

    def __init__(
        self,
        base: Base,
        decoded: Decoded,
        settings: Settings,
        transform: FrameTransform,
        classes: int,
        device: torch.device,
    ) -> None:
        self.base, self.decoded, self.settings = base, decoded, settings
        self.transform, self.classes, self.device = transform, classes, device

    def learner(self, rows: Rows, settings: Settings) -> Learner:
        """A network with the weights of the backbone, to be taught some images."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = build_segmenter(settings.network, self.base.architecture, self.classes)
        begin_with(network, copy.deepcopy(self.base.network.state_dict()))
        lesson: Lesson = PixelLesson(
            self.decoded.frames,
            self.decoded.labels,
            rows,
            settings,
            self.transform,
            self.classes,
        )
        encoder: Any = network.encoder
        return Learner(network, lesson, encoder, self.device)

    def ask(
        self, network: nn.Module, rows: Rows
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Logits (classes + 1, h, w) and textures (D,) of images, one after the other."""
        frames = (self.decoded.frames[row] for row in rows.tolist())
        for logits, textures in outputs(
            network, self.transform, frames, self.settings.flips, self.classes
        ):
            yield from zip(logits, textures, strict=True)

    def pixels(
        self, logits: npt.NDArray[np.float32], row: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits (n, classes + 1) and classes (n,) of some pixels of an image, drawn by its row."""
        labels = self.decoded.labels[row].ravel()
        draw = np.random.default_rng([self.settings.seed, row])
        chosen = draw.integers(0, len(labels), _PIXELS)
        flat = logits.reshape(len(logits), -1)
        return flat[:, chosen].T, labels[chosen].astype(np.int64)

    def found(self, logits: npt.NDArray[np.float32], temperature: float) -> list[Region]:
        """The regions of an image, at the size of the network."""
        return found_in(logits, self.transform.size, temperature, self.classes)

    def there(self, row: int) -> list[Region]:
        """The regions of the truth of an image, at the size of the network."""
        return components(np.asarray(self.decoded.labels[row]), self.classes)
