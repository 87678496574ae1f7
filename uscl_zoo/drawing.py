"""Pictures drawn with Pillow, so that they need nothing beyond the core dependencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFont

from .errors import one_line
from .files import MADE

Floats = NDArray[np.floating[Any]]
RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

#: Colours of words, of words of less weight, of lines, of the paper and of warnings.
INK, FAINT, RULE, PAPER, ALERT = (
    (28, 32, 38),
    (105, 112, 122),
    (190, 196, 204),
    (255, 255, 255),
    (176, 58, 46),
)

#: Perceptually uniform colour maps, at equal steps: viridis for similarity, plasma for time.
VIRIDIS = ((68, 1, 84), (70, 51, 127), (54, 92, 141), (39, 127, 142), (31, 161, 135),
            (74, 194, 109), (159, 218, 58), (253, 231, 37))  # fmt: skip
PLASMA = ((13, 8, 135), (83, 2, 163), (139, 10, 165), (184, 50, 137), (219, 92, 104),
           (244, 136, 73), (254, 189, 43), (240, 249, 33))  # fmt: skip


def stamp(kind: str) -> dict[str, Any]:
    """What to tell Pillow's `save` of a format, so that the picture says who made it.

    `files.check_output` replaces no others.
    """
    if kind == "GIF":
        return {"comment": MADE}
    said = Image.Exif()
    said[ExifTags.Base.Software] = MADE.decode()
    return {"exif": said}


def fitted(box: Box, size: tuple[int, int]) -> Box:
    """The largest box of a picture's shape in the middle of another."""
    left, top, right, bottom = box
    scale = min((right - left) / size[0], (bottom - top) / size[1])
    half = size[0] * scale / 2, size[1] * scale / 2
    middle = (left + right) / 2, (top + bottom) / 2
    return middle[0] - half[0], middle[1] - half[1], middle[0] + half[0], middle[1] + half[1]


def ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round values between two bounds, at most `most` intervals, and how to print them."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(
        power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most + 1e-6
    )
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:.{digits}f}") for number in numbers]


def coloured(values: Floats, colours: Sequence[RGB]) -> Image.Image:
    """Map an array of 0-1 to colours, interpolated between those given."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(values, stops, [c[i] for c in colours]) for i in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


class Page:
    """A sheet measured in points from its upper left corner.

    Shapes are drawn larger than asked for and reduced in the end, to be smooth.

    Args:
        width: in points.
        height: in points.
        density: pixels a point.
        supersampling: how much larger to draw.
    """

    def __init__(self, width: int, height: int, density: int = 2, supersampling: int = 2) -> None:
        self.scale = density * supersampling
        self.supersampling = supersampling
        self.sheet = Image.new("RGB", (width * self.scale, height * self.scale), PAPER)
        self.pen = ImageDraw.Draw(self.sheet)

    def _pixels(self, values: Sequence[float]) -> tuple[int, ...]:
        return tuple(round(value * self.scale) for value in values)

    def text(
        self,
        at: tuple[float, float],
        words: str,
        size: float,
        colour: RGB = INK,
        anchor: str = "lm",
        upright: bool = False,
    ) -> None:
        """Words at a point, which `anchor` places as Pillow does; upright ones read upwards."""
        words = one_line(words)
        font = ImageFont.load_default(size=size * self.scale)
        x, y = self._pixels(at)
        if not upright:
            self.pen.text((x, y), words, fill=colour, font=font, anchor=anchor)
            return
        left, top, right, bottom = (round(v) for v in font.getbbox(words, anchor="lt"))
        stencil = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(stencil).text((0, 0), words, fill=255, font=font, anchor="lt")
        stencil = stencil.transpose(Image.Transpose.ROTATE_90)
        ink = Image.new("RGB", stencil.size, colour)
        self.sheet.paste(ink, (x - stencil.width // 2, y - stencil.height // 2), stencil)

    def tag(self, at: tuple[float, float], words: str) -> None:
        """Words in a coloured box, whose right edge is given."""
        words = one_line(words)
        font = ImageFont.load_default(size=14 * self.scale)
        width = font.getlength(words) / self.scale + 22
        right, middle = at
        box = self._pixels((right - width, middle - 13, right, middle + 13))
        self.pen.rounded_rectangle(box, radius=5 * self.scale, fill=ALERT)
        self.text((right - width / 2, middle), words, 14, PAPER, "mm")

    def line(self, points: Sequence[tuple[float, float]], colour: RGB, width: float) -> None:
        """A line through points."""
        path = [self._pixels(point) for point in points]
        self.pen.line(path, fill=colour, width=round(width * self.scale), joint="curve")

    def dot(self, at: tuple[float, float], radius: float, colour: RGB) -> None:
        """A disc with a rim of paper."""
        x, y = at
        box = self._pixels((x - radius, y - radius, x + radius, y + radius))
        self.pen.ellipse(box, fill=colour, outline=PAPER, width=self.scale // 2)

    def fill(self, box: Box, colour: RGB) -> None:
        """A rectangle without a rim."""
        left, top, right, bottom = self._pixels(box)
        self.pen.rectangle((left, top, right - 1, bottom - 1), fill=colour)

    def frame(self, box: Box) -> None:
        """The rim of a rectangle."""
        self.pen.rectangle(self._pixels(box), outline=RULE, width=self.scale)

    def image(
        self,
        box: Box,
        image: Image.Image,
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:
        """A picture, stretched to a rectangle."""
        left, top, right, bottom = self._pixels(box)
        size = (max(right - left, 1), max(bottom - top, 1))
        self.sheet.paste(image.resize(size, resampling), (left, top))

    def finish(self) -> Image.Image:
        """The sheet, at the density asked for."""
        return self.sheet.reduce(self.supersampling)
