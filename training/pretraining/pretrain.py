"""The loop of USCL pretraining: epochs, interruptions, resumption and learning curves."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from uscl_zoo.errors import CardError, CheckpointError, DataError
from uscl_zoo.files import begins_with, check_folder, locked
from uscl_zoo.records import read_json, write_text, write_yaml
from uscl_zoo.signals import Interrupted, listening

from ..learning.execution import Execution, device_named, is_slow, settle
from ..learning.frames import FrameStore
from ..learning.ranks import ALONE, Ranks
from ..learning.recipe import CONSISTENT, Recipe
from ..learning.runs import (
    ABOUT,
    CHECKPOINT,
    CURVES,
    EMBEDDING,
    EVENTS,
    PREVIOUS,
    RECIPE,
    code_version,
    hardware,
    load_checkpoint,
    same_recipe,
    save_checkpoint,
)
from ..learning.seal import SEALED, check_frames, reseal, seal_of
from . import curves, monitor
from .starts import Start, load_start, settled
from .steps import learning_rate
from .trainer import TERMS, NotFiniteError, Progress, Trainer

#: What is written into the folder of a run.
_NAMES = (RECIPE, ABOUT, CHECKPOINT, PREVIOUS, EVENTS, CURVES, EMBEDDING)
#: Seconds between two looks at the losses of a GPU, each of which makes it wait.
_LOOK = 1.0
#: The most of a run's time that each may take before its end: together a twentieth.
_SHARES = {"checkpoints": 0.02, "looking": 0.02, "pictures": 0.01}


def pretrain(
    recipe: Recipe,
    store: FrameStore,
    run: Path,
    *,
    resume: bool = False,
    execution: Execution | None = None,
    ranks: Ranks = ALONE,
    progress: bool = True,
    pictures: bool = True,
) -> Path:
    """Pretrain a backbone and leave a run folder that `uscl export` turns into weights.

    The folder holds the resolved recipe, what it ran on, the last two checkpoints, TensorBoard
    events, and pictures of the learning curves and the embedding.

    Args:
        recipe: settings.
        store: frames.
        run: the folder.
        resume: continue the run in it, on however many ranks.
        execution: where and how to compute; None for CUDA where there is one.
        ranks: processes that train together; rank 0 alone writes.
        progress: show a bar.
        pictures: draw the learning curves and the embedding.

    Returns:
        The last checkpoint.

    Raises:
        DataError: if the folder holds a run, or files of others that would be lost, another process
            writes to it, or the store cannot serve the recipe.
        NotFiniteError: if the loss is not finite; the last good checkpoint is named.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with a checkpoint written.
    """
    execution = execution or Execution(device_named(None))
    check_folder(run, _is_run(run), names=_NAMES)
    if str(run).encode(errors="replace") != os.fsencode(run):
        raise DataError(f"{run}: is no UTF-8, in which TensorBoard wants it; name another folder")
    # of the processes of a run one writes, and has the folder for itself
    with locked(run) if ranks.rank == 0 else nullcontext():
        return _pretrain(recipe, store, run, resume, execution, ranks, progress, pictures)


def _is_run(folder: Path) -> bool:
    # written first, the recipe after it
    return (folder / RECIPE).is_file() or begins_with(folder / ABOUT, b'{\n "store": ')


def _pretrain(
    recipe: Recipe,
    store: FrameStore,
    run: Path,
    resume: bool,
    execution: Execution,
    ranks: Ranks,
    progress: bool,
    pictures: bool,
) -> Path:
    settle(execution)
    checkpoint = run / CHECKPOINT
    about = None
    if (run / RECIPE).exists():
        if not resume:
            raise DataError(
                f"{run}: holds a run already; add `resume=True` or choose another folder"
            )
        about = read_json(run / ABOUT)
        if not isinstance(about, dict) or "precision" not in about:
            raise CardError(f"{run / ABOUT}: does not describe a run; begin anew")
        wanted, recipe = recipe.precision, same_recipe(recipe, run / RECIPE)
        # `auto` means another precision on another machine, or before it knew of CPUs with bf16
        precision = about["precision"] if wanted in ("auto", recipe.precision) else wanted
    elif resume:
        raise DataError(f"{run}: holds no run to resume")
    else:
        precision = None
    state = load_checkpoint(run) if resume else None
    show = progress and ranks.rank == 0
    start = None
    if state is None:
        # nothing yet, or killed before the first checkpoint: the latter begins once more as it did
        recipe, start = settled(recipe)
    teachers = [load_start(reference) for reference in recipe.teachers]
    seal: dict[str, Any] = {}
    if about is not None:
        _same_weights("teachers", teachers, about.get("teachers", []))
        if start is not None:
            _same_weights("init", [start], [about["start"]])
        known = {about.get("store_digest", store.digest)}
        known |= {state.get("store")} if state is not None else set()
        if known != {store.digest}:
            raise DataError(f"{store.folder}: is not the store that {run} was trained on")
        seal = {key: value for key, value in about.items() if key in SEALED}
        again = reseal(store, seal, show)
    trainer = Trainer(recipe, store, execution, ranks, precision, start, teachers)
    if about is None:
        # of a large store for minutes, and so after what settings may be refused for
        check_frames(store, show)
    # until all have looked, none may begin to write
    ranks.wait()
    if ranks.rank == 0 and not (run / RECIPE).exists():
        write_text(run / ABOUT, json.dumps(_about(trainer, start, teachers), indent=1))
        write_yaml(run / RECIPE, recipe)
    if state is not None:
        _restore(trainer, state, checkpoint)
    if about is not None and again != seal and ranks.rank == 0:
        about |= again
        write_text(run / ABOUT, json.dumps(about, indent=1))
    if about is not None and precision != about["precision"] and ranks.rank == 0:
        earlier = about.get("earlier_precisions", [])
        changed = [*earlier, {"precision": about["precision"], "epochs": trainer.progress.epoch}]
        about |= {"precision": precision, "earlier_precisions": changed}
        write_text(run / ABOUT, json.dumps(about, indent=1))
    try:
        with listening() as asked:
            _epochs(trainer, run, asked, show, pictures)
    except NotFiniteError as error:
        last = f"{checkpoint}" if checkpoint.exists() else "none yet"
        raise NotFiniteError(f"{error}; the last good checkpoint: {last}") from error
    return checkpoint


def _restore(trainer: Trainer, state: dict[str, Any], path: Path) -> None:
    """Continue from a checkpoint, if it is one of this network, and nobody has changed it.

    Raises:
        CheckpointError: if it is not.
    """
    try:
        trainer.restore(state)
        progress = trainer.progress
        fits = "epoch" in state["progress"] and 0 <= progress.epoch <= trainer.recipe.epochs
        fits = fits and 0 <= progress.step <= trainer.steps
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is no checkpoint of this run ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); put its own back, or start a new run"
        ) from error
    if not fits or not trainer.is_finite():
        raise CheckpointError(
            f"{path}: was changed (its progress or weights cannot be); put its own back, or start "
            "a new run"
        )


def _same_weights(setting: str, given: list[Start], before: list[dict[str, Any]]) -> None:
    """Refuse to go on with other weights to begin with, or to learn from, than a run began with.

    Raises:
        DataError: if some are others.
    """
    for one, known in zip(given, before, strict=True):
        if one.sha256 != known["sha256"]:
            raise DataError(
                f"{setting}: {one.reference} has other weights (SHA-256 {one.sha256[:12]}…) "
                f"than when the run began ({known['sha256'][:12]}…); put those back"
            )


def _epochs(trainer: Trainer, run: Path, asked: list[str], show: bool, pictures: bool) -> None:
    recipe, state = trainer.recipe, trainer.progress
    speaks = trainer.ranks.rank == 0
    draws = speaks and pictures
    steps = trainer.steps
    clock = Clock()
    before = state.seconds
    bar = tqdm(
        total=steps * recipe.epochs,
        initial=steps * state.epoch + state.step,
        unit="step",
        disable=not show,
        smoothing=0.05,
    )

    def save() -> None:
        state.seconds = before + clock.total
        with clock.on("checkpoints"):
            save_checkpoint(run, trainer.state())

    if show:
        bar.write(f"{trainer.feed}; {trainer.precision} on {hardware(trainer.device)}")
        if trainer.begun:
            bar.write(trainer.begun)
        if is_slow(trainer.precision, trainer.device):
            bar.write(
                "bf16 on a processor without instructions for it takes about twelve times as long "
                "as float32: go on where there are some (avx512_bf16, AMX) or on a GPU, or stop "
                "and resume with precision=float32"
            )
    with _events(run, state) if speaks else nullcontext() as events, bar:
        while state.epoch < recipe.epochs:
            began, images, looked, stops = time.perf_counter(), 0, 0.0, False
            with clock.on("steps"):
                while state.step < steps:
                    if show and trainer.compiles_next:
                        bar.set_postfix_str("compiling, once for each size of the views")
                    images += trainer.step() * trainer.ranks.world
                    bar.update()
                    now = time.perf_counter()
                    if show and now - looked > _LOOK:
                        looked = now
                        trainer.collect()
                        bar.set_postfix_str(
                            f"epoch {state.epoch + 1}/{recipe.epochs}, loss "
                            f"{state.sums[0] / state.step:.3f}, {images / (now - began):.0f} "
                            "images/s"
                        )
                    stops = trainer.ranks.any(bool(asked))
                    if stops:
                        break
                if not stops and state.epoch + 1 < recipe.epochs:
                    # while a GPU is still busy with the steps
                    trainer.prepare(state.epoch + 1)
                trainer.collect()
            if stops:
                if speaks:
                    save()
                raise Interrupted(
                    f"stopped by {asked[0] if asked else 'another rank'} in epoch "
                    f"{state.epoch + 1} of {recipe.epochs}, saved in {run / CHECKPOINT}; "
                    "`resume=True` continues it"
                )
            if not trainer.is_finite():
                raise NotFiniteError(f"the weights are not finite after epoch {state.epoch + 1}")
            rate = images / (time.perf_counter() - began)
            done = state.epoch + 1
            last = done == recipe.epochs
            looks = speaks and (
                last or (done % recipe.validate_every == 0 and clock.affords("looking"))
            )
            if speaks and last and clock.affords("checkpoints"):
                save()  # the last look may take minutes, in which a run can be killed
            # what ends every epoch is not looking, or the first look would depend on it
            with clock.on("looking") if looks else nullcontext():
                _close_epoch(trainer, events, rate, steps, looks)
            if speaks and (
                last
                or (state.epoch % recipe.checkpoint_every == 0 and clock.affords("checkpoints"))
            ):
                save()
            if draws and (
                last or (state.epoch % recipe.validate_every == 0 and clock.affords("pictures"))
            ):
                with clock.on("pictures"):
                    curves.draw(state.history, run / CURVES)
                    if last:
                        monitor.picture(*trainer.watched(), run / EMBEDDING, trainer.size)
        if show:
            bar.write(str(clock))
    trainer.ranks.wait()


class Clock:
    """Seconds of a sitting, and what they were spent on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._spent: dict[str, float] = {}

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count what is done within as spent on that."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._spent[what] = self._spent.get(what, 0.0) + seconds

    def affords(self, what: str) -> bool:
        """Whether that has had less than its share of the time, or nothing yet."""
        return self._spent.get(what, 0.0) <= _SHARES[what] * self.total

    def __str__(self) -> str:
        spent = ", ".join(f"{seconds:.1f} s {what}" for what, seconds in self._spent.items())
        return f"{self.total:.1f} s: {spent}"


