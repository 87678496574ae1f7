"""Colour of 16 bits a sample that holds fewer: shown by those it uses, and said."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from uscl_zoo.ultrasound.clip import DamageWarning
from uscl_zoo.ultrasound.reading import iterate

Deep = NDArray[np.uint16]


def picture(bits: int, channels: int = 3) -> Deep:
    """A ramp over so many bits, each channel another way."""
    y, x = np.mgrid[:24, :40]
    top = 2**bits - 1
    ramp = np.stack([x * top // 39, y * top // 23, (39 - x) * top // 39], axis=2)
    if channels == 4:
        ramp = np.concatenate([ramp, np.full((24, 40, 1), 65535)], axis=2)
    return ramp.astype(np.uint16)


def png(pixels: Deep) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(order: str, packed: bool, pages: int = 1) -> Callable[[Deep], bytes]:
    """Pages of one strip, in either order of bytes, deflated or not."""

    def write(pixels: Deep) -> bytes:
        height, width, channels = pixels.shape
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
                *([(338, 3, 2)] if channels == 4 else []),
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

    return write


WAYS: dict[str, tuple[str, Callable[[Deep], bytes]]] = {
    "png": (".png", png),
    "tiff, little end first": (".tif", tiff("<", packed=False)),
    "tiff, big end first": (".tif", tiff(">", packed=False)),
    "tiff, deflated": (".tif", tiff("<", packed=True)),
    "tiff, deflated, big end first": (".tif", tiff(">", packed=True)),
    "tiff of two pages": (".tif", tiff("<", packed=True, pages=2)),
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
