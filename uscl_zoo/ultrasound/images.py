"""Stills and animations, by Pillow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps, ImageSequence

from ..errors import UnreadableError, quietly, reason
from .clip import MAX_PIXELS, Facts, Frame, OnDamage, Wanted
from .transforms import to_frame

#: Suffixes, whether they move or not; compared without case.
SUFFIXES = frozenset({".apng", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})

# What a file may be, whatever its name; Pillow would also start Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_TIMED = frozenset({"GIF", "PNG", "WEBP"})

# Seconds a frame of an animation lasts that states none, as web browsers have it.
_UNSTATED_DURATION = 0.1

# A small file can hold endless changes of one pixel on a wide canvas. Ultrasound as GIF has one or
# two pixels a byte. What has more than twenty is let go on for 2**29 pixels, a minute of 640 x 480;
# a frame counts as 256 x 256, however small it is.
_PIXELS_A_BYTE = 20
_PIXELS_AT_LEAST = 2**29
_PIXELS_A_FRAME = 2**16


def iterate(
    path: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    """Decode a still, or an animation or stack of pages; see `reading.iterate`."""
    shown, index = 0.0, 0
    try:
        with _open(path) as image:
            moves = _moves(image)
            left = max(_PIXELS_AT_LEAST, _PIXELS_A_BYTE * path.stat().st_size)
            pages = ImageSequence.Iterator(image) if moves else iter((image,))
            while (page := quietly(lambda: next(pages, None))) is not None:
                _check(page)
                left -= max(page.width * page.height, _PIXELS_A_FRAME)
                if left < 0 and moves:
                    raise ValueError(
                        "more pixels than a file of its size should hold; a video has no such bound"
                    )
                time = 0.0
                if image.format in _TIMED:
                    time = shown
                elif moves:  # pages of a TIFF have no times
                    time = index / frame_rate if frame_rate else math.nan
                # what cannot be decoded shows here, wanted or not
                quietly(page.load)
                if wanted(time):
                    yield Frame(time, _upright(page))
                shown += _duration(page) or _UNSTATED_DURATION
                index += 1
    # Pillow raises whatever a damaged byte leads to
    except Exception as error:
        if not index:
            raise UnreadableError(f"{path}: cannot be read ({reason(error)})") from error
        on_damage(f"{path}: breaks off after {index} frames ({reason(error)})")


def facts(path: Path) -> Facts:
    """The frame rate of an animation, if its first frame states how long it lasts."""
    try:
        with _open(path) as image:
            duration = quietly(lambda: _stated_duration(image))
    except Exception:  # as above; its first frame could be decoded
        return Facts()
    return Facts(frame_rate=1 / duration if duration else None)


def size(path: Path) -> tuple[int, int] | None:
    """Width and height by the header, None if the file is no image."""
    try:
        with _open(path) as image:
            return image.size
    except Exception:  # as above
        return None


def _open(path: Path) -> Image.Image:
    try:
        return quietly(lambda: Image.open(path, formats=_FORMATS))
    except Image.DecompressionBombError as error:
        raise ValueError(f"many more pixels than the {MAX_PIXELS:,} that are read") from error


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


def _upright(image: Image.Image) -> Image.Image:
    frame = quietly(lambda: to_frame(ImageOps.exif_transpose(image)))
    frame.info = {}  # comments name people
    return frame
