"""Fine-tuning on classes of one's own: from a folder or table to a model that answers.

Subjects are split three ways. The *training* ones give the gradient; the *validation* ones stop it,
fit the temperature and set the threshold for other kinds of image; the *held-out* ones are looked
at once, at the end, and every figure is theirs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor, nn
from tqdm import tqdm

import uscl_zoo
from uscl_zoo import checkpoint, prediction, publish, store
from uscl_zoo.card import (
    ARCHITECTURES,
    Card,
    Input,
    Metric,
    Source,
    Training,
    Weights,
    read_card,
)
from uscl_zoo.embed import written_whole
from uscl_zoo.errors import DataError
from uscl_zoo.prediction import ANSWERS, STATISTICS, Answer, Answers, Statistics
from uscl_zoo.records import to_plain, write_text, write_yaml
from uscl_zoo.registry import model_info
from uscl_zoo.ultrasound import images as image_files
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.transforms import FrameTransform, create_transform

from .. import augment
from ..execution import device_named
from ..frames import DESCRIPTION, FrameStore, Video
from ..labels import Annotation, from_name, hold_out, read_table
from ..pairs import Purpose, cut, stream
from ..prepare import Sampling, prepare
from ..pretrain import Interrupted, listening
from ..recipe import Recipe
from ..runs import (
    CHECKPOINT,
    PREVIOUS,
    code_version,
    hardware,
    load_checkpoint,
    save_checkpoint,
)
from ..trainer import NotFiniteError
from .metrics import Judged, measure
from .probe import PENALTIES, Bootstrap, Score, Task, _regression

Rows = npt.NDArray[np.int64]

WORK, STORE, ABOUT = "work", "store", "run.json"
TRAIN = ("head", "last", "all")
#: Training subjects from which on everything is trained.
MANY = 1000
#: Frames at most whose textures make the statistics of the training images.
SURVEYED = 1000
#: Of the validation frames' distances from the training images.
QUANTILE = 0.99


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
        loss.backward()  # type: ignore[no-untyped-call]
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

    @torch.inference_mode()
    def _forward(self, rows: Rows, pooled: bool = False) -> npt.NDArray[np.float32]:
        """Logits, or the pooled features they are made of, of frames as they are."""
        network: Any = self.network.eval()
        parts = []
        starts = range(0, len(rows), 64)
        for start in tqdm(starts, unit="batch", leave=False, disable=not self.show):
            images = augment.to_float(self._gather(rows[start : start + 64]))
            maps = network.forward_features(augment.normalise(images, self.recipe))
            parts.append(network.forward_head(maps, pre_logits=pooled).float().cpu())
        return np.asarray(torch.cat(parts).numpy())

    def _looked_at(self) -> Sample | None:
        """The validation frames that are looked at after an epoch: some of every clip."""
        if self.validation is None:
            return None
        return self.validation.take(self.validation.thin(2 * self.settings.frames_per_clip))

    def _validate(self, sample: Sample) -> dict[str, float]:
        return _look_at(sample, self._forward(sample.rows))


def _look_at(sample: Sample, logits: npt.NDArray[Any]) -> dict[str, float]:
    """Loss and balanced accuracy; every subject counts the same within its class."""
    chances = prediction.softmax(logits, 1)[np.arange(len(sample)), sample.target]
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
    scaler, regression = _regression(inverse_penalty).fit(features.astype(np.float64), target)
    slope, start = regression.coef_, regression.intercept_
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
        chances = prediction.softmax(logits, float(np.exp(log)))
        return float(-(weights @ (wanted * np.log(chances + 1e-12)).sum(axis=1)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


# ------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Collection:
    """Labelled sources.

    Attributes:
        sources: by name.
        annotations: by name; every one has a label.
        subjects: whether subjects are known; otherwise each source is its own.
        notes: what was left out, in words.
    """

    sources: dict[str, Path]
    annotations: dict[str, Annotation]
    subjects: bool
    notes: tuple[str, ...]


def collect(
    data: Path,
    *,
    file_column: str = "Filename",
    label_column: str | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = ("*_mask*",),
) -> Collection:
    """Find the labelled images and videos of a folder with a folder per class, or of a CSV.

    In the folder of a class each image is a picture of its own, and a folder within it is searched
    as usual. The files of a CSV are paths from its folder, or are looked for in it by name.

    Args:
        data: the folder or the CSV.
        file_column: of the CSV: paths, names or stems.
        label_column: of the CSV.
        subject_column: of the CSV.
        subject_pattern: of a folder: regular expression whose first group is the subject.
        classes: the only ones to take; None for all.
        exclude: patterns of file names to leave out.

    Raises:
        UnreadableError: if there is no such file or folder, or the CSV cannot be read.
        DataError: if it does not give at least two classes.
    """
    notes: list[str] = []
    if data.is_dir():
        found = _of_folder(data, subject_pattern, notes)
        known = subject_pattern is not None
    else:
        if label_column is None:
            raise DataError(f"{data}: --label-column is missing: which column is the class?")
        found = _of_table(data, file_column, label_column, subject_column, notes)
        known = subject_column is not None
    kept = {
        name: (source, row)
        for name, (source, row) in found.items()
        if not any(fnmatch(source.name, pattern) for pattern in exclude)
    }
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept)} files left out by name ({', '.join(exclude)})")
    wanted = None if classes is None else {label.casefold() for label in classes}
    labelled = {
        name: (source, row)
        for name, (source, row) in kept.items()
        if row.label is not None and (wanted is None or row.label.casefold() in wanted)
    }
    if len(labelled) < len(kept):
        other = Counter(row.label or "no label" for _, row in kept.values())
        other.subtract(row.label for _, row in labelled.values() if row.label)
        named = ", ".join(f"{label} {count}" for label, count in sorted((+other).items()))
        notes.append(f"{len(kept) - len(labelled)} files left out by class ({named})")
    if len({(row.label or "").casefold() for _, row in labelled.values()}) < 2:
        raise DataError(
            f"{data}: has {len(labelled)} files of less than two classes; "
            "give a folder per class, or a CSV and its --label-column"
        )
    if not known:
        notes.append(
            "no subjects are known, so each file counts as its own; if subjects have several, "
            "name the column or pattern, or the figures will be too good"
        )
    return Collection(
        sources={name: source for name, (source, _) in labelled.items()},
        annotations={name: row for name, (_, row) in labelled.items()},
        subjects=known,
        notes=tuple(notes),
    )


def _of_folder(
    data: Path, pattern: str | None, notes: list[str]
) -> dict[str, tuple[Path, Annotation]]:
    found: dict[str, tuple[Path, Annotation]] = {}
    for folder in sorted(path for path in data.iterdir() if path.is_dir() and path.name[0] != "."):
        try:
            sources = reading.find([folder])
        except DataError as error:
            notes.append(str(error))
            continue
        # numbered stills of one size look like a clip, and are a class here
        for source in _images(folder) if sources == [folder] else sources:
            name = source.relative_to(data).as_posix()
            subject = name if pattern is None else from_name(name, None, pattern).subject
            found[name] = source, Annotation(subject, folder.name)
    return found


def _images(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    images = (file for file in files if file.suffix.lower() in image_files.SUFFIXES)
    return sorted(images, key=reading.natural_key)


def _of_table(
    path: Path,
    file_column: str,
    label_column: str,
    subject_column: str | None,
    notes: list[str],
) -> dict[str, tuple[Path, Annotation]]:
    table = read_table(path, file_column, label_column, subject_column)
    found: dict[str, tuple[Path, Annotation]] = {}
    absent = set()
    for key in table.rows:
        source = path.parent / key
        row = table.find(key) if source.exists() else None
        if row is None:
            absent.add(key)
        else:
            found[key] = source, row
    if absent:
        taken = {source.resolve() for source, _ in found.values()}
        matched = set()
        candidates = reading.find([path.parent])
        candidates += [file for folder in candidates if folder.is_dir() for file in _images(folder)]
        for source in candidates:
            name = source.relative_to(path.parent).as_posix()
            row = None if source.resolve() in taken else table.find(name)
            if row is not None:
                found[name] = source, row
                matched |= {name.casefold(), source.name.casefold(), source.stem.casefold()}
        lost = sorted(key for key in absent if key.casefold() not in matched)
        if lost:
            notes.append(f"{len(lost)} rows of {path.name} have no file, the first: {lost[0]}")
    return found


@dataclass(frozen=True)
class Split:
    """Videos by what they are for; no subject is in two of them."""

    train: list[Video]
    validation: list[Video]
    held_out: list[Video]


def split(store: FrameStore, share: float, seed: int) -> Split:
    """Choose validation subjects among those of a store that are not held out.

    Args:
        store: with held-out videos; those without a label are left out.
        share: of the subjects of each class.
        seed: of the choice.

    Raises:
        DataError: if two classes are not on all three sides.
    """
    labelled = [video for video in store.videos if video.label is not None]
    rest = [video for video in labelled if video.split == "train"]
    notes = {video.name: Annotation(video.subject, video.label) for video in rest}
    # another stream than the one that chose the held-out subjects
    chosen = hold_out(notes, share, seed + 1)
    parts = Split(
        train=[video for video in rest if video.subject not in chosen],
        validation=[video for video in rest if video.subject in chosen],
        held_out=[video for video in labelled if video.split == "heldout"],
    )
    for side in dataclasses.fields(parts):
        labels = {video.label for video in getattr(parts, side.name)}
        if len(labels) < 2:
            counts: dict[str, set[str]] = {}
            for video in labelled:
                counts.setdefault(video.label or "", set()).add(video.subject)
            named = ", ".join(f"{label} {len(who)}" for label, who in sorted(counts.items()))
            raise DataError(
                f"two classes need at least three subjects each, to train on, to stop on and to "
                f"be judged on; subjects by class: {named}"
            )
    return parts


# ------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    Attributes:
        folder: of the model.
        card: of the model, with every figure.
        notes: what the reader of the figures should know.
    """

    folder: Path
    card: Card
    notes: tuple[str, ...]

    def __str__(self) -> str:
        figures = [
            f"  {metric.metric}, by {metric.unit}: {metric.value:.3f} "
            f"[{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]"
            for metric in self.card.metrics
            if metric.interval is not None
        ]
        kind = f"  ({self.card.metrics[0].interval_kind})" if self.card.metrics else ""
        return "\n".join([f"{self.folder}: {', '.join(self.card.classes)}", *figures, kind])


