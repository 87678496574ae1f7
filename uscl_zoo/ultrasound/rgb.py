"""From an image of any kind to 8-bit RGB, the form every other part of uscl-zoo works on."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from ..errors import DataError, UnreadableError

#: How frames are resized, by timm's names of it.
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resampling(name: str) -> Image.Resampling:
    """Pillow's way to resize, by timm's name of it.

    Raises:
        DataError: if there is none of that name.
    """
    if name not in RESAMPLING:
        raise DataError(f"interpolation should be one of {', '.join(RESAMPLING)}, not {name!r}")
    return RESAMPLING[name]


#: Where Pillow keeps what says how an image is to be turned.
_EXIF = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})


def to_frame(image: Image.Image | NDArray[Any]) -> Image.Image:
    """Make an 8-bit RGB image of an image or array.

    Grey becomes three equal channels, alpha is dropped, and 16-bit intensities are scaled by their
    full range: 65535 becomes 255. Palettes are resolved. An image as Pillow opened it is turned as
    its EXIF says.

    Args:
        image: a Pillow image of any mode, or an array of shape (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4): bool, uint8, uint16, or floats in 0-1.

    Returns:
        An RGB image of the same size.

    Raises:
        DataError: if an array has another shape or type, or intensities out of range.
        UnreadableError: if the pixels of an image cannot be decoded.
    """
    given: object = image  # whatever the annotation says, people try it with a path
    if isinstance(given, (str, Path)):
        raise DataError(
            f"{given}: is the path of an image, and the image is wanted: `PIL.Image.open` opens "
            "stills, and `uscl_zoo.Embedder(model)` takes the path of whatever is read here"
        )
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise DataError(f"an image of {image.width} x {image.height} pixels has none")
        image = upright(image)
        if image.mode[0] in "IF":  # I;16, I;16B, I and F: more than 8 bits, one channel
            return to_frame(_deep_pixels(image))
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way
        try:
            return image.convert("RGB")
        except ValueError as error:
            raise UnreadableError(f"image mode {image.mode} cannot be made RGB: {error}") from error
    if np.ma.is_masked(image):
        raise DataError("an array has masked pixels; say what they are: `array.filled(0)`")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3):
            hint = "; of one with its channels first, `image.permute(1, 2, 0)` of torch, or "
            hint += "`np.moveaxis(image, 0, -1)`"
        elif array.ndim == 4:
            hint = "; of several, take one after another, or `FrameTransform.batch`"
        raise DataError(
            f"an image should be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.shape}{hint}"
        )
    grey = array.shape[2] == 1
    pixels = _to_bytes(array[:, :, 0] if grey else array[:, :, :3])
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """An image of Pillow as it is read from its file, where Pillow leaves it as it is stored.

    Of an image that was made of an opened one nobody knows whether it was turned already, as its
    EXIF is copied along; that is said.
    """
    opened = isinstance(image, ImageFile.ImageFile)
    if not opened and not _EXIF.intersection(image.info):
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if orientation not in range(2, 9):
                return image
            turned = ImageOps.exif_transpose(image) if opened else None
        except (OSError, ValueError, SyntaxError, LookupError, struct.error):
            return image  # of what is damaged whoever decodes it tells
    if turned is None:
        warnings.warn(
            f"an image says that it is to be turned (EXIF orientation {orientation}), and was "
            "changed since it was opened, so that nobody knows whether it was; begin with "
            "`PIL.ImageOps.exif_transpose(image)`, or give the path",
            stacklevel=3,
        )
        return image
    return turned


def in_use(highest: int, bits: int = 16) -> tuple[int, str | None]:
    """The range that grey of more than 8 bits is to be shown in: no picture that is almost black.

    Args:
        highest: value of all frames that are shown alike.
        bits: that could be stored.

    Returns:
        What is white, and what to say of it; nothing where all bits are used.
    """
    if not 0 < highest < 2 ** (bits - 1):
        return 2**bits - 1, None
    used = max(8, highest.bit_length())
    return 2**used - 1, f"of {bits} bits it uses {used}, and is shown by these"


def _deep_pixels(image: Image.Image) -> NDArray[Any]:
    pixels = np.asarray(image)
    if image.mode == "I":  # 32-bit integers, which is how 16-bit files may come
        if pixels.min() < 0 or pixels.max() > 65535:
            raise DataError("an image of 32-bit integers should keep to 0-65535")
        return pixels.astype(np.uint16)
    return pixels


def _to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind == "f":
        # a comparison that NaN fails
        if not (array.min() >= 0 and array.max() <= 1):
            raise DataError("an image of floats should keep to 0-1")
        return np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    raise DataError(f"an image should be bool, uint8, uint16 or floats in 0-1, not {array.dtype}")
