"""The loop of fine-tuning: a classifier on a backbone, early stopping, and a temperature."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor, nn
from tqdm import tqdm

from uscl_zoo import inference
from uscl_zoo.answers import softmax
from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound.transforms import FrameTransform

from .. import augment
from ..frames import Video
from ..pairs import Purpose, cut, stream
from ..pretrain import Interrupted, listening
from ..recipe import Recipe
from ..runs import (
    save_checkpoint,
)
from ..trainer import NotFiniteError
from .regression import PENALTIES, regression

Rows = npt.NDArray[np.int64]

TRAIN = ("head", "last", "all")
#: Training subjects from which on everything is trained.
MANY = 1000
#: Frames at most whose textures make the statistics of the training images.
SURVEYED = 1000


@dataclass(frozen=True)
class Settings:
    """How a classifier is fine-tuned.

    Attributes:
        train: what is trained: `head`, the classifier; `last`, the last residual block and the
            classifier (the paper's); `all`. What is not is frozen, batch statistics included.
        batch_statistics: let batch-norm in what is trained use and learn those of the batches. Of
            few steps it would not learn enough, and judge by statistics that fit no data.
        probe: begin with the classifier that a logistic regression on the frozen features gives,
            its penalty chosen on the validation subjects; otherwise with a random one.
        epochs: at most; 0 leaves it at the beginning.
        patience: epochs without a lower loss on the validation subjects before it stops; 0 never
            stops, and the last epoch is the result.
        batch_size: frames a step.
        learning_rate: of Adam at the start; a cosine takes it to 0.
        weight_decay: coupled L2 on what is trained.
        label_smoothing: share of the target spread evenly over the classes.
        class_weights: weigh frames so that every class counts the same.
        frames_per_clip: at most so many frames of a clip an epoch, others each time; 0 for all.
        brightness: factor is drawn from 1 ± this.
        contrast: factor is drawn from 1 ± this.
        seed: of the new classifier and of every draw.
    """

    train: str = "last"
    batch_statistics: bool = False
    probe: bool = True
    epochs: int = 20
    patience: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    class_weights: bool = True
    frames_per_clip: int = 4
    brightness: float = 0.2
    contrast: float = 0.2
    seed: int = 0


#: The paper's downstream protocol (METHOD, baselines): the last epoch is the result.
PAPER = Settings(
    batch_statistics=True,
    probe=False,
    epochs=100,
    patience=0,
    learning_rate=1e-2,
    label_smoothing=0.0,
    class_weights=False,
    frames_per_clip=0,
    brightness=0.0,
    contrast=0.0,
)


def sensible(subjects: int, clips: int, train: str | None = None, **given: Any) -> Settings:
    """Settings for data of some size: few subjects train little and briefly.

    Below `MANY` training subjects the backbone is frozen up to its last block, and all batch
    statistics. Batches grow with
    the data from 8 to 64; epochs shrink from 30 to 5, so that an epoch of few clips is repeated
    and one of many is not.

    Args:
        subjects: to train on.
        clips: to train on, stills among them.
        train: as in `Settings`; None to choose.
        **given: settings that are fixed; None for one to choose.
    """
    train = train or ("all" if subjects >= MANY else "last")
    if train not in TRAIN:
        raise DataError(f"train should be one of {', '.join(TRAIN)}, not {train!r}")
    many = subjects >= MANY
    batch = next(size for size, most in ((8, 100), (32, 10_000), (64, 2**62)) if clips <= most)
    epochs = int(np.clip(round(3000 * batch / max(clips, 1)), 5, 30))
    chosen: dict[str, Any] = {
        "batch_statistics": many,
        # a regression has nothing left to descend to
        "epochs": 0 if train == "head" else epochs,
        "batch_size": batch,
    }
    fixed = {key: value for key, value in given.items() if value is not None}
    return Settings(train=train, **{**chosen, **fixed})


@dataclass(frozen=True)
class Sample:
    """Labelled frames of a store.

    Attributes:
        rows: int64 (N,), of the store.
        target: int64 (N,), class.
        clip: int64 (N,), ascending.
        subject: int64 (N,).
    """

    rows: Rows
    target: Rows
    clip: Rows
    subject: Rows

    @classmethod
    def of(cls, videos: Sequence[Video], classes: Sequence[str]) -> Sample:
        """The frames of some videos, all of them labelled."""
        counts = [video.count for video in videos]
        subjects = sorted({video.subject for video in videos})

        def spread(values: Sequence[int]) -> Rows:
            return np.repeat(np.array(values, dtype=np.int64), counts)

        starts = [np.arange(video.first, video.first + video.count) for video in videos]
        return cls(
            rows=np.concatenate([np.empty(0, np.int64), *starts]),
            target=spread([classes.index(video.label or "") for video in videos]),
            clip=spread(range(len(videos))),
            subject=spread([subjects.index(video.subject) for video in videos]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: Rows) -> Sample:
        """Some of the frames."""
        return Sample(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))

    def thin(self, most: int, key: npt.NDArray[np.float64] | None = None) -> Rows:
        """Places of at most so many frames of each clip, evenly spaced, or those of smallest key.

        Args:
            most: 0 for all.
            key: (N,), random numbers.
        """
        if most == 0:
            return np.arange(len(self))
        _, first, inverse, count = np.unique(
            self.clip, return_index=True, return_inverse=True, return_counts=True
        )
        rank = np.arange(len(self)) - first[inverse]
        if key is None:
            # the frames at which the share of the clip passes the next of `most` steps
            share = np.minimum(most, count)[inverse]
            kept = (rank * share) // count[inverse] != ((rank - 1) * share) // count[inverse]
            return np.flatnonzero(kept)
        order = np.lexsort((key, self.clip))
        return np.sort(order[rank < most])

    def weights(self) -> npt.NDArray[np.float64]:
        """Weights (N,) that sum to 1 and count every subject the same, however many frames."""
        share = 1.0 / np.bincount(self.subject)[self.subject]
        return np.asarray(share / share.sum())


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


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: the one in progress, from 0.
        step: steps finished within it.
        total: of the loss over the steps of this epoch.
        seconds: so far, over all sittings.
        best: epochs finished when the validation loss was lowest.
        history: a row an epoch.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0
    best: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Tuner:
    """Fine-tuning of one network; every draw is a function of (seed, epoch).

    Args:
        network: of timm, with its classifier; changed in place.
        frames: uint8 (N, H, W, 3), a memory map for instance.
        train: to train on.
        validation: to stop on; None to train to the last epoch.
        settings: how.
        device: where to compute.
        mean: of each channel, intensities in 0-1.
        std: of each channel, intensities in 0-1.

    Attributes:
        progress: how far it is.
        show: bars while it looks at many frames.
    """

    def __init__(
        self,
        network: nn.Module,
        frames: npt.NDArray[np.uint8],
        train: Sample,
        validation: Sample | None,
        settings: Settings,
        device: torch.device,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.25, 0.25, 0.25),
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.frames, self.train, self.validation = frames, train, validation
        self.settings, self.device = settings, device
        # what augmentation and batches take from a recipe
        self.recipe = Recipe(
            brightness=settings.brightness,
            contrast=settings.contrast,
            saturation=0.0,
            hue=0.0,
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
        self.optimizer = torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        classes = int(network.num_classes)  # type: ignore[arg-type]
        seen = train.take(train.thin(settings.frames_per_clip))
        counts = np.bincount(seen.target, minlength=classes)
        share = np.where(counts > 0, counts.sum() / (classes * np.maximum(counts, 1)), 0.0)
        self.weight = (
            torch.tensor(share, dtype=torch.float32, device=device)
            if settings.class_weights
            else None
        )
        self.show = False
        self.steps = len(cut(np.arange(len(seen)), self.recipe))
        self.progress = Progress()
        self.best = self._kept()
        self._drawn: tuple[int, Sample, list[Rows], augment.Draws] | None = None

    def begin(self) -> None:
        """Fit the first classifier, which training then has to improve on; once, if at all."""
        state = self.progress
        if not self.settings.probe or state.history or state.epoch or state.step:
            return
        sample = self.train.take(self.train.thin(self.settings.frames_per_clip))
        rng = stream(self.settings.seed, 0, Purpose.VIDEOS)
        sample = sample.take(np.sort(rng.permutation(len(sample))[:SURVEYED]))
        known = self._forward(sample.rows, pooled=True)
        others = self._looked_at()
        asked = None if others is None else self._forward(others.rows, pooled=True)
        lowest, chosen, row = np.inf, None, {}
        # without validation subjects there is nothing to choose by, and the middle has to do
        for penalty in PENALTIES if others is not None else PENALTIES[3:4]:
            weight, bias = linear_classifier(known, sample.target, penalty)
            if others is not None and asked is not None:
                row = _look_at(others, asked @ weight.T + bias)
            if chosen is None or row["validation loss"] < lowest:
                chosen = weight, bias, row
                lowest = row.get("validation loss", np.inf)
        assert chosen is not None
        weight, bias, row = chosen
        network: Any = self.network
        head = network.get_classifier()
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        self.best = self._kept()
        if row:
            state.history.append({"epoch": 0.0} | row)

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done, or patience is at its end."""
        settings, state = self.settings, self.progress
        waited = state.epoch - state.best
        stopped = settings.patience > 0 and self.validation is not None
        return state.epoch >= settings.epochs or (stopped and waited >= settings.patience)

    def step(self) -> None:
        """Do the next step.

        Raises:
            NotFiniteError: before anything is updated, if the loss is not finite.
        """
        state, settings = self.progress, self.settings
        sample, batches, draws = self._draw(state.epoch)
        places = batches[state.step]
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._training()
        images = augment.to_float(self._gather(sample.rows[places]))
        chosen = draws[torch.from_numpy(places)].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.network(augment.augment(images, chosen, self.recipe))
        loss = nn.functional.cross_entropy(
            logits.float(),
            torch.from_numpy(sample.target[places]).to(self.device),
            weight=self.weight,
            label_smoothing=settings.label_smoothing,
        )
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
        """Look at the validation subjects and begin the next epoch."""
        state = self.progress
        row = {
            "epoch": float(state.epoch + 1),
            "learning_rate": self._learning_rate(),
            "loss": state.total / max(state.step, 1),
        }
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0
        if self.validation is None:
            state.best, self.best = state.epoch, self._kept()
        else:
            looked_at = self._looked_at()
            assert looked_at is not None
            row |= self._validate(looked_at)
            earlier = [past["validation loss"] for past in state.history]
            if self.settings.patience == 0 or row["validation loss"] < min(earlier, default=np.inf):
                state.best, self.best = state.epoch, self._kept()
        state.history.append(row)

    def restore_best(self) -> None:
        """Put the weights of the best epoch back: of the last one, where nothing stops it."""
        self.network.load_state_dict(self.network.state_dict() | self.best)
        self.network.eval()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""
        return {
            "format": 1,
            "network": self._kept(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.network.load_state_dict(self.network.state_dict() | state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.progress = Progress(**state["progress"])

    def _kept(self) -> dict[str, Tensor]:
        """A copy of the parameters and batch statistics that training changes."""
        prefixes = {name.rpartition(".")[0] for name in self.learned}
        tensors = self.network.state_dict().items()
        return {k: t.detach().clone() for k, t in tensors if k.rpartition(".")[0] in prefixes}

    def _training(self) -> None:
        # frozen batch-norm must neither use nor move the statistics of a batch
        self.network.eval()
        if self.settings.batch_statistics:
            for module in self.modules:
                module.train()

    def _learning_rate(self) -> float:
        done = (self.progress.epoch + self.progress.step / self.steps) / self.settings.epochs
        return float(self.settings.learning_rate * (1 + np.cos(np.pi * min(done, 1.0))) / 2)

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
        bar = tqdm(rows, unit="frame", leave=False, disable=not self.show)
        frames = (self.frames[row] for row in bar)
        answer = inference.pooled if pooled else inference.logits
        batches = inference.batched(frames, 64)
        found = inference.infer(self.network, transform.normalise, batches, answer)
        return np.concatenate(list(found))

    def _looked_at(self) -> Sample | None:
        """The validation frames that are looked at after an epoch: some of every clip."""
        if self.validation is None:
            return None
        return self.validation.take(self.validation.thin(2 * self.settings.frames_per_clip))

    def _validate(self, sample: Sample) -> dict[str, float]:
        return _look_at(sample, self._forward(sample.rows))


def _look_at(sample: Sample, logits: npt.NDArray[Any]) -> dict[str, float]:
    """Loss and balanced accuracy; every subject counts the same within its class."""
    chances = softmax(logits, 1)[np.arange(len(sample)), sample.target]
    weights = sample.weights()
    weights = weights / np.bincount(sample.target, weights)[sample.target]
    weights /= weights.sum()
    return {
        "validation loss": float(-(weights @ np.log(chances + 1e-12))),
        "validation balanced accuracy": float(weights @ (logits.argmax(axis=1) == sample.target)),
    }


def linear_classifier(
    features: npt.NDArray[np.float32], target: Rows, inverse_penalty: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The probe's logistic regression as a layer on features that are not standardised.

    Args:
        features: (N, D).
        target: (N,), every class among them.
        inverse_penalty: scikit-learn's C.

    Returns:
        Weight (classes, D) and bias (classes,).
    """
    scaler, logistic = regression(inverse_penalty).fit(features.astype(np.float64), target)
    slope, start = logistic.coef_, logistic.intercept_
    if len(slope) == 1:
        # of two classes there is one logit, the second's over the first's
        slope, start = (np.concatenate([-part / 2, part / 2]) for part in (slope, start))
    slope = slope / scaler.scale_
    bias = start - slope @ scaler.mean_
    return slope.astype(np.float32), bias.astype(np.float32)


def fit(tuner: Tuner, work: Path | None = None, progress: bool = True) -> Progress:
    """Train to the end and leave the network with the weights of the best epoch.

    Args:
        tuner: to train, from where it is.
        work: folder for a checkpoint an epoch, and to save itself in when asked to stop.
        progress: show a bar.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
        NotFiniteError: if the loss is not finite.
    """
    tuner.show = progress
    tuner.begin()
    state, epochs = tuner.progress, tuner.settings.epochs
    bar = tqdm(
        total=epochs * tuner.steps,
        initial=state.epoch * tuner.steps + state.step,
        unit="step",
        disable=not progress or tuner.finished,
    )
    with listening() as asked, bar:
        while not tuner.finished:
            while state.step < tuner.steps:
                clock = time.perf_counter()
                tuner.step()
                state.seconds += time.perf_counter() - clock
                bar.update()
                told = state.history[-1] if state.history else {}
                seen = "validation loss" in told
                shown = f", validation loss {told['validation loss']:.3f}" if seen else ""
                bar.set_postfix_str(
                    f"epoch {state.epoch + 1}/{epochs}, loss {state.total / state.step:.3f}{shown}"
                )
                if asked:
                    saved = ""
                    if work is not None:
                        save_checkpoint(work, tuner.state())
                        saved = ", saved; the same command continues it"
                    raise Interrupted(
                        f"stopped by {asked[0]} in epoch {state.epoch + 1} of {epochs}{saved}"
                    )
            tuner.close_epoch()
            if work is not None:
                save_checkpoint(work, tuner.state())
    tuner.restore_best()
    return state


def fit_temperature(
    logits: npt.NDArray[np.float32], target: Rows, weights: npt.NDArray[np.float64], count: int
) -> float:
    """The temperature that minimises the negative log-likelihood.

    The targets are those of Platt (1999): of few subjects that are all told right the plain
    likelihood would ask for certainty. With `count` subjects and C classes the true class has
    (count + 1) / (count + C).

    Args:
        logits: (N, C).
        target: (N,).
        weights: (N,), summing to 1.
        count: how many subjects there are.
    """
    classes = logits.shape[1]
    wanted = np.full(logits.shape, 1 / (count + classes))
    wanted[np.arange(len(target)), target] = (count + 1) / (count + classes)

    def loss(log: float) -> float:
        chances = softmax(logits, float(np.exp(log)))
        return float(-(weights @ (wanted * np.log(chances + 1e-12)).sum(axis=1)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
