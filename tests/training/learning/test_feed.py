from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_runs import RECIPE, assert_same

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.learning import execution, feed
from uscl_zoo.training.learning.execution import PLACES, Execution, device_named, place_for
from uscl_zoo.training.learning.feed import Feed
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import replace
from uscl_zoo.training.learning.runs import load_checkpoint
from uscl_zoo.training.pretraining.pretrain import pretrain

CPU = torch.device("cpu")


def batches(store: FrameStore, count: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, len(store.frames), 5) for _ in range(count)]


@pytest.mark.parametrize("place", PLACES)
def test_every_place_gives_the_same_frames(
    small_store: FrameStore, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # several pieces while loading
    monkeypatch.setattr(feed, "_CHUNK", 10 * small_store.frames[0].nbytes)
    frames = Feed(small_store, CPU, place)
    wanted = batches(small_store)
    streamed = list(frames.stream(wanted))
    assert len(streamed) == len(wanted)
    for rows, given in zip(wanted, streamed, strict=True):
        expected = torch.from_numpy(np.array(small_store.frames[rows]))
        assert torch.equal(given, expected)
        assert torch.equal(frames.take(rows), expected)


def test_it_says_where_frames_live(small_store: FrameStore) -> None:
    told = [str(Feed(small_store, CPU, place)).partition(" GB of frames ")[2] for place in PLACES]
    assert told == ["in the memory of cpu", "in host memory", "on disk"]


@pytest.mark.parametrize(
    ("size", "expected"), [(10, "device"), (50, "device"), (51, "disk"), (10**18, "disk")]
)
def test_frames_live_where_half_the_room_is_enough(
    monkeypatch: pytest.MonkeyPatch, size: int, expected: str
) -> None:
    monkeypatch.setattr(execution, "free_host_bytes", lambda: 100)
    assert place_for(size, CPU) == expected


def test_a_place_asked_for_must_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "free_host_bytes", lambda: 2 * 10**9)
    assert place_for(10**9 + 1, CPU, "host") == "host"
    assert place_for(10**12, CPU, "disk") == "disk"
    told = r"^`place=host`: 3\.0 GB of frames do not fit into 2\.0 GB free; leave it out"
    with pytest.raises(DataError, match=told):
        place_for(3 * 10**9, CPU, "host")
    with pytest.raises(DataError, match=r"^frames can live in device, host, disk, not 'cloud'$"):
        place_for(1, CPU, "cloud")


def readers() -> int:
    return sum(thread.name == "frames" for thread in threading.enumerate())


def test_a_stream_that_is_left_ends_its_reader(small_store: FrameStore) -> None:
    stream: Any = Feed(small_store, CPU, "disk").stream(batches(small_store, 50))
    next(stream)
    assert readers() == 1
    stream.close()
    assert readers() == 0


def test_an_error_of_the_reader_reaches_the_step(small_store: FrameStore, tmp_path: Path) -> None:
    shutil.copytree(small_store.folder, tmp_path / "store")
    store = FrameStore(tmp_path / "store")
    file = tmp_path / "store" / "frames.npy"
    stream = Feed(store, CPU, "disk").stream([np.array([0]), np.array([len(store.frames) - 1])])
    with file.open("r+b") as content:
        content.truncate(file.stat().st_size - 10)
    next(stream)
    told = f"frames.npy: ends within frame {len(store.frames) - 1}; prepare it again$"
    with pytest.raises(UnreadableError, match=told):
        next(stream)


@pytest.mark.parametrize("place", ["host", "disk"])
def test_the_loader_changes_no_bit(small_store: FrameStore, tmp_path: Path, place: str) -> None:
    recipe = replace(RECIPE, epochs=1)
    for name, where in (("device", "device"), ("other", place)):
        how = Execution(CPU, place=where)
        run = tmp_path / name
        pretrain(recipe, small_store, run, execution=how, progress=False, pictures=False)
    assert_same(load_checkpoint(tmp_path / "device"), load_checkpoint(tmp_path / "other"))


def test_no_device_named_is_the_fastest_there_is() -> None:
    assert device_named(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
