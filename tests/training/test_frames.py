from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from uscl_zoo.training.frames import FrameStore

from uscl_zoo.errors import DataError, UnreadableError


@pytest.fixture
def folder(small_store: FrameStore, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(small_store.folder, tmp_path / "store"))


def test_frames_of_a_video_are_neighbours(small_store: FrameStore) -> None:
    row = 0
    for video in small_store.videos:
        assert video.first == row
        row += video.count
    assert row == len(small_store.frames) == len(small_store.times)


def test_frames_are_mapped_not_read(small_store: FrameStore) -> None:
    assert isinstance(small_store.frames, np.memmap)
    assert not small_store.frames.flags.writeable


def test_splits_are_parts(small_store: FrameStore) -> None:
    train, held = small_store.select("train"), small_store.select("heldout")
    assert {v.name for v in train} | {v.name for v in held} == {v.name for v in small_store.videos}
    assert not {v.subject for v in train} & {v.subject for v in held}


def test_a_summary_counts(small_store: FrameStore) -> None:
    summary = small_store.summary(small_store.videos)
    assert summary["videos"] == 18
    assert summary["subjects"] == 9
    assert summary["frames"] == len(small_store.frames)
    assert summary["classes"] == {"Cov": 6, "Pneu": 6, "Reg": 6}
    assert summary["licences"] == {"not stated": 18}
    assert small_store.summary([])["videos"] == 0


def test_labels_are_sorted(small_store: FrameStore) -> None:
    assert small_store.labels == ("Cov", "Pneu", "Reg")


@pytest.mark.parametrize(
    ("unfinished", "told"), [(False, "is no store"), (True, "its preparation was interrupted")]
)
def test_a_folder_that_is_no_store(tmp_path: Path, unfinished: bool, told: str) -> None:
    if unfinished:
        (tmp_path / "parts").mkdir()
    with pytest.raises(DataError, match=f"^{tmp_path}: {told}.*uscl prepare"):
        FrameStore(tmp_path)


def cut(name: str, by: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-by])

    return damage


def write(name: str, content: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return damage


def save(array: NDArray[Any]) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / "frames.npy", array)


def tear(folder: Path) -> None:
    *rows, last = (folder / "manifest.csv").read_text().splitlines()
    (folder / "manifest.csv").write_text("\n".join([*rows, last[:20]]))


def shuffle(folder: Path) -> None:
    head, *rows = (folder / "manifest.csv").read_text().splitlines()
    rows.append(rows.pop(0))
    (folder / "manifest.csv").write_text("\n".join([head, *rows]) + "\n")


@pytest.mark.parametrize(
    "damage",
    [
        cut("frames.npy", 1),
        cut("frames.npy", 10**9),
        tear,
        cut("store.json", 5),
        write("frames.npy", "not an array"),
        write("manifest.csv", ""),
        write("manifest.csv", "video,subject\na,b\n"),
        replace("manifest.csv", ",train,", ",test,"),
        replace("manifest.csv", ",train,0,", ",train,0,x"),
        shuffle,
        save(np.zeros((4, 32, 32), np.uint8)),
        save(np.zeros((4, 32, 32, 3), np.float32)),
        save(np.zeros((4, 32, 32, 3), np.uint8)),
        lambda folder: (folder / "frames.npy").unlink(),
        lambda folder: (folder / "manifest.csv").unlink(),
    ],
)
def test_damage_is_told_in_a_line(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(UnreadableError, match=f"^{folder}") as caught:
        FrameStore(folder)
    assert "\n" not in str(caught.value)


def test_the_description_is_json(folder: Path) -> None:
    about = json.loads((folder / "store.json").read_text())
    assert about["origin"]["name"] == "Clips"
    assert about["digest"] == FrameStore(folder).digest
    assert len(about["digest"]) == 64
