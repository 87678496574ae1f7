"""A run that a release of before began is gone on with, and comes to what that release came to.

`older` was made by `older_run.py` with the code of 460b9f2, of 25 November 2026: a store, a run
that was stopped in its fourth step of nine, and the weights with which that release ended it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from older_run import RECIPE, STOPPED, tiny
from safetensors.torch import load_file
from torch import Tensor

from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.runs import load_checkpoint
from uscl_zoo.training.pretraining import network
from uscl_zoo.training.pretraining.pretrain import pretrain

OLDER = Path(__file__).parent / "older"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(network, "timm", SimpleNamespace(create_model=tiny))
    yield


def finished(run: Path, resume: bool) -> dict[str, Tensor]:
    pretrain(
        RECIPE,
        FrameStore(OLDER / "store"),
        run,
        resume=resume,
        execution=Execution(torch.device("cpu")),
        progress=False,
        pictures=False,
    )
    state: Any = load_checkpoint(run)
    weights: dict[str, Tensor] = state["network"]
    return weights


def test_a_run_of_before_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLDER / "run", tmp_path / "run"))
    state: Any = load_checkpoint(run)
    assert state is not None and state["optimizer"]["state"][0]["step"] == STOPPED
    theirs = load_file(OLDER / "finished.safetensors")
    moved = far(theirs, state["network"])
    assert moved > 0.01
    ours = finished(run, resume=True)
    assert ours.keys() == theirs.keys()
    # processors and releases of torch round otherwise
    assert far(ours, theirs) < 0.01 * moved
    # and one that is begun today draws what was drawn then
    assert far(finished(tmp_path / "anew", resume=False), theirs) < 0.01 * moved


def far(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """How far weights and statistics are apart."""
    apart = [(some[key].double() - others[key].double()).square().sum() for key in some]
    return float(torch.stack(apart).sum().sqrt())
