from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.learning.frames import FrameStore


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


def test_reading_is_what_the_map_shows(small_store: FrameStore) -> None:
    rows = np.array([5, 0, len(small_store.frames) - 1, 5])
    assert np.array_equal(small_store.read(rows), small_store.frames[rows])
    assert small_store.read(rows[:0]).shape == (0, 32, 32, 3)
    for beyond in (-1, len(small_store.frames)):
        with pytest.raises(IndexError):
            small_store.read(np.array([beyond]))


def test_a_file_cut_off_since_it_was_opened(folder: Path) -> None:
    store = FrameStore(folder)
    cut("frames.npy", 100)(folder)
    with pytest.raises(UnreadableError, match=r"frames\.npy: ends within frame"):
        store.read(np.array([0, len(store.frames) - 1]))


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


#: 15,120 videos of 22 frames of 224x224: 50 GB, as a file without content.
SPARSE = 15_120, 22

TRAIN = """
import re, sys
from pathlib import Path
import numpy as np
import torch
from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining.trainer import Trainer

def resident():
    status = Path("/proc/self/status").read_text()
    found = re.findall(r"(VmHWM|RssAnon|RssFile):\\s+(\\d+) kB", status)
    return [int(dict(found)[name]) // 1024 for name in ("RssAnon", "RssFile", "VmHWM")]

states = [resident()]
store = FrameStore(sys.argv[1])
states.append(resident())
execution = Execution(torch.device("cpu"), place="disk")
trainer = Trainer(Recipe(batch_size=4, smallest_batch=2), store, execution)
for _ in range(3):
    trainer.step()
states.append(resident())
# as many frames as 80 steps of 32 videos take: 1.2 GB
for batch in np.random.default_rng(0).integers(len(store.frames), size=(80, 96)):
    store.read(batch)
states.append(resident())
print(*[value for state in states for value in state])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to ask for memory")
def test_a_store_larger_than_memory_can_be_trained_on(tmp_path: Path) -> None:
    """RssAnon is what the process holds, RssFile the mapped pages it has touched; MB."""
    videos, count = SPARSE
    frames = tmp_path / "frames.npy"
    shape = (videos * count, 224, 224, 3)
    with frames.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + int(np.prod(shape)))
    if frames.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("the file system keeps no sparse files")
    assert frames.stat().st_size > 50e9
    with (tmp_path / "manifest.csv").open("w") as stream:
        stream.write("video,subject,label,split,frame,time,source,licence\n")
        for video in range(videos):
            name = f"site/{video}.mp4,{video // 2},{'ab'[video % 2]},train"
            for i in range(count):
                stream.write(f"{name},{i},{i / 3:.6f},/data/ultrasound/site/{video}.mp4,MIT\n")
    (tmp_path / "store.json").write_text(json.dumps({"digest": "0" * 64}))
    told = subprocess.check_output([sys.executable, "-c", TRAIN, str(tmp_path)], text=True)
    start, opened, trained, read = np.array(told.split(), int).reshape(4, 3)
    # 22 MB of manifest; as dictionaries its rows were 240 MB
    assert opened[0] - start[0] < 60
    assert trained[2] < 4000
    assert read[2] < 4000
    # not a page of what was read stays with the process
    assert read[1] - trained[1] < 50
    assert read[0] - trained[0] < 100


def test_the_description_is_json(folder: Path) -> None:
    about = json.loads((folder / "store.json").read_text())
    assert about["origin"]["name"] == "Clips"
    assert about["digest"] == FrameStore(folder).digest
    assert len(about["digest"]) == 64


def test_a_store_of_one_collection_has_one_source(small_store: FrameStore) -> None:
    train = small_store.select("train")
    assert {video.origin for video in small_store.videos} == {None}
    assert small_store.sources(train) == [
        {"name": "Clips", "url": None, "citation": None, **small_store.summary(train)}
    ]


def test_an_older_store_says_nothing_of_colour(folder: Path) -> None:
    told = json.loads((folder / "store.json").read_text())
    assert told.pop("grey") is False
    (folder / "store.json").write_text(json.dumps(told))
    assert not FrameStore(folder).is_grey
