"""The networks of each task: how one is begun, taught and asked, and what makes answers of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from uscl_zoo.errors import DataError
from uscl_zoo.segmentation.detectors import (
    Detected,
    begin_detector,
    body_of,
    build_detector,
    detect,
)
from uscl_zoo.segmentation.model import Pixels, Trust, found_in, outputs
from uscl_zoo.segmentation.networks import begin_with, build_segmenter
from uscl_zoo.segmentation.regions import Region, components, region_of
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Input

from ..gathering import Base
from . import coco
from .calibrating import fit_pixels, trust_of
from .figures import match
from .fit import LessonLearner, PixelLesson, RegionLesson, Rows
from .gather import Decoded
from .outlined import Outlined
from .settings import Settings

Arrays = dict[str, npt.NDArray[Any]]
#: Pixels of an image that tell of calibration: neighbours say the same.
_PIXELS = 1024


class Teaching:
    """What a task is: networks that are taught, asked, and calibrated on subjects left out.

    Args:
        base: backbone to begin with.
        outlined: the images.
        decoded: the same, decoded.
        settings: how.
        shape: of the input.
        device: to compute on.
    """

    task = ""

    def __init__(
        self,
        base: Base,
        outlined: Outlined,
        decoded: Decoded,
        settings: Settings,
        shape: Input,
        device: torch.device,
    ) -> None:
        self.base, self.decoded, self.settings = base, decoded, settings
        self.shape, self.device = shape, device
        self.outlined, self.classes = outlined, len(outlined.classes)
        self.transform = FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)

    @property
    def masks(self) -> bool:
        """Whether it gives masks, and not boxes alone."""
        return True

    def learner(self, rows: Rows, settings: Settings) -> LessonLearner:
        """A network with the weights of the backbone, to be taught some images."""
        raise NotImplementedError

    def ask(self, network: nn.Module, rows: Rows) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """What a network says of images, one after the other, and their textures (D,)."""
        raise NotImplementedError

    def evidence(self, answers: Sequence[Any], rows: Rows) -> Arrays:
        """What is kept of answers about images that their network was not trained on."""
        raise NotImplementedError

    def settle(self, kept: Mapping[str, npt.NDArray[Any]], rows: Rows) -> tuple[Pixels, Trust]:
        """How sure one may be of pixels, and of regions, by what was kept."""
        raise NotImplementedError

    def predicted(self, answer: Any, size: tuple[int, int], pixels: Pixels) -> list[Region]:
        """The regions of a frame of that size."""
        raise NotImplementedError

    def there(self, row: int) -> list[Region]:
        """The regions of the truth of an image, at the size of the network."""
        raise NotImplementedError

    def _evidence_of(self, regions: Sequence[Region], row: int) -> list[tuple[float, float, bool]]:
        """Score, share of the frame, and whether it is there, of what was predicted in an image."""
        size = self.transform.size
        right, _ = match(self.there(row), regions, size)
        pairs = zip(regions, right, strict=True)
        return [(r.score, r.area / (size[0] * size[1]), hit) for r, hit in pairs]

    def _subjects(self, rows: Rows) -> npt.NDArray[np.int64]:
        return np.unique(self.decoded.subjects(rows), return_inverse=True)[1]


class Segmentation(Teaching):
    """A class a pixel, by a network of smp."""

    task = "segmentation"

    def learner(self, rows: Rows, settings: Settings) -> LessonLearner:
        """As for `Teaching`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network: Any = build_segmenter(settings.network, self.base.architecture, self.classes)
        begin_with(network, self.base.network.state_dict())
        decoded = self.decoded
        lesson = PixelLesson(
            decoded.frames, decoded.labels, rows, settings, self.transform, self.classes
        )
        return LessonLearner(network, lesson, network.encoder, self.device)

    def ask(self, network: nn.Module, rows: Rows) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """Logits (classes + 1, h, w) and textures (D,) of images, one after the other."""
        frames = (self.decoded.frames[row] for row in rows.tolist())
        for logits, textures in outputs(
            network, self.transform, frames, self.settings.flips, self.classes
        ):
            yield from zip(logits, textures, strict=True)

    def evidence(self, answers: Sequence[Any], rows: Rows) -> Arrays:
        """The logits, in half precision, which is as exact as what a network of bf16 says."""
        return {"logits": np.stack(answers).astype(np.float16)}

    def settle(self, kept: Mapping[str, npt.NDArray[Any]], rows: Rows) -> tuple[Pixels, Trust]:
        """How sure one may be of pixels, and with it of regions."""
        parts = [self._pixels(one, row) for one, row in zip(kept["logits"], rows, strict=True)]
        pixels = fit_pixels(
            np.stack([one for one, _ in parts]),
            np.stack([one for _, one in parts]),
            self._subjects(rows),
        )
        seen: list[tuple[float, float, bool]] = []
        for logits, row in zip(kept["logits"], rows.tolist(), strict=True):
            regions = self.predicted(logits.astype(np.float32), self.transform.size, pixels)
            seen += self._evidence_of(regions, row)
        return pixels, trust_of(seen)

    def _pixels(
        self, logits: npt.NDArray[Any], row: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Logits (n, classes + 1) and classes (n,) of some pixels of an image, drawn by its row."""
        labels = self.decoded.labels[row].ravel()
        draw = np.random.default_rng([self.settings.seed, row])
        chosen = draw.integers(0, len(labels), _PIXELS)
        flat = logits.reshape(len(logits), -1)
        return flat[:, chosen].T.astype(np.float64), labels[chosen].astype(np.int64)

    def predicted(self, answer: Any, size: tuple[int, int], pixels: Pixels) -> list[Region]:
        """As for `Teaching`."""
        return found_in(answer, size, pixels, self.classes)

    def there(self, row: int) -> list[Region]:
        """As for `Teaching`."""
        return components(np.asarray(self.decoded.labels[row]), self.classes)


class Detection(Teaching):
    """Boxes, and masks in them, by a detector of torchvision.

    Raises:
        DataError: if masks are to be taught, and there are boxes alone.
    """

    task = "detection"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        rows = range(len(self.decoded.items))
        # a few kilobytes an image
        self.regions = [self._regions(row) for row in rows]
        bare = next(
            (row for row, of in enumerate(self.regions) if any(r.mask is None for r in of)), None
        )
        if bare is not None and self.masks:
            raise DataError(
                f"{self.decoded.items[bare].name}: has boxes without outlines, which "
                "`network=fasterrcnn` takes"
            )

    @property
    def masks(self) -> bool:
        """Whether it gives masks, and not boxes alone."""
        return self.settings.network == "maskrcnn"

    def _regions(self, row: int) -> list[Region]:
        height, width = self.transform.size
        if self.outlined.legend is not None:
            return components(np.asarray(self.decoded.labels[row]), self.classes)
        size = self.decoded.sizes[row]
        own = coco.regions(self.decoded.items[row].annotations, size)
        return [one for one in (shrunk(region, size, (height, width)) for region in own) if one]

    def learner(self, rows: Rows, settings: Settings) -> LessonLearner:
        """As for `Teaching`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = build_detector(
                settings.network, self.base.architecture, self.classes, self.shape
            )
        begin_detector(network, self.base.network.state_dict())
        lesson = RegionLesson(
            self.decoded.frames, self.regions, rows, settings, self.transform.size, self.masks
        )
        return LessonLearner(network, lesson, body_of(network), self.device)

    def ask(self, network: nn.Module, rows: Rows) -> Iterator[tuple[Any, npt.NDArray[np.float32]]]:
        """What was detected, and textures (D,) of images, one after the other."""
        for one in detect(network, (self.decoded.frames[row] for row in rows.tolist())):
            yield one, one.textures

    def evidence(self, answers: Sequence[Any], rows: Rows) -> Arrays:
        """Scores and shares of the frame of regions, and whether they are there."""
        seen: list[tuple[float, float, bool]] = []
        for answer, row in zip(answers, rows.tolist(), strict=True):
            seen += self._evidence_of(self.predicted(answer, self.transform.size, Pixels()), row)
        return {"regions": np.array(seen, np.float64).reshape(-1, 3)}

    def settle(self, kept: Mapping[str, npt.NDArray[Any]], rows: Rows) -> tuple[Pixels, Trust]:
        """How sure one may be of regions; scores of boxes are no logits to be divided."""
        return Pixels(), trust_of([(s, a, bool(right)) for s, a, right in kept["regions"].tolist()])

    def predicted(self, answer: Any, size: tuple[int, int], pixels: Pixels) -> list[Region]:
        """As for `Teaching`."""
        detected: Detected = answer
        return detected.regions(self.transform.size, size)

    def there(self, row: int) -> list[Region]:
        """As for `Teaching`."""
        return self.regions[row]


def shrunk(region: Region, size: tuple[int, int], to: tuple[int, int]) -> Region | None:
    """A region of a frame of one size, in pixels of another; None if nothing is left of it."""
    down, across = to[0] / size[0], to[1] / size[1]
    if region.mask is None:
        left, top, right, bottom = region.box
        box = (left * across, top * down, right * across, bottom * down)
        return Region(region.label, box, None, region.score)
    whole = region.whole(*size)
    rows = ((np.arange(to[0]) + 0.5) / down).astype(int)
    columns = ((np.arange(to[1]) + 0.5) / across).astype(int)
    return region_of(whole[rows][:, columns], region.label, region.score)


#: By task.
TEACHINGS: dict[str, type[Teaching]] = {one.task: one for one in (Segmentation, Detection)}
