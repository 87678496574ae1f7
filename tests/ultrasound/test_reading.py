import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import weakref
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import islice, product
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import FULL
from hypothesis import given
from hypothesis import strategies as st
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_dicom import make
from test_dicom import write as write_dicom

from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError
from uscl_zoo.ultrasound import Facts, images, read, video
from uscl_zoo.ultrasound.reading import DamageWarning, find, iterate, natural_key, sample

Frames = NDArray[np.uint8]


def noise(count: int, height: int = 48, width: int = 64) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def write_video(
    path: Path,
    frames: Frames,
    times: Sequence[float] | None = None,
    rate: int = 10,
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    container: str | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """FFV1 of RGB is lossless, so what is read can be compared exactly."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        # MPEG-2 knows no other clock than its frame rate
        stream.codec_context.time_base = Fraction(1, rate if times is None else 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (times[index] if times is not None else index / rate))
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_gif(path: Path, levels: Sequence[int], duration: int | None) -> Path:
    first, *rest = (Image.new("L", (20, 10), level) for level in levels)
    if duration is None:
        first.save(path, save_all=True, append_images=rest)
    else:
        first.save(path, save_all=True, append_images=rest, duration=duration)
    return path


def shades() -> Frames:
    """Smooth in three colours, so that JPEG keeps it."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 2 * (x + y)], axis=-1).astype(np.uint8)


def write_deep_png(path: Path, deep: NDArray[np.uint16]) -> Path:
    """By hand: Pillow writes 16 bits in grey only."""
    height, width, channels = deep.shape
    rows = deep.astype(">u2").reshape(height, -1).view(np.uint8)
    data = zlib.compress(np.insert(rows, 0, 0, axis=1).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    path = path.with_suffix(".png")
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
            for name, part in chunks
        )
    )
    return path


def write_deep_tiff(path: Path, deep: NDArray[np.uint16]) -> Path:
    """By hand, too: one strip of interleaved samples."""
    height, width, channels = deep.shape
    extra = [(338, 3, 1, 2)] if channels == 4 else []
    # tag, type (short or long), how many, value; the bits of each sample follow the tags
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 0), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 0), (277, 3, 1, channels), (278, 4, 1, height)]
    tags += [(279, 4, 1, deep.nbytes), *extra]
    bits = 8 + 2 + 12 * len(tags) + 4
    values = {258: bits, 273: bits + 2 * channels}
    entries = [struct.pack("<HHII", t, kind, n, values.get(t, value)) for t, kind, n, value in tags]
    path = path.with_suffix(".tif")
    path.write_bytes(
        struct.pack("<2sHIH", b"II", 42, 8, len(tags))
        + b"".join(entries)
        + bytes(4)
        + struct.pack(f"<{channels}H", *[16] * channels)
        + deep.astype("<u2").tobytes()
    )
    return path


def pixels(image: Image.Image) -> Frames:
    return np.asarray(image)


