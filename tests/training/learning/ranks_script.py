"""One rank of test_ranks.py: writes the gradients of the first batch, by each of some recipes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from uscl_zoo.training.learning.execution import Execution, device_named
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.ranks import join
from uscl_zoo.training.learning.recipe import load_recipe
from uscl_zoo.training.pretraining.network import TwoViews
from uscl_zoo.training.pretraining.starts import load_start, settled
from uscl_zoo.training.pretraining.trainer import Trainer, _parallel


def be(rank: int, world: int, port: int, store: Path, output: Path, recipes: list[Path]) -> None:
    """Be one of so many ranks, with the variables that torchrun sets."""
    if world > 1:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    torch.set_num_threads(1)
    with join("cpu") as (ranks, device):
        execution = Execution(device_named(device))
        found = []
        for path in recipes:
            recipe, start = settled(load_recipe(str(path)))
            teachers = [load_start(teacher) for teacher in recipe.teachers]
            learning = (recipe, FrameStore(store), execution, ranks, None, start, teachers)
            found.append(gradients(Trainer(*learning)))
        if ranks.rank == 0:
            torch.save(found, output)


def gradients(trainer: Trainer) -> dict[str, Any]:
    """Of the first batch; what statistics became; labelled videos of each rank."""
    ranks = trainer.ranks
    # DDP has to be told of the type from the beginning
    two_views = TwoViews(trainer.network.train().double(), trainer.recipe)
    for teacher in trainer.teachers.networks:
        teacher.double()
    trainer._two_views = _parallel(two_views, trainer.recipe, trainer.device, ranks)
    tables = trainer.tables(0)
    sample = trainer.sample(tables, ranks.share(tables.batches[0]))
    views = (view.double() for view in trainer.views(sample))
    loss = trainer.loss(sample.target, *views)
    loss.total.backward()
    return {
        "gradients": {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in trainer.network.named_parameters()
        },
        "buffers": dict(trainer.network.named_buffers()),
        "labelled": ranks.counts(int((sample.target >= 0).sum())),
    }
