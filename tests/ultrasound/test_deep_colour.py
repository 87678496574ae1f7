"""Colour of 16 bits a sample that holds fewer: shown by those it uses, and said."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from uscl_zoo.errors import UnreadableError
from uscl_zoo.ultrasound.clip import DamageWarning
from uscl_zoo.ultrasound.reading import iterate

Deep = NDArray[np.uint16]


def picture(bits: int, channels: int = 3) -> Deep:
    """A ramp over so many bits, each channel another way."""
    y, x = np.mgrid[:24, :40]
    top = 2**bits - 1
    ramp = np.stack([x * top // 39, y * top // 23, (39 - x) * top // 39], axis=2)
    if channels == 2:
        ramp = ramp[..., :1]
    if channels % 2 == 0:
        ramp = np.concatenate([ramp, np.full((24, 40, 1), 65535)], axis=2)
    return ramp.astype(np.uint16)


def png(pixels: Deep) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    order: str, packed: bool, pages: int = 1, rows: int = 0, alpha: int = 2
) -> Callable[[Deep], bytes]:
    """Pages of one strip, in either order of bytes, deflated or not.

    Args:
        order: of the bytes, `<` or `>`.
        packed: whether they are deflated.
        pages: how many.
        rows: of a strip; 0 for samples pixel by pixel, and no planes.
        alpha: what the fourth sample is: 0 for nothing that is known, 1 if the others are
            multiplied by it, -1 if it is a colour.
    """

    def write(pixels: Deep) -> bytes:
        height, width, channels = pixels.shape
        if rows:
            return planes(pixels)
        content = bytearray({"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4))
        link = 4
        for _ in range(pages):
            data = pixels.astype(f"{order}u2").tobytes()
            data = zlib.compress(data) if packed else data
            bits = len(content)
            content += struct.pack(f"{order}{channels}H", *[16] * channels)
            strip = len(content)
            content += data + bytes(len(data) % 2)
            content[link : link + 4] = struct.pack(f"{order}I", len(content))
            tags = [
                (256, 4, width),
                (257, 4, height),
                (258, 3, None),
                (259, 3, 8 if packed else 1),
                (262, 3, 2),
                (273, 4, strip),
                (277, 3, channels),
                (278, 4, height),
                (279, 4, len(data)),
                *([(338, 3, alpha)] if channels == 4 else []),
            ]
            content += struct.pack(f"{order}H", len(tags))
            for tag, kind, value in tags:
                if value is None:
                    content += struct.pack(f"{order}HHII", tag, kind, channels, bits)
                elif kind == 3:
                    content += struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0)
                else:
                    content += struct.pack(f"{order}HHII", tag, kind, 1, value)
            link = len(content)
            content += bytes(4)
        return bytes(content)

    def planes(pixels: Deep) -> bytes:
        height, width, channels = pixels.shape
        content = bytearray({"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4))
        places, sizes = [], []
        for channel in range(channels):
            for first in range(0, height, rows):
                data = pixels[first : first + rows, :, channel].astype(f"{order}u2").tobytes()
                data = zlib.compress(data) if packed else data
                places.append(len(content))
                sizes.append(len(data))
                content.extend(data + bytes(len(data) % 2))
        tags = {
            256: [width],
            257: [height],
            258: [16] * channels,
            259: [8 if packed else 1],
            262: [2],
            273: places,
            277: [channels],
            278: [rows],
            279: sizes,
            284: [2],
            **({338: [alpha]} if channels == 4 and alpha >= 0 else {}),
        }
        table = struct.pack(f"{order}H", len(tags))
        for tag, values in tags.items():
            data = struct.pack(f"{order}{len(values)}I", *values)
            if len(values) > 1:
                place = len(content)
                content.extend(data)
                data = struct.pack(f"{order}I", place)
            table += struct.pack(f"{order}HHI", tag, 4, len(values)) + data
        content[4:8] = struct.pack(f"{order}I", len(content))
        return bytes(content + table + bytes(4))

    return write


WAYS: dict[str, tuple[str, Callable[[Deep], bytes]]] = {
    "png": (".png", png),
    "tiff, little end first": (".tif", tiff("<", packed=False)),
    "tiff, big end first": (".tif", tiff(">", packed=False)),
    "tiff, deflated": (".tif", tiff("<", packed=True)),
    "tiff, deflated, big end first": (".tif", tiff(">", packed=True)),
    "tiff of two pages": (".tif", tiff("<", packed=True, pages=2)),
    "tiff, nothing known of the fourth": (".tif", tiff("<", packed=False, alpha=0)),
    "tiff, multiplied by alpha": (".tif", tiff(">", packed=True, alpha=1)),
    "tiff of planes": (".tif", tiff("<", packed=False, rows=24)),
    "tiff of planes, big end first": (".tif", tiff(">", packed=False, rows=24)),
    "tiff of planes in strips": (".tif", tiff("<", packed=False, rows=7)),
    "tiff of planes, deflated": (".tif", tiff("<", packed=True, rows=7)),
    "tiff of planes, deflated, big end first": (".tif", tiff(">", packed=True, rows=24)),
}


def read(path: Path) -> tuple[list[NDArray[Any]], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = [np.asarray(frame.image) for frame in iterate(path)]
    return frames, [str(w.message) for w in caught if w.category is DamageWarning]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [6, 8, 10, 12, 15])
def test_dark_colours_are_shown_by_the_bits_they_use(
    way: str, channels: int, bits: int, tmp_path: Path
) -> None:
    suffix, write = WAYS[way]
    path = tmp_path / f"deep{suffix}"
    pixels = picture(bits, channels)
    path.write_bytes(write(pixels))
    frames, told = read(path)
    shown = max(bits, 8)
    expected = np.rint(pixels[..., :3] / (2**shown - 1) * 255).astype(np.uint8)
    for frame in frames:
        assert np.abs(frame.astype(int) - expected).max() <= 1
    assert told == [f"{path}: of 16 bits it uses {shown}, and is shown by these"]


@pytest.mark.parametrize("bits", [6, 8, 12, 15, 16])
def test_grey_with_alpha(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    pixels = picture(bits, 2)
    path.write_bytes(png(pixels))
    frames, told = read(path)
    shown = max(bits, 8)
    expected = np.rint(pixels[..., :1] / (2**shown - 1) * 255).astype(int)
    assert np.abs(frames[0].astype(int) - expected).max() <= 1
    assert len(told) == (bits < 16)


@pytest.mark.parametrize(
    ("way", "channels"),
    [
        *(("png", channels) for channels in (2, 3, 4)),
        *(("tiff, deflated", channels) for channels in (3, 4)),
        *(("tiff of planes in strips", channels) for channels in (3, 4)),
    ],
)
@pytest.mark.parametrize("bits", [12, 16])
def test_ffmpeg_reads_the_same(way: str, bits: int, channels: int, tmp_path: Path) -> None:
    suffix, write = WAYS[way]
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(write(picture(bits, channels)))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        if channels == 2:
            # as it was decoded, grey and alpha in turn: made grey by swscale, some pixel of some
            # runs has its highest bit set
            assert frame.format.name == "ya16be"
            row = frame.planes[0].line_size // 2
            plane = np.frombuffer(bytes(frame.planes[0]), ">u2").reshape(-1, row)
            judged = plane[:24, : 2 * 40 : 2]
        else:
            judged = frame.to_ndarray(format="rgb48le")
    judged = judged.reshape(24, 40, -1) / (2**bits - 1) * 255
    assert np.abs(read(path)[0][0] - judged).max() <= 1.5


def test_planes_of_other_colours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    content = bytearray(tiff("<", packed=False, rows=24, alpha=-1)(picture(12, 4)))
    (table,) = struct.unpack("<I", content[4:8])
    # PhotometricInterpretation is the fifth of the tags: cyan, magenta, yellow and black
    content[table + 2 + 12 * 4 + 8] = 5
    path.write_bytes(bytes(content))
    with pytest.raises(UnreadableError, match="planes of 16 bits that are not red, green and blue"):
        read(path)


def test_an_animation_that_cannot_be_put_together_says_so(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    still = png(picture(12))
    at = still.index(b"IDAT") - 4
    data = still[at + 8 : still.index(b"IEND") - 8]

    def chunk(kind: bytes, body: bytes) -> bytes:
        body = kind + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    def control(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 40, 24, 0, 0, 1, 10, 0, 0))

    second = chunk(b"fdAT", struct.pack(">I", 2) + data)
    path.write_bytes(
        still[:at]
        + chunk(b"acTL", struct.pack(">II", 2, 0))
        + control(0)
        + still[at:-12]
        + control(1)
        + second
        + still[-12:]
    )
    frames, told = read(path)
    assert len(frames) == 1
    assert "breaks off after 1 frames (an animation of 16 bits" in told[-1]


@pytest.mark.parametrize("way", WAYS)
def test_others_are_as_they_were(way: str, tmp_path: Path) -> None:
    suffix, write = WAYS[way]
    path = tmp_path / f"deep{suffix}"
    for pixels in (picture(16), np.zeros((24, 40, 3), np.uint16)):
        path.write_bytes(write(pixels))
        frames, told = read(path)
        for frame in frames:
            assert np.abs(frame.astype(int) - (pixels >> 8)).max() <= 1
        assert told == []