def finetune(
    data: str | Path,
    output: str | Path,
    *,
    model: str = "resnet18_uscl",
    train: str | None = None,
    file_column: str = "Filename",
    label_column: str | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = ("*_mask*",),
    rate: float = 3.0,
    size: int | None = None,
    holdout: float = 0.2,
    validation: float = 0.2,
    confidence: float = 0.7,
    epochs: int | None = None,
    patience: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    label_smoothing: float | None = None,
    class_weights: bool | None = None,
    seed: int = 0,
    licence: str | None = None,
    name: str | None = None,
    resamples: int = 2000,
    overwrite: bool = False,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = print,
) -> Finetuned:
    """Fine-tune a backbone on one's own classes and leave a model that answers.

    Frames are decoded once, into a uint8 memory map under `output/work`, and read from there; an
    interrupted call goes on when it is made again. The folder of a finished model holds
    `model.safetensors` and `config.json`, which timm loads; a card; `predict.json` and
    `statistics.safetensors`, which `predict` needs besides; `report.html` and its pictures; and
    `heldout.csv`, every answer the figures were computed from.

    Args:
        data: a folder with a folder per class, a CSV, or a store of `uscl prepare`, whose held-out
            subjects stay held out.
        output: folder of the model.
        model: to begin with: a checkpoint of the zoo, or timm's `local-dir:` or `hf-hub:`.
        train: `head`, `last` or `all`, see `Settings`; None to choose by the number of subjects.
        file_column: as for `collect`, like the next five.
        label_column: of a CSV.
        subject_column: of a CSV.
        subject_pattern: of a folder.
        classes: the only ones to take.
        exclude: patterns of file names to leave out.
        rate: frames a second to take from videos.
        size: height and width of the frames; None for what the backbone was trained on.
        holdout: share of the subjects of each class to be judged on.
        validation: share of the others to stop on.
        confidence: probability below which the model will say "cannot tell".
        epochs: as in `Settings`, like the next five; None to choose.
        patience: epochs without progress.
        batch_size: frames a step.
        learning_rate: at the start.
        label_smoothing: share of the target.
        class_weights: weigh the classes.
        seed: of the split, the new classifier and every draw.
        licence: of the weights, as an SPDX identifier; that of the backbone binds it.
        name: of the collection, for the card.
        resamples: of the bootstrap over held-out subjects.
        overwrite: replace a model, or begin an interrupted run anew.
        workers: processes that decode; None for one a core.
        device: to compute on; None for CUDA where there is one.
        progress: show bars.
        tell: is given a line for whatever the user should know.

    Raises:
        DataError: if the data cannot serve, or the folder holds a model or another run.
        UnreadableError: if nothing can be decoded.
        UnknownModelError: if no model is of that name.
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    from . import report

    data, output = Path(data).expanduser(), Path(output).expanduser()
    work, chosen = output / WORK, device_named(device)
    if not 0 <= confidence <= 1:
        raise DataError(f"confidence should be a probability, not {confidence}")
    if (output / ANSWERS).exists() and not overwrite:
        raise DataError(f"{output}: holds a model already; add --overwrite or choose another")
    ours = (output / ANSWERS).exists() or work.is_dir()
    if output.exists() and not ours and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: is not an empty folder; name another")
    base = _backbone(model)
    shape = base.input if size is None else dataclasses.replace(base.input, size=(3, size, size))
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        tell(text)

    if (data / DESCRIPTION).is_file():
        frames, subjects = FrameStore(data), True
        rate = float(frames.description["sampling"]["rate"])
        shape = dataclasses.replace(shape, size=(3, *frames.frames.shape[1:3]))
    else:
        collection = collect(
            data,
            file_column=file_column,
            label_column=label_column,
            subject_column=subject_column,
            subject_pattern=subject_pattern,
            classes=classes,
            exclude=exclude,
        )
        for text in collection.notes:
            note(text)
        prepared = prepare(
            collection.sources,
            work / STORE,
            collection.annotations.get,
            sampling=Sampling(rate, shape.size[1]),
            holdout=holdout,
            seed=seed,
            overwrite=overwrite,
            workers=workers,
            origin={"name": name or data.resolve().stem, "url": None, "citation": None},
            progress=progress,
        )
        frames, subjects = prepared.store, collection.subjects
        for _, reason in prepared.skipped[:5]:
            note(f"skipped: {reason}")
        if len(prepared.skipped) > 5:
            note(f"skipped: {len(prepared.skipped) - 5} more")
    name = name or str(frames.description["origin"].get("name") or data.resolve().stem)
    parts, labels = split(frames, validation, seed), frames.labels
    for text in _warnings(parts, frames, base, name):
        note(text)
    settings = sensible(
        len({video.subject for video in parts.train}),
        len(parts.train),
        train,
        epochs=epochs,
        patience=patience,
        batch_size=batch_size,
        learning_rate=learning_rate,
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        seed=seed,
    )
    tell(
        f"{len(parts.train)} files to train on, {len(parts.validation)} to stop on, "
        f"{len(parts.held_out)} to be judged on; trains {settings.train}, "
        + (
            f"at most {settings.epochs} epochs, {settings.batch_size} frames a step"
            if settings.epochs
            else "by regression alone"
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base.network.reset_classifier(len(labels))
    tuner = Tuner(
        base.network,
        frames.frames,
        Sample.of(parts.train, labels),
        Sample.of(parts.validation, labels),
        settings,
        chosen,
        shape.mean,
        shape.std,
    )
    about = {"settings": to_plain(settings), "model": model, "store": frames.digest}
    _resume(tuner, work, about, overwrite)
    fit(tuner, work, progress)
    answers, statistics = calibrate(tuner, parts.validation, labels, shape, confidence, rate)
    verdict = judge(tuner, frames, parts.held_out, answers, statistics, shape, subjects, resamples)
    # without it the folder is no model, so that half of one and half of another never are
    (output / ANSWERS).unlink(missing_ok=True)
    card = _card(
        output, base, shape, labels, parts, frames, tuner, verdict, name, subjects, licence
    )
    report.write(output, card, verdict, tuner.progress.history, answers, frames.frames, notes)
    card = _write_model(output, card, tuner.network, answers, statistics)
    shutil.rmtree(work)
    return Finetuned(output, card, tuple(notes))


@dataclass(frozen=True)
class _Base:
    """The backbone to begin with."""

    name: str
    network: Any
    architecture: str
    input: Input
    card: Card | None


def _backbone(name: str) -> _Base:
    network: Any = uscl_zoo.create_model(name, pretrained=True, num_classes=0)
    architecture = network.pretrained_cfg["architecture"].removesuffix("_uscl")
    if architecture not in ARCHITECTURES:
        raise DataError(f"{name}: is a {architecture}; should be one of {', '.join(ARCHITECTURES)}")
    wanted = create_transform(network)
    shape = Input(size=(3, *wanted.size), mean=wanted.mean, std=wanted.std)  # type: ignore[arg-type]
    return _Base(name, network, architecture, shape, None if ":" in name else model_info(name))


def _warnings(parts: Split, frames: FrameStore, base: _Base, name: str) -> list[str]:
    """What makes the figures say less than they seem to."""
    told = []
    for label in frames.labels:
        absent = [
            words
            for words, videos in (
                ("stop on", parts.validation),
                ("be judged on", parts.held_out),
            )
            if label not in {video.label for video in videos}
        ]
        if absent:
            told.append(f"{label}: too few subjects to {' or '.join(absent)}")
    content = frames.description["sources_sha256"]
    side_of: dict[str, set[tuple[str, str | None]]] = {}
    for side in dataclasses.fields(parts):
        for video in getattr(parts, side.name):
            side_of.setdefault(content[video.name], set()).add((side.name, video.label))
    twins = sum(len(places) > 1 for places in side_of.values())
    if twins:
        told.append(f"{twins} files are there twice, on two sides of the split or in two classes")
    trained = base.card.training if base.card is not None else None
    if trained is not None and name in {source.name for source in trained.sources}:
        kept = set(trained.held_out_subjects)
        for words, videos in (("stopped", parts.validation), ("judged", parts.held_out)):
            subjects = {video.subject for video in videos}
            seen = len(subjects - kept)
            told.append(
                f"in corpus: {base.name} was pretrained on {name}, and on {seen} of the "
                f"{len(subjects)} subjects it is {words} on"
            )
    return told


def _resume(tuner: Tuner, work: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Go on from a checkpoint, if there is one of the same run."""
    path = work / ABOUT
    if overwrite or not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, PREVIOUS):
            (work / name).unlink(missing_ok=True)
        write_text(path, json.dumps(about, indent=1))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != about:
        raise DataError(
            f"{work}: holds an interrupted run with other data or settings; make that call again, "
            "or add --overwrite"
        )
    state = load_checkpoint(work)
    if state is not None:
        tuner.restore(state)


