"""One rank of test_ranks.py: writes the gradients of the first batch, by each of some recipes.

torchrun --nproc-per-node N tests/training/learning/ranks_script.py STORE OUTPUT DTYPE RECIPE...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from uscl_zoo.training.learning.execution import Execution, device_named
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.ranks import join
from uscl_zoo.training.learning.recipe import load_recipe
from uscl_zoo.training.pretraining.network import TwoViews
from uscl_zoo.training.pretraining.trainer import Trainer, _parallel


def main(store: str, output: str, dtype: str, *recipes: str) -> None:
    torch.set_num_threads(1)
    with join("cpu") as (ranks, device):
        execution = Execution(device_named(device))
        found = [
            gradients(Trainer(load_recipe(recipe), FrameStore(store), execution, ranks), dtype)
            for recipe in recipes
        ]
        if ranks.rank == 0:
            torch.save(found, Path(output))


def gradients(trainer: Trainer, dtype: str) -> dict[str, Any]:
    """Of the first batch; what statistics became; labelled videos of each rank."""
    ranks = trainer.ranks
    # DDP has to be told of the type from the beginning
    two_views = TwoViews(trainer.network.train().to(getattr(torch, dtype)), trainer.recipe)
    trainer._two_views = _parallel(two_views, trainer.recipe, trainer.device, ranks)
    tables = trainer.tables(0)
    sample = trainer.sample(tables, ranks.share(tables.batches[0]))
    views = (view.to(getattr(torch, dtype)) for view in trainer.views(sample))
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


if __name__ == "__main__":
    main(*sys.argv[1:])
