"""What an interrupted fine-tuning left, and somebody changed: refused or made again, never used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from uscl_zoo.errors import CheckpointError, DataError
from uscl_zoo.training.downstream.collection import split
from uscl_zoo.training.downstream.goal import Classes
from uscl_zoo.training.downstream.sample import Sample
from uscl_zoo.training.downstream.settings import Settings
from uscl_zoo.training.finetuning.gathering import backbone, gather
from uscl_zoo.training.finetuning.loop import fit
from uscl_zoo.training.finetuning.tuning import Tuner
from uscl_zoo.training.finetuning.work import identity, keep, kept
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.runs import CHECKPOINT

SETTINGS = Settings("last", epochs=1, batch_size=8, frames_per_clip=0, probe=False)


def learner(store: FrameStore, fold: int, settings: Settings = SETTINGS) -> Tuner:
    """A network that learns from half of the videos."""
    videos = split(store).train[fold::2]
    goal, texts = Classes(), [video.label or "" for video in videos]
    outputs = goal.outputs([video.label or "" for video in store.videos], [])
    sample = Sample.of(videos, outputs, goal.targets(texts, outputs))
    torch.manual_seed(0)
    network: Any = timm.create_model("test_resnet", num_classes=len(outputs))
    return Tuner(network, store.frames, sample, settings, torch.device("cpu"))


@pytest.fixture(scope="module")
def done(small_store: FrameStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a fold."""
    work: Path = tmp_path_factory.mktemp("work") / "fold1"
    fit(learner(small_store, 0), work)
    return work


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def spoil(state: dict[str, Any]) -> None:
        state[key] = value

    return spoil


def nan(state: dict[str, Any]) -> None:
    next(iter(state["network"].values())).fill_(float("nan"))


SPOILT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "NaN": nan,
    "no network": lambda state: state.pop("network"),
    "no identity": lambda state: state.pop("of"),
    "no optimiser": lambda state: state.pop("optimizer"),
    "no progress": lambda state: state.pop("progress"),
    "another shape": lambda state: state["network"].update(
        {key: torch.zeros(7) for key in list(state["network"])[:1]}
    ),
    "beyond its end": lambda state: state["progress"].update(epoch=9),
    "before its beginning": lambda state: state["progress"].update(epoch=-1),
    "progress of words": lambda state: state["progress"].update(epoch="x"),
    "progress of others": change("progress", {"thesis": 1}),
    "an optimiser of others": change("optimizer", {"state": {}, "param_groups": []}),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_checkpoint_that_was_changed_is_refused(
    how: str, done: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    work = Path(shutil.copytree(done, tmp_path / "fold1"))
    state = torch.load(work / CHECKPOINT, weights_only=True)
    SPOILT[how](state)
    torch.save(state, work / CHECKPOINT)
    with pytest.raises(CheckpointError, match="fold1: its checkpoint is of another training or"):
        fit(learner(small_store, 0), work)


def test_a_checkpoint_of_another_fold_has_seen_other_images(
    done: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    fit(learner(small_store, 0), Path(shutil.copytree(done, tmp_path / "fold1")))
    work = Path(shutil.copytree(done, tmp_path / "fold2"))
    with pytest.raises(CheckpointError, match="fold2: its checkpoint is of another training"):
        fit(learner(small_store, 1), work)
    # and one of other settings is of another training
    with pytest.raises(CheckpointError, match="of another training"):
        fit(learner(small_store, 0, Settings(**{**vars(SETTINGS), "seed": 1})), work)


def test_answers_of_a_fold_that_are_not_its_own_are_made_again(tmp_path: Path) -> None:
    values = {"logits": np.arange(6.0).reshape(3, 2)}
    names = [identity(SETTINGS, np.arange(n)) for n in (3, 4)]
    assert names[0] != names[1]
    for number, name in enumerate(names):
        keep(tmp_path / f"fold{number}.npz", name, values)
        found = kept(tmp_path / f"fold{number}.npz", name)
        assert found is not None and np.array_equal(found["logits"], values["logits"])
    assert kept(tmp_path / "fold0.npz", names[1]) is None
    assert kept(tmp_path / "fold9.npz", names[1]) is None
    whole = (tmp_path / "fold0.npz").read_bytes()
    for spoilt in (b"", whole[:-40], whole.replace(b"logits", b"thesis"), b"\x80\x04N."):
        (tmp_path / "fold0.npz").write_bytes(spoilt)
        assert not (kept(tmp_path / "fold0.npz", names[0]) or {}).get("logits", np.empty(0)).size
    np.savez(tmp_path / "fold0.npz", of=np.array(names[0]), logits=np.array([{}], object))
    assert kept(tmp_path / "fold0.npz", names[0]) is None


def test_frames_that_were_changed_are_not_trained_on(classes: Path, tmp_path: Path) -> None:
    base, columns = backbone("resnet18_imagenet"), {"file_column": "Filename", "label_column": None}

    def call() -> Any:
        return gather(
            classes,
            tmp_path / "store",
            base,
            lambda text: None,
            goal=Classes(),
            folds=None,
            columns=columns,
            rate=3.0,
            size=32,
            holdout=0.3,
            seed=0,
            name=None,
            overwrite=False,
            workers=1,
            progress=False,
        )

    path = call().store.folder / "frames.npy"
    call()
    frames = np.load(path)
    np.save(path, 255 - frames)
    with pytest.raises(DataError, match="was changed since it was prepared, in 27 videos"):
        call()
    np.save(path, frames)
    call()
