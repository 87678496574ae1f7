"""Colours of 16 bits a sample in PNG and TIFF, which Pillow cuts to their upper 8.

What it can decode twice, each time another half of the samples, is put together again; the planes
of a TIFF are read one by one, as the pictures in grey that they are.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import quietly

Deep = NDArray[np.uint16]

#: Formats whose samples may have 16 bits in colour.
FORMATS = frozenset({"PNG", "TIFF"})

# Orders of the bytes of a sample, as Pillow names them, and the other; N is this machine's.
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
# Of TIFF.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 273, 279, 324, 325
_FILL_ORDER, _ROWS, _PLANES, _PREDICTOR = 266, 278, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _FORMAT = 322, 323, 339
_GREY = 1
# Tags of a page that are those of each of its planes; all hold one number.
_KEPT = (_WIDTH, _HEIGHT, _COMPRESSION, _FILL_ORDER, _ROWS, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT)


def has_planes(page: Image.Image) -> bool:
    """Whether a page of a TIFF has its samples, of 16 bits, in a plane a channel.

    Without compression Pillow reads such planes as if they were of 8 bits.
    """
    tags = getattr(page, "tag_v2", {})
    bits = tags.get(_BITS) or (1,)
    return page.format == "TIFF" and tags.get(_PLANES) == 2 and len(bits) > 1 and max(bits) > 8


#: Opens a page of a file once more.
Again = Callable[[], AbstractContextManager[Any]]


def of_planes(again: Again) -> Deep:
    """The red, green and blue planes of a page, (H, W, 3).

    Args:
        again: opens it.

    Raises:
        ValueError: if they are of another kind.
    """
    with again() as page:
        return _of_planes(page)


def _of_planes(page: Any) -> Deep:
    tags = page.tag_v2
    bits, kind = tags.get(_BITS), tags.get(_FORMAT, (1,))
    if set(bits) != {16} or set(kind) != {1} or tags.get(_PHOTOMETRIC) != 2:
        raise ValueError("planes of samples that are not red, green and blue of 16 bits")
    tiled = _TILES in tags
    places, sizes = (
        tags[key] for key in ((_TILES, _TILE_SIZES) if tiled else (_STRIPS, _STRIP_SIZES))
    )
    each = len(places) // len(bits)
    if not each or len(places) != len(sizes) or len(places) % len(bits):
        raise ValueError("planes of different numbers of strips")
    numbers = {key: tags[key] for key in _KEPT if key in tags}
    planes = []
    for first in range(0, 3 * each, each):
        part = slice(first, first + each)
        planes.append(_read(_as_grey(page, numbers, tiled, places[part], sizes[part])))
    return np.stack(planes, axis=2)


def _read(content: bytes) -> Deep:
    with quietly(lambda: Image.open(BytesIO(content), formats=("TIFF",))) as image:
        return np.asarray(image).astype(np.uint16)


def _as_grey(
    page: Any,
    numbers: dict[int, int],
    tiled: bool,
    places: tuple[int, ...],
    sizes: tuple[int, ...],
) -> bytes:
    """One plane as a TIFF of its own, its strips or tiles as they are."""
    stream, order = page.fp, page.tag_v2.prefix
    ends = {b"II": "<", b"MM": ">"}[order]
    content = bytearray(order + struct.pack(f"{ends}HI", 42, 0))
    moved = []
    for place, size in zip(places, sizes, strict=True):
        moved.append(len(content))
        stream.seek(place)
        data = stream.read(size)
        content += data + bytes(len(data) % 2)
    entries: dict[int, tuple[int, ...]] = {key: (value,) for key, value in numbers.items()}
    entries |= {_BITS: (16,), _PHOTOMETRIC: (_GREY,), _SAMPLES: (1,)}
    keys = (_TILES, _TILE_SIZES) if tiled else (_STRIPS, _STRIP_SIZES)
    entries |= dict(zip(keys, (tuple(moved), sizes), strict=True))
    rows = []
    for key, values in sorted(entries.items()):
        packed = struct.pack(f"{ends}{len(values)}I", *values)
        if len(values) > 1:
            where = len(content)
            content += packed
            packed = struct.pack(f"{ends}I", where)
        rows.append(struct.pack(f"{ends}HHI", key, 4, len(values)) + packed)
    content[4:8] = struct.pack(f"{ends}I", len(content))
    content += struct.pack(f"{ends}H", len(rows)) + b"".join(rows) + bytes(4)
    return bytes(content)


def of_halves(page: Image.Image, again: Again) -> Deep | None:
    """The colours of a page whose upper halves Pillow has decoded.

    Args:
        page: decoded.
        again: opens the same page of the same file once more, to have other halves decoded.

    Returns:
        (H, W, 3); None if the page has no more than 8 bits.

    Raises:
        ValueError: if the lower halves cannot be had.
    """
    with again() as image:
        kinds = {_kind(tile) for tile in image.tile}
    if not kinds or not all(order in _SWAPPED for _, order in kinds):
        return None
    name, order = kinds.pop()
    if kinds or image.size != page.size or name not in ("LA", "RGB", "RGBA", "RGBX", "RGBa"):
        raise ValueError(f"16 bits a sample of {name}")
    if page.tell() and page.format == "PNG":
        # a frame that changes a part of the one before it has the upper halves of the rest
        raise ValueError("an animation of 16 bits a sample that uses few of them")

    def decoded(raw: str) -> NDArray[np.uint8]:
        with again() as image:
            image.tile = [_with_raw(tile, raw) for tile in image.tile]
            image.load()
            values: NDArray[np.uint8] = np.asarray(image)
            return values

    if name == "LA":
        # two bytes of grey and two of alpha are one pixel of four bytes
        pairs = decoded("RGBA")
        upper, lower = pairs[..., :1], pairs[..., 1:2]
    else:
        # by alpha that is premultiplied Pillow would divide each half for itself
        raw = name.replace("RGBa", "RGBA")
        upper, lower = (decoded(f"{raw};{one}")[..., :3] for one in (order, _SWAPPED[order]))
    deep: Deep = upper.astype(np.uint16) * 256 + lower
    return np.broadcast_to(deep, (*deep.shape[:2], 3))


def _kind(tile: Any) -> tuple[str, str]:
    """What is unpacked, and the order of its bytes."""
    given = tile[3]
    name, _, order = str(given if isinstance(given, str) else given[0]).partition(";")
    return name, order


def _with_raw(tile: Any, raw: str) -> Any:
    """A tile that is to be unpacked as something else."""
    kind, box, offset, given = tile[:4]
    # Pillow's own since 11.1, a plain tuple before
    make: Any = getattr(tile, "_make", tuple)
    return make((kind, box, offset, raw if isinstance(given, str) else (raw, *given[1:])))
