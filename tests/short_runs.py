"""Pretraining of a dozen videos in a few steps, and what two such runs have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.learning.runs import load_checkpoint
from uscl_zoo.training.pretraining.pretrain import pretrain

CPU = Execution(torch.device("cpu"))
#: Twelve training videos in three steps an epoch.
RECIPE = Recipe(
    epochs=3,
    batch_size=4,
    smallest_batch=2,
    constant_epochs=1,
    validate_every=2,
    projection_dim=16,
    # bf16 where a processor has it
    precision="float32",
    seed=11,
)


def run(store: FrameStore, folder: Path, recipe: Recipe = RECIPE, **changes: Any) -> dict[str, Any]:
    """Pretrain on the CPU and return the last checkpoint; without pictures unless wanted."""
    given: dict[str, Any] = {"execution": CPU, "progress": False, "pictures": False}
    pretrain(recipe, store, folder, **(given | changes))
    state = load_checkpoint(folder)
    assert state is not None
    return dict(state)


class StopAfter(list[str]):
    """Stands in for the list of signals: a signal arrives after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def __bool__(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.append("SIGTERM")
        return len(self) > 0


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, in whatever containers; wall-clock times aside."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key != "seconds":
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where
