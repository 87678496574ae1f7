"""Makes what `test_older.py` goes on with: a run that an older release began and was stopped in.

To be run with the packages of that release, HERE being the folder of this file:

    git worktree add --detach OLD 460b9f2
    cd OLD && ln -s ../training uscl_zoo/training && PYTHONPATH=. python HERE/older_run.py OUTPUT
"""

# what it imports is of another release
# mypy: ignore-errors

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

try:  # by the release that begins the run
    from uscl_zoo.training.execution import Execution
    from uscl_zoo.training.frames import FrameStore
    from uscl_zoo.training.labels import Annotation
    from uscl_zoo.training.prepare import Sampling, prepare
    from uscl_zoo.training.pretrain import Interrupted, pretrain
    from uscl_zoo.training.recipe import Recipe
    from uscl_zoo.training.runs import load_checkpoint

    from uscl_zoo.training import network
    from uscl_zoo.training import trainer as trainers
except ImportError:  # by the test that goes on with it
    from uscl_zoo.training.learning.execution import Execution
    from uscl_zoo.training.learning.frames import FrameStore
    from uscl_zoo.training.learning.recipe import Recipe
    from uscl_zoo.training.learning.runs import load_checkpoint
    from uscl_zoo.training.preparing.labels import Annotation
    from uscl_zoo.training.preparing.prepare import Sampling, prepare
    from uscl_zoo.training.pretraining import network
    from uscl_zoo.training.pretraining import trainer as trainers
    from uscl_zoo.training.pretraining.pretrain import Interrupted, pretrain

#: Channels of the stages: a checkpoint of a few kilobytes.
CHANNELS = (2, 4, 8, 16)
RECIPE = Recipe(
    epochs=3,
    batch_size=4,
    smallest_batch=2,
    constant_epochs=1,
    validate_every=2,
    projection_dim=8,
    precision="float32",
    seed=11,
)
# steps that are done when it is stopped, of nine
STOPPED = 4


def tiny(name: str, **settings: Any) -> Any:
    """A ResNet with its names of tensors, in very few channels."""
    return timm.create_model(name, channels=CHANNELS, **settings)


def main(folder: Path) -> None:
    """Write store, the run as it was stopped, and what it came to."""
    network.timm = SimpleNamespace(create_model=tiny)
    torch.set_num_threads(1)
    videos = folder / "videos"
    rng = np.random.default_rng(0)
    for i in range(12):
        (videos / f"{'abc'[i % 3]}-{i:02}").mkdir(parents=True)
        for j in range(2 + i % 3):
            frame = rng.integers(0, 60, (20, 24, 3)) + 40 * (i % 3 + 1)
            Image.fromarray(frame.astype(np.uint8)).save(
                videos / f"{'abc'[i % 3]}-{i:02}" / f"frame{j}.png"
            )
    store = prepare(
        [videos],
        folder / "store",
        lambda name: Annotation(name, name[0]),
        sampling=Sampling(size=16),
        holdout=0.2,
        workers=1,
        origin={"name": "older", "url": None, "citation": None},
        progress=False,
    ).store
    shutil.rmtree(videos)
    step, done = trainers.Trainer.step, []

    def stopping(self: Any) -> Any:
        done.append(1)
        if len(done) == STOPPED:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    trainers.Trainer.step = stopping
    cpu = Execution(torch.device("cpu"))
    try:
        pretrain(RECIPE, store, folder / "run", execution=cpu, progress=False)
    except Interrupted as error:
        print(error)
    begun = Path(shutil.copytree(folder / "run", folder / "finished"))
    pretrain(RECIPE, FrameStore(store.folder), begun, resume=True, execution=cpu, progress=False)
    state: Any = load_checkpoint(begun)
    save_file(
        {key: value.contiguous() for key, value in state["network"].items()},
        folder / "finished.safetensors",
    )
    shutil.rmtree(begun)
    for name in ("tensorboard", "curves.png", "embedding.png", "checkpoint.previous.pt"):
        path = folder / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / "store" / "skipped.csv").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
