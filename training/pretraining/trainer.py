"""One step of USCL after another: from rows of the store to updated weights."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from uscl_zoo.errors import DataError, UsclError

from ..learning import augment
from ..learning.execution import Execution, autocast, precision_on, send
from ..learning.feed import Feed
from ..learning.frames import FrameStore, Video
from ..learning.pairs import (
    cut,
    draw_batches,
    draw_items,
    draw_labelled,
    draw_pairs,
    draw_videos,
    without,
)
from ..learning.ranks import ALONE, Ranks, synchronise
from ..learning.recipe import CONSISTENT, Recipe, settings_of
from .consistency import Ensemble, consistency_loss, consistency_weight
from .graphs import Replay
from .growing import can_grow
from .moco import Moco
from .network import TwoViews, UsclNetwork, build
from .objective import Loss, nt_xent, uscl_loss
from .starts import Start, begun_with
from .steps import Sample, Tables, learning_rate, views_of
from .teacher import Teachers, teacher_term
from .views import make_views, make_views_by_video, mix

#: What is summed over the steps of an epoch: the loss and its terms.
TERMS = ("loss", "contrastive", "labelled", "taught", "consistency")


class NotFiniteError(UsclError, ArithmeticError):
    """The loss became infinite or NaN."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: the one in progress, from 0.
        step: steps finished within it.
        seconds: wall-clock time so far, over all sittings.
        sums: of the loss and its terms over the steps of this epoch.
        history: one row an epoch.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0] * len(TERMS))
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """One run: its data, network and optimiser, one step after another.

    Args:
        recipe: settings.
        store: frames; its `train` split, or `data_rate` of it, is trained on.
        execution: where and how to compute.
        ranks: processes that train together.
        precision: in which a resumed run began; None for what the recipe means on this device.
        start: what the encoder begins with; None for random weights, as for a run that resumes.
        teachers: what it learns from.

    Attributes:
        size: side of the last views in pixels, and of the frames it is looked at by.
        compiles: whether steps are compiled.
        average: the network whose weights are the average of the steps'; None if not asked for.
        begun: what of the encoder begins with given weights, in words; empty without.

    Raises:
        DataError: if the store cannot serve the recipe, or the ranks cannot share its batches.
    """

    def __init__(
        self,
        recipe: Recipe,
        store: FrameStore,
        execution: Execution,
        ranks: Ranks = ALONE,
        precision: str | None = None,
        start: Start | None = None,
        teachers: Sequence[Start] = (),
    ) -> None:
        self.recipe, self.store, self.execution, self.ranks = recipe, store, execution, ranks
        device = self.device = execution.device
        _refuse_unknown(recipe, store)
        everything, self.held_out = (
            without(store.select(split), recipe) for split in ("train", "heldout")
        )
        self.videos = draw_videos(everything, recipe)
        # the classes do not depend on which videos data_rate happens to draw
        self.classes = _classes(recipe, store, everything, self.held_out)
        if len(self.videos) < 2:
            raise DataError(
                f"{store.folder}: {len(self.videos)} training video, and contrast takes two; "
                "prepare more, hold out fewer (`holdout`), or raise data_rate"
            )
        if recipe.batch_size > len(self.videos):
            raise DataError(
                f"batch_size: {recipe.batch_size} is more than the {len(self.videos)} training "
                f"videos of {store.folder}; add batch_size={len(self.videos)}"
            )
        lengths = [len(batch) for batch in draw_batches(len(self.videos), recipe, 0)]
        smallest = min(lengths)
        if smallest < ranks.world:
            raise DataError(
                f"batch_size: the smallest batch has {smallest} videos for {ranks.world} ranks; "
                "raise batch_size or start fewer ranks"
            )
        if recipe.method in ("moco", "temporal") and ranks.world > 1:
            kept = "one queue" if recipe.method == "moco" else "what was said of each video"
            raise DataError(
                f"method {recipe.method} keeps {kept}, which several ranks do not share"
            )
        self.side = int(store.frames.shape[1])
        largest = max((side for side, _ in recipe.sizes), default=self.side)
        if largest > self.side:
            raise DataError(
                f"sizes: {largest} is larger than the {self.side} pixels of {store.folder}; "
                f"prepare it at {largest}"
            )
        self.size = recipe.sizes[-1][0] if recipe.sizes else self.side
        self.compiles = execution.compiles(views_of(recipe, self.side, sum(lengths)))
        targets = draw_labelled(self.videos, recipe, self.classes)
        if recipe.method in ("supervised", *CONSISTENT) and max(targets) < 0:
            raise DataError(
                f"{store.folder}: no label to learn from, and method {recipe.method} learns "
                "nothing without; see classes, label_rate and data_rate, or prepare it with labels"
            )
        self.targets = np.array(targets, dtype=np.int64)
        self.precision = precision or precision_on(device, recipe.precision)
        self.feed = Feed(store, device, execution.place)
        self.layout = torch.channels_last if execution.channels_last else torch.contiguous_format
        _refuse_others_stages(recipe, teachers)
        self.teachers = Teachers(teachers, recipe, device, self.layout)
        taught = self.teachers.features if recipe.teacher_term == "features" else ()
        given, self.begun = {}, ""
        if start is not None:
            given = begun_with(start, recipe, store, self.videos)
            kind = "grown from" if start.architecture != recipe.architecture else "that of"
            self.begun = f"the encoder begins as {kind} {start.reference} ({start.architecture})"
        self.network: UsclNetwork = build(recipe, len(self.classes), given, taught).to(device)
        if recipe.sync_batch_norm and ranks.world > 1:
            synchronise(self.network, device)
        self.network.to(memory_format=self.layout)
        self.average = copy.deepcopy(self.network).eval() if recipe.average else None
        self.moco = Moco(recipe, self.network) if recipe.method == "moco" else None
        self.ensemble = None
        if recipe.method == "temporal":
            size = len(self.videos), len(self.classes)
            self.ensemble = Ensemble(*size, recipe.ensemble_momentum).to(device)
        # the queue of moco keeps its place as a number of the host, which a graph would freeze
        replays = execution.replays(ranks.world) and self.moco is None
        self.rate = torch.tensor(recipe.learning_rate, device=device) if replays else None
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimizer = kinds[recipe.optimizer](
            self.network.parameters(),
            lr=recipe.learning_rate if self.rate is None else self.rate,
            weight_decay=recipe.weight_decay,
            fused=execution.fused,
            capturable=replays,
        )
        self._two_views = _parallel(TwoViews(self.network, recipe), recipe, device, ranks)
        self._noise = augment.draw_noise(recipe, self.side, device)
        # how much of the average a step leaves, as a tensor, which a replayed step can read anew
        self._keep = torch.zeros((), device=device)
        # likewise what agreement weighs
        self._weight = torch.zeros((), device=device)
        # a batch of another size is done as it is: compiling for it takes longer than it does
        self._whole = len(ranks.share(np.arange(recipe.batch_size)))
        self._compiled: set[int] = set()
        self._fast_two_views: Any = None
        self._fast_views: Any = None
        if self.compiles:
            self._fast_two_views = torch.compile(self._two_views, dynamic=False)
            if device.type == "cuda":
                self._fast_views = torch.compile(self.views, dynamic=False)
        self._replay = Replay(self._update) if replays else None
        self.progress = Progress()
        # on a GPU nobody waits for the loss of a step
        self._sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        self._tables: dict[int, Tables] = {}
        self._coming: tuple[int, int, Iterator[Tensor]] | None = None

    def tables(self, epoch: int) -> Tables:
        """Every draw of an epoch: pairs, augmentation and batches."""
        self.prepare(epoch)
        return self._tables[epoch]

    def prepare(self, epoch: int) -> None:
        """Draw the tables of an epoch before they are asked for, beside those of the one before."""
        if epoch not in self._tables:
            before = {e: tables for e, tables in self._tables.items() if e == epoch - 1}
            self._tables = before | {epoch: self.draw(epoch)}

    def draw(self, epoch: int) -> Tables:
        """Draw the tables of an epoch."""
        batches = draw_batches(len(self.videos), self.recipe, epoch)
        items = draw_items(self.videos, self.recipe, epoch, batches)
        pairs = draw_pairs([self.videos[item] for item in items], self.recipe, epoch)
        return Tables(
            pairs=pairs,
            lam=send(torch.from_numpy(pairs.lam), self.device),
            draws=augment.draw(self.recipe, epoch, len(items), self.side).to(self.device),
            batches=batches,
            target=send(torch.from_numpy(self.targets[items]), self.device),
            video=send(torch.from_numpy(items), self.device),
        )

    @property
    def steps(self) -> int:
        """Steps of an epoch, the same in every epoch."""
        return len(self.tables(self.progress.epoch).batches)

    def sample(self, tables: Tables, batch: np.ndarray, frames: Tensor | None = None) -> Sample:
        """What a step on some videos reads.

        Args:
            tables: of the epoch.
            batch: int64 (N,), the places.
            frames: theirs, if they have been read already.
        """
        if frames is None:
            frames = self.feed.take(tables.pairs.frames[batch].reshape(-1))
        index = send(torch.from_numpy(batch), self.device)
        places = (3 * index[:, None] + torch.arange(3, device=self.device)).reshape(-1)
        drawn = tables.lam[index], tables.draws[places], tables.target[index], tables.video[index]
        return Sample(frames, *drawn)

    def side_of(self, epoch: int, step: int) -> int:
        """Side of the views of a step in pixels."""
        done = (epoch * self.steps + step) / (self.recipe.epochs * self.steps)
        return next((side for side, end in self.recipe.sizes if done < end), self.size)

    @property
    def compiles_next(self) -> bool:
        """Whether the next step is compiled before it is done, which takes a minute."""
        progress = self.progress
        batch = self.tables(progress.epoch).batches[progress.step]
        return (
            self.compiles
            and len(self.ranks.share(batch)) == self._whole
            and self.side_of(progress.epoch, progress.step) not in self._compiled
        )

    def views(self, sample: Sample, size: int | None = None) -> tuple[Tensor, Tensor]:
        """The two views of a batch of videos: augmented and mixed, in the order of `mix`.

        Args:
            sample: frames and draws.
            size: side of the views in pixels; None for the last of the run.

        Returns:
            Two views, float32 (N, 3, size, size).
        """
        size = size or self.size
        read = (sample.frames, sample.lam, sample.draws, self.recipe)
        if self.device.type == "cpu":
            return make_views_by_video(*read, self.layout, size, self._noise)
        grey = bool(self.store.description.get("grey"))
        view1, view2 = make_views(*read, size, self._noise, grey)
        return (
            view1.contiguous(memory_format=self.layout),
            view2.contiguous(memory_format=self.layout),
        )

    def loss(
        self, target: Tensor, view1: Tensor, view2: Tensor, video: Tensor | None = None
    ) -> Loss:
        """The loss of two forwards, one a view with its own batch statistics, or of a fused one.

        Args:
            target: int64 (N,), −1 where unlabelled.
            view1: float32 (N, 3, H, W).
            view2: likewise.
            video: int64 (N,), which of the training videos they are, which `temporal` asks for.
        """
        if self.ensemble is not None and video is not None:
            with autocast(self.device, self.precision):
                logits = self.network(view1)[1]
            said = self.ensemble.targets(video)
            self.ensemble.hear(video, logits.detach().float().softmax(1))
            return consistency_loss(
                logits, said[0], target, self._weight, self.recipe, known=said[1]
            )
        with autocast(self.device, self.precision):
            if self.moco is not None:
                z, keys = self.network(view1)[0], self.moco.keys(view2)
                contrastive, none = self.moco.loss(z, keys), torch.zeros((), device=self.device)
                return Loss(contrastive, contrastive, none, none, none)
            lessons = self.teachers(view1, view2)
            compiled = self._fast_two_views is not None and len(view1) == self._whole
            outputs = (self._fast_two_views if compiled else self._two_views)(view1, view2)
        if self.recipe.method in CONSISTENT:
            (_, logits), (_, other) = outputs.first, outputs.second
            agreeing = target, self._weight, self.recipe, self.ranks
            return consistency_loss(logits, other, *agreeing)
        taught = None
        if lessons:
            taught = teacher_term(outputs, lessons, self.recipe, self.ranks)
        return uscl_loss(outputs.first, outputs.second, target, self.recipe, self.ranks, taught)

    def _update(self, sample: Sample, size: int) -> None:
        compiled = self._fast_views is not None and len(sample.lam) == self._whole
        view1, view2 = (self._fast_views if compiled else self.views)(sample, size)
        loss = self.loss(sample.target, view1, view2, sample.video)
        parts = loss.total, loss.contrastive, loss.labelled, loss.taught, loss.consistency
        terms = torch.stack(parts).detach()
        if self.ranks.world > 1:
            # each has its share of the loss of all
            terms = self.ranks.total(terms) / self.ranks.world
        if self.device.type == "cpu" and not terms[0].isfinite():
            raise NotFiniteError(
                f"the loss is {terms[0]:g} in epoch {self.progress.epoch + 1}, "
                f"step {self.progress.step + 1}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.optimizer.step()
        if self.moco is not None:
            self.moco.update(self.network)
        if self.average is not None:
            self._follow(self.average)
        self._sums += terms

    @torch.no_grad()
    def _follow(self, average: UsclNetwork) -> None:
        """Let the average follow the weights and the batch statistics of the network."""
        pairs = zip(average.state_dict().values(), self.network.state_dict().values(), strict=True)
        kept, new = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        torch._foreach_mul_(kept, self._keep)
        torch._foreach_add_(kept, torch._foreach_mul(new, 1 - self._keep))

    def step(self) -> int:
        """Do the next step of the current epoch; returns the number of images it augmented.

        Raises:
            NotFiniteError: on a CPU, before anything is updated, if the loss is not finite.
                Elsewhere nobody waits for the loss, and `collect` finds out.
        """
        progress = self.progress
        tables = self.tables(progress.epoch)
        batch = self.ranks.share(tables.batches[progress.step])
        sample = self.sample(tables, batch, self._next_frames(tables))
        rate = learning_rate(self.recipe, progress.epoch, progress.step, len(tables.batches))
        size = self.side_of(progress.epoch, progress.step)
        if self.rate is not None:
            self.rate.fill_(rate)
        for group in self.optimizer.param_groups if self.rate is None else ():
            group["lr"] = rate
        if self.average is not None:
            # in the first steps less is kept: they would otherwise stay in the average for long
            done = progress.epoch * len(tables.batches) + progress.step + 1
            self._keep.fill_(min(self.recipe.average, done / (done + 10)))
        if self.recipe.method in CONSISTENT:
            share = float((self.targets >= 0).mean())
            self._weight.fill_(consistency_weight(self.recipe, progress.epoch, share))
        self.network.train()
        if len(batch) == self._whole:
            self._compiled.add(size)
        if self._replay is None:
            self._update(sample, size)
        else:
            self._replay(sample, size)
        progress.step += 1
        if self.device.type == "cpu":
            self.collect()
        return 2 * len(batch)

    def _next_frames(self, tables: Tables) -> Tensor:
        """The frames of this rank's next batch, read ahead in the order of the epoch."""
        here = self.progress.epoch, self.progress.step
        if self._coming is None or self._coming[:2] != here:
            rows = [
                tables.pairs.frames[self.ranks.share(batch)].reshape(-1)
                for batch in tables.batches[here[1] :]
            ]
            self._coming = (*here, self.feed.stream(rows))
        coming = self._coming[2]
        self._coming = (here[0], here[1] + 1, coming)
        return next(coming)

    def collect(self) -> None:
        """Bring the sums of the losses from the device into `progress`.

        Raises:
            NotFiniteError: if they are not finite.
        """
        for i, value in enumerate(self._sums.tolist()):
            self.progress.sums[i] += value
        self._sums.zero_()
        if not math.isfinite(self.progress.sums[0]):
            raise NotFiniteError(
                f"the loss is {self.progress.sums[0]:g} in epoch {self.progress.epoch + 1}"
            )

    def is_finite(self) -> bool:
        """Whether weights and batch statistics are: a loss shows only those before its step."""
        tensors = self.network.state_dict().values()
        # side by side: a question to the device, not one a tensor
        together = torch.cat([t.flatten() for t in tensors if t.is_floating_point()])
        # the least and the most of values with a NaN among them are NaN
        return bool(torch.stack(together.aminmax()).isfinite().all())

    @torch.inference_mode()
    def validate(self) -> float | None:
        """NT-Xent of the held-out videos under the deterministic transform; None below two.

        For the curves only: no checkpoint is chosen by it.
        """
        if len(self.held_out) < 2:
            return None
        network = self.kept.eval()
        pairs = draw_pairs(self.held_out, self.recipe, 0, validation=True)
        total = 0.0
        for batch in cut(np.arange(len(self.held_out)), self.recipe):
            frames = self.feed.take(pairs.frames[batch].reshape(-1))
            images = augment.shrink(augment.to_float(frames), self.size)
            images = augment.normalise(images, self.recipe)
            view1, view2 = mix(images, torch.from_numpy(pairs.lam[batch]).to(self.device))
            with autocast(self.device, self.precision):
                z1, z2 = network(view1)[0], network(view2)[0]
            total += len(batch) * nt_xent(z1, z2, self.recipe.temperature).item()
        return total / len(self.held_out)

    @property
    def kept(self) -> UsclNetwork:
        """The network whose weights are the run's: the average, or that of the last step."""
        return self.network if self.average is None else self.average

    def watched(
        self,
    ) -> tuple[UsclNetwork, Feed, Recipe, list[Video], list[Video], str]:
        """What `monitor` looks at, at `size`."""
        return self.kept, self.feed, self.recipe, self.videos, self.held_out, self.precision

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""
        kept = {} if self.moco is None else {"moco": self.moco.state_dict()}
        if self.average is not None:
            kept["average"] = self.average.state_dict()
        if self.ensemble is not None:
            kept["ensemble"] = self.ensemble.state_dict()
        return kept | {
            "format": 1,
            "recipe": settings_of(self.recipe),
            "store": self.store.digest,
            "classes": list(self.classes),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.network.load_state_dict(state["network"])
        # as this sitting computes, not as the one before did; set before loading, since it decides
        # where the counts of steps have to be
        now = {"fused": self.execution.fused, "capturable": self.rate is not None}
        kept = state["optimizer"]
        groups = [group | now for group in kept["param_groups"]]
        self.optimizer.load_state_dict(kept | {"param_groups": groups})
        for group in self.optimizer.param_groups if self.rate is not None else ():
            group["lr"] = self.rate
        if self.moco is not None:
            self.moco.load_state_dict(state["moco"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.ensemble is not None:
            self.ensemble.load_state_dict(state["ensemble"])
        self.progress = Progress(**state["progress"])
        # runs of releases before there were teachers
        self.progress.sums += [0.0] * (len(TERMS) - len(self.progress.sums))


def _parallel(two_views: TwoViews, recipe: Recipe, device: torch.device, ranks: Ranks) -> Any:
    """The network under DDP, if there are several ranks."""
    if ranks.world == 1:
        return two_views
    with warnings.catch_warnings():
        # its successor, of torch 2.14, is not there in the oldest torch we run on
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            two_views,
            device_ids=[device] if device.type == "cuda" else None,
            # each rank keeps its own batch statistics; rank 0's are saved
            broadcast_buffers=False,
            # a term that does not count leaves its head without a gradient
            find_unused_parameters=recipe.method in ("supervised", *CONSISTENT)
            or 0 in (recipe.class_weight, recipe.contrast_weight, recipe.teacher_weight),
        )


def _refuse_unknown(recipe: Recipe, store: FrameStore) -> None:
    known = sorted({video.origin for video in store.videos if video.origin is not None})
    for key in recipe.leave_out:
        if key not in known:
            raise DataError(
                f"leave_out: {store.folder} has no source {key!r}; it has "
                f"{', '.join(known) or 'a single one without a key'}"
            )


def _refuse_others_stages(recipe: Recipe, teachers: Sequence[Start]) -> None:
    for teacher in teachers if recipe.teacher_term == "stages" else ():
        kind = teacher.architecture
        if kind != recipe.architecture and not can_grow(kind, recipe.architecture):
            raise DataError(
                f"teachers: the stages of {teacher.reference} ({kind}) are not comparable with "
                f"those of a {recipe.architecture}; take teacher_term=features or similarities"
            )


def _classes(
    recipe: Recipe, store: FrameStore, videos: list[Video], held_out: list[Video]
) -> tuple[str, ...]:
    if recipe.classes is None:
        return tuple(sorted({v.label for v in [*videos, *held_out] if v.label is not None}))
    present = {video.label for video in videos}
    for label in recipe.classes:
        if label not in present:
            raise DataError(
                f"classes: no training video of {store.folder} is labelled {label!r}; it has "
                f"{', '.join(store.labels) or 'no labels'}; set classes=[...]"
            )
    return recipe.classes
