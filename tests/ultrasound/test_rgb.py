"""Eight bits of RGB, from arrays and from images of any mode."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound.rgb import to_frame

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (50, 70, 3), np.uint8)
GREY = COLOUR[:, :, 0]
DEEP = RNG.integers(0, 65536, (50, 70)).astype(np.uint16)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, GREY),
        (GREY[:, :, None], GREY),
        (COLOUR, COLOUR),
        (np.dstack([COLOUR, GREY]), COLOUR),
        (COLOUR[:, ::-1], COLOUR[:, ::-1]),
        (DEEP, (DEEP / 257).round()),
        (DEEP.astype(">u2"), (DEEP / 257).round()),
        (GREY > 99, 255 * (GREY > 99)),
        (COLOUR / 255, COLOUR),
        ((COLOUR / 255).astype(np.float16), COLOUR),
    ],
    ids=["HW", "HW1", "HW3", "HW4", "strided", "uint16", "big endian", "bool", "float", "half"],
)
def test_arrays(image: NDArray[Any], expected: NDArray[Any]) -> None:
    frame = to_frame(image)
    assert frame.mode == "RGB"
    if expected.ndim == 2:
        expected = np.repeat(expected[:, :, None], 3, axis=2)
    assert np.array_equal(np.asarray(frame), expected)


def test_full_range_of_sixteen_bits() -> None:
    ends = np.array([[0, 128, 129, 65535]], np.uint16)
    assert np.asarray(to_frame(ends))[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_of_eight_bits(mode: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    assert np.array_equal(np.asarray(to_frame(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B"])
def test_modes_of_more_bits(mode: str) -> None:
    if mode == "I":
        image = Image.fromarray(DEEP.astype(np.int32))
    else:
        stored = DEEP.astype(">u2" if mode.endswith("B") else "<u2")
        image = Image.frombytes(mode, (70, 50), stored.tobytes())
    assert image.mode == mode
    assert np.array_equal(np.asarray(to_frame(image))[:, :, 2], (DEEP / 257).round())


def test_float_image() -> None:
    image = Image.fromarray((GREY / 255).astype(np.float32))
    assert image.mode == "F"
    assert np.array_equal(np.asarray(to_frame(image))[:, :, 0], GREY)


def test_alpha_is_dropped_not_applied() -> None:
    image = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert to_frame(image).getpixel((0, 0)) == (200, 100, 50)


def test_transparent_palette_without_a_warning(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).convert("P")
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    opened = Image.open(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = to_frame(opened)
    assert np.array_equal(np.asarray(frame), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 50, 70), np.uint8), r"not \(3, 50, 70\)"),
        (np.zeros((50, 70, 2), np.uint8), r"not \(50, 70, 2\)"),
        (np.zeros((0, 70, 3), np.uint8), r"not \(0, 70, 3\)"),
        (np.zeros(5, np.uint8), r"not \(5,\)"),
        (np.zeros((5, 5), np.int64), "not int64"),
        (np.full((5, 5), 1.5), "floats should keep to 0-1"),
        (np.full((5, 5), np.nan), "floats should keep to 0-1"),
        (Image.fromarray(np.full((5, 5), 70000, np.int32)), "should keep to 0-65535"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_frame(image)
