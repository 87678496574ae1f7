"""Outlines drawn over frames: stills, films, and masks as pictures of few colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageDraw, ImageFont

from .regions import Labels, Region, opencv

#: A colour a class, in turn; told apart by the colour-blind as well (Okabe & Ito).
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
#: Of what is known to be there.
TRUTH = (255, 255, 255)
#: Sides of frames in films at most, in pixels.
_LARGEST = 480


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a class."""
    return COLOURS[label % len(COLOURS)]


def palette(classes: int) -> list[int]:
    """The colours of a mask's picture: black for the background, then a colour a class."""
    return [0, 0, 0, *(part for label in range(classes) for part in colour_of(label))]


def mask_image(labels: Labels, classes: int) -> Image.Image:
    """A map of classes as a picture whose values are the classes, shown in their colours."""
    image = Image.fromarray(labels)
    # makes it one of a palette, and leaves its values
    image.putpalette(palette(classes))
    return image


def drawn(
    frame: Image.Image,
    regions: Sequence[Region],
    classes: Sequence[str],
    *,
    known: Sequence[Region] = (),
    named: bool = True,
    confidence: float = 0.0,
) -> Image.Image:
    """A frame with the outlines of regions, filled faintly.

    Args:
        frame: RGB.
        regions: to draw, each in the colour of its class; dashed, as it were, where they are less
            sure than `confidence`: without filling.
        classes: their names.
        known: regions of the truth, outlined in white below the others.
        named: write class and score beside each.
        confidence: below which a region is not said.
    """
    cv2 = opencv()
    pixels = np.array(frame.convert("RGB"))
    height, width = pixels.shape[:2]
    thick = max(1, round(max(height, width) / 250))
    for region in regions:
        if region.mask is None or region.score < confidence:
            continue
        own = region.whole(height, width)
        tint = np.array(colour_of(region.label), np.float32)
        pixels[own] = (0.8 * pixels[own] + 0.2 * tint).round().astype(np.uint8)
    for region, colour in [
        *((region, TRUTH) for region in known),
        *((region, colour_of(region.label)) for region in regions),
    ]:
        faint = region.score < confidence
        if region.mask is None:
            left, top, right, bottom = (round(edge) for edge in region.box)
            cv2.rectangle(pixels, (left, top), (right - 1, bottom - 1), colour, thick)
            continue
        contours, _ = cv2.findContours(
            region.whole(height, width).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(pixels, contours, -1, colour, 1 if faint else thick)
    image = Image.fromarray(pixels)
    if named:
        pen = ImageDraw.Draw(image)
        size = max(10, round(max(height, width) / 28))
        font = ImageFont.load_default(size=size)
        for region in regions:
            words = f"{classes[region.label]} {region.score:.2f}"
            words += " ?" if region.score < confidence else ""
            wide = pen.textlength(words, font=font)
            x = min(max(region.box[0], 1), max(width - wide - 1, 1))
            y = max(region.box[1] - size - 3, 1)
            pen.text(
                (x, y),
                words,
                fill=colour_of(region.label),
                font=font,
                stroke_width=max(1, size // 10),
                stroke_fill=(0, 0, 0),
            )
    return image


def reduced(image: Image.Image) -> Image.Image:
    """A frame of a film: of even sides, not larger than films are."""
    scale = min(1.0, _LARGEST / max(image.size))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def write_gif(path: Path, images: Iterable[Image.Image], rate: float) -> None:
    """Write pictures of one palette as an animation, each of them whole and every value as it is.

    Pillow's own way leaves out a picture that is as the one before it.
    """
    step = max(20, round(1000 / rate))
    with path.open("wb") as stream:
        for place, image in enumerate(images):
            if place == 0:
                for part in GifImagePlugin.getheader(image)[0]:
                    stream.write(part)
                # once more from the beginning, for ever
                stream.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
            for part in GifImagePlugin.getdata(image, duration=step, disposal=1):
                stream.write(part)
        stream.write(b";")


def rate_of(times: NDArray[np.float64], usual: float) -> float:
    """Frames a second of a film that runs as its source does."""
    steps = np.diff(times)
    step = float(np.median(steps)) if len(steps) and not np.isnan(steps).any() else 0.0
    return 1 / step if step > 0 else min(usual, 10.0)
