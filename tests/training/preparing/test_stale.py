"""What was decoded of files that others have taken the place of, with their sizes and times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import outlined as made
import pytest
import timm
from PIL import Image

from uscl_zoo.data.annotations import Annotation
from uscl_zoo.embedding.extraction import embed_to
from uscl_zoo.errors import DataError
from uscl_zoo.training.finetuning.segmentation.gather import gather
from uscl_zoo.training.finetuning.segmentation.outlined import find_outlined
from uscl_zoo.training.preparing import parts
from uscl_zoo.training.preparing import prepare as module
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.sources import history_of, state_of
from uscl_zoo.ultrasound.transforms import FrameTransform

CALL: dict[str, Any] = {
    "annotate": lambda name: Annotation(name),
    "sampling": Sampling(size=32),
    "holdout": 0,
    "workers": 1,
    "progress": False,
}


def flat(path: Path, level: int) -> Path:
    Image.new("L", (40, 30), level).save(path)
    return path


def swap(path: Path, level: int) -> None:
    """Another picture in its place, as an archive unpacked over it leaves: size and time stay."""
    before = state_of(path)
    times = path.stat()
    flat(path, level)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert state_of(path) == before


@pytest.fixture
def stills(tmp_path: Path) -> Path:
    folder = tmp_path / "stills"
    folder.mkdir()
    for i, level in enumerate((20, 120, 220)):
        flat(folder / f"{'abc'[i]}.bmp", level)
    return folder


def test_a_history_is_of_the_file_and_a_state_of_its_name(stills: Path) -> None:
    path = stills / "a.bmp"
    before = history_of(path)
    assert history_of(path) == before
    swap(path, 90)
    assert history_of(path) != before


def test_a_store_of_what_was_there_is_not_handed_out(stills: Path, tmp_path: Path) -> None:
    store = prepare([stills], tmp_path / "store", **CALL).store
    assert prepare([stills], tmp_path / "store", **CALL).reused == 3
    # touched, and the same: a store is of the content
    (stills / "a.bmp").chmod(0o640)
    assert prepare([stills], tmp_path / "store", **CALL).reused == 3
    swap(stills / "b.bmp", 121)
    with pytest.raises(DataError, match="holds a store of other videos"):
        prepare([stills], tmp_path / "store", **CALL)
    again = prepare([stills], tmp_path / "store", overwrite=True, **CALL).store
    assert np.unique(again.frames[:, 0, 0, 0]).tolist() == [20, 121, 220]
    assert again.digest != store.digest


def test_parts_of_an_interrupted_call_are_of_what_is_there(
    stills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([stills], tmp_path / "store", **CALL)
    swap(stills / "b.bmp", 121)
    report = prepare([stills], tmp_path / "store", **CALL)
    assert report.reused == 2
    assert np.unique(report.store.frames[:, 0, 0, 0]).tolist() == [20, 121, 220]


def test_rows_of_an_interrupted_embedding_are_of_what_is_there(
    stills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = timm.create_model("test_resnet", num_classes=0)
    patch_at, real = "uscl_zoo.ultrasound.sources.sample", reading.sample

    def until_c(path: Path, *rest: Any, **more: Any) -> Any:
        if path.name == "c.bmp":
            raise KeyboardInterrupt
        return real(path, *rest, **more)

    def embed(name: str) -> Any:
        output = tmp_path / f"{name}.npz"
        embed_to(output, module, [stills], progress=False, batch_size=1)
        with np.load(output) as found:
            return found["features"]

    with monkeypatch.context() as patch:
        patch.setattr(patch_at, until_c)
        with pytest.raises(KeyboardInterrupt):
            embed("parted")
    swap(stills / "a.bmp", 90)
    assert np.array_equal(embed("parted"), embed("whole"))


def test_masks_are_decoded_anew_when_another_is_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        image, there = made.draw(i + 1)
        image.save(folder / f"x{i}.png")
        Image.fromarray(there).save(folder / f"x{i}_mask.bmp")
    shape = FrameTransform((32, 32), (0.5,) * 3, (0.25,) * 3)

    def labels() -> Any:
        found = find_outlined(folder)
        notes: list[str] = []
        work = tmp_path / "work"
        ready = gather(found, work, shape, notes.append, holdout=0.3, seed=0, progress=False)
        return np.array(ready.labels)

    before = labels()
    path = folder / "x2_mask.bmp"
    times = path.stat()
    mirrored = Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    after = labels()
    assert not np.array_equal(before[2], after[2])
    shutil.rmtree(tmp_path / "work")
    assert np.array_equal(after, labels())


def test_frames_of_an_interrupted_call_that_were_changed_are_decoded_again(
    stills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare([stills], tmp_path / "whole", **CALL).store
    with monkeypatch.context() as patch:
        patch.setattr(module, "_assemble", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([stills], tmp_path / "store", **CALL)
    part = sorted((tmp_path / "store" / "parts").glob("*.u8"))[0]
    part.write_bytes(bytes(255 - value for value in part.read_bytes()))
    with pytest.raises(DataError, match=r"was changed since it was decoded from .*the same call"):
        prepare([stills], tmp_path / "store", **CALL)
    report = prepare([stills], tmp_path / "store", **CALL)
    assert report.reused == 2
    assert np.array_equal(report.store.frames, whole.frames)


def test_a_file_that_changes_while_it_is_read_is_skipped_and_named(
    stills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample: Any = parts._sample

    def beside_a_writer(path: Path, *rest: Any) -> Any:
        if path.name == "b.bmp":
            flat(path, 7)
        return sample(path, *rest)

    monkeypatch.setattr(parts, "_sample", beside_a_writer)
    report = prepare([stills], tmp_path / "store", **CALL)
    assert [reason for _, reason in report.skipped] == [
        f"{stills / 'b.bmp'}: was changed while it was read"
    ]
