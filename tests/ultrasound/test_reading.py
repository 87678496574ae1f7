import math
import sys
import weakref
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError
from uscl_zoo.ultrasound.reading import DamageWarning, find, iterate, sample

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
) -> Path:
    """FFV1 of RGB is lossless, so what is read can be compared exactly."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
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
        with pytest.warns(DamageWarning, match=r"broken\.mp4: breaks off after \d+ frames"):
            count = len(list(iterate(broken)))
        assert 5 < count <= 15
        messages: list[str] = []
        assert len(list(sample(broken, 100, on_damage=messages.append))) == count
        assert len(messages) == 1
        assert "\n" not in messages[0]
        # lazily: the damage has not been met yet
        assert next(iterate(broken)).time == 0

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

    def test_a_gap_is_not_made_up_for(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "clip.mkv", noise(6), [0, 0.1, 4.0, 4.1, 4.2, 5.0])
        assert [t for t, _ in sample(path, 1)] == pytest.approx([0, 4, 5])

    @pytest.mark.parametrize("rate", [0, -3, math.nan, math.inf])
    def test_rate_is_checked_at_once(self, tmp_path: Path, rate: float) -> None:
        path = write_gif(tmp_path / "clip.gif", [1, 2], 100)
        with pytest.raises(DataError, match="rate should be a positive number"):
            sample(path, rate)
        with pytest.raises(DataError, match="frame_rate should be a positive number"):
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
            ("busi", [f"busi/benign_00{i}{mask}.png" for i in range(3) for mask in ("", "_mask")]),
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
        assert len(found) == len(set(found)) == 2 + 3 + 6 + 4 + 4 + 3 + 3
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
        assert len(found) == 25
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


class TestSharedData:
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
        for path in videos:
            damage: list[str] = []
            times = [time for time, _ in iterate(path, on_damage=damage.append)]
            assert not damage
            assert times[0] == 0
            assert (np.diff(times) > 0).all(), path
