"""The loop of USCL pretraining: steps, checkpoints, resumption and learning curves."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import uscl_zoo
from uscl_zoo.errors import CardError, CheckpointError, DataError, UsclError
from uscl_zoo.records import from_mapping, read_yaml, write_text, write_yaml

from . import augment, curves, monitor
from .frames import FrameStore, Video
from .moco import Moco
from .network import UsclNetwork, build
from .objective import Loss, nt_xent, uscl_loss
from .pairs import (
    ANCHOR,
    VIEW1,
    VIEW2,
    Pairs,
    cut,
    draw_batches,
    draw_labelled,
    draw_pairs,
    draw_videos,
)
from .recipe import Recipe, settings_of

RECIPE, ABOUT, EVENTS = "recipe.yaml", "run.json", "tensorboard"
CURVES, EMBEDDING = "curves.png", "embedding.png"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


class NotFiniteError(UsclError, ArithmeticError):
    """The loss became infinite or NaN."""


class Interrupted(UsclError):
    """The run was asked to stop and has saved itself."""

    exit_code = 130  # what shells expect of a command ended by Ctrl-C


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
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    history: list[dict[str, float]] = field(default_factory=list)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Constant for `constant_epochs`, then a cosine that ends in the last epoch (METHOD, 6)."""
    if epoch < recipe.constant_epochs or recipe.epochs <= recipe.constant_epochs + 1:
        return recipe.learning_rate
    done = (epoch - recipe.constant_epochs) / (recipe.epochs - 1 - recipe.constant_epochs)
    span = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


