from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SUBJECT, draw_clip, write_clip
from PIL import Image
from stores import SLOWLY, content, run

from uscl_zoo.errors import DataError, MissingDependencyError
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing import parts
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.cleaning import Cleaner
from uscl_zoo.ultrasound.clip import Clip
from uscl_zoo.ultrasound.phantom import lung_clip


def test_workers_make_no_difference(clips: Path, small_store: FrameStore, tmp_path: Path) -> None:
    one = run(clips, tmp_path / "one", workers=1)
    two = run(clips, tmp_path / "two", workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert one.store.digest == two.store.digest


def test_the_largest_are_decoded_first(
    own_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, sizes = parts._decode, []

    def note(source: Path, part: Path, sampling: Sampling) -> str | None:
        sizes.append(sum(file.stat().st_size for file in source.iterdir()))
        reason: str | None = decode(source, part, sampling)
        return reason

    monkeypatch.setattr(parts, "_decode", note)
    report = run(own_clips, tmp_path / "store")
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 5
    # whatever the order of decoding, the store has that of the names
    names = [video.name for video in report.store.videos]
    assert names == sorted(names, key=lambda name: reading.natural_key(Path(name)))


def test_an_interrupted_call_continues(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = parts._decode
    calls: list[Path] = []

    def stop(source: Path, part: Path, sampling: Sampling) -> str | None:
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(source)
        reason: str | None = decode(source, part, sampling)
        return reason

    monkeypatch.setattr(parts, "_decode", stop)
    with pytest.raises(KeyboardInterrupt):
        run(clips, tmp_path / "a")
    with pytest.raises(DataError, match="was interrupted: run it again"):
        FrameStore(tmp_path / "a")
    monkeypatch.undo()
    assert run(clips, tmp_path / "a").reused == 7
    assert run(clips, tmp_path / "b").reused == 0
    assert content(tmp_path / "a") == content(tmp_path / "b")


def _runs(process: str) -> bool:
    try:
        # the state follows the name; a zombie has ended
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_call_continues(clips: Path, tmp_path: Path, workers: int) -> None:
    """SIGKILL leaves no time to tidy up."""
    arguments = [str(clips), str(tmp_path / "a"), SUBJECT, str(workers)]
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments])
    parts = tmp_path / "a" / "parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("*.json"))) < 4:
        assert process.poll() is None, "it was done before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    left = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(_runs(child) for child in left):
        assert time.monotonic() < deadline + 60, "a worker waits for ever"
        time.sleep(0.05)
    assert 4 <= run(clips, tmp_path / "a").reused < 18
    run(clips, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_part_of_another_source_is_not_reused(own_clips: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "parts").mkdir(parents=True)
    for source in sorted(own_clips.iterdir())[:3]:
        part = parts.part_of(tmp_path / "a" / "parts", source.name)
        assert parts._decode(source, part, Sampling(size=32)) is None
    # the first is changed meanwhile, the part of the second was cut off
    first, second, _ = sorted(own_clips.iterdir())[:3]
    frame = next(first.iterdir())
    Image.fromarray(draw_clip(99, 1, (9, 9, 9))[0]).save(frame)
    cut = parts.part_of(tmp_path / "a" / "parts", second.name).with_suffix(".u8")
    cut.write_bytes(cut.read_bytes()[:-1])
    assert run(own_clips, tmp_path / "a").reused == 1
    run(own_clips, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_undecodable_is_skipped_and_named(own_clips: Path, tmp_path: Path) -> None:
    torn = own_clips / "Cov-s00-torn.mp4"
    torn.write_bytes(b"\x00" * 100)
    (own_clips / "Reg-s02-none.mp4").symlink_to(tmp_path / "nowhere.mp4")
    report = run(own_clips, tmp_path / "store")
    assert len(report.store.videos) == 18
    assert [Path(source).name for source, _ in report.skipped] == [
        "Cov-s00-torn.mp4",
        "Reg-s02-none.mp4",
    ]
    told = (tmp_path / "store" / "skipped.csv").read_text()
    assert str(torn) in told
    assert "cannot be read" in told
    assert torn.name not in {v.name for v in report.store.videos}
    # asked again, it says so again
    assert run(own_clips, tmp_path / "store").skipped == report.skipped


def test_a_missing_decoder_is_not_the_videos_fault(
    own_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_clips / "Cov-s00-c.mp4").write_bytes(b"\x00" * 100)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        run(own_clips, tmp_path / "store")


def test_hidden_files_among_the_frames_do_not_matter(own_clips: Path, tmp_path: Path) -> None:
    run(own_clips, tmp_path / "a")
    for folder in own_clips.iterdir():
        (folder / ".thumbnails").mkdir()
        (folder / ".DS_Store").write_bytes(b"\x00")
    assert run(own_clips, tmp_path / "a").reused == 18
    run(own_clips, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


PEAK = """
import resource, sys
from pathlib import Path
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
prepare([Path(sys.argv[1])], Path(sys.argv[2]), from_name,
    sampling=Sampling(size=int(sys.argv[3])), workers=1, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_videos(tmp_path: Path) -> None:
    peaks, stored = [], []
    for count in (4, 40):
        for i in range(count):
            write_clip(tmp_path / str(count) / f"Cov-{i:02}_mp4", draw_clip(i, 8, (90, 90, 90)))
        store = tmp_path / f"store{count}"
        arguments = [str(tmp_path / str(count)), str(store), "448"]
        told = subprocess.check_output([sys.executable, "-c", PEAK, *arguments], text=True)
        peaks.append(int(told))
        stored.append((store / "frames.npy").stat().st_size / 1024)
    # ten times the videos, 170 MB more of frames: a tenth of that would be too much
    assert stored[1] - stored[0] > 150_000
    assert peaks[1] - peaks[0] < 0.1 * (stored[1] - stored[0])


def write_scan(folder: Path, frames: Any) -> None:
    folder.mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{folder.name}_frame{i}.png")


def test_cleaned_videos_are_cropped_to_their_beam(tmp_path: Path) -> None:
    frames, _ = lung_clip(seconds=0.5, size=(240, 320))
    write_scan(tmp_path / "v" / "Cov-s0_mp4", frames)
    # noise from border to border has no beam
    noise = np.random.default_rng(0).integers(20, 255, (4, 120, 160, 3), dtype=np.uint8)
    write_scan(tmp_path / "v" / "Reg-s1_mp4", noise)
    sampling = Sampling(size=64, clean=True)
    report = run(tmp_path / "v", tmp_path / "store", sampling=sampling, holdout=0)
    assert report.unclean == ("Reg-s1_mp4",)

    rows = list(csv.DictReader((tmp_path / "store" / "manifest.csv").open(newline="")))
    beams = {row["video"]: json.loads(row["beam"]) for row in rows}
    scan, other = beams["Cov-s0_mp4"], beams["Reg-s1_mp4"]
    assert scan["cleaned"] and scan["kind"] == "curved" and len(scan["angles"]) == 2
    assert not other["cleaned"] and other["kind"] == "unknown"

    store = report.store
    first = store.videos[0].first
    cleaned, _ = Cleaner.of(Clip.of(frames))(Image.fromarray(frames[0]))
    expected = cleaned.resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(store.frames[first], np.asarray(expected))
    whole = Image.fromarray(noise[0]).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(store.frames[store.videos[1].first], np.asarray(whole))
    assert run(tmp_path / "v", tmp_path / "store", sampling=sampling, holdout=0).reused == 2


def test_frames_are_resized_as_is_asked_for(tmp_path: Path) -> None:
    frames, _ = lung_clip(seconds=0.5, size=(240, 320))
    write_scan(tmp_path / "v" / "Cov-s0_mp4", frames)
    cubic = Sampling(size=64, interpolation="bicubic")
    store = run(tmp_path / "v", tmp_path / "store", sampling=cubic, holdout=0).store
    expected = Image.fromarray(frames[0]).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(store.frames[0], np.asarray(expected))
    assert store.description["sampling"]["interpolation"] == "bicubic"
    # a store of before, which does not say it, is the same as one made now
    assert Sampling(size=64).settings() == {"rate": 3.0, "size": 64}
    with pytest.raises(DataError, match="holds a store of other"):
        run(tmp_path / "v", tmp_path / "store", sampling=Sampling(size=64), holdout=0)
    with pytest.raises(DataError, match=r"^interpolation should be one of nearest, bilinear"):
        Sampling(interpolation="area")


@pytest.mark.parametrize("colour", [False, True])
def test_whether_a_store_is_grey(tmp_path: Path, colour: bool) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)
    frames = np.repeat(grey[..., None], 3, axis=2)[None].repeat(2, axis=0)
    # in one channel of one frame
    frames[1, 5:9, 5:9, 2] ^= 64 * colour
    write_clip(tmp_path / "v" / "Cov-s0_mp4", frames)
    store = run(tmp_path / "v", tmp_path / "store").store
    assert store.is_grey is store.description["grey"] is not colour
    turned = run(tmp_path / "v", tmp_path / "turned", sampling=Sampling(size=32, grey=True)).store
    assert turned.is_grey
    assert (turned.frames == turned.frames[..., :1]).all()
    assert (turned.digest == store.digest) is False