class TestVideo:
    def test_every_frame_exactly(self, tmp_path: Path) -> None:
        frames = noise(7)
        path = write_video(tmp_path / "clip.mkv", frames)
        read = list(iterate(path))
        assert [frame.time for frame in read] == pytest.approx([i / 10 for i in range(7)])
        assert all(image.mode == "RGB" for _, image in read)
        assert np.array_equal([pixels(image) for _, image in read], frames)

    @pytest.mark.parametrize("size", [(48, 64), (50, 70)])
    def test_colours_are_those_of_pyav(self, tmp_path: Path, size: tuple[int, int]) -> None:
        clip = write_video(tmp_path / "c.avi", noise(5, *size), codec="mpeg4", pix_fmt="yuv420p")
        with av.open(str(clip)) as container:
            expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert np.array_equal([pixels(image) for _, image in iterate(clip)], expected)
        assert np.array_equal([pixels(image) for _, image in sample(clip, 5)], expected[::2])

    def test_only_what_is_kept_becomes_an_image(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from av.video.reformatter import VideoReformatter

        converted = []

        class Counting:
            def __init__(self) -> None:
                self.own = VideoReformatter()

            def reformat(self, frame: av.VideoFrame, **how: object) -> object:
                converted.append(frame.pts)
                return self.own.reformat(frame, **how)  # type: ignore[arg-type]

        monkeypatch.setattr("av.video.reformatter.VideoReformatter", Counting)
        path = write_video(tmp_path / "clip.mkv", noise(21))
        assert [time for time, _ in sample(path, 2)] == [0, 0.5, 1, 1.5, 2]
        assert len(converted) == 5

    @pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "gray"])
    @pytest.mark.parametrize("size", [(48, 64), (51, 77), (33, 90), (15, 16)])
    def test_frames_without_colour_as_one_channel_of_the_same_levels(
        self, tmp_path: Path, size: tuple[int, int], pix_fmt: str
    ) -> None:
        path = tmp_path / "clip.mkv"
        levels = noise(3, *size)[..., :1].repeat(3, axis=3)
        if pix_fmt != "gray":
            levels[1] = noise(1, *size)[0]
        write_video(path, levels, codec="ffv1", pix_fmt=pix_fmt)
        one = [image for _, image in sample(path, 10, grey=True)]
        # too small a picture cannot show all levels
        grey = "L" if size != (15, 16) else "RGB"
        assert [image.mode for image in one] == [grey, grey if pix_fmt == "gray" else "RGB", grey]
        three = [image for _, image in iterate(path)]
        assert {image.mode for image in three} == {"RGB"}
        assert [pixels(i.convert("RGB")).tolist() for i in one] == [
            pixels(i).tolist() for i in three
        ]
        small = [
            [i.resize((7, 5), Image.Resampling.BILINEAR) for i in some] for some in (one, three)
        ]
        assert [i.convert("RGB").tobytes() for i in small[0]] == [i.tobytes() for i in small[1]]

    def test_times_are_those_of_the_file_counted_from_the_first(self, tmp_path: Path) -> None:
        times = [5.0, 5.04, 5.3, 6.5]
        path = write_video(tmp_path / "clip.mkv", noise(4), times)
        assert [t for t, _ in iterate(path)] == pytest.approx([0, 0.04, 0.3, 1.5], abs=1e-3)

    @pytest.mark.parametrize(
        ("name", "codec", "pix_fmt", "container"),
        [
            ("clip.MP4", "mpeg4", "yuv420p", "mp4"),
            ("clip.mov", "mpeg4", "yuv420p", "mov"),
            ("mp4 inside.avi", "mpeg4", "yuv420p", "mp4"),
            ("clip.avi", "mjpeg", "yuvj444p", "avi"),
            ("clip.mpeg", "mpeg2video", "yuv420p", "mpeg"),
            ("clip.wmv", "wmv2", "yuv420p", "asf"),
            ("clip.webm", "libvpx-vp9", "yuv420p", "webm"),
        ],
    )
    def test_containers(
        self, tmp_path: Path, name: str, codec: str, pix_fmt: str, container: str
    ) -> None:
        levels = np.linspace(40, 200, 12).astype(np.uint8)
        frames = np.broadcast_to(levels[:, None, None, None], (12, 48, 64, 3))
        # PyAV itself would take a name with a colon for a protocol
        plain = write_video(tmp_path / "x", frames, None, 25, codec, pix_fmt, container)
        path = plain.rename(tmp_path / name)
        read = list(iterate(path))
        assert len(read) == 12
        means = [pixels(image).mean() for _, image in read]
        assert means == pytest.approx(levels.tolist(), abs=6)
        assert read[-1].time == pytest.approx(11 / 25, abs=0.01)

    def test_a_name_is_not_a_protocol(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_video(tmp_path / "clip.mkv", noise(2)).rename(tmp_path / "http:clip.mkv")
        monkeypatch.chdir(tmp_path)
        assert len(list(iterate("http:clip.mkv"))) == 2

    def test_turned_upright(self, tmp_path: Path) -> None:
        frame = np.zeros((1, 48, 64, 3), np.uint8)
        frame[:, :16, :16] = 255
        arguments = {"rate": 10, "codec": "mjpeg", "pix_fmt": "yuvj444p"}
        lying = write_video(tmp_path / "a.mp4", frame, **arguments, rotation=90)  # type: ignore[arg-type]
        (_, image), *_ = iterate(lying)
        assert image.size == (48, 64)
        # anticlockwise: the upper left corner comes to the lower left
        assert pixels(image)[-8, 8].mean() > 240
        assert pixels(image)[8, 8].mean() < 15

    def test_frames_are_let_go(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.mkv", noise(40))
        alive: list[weakref.ref[Image.Image]] = []
        most = 0
        for _, image in iterate(path):
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(image)]
            most = max(most, len(alive))
        assert most <= 2

    def test_what_decodes_is_used_and_the_damage_named(self, tmp_path: Path) -> None:
        frames = np.repeat(noise(1, 120, 160), 30, axis=0)
        whole = write_video(tmp_path / "whole.mp4", frames, None, 10, "mjpeg", "yuvj444p")
        data = bytearray(whole.read_bytes())
        middle = len(data) // 2
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(data[:middle] + bytes(len(data) // 5) + data[middle + len(data) // 5 :])
        with pytest.warns(DamageWarning, match=r"broken\.mp4: frames behind 1\.\d s are left out"):
            count = len(list(iterate(broken)))
        # a fifth of thirty, and what it begins and ends in
        assert 30 - 8 <= count <= 30 - 6
        messages: list[str] = []
        assert len(list(sample(broken, 100, on_damage=messages.append))) == count
        assert len(messages) == 1
        assert "\n" not in messages[0]
        # lazily: the damage has not been met yet
        assert next(iterate(broken)).time == 0

    def test_cut_off(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.avi", noise(10), None, 10, "mjpeg", "yuvj444p")
        whole = [pixels(image) for _, image in iterate(path)]
        # without an index, nothing but the length of the last frame can tell
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
        with pytest.warns(
            DamageWarning, match=r"breaks off after \d frames \(a frame is cut off\)"
        ):
            read_frames = [pixels(image) for _, image in iterate(path)]
        assert 3 <= len(read_frames) < 8
        assert np.array_equal(read_frames, whole[: len(read_frames)])

    def test_without_pyav(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_video(tmp_path / "clip.mkv", noise(1))
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'uscl-zoo\[video\]'"):
            list(iterate(path))

    def test_without_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "sound.mp4"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        with pytest.raises(UnreadableError, match="holds no video"):
            list(iterate(path))


class TestImage:
    @pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
    def test_animations(self, tmp_path: Path, suffix: str) -> None:
        path = write_gif(tmp_path / f"clip{suffix}", [10, 90, 200], duration=250)
        read = list(iterate(path))
        assert [frame.time for frame in read] == pytest.approx([0, 0.25, 0.5])
        assert [pixels(image).mean() for _, image in read] == pytest.approx([10, 90, 200], abs=3)

    def test_animation_without_durations(self, tmp_path: Path) -> None:
        path = write_gif(tmp_path / "clip.gif", [10, 90, 200], duration=None)
        assert [frame.time for frame in iterate(path)] == pytest.approx([0, 0.1, 0.2])

    def test_truncated_animation(self, tmp_path: Path) -> None:
        images = [Image.fromarray(pixels) for pixels in noise(8)]
        path = tmp_path / "clip.gif"
        images[0].save(path, save_all=True, append_images=images[1:], duration=100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.warns(DamageWarning, match="breaks off after"):
            assert 3 <= len(list(iterate(path))) <= 6

    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".PNG"])
    def test_stills_exactly(self, tmp_path: Path, suffix: str) -> None:
        still = noise(1)[0]
        Image.fromarray(still).save(tmp_path / f"still{suffix}")
        ((time, image),) = iterate(tmp_path / f"still{suffix}")
        assert time == 0
        assert np.array_equal(pixels(image), still)

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        grey = np.array([[0, 257, 32896, 65535]], np.uint16)
        for name in ("deep.tif", "deep.png"):
            Image.fromarray(grey).save(tmp_path / name)
            ((_, image),) = iterate(tmp_path / name)
            assert pixels(image)[0, :, 1].tolist() == [0, 1, 128, 255]

    @pytest.mark.parametrize(
        ("mode", "suffix"),
        [
            *product(("1", "L", "P", "RGB", "RGBA"), (".png", ".bmp", ".tif", ".webp")),
            *product(("L", "RGB"), (".jpg",)),
        ],
    )
    def test_channels(self, tmp_path: Path, mode: str, suffix: str) -> None:
        image = Image.fromarray(shades()).convert(mode)
        if mode == "RGBA":
            image.putalpha(100)
        image.save(tmp_path / f"a{suffix}", quality=95, lossless=True, exact=True)
        ((_, read_image),) = iterate(tmp_path / f"a{suffix}")
        expected = pixels(image.convert("RGB")).astype(int)
        # alpha is dropped, not blended; only JPEG loses
        assert np.abs(pixels(read_image) - expected).max() <= (5 if suffix == ".jpg" else 0)

    @pytest.mark.parametrize("mode", ["LA", "CMYK", "I;16B"])
    def test_other_modes(self, tmp_path: Path, mode: str) -> None:
        image = Image.fromarray(shades()).convert("L")
        if mode == "I;16B":
            deep = pixels(image).astype(">u2") * 257
            image, name = Image.frombytes(mode, image.size, deep.tobytes()), "a.tif"
        else:
            image, name = image.convert(mode), "a.jpg" if mode == "CMYK" else "a.png"
        image.save(tmp_path / name)
        ((_, read_image),) = iterate(tmp_path / name)
        expected = pixels(Image.fromarray(shades()).convert("L")).astype(int)[..., None]
        assert np.abs(pixels(read_image) - expected).max() <= (5 if mode == "CMYK" else 0)

    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("write", [write_deep_png, write_deep_tiff])
    def test_sixteen_bits_in_colour(
        self, tmp_path: Path, write: Callable[[Path, NDArray[np.uint16]], Path], channels: int
    ) -> None:
        deep = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels), np.uint16)
        ((_, image),) = iterate(write(tmp_path / "deep", deep))
        # Pillow takes the upper byte of each sample
        assert np.array_equal(pixels(image), deep[..., :3] >> 8)

    @pytest.mark.parametrize("content", ["EPS", "PPM", "ICO"])
    def test_formats_that_are_not_meant(self, tmp_path: Path, content: str) -> None:
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png", content)
        with pytest.raises(UnreadableError, match=r"a\.png: cannot be read \(not an image\)"):
            list(iterate(tmp_path / "a.png"))

    def test_an_animation_without_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(images, "_PIXELS_AT_LEAST", 5 * 2**16)
        monkeypatch.setattr(images, "_PIXELS_A_BYTE", 1)
        path = write_gif(tmp_path / "clip.gif", list(range(20)), duration=100)
        with pytest.raises(UnreadableError, match="more pixels than a file of its size should"):
            next(iterate(path))
        # what states no number of frames is counted on the way
        path = write_gif(tmp_path / "clip.tif", list(range(20)), duration=None)
        with pytest.warns(
            DamageWarning, match="breaks off after 5 frames .more pixels than a file"
        ):
            assert len(list(iterate(path))) == 5

    def test_comments_without_end(self, tmp_path: Path) -> None:
        """Pillow would join them one by one, for hours."""
        write_gif(tmp_path / "clip.gif", [1, 2], duration=100)
        data = (tmp_path / "clip.gif").read_bytes()
        comment = b"!\xfe" + (b"\xff" + b"x" * 255) * 80_000 + b"\0"
        (tmp_path / "clip.gif").write_bytes(data[:-1] + comment + b";")
        with pytest.raises(UnreadableError, match="more than 1,048,576 bytes of comments"):
            next(iterate(tmp_path / "clip.gif"))

    def test_camera_orientation(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg", exif=exif)
        ((_, image),) = iterate(tmp_path / "photo.jpg")
        assert image.size == (20, 30)

    def test_pages_have_no_times(self, tmp_path: Path) -> None:
        path = write_gif(tmp_path / "stack.tif", [10, 90, 200], duration=None)
        read = list(iterate(path))
        assert [pixels(image).mean() for _, image in read] == [10, 90, 200]
        assert all(math.isnan(frame.time) for frame in read)
        assert [t for t, _ in iterate(path, frame_rate=4)] == [0, 0.25, 0.5]


class TestRead:
    def test_a_video(self, tmp_path: Path) -> None:
        frames = noise(7)
        clip = read(write_video(tmp_path / "clip.mkv", frames))
        assert np.array_equal(clip.frames, frames)
        assert clip.times == pytest.approx([i / 10 for i in range(7)])
        assert clip.source == tmp_path / "clip.mkv"
        assert clip.facts == Facts(frame_rate=10)

    @pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
    @pytest.mark.parametrize(("duration", "rate"), [(40, 25), (250, 4), (0, None)])
    def test_an_animation(
        self, tmp_path: Path, suffix: str, duration: int, rate: float | None
    ) -> None:
        clip = read(write_gif(tmp_path / f"clip{suffix}", [10, 90, 200], duration))
        assert clip.facts == Facts(frame_rate=rate)
        assert clip.frames.shape == (3, 10, 20, 3)
        assert clip.times == pytest.approx([0, 1 / (rate or 10), 2 / (rate or 10)])

    def test_what_states_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "clip").mkdir()
        for index in range(2):
            Image.new("L", (8, 8)).save(tmp_path / f"clip/f{index}.png")
        clip = read(tmp_path / "clip", frame_rate=4)
        assert clip.facts == read(tmp_path / "clip/f0.png").facts == Facts()
        assert clip.times.tolist() == [0, 0.25]
        assert read(write_gif(tmp_path / "stack.tif", [1, 2], None)).facts == Facts()

    def test_lazily_and_anew_each_time(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.mkv", noise(5))
        clip = read(path)
        assert len(list(clip)) == len(list(clip)) == 5
        path.unlink()
        with pytest.raises(UnreadableError, match="no such file or folder"):
            list(clip)

    def test_what_cannot_be_read_is_said_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(b"nothing")
        with pytest.raises(UnreadableError, match=r"a\.mp4: cannot be read"):
            read(tmp_path / "a.mp4")

    def test_one_line_whatever_the_path(self, tmp_path: Path) -> None:
        path = tmp_path / "a\nb\x1b[31m.png"
        with pytest.raises(UnreadableError) as caught:
            read(path)
        assert str(caught.value) == f"{tmp_path}/a\\nb\\x1b[31m.png: no such file or folder"

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif", "a.tif", "a.webp", "a.mp4"])
    def test_comments_stay_behind(self, tmp_path: Path, name: str) -> None:
        secret, path = "Quorndon^Zephyrine", tmp_path / name
        if name == "a.mp4":
            with av.open(str(path), "w") as output:
                output.metadata["title"] = output.metadata["comment"] = secret
                stream = output.add_stream("mpeg4", rate=10)
                assert isinstance(stream, av.VideoStream)
                frame = av.VideoFrame.from_ndarray(noise(1)[0], format="rgb24")
                stream.height, stream.width = frame.height, frame.width
                output.mux([*stream.encode(frame), *stream.encode(None)])
        else:
            exif = Image.Exif()
            exif[0x010E] = exif[0x013B] = secret
            text = PngInfo()
            text.add_text("Patient", secret)
            image = Image.fromarray(noise(1)[0])
            image.save(path, exif=exif, comment=secret, pnginfo=text, description=secret)
        assert secret.encode() in path.read_bytes()
        clip = read(path)
        everything = (
            pickle.dumps([clip, *clip]) + repr([clip, [vars(f.image) for f in clip]]).encode()
        )
        assert b"Quorndon" not in everything


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "Reg-1_mp4"
        folder.mkdir()
        for index in (0, 1, 2, 10):
            Image.new("L", (8, 8), 10 * index).save(folder / f"Reg-1_mp4_frame{index}.png")
        return folder

    def test_in_natural_order(self, folder: Path) -> None:
        read = list(iterate(folder))
        assert [pixels(image)[0, 0, 0] for _, image in read] == [0, 10, 20, 100]
        assert all(math.isnan(frame.time) for frame in read)

    def test_names_of_which_one_goes_on_with_a_number(self, tmp_path: Path) -> None:
        """Folders, and DICOM files, have no suffix: `scan` beside `scan2`."""
        for name in ("scan10", "scan2", "scan", "scan-1", "2", "IM1", "IM"):
            (tmp_path / name).mkdir()
            Image.new("L", (8, 8)).save(tmp_path / name / "x.png")
        found = [path.parent.name for path in find([tmp_path])]
        assert found == ["2", "IM", "IM1", "scan", "scan2", "scan10", "scan-1"]

    @given(st.lists(st.text("a1 .-é٣²", max_size=5), max_size=6))
    def test_any_names_have_an_order(self, names: list[str]) -> None:
        keys = [natural_key(Path(f"x{name}")) for name in names]
        backwards = keys[::-1]
        backwards.sort()
        assert backwards == sorted(keys)

    def test_times_by_rate(self, folder: Path) -> None:
        assert [t for t, _ in iterate(folder, frame_rate=2)] == [0, 0.5, 1, 1.5]

    def test_taken_whole_unless_a_rate_is_known(self, folder: Path) -> None:
        assert len(list(sample(folder, rate=1))) == 4
        assert len(list(sample(folder, rate=1, frame_rate=2))) == 2

    def test_a_damaged_frame_is_left_out(self, folder: Path) -> None:
        (folder / "Reg-1_mp4_frame1.png").write_bytes(b"nothing")
        with pytest.warns(DamageWarning, match=r"frame1\.png: cannot be read \(not an image\)"):
            read = list(iterate(folder, frame_rate=2))
        # and the others keep their times
        assert [frame.time for frame in read] == [0, 1, 1.5]

    def test_nothing_readable(self, folder: Path) -> None:
        for file in folder.iterdir():
            file.write_bytes(b"nothing")
        with pytest.raises(UnreadableError, match="no image in it can be read"):
            list(iterate(folder))


class TestSample:
    @pytest.mark.parametrize(
        ("fps", "rate", "expected"),
        [
            (30, 3, [0, 10, 20, 30, 40, 50]),
            (30, 7.5, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56]),
            (25, 3, [0, 9, 17, 25, 34, 42, 50, 59]),
            (2, 3, list(range(60))),
        ],
    )
    def test_first_frame_at_or_behind_each_tick(
        self, tmp_path: Path, fps: int, rate: float, expected: list[int]
    ) -> None:
        frames = np.broadcast_to(
            np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 16, 16, 3)
        )
        path = write_video(tmp_path / "clip.mkv", frames, rate=fps)
        assert [int(pixels(image)[0, 0, 0]) for _, image in sample(path, rate)] == expected

    @pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
    @pytest.mark.parametrize("rate", [3, 7.5])
    def test_frames_nobody_wants_need_not_be_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, rate: float
    ) -> None:
        told: list[bool] = []
        consider = video._Thrift.consider

        def spy(self: video._Thrift, packet: object) -> None:
            consider(self, packet)  # type: ignore[arg-type]
            told.append(self.skips)

        monkeypatch.setattr(video._Thrift, "consider", spy)
        moving = np.stack([np.roll(noise(1)[0], i, axis=1) for i in range(75)])
        path = write_video(
            tmp_path / "clip.mkv", moving, None, 25, codec, "yuv420p", options={"bf": "3"}
        )
        whole = list(iterate(path))
        assert not any(told)
        taken = list(sample(path, rate))
        assert sum(told) > 25
        times = [frame.time for frame in taken]
        first = {math.floor((frame.time + 0.001) * rate): frame for frame in whole[::-1]}
        expected = list(first.values())[::-1]
        assert times == [frame.time for frame in expected]
        assert all(
            np.array_equal(pixels(a.image), pixels(b.image))
            for a, b in zip(taken, expected, strict=True)
        )

    def test_a_gap_is_not_made_up_for(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.mkv", noise(6), [0, 0.1, 4.0, 4.1, 4.2, 5.0])
        assert [t for t, _ in sample(path, 1)] == pytest.approx([0, 4, 5])

    @pytest.mark.parametrize("rate", [0, -3, math.nan, math.inf])
    def test_rate_is_checked_at_once(self, tmp_path: Path, rate: float) -> None:
        path = write_gif(tmp_path / "clip.gif", [1, 2], 100)
        with pytest.raises(DataError, match="`rate` should be a number above 0"):
            sample(path, rate)
        with pytest.raises(DataError, match="`frame_rate` should be a number above 0"):
            iterate(path, frame_rate=rate)


class TestFind:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        def image(name: str, side: int = 8) -> None:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (side, side)).save(path)

        for index in range(3):
            image(f"us4/Reg-1_mp4/Reg-1_mp4_frame{index}.jpg")
            image(f"stills/patient_{index}.png", side=8 + index)
            image(f"busi/benign_00{index}.png")
            image(f"busi/benign_00{index}_mask.png")
            image(f"mixed/f{index}.png")
            image(f"nested/f{index}.png")
            image(f"names/{'abc'[index]}{index}.png")
        (tmp_path / "us4/Reg-1_mp4/Thumbs.db").touch()
        image("us4/single/Cov-2_mp4_frame0.jpg")
        (tmp_path / "mixed/clip.AVI").touch()
        (tmp_path / "mixed/notes.txt").touch()
        (tmp_path / "mixed/.hidden.png").touch()
        image(".cache/f1.png")
        image("nested/more/x.png")
        (tmp_path / "videos").mkdir()
        for index in (1, 2, 10):
            (tmp_path / f"videos/v{index}.mp4").touch()
        return tmp_path

    @pytest.mark.parametrize(
        ("folder", "expected"),
        [
            ("us4", ["us4/Reg-1_mp4", "us4/single/Cov-2_mp4_frame0.jpg"]),
            ("us4/Reg-1_mp4", ["us4/Reg-1_mp4"]),
            ("stills", [f"stills/patient_{i}.png" for i in range(3)]),
            ("busi", [f"busi/benign_00{i}.png" for i in range(3)]),
            ("mixed", ["mixed/clip.AVI", "mixed/f0.png", "mixed/f1.png", "mixed/f2.png"]),
            ("nested", ["nested/f0.png", "nested/f1.png", "nested/f2.png", "nested/more/x.png"]),
            ("names", ["names/a0.png", "names/b1.png", "names/c2.png"]),
            ("videos", ["videos/v1.mp4", "videos/v2.mp4", "videos/v10.mp4"]),
        ],
    )
    def test_folders(self, tree: Path, folder: str, expected: list[str]) -> None:
        assert find(tree / folder) == [tree / name for name in expected]

    def test_everything_once_and_nothing_hidden(self, tree: Path) -> None:
        found = find(tree)
        assert len(found) == len(set(found)) == 2 + 3 + 3 + 4 + 4 + 3 + 3
        assert not any(
            part.startswith(".") for path in found for part in path.relative_to(tree).parts
        )

    def test_in_the_order_named_and_each_once(self, tree: Path) -> None:
        video, still = tree / "videos/v10.mp4", tree / "stills/patient_1.png"
        assert find([video, str(still), tree / "videos"])[:2] == [video, still]
        assert len(find([video, tree / "videos", tree / "videos"])) == 3

    def test_rings_of_links_end(self, tree: Path) -> None:
        (tree / "videos/again").symlink_to(tree, target_is_directory=True)
        found = find(tree)
        assert len(found) == 22
        assert not any("again" in path.parts for path in found)

    def test_a_named_file_is_taken_whatever_it_is(self, tree: Path) -> None:
        notes = tree / "mixed/notes.txt"
        assert find(notes) == [notes]
        with pytest.raises(UnreadableError, match=r"notes\.txt: not an image or video by its name"):
            iterate(notes)

    def test_nothing_there(self, tree: Path) -> None:
        with pytest.raises(UnreadableError, match="nowhere: no such file or folder"):
            find(tree / "nowhere")
        with pytest.raises(UnreadableError, match="nowhere: no such file or folder"):
            iterate(tree / "nowhere")
        (tree / "empty").mkdir()
        with pytest.raises(DataError, match="holds no image or video"):
            find(tree / "empty")
        with pytest.raises(UnreadableError, match="holds no images"):
            list(iterate(tree / "empty"))


