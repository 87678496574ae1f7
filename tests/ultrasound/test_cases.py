"""The shared cases: small inputs that went wrong, each with what is right."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray
from pydicom.encaps import generate_fragments
from test_jpeg import decode

from uscl_zoo.ultrasound.reading import iterate

Pixels = NDArray[Any]


@pytest.fixture
def cases(data: Path) -> Path:
    folder = data.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases in {folder}")
    return folder


def read(path: Path) -> tuple[Pixels, list[str]]:
    told: list[str] = []
    frames = np.stack([np.asarray(image) for _, image in iterate(path, on_damage=told.append)])
    return frames, [line.removeprefix(f"{path}: ") for line in told]


@pytest.mark.parametrize(
    ("name", "count", "told"),
    [
        ("adobe1_ybr", 3, None),
        ("jpeg_bare_pi_rgb", 3, "its frames are YCbCr"),
        ("jpeg_rgb_ids", 4, None),
        ("baseline_in_70", 4, "its frames are JPEG, the transfer syntax says JPEG-lossless"),
        ("two_of_four", 4, "4 frames are there, its header promises 2"),
        ("bad_offsets", 3, "its offset table is wrong; 3 frames"),
    ],
)
def test_jpeg_as_pillow_decodes_it(cases: Path, name: str, count: int, told: str | None) -> None:
    path = cases / name / f"{name}.dcm"
    frames, lines = read(path)
    stored = pydicom.dcmread(path).PixelData
    # each frame is a fragment, whatever the table says
    fragments = [data for data in generate_fragments(stored) if data.startswith(b"\xff\xd8")]
    assert len(fragments) == count
    expected = [decode(data) for data in fragments]
    assert np.array_equal(frames, expected)
    assert len(lines) == (told is not None)
    assert not told or lines[0].startswith(told)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fake422", "its frames have the length of RGB without subsampling"),
        ("no_number_of_frames", "4 frames are there, its header does not say how many"),
    ],
)
def test_native(cases: Path, name: str, told: str) -> None:
    path = cases / name / f"{name}.dcm"
    frames, lines = read(path)
    stored = np.frombuffer(pydicom.dcmread(path).PixelData, np.uint8)
    assert np.array_equal(frames, stored.reshape(4, 96, 128, 3))
    assert [line.startswith(told) for line in lines] == [True]


def test_lossless(cases: Path) -> None:
    frames, lines = read(cases / "lossless_rgb_ids_pi_ybr" / "lossless_rgb_ids_pi_ybr.dcm")
    assert frames.shape == (2, 48, 64, 3)
    # mostly grey, as ultrasound is
    assert np.median(np.ptp(frames, axis=3)) < 40
    assert [line.startswith("its frames are RGB") for line in lines] == [True]


@pytest.mark.parametrize("name", ["hflip", "vflip"])
def test_mirrored(cases: Path, name: str) -> None:
    path = cases / name / f"{name}.mp4"
    frames, lines = read(path)
    assert not lines
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    theirs = np.frombuffer(shown, np.uint8).reshape(frames.shape)
    assert np.abs(frames.astype(int) - theirs).max() <= 3
