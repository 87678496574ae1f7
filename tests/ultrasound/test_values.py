"""Values are shown by the bits they use, whichever the header or the format says."""

import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from test_dicom import make, noise, write

from uscl_zoo.ultrasound.reading import iterate

Pixels = NDArray[Any]


def show(path: Path) -> tuple[list[Pixels], list[str]]:
    told: list[str] = []
    frames = [np.asarray(image) for _, image in iterate(path, on_damage=told.append)]
    return frames, [line.removeprefix(f"{path}: ") for line in told]


def ramp(bits: int, dtype: Any = np.uint16) -> Pixels:
    """All values of so many bits, at most 4,096 of them: (1, 64, 64)."""
    values: Pixels = np.linspace(0, 2**bits - 1, 4096).round().astype(dtype).reshape(1, 64, 64)
    return values


def scaled(values: Pixels, low: float, high: float) -> Pixels:
    shown: Pixels = np.rint(((values.astype(float) - low) / (high - low)).clip(0, 1) * 255)
    return shown


class TestBits:
    @pytest.mark.parametrize(
        ("stored", "allocated"), [(12, 16), (10, 16), (8, 16), (5, 8), (15, 16)]
    )
    @pytest.mark.parametrize("upper", [False, True])
    @pytest.mark.parametrize("said_upper", [False, True])
    @pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
    def test_which_bits(
        self,
        tmp_path: Path,
        stored: int,
        allocated: int,
        upper: bool,
        said_upper: bool,
        syntax: uid.UID,
    ) -> None:
        values = ramp(stored, np.uint16 if allocated == 16 else np.uint8)
        dataset = make(values << (allocated - stored) if upper else values, syntax=syntax)
        dataset.BitsStored = stored
        dataset.HighBit = (allocated if said_upper else stored) - 1
        (frame,), told = show(write(tmp_path / "a.dcm", dataset))
        assert np.array_equal(frame[..., 0], scaled(values[0], 0, 2**stored - 1))
        assert bool(told) == (upper != said_upper)

    @pytest.mark.parametrize("extended", [False, True])
    @pytest.mark.parametrize("upper", [False, True])
    def test_signed(self, tmp_path: Path, extended: bool, upper: bool) -> None:
        values = ramp(12)[0].astype(np.int32) - 2048
        stored = (values << 4) & 0xFFFF if upper else values & (0xFFFF if extended else 0xFFF)
        dataset = make(stored[None].astype(np.uint16), PixelRepresentation=1, BitsStored=12)
        dataset.HighBit = 15 if upper else 11
        (frame,), told = show(write(tmp_path / "a.dcm", dataset))
        assert np.array_equal(frame[..., 0], scaled(values, -2048, 2047))
        assert not told

    def test_bits_of_an_overlay_are_no_brightness(self, tmp_path: Path) -> None:
        values = ramp(12)
        drawn = values | (noise(1, 64, 64, high=2).astype(np.uint16) << 13)
        dataset = make(drawn, BitsStored=12)
        dataset.HighBit = 11
        dataset.add_new(0x60000102, "US", 13)
        (frame,), told = show(write(tmp_path / "a.dcm", dataset))
        assert np.array_equal(frame[..., 0], scaled(values[0], 0, 4095))
        assert not told

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize("slope", [None, 2, -0.5])
    def test_twelve_bits_in_sixteen(
        self, tmp_path: Path, photometric: str, slope: float | None
    ) -> None:
        values = ramp(12)
        tags: dict[str, Any] = (
            {} if slope is None else {"RescaleSlope": slope, "RescaleIntercept": 7}
        )
        (frame,), told = show(write(tmp_path / "a.dcm", make(values, photometric, **tags)))
        # as a display does without a window
        right = scaled(values[0], 0, 4095)
        dark = (photometric == "MONOCHROME1") != (slope is not None and slope < 0)
        assert np.abs(frame[..., 0] - (255 - right if dark else right)).max() <= 1
        assert told == ["it has no window, and of 16 bits uses 0 to 4095; shown by these"]

    def test_all_frames_by_one_range(self, tmp_path: Path) -> None:
        values = np.concatenate([ramp(12) // 4, ramp(12), ramp(12) // 2])
        frames, told = show(write(tmp_path / "a.dcm", make(values)))
        for frame, value in zip(frames, values, strict=True):
            assert np.array_equal(frame[..., 0], scaled(value, 0, 4095))
        assert len(told) == 1

    def test_a_window_is_followed(self, tmp_path: Path) -> None:
        dataset = make(ramp(12), WindowCenter=2048, WindowWidth=4096)
        (frame,), told = show(write(tmp_path / "a.dcm", dataset))
        assert frame.mean() == pytest.approx(127.5, abs=1)
        assert not told

    def test_twelve_bits_in_sixteen_in_colour(self, tmp_path: Path) -> None:
        values = np.stack([ramp(12)[0], ramp(12)[0].T, ramp(12)[0] // 2], axis=-1)
        (frame,), told = show(write(tmp_path / "a.dcm", make(values[None], "RGB")))
        assert np.array_equal(frame, scaled(values, 0, 4095))
        assert told == ["its samples of 16 bits are at most 4095; shown up to 4095"]

    @settings(deadline=None, max_examples=80)
    @given(st.integers(2, 16), st.integers(0, 14), st.booleans(), st.integers(0, 2**32 - 1))
    def test_property(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        stored: int,
        shift: int,
        signed: bool,
        seed: int,
    ) -> None:
        """Whatever bits hold the values, the header of them is followed."""
        shift = min(shift, 16 - stored)
        low = -(2 ** (stored - 1)) if signed else 0
        values = np.random.default_rng(seed).integers(low, low + 2**stored, (8, 9))
        values[0, :2] = low, low + 2**stored - 1
        dataset = make(((values << shift) & 0xFFFF)[None].astype(np.uint16))
        dataset.BitsStored, dataset.HighBit = stored, stored + shift - 1
        dataset.PixelRepresentation = int(signed)
        path = tmp_path_factory.mktemp("bits") / "a.dcm"
        (frame,), told = show(write(path, dataset))
        assert np.array_equal(frame[..., 2], scaled(values, low, low + 2**stored - 1))
        assert not told


class TestNative422:
    @pytest.mark.parametrize("count", [1, 2, 4])
    @pytest.mark.parametrize("found", ["RGB", "YBR_FULL"])
    def test_at_the_length_of_full_colour(self, tmp_path: Path, count: int, found: str) -> None:
        grey = noise(count, 48, 64)
        rest = grey if found == "RGB" else np.full_like(grey, 128)
        stored = np.stack([grey, rest, rest], axis=-1)
        frames, told = show(write(tmp_path / "a.dcm", make(stored, "YBR_FULL_422")))
        assert [frame.tolist() for frame in frames] == np.stack([grey] * 3, axis=-1).tolist()
        assert len(told) == 1

    def test_full_colour_at_the_length_of_422(self, tmp_path: Path) -> None:
        stored = np.full((3, 8, 3, 4), 128, np.uint8)
        stored[..., :2] = noise(3, 8, 3, 2)
        dataset = make(noise(3, 8, 6, 3), "YBR_FULL", PixelData=stored.tobytes())
        frames, told = show(write(tmp_path / "a.dcm", dataset))
        assert np.array_equal(np.stack(frames)[..., 0], stored[..., :2].reshape(3, 8, 6))
        assert len(told) == 1


def write_tiff(path: Path, values: Pixels, photometric: int, bits: int = 16) -> Path:
    """One strip, by hand: Pillow writes no darkness."""
    height, width = values.shape
    data = values.astype("<u2").tobytes()
    if bits == 8:
        data = values.astype(np.uint8).tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8 + 2 + 12 * 9 + 4), (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, 9) + entries + bytes(4) + data)
    return path


class TestImages:
    @pytest.mark.parametrize("bits", [8, 16])
    @pytest.mark.parametrize("photometric", [0, 1])
    def test_darkness_is_turned_into_brightness(
        self, tmp_path: Path, bits: int, photometric: int
    ) -> None:
        values = ramp(bits)[0]
        (frame,), told = show(write_tiff(tmp_path / "a.tif", values, photometric, bits))
        right = scaled(values, 0, 2**bits - 1)
        right = right if photometric else 255 - right
        assert np.abs(frame[..., 0] - right).max() <= 1
        assert not told

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    @pytest.mark.parametrize("bits", [8, 10, 12, 14])
    def test_fewer_bits_in_sixteen(self, tmp_path: Path, suffix: str, bits: int) -> None:
        values = ramp(bits)[0]
        path = tmp_path / f"a{suffix}"
        Image.fromarray(values).save(path)
        (frame,), told = show(path)
        assert np.abs(frame[..., 0] - scaled(values, 0, 2**bits - 1)).max() <= 1
        assert told == [f"of 16 bits it uses {bits}, and is shown by these"]

    @pytest.mark.parametrize("hidden", [False, True])
    def test_a_picture_in_place_of_an_animation(self, tmp_path: Path, hidden: bool) -> None:
        path = tmp_path / "a.png"
        frames = [Image.new("L", (40, 30), level) for level in (60, 120, 180)]
        first, rest = (Image.new("L", (40, 30), 250), frames) if hidden else (frames[0], frames[1:])
        first.save(path, save_all=True, append_images=rest, default_image=hidden, duration=200)
        shown, told = show(path)
        command = [get_ffmpeg_exe(), "-v", "error", "-f", "apng", "-i", str(path), "-fps_mode"]
        command += ["passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-"]
        theirs = subprocess.run(command, check=True, capture_output=True).stdout
        levels = np.frombuffer(theirs, np.uint8).reshape(-1, 30, 40)
        assert [int(frame.mean()) for frame in shown] == [60, 120, 180]
        assert [int(frame.mean()) for frame in levels] == [60, 120, 180]
        assert not told
        times = [time for time, _ in iterate(path)]
        assert times == pytest.approx([0, 0.2, 0.4])

    def test_pages_that_are_previews(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        pages = [Image.new("L", (40, 30), level) for level in (60, 120)]
        small = Image.new("L", (10, 8), 250)
        small.encoderinfo = {"tiffinfo": {254: 1}}
        pages[0].save(path, save_all=True, append_images=[small, pages[1]])
        shown, _ = show(path)
        assert [frame.shape[:2] for frame in shown] == [(30, 40), (30, 40)]

    def test_one_broken_page(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        first, *rest = (Image.fromarray(frame) for frame in noise(3, 30, 40))
        first.save(path, save_all=True, append_images=rest, compression="tiff_adobe_deflate")
        data = bytearray(path.read_bytes())
        packed = zlib.compress(noise(3, 30, 40)[1].tobytes())
        place = data.find(packed[2:40])
        assert place > 0
        data[place : place + 200] = bytes(200)
        path.write_bytes(data)
        shown, told = show(path)
        assert [frame[..., 0].tolist() for frame in shown] == noise(3, 30, 40)[::2].tolist()
        assert told == ["1 of 3 pages are damaged, and left out"]


class TestTimes:
    """Of four frames, by what the header says in its several ways."""

    @pytest.mark.parametrize(
        ("tags", "expected", "told"),
        [
            ({"FrameTime": 40}, [0, 0.04, 0.08, 0.12], None),
            ({"FrameTime": 0.04}, [0, 0.04, 0.08, 0.12], "in seconds"),
            ({"FrameTime": 0.5, "CineRate": 2}, [0, 0.5, 1, 1.5], "in seconds"),
            ({"FrameTime": 0.5, "CineRate": 2000}, [0, 0.0005, 0.001, 0.0015], None),
            ({"FrameTime": 40000, "CineRate": 25}, [0, 0.04, 0.08, 0.12], "in microseconds"),
            ({"FrameTime": 40000}, [0, 0.04, 0.08, 0.12], "in microseconds"),
            ({"FrameTime": 5000}, [0, 5, 10, 15], None),
            ({"FrameTimeVector": [0, 40000, 50000, 60000]}, [0, 0.04, 0.09, 0.15], "in microsec"),
            ({"FrameTime": 1, "RecommendedDisplayFrameRate": 1}, [0, 1, 2, 3], "in seconds"),
            ({"FrameTimeVector": [0, 40, 50, 60]}, [0, 0.04, 0.09, 0.15], None),
            ({"FrameTimeVector": [40, 50, 60]}, [0, 0.04, 0.09, 0.15], None),
            ({"FrameTimeVector": [0, 40, 50]}, [0, 0.04, 0.09, 0.135], "one short"),
            ({"FrameTimeVector": [0, 40, 80, 120]}, [0, 0.04, 0.08, 0.12], "from the first"),
            ({"FrameTimeVector": [0, 0.04, 0.05, 0.06]}, [0, 0.04, 0.09, 0.15], "in seconds"),
            ({"FrameTimeVector": [0, 40, 50, 60, 70]}, [0, 0.04, 0.09, 0.15], None),
            (
                {"FrameTimeVector": [0, 40], "FrameTime": 20},
                [0, 0.02, 0.04, 0.06],
                "does not time its frames",
            ),
            (
                {"FrameTimeVector": [0, 40, 0, 40], "FrameTime": 20},
                [0, 0.02, 0.04, 0.06],
                "does not time its frames",
            ),
            (
                {
                    "FrameTimeVector": [0, 40, 50, 60],
                    "FrameTime": 20,
                    "FrameIncrementPointer": 0x00181063,
                },
                [0, 0.02, 0.04, 0.06],
                None,
            ),
            (
                {
                    "FrameTimeVector": [0, 40, 50, 60],
                    "FrameTime": 20,
                    "FrameIncrementPointer": 0x00181065,
                },
                [0, 0.04, 0.09, 0.15],
                None,
            ),
            (
                {"FrameTime": 20, "CineRate": 25, "FrameIncrementPointer": 0x00180040},
                [0, 0.04, 0.08, 0.12],
                None,
            ),
            ({"CineRate": 25, "FrameIncrementPointer": 0x00181063}, [0, 0.04, 0.08, 0.12], None),
        ],
    )
    def test_of_a_clip(
        self, tmp_path: Path, tags: dict[str, Any], expected: list[float], told: str | None
    ) -> None:
        dataset: Dataset = make(noise(4, 8, 6), **tags)
        path = write(tmp_path / "a.dcm", dataset)
        lines: list[str] = []
        times = [time for time, _ in iterate(path, on_damage=lines.append)]
        assert times == pytest.approx(expected)
        assert [told in line for line in lines] == ([True] if told else []), lines  # type: ignore[operator]
