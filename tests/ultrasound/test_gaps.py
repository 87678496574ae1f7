"""Videos that are damaged in the middle: what is before and after is kept, and the gap is said."""

from __future__ import annotations

import io
import re
import subprocess
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from uscl_zoo.errors import UnreadableError
from uscl_zoo.ultrasound.clip import DamageWarning
from uscl_zoo.ultrasound.reading import iterate, sample

FRAMES, RATE, GROUP = 40, 10, 8
#: By the codec: the container, and whether each packet is a picture by itself.
CODECS = {
    "mjpeg": (".avi", True),
    "png": (".mov", True),
    "libx264": (".mp4", False),
    "mpeg4": (".avi", False),
}


def write(path: Path, codec: str, rate: int = RATE) -> None:
    """Forty frames, each of a grey of its own, with noise that is costly to predict."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height = 64, 48
        pixels = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = GROUP
        for i in range(FRAMES):
            grey = rng.integers(0, 30, (48, 64, 1)) + 20 + 5 * i
            frame = np.repeat(grey, 3, axis=2).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def spoil(path: Path, *numbers: int) -> None:
    """Overwrite packets, by their place in the order of decoding."""
    with av.open(str(path)) as container:
        places = [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for number in numbers:
        position, size = places[number]
        # of Matroska and the like, a few bytes of header come first
        start = position + min(16, size // 4)
        content[start : position + size] = bytes(position + size - start)
    path.write_bytes(content)


def spoil_half(path: Path, number: int) -> None:
    """Overwrite the second half of a packet, of which the decoder paints over what it lacks."""
    with av.open(str(path)) as container:
        places = [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]
    position, size = places[number]
    content = bytearray(path.read_bytes())
    content[position + size // 2 : position + size] = bytes(size - size // 2)
    path.write_bytes(content)


def without(path: Path, number: int) -> None:
    """Copy a video, but for a packet."""
    whole = path.with_stem("whole")
    path.rename(whole)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(video=0)):
            if i != number and packet.size:
                packet.stream = stream
                target.mux(packet)


def read(path: Path, threads: int = 1, rate: int = RATE) -> tuple[dict[int, float], list[str]]:
    """The grey of each frame by its number, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = {
            round(frame.time * rate): float(np.asarray(frame.image).mean())
            for frame in iterate(path, threads=threads)
        }
    return frames, [str(w.message) for w in caught if w.category is DamageWarning]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_is_before_and_after_is_kept(codec: str, threads: int, tmp_path: Path) -> None:
    suffix, alone = CODECS[codec]
    path = tmp_path / f"clip{suffix}"
    write(path, codec)
    whole, told = read(path)
    assert len(whole) == FRAMES and not told
    spoil(path, 18, 19)
    found, told = read(path, threads)
    lost = sorted(set(whole) - set(found))
    # up to the next picture that is predicted from no other
    assert len(lost) <= (2 if alone else 2 * GROUP + 2), lost
    assert set(range(2 * GROUP - 2)) <= set(found)
    assert set(range(4 * GROUP, FRAMES)) <= set(found)
    if lost:
        assert len(told) == 1 and f"clip{suffix}: frames behind " in told[0], told
        assert "are left out (" in told[0]
    for number in (*range(2 * GROUP - 2), *range(4 * GROUP, FRAMES)):
        assert found[number] == pytest.approx(whole[number], abs=3)


#: What FFmpeg paints over, with a flag on the frame.
PAINTED = {
    "mpeg1video": ".mkv",
    "mpeg2video": ".mkv",
    "libx264": ".mp4",
    "mpeg4": ".mp4",
    "msmpeg4v3": ".avi",
    "flv": ".flv",
}


@pytest.mark.parametrize("codec", PAINTED)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_decoder_paints_over_is_left_out_and_said(
    codec: str, threads: int, tmp_path: Path
) -> None:
    path = tmp_path / f"clip{PAINTED[codec]}"
    write(path, codec, rate=25)
    whole, told = read(path, rate=25)
    assert len(whole) >= FRAMES - 1 and not told
    spoil_half(path, 18)
    found, told = read(path, threads, rate=25)
    lost = set(whole) - set(found)
    assert 0 < len(lost) <= 2 * GROUP + 2
    assert any("clip" in line and "are left out (" in line for line in told), told
    for number in found:
        assert found[number] == pytest.approx(whole[number], abs=3)


