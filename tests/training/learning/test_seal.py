"""Stores whose frames are no longer those that were prepared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from uscl_zoo.cli import main
from uscl_zoo.errors import DataError
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.seal import check_frames
from uscl_zoo.zoo.card import Card

#: Every command that takes a store, and computes with its frames at once.
COMMANDS = {
    "finetune": "finetune --data STORE --model NAME -o OUT --train head --epochs 1",
    "evaluate": "evaluate NAME --dataset STORE -o OUT",
    "probe": "probe NAME --data STORE",
    "penalties": "probe NAME --data STORE --penalties",
    "audit": "audit STORE -o OUT",
}


@pytest.fixture
def inverted(small_store: FrameStore, tmp_path: Path) -> Path:
    """A copy of the store, in which one held-out clip shows another picture."""
    folder = tmp_path / "store"
    shutil.copytree(small_store.folder, folder)
    video = small_store.select("heldout")[0]
    frames = np.load(folder / "frames.npy", mmap_mode="r+")
    rows = slice(video.first, video.first + video.count)
    frames[rows] = 255 - frames[rows]
    frames.flush()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_changed_frames_are_refused(
    command: str,
    inverted: Path,
    installed: Callable[..., Card],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"STORE": str(inverted), "NAME": installed().name, "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as ended:
        main([names.get(word, word) for word in COMMANDS[command].split()])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "was changed since it was prepared, in 1 videos" in said
    assert "prepare it again" in said


def test_of_some_videos_no_others_are_read(inverted: Path) -> None:
    store = FrameStore(inverted)
    check_frames(store, videos=store.select("train"))
    with pytest.raises(DataError, match="in 1 videos"):
        check_frames(store, videos=store.select("heldout"))
