"""How fast pretraining is here: the real loop, its stages, and what there is to compare it with."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from ..learning.execution import Execution, settle
from ..learning.frames import FrameStore
from ..learning.pairs import draw_labelled, draw_videos
from ..learning.recipe import Recipe
from ..learning.runs import hardware, save_checkpoint
from . import curves, monitor
from .network import build
from .objective import uscl_loss
from .starts import load_start, settled
from .steps import Sample
from .trace import Family, describe, trace
from .trainer import Trainer

#: Arithmetic of one image, forward and backward, at 224², in floating-point operations (METHOD).
COST = {"resnet18": 10.65e9, "resnet50": 24.3e9}


@dataclass(frozen=True)
class Timing:
    """Seconds of some repetitions."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return f"{1e3 * self.median:9.1f} ms  [{1e3 * low:.1f}, {1e3 * high:.1f}]"


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        device: in words.
        settings: recipe and switches, in words.
        videos: of a step; each gives two views.
        steps: of the whole recipe on this store.
        seconds: that they take, each kind of step by its own time.
        starting: seconds of the first steps, compilation among them.
        loop: of a step of the real loop: a whole batch, views of the last size.
        kinds: of the other steps, by what they are, and how many of them there are.
        bare: of the network's forward, backward and nothing else.
        stages: of a step, one stage after another.
        beside: of what a run does beside its steps, seconds each time.
        looks: how often the recipe looks at held-out videos.
        images: of a step of the per-image yardstick; None if it was not asked for.
        peak: bytes of memory, the most there were.
        families: what a step computes, by family of kernels; None if it was not asked for.
        rate: floating-point operations a second of a large matrix product.
        cost: floating-point operations of a step.
    """

    device: str
    settings: str
    videos: int
    steps: int
    seconds: float
    starting: float
    loop: Timing
    kinds: dict[str, tuple[Timing, int]]
    bare: Timing
    stages: dict[str, Timing]
    beside: dict[str, float]
    looks: int
    images: Timing | None
    peak: int
    families: list[Family] | None
    rate: float
    cost: float

    def __str__(self) -> str:
        step = self.loop.median
        floor = self.cost / self.rate
        lines = [
            f"{self.device}: {self.settings}",
            f"2 x {self.videos} views a step, median and quartiles of {len(self.loop.seconds)}",
            f"  {'step of the loop':28} {self.loop}   {2 * self.videos / step:.1f} images/s",
            *(
                f"  {name:28} {timing}   {count} of {self.steps} steps"
                for name, (timing, count) in self.kinds.items()
            ),
            f"  {'network alone':28} {self.bare}   the loop does {self.bare.median / step:.1%}",
            *(f"    {name:26} {timing}" for name, timing in self.stages.items()),
            f"  {'starting, compilation in it':28} {self.starting:9.1f} s",
            f"  {'the whole recipe':28} {self.seconds:9.1f} s  ({self.steps} steps), and "
            f"{self.looks * self.beside['looking']:.1f} s of looking ({self.looks} times)",
            *(f"    {name:26} {1e3 * once:9.1f} ms each" for name, once in self.beside.items()),
            f"  {'peak memory':28} {self.peak / 1e9:9.2f} GB",
            f"  {'arithmetic':28} {1e3 * floor:9.1f} ms a step at {self.rate / 1e12:.2f} TFLOP/s "
            f"of a matrix product: {floor / step:.1%} of the roofline",
        ]
        if self.families is not None:
            lines += ["kernels of a step, by family", describe(self.families)]
        if self.images is not None:
            lines.append(
                f"  {'per-image yardstick':28} {self.images}   the loop is "
                f"{self.images.median / step:.2f} times as fast"
            )
        return "\n".join(lines)


def measure(
    recipe: Recipe,
    store: FrameStore,
    execution: Execution,
    *,
    repeats: int = 10,
    per_image: bool = False,
    workers: int | None = None,
    traced: Path | None = None,
    progress: bool = True,
) -> Report:
    """Time the loop, the network alone and, if asked, the per-image path, taking turns.

    Args:
        recipe: what to time.
        store: frames.
        execution: where and how.
        repeats: turns, after one that warms up; each is a step of each.
        per_image: time the yardstick as well.
        workers: processes that load its images; None for one a core.
        traced: folder for a trace of some steps of the loop; None for none.
        progress: show a bar.
    """
    settle(execution)
    recipe, start = settled(recipe)
    teachers = [load_start(reference) for reference in recipe.teachers]
    trainer = Trainer(recipe, store, execution, start=start, teachers=teachers)
    wait = _waiting(execution.device)
    counts = _kinds(trainer)
    usual = (trainer.size, recipe.batch_size)
    # an epoch of warming up would take minutes on a CPU; on a GPU, graphs are captured in it
    warm = 1 if execution.device.type == "cpu" else trainer.steps + 1
    sides: dict[str, Callable[[], Any]] = {"loop": lambda: step_of(trainer)}
    tables = trainer.tables(0)
    sample = trainer.sample(tables, _whole(tables.batches, recipe))
    view1, view2 = trainer.views(sample)
    sides["bare"] = lambda: _bare(trainer, sample, view1, view2)
    if per_image:
        authors = _per_image(recipe, store, execution.device, workers)
        sides["images"] = lambda: next(authors)
    began = time.perf_counter()
    for _ in range(warm):
        sides["loop"]()
    wait()
    starting = time.perf_counter() - began
    for name in sides:
        if name != "loop":
            sides[name]()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in tqdm(range(repeats), unit="turn", disable=not progress, leave=False):
        for name in sides if turn % 2 else reversed(sides):
            wait()
            clock = time.perf_counter()
            sides[name]()
            wait()
            seconds[name].append(time.perf_counter() - clock)
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    size = (trainer.size / 224) ** 2
    kinds = {
        f"{kind[1]} videos, views of {kind[0]}²": (
            _timed(partial(step_of, trainer, kind), warm, repeats, wait),
            count,
        )
        for kind, count in counts.items()
        if kind != usual
    }
    others = sum(timing.median * count for timing, count in kinds.values())
    return Report(
        device=hardware(execution.device),
        settings=_settings(trainer),
        videos=recipe.batch_size,
        steps=sum(counts.values()),
        seconds=timings["loop"].median * counts[usual] + others,
        starting=starting,
        loop=timings["loop"],
        kinds=kinds,
        bare=timings["bare"],
        stages=_stages(trainer, repeats, wait),
        beside=_beside(trainer, wait),
        looks=-(-recipe.epochs // recipe.validate_every),
        images=timings.get("images"),
        peak=_peak(execution.device),
        families=None
        if traced is None
        else trace(lambda: step_of(trainer), execution.device, traced, repeats),
        rate=_matrix_rate(execution.device, trainer.precision),
        cost=2 * recipe.batch_size * size * COST[recipe.architecture],
    )


#: Side of the views and number of videos of a step.
_Kind = tuple[int, int]


def _kinds(trainer: Trainer) -> Counter[_Kind]:
    """How many steps of each kind a recipe has."""
    lengths = [len(batch) for batch in trainer.tables(0).batches]
    return Counter(
        (trainer.side_of(epoch, step), length)
        for epoch in range(trainer.recipe.epochs)
        for step, length in enumerate(lengths)
    )


def _whole(batches: Sequence[npt.NDArray[np.int64]], recipe: Recipe) -> npt.NDArray[np.int64]:
    """A batch of as many videos as the recipe says."""
    return next(batch for batch in batches if len(batch) == recipe.batch_size)


def step_of(trainer: Trainer, kind: _Kind | None = None) -> None:
    """The next step of a kind, going on to the next epoch where one ends, and to the first at last.

    Args:
        trainer: where it is given where to look from.
        kind: side of the views and number of videos; None for the last side and a whole batch.
    """
    recipe, progress = trainer.recipe, trainer.progress
    kind = kind or (trainer.size, recipe.batch_size)
    steps = trainer.steps
    # of every epoch the same steps have the same number of videos
    lengths = [len(batch) for batch in trainer.tables(progress.epoch).batches]
    place = progress.epoch * steps + progress.step
    for _ in range(recipe.epochs * steps):
        epoch, step = divmod(place, steps)
        if (trainer.side_of(epoch, step), lengths[step]) == kind:
            break
        place = (place + 1) % (recipe.epochs * steps)
    progress.epoch, progress.step = divmod(place, steps)
    trainer.step()
    if progress.step == steps:
        progress.epoch, progress.step = (progress.epoch + 1) % recipe.epochs, 0


def _timed(do: Callable[[], None], warm: int, repeats: int, wait: Callable[[], None]) -> Timing:
    """Seconds of something done over and over, after it has warmed up."""
    for _ in range(warm):
        do()
    seconds = []
    for _ in range(repeats):
        wait()
        clock = time.perf_counter()
        do()
        wait()
        seconds.append(time.perf_counter() - clock)
    return Timing(tuple(seconds))


def _bare(trainer: Trainer, sample: Sample, view1: Tensor, view2: Tensor) -> None:
    trainer.network.train()
    trainer.network.zero_grad(set_to_none=True)
    trainer.loss(sample.target, view1, view2).total.backward()


def _stages(trainer: Trainer, repeats: int, wait: Callable[[], None]) -> dict[str, Timing]:
    """A step in pieces, waiting for the device after each; graphs cannot be looked into."""
    names = ("frames", "views", "forward", "backward", "update")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    tables = trainer.tables(0)
    batch = _whole(tables.batches, trainer.recipe)
    for _ in range(repeats):
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            wait()
            marks.append(time.perf_counter())

        sample = trainer.sample(tables, batch)
        mark()
        views = trainer.views(sample)
        mark()
        loss = trainer.loss(sample.target, *views)
        mark()
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        mark()
        trainer.optimizer.step()
        mark()
        for name, before, after in zip(names, marks, marks[1:], strict=False):
            seconds[name].append(after - before)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _beside(trainer: Trainer, wait: Callable[[], None]) -> dict[str, float]:
    """What `pretrain` does between steps, each once more after one that warms up."""
    row = dict.fromkeys(("contrastive", "labelled", "learning_rate", "held-out contrastive"), 1.0)

    def look() -> None:
        trainer.validate()
        row.update(monitor.measure(*trainer.watched(), trainer.size))

    def draw(path: Path) -> None:
        # as many points as at the end of the recipe
        epochs = range(trainer.recipe.epochs)
        curves.draw([row | {"epoch": float(epoch)} for epoch in epochs], path)

    with tempfile.TemporaryDirectory(prefix="uscl-") as folder:
        work: dict[str, Callable[[], Any]] = {
            "tables of an epoch": lambda: trainer.draw(0),
            "weights are finite": trainer.is_finite,
            "looking": look,
            "checkpoint": lambda: save_checkpoint(Path(folder), trainer.state()),
            "picture of the curves": lambda: draw(Path(folder) / "curves.png"),
        }
        seconds = {}
        for name, do in work.items():
            # looking takes a CPU a minute, and nothing in it has to warm up there
            for _ in range(1 if name == "looking" and trainer.device.type == "cpu" else 2):
                wait()
                clock = time.perf_counter()
                do()
                wait()
                seconds[name] = time.perf_counter() - clock
    return seconds


def _settings(trainer: Trainer) -> str:
    recipe, execution = trainer.recipe, trainer.execution
    words = [
        recipe.architecture,
        f"{trainer.size}²",
        trainer.precision,
        "channels last" if execution.channels_last else "channels first",
        "compiled" if trainer.compiles else "not compiled",
        "one graph a step" if execution.replays(1) else "no graph",
        "fused Adam" if execution.fused else "Adam in pieces",
        str(trainer.feed),
    ]
    return ", ".join(words)


def _waiting(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _matrix_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of a large product of random matrices."""
    side = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    wait, seconds = _waiting(device), []
    for _ in range(8):
        wait()
        clock = time.perf_counter()
        a @ b
        wait()
        seconds.append(time.perf_counter() - clock)
    return 2 * side**3 / statistics.median(seconds[2:])


