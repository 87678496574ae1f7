"""What a network that outlines is taught, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uscl_zoo.segmentation.detectors import body_of
from uscl_zoo.segmentation.networks import smp
from uscl_zoo.segmentation.regions import Region
from uscl_zoo.ultrasound.transforms import FrameTransform

from ...learning.execution import autocast, precision_on
from ...learning.pairs import Purpose, cut, stream
from ...learning.recipe import Recipe
from ..loop import Learner, Progress
from ..work import identity
from .augmentation import changed, changed_regions, seeds, transform_of
from .settings import Settings

Rows = npt.NDArray[np.int64]


class Lesson(Protocol):
    """What a network is taught: a batch in, a loss out."""

    rows: Rows
    settings: Settings

    def loss(self, network: nn.Module, places: Rows, epoch: int, device: torch.device) -> Tensor:
        """Of the images at some places of `rows`, in an epoch."""
        ...


class PixelLesson:
    """A class a pixel: cross-entropy, and Dice's loss of the classes that are not the background.

    Args:
        frames: uint8 (N, H, W, 3).
        labels: uint8 (N, H, W).
        rows: of the images to train on.
        settings: how.
        transform: of the network.
        classes: without the background.
    """

    def __init__(
        self,
        frames: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8],
        rows: Rows,
        settings: Settings,
        transform: FrameTransform,
        classes: int,
    ) -> None:
        self.frames, self.labels, self.rows = frames, labels, rows
        self.settings, self.transform = settings, transform
        self.change = transform_of(settings, transform.size)
        self.dice = smp().losses.DiceLoss(
            "multiclass", classes=list(range(1, classes + 1)), smooth=1.0
        )

    def loss(self, network: nn.Module, places: Rows, epoch: int, device: torch.device) -> Tensor:
        """The loss of a batch, a scalar."""
        drawn = seeds(self.settings, epoch, len(self.rows))
        pairs = [
            changed(self.change, self.frames[row], self.labels[row], int(seed))
            for row, seed in zip(self.rows[places], drawn[places], strict=True)
        ]
        images = torch.stack([image for image, _ in pairs]).to(device).permute(0, 2, 3, 1)
        target = torch.stack([mask for _, mask in pairs]).to(device).long()
        inputs = self.transform.normalise(images).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision_on(device, self.settings.precision)):
            logits = network(inputs)
        logits = logits.float()
        pixels = nn.functional.cross_entropy(logits, target)
        dice: Tensor = self.dice(logits, target)
        return pixels + self.settings.dice * dice


class RegionLesson:
    """Boxes, and masks in them: the losses of torchvision's detector, added up.

    Args:
        frames: uint8 (N, H, W, 3).
        regions: of each image, in pixels of the frames.
        rows: of the images to train on.
        settings: how.
        side: height and width of the frames.
        masks: whether masks are taught, and not boxes alone.
    """

    def __init__(
        self,
        frames: npt.NDArray[np.uint8],
        regions: Sequence[Sequence[Region]],
        rows: Rows,
        settings: Settings,
        side: tuple[int, int],
        masks: bool,
    ) -> None:
        self.frames, self.regions, self.rows = frames, regions, rows
        self.settings, self.masks = settings, masks
        self.change = transform_of(settings, side)

    def loss(self, network: nn.Module, places: Rows, epoch: int, device: torch.device) -> Tensor:
        """The loss of a batch, a scalar."""
        # statistics of so few images at a time would be noise
        for module in body_of(network).modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        drawn = seeds(self.settings, epoch, len(self.rows))
        images, targets = [], []
        for row, seed in zip(self.rows[places].tolist(), drawn[places], strict=True):
            image, target = changed_regions(
                self.change, self.frames[row], self.regions[row], int(seed), self.masks
            )
            images.append(image.to(device).float() / 255)
            targets.append({key: value.to(device) for key, value in target.items()})
        with torch.random.fork_rng(devices=[]):
            # which proposals are taught is drawn
            torch.manual_seed(int(drawn[places[0]]))
            with autocast(device, precision_on(device, self.settings.precision)):
                losses: dict[str, Tensor] = network(images, targets)
        return torch.stack([loss.float() for loss in losses.values()]).sum()


class LessonLearner(Learner):
    """Training of one network; every draw is a function of (seed, epoch).

    Args:
        network: changed in place.
        lesson: what it is taught.
        encoder: that part of the network which is not new.
        device: to compute on.

    Attributes:
        progress: how far it is.
    """

    form = 3

    def __init__(
        self, network: nn.Module, lesson: Lesson, encoder: nn.Module, device: torch.device
    ) -> None:
        super().__init__(lesson.settings)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.lesson, self.device = lesson, device
        self.of = identity(lesson.settings, lesson.rows)
        self.settings = settings = lesson.settings
        own = {id(parameter) for parameter in encoder.parameters()}
        learned = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in learned if id(p) in own], "times": 1.0},
                {"params": [p for p in learned if id(p) not in own], "times": settings.head_rate},
            ],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.steps = len(self._batches(0))

    def loss(self, side: int | None = None) -> Tensor:
        """The loss of the next step, a scalar; its images have one size alone."""
        self.network.train()
        epoch = self.progress.epoch
        places = self._batches(epoch)[self.progress.step % self.steps]
        return self.lesson.loss(self.network, places, epoch, self.device)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""
        return self.kept() | {"network": self.network.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def _batches(self, epoch: int) -> list[Rows]:
        size = min(self.settings.batch_size, len(self.lesson.rows))
        order = stream(self.settings.seed, epoch, Purpose.ORDER).permutation(len(self.lesson.rows))
        # no batch of one, whose statistics would be its own
        return cut(order, Recipe(batch_size=max(size, 2), smallest_batch=min(4, max(size, 2))))
