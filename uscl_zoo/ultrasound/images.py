"""Stills and animations, by Pillow."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from ..errors import MissingDependencyError, UnreadableError, quietly, reason
from ..files import open_file
from . import deep, jpeg
from .clip import MAX_PIXELS, Facts, Frame, OnDamage, Wanted
from .rgb import in_use, to_frame

#: Suffixes, whether they move or not; compared without case.
SUFFIXES = frozenset(
    {
        *(".apng", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".jfif", ".jpe", ".jpeg"),
        *(".jpg", ".png", ".tif", ".tiff", ".webp"),
    }
)

# What a file may be, whatever its name; Pillow would also start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

#: How a file of a phone says that it is HEIC, at its fifth byte.
HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"))
_TIMED = frozenset({"GIF", "PNG", "WEBP"})

# Seconds a frame of an animation lasts that states none, as web browsers have it.
_UNSTATED_DURATION = 0.1

# A small file can hold endless changes of one pixel on a wide canvas. Ultrasound as GIF has one or
# two pixels a byte. What has more than twenty is let go on for 2**29 pixels, a minute of 640 x 480;
# a frame counts as 256 x 256, however small it is.
_PIXELS_A_BYTE = 20
_PIXELS_AT_LEAST = 2**29
_PIXELS_A_FRAME = 2**16

# Bytes of comments in a GIF, which Pillow joins one by one.
_MOST_TEXT = 2**20

# TIFF: what kind of page it is, and whether its values are of darkness.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 258, 259, 262
# Where strips and tiles are, and their sizes; both kinds of JPEG.
_PLACES, _SIZES, _OF_JPEG = (273, 324), (279, 325), (6, 7)
_REDUCED_OR_MASK = 1 | 4


def iterate(
    path: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    """Decode a still, or an animation or stack of pages; see `reading.iterate`."""
    shown, index, lost = 0.0, 0, 0
    try:
        with _open(path) as image:
            moves = _moves(image)
            left = max(_PIXELS_AT_LEAST, _PIXELS_A_BYTE * path.stat().st_size)
            pages = _pages(image) if moves else iter((image,))
            levels = _Levels()
            while (page := quietly(lambda: next(pages, None))) is not None:
                _check(page)
                _check_strips(page)
                left -= max(page.width * page.height, _PIXELS_A_FRAME)
                if left < 0 and moves:
                    raise ValueError(
                        "more pixels than a file of its size should hold; a video has no such bound"
                    )
                time = 0.0
                if image.format in _TIMED:
                    time = shown
                elif moves:  # pages of a TIFF have no times
                    time = (index + lost) / frame_rate if frame_rate else math.nan
                # what cannot be decoded shows here, wanted or not
                try:
                    quietly(page.load)
                except Exception:
                    # each page of a TIFF stands alone; other frames are changes of the one before
                    if not moves or image.format != "TIFF":
                        raise
                    lost += 1
                    continue
                if wanted(time):
                    frame = _upright(page, levels, lambda: _deep(path, page))
                    if levels.note:
                        on_damage(f"{path}: {levels.note}")
                        levels.note = None
                    yield Frame(time, frame)
                shown += _duration(page) or _UNSTATED_DURATION
                index += 1
            if moves and lost and not index:
                raise ValueError("none of its pages can be decoded")
    except MissingDependencyError:
        raise
    # Pillow raises whatever a damaged byte leads to
    except Exception as error:
        if not index:
            raise UnreadableError(f"{path}: cannot be read ({reason(error)})") from error
        on_damage(f"{path}: breaks off after {index} frames ({reason(error)})")
    if lost:
        on_damage(f"{path}: {lost} of {index + lost} pages are damaged, and left out")


def _pages(image: Image.Image) -> Iterator[Image.Image]:
    """The pictures that are to be shown: neither previews and masks, nor what stands in for them.

    An APNG may begin with a picture for those who cannot show the animation.
    """
    pages: Iterator[Image.Image] = iter(ImageSequence.Iterator(image))
    if image.format == "PNG" and getattr(image, "default_image", False):
        pages = islice(pages, 1, None)
    for page in pages:
        if not int(_tag(page, _SUBFILE) or 0) & _REDUCED_OR_MASK:
            yield page
        if image.format == "GIF":
            # Pillow would take away the next picture as it does this one, if that does not say how
            image.disposal_method = 0  # type: ignore[attr-defined]


def _tag(page: Image.Image, number: int) -> int | None:
    """The first value of a tag of a TIFF."""
    value = getattr(page, "tag_v2", {}).get(number)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return value if isinstance(value, int) else None


class _Levels:
    """Gives grey of more than 8 bits the range it should be shown in.

    Attributes:
        note: what was detected, in a line, to be reported and cleared.
    """

    def __init__(self) -> None:
        self.note: str | None = None
        self._top = 0
        self._shallow = False

    def colour(self, upper: Image.Image, whole: Callable[[], Any]) -> Image.Image:
        """An image in colour, as it is, or widened where it is a dark one of 16 bits a sample.

        Args:
            upper: the upper 8 bits.
            whole: gives all 16, uint16 (H, W, 3), or None if there are no more than 8.
        """
        if upper.mode not in ("RGB", "RGBA") or upper.format not in deep.FORMATS:
            if deep.has_planes(upper):
                raise ValueError("planes of 16 bits that are not red, green and blue")
            return upper
        misread = deep.has_planes(upper)
        if not misread:
            bright = not self._top and np.asarray(upper.convert("RGB")).max() >= 128
            # one range for all pages
            self._shallow = self._shallow or bool(bright)
            if self._shallow:
                return upper
        values = whole()
        if values is None:
            self._shallow = True
            return upper
        top, note = in_use(int(values.max()))
        if not self._top and note and not self._shallow:
            self._top, self.note = top, note
        if not self._top and not misread:
            return upper
        top = self._top or 65535
        scaled = (np.minimum(values, top).astype(np.uint32) * 255 + top // 2) // top
        return Image.fromarray(scaled.astype(np.uint8))

    def __call__(self, page: Image.Image, image: Image.Image) -> Image.Image | NDArray[np.uint16]:
        """Of a page the image that was made upright, as it is or with its range widened."""
        if image.mode not in ("I", "I;16", "I;16B", "I;16L"):
            return image
        bits = min(_tag(page, _BITS) or 16, 16)
        values = np.asarray(image)
        if bits <= 8 or not values.size or values.min() < 0 or values.max() >= 2**bits:
            return image
        if _tag(page, _PHOTOMETRIC) == 0 and image.mode != "I":
            # Pillow turns darkness into brightness for 8 bits only
            values = 2**bits - 1 - values.astype(np.int32)
        highest = int(values.max())
        if not self._top:
            # one range for all pages, and no picture that is almost black
            self._top, self.note = in_use(highest, bits)
        scaled = values.astype(np.float64) / self._top * 65535
        widened: NDArray[np.uint16] = np.rint(scaled.clip(0, 65535)).astype(np.uint16)
        return widened


def facts(path: Path) -> Facts:
    """The frame rate of an animation, if its first frame states how long it lasts."""
    try:
        with _open(path) as image:
            duration = quietly(lambda: _stated_duration(image))
    except Exception:  # as above; its first frame could be decoded
        return Facts()
    return Facts(frame_rate=1 / duration if duration else None)


def layout(path: Path) -> tuple[int, int, bool] | None:
    """Width, height, and whether it holds several pictures; None if the file is no image."""
    try:
        with _open(path, checked=False) as image:
            return *image.size, _moves(image) and len(list(islice(_pages(image), 2))) > 1
    except Exception:  # as above
        return None


@contextmanager
def _open(path: Path, checked: bool = True) -> Iterator[Image.Image]:
    with open_file(path) as stream:
        head = stream.read(16)
        formats: tuple[str, ...] = _FORMATS
        if head[4:12].startswith(HEIC):
            formats = ("HEIF",)
            _prepare_heic(path)
        elif checked:
            _check_work(stream, head)
        stream.seek(0)
        try:
            image = quietly(lambda: Image.open(stream, formats=formats))
        except Image.DecompressionBombError as error:
            raise ValueError(f"many more pixels than the {MAX_PIXELS:,} that are read") from error
        with image:
            yield image


def _prepare_heic(path: Path) -> None:
    if not importlib.util.find_spec("pi_heif"):
        raise MissingDependencyError(
            f"{path}: reading HEIC needs pi-heif; install it by: pip install 'uscl-zoo[heic]'"
        )
    from pi_heif import register_heif_opener

    register_heif_opener()


def _check_work(stream: BinaryIO, head: bytes) -> None:
    """Refuse, before any is decoded, what is small to send and long to decode."""
    if head.startswith(jpeg.STARTS[0]):
        stream.seek(0)
        with suppress(jpeg.UnknownError):  # Pillow says what is wrong with it
            jpeg.check_work(jpeg.describe(stream.read()))
    elif head.startswith(b"GIF8"):
        _check_gif(stream)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        # some releases of Pillow ask for the memory of all of it before they look at its size
        stream.seek(0)
        width, height = _canvas_of_webp(stream.read(30))
        if width * height > 2 * MAX_PIXELS:
            raise ValueError(f"many more pixels than the {MAX_PIXELS:,} that are read")


def _canvas_of_webp(head: bytes) -> tuple[int, int]:
    """Width and height by the first 30 bytes, (0, 0) where they do not say."""

    def number(start: int, end: int) -> int:
        return int.from_bytes(head[start:end], "little")

    kind = head[12:16]
    if kind == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if kind == b"VP8L":
        return (number(21, 25) & 0x3FFF) + 1, (number(21, 25) >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF
    return 0, 0


def _check_gif(stream: BinaryIO) -> None:
    size = stream.seek(0, os.SEEK_END)
    most = max(_PIXELS_AT_LEAST, _PIXELS_A_BYTE * size)
    stream.seek(6)
    screen = stream.read(7)
    if len(screen) < 7:
        return
    area = max(int.from_bytes(screen[:2], "little") * int.from_bytes(screen[2:4], "little"), 1)
    _skip_colours(stream, screen[4])
    pixels = text = 0
    while kind := stream.read(1):
        if kind == b"!":
            label = stream.read(1)
            held = _skip_blocks(stream)
            text += held if label in (b"\xfe", b"\xff", b"\x01") else 0
        elif kind == b",":
            place = stream.read(9)
            if len(place) < 9:
                return
            _skip_colours(stream, place[8])
            stream.read(1)
            _skip_blocks(stream)
            pixels += max(area, _PIXELS_A_FRAME)
        elif kind == b";":
            return
        if pixels > most:
            raise ValueError(
                "more pixels than a file of its size should hold; a video has no such bound"
            )
        if text > _MOST_TEXT:
            raise ValueError(f"more than {_MOST_TEXT:,} bytes of comments")


def _skip_colours(stream: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        stream.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def _skip_blocks(stream: BinaryIO) -> int:
    """Bytes in the blocks that follow, up to the empty one."""
    held = 0
    while length := stream.read(1):
        if not length[0]:
            break
        held += length[0]
        stream.seek(length[0], os.SEEK_CUR)
    return held


def _check_strips(page: Image.Image) -> None:
    """Refuse a page of a TIFF whose strips or tiles are JPEGs that take long to decode."""
    if page.format != "TIFF" or _tag(page, _COMPRESSION) not in _OF_JPEG:
        return
    stream, tags = getattr(page, "fp", None), getattr(page, "tag_v2", {})
    places, sizes = (tags.get(a) or tags.get(b) or () for a, b in (_PLACES, _SIZES))
    if stream is None:
        return
    at = stream.tell()
    try:
        for place, size in zip(places, sizes, strict=False):
            stream.seek(place)
            data = stream.read(size)
            if b"\xff\xc2" in data:
                with suppress(jpeg.UnknownError):  # the library says what is wrong with it
                    jpeg.check_work(jpeg.describe(data))
    finally:
        stream.seek(at)


def _deep(path: Path, page: Image.Image) -> deep.Deep | None:
    """The colours of a page with all their bits; None if it has no more than 8 a sample."""

    @contextmanager
    def again() -> Iterator[Image.Image]:
        with _open(path, checked=False) as image:
            if number := page.tell():
                image.seek(number)
            yield image

    return deep.of_planes(again) if deep.has_planes(page) else deep.of_halves(page, again)


def _check(image: Image.Image) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(
            f"an image of {image.width} x {image.height} pixels; up to {MAX_PIXELS:,} are read"
        )


def _moves(image: Image.Image) -> bool:
    # a JPEG with several pictures is one picture and its previews
    return bool(getattr(image, "is_animated", False)) and image.format != "MPO"


def _stated_duration(image: Image.Image) -> float:
    if not (_moves(image) and image.format in _TIMED):
        return 0.0
    image.load()  # durations of WebP are known then
    return _duration(image)


def _duration(page: Image.Image) -> float:
    """Seconds, 0 where none is stated."""
    return max(0.0, float(page.info.get("duration", 0)) / 1000)


def _upright(page: Image.Image, levels: _Levels, whole: Callable[[], Any]) -> Image.Image:
    shown = quietly(lambda: levels.colour(page, whole))
    if shown is not page:
        # what it says of its place goes with it
        shown.info, shown.encoderinfo = page.info, {}
        shown.getexif().update(page.getexif())
    turned = quietly(lambda: ImageOps.exif_transpose(shown))
    frame = quietly(lambda: to_frame(levels(page, turned)))
    frame.info = {}  # comments name people
    return frame
