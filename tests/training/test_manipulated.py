"""Stores and checkpoints that somebody has changed, under `--resume`: refused, never trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pretrain import RECIPE, run

from uscl_zoo.errors import UsclError
from uscl_zoo.records import write_yaml
from uscl_zoo.training.frames import FrameStore
from uscl_zoo.training.recipe import replace

ONE, TWO = replace(RECIPE, epochs=1, validate_every=9), replace(RECIPE, epochs=2, validate_every=9)


@pytest.fixture(scope="module")
def begun(
    narrow: None, small_store: FrameStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A store, and a run on it that could go on."""
    folder = tmp_path_factory.mktemp("begun")
    store = Path(shutil.copytree(small_store.folder, folder / "store"))
    run(FrameStore(store), folder / "run", ONE)
    # as if it had been stopped after the first of two epochs
    write_yaml(folder / "run" / "recipe.yaml", TWO)
    return store, folder / "run"


def frames(change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Path, Path], object]:
    def spoil(store: Path, folder: Path) -> None:
        values = np.load(store / "frames.npy")
        changed = change(values)
        np.save(store / "frames.npy", values if changed is None else changed)

    return spoil


def text(name: str, old: str, new: str) -> Callable[[Path, Path], object]:
    def spoil(store: Path, folder: Path) -> None:
        content = (store / name).read_text()
        assert old in content
        (store / name).write_text(content.replace(old, new, 1))

    return spoil


def state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], object]:
    def spoil(store: Path, folder: Path) -> None:
        content = torch.load(folder / "checkpoint.pt", weights_only=True)
        change(content)
        torch.save(content, folder / "checkpoint.pt")

    return spoil


def file(name: str, content: bytes) -> Callable[[Path, Path], object]:
    return lambda store, folder: (folder / name).write_bytes(content)


def weight(state: dict[str, Any]) -> torch.Tensor:
    found: torch.Tensor = next(v for v in state["network"].values() if v.is_floating_point())
    return found


SPOILED: dict[str, Callable[[Path, Path], object]] = {
    "frames of others": frames(lambda f: f[::-1]),
    "frames that are inverted": frames(np.invert),
    "a frame less": frames(lambda f: f[:-1]),
    "frames of another size": frames(lambda f: f[:, :16]),
    "frames that are floats": frames(lambda f: f.astype(np.float32)),
    "frames that are objects": lambda store, folder: np.save(
        store / "frames.npy", np.array([{}], object), allow_pickle=True
    ),
    "another label": text("manifest.csv", ",Cov,", ",Reg,"),
    "another split": text("manifest.csv", ",train,", ",heldout,"),
    "a split of its own": text("manifest.csv", ",train,", ",test,"),
    "another digest": text("store.json", '"digest": "', '"digest": "0'),
    "no JSON": text("store.json", "{", "["),
    "NaN in the weights": state(lambda s: weight(s).fill_(float("nan"))),
    "a tensor less": state(lambda s: s["network"].popitem()),
    "a tensor of another shape": state(
        lambda s: s["network"].update({next(iter(s["network"])): torch.zeros(3)})
    ),
    "no optimiser": state(lambda s: s.pop("optimizer")),
    "no progress": state(lambda s: s.update(progress={})),
    "a progress of words": state(lambda s: s["progress"].update(epoch="one")),
    "an epoch before the first": state(lambda s: s["progress"].update(epoch=-3)),
    "an epoch behind the last": state(lambda s: s["progress"].update(epoch=10**6)),
    "another store": state(lambda s: s.update(store="0" * 64)),
    "no store": state(lambda s: s.pop("store")),
    "another format": state(lambda s: s.update(format=2)),
    "a list": lambda store, folder: torch.save([1], folder / "checkpoint.pt"),
    "a checkpoint that is cut": lambda store, folder: (
        (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:-9])
        and None
    ),
    "no description": file("run.json", b""),
    "a description that is none": file("run.json", b"[]"),
    "a recipe that is none": file("recipe.yaml", b"- x"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_it_does_not_go_on(how: str, begun: tuple[Path, Path], tmp_path: Path) -> None:
    store = Path(shutil.copytree(begun[0], tmp_path / "store"))
    folder = Path(shutil.copytree(begun[1], tmp_path / "run"))
    # of one checkpoint before, it could go on from that
    (folder / "checkpoint.previous.pt").unlink(missing_ok=True)
    SPOILED[how](store, folder)
    before = (folder / "checkpoint.pt").read_bytes()
    with pytest.raises(UsclError) as caught:
        run(FrameStore(store), folder, TWO, resume=True)
    told = str(caught.value)
    assert str(store) in told or str(folder) in told
    assert "\n" not in told
    assert (folder / "checkpoint.pt").read_bytes() == before


def test_what_nobody_has_changed_goes_on(begun: tuple[Path, Path], tmp_path: Path) -> None:
    store = Path(shutil.copytree(begun[0], tmp_path / "store"))
    folder = Path(shutil.copytree(begun[1], tmp_path / "run"))
    # neither another place, nor a run of before there was a sample of its store
    about = json.loads((folder / "run.json").read_text())
    del about["store_sample"]
    (folder / "run.json").write_text(json.dumps(about))
    assert run(FrameStore(store), folder, TWO, resume=True)["progress"]["epoch"] == 2
    assert run(FrameStore(begun[0]), begun[1], TWO, resume=True)["progress"]["epoch"] == 2