class Trainer:
    """One run: its data, network and optimiser, one step after another.

    Args:
        recipe: settings.
        store: frames; its `train` split, or `data_rate` of it, is trained on.
        device: where to compute.

    Raises:
        DataError: if the store cannot serve the recipe.
    """

    def __init__(self, recipe: Recipe, store: FrameStore, device: torch.device) -> None:
        self.recipe, self.store, self.device = recipe, store, device
        everything, self.held_out = store.select("train"), store.select("heldout")
        self.videos = draw_videos(everything, recipe)
        # the classes do not depend on which videos data_rate happens to draw
        self.classes = _classes(recipe, store, everything)
        if len(self.videos) < 2:
            raise DataError(
                f"{store.folder}: {len(self.videos)} training video, and contrast takes two; "
                "prepare more, hold out fewer with --holdout, or raise data_rate"
            )
        if recipe.batch_size > len(self.videos):
            raise DataError(
                f"batch_size: {recipe.batch_size} is more than the {len(self.videos)} training "
                f"videos of {store.folder}; add batch_size={len(self.videos)}"
            )
        self.size = int(store.frames.shape[1])
        targets = draw_labelled(self.videos, recipe, self.classes)
        if recipe.method == "supervised" and max(targets) < 0:
            raise DataError(
                f"{store.folder}: no label to learn from, and method supervised learns from "
                "nothing else; see classes, label_rate and data_rate, or prepare it with labels"
            )
        self.targets = torch.tensor(targets, device=device)
        self.network = build(recipe, len(self.classes)).to(device)
        self.network.to(memory_format=torch.channels_last)
        self.moco = Moco(recipe, self.network) if recipe.method == "moco" else None
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        automatic = "bf16" if device.type == "cuda" else "float32"
        self.precision = automatic if recipe.precision == "auto" else recipe.precision
        self.frames = _resident(store, device)
        self.progress = Progress()
        self._tables: tuple[int, Pairs, augment.Draws, list[np.ndarray]] | None = None

    def tables(self, epoch: int) -> tuple[Pairs, augment.Draws, list[np.ndarray]]:
        """Every draw of an epoch: pairs, augmentation and batches."""
        if self._tables is None or self._tables[0] != epoch:
            self._tables = (
                epoch,
                draw_pairs(self.videos, self.recipe, epoch),
                augment.draw(self.recipe, epoch, len(self.videos), self.size).to(self.device),
                draw_batches(len(self.videos), self.recipe, epoch),
            )
        return self._tables[1:]

    def gather(self, rows: np.ndarray) -> Tensor:
        """Frames by row of the store: uint8 (N, H, W, 3) on the device."""
        if isinstance(self.frames, Tensor):
            return self.frames[torch.from_numpy(rows).to(self.device)]
        return torch.from_numpy(self.store.read(rows)).to(self.device, non_blocking=True)

    def views(self, pairs: Pairs, draws: augment.Draws, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """The two views of a batch of videos: augmented and mixed, in the order of `mix`."""
        images = augment.to_float(self.gather(pairs.frames[batch].reshape(-1)))
        lam = torch.from_numpy(pairs.lam[batch]).to(self.device)

        def augmented(images: Tensor, *places: int) -> Tensor:
            index = torch.from_numpy((3 * batch[:, None] + np.array(places)).reshape(-1))
            return augment.augment(images, draws.select(index.to(self.device)), self.recipe)

        if self.recipe.mix == "after" and self.recipe.method == "uscl":
            return mix(augmented(images, VIEW1, ANCHOR, VIEW2), lam)
        # without mixing the order means nothing, and this one leaves the anchor unaugmented
        view1, view2 = mix(images, lam)
        return augmented(view1, VIEW1), augmented(view2, VIEW2)

    def loss(self, batch: np.ndarray, view1: Tensor, view2: Tensor) -> Loss:
        """The loss of two forwards, one a view with its own batch statistics, or of a fused one."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.moco is not None:
                z, keys = self.network(view1)[0], self.moco.keys(view2)
                contrastive = self.moco.loss(z, keys)
                return Loss(contrastive, contrastive, torch.zeros((), device=self.device))
            if self.recipe.batch_statistics == "fused":
                z, logits = self.network(torch.cat([view1, view2]))
                halves = (None, None) if logits is None else logits.chunk(2)
                first, second = zip(z.chunk(2), halves, strict=True)
            else:
                first, second = self.network(view1), self.network(view2)
        target = self.targets[torch.from_numpy(batch).to(self.device)]
        return uscl_loss(first, second, target, self.recipe)

    def step(self) -> int:
        """Do the next step of the current epoch; returns the number of images it augmented.

        Raises:
            NotFiniteError: before anything is updated, if the loss is not finite.
        """
        progress = self.progress
        pairs, draws, batches = self.tables(progress.epoch)
        batch = batches[progress.step]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, progress.epoch)
        self.network.train()
        loss = self.loss(batch, *self.views(pairs, draws, batch))
        terms = torch.stack([loss.total, loss.contrastive, loss.labelled]).tolist()
        if not math.isfinite(terms[0]):
            raise NotFiniteError(
                f"the loss is {terms[0]} in epoch {progress.epoch + 1}, step {progress.step + 1}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.moco is not None:
            self.moco.update(self.network)
        progress.sums = [total + term for total, term in zip(progress.sums, terms, strict=True)]
        progress.step += 1
        return 2 * len(batch)

    def is_finite(self) -> bool:
        """Whether weights and batch statistics are: a loss shows only those before its step."""
        tensors = self.network.state_dict().values()
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    @torch.inference_mode()
    def validate(self) -> float | None:
        """NT-Xent of the held-out videos under the deterministic transform; None below two.

        For the curves only: no checkpoint is chosen by it.
        """
        if len(self.held_out) < 2:
            return None
        self.network.eval()
        pairs = draw_pairs(self.held_out, self.recipe, 0, validation=True)
        total = 0.0
        for batch in cut(np.arange(len(self.held_out)), self.recipe):
            frames = self.gather(pairs.frames[batch].reshape(-1))
            images = augment.normalise(augment.to_float(frames), self.recipe)
            view1, view2 = mix(images, torch.from_numpy(pairs.lam[batch]).to(self.device))
            z1, z2 = self.network(view1)[0], self.network(view2)[0]
            total += len(batch) * nt_xent(z1, z2, self.recipe.temperature).item()
        return total / len(self.held_out)

    def watched(
        self,
    ) -> tuple[UsclNetwork, FrameStore, Recipe, list[Video], list[Video], torch.device]:
        """What `monitor` looks at."""
        return self.network, self.store, self.recipe, self.videos, self.held_out, self.device

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""
        kept = {} if self.moco is None else {"moco": self.moco.state_dict()}
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
        self.optimizer.load_state_dict(state["optimizer"])
        if self.moco is not None:
            self.moco.load_state_dict(state["moco"])
        self.progress = Progress(**state["progress"])


def mix(images: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Positive pair generation: view = λ f + (1 − λ) anchor.

    Args:
        images: (3N, C, H, W), the three frames of each video in turn.
        lam: (N, 2), λ of either view.

    Returns:
        Two views (N, C, H, W), channels last in memory.
    """
    anchor = images[ANCHOR::3]
    views = (
        share * images[place::3] + (1 - share) * anchor
        for place, share in zip((VIEW1, VIEW2), lam[:, :, None, None, None].unbind(1), strict=True)
    )
    first, second = (v.contiguous(memory_format=torch.channels_last) for v in views)
    return first, second


def _classes(recipe: Recipe, store: FrameStore, videos: list[Video]) -> tuple[str, ...]:
    if recipe.classes is None:
        return store.labels
    present = {video.label for video in videos}
    for label in recipe.classes:
        if label not in present:
            raise DataError(
                f"classes: no training video of {store.folder} is labelled {label!r}; it has "
                f"{', '.join(store.labels) or 'no labels'}; set classes=[...]"
            )
    return recipe.classes


def _resident(store: FrameStore, device: torch.device) -> Tensor | np.ndarray:
    """The frames on the device if they fill at most half of its free memory, else the map."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if store.frames.nbytes <= free // 2:
            return torch.from_numpy(np.array(store.frames)).to(device)
    return store.frames


def pretrain(
    recipe: Recipe,
    store: FrameStore,
    run: Path,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Pretrain a backbone and leave a run folder that `uscl export` turns into weights.

    The folder holds the resolved recipe, what it ran on, the last two checkpoints, TensorBoard
    events and the learning curves as a picture.

    Args:
        recipe: settings.
        store: frames.
        run: the folder.
        resume: continue the run in it.
        device: e.g. `cpu` or `cuda:0`; None for CUDA where there is one.
        progress: show a bar.

    Returns:
        The last checkpoint.

    Raises:
        DataError: if the folder holds a run, or the store cannot serve the recipe.
        NotFiniteError: if the loss is not finite; the last good checkpoint is named.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    chosen = _device(device)
    checkpoint = run / CHECKPOINT
    if (run / RECIPE).exists():
        if not resume:
            raise DataError(f"{run}: holds a run already; add --resume or choose another folder")
        _same_recipe(recipe, run / RECIPE)
    elif resume:
        raise DataError(f"{run}: holds no run to resume")
    trainer = Trainer(recipe, store, chosen)
    run.mkdir(parents=True, exist_ok=True)
    if not (run / RECIPE).exists():
        write_text(run / ABOUT, json.dumps(_about(trainer), indent=1))
        write_yaml(run / RECIPE, recipe)
    state = load_checkpoint(run) if resume else None
    if state is not None:
        if state["store"] != store.digest:
            raise DataError(f"{store.folder}: is not the store that {run} was trained on")
        trainer.restore(state)
    try:
        with _listening() as asked:
            _epochs(trainer, run, asked, progress)
    except NotFiniteError as error:
        last = f"{checkpoint}" if checkpoint.exists() else "none yet"
        raise NotFiniteError(f"{error}; the last good checkpoint: {last}") from error
    return checkpoint


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"device {name!r} cannot be used ({reason}); try cpu") from error
    return device


def _epochs(trainer: Trainer, run: Path, asked: list[str], show: bool) -> None:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

    recipe, state = trainer.recipe, trainer.progress
    steps = len(trainer.tables(state.epoch)[2])  # the same in every epoch
    events = SummaryWriter(run / EVENTS, purge_step=state.epoch + 1)
    bar = tqdm(
        total=steps * recipe.epochs,
        initial=steps * state.epoch + state.step,
        unit="step",
        disable=not show,
        smoothing=0.05,
    )
    with events, bar:
        while state.epoch < recipe.epochs:
            began, images = time.perf_counter(), 0
            while state.step < steps:
                clock = time.perf_counter()
                images += trainer.step()
                state.seconds += time.perf_counter() - clock
                bar.update()
                rate = images / (time.perf_counter() - began)
                bar.set_postfix_str(
                    f"epoch {state.epoch + 1}/{recipe.epochs}, "
                    f"loss {state.sums[0] / state.step:.3f}, {rate:.0f} images/s"
                )
                if asked:
                    save_checkpoint(run, trainer.state())
                    raise Interrupted(
                        f"stopped by {asked[0]} in epoch {state.epoch + 1} of {recipe.epochs}, "
                        f"saved in {run / CHECKPOINT}; --resume continues it"
                    )
            if not trainer.is_finite():
                raise NotFiniteError(f"the weights are not finite after epoch {state.epoch + 1}")
            _close_epoch(trainer, events, images / (time.perf_counter() - began), steps)
            last = state.epoch == recipe.epochs
            if last or state.epoch % recipe.checkpoint_every == 0:
                save_checkpoint(run, trainer.state())
            if last or state.epoch % recipe.validate_every == 0:
                curves.draw(state.history, run / CURVES)
            if last:
                monitor.picture(*trainer.watched(), run / EMBEDDING)


def _close_epoch(trainer: Trainer, events: Any, rate: float, steps: int) -> None:
    """Turn the sums of an epoch into a row of the history and begin the next."""
    recipe, state = trainer.recipe, trainer.progress
    names = ("loss", "contrastive", "labelled")
    row = {"epoch": float(state.epoch + 1), "learning_rate": learning_rate(recipe, state.epoch)}
    row |= {name: total / steps for name, total in zip(names, state.sums, strict=True)}
    state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0, 0.0, 0.0]
    if state.epoch % recipe.validate_every == 0 or state.epoch == recipe.epochs:
        held_out = trainer.validate()
        if held_out is not None:
            row["held-out contrastive"] = held_out
        row |= monitor.measure(*trainer.watched())
    for name, value in row.items():
        events.add_scalar(name, value, state.epoch)
    events.add_scalar("images a second", rate, state.epoch)
    state.history.append(row)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one is obeyed at once."""
    asked: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread, where signals do not arrive
            break
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole, keeping the one before it."""
    path, partial = run / CHECKPOINT, run / f"{CHECKPOINT}.partial"
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            path.replace(run / PREVIOUS)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); the one before it is untouched"
        ) from error


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The newest checkpoint of a run that can be read; None before the first.

    Raises:
        CheckpointError: if there are checkpoints and none can be read.
    """
    damaged = []
    for path in (run / CHECKPOINT, run / PREVIOUS):
        if not path.exists():
            continue
        try:
            # torch.load reads past flipped bits; the archive's checksums do not
            with zipfile.ZipFile(path) as archive:
                if (wrong := archive.testzip()) is not None:
                    raise ValueError(f"{wrong} has another checksum")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != 1:
                raise ValueError(f"format {state['format']}")
            return state
        except Exception as error:  # torch.load raises whatever its parsers do
            damaged.append(f"{path} ({type(error).__name__})")
    if damaged:
        raise CheckpointError(f"no checkpoint can be read: {', '.join(damaged)}; start a new run")
    return None


def load_run(run: Path) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """Recipe, description and last checkpoint of a run.

    Raises:
        DataError: if the folder holds no run, or one without a checkpoint.
    """
    if not (run / RECIPE).is_file():
        raise DataError(f"{run}: holds no run (`uscl pretrain -o {run}` makes one)")
    recipe = from_mapping(Recipe, read_yaml(run / RECIPE), str(run / RECIPE))
    state = load_checkpoint(run)
    if state is None:
        raise DataError(f"{run}: has no checkpoint yet; resume it with `uscl pretrain --resume`")
    return recipe, json.loads((run / ABOUT).read_text()), state


def _same_recipe(recipe: Recipe, path: Path) -> None:
    before = from_mapping(Recipe, read_yaml(path), str(path))
    for key, value in settings_of(recipe).items():
        if settings_of(before)[key] != value:
            raise CardError(
                f"{path}: {key} is {getattr(before, key)!r} in the run and {value!r} now; "
                "resume with the same settings"
            )


def _about(trainer: Trainer) -> dict[str, Any]:
    """What a run ran on, for its card."""
    store = trainer.store
    return {
        "store": str(store.folder.resolve()),
        "store_digest": store.digest,
        "origin": store.description["origin"],
        "sampling": store.description["sampling"],
        "training": store.summary(trainer.videos),
        "held_out": store.summary(trainer.held_out),
        "held_out_subjects": sorted({video.subject for video in trainer.held_out}),
        "classes": list(trainer.classes),
        "precision": trainer.precision,
        "code": code_version(),
        "hardware": hardware(trainer.device),
        "torch": torch.__version__,
    }


def code_version() -> str:
    """uscl-zoo's version and, in a checkout, its commit."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    version = f"uscl-zoo {uscl_zoo.__version__}"
    try:
        # installed into an environment inside somebody's repository, the commit would be theirs
        git("ls-files", "--error-unmatch", here.name)
        return f"{version} ({git('describe', '--always', '--dirty', '--abbrev=12')})"
    except (OSError, subprocess.CalledProcessError):
        return version


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{torch.get_num_threads()} threads of {model} (CPU)"
