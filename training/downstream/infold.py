"""Pretraining repeated within folds, so that a method is judged on subjects it has never seen.

Weights of the zoo have seen most of the videos of their own collection. To compare *methods* on
that collection, each is pretrained anew for every fold, on the subjects the fold does not judge.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from uscl_zoo.errors import CardError, DataError
from uscl_zoo.signals import Interrupted, listening
from uscl_zoo.zoo.checkpoint import said_in, write_backbone

from ..learning.execution import Execution, device_named
from ..learning.frames import FrameStore
from ..learning.recipe import Recipe, load_recipe, replace, settings_of
from ..learning.runs import RECIPE, load_run
from ..pretraining.export import encoder_of
from ..pretraining.pretrain import pretrain
from ..pretraining.starts import load_start, settled

#: How a model of `uscl evaluate` that is to be pretrained within folds begins.
METHOD = "method:"
# In the header of the weights of a job: its key.
_JOB = "job"


@dataclass(frozen=True)
class Setting:
    """How much pretraining a method is given.

    Attributes:
        size: height and width of the frames.
        epochs: of pretraining.
        precision: as in `Recipe`.
    """

    size: int
    epochs: int
    precision: str


SETTINGS = {"reduced": Setting(64, 100, "auto"), "full": Setting(224, 300, "auto")}


def method_recipe(spec: str, setting: Setting, seed: int) -> Recipe:
    """The recipe that a model like `method:pocus_resnet18+label_rate=0.2` stands for.

    Args:
        spec: a recipe by name or file, and settings after `+`.
        setting: gives epochs, and precision unless `spec` does.
        seed: of the run.

    Raises:
        CardError: for an unknown recipe or setting, or one that the setting decides.
    """
    name, *overrides = spec.removeprefix(METHOD).split("+")
    for key in ("epochs", "seed"):
        if any(override.startswith(f"{key}=") for override in overrides):
            raise CardError(f"{spec}: {key} is decided by `setting` and `seeds`")
    recipe, _ = settled(load_recipe(name, [f"precision={setting.precision}", *overrides]))
    last = recipe.sizes[-1][0] if recipe.sizes else setting.size
    return replace(
        recipe,
        # the setting decides the last size, and the others keep their proportion to it
        sizes=tuple((max(side * setting.size // last, 32), end) for side, end in recipe.sizes),
        epochs=setting.epochs,
        seed=seed,
        # nobody watches
        validate_every=setting.epochs,
        checkpoint_every=10,
    )


def file_name(spec: str) -> str:
    """A model as it was asked for, in letters that any file system takes."""
    return "".join(c if c.isalnum() or c in "_.=" else "-" for c in spec)


@dataclass(frozen=True)
class Job:
    """A method, pretrained for one fold by one seed.

    Attributes:
        spec: the model as it was asked for.
        recipe: of the run, its seed included.
        held_out: subjects that the fold judges.
        fold: its number, from 0.
    """

    spec: str
    recipe: Recipe
    held_out: tuple[str, ...]
    fold: int

    def key(self, store: FrameStore) -> str:
        """A file name that changes with whatever changes the weights, and with nothing else."""
        content = store.description["sources_sha256"]
        videos = [
            [content[video.name], video.count, video.label, video.subject in self.held_out]
            for video in store.videos
        ]
        basis = [settings_of(self.recipe), store.description["sampling"], videos]
        # as before, where weights of others play no part
        others = [self.recipe.init, *self.recipe.teachers]
        basis += [_digest_of(reference) for reference in others if reference is not None]
        digest = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:12]
        return f"{file_name(self.spec)}-fold{self.fold + 1}-seed{self.recipe.seed}-{digest}"


@cache
def _digest_of(reference: str) -> str:
    return load_start(reference).sha256


def pretrain_within(
    jobs: Sequence[Job],
    store: FrameStore,
    work: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Pretrain for every job and keep the encoder.

    What is there already is not done again, and what was interrupted goes on.

    Args:
        jobs: what to pretrain.
        store: frames.
        work: folder of the weights and of runs in progress.
        workers: processes at a time; None for a core each, and for one on CUDA. On a CPU several
            of few threads are faster than one of many.
        device: to compute on; None for CUDA where there is one.
        progress: show a bar.

    Returns:
        A safetensors file a job, in timm's keys.
    """
    paths = [work / f"{job.key(store)}.safetensors" for job in jobs]
    left = [(job, path) for job, path in zip(jobs, paths, strict=True) if not _is_done(path)]
    if not left:
        return paths
    work.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if workers is None:
        workers = 1 if device_named(device).type == "cuda" else int(cores or 1)
    threads = max(int(cores or 1) // workers, 1)
    with (
        listening() as asked,
        tqdm(
            total=len(paths), initial=len(paths) - len(left), unit="run", disable=not progress
        ) as bar,
        ProcessPoolExecutor(
            workers,
            mp_context=_context(),
            initializer=_begin,
            initargs=(threads, dict(os.environ)),
            # what a run leaves in memory goes with its process
            max_tasks_per_child=1,
        ) as pool,
    ):
        waiting: set[Future[None]] = set()
        try:
            while left or waiting:
                # none may wait in the pool's own queue, where a stop would not reach it
                while left and len(waiting) < workers:
                    job, path = left.pop(0)
                    waiting.add(pool.submit(_one, job, store.folder, path, device))
                done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for one in done:
                    one.result()
                    bar.update()
                if asked:
                    raise Interrupted(
                        f"stopped by {asked[0]}, {bar.n} of {len(paths)} runs done, saved in "
                        f"{work}; the same command continues it"
                    )
        except BrokenProcessPool as error:
            raise DataError(
                f"{work}: a process that pretrained was killed, perhaps for want of memory; try "
                "fewer `workers`, the same command continues it"
            ) from error
        except BaseException:
            # each saves its run and ends
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    return paths


def _is_done(path: Path) -> bool:
    """Whether the weights of a job are there.

    Raises:
        DataError: if they say that they are another's: of another fold they have seen what this one
            judges.
        CheckpointError: if they cannot be read.
    """
    if not path.exists():
        return False
    job = said_in(path).get(_JOB)
    # of an earlier release they do not say
    if job not in (None, path.stem):
        raise DataError(f"{path}: holds the weights of {job}; delete it, and they are made again")
    return True


def _context() -> Any:
    """How processes begin: from one that has imported what they need, where there is a fork.

    To import it takes seconds, and each run has a process of its own. None is a fork of this
    one, whose threads and CUDA do not survive one.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin(threads: int, variables: dict[str, str]) -> None:
    # those of the server are of the first call
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(threads)


def _one(job: Job, folder: Path, path: Path, device: str | None) -> None:
    run = path.with_suffix("")
    pretrain(
        job.recipe,
        FrameStore(folder).holding_out(job.held_out),
        run,
        resume=(run / RECIPE).exists(),
        execution=Execution(device_named(device)),
        progress=False,
        pictures=False,
    )
    says = {_JOB: path.stem}
    write_backbone(encoder_of(load_run(run)[2]), path, job.recipe.architecture, metadata=says)
    shutil.rmtree(run)