def calibrate(
    tuner: Tuner,
    validation: Sequence[Video],
    classes: tuple[str, ...],
    shape: Input,
    confidence: float,
    rate: float,
) -> tuple[Answers, Statistics]:
    """Fit on the validation videos what makes answers of logits.

    Args:
        tuner: trained.
        validation: videos of subjects not trained on.
        classes: in the order of the logits.
        shape: of the input.
        confidence: below which there is no answer.
        rate: frames a second that were sampled.
    """
    rng = stream(tuner.settings.seed, 0, Purpose.VIDEOS)
    surveyed = np.sort(rng.permutation(tuner.train.rows)[:SURVEYED])
    statistics = Statistics.of(_look(tuner, surveyed, shape)[1])
    sample = Sample.of(validation, classes)
    logits, textures = _look(tuner, sample.rows, shape)
    distances = statistics.distance(textures)
    subjects = int(sample.subject.max()) + 1
    answers = Answers(
        classes=classes,
        temperature=fit_temperature(logits, sample.target, sample.weights(), subjects),
        confidence=confidence,
        # a figure of the data, not between two of them
        threshold=float(np.quantile(distances, QUANTILE, method="higher")),
        quantile=QUANTILE,
        validation_frames=len(sample),
        rate=rate,
        statistics_sha256=hashlib.sha256(pack(statistics)).hexdigest(),
    )
    return answers, statistics