@pytest.mark.parametrize(
    "name", ["x.mp4", "x.mpeg", "x.avi", "x.gif", "x.png", "x.jpg", "x.tif", "x.webp", "x.bmp"]
)
@pytest.mark.parametrize(
    "content",
    [b"", b"text\n" * 50, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"GIF89a", b"\x89PNG\r\n"],
)
def test_rubbish_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        list(iterate(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "neither a file nor a folder"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.symlink_to("nowhere"), "no such file or folder"),
    ],
)
def test_what_is_neither_file_nor_folder(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    for name in ("a.mp4", "a"):
        path = tmp_path / name
        make(path)
        for call in (iterate, find, read):
            with pytest.raises(UnreadableError, match=f"{name}: {reason}"):
                call(path)
    # and in a folder it does not keep the others from being found
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    assert tmp_path / "b.png" in find(tmp_path)


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Of a video, an animation and DICOM: 20 frames and 120, which are 110 MB."""
    frames = np.random.default_rng(0).integers(0, 256, (20, 480, 640), np.uint8)
    paths = []
    for times in (1, 6):
        long = np.concatenate([frames] * times)
        colour = np.broadcast_to(long[..., None], (*long.shape, 3))
        paths += [
            write_video(tmp_path / f"{times}.avi", colour, None, 10, "mjpeg", "yuvj420p"),
            write_dicom(tmp_path / f"{times}.dcm", make(long)),
        ]
        first, *rest = (Image.fromarray(frame) for frame in long)
        first.save(tmp_path / f"{times}.gif", save_all=True, append_images=rest)
        paths.append(tmp_path / f"{times}.gif")
    reader = Path(__file__).with_name("reader.py")
    told = subprocess.run(
        [sys.executable, reader, str(2**32)],
        # first those that are short, so that libraries have what they need
        input="".join(json.dumps(str(path)) + "\n" for path in paths[:3] + paths),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in told.stdout.splitlines()[1:]]
    assert [answer["frames"] for answer in answers] == [20] * 6 + [120] * 3
    for short, long in zip(answers[3:6], answers[6:], strict=True):
        assert long["bytes"] < short["bytes"] + 20e6, (short, long)


class TestSharedData:
    @pytest.mark.parametrize(
        "name",
        [
            "Cov-Atlas-suspectedCovid.mp4",  # BT.709
            "Reg-NormalLungs.mp4",  # BT.601
            "Reg_liftl_pneucase3_clip1.mp4",  # neither is said
            "Pneu_Avi_Video_004.mp4",  # 4:4:4
            "Reg_Avi_lung-sliding.MP4",
            "Reg_recommendations_alines_mov1.mov",
            "Cov_denault_proposedUS_vid1.mov",  # with sound
            "Reg_northumbria_0409_set3_vid2.avi",  # MPEG-4 part 2
            "Reg_northumbria_1009_vid6.avi",  # MP4 inside, 4:4:4
            "Reg_northumbria_0409_set5_vid2.avi",  # MP4 inside
            "Reg_pat1Image_133410.mpeg",
            "Cov-Atlas+(45).gif",
        ],
    )
    def test_as_ffmpeg_decodes_it(self, data: Path, tmp_path: Path, name: str) -> None:
        """Each pixel and each time, of the first 20 frames."""
        path, count = data / "pocus/videos/convex" / name, 20
        raw = ["-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", str(count), "-f"]
        command = [get_ffmpeg_exe(), "-v", "error", "-copyts", "-i", str(path)]
        command += [*raw, "rawvideo", "-pix_fmt", "rgb24", str(tmp_path / "pixels")]
        command += ["-enc_time_base", "demux", *raw, "framecrc", str(tmp_path / "times")]
        subprocess.run(command, check=True, capture_output=True)
        ours = list(islice(iterate(path), count))
        shape = np.asarray(ours[0].image).shape
        theirs = np.fromfile(tmp_path / "pixels", np.uint8).reshape(-1, *shape)
        assert len(theirs) == len(ours)
        # YUV to RGB may be rounded otherwise in another release of FFmpeg; another matrix, range or
        # place of the chroma makes tens of levels, and a frame too few moves whole pictures
        differences = [
            np.abs(np.asarray(image).astype(int) - frame)
            for (_, image), frame in zip(ours, theirs, strict=True)
        ]
        assert max(difference.max() for difference in differences) <= 3
        told = (tmp_path / "times").read_text()
        base = Fraction(re.findall(r"#tb 0: (.*)", told)[0])
        stamps = [int(line.split(",")[2]) for line in told.splitlines() if line[0] != "#"]
        times = [float((stamp - stamps[0]) * base) for stamp in stamps]
        assert [time for time, _ in ours] == pytest.approx(times, abs=1e-6)

    def test_animations_agree_with_another_decoder(self, data: Path) -> None:
        gifs = sorted((data / "pocus/videos/convex").glob("*.gif"))[:4]
        assert gifs
        for path in gifs:
            ours = [pixels(image).astype(int) for _, image in iterate(path)]
            with av.open(str(path)) as container:
                theirs = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert len(ours) == len(theirs)
            worst = max(np.abs(a - b).mean() for a, b in zip(ours, theirs, strict=True))
            assert worst < 1

    def test_mpeg_counts_what_decodes(self, data: Path) -> None:
        path = data / "pocus/videos/convex/Reg_pat1Image_132943.mpeg"
        with av.open(str(path)) as container:
            assert container.streams.video[0].frames == 0
        times = [time for time, _ in iterate(path)]
        assert len(times) > 100
        sampled = [time for time, _ in sample(path, 3)]
        assert len(sampled) == math.floor(times[-1] * 3) + 1

    @pytest.mark.slow
    def test_all_videos_decode_whole(self, data: Path) -> None:
        videos = find([data / "pocus/videos", data / "vendor_ui"])
        assert len(videos) > 100
        # that all can be read to their end is seen where a store is made of them
        for path in videos if FULL else videos[::5]:
            damage: list[str] = []
            times = [time for time, _ in iterate(path, on_damage=damage.append)]
            assert not damage
            assert times[0] == 0
            assert (np.diff(times) > 0).all(), path


# ------------------------------------------------------------------- numbered files of one folder


@pytest.mark.parametrize("suffix", ["gif", "png", "apng", "webp", "tif"])
@pytest.mark.parametrize("others", [0, 2])
def test_numbered_animations_are_a_clip_each(tmp_path: Path, suffix: str, others: int) -> None:
    """They look like the frames of one clip by name and size, of which all but three were lost."""
    for number in range(3):
        first, *rest = (Image.fromarray(frame) for frame in noise(4 if number >= others else 1))
        first.save(tmp_path / f"p{number}.{suffix}", save_all=True, append_images=rest)
    found = find([tmp_path])
    assert [path.name for path in found] == [f"p{number}.{suffix}" for number in range(3)]
    assert [len(list(iterate(path))) for path in found] == [1] * others + [4] * (3 - others)
    # a person who names the folder itself is told
    with pytest.warns(DamageWarning, match=r"holds several pictures; the first is taken"):
        assert len(list(iterate(tmp_path))) == 3


def test_frames_with_previews_are_one_clip(tmp_path: Path) -> None:
    for number, frame in enumerate(noise(3)):
        small = Image.fromarray(frame[::4, ::4])
        small.encoderinfo = {"tiffinfo": {254: 1}}  # a reduced image
        whole = Image.fromarray(frame)
        whole.save(tmp_path / f"f{number}.tif", save_all=True, append_images=[small])
        with Image.open(tmp_path / f"f{number}.tif") as image:
            assert image.n_frames == 2  # type: ignore[attr-defined]
    assert find([tmp_path]) == [tmp_path]
    assert [len(list(iterate(tmp_path)))] == [3]