@contextmanager
def _events(run: Path, state: Progress) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

    with SummaryWriter(run / EVENTS, purge_step=state.epoch + 1) as events:
        yield events


def _close_epoch(trainer: Trainer, events: Any, rate: float, steps: int, looks: bool) -> None:
    """Turn the sums of an epoch into a row of the history and begin the next."""
    recipe, state = trainer.recipe, trainer.progress
    rate_now = learning_rate(recipe, state.epoch, steps - 1, steps)
    row = {"epoch": float(state.epoch + 1), "learning_rate": rate_now}
    row |= {name: total / steps for name, total in zip(TERMS, state.sums, strict=True)}
    # a curve of zeros says nothing
    if not recipe.teachers:
        del row["taught"]
    del row["contrastive" if recipe.method in CONSISTENT else "consistency"]
    state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0] * len(TERMS)
    if looks:
        held_out = trainer.validate()
        if held_out is not None:
            row["held-out contrastive"] = held_out
        row |= monitor.measure(*trainer.watched(), trainer.size)
    state.history.append(row)
    if events is not None:
        for name, value in row.items():
            events.add_scalar(name, value, state.epoch)
        events.add_scalar("images a second", rate, state.epoch)


def _about(trainer: Trainer, start: Start | None, teachers: list[Start]) -> dict[str, Any]:
    """What a run ran on, for its card."""
    store = trainer.store
    switches = dataclasses.asdict(trainer.execution)
    return {
        "store": str(store.folder.resolve()),
        "store_digest": store.digest,
        **seal_of(store),
        "origin": store.description["origin"],
        "sampling": store.description["sampling"],
        "training": store.summary(trainer.videos),
        "sources": store.sources(trainer.videos),
        "held_out": store.summary(trainer.held_out),
        "held_out_subjects": sorted({video.subject for video in trainer.held_out}),
        "classes": list(trainer.classes),
        "start": None if start is None else start.recorded(),
        "teachers": [teacher.recorded() for teacher in teachers],
        "size": trainer.size,
        "precision": trainer.precision,
        "execution": switches | {"device": str(trainer.device), "place": trainer.feed.place},
        "ranks": trainer.ranks.world,
        "code": code_version(),
        "hardware": hardware(trainer.device),
        "torch": torch.__version__,
    }
