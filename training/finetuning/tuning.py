"""The loop of fine-tuning: a classifier on a backbone, one step after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from uscl_zoo import inference
from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound.transforms import FrameTransform

from ..downstream.goal import Classes, Goal
from ..downstream.sample import Rows, Sample
from ..downstream.settings import Settings
from ..learning import augment
from ..learning.execution import autocast, precision_on
from ..learning.pairs import Purpose, cut, stream
from ..learning.recipe import Recipe
from .loop import Learner, Progress
from .work import identity

#: Side of the smallest images that a schedule of sizes may show, in pixels.
SMALLEST = 128
#: Frames at most of which the first classifier is fitted.
SURVEYED = 1000


def trained_modules(network: nn.Module, train: str) -> list[nn.Module]:
    """The modules that are trained; the rest is frozen.

    Raises:
        DataError: if the network has no residual blocks.
    """
    if train == "all":
        return [network]
    head: nn.Module = network.get_classifier()  # type: ignore[operator]
    if train == "head":
        return [head]
    blocks = getattr(network, "layer4", None)
    if not isinstance(blocks, nn.Sequential):
        raise DataError(f"{type(network).__name__} has no last residual block; train head or all")
    return [blocks[-1], head]


def steps_of(train: Sample, settings: Settings) -> int:
    """Steps of an epoch."""
    frames = len(train.thin(settings.frames_per_clip))
    return len(cut(np.arange(frames), _batches(settings)))


def sides_of(train: Sample, settings: Settings, full: int) -> list[int]:
    """Side in pixels of the images of every step.

    Args:
        train: to train on.
        settings: how.
        full: side of the frames.
    """
    total = settings.epochs * steps_of(train, settings)
    sides = []
    for step in range(total):
        share = next((share for share, end in settings.sizes if step < end * total), 1.0)
        # what the strides of a ResNet divide; 64² taught less than it saved (docs/finetune.md)
        small = min(full, max(SMALLEST, round(share * full / 32) * 32))
        sides.append(full if share == 1 else small)
    return sides


def cost_of(train: Sample, settings: Settings, full: int) -> float:
    """What a run costs, in steps of images of full size."""
    return sum((side / full) ** 2 for side in sides_of(train, settings, full))


def _batches(settings: Settings) -> Recipe:
    least = min(8, settings.batch_size)
    return Recipe(batch_size=settings.batch_size, smallest_batch=least)


class Tuner(Learner):
    """Fine-tuning of one network; every draw is a function of (seed, epoch).

    Args:
        network: of timm, with its classifier; changed in place.
        frames: uint8 (N, H, W, 3), a memory map for instance.
        train: to train on.
        settings: how.
        device: where to compute.
        mean: of each channel, intensities in 0-1.
        std: of each channel, intensities in 0-1.
        goal: what is to be said.

    Attributes:
        progress: how far it is.
    """

    form = 2

    def __init__(
        self,
        network: nn.Module,
        frames: npt.NDArray[np.uint8],
        train: Sample,
        settings: Settings,
        device: torch.device,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
        goal: Goal | None = None,
    ) -> None:
        super().__init__(settings)
        self.goal = goal or Classes()
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.frames, self.train = frames, train
        self.of = identity(settings, train.rows, train.target, train.subject)
        self.settings, self.device = settings, device
        # what augmentation and batches take from a recipe
        self.recipe = Recipe(
            crop_scale=(settings.crop, 1.0),
            crop_ratio=(3 / 4, 4 / 3),
            brightness=settings.brightness,
            contrast=settings.contrast,
            saturation=0.0,
            hue=0.0,
            rotation=settings.rotation,
            gamma=settings.gamma,
            mean=mean,
            std=std,
            batch_size=settings.batch_size,
            smallest_batch=min(8, settings.batch_size),
            seed=settings.seed,
        )
        self.modules = trained_modules(network, settings.train)
        network.requires_grad_(False)
        for module in self.modules:
            module.requires_grad_(True)
        self.learned = [name for name, p in network.named_parameters() if p.requires_grad]
        head: nn.Module = network.get_classifier()  # type: ignore[operator]
        own = {id(parameter) for parameter in head.parameters()}
        learned = [p for p in network.parameters() if p.requires_grad]
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimizer = kinds[settings.optimizer](
            [
                {"params": [p for p in learned if id(p) not in own], "times": 1.0},
                {"params": [p for p in learned if id(p) in own], "times": settings.head_rate},
            ],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.average = (
            AveragedModel(network, avg_fn=get_ema_avg_fn(settings.average), use_buffers=True)
            if settings.average
            else None
        )
        self.precision = precision_on(device, settings.precision)
        classes = int(network.num_classes)  # type: ignore[arg-type]
        seen = train.take(train.thin(settings.frames_per_clip))
        self.balance = self.goal.balance(seen.target, classes, settings).to(device)
        self.steps = steps_of(train, settings)
        self.sides = sides_of(train, settings, int(frames.shape[1]))
        self._drawn: tuple[int, Sample, list[Rows], augment.Draws] | None = None

    def begin(self) -> None:
        """Fit the first classifier, if training begins with one and has not begun."""
        state, settings = self.progress, self.settings
        if not settings.probe or state.history or state.epoch or state.step:
            return
        sample = self.train.take(self.train.thin(self.settings.frames_per_clip))
        rng = stream(self.settings.seed, 0, Purpose.VIDEOS)
        sample = sample.take(np.sort(rng.permutation(len(sample))[:SURVEYED]))
        network: Any = self.network
        known = self._forward(sample.rows, pooled=True)
        outputs, seed = int(network.num_classes), settings.seed
        fitted = self.goal.head(known, sample.target, sample.subject, outputs, self.balance, seed)
        if fitted is None:
            return
        weight, bias = fitted
        head = network.get_classifier()
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))

    @property
    def side(self) -> int:
        """Side in pixels of the images of the next step."""
        return self.sides[self.done]

    def cost(self, step: int) -> float:
        """What a step of all costs beside one of full size."""
        return (self.sides[step] / int(self.frames.shape[1])) ** 2

    def loss(self, side: int | None = None) -> Tensor:
        """The loss of the next step, a scalar."""
        state, settings = self.progress, self.settings
        sample, batches, draws = self._draw(state.epoch)
        places = batches[state.step % len(batches)]
        self._training()
        images = augment.to_float(self._gather(sample.rows[places]))
        chosen = draws[torch.from_numpy(places)].to(self.device)
        images = augment.augment(images, chosen, self.recipe, side or self.side)
        with autocast(self.device, self.precision):
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        target = torch.from_numpy(sample.target[places]).to(self.device)
        return self.goal.loss(logits.float(), target, self.balance, settings)

    def updated(self) -> None:
        """Have the average follow."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def finish(self) -> None:
        """Leave the network as the result: in eval mode, with the averaged weights if there are."""
        if self.average is not None and self.progress.history:
            self.network.load_state_dict(self.average.module.state_dict())
        head: Any = self.network.get_classifier()  # type: ignore[operator]
        self.goal.finish(head, self.balance)
        self.network.eval()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""
        return self.kept() | {
            "network": self._kept(self.network),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.network.load_state_dict(self.network.state_dict() | state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.progress = Progress(**state["progress"])

    def _kept(self, network: nn.Module) -> dict[str, Tensor]:
        """A copy of the parameters and batch statistics that training changes."""
        prefixes = {name.rpartition(".")[0] for name in self.learned}
        tensors = network.state_dict().items()
        return {k: t.detach().clone() for k, t in tensors if k.rpartition(".")[0] in prefixes}

    def _training(self) -> None:
        # frozen batch-norm must neither use nor move the statistics of a batch
        self.network.eval()
        if self.settings.batch_statistics:
            for module in self.modules:
                module.train()

    def _draw(self, epoch: int) -> tuple[Sample, list[Rows], augment.Draws]:
        if self._drawn is None or self._drawn[0] != epoch:
            seed = self.settings.seed
            key = stream(seed, epoch, Purpose.PAIRS).random(len(self.train))
            sample = self.train.take(self.train.thin(self.settings.frames_per_clip, key))
            order = stream(seed, epoch, Purpose.ORDER).permutation(len(sample))
            # parameters come in threes, one a frame of a video
            threes = -(-len(sample) // 3)
            draws = augment.draw(self.recipe, epoch, threes, self.frames.shape[1])
            self._drawn = epoch, sample, cut(order, self.recipe), draws
        return self._drawn[1:]

    def _gather(self, rows: Rows) -> Tensor:
        return torch.from_numpy(self.frames[rows]).to(self.device, non_blocking=True)

    def logits(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Of frames as they are, (N, classes)."""
        return self._forward(rows)

    def _forward(self, rows: Rows, pooled: bool = False) -> npt.NDArray[np.float32]:
        """Logits, or the pooled features they are made of, of frames as they are."""
        size = self.frames.shape[1:3]
        transform = FrameTransform(size, self.recipe.mean, self.recipe.std)
        answer = inference.pooled if pooled else inference.logits
        batches = inference.batched((self.frames[row] for row in rows), 64)
        outputs = inference.infer(self.network, transform.normalise, batches, answer)
        return np.concatenate(list(outputs))


def merge(tuners: Sequence[Tuner]) -> Tuner:
    """One network with the mean of several networks' weights (Wortsman et al., ICML 2022).

    They began with the same weights and went different ways; the mean lies in the middle of them.
    So does the mean of their batch statistics: taken anew from training frames they were worse
    (docs/finetune.md).

    Args:
        tuners: trained to the end; the network of the first becomes the result.
    """
    first, *others = tuners
    states = [other.network.state_dict() for other in others]
    with torch.no_grad():
        for name, tensor in first.network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.stack([tensor, *(state[name] for state in states)]).mean(0))
    return first
