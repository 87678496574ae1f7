"""The loop that trains a network that outlines, one step after another."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uscl_zoo.segmentation.detectors import body_of
from uscl_zoo.segmentation.networks import smp
from uscl_zoo.segmentation.regions import Region
from uscl_zoo.ultrasound.transforms import FrameTransform

from ...execution import autocast, precision_on
from ...pairs import Purpose, cut, stream
from ...recipe import Recipe
from ...runs import load_checkpoint, save_checkpoint
from ...signals import Interrupted, listening
from ...trainer import NotFiniteError
from .augmentation import changed, changed_regions, seeds, transform_of
from .settings import Settings

Rows = npt.NDArray[np.int64]
#: Of checkpoints; those of classification are 2.
_FORMAT = 3


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


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: the one in progress, from 0.
        step: steps finished within it.
        total: of the loss over the steps of this epoch.
        seconds: so far, over all sittings.
        history: a row an epoch.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Learner:
    """Training of one network; every draw is a function of (seed, epoch).

    Args:
        network: changed in place.
        lesson: what it is taught.
        encoder: that part of the network which is not new.
        device: to compute on.

    Attributes:
        progress: how far it is.
    """

    def __init__(
        self, network: nn.Module, lesson: Lesson, encoder: nn.Module, device: torch.device
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.lesson, self.device = lesson, device
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
        self.progress = Progress()

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done."""
        return self.progress.epoch >= self.settings.epochs

    def step(self) -> None:
        """Do the next step.

        Raises:
            NotFiniteError: before anything is updated, if the loss is not finite.
        """
        state = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["times"]
        self.network.train()
        places = self._batches(state.epoch)[state.step % self.steps]
        loss = self.lesson.loss(self.network, places, state.epoch, self.device)
        value = loss.item()
        if not np.isfinite(value):
            raise NotFiniteError(
                f"the loss is {value} in epoch {state.epoch + 1}, step {state.step + 1}; "
                "lower the learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        state.step += 1
        state.total += value

    def close_epoch(self) -> None:
        """Note the loss and begin the next epoch."""
        state = self.progress
        state.history.append(
            {
                "epoch": float(state.epoch + 1),
                "learning_rate": self.learning_rate,
                "loss": state.total / max(state.step, 1),
            }
        )
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""
        return {
            "format": _FORMAT,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    @property
    def learning_rate(self) -> float:
        """Of the encoder, at the next step."""
        settings, state = self.settings, self.progress
        done = (state.epoch + state.step / self.steps) / settings.epochs
        if done < settings.warmup:
            return float(settings.learning_rate * max(done / settings.warmup, 1e-3))
        after = min((done - settings.warmup) / (1 - settings.warmup), 1.0)
        return float(settings.learning_rate * (1 + np.cos(np.pi * after)) / 2)

    def _batches(self, epoch: int) -> list[Rows]:
        size = min(self.settings.batch_size, len(self.lesson.rows))
        order = stream(self.settings.seed, epoch, Purpose.ORDER).permutation(len(self.lesson.rows))
        # no batch of one, whose statistics would be its own
        return cut(order, Recipe(batch_size=max(size, 2), smallest_batch=min(4, max(size, 2))))


def fit(
    learner: Learner, work: Path | None = None, tick: Callable[[str], object] | None = None
) -> Progress:
    """Train to the last epoch, going on from a checkpoint if there is one.

    Args:
        learner: what is trained; left in eval mode.
        work: folder for checkpoints; None for none.
        tick: called after each step, with what to say.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with everything saved.
        NotFiniteError: if the loss is not finite.
    """
    told = tick or (lambda text: None)
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        kept = load_checkpoint(work, _FORMAT)
        if kept is not None:
            learner.restore(kept)
    state, epochs = learner.progress, learner.settings.epochs
    for _ in range(state.epoch * learner.steps + state.step):
        told("")
    saved = time.monotonic()
    with listening() as asked:
        while not learner.finished:
            while state.step < learner.steps:
                clock = time.perf_counter()
                learner.step()
                state.seconds += time.perf_counter() - clock
                mean = state.total / state.step
                told(f"epoch {state.epoch + 1}/{epochs}, loss {mean:.3f}")
                if asked:
                    where = f"stopped by {asked[0]} in epoch {state.epoch + 1} of {epochs}"
                    if work is not None:
                        save_checkpoint(work, learner.state())
                        where += ", saved; the same command continues it"
                    raise Interrupted(where)
            learner.close_epoch()
            # a checkpoint is a hundred megabytes: not every second
            if work is not None and (learner.finished or time.monotonic() - saved > 60):
                save_checkpoint(work, learner.state())
                saved = time.monotonic()
    learner.network.eval()
    return state