# ------------------------------------------------------------------------------- the yardstick


class _Images(Dataset[tuple[Tensor, Tensor, int]]):
    """Two views of a video, each image through Pillow, as the authors' loader makes them."""

    def __init__(self, recipe: Recipe, store: FrameStore, targets: Sequence[int]) -> None:
        self.videos = draw_videos(store.select("train"), recipe)
        self.targets, self.store = targets, store
        size = int(store.frames.shape[1])
        jitter = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomResizedCrop(size, recipe.crop_scale, recipe.crop_ratio),
                transforms.RandomHorizontalFlip(recipe.flip),
                transforms.ColorJitter(*jitter),
                transforms.ToTensor(),
                transforms.Normalize(recipe.mean, recipe.std),
            ]
        )
        self.beta = recipe.beta

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        video = self.videos[index]
        rng = np.random.default_rng()
        chosen = rng.permutation(video.count)[:3]
        images = [
            self.transform(Image.fromarray(self.store.frames[video.first + int(i)])) for i in chosen
        ]
        first, anchor, last = images[0], images[len(images) // 2], images[-1]
        lam = rng.beta(self.beta, self.beta)
        mixed = (lam * first + (1 - lam) * anchor, lam * last + (1 - lam) * anchor)
        return *mixed, self.targets[index]


def _per_image(
    recipe: Recipe, store: FrameStore, device: torch.device, workers: int | None
) -> Iterator[None]:
    """Steps as the authors' code does them: images one by one, four forwards, float32.

    Frames are read from the store already resized, where the authors decode JPEG files: the
    yardstick is shorter than it was.
    """
    videos = draw_videos(store.select("train"), recipe)
    classes = store.labels if recipe.classes is None else recipe.classes
    targets = draw_labelled(videos, recipe, classes)
    network = build(recipe, len(classes)).to(device).train()
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    loader = DataLoader(
        _Images(recipe, store, targets),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=torch.get_num_threads() if workers is None else workers,
        persistent_workers=workers != 0,
    )
    while True:
        for view1, view2, target in loader:
            view1, view2, target = view1.to(device), view2.to(device), target.to(device)
            optimizer.zero_grad()
            # two forwards for the contrast and, for the labels, the same two again
            z1, z2 = network(view1)[0], network(view2)[0]
            first, second = network(view1), network(view2)
            loss = uscl_loss((z1, first[1]), (z2, second[1]), target, recipe).total
            loss.backward()
            optimizer.step()
            yield
