"""Runs that have only begun: on which store, and, killed before the first checkpoint, with what."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from short_runs import RECIPE, assert_same, run
from torch import Tensor

from uscl_zoo.errors import DataError
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.pretraining import pretrain as module
from uscl_zoo.training.pretraining.trainer import Trainer

ONE = replace(RECIPE, epochs=1, validate_every=9)


class Killed(BaseException):
    """As by SIGKILL: nothing is written after it."""


def killed_at_once(
    store: FrameStore, folder: Path, recipe: Recipe, resume: bool = False
) -> dict[str, Tensor]:
    """Kill a run before its first step; what its network was then."""
    began: dict[str, Tensor] = {}

    def kill(trainer: Trainer, *_: object) -> None:
        began.update(trainer.network.state_dict())
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_epochs", kill)
        with pytest.raises(Killed):
            run(store, folder, recipe, resume=resume)
    assert (folder / "run.json").exists() and not list(folder.glob("*.pt"))
    return began


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    write_weights(path, seed=5)
    return path


def write_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    save_file(state, path, {"mean": "0.4 0.5 0.6", "std": "0.2 0.2 0.2"})


def test_killed_before_its_first_checkpoint_it_begins_with_its_weights_again(
    weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    recipe = replace(ONE, init=str(weights))
    first = killed_at_once(small_store, tmp_path / "run", recipe)
    expected = load_file(weights)
    assert torch.equal(first["encoder.conv1.weight"], expected["conv1.weight"])
    again = killed_at_once(small_store, tmp_path / "run", recipe, resume=True)
    assert_same(again, first)


def test_with_other_weights_it_does_not_begin_again(
    weights: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    recipe = replace(ONE, init=str(weights))
    killed_at_once(small_store, tmp_path / "run", recipe)
    write_weights(weights, seed=6)
    with pytest.raises(DataError, match=r"^init: .* has other weights .* than when the run began"):
        run(small_store, tmp_path / "run", recipe, resume=True)


def test_nor_on_another_store(narrow: None, small_store: FrameStore, tmp_path: Path) -> None:
    killed_at_once(small_store, tmp_path / "run", ONE)
    other = small_store.holding_out({small_store.videos[0].subject})
    with pytest.raises(DataError, match="is not the store that"):
        run(other, tmp_path / "run", ONE, resume=True)
    # the same, of which somebody has changed a frame
    copy = Path(shutil.copytree(small_store.folder, tmp_path / "copy"))
    inverted = np.load(copy / "frames.npy", mmap_mode="r+")
    inverted[3] = 255 - inverted[3]
    inverted.flush()
    with pytest.raises(DataError, match="is not the store that"):
        run(FrameStore(copy), tmp_path / "run", ONE, resume=True)


def test_a_run_does_not_begin_on_frames_that_were_changed(
    small_store: FrameStore, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(small_store.folder, tmp_path / "copy"))
    frames = np.load(copy / "frames.npy", mmap_mode="r+")
    frames[7, 3, 4] ^= 1
    frames.flush()
    with pytest.raises(DataError, match="was changed since it was prepared, in 1 videos"):
        run(FrameStore(copy), tmp_path / "run", ONE)
    assert not (tmp_path / "run").exists()