@pytest.mark.parametrize(
    ("codec", "suffix", "how"),
    [
        *(
            (codec, suffix, how)
            for codec, suffix in (
                ("mpeg1video", ".mkv"),
                ("mpeg2video", ".mkv"),
                ("mpeg2video", ".ts"),
            )
            for how in ("no slices", "no packet")
        ),
        # of a picture of HEVC without its slices nothing tells
        ("libx265", ".mp4", "no packet"),
    ],
)
def test_frames_that_do_not_come_are_missed(
    codec: str, suffix: str, how: str, tmp_path: Path
) -> None:
    path = tmp_path / f"clip{suffix}"
    write(path, codec, rate=25)
    whole, told = read(path, rate=25)
    assert not told
    if how == "no packet":
        without(path, 19)
    elif codec == "libx265":
        # what a picture of HEVC without its slices is, nothing says
        return
    else:
        spoil(path, 19)
    found, told = read(path, rate=25)
    assert len(found) < len(whole)
    assert any(
        re.search(r"clip\.\w+: frames are missing behind 0\.[678] s", one) for one in told
    ), told
    for number in found:
        assert found[number] == pytest.approx(whole[number], abs=3)


def test_frames_that_nobody_wants_are_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write(path, "mpeg2video", rate=25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(sample(path, 3.0))) == 5


def test_many_gaps_are_counted_and_the_last_may_be_the_end(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write(path, "mjpeg")
    spoil(path, *range(3, 36, 4), 38, 39)
    found, told = read(path)
    assert len(found) == FRAMES - 11
    assert "0.2 s, 0.6 s, 1.0 s, 1.4 s, 1.8 s and 4 more times" in told[0]
    assert "breaks off after" in told[1]


def test_samples_go_on_behind_a_gap(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, "libx264")
    spoil(path, 18, 19)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamageWarning)
        times = [frame.time for frame in sample(path, 2.0)]
    assert times[-1] > 3 and times[0] == 0


# ------------------------------------------------------------------- progressive JPEG in containers


def progressive(side: int, scans: int) -> bytes:
    """A JPEG of many scans, of nothing: each goes over the picture again."""
    stream = io.BytesIO()
    Image.new("L", (side, side), 100).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + content[-2:]


@pytest.mark.parametrize("suffix", [".avi", ".tif"])
def test_a_progressive_jpeg_of_a_thousand_scans(suffix: str, tmp_path: Path) -> None:
    heavy = progressive(5700, 1000)
    path = tmp_path / f"heavy{suffix}"
    if suffix == ".tif":
        path.write_bytes(as_tiff(heavy, 5700))
    else:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 5700, 5700, "yuvj420p"
            for i in range(2):
                packet = av.Packet(heavy)
                packet.stream, packet.pts, packet.dts = stream, i, i
                packet.time_base = Fraction(1)
                container.mux(packet)
    with pytest.raises(UnreadableError, match="a progressive JPEG of 5700 x 5700 pixels in 10"):
        list(iterate(path))
    # of few scans it is read
    light = progressive(64, 2)
    if suffix == ".tif":
        path.write_bytes(as_tiff(light, 64))
        assert len(list(iterate(path))) == 1


def as_tiff(jpeg: bytes, side: int) -> bytes:
    """A page of one strip that is a JPEG."""
    tags = [
        (256, 4, side),
        (257, 4, side),
        (258, 3, 8),
        (259, 3, 7),
        (262, 3, 1),
        (273, 4, 8 + 2 + 9 * 12 + 4),
        (277, 3, 1),
        (278, 4, side),
        (279, 4, len(jpeg)),
    ]
    entries = b"".join(
        tag.to_bytes(2, "little")
        + kind.to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + value.to_bytes(4, "little")
        for tag, kind, value in tags
    )
    head = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    return head + entries + bytes(4) + jpeg


# -------------------------------------------------------------------------------- sums of FFV1


def write_ffv1(path: Path, *options: str) -> None:
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=2"]
    command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, "-c:v", "ffv1", *options, str(path)]
    subprocess.run(command, check=True)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".mkv", ["-level", "3", "-g", "1"]),
        (".avi", ["-level", "3", "-g", "5", "-slices", "9"]),
        (".mov", ["-level", "4", "-strict", "-2", "-g", "1"]),
    ],
)
def test_slices_that_are_not_as_they_were_written(
    suffix: str, options: list[str], tmp_path: Path
) -> None:
    path = tmp_path / f"clip{suffix}"
    write_ffv1(path, *options)
    whole, told = read(path)
    assert len(whole) == 20 and not told
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)]
    content = path.read_bytes()
    at = content.index(packets[7])
    changed = bytearray(content)
    changed[at + len(packets[7]) // 2] ^= 4
    path.write_bytes(changed)
    found, (told_once,) = read(path)
    assert "frames behind 0.6 s are left out (a slice that is not as it was written)" in told_once
    # to the next that is predicted from no other
    assert sorted(set(whole) - set(found)) == ([7, 8, 9] if "5" in options else [7])
    assert all(found[number] == whole[number] for number in found)


@pytest.mark.parametrize("options", [["-level", "1"], ["-level", "3", "-slicecrc", "0"]])
def test_streams_without_sums_are_read(options: list[str], tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_ffv1(path, *options)
    assert len(read(path)[0]) == 20 and not read(path)[1]
