"""Stores and checkpoints that somebody has changed, under `--resume`: refused, never trained on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import RECIPE, run

from uscl_zoo.errors import UsclError
from uscl_zoo.records import write_yaml
from uscl_zoo.training.learning import seal
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import replace

ONE, TWO = replace(RECIPE, epochs=1, validate_every=9), replace(RECIPE, epochs=2, validate_every=9)


@pytest.fixture(scope="module")
def sampled() -> Iterator[None]:
    """Of a store this small 256 frames are all there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal, "_SAMPLED", 2)
        yield


@pytest.fixture(scope="module")
def begun(
    narrow: None, sampled: None, small_store: FrameStore, tmp_path_factory: pytest.TempPathFactory
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


def pixel(frame: int, unnoticed: bool = False) -> Callable[[Path, Path], object]:
    """Changes a frame; unnoticed by the time of the last change, which may be set to any."""

    def spoil(store: Path, folder: Path) -> None:
        path = store / "frames.npy"
        before = path.stat()
        values = np.load(path, mmap_mode="r+")
        values[frame, 3, 4] ^= 1
        values.flush()
        del values
        if unnoticed:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_mtime_ns == before.st_mtime_ns

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
    "a pixel of one frame": pixel(7),
    "a pixel of one frame, at another time": pixel(7, unnoticed=True),
    "the name of one video's digest": text(
        "store.json", '"frames_sha256": {\n  "', '"frames_sha256": {\n  "x'
    ),
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
    # neither another place, nor a run of before there was a seal of its store
    about = json.loads((folder / "run.json").read_text())
    for key in seal.SEALED:
        del about[key]
    (folder / "run.json").write_text(json.dumps(about))
    assert run(FrameStore(store), folder, TWO, resume=True)["progress"]["epoch"] == 2
    assert run(FrameStore(begun[0]), begun[1], TWO, resume=True)["progress"]["epoch"] == 2


def test_all_frames_are_read_once_after_a_copy_and_no_more(
    begun: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FrameStore(Path(shutil.copytree(begun[0], tmp_path / "store")))
    reads: list[str] = []
    changed: Any = seal._changed

    def noted(*given: Any) -> Any:
        reads.append("all")
        return changed(*given)

    monkeypatch.setattr(seal, "_changed", noted)
    before = seal.seal_of(FrameStore(begun[0]))
    assert seal.reseal(FrameStore(begun[0]), before) == before and not reads
    after = seal.reseal(store, before)
    assert reads == ["all"] and after["store_state"] != before["store_state"]
    assert seal.reseal(store, after) == after and reads == ["all"]


def test_a_store_of_before_there_were_digests_of_frames_says_so(
    begun: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(begun[0], tmp_path / "store"))
    description = json.loads((path / "store.json").read_text())
    del description["frames_sha256"]
    (path / "store.json").write_text(json.dumps(description))
    before = seal.seal_of(FrameStore(path))
    (path / "frames.npy").touch()
    assert seal.reseal(FrameStore(path), before) != before
    assert "has no digest" in capsys.readouterr().out