def _look(
    tuner: Tuner, rows: Rows, shape: Input
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits and textures of frames, by the way that `uscl predict` goes."""
    transform = FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
    shown = tqdm(rows, unit="frame", leave=False, disable=not tuner.show)
    return prediction.run(tuner.network, transform, (tuner.frames[row] for row in shown))


def pack(statistics: Statistics) -> bytes:
    """The statistics as a safetensors file."""
    tensors = {"mean": statistics.mean, "precision": statistics.precision}
    return save({name: torch.from_numpy(array) for name, array in tensors.items()})


@dataclass(frozen=True)
class Verdict:
    """Held-out subjects, judged.

    Attributes:
        frames: an answer each.
        clips: an answer each.
        subjects: an answer each; none where subjects are not known.
        rows: of the store, of each frame.
        units: what figures are computed from: frames where they are not clips as well, clips, and
            subjects where they are known and each is of one class.
        bootstrap: resampled held-out subjects.
        figures: by unit and name.
        labels: by source, and by subject for those of one class.
    """

    frames: list[Answer]
    clips: list[Answer]
    subjects: list[Answer]
    rows: Rows
    units: list[Judged]
    bootstrap: Bootstrap
    figures: dict[str, dict[str, Score]]
    labels: dict[str, str]

    def label(self, answer: Answer) -> str:
        """The true class; empty for a subject of several."""
        return self.labels.get(str(answer.source or answer.subject), "")


def judge(
    tuner: Tuner,
    frames: FrameStore,
    videos: Sequence[Video],
    answers: Answers,
    statistics: Statistics,
    shape: Input,
    subjects: bool = True,
    resamples: int = 2000,
) -> Verdict:
    """Answer for videos whose class is known, and measure.

    Args:
        tuner: trained.
        frames: the store.
        videos: of subjects that neither trained nor chose anything.
        answers: how logits become answers.
        statistics: of the training images.
        shape: of the input.
        subjects: whether subjects are known.
        resamples: of the bootstrap.
    """
    sample = Sample.of(videos, answers.classes)
    logits, textures = _look(tuner, sample.rows, shape)
    pictures, clips, people = prediction.answer(
        answers,
        prediction.softmax(logits, answers.temperature),
        statistics.distance(textures),
        owner=sample.clip,
        number=np.concatenate([np.arange(video.count) for video in videos]),
        time=frames.times[sample.rows],
        sources=[Path(video.name) for video in videos],
        subjects=[video.subject if subjects else None for video in videos],
    )
    names = tuple(sorted({video.subject for video in videos}))
    labels = {video.name: video.label or "" for video in videos}
    of_subject: dict[str, set[str]] = {}
    for video in videos:
        of_subject.setdefault(video.subject, set()).add(video.label or "")
    if subjects:
        labels |= {who: min(found) for who, found in of_subject.items() if len(found) == 1}
    owner = {video.name: video.subject for video in videos}
    bootstrap = Bootstrap.draw(
        Task(
            classes=answers.classes,
            train=tuner.train.rows,
            test=sample.rows,
            train_target=tuner.train.target,
            test_target=sample.target,
            test_subject=sample.subject,
            subjects=names,
        ),
        resamples,
        tuner.settings.seed,
    )
    units = []
    for table in (pictures if len(pictures) > len(clips) else [], clips, people):
        known = [a for a in table if str(a.source or a.subject) in labels]
        if known:
            whose = [a.subject or owner[str(a.source)] for a in known]
            truth = [labels[str(a.source or a.subject)] for a in known]
            units.append(
                Judged(
                    unit=known[0].unit,
                    classes=answers.classes,
                    probabilities=np.array([list(a.probabilities.values()) for a in known]),
                    target=np.array([answers.classes.index(label) for label in truth]),
                    subject=np.array([names.index(who) for who in whose]),
                    answered=np.array([a.answer is not None for a in known]),
                    unlike=np.array([a.unlike for a in known]),
                )
            )
    return Verdict(
        frames=pictures,
        clips=clips,
        subjects=people,
        rows=sample.rows,
        units=units,
        bootstrap=bootstrap,
        figures={unit.unit: measure(unit, bootstrap) for unit in units},
        labels=labels,
    )


#: The figures that go on the card; the report has all.
_TOLD = (
    "balanced accuracy",
    "macro AUROC",
    "expected calibration error",
    "share flagged as unlike",
)


def _card(
    output: Path,
    base: _Base,
    shape: Input,
    classes: tuple[str, ...],
    parts: Split,
    frames: FrameStore,
    tuner: Tuner,
    verdict: Verdict,
    name: str,
    subjects: bool,
    licence: str | None,
) -> Card:
    """The card, but for the weights' digest."""
    tag = re.sub(r"[^a-z0-9]+", "_", output.resolve().name.lower()).strip("_") or "model"
    held = {video.subject for video in (*parts.validation, *parts.held_out)}
    unit = "subjects" if subjects else "files"
    count = len(verdict.bootstrap.task.subjects)
    origin = frames.description["origin"]
    own = Source(
        name=name,
        url=origin.get("url"),
        citation=origin.get("citation"),
        **frames.summary(parts.train),
    )
    settings, progress = tuner.settings, tuner.progress
    limits = ["Not a medical device; not for diagnosis or treatment."]
    limits.append(
        f"Fine-tuned on {own.frames} frames of {own.subjects} {unit}; other probes, vendors and "
        "populations are untested."
    )
    earlier: tuple[Source, ...] = ()
    if base.card is not None:
        earlier = base.card.training.sources
        limits.append(
            f"Begun from {base.name}, whose licence ({base.card.licence or 'not stated'}) binds "
            "these weights."
        )
    if not subjects:
        limits.append("Subjects were not known: files of one may be on both sides of the split.")
    return Card(
        name=f"{base.architecture}_uscl.{tag}",
        architecture=base.architecture,
        summary=f"{base.name} fine-tuned on {name}",
        weights=Weights(file=store.HUB_FILE),
        input=shape,
        training=Training(
            method=f"fine-tuning of {base.name}",
            sources=(own, *earlier),
            labels=classes,
            # names of files are not for a card, nor are a hundred thousand of anything
            held_out_subjects=tuple(sorted(held)) if subjects and len(held) <= MANY else (),
            recipe=to_plain(settings),
            epochs=progress.best,
            steps=progress.best * tuner.steps,
            seed=settings.seed,
            code=code_version(),
            hardware=hardware(tuner.device),
            hours=round(progress.seconds / 3600, 3),
        ),
        licence=licence,
        intended_use=f"Research: telling {', '.join(classes)} apart in images like {name}.",
        limits=tuple(limits),
        metrics=tuple(
            Metric(
                dataset=f"{name}, {count} held-out {unit}",
                protocol=f"fine-tuning ({settings.train}), stopped and calibrated on "
                f"{len({v.subject for v in parts.validation})} validation {unit}",
                unit=judged.unit,
                metric=metric,
                value=round(score.value, 3),
                interval=(round(score.low, 3), round(score.high, 3)),
                interval_kind=f"95 %, bootstrap over {count} held-out {unit} within classes",
                compared_with=None,
                command="uscl finetune",
                model=None,
            )
            for judged in verdict.units
            for metric, score in verdict.figures[judged.unit].items()
            if metric in _TOLD and np.isfinite(score.value)
        ),
        classes=classes,
    )


def _write_model(
    output: Path, card: Card, network: nn.Module, answers: Answers, statistics: Statistics
) -> Card:
    """Write what makes the folder a model; `predict.json`, which makes it one, last."""
    for old in output.glob("*.yaml"):
        old.unlink()
    weights = output / card.weights.file
    state = network.state_dict()
    checkpoint.write_backbone(state, weights, card.architecture, False, len(card.classes))
    digest = store.sha256_of(weights)
    known = Weights(file=weights.name, sha256=digest, bytes=weights.stat().st_size)
    card = dataclasses.replace(card, weights=known)
    with written_whole(output / STATISTICS) as partial:
        partial.write_bytes(pack(statistics))
    write_text(output / publish.CONFIG, json.dumps(publish.config(card), indent=2) + "\n")
    write_yaml(output / f"{card.name}.yaml", card)
    write_text(output / ANSWERS, json.dumps(to_plain(answers), indent=1, ensure_ascii=False))
    return read_card(output / f"{card.name}.yaml")
