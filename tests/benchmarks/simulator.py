"""Clips with a beam of known geometry inside the drawn interface of a scanner.

Speckle comes from the phantom; interfaces are drawn after no vendor in particular, in five styles.
Names, dates and hospitals are made up. Every clip is a function of its seed.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from uscl_zoo.ultrasound.phantom import _speckle

Colour = tuple[int, int, int]
STYLES = ("header", "cart", "column", "handheld", "console")
KINDS = ("sector", "curved", "linear")
SIZES = ((480, 640), (600, 800), (576, 720), (768, 1024), (720, 960))

_FAMILY = ("DOE", "MUELLER", "GARCIA", "TANAKA", "OKAFOR", "NOVAK", "SILVA", "ROSSI")
_GIVEN = ("JANE", "HANS", "MARIA", "KENJI", "ADA", "EVA", "JOAO", "LUCA")


@dataclass(frozen=True)
class Simulated:
    """A clip and the truth about it.

    Attributes:
        frames: uint8 (T, H, W, 3).
        mask: inside the beam, bool (H, W).
        kind: of the beam.
        overlay: drawn over the beam, bool (H, W): text and calipers, not the colour box.
        text: drawn outside the beam, bool (H, W): names, dates and identifiers only.
        doppler: whether there is colour flow.
        style: of the interface.
    """

    frames: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    kind: str
    overlay: NDArray[np.bool_]
    text: NDArray[np.bool_]
    doppler: bool
    style: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the beam."""
        rows, columns = np.nonzero(self.mask.any(1))[0], np.nonzero(self.mask.any(0))[0]
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def simulate(seed: int, count: int = 8, names: int = 0, annotated: bool | None = None) -> Simulated:
    """Draw a clip.

    Args:
        seed: of everything.
        count: frames; 1 is a still.
        names: lines with names, dates and identifiers to draw at random places outside the beam,
            beside those of the interface.
        annotated: whether there are text and calipers inside the beam; None draws lots.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZES[rng.integers(len(SIZES))]
    kind = KINDS[rng.integers(len(KINDS))]
    style = STYLES[rng.integers(len(STYLES))]
    back = _background(rng)
    depth, across, inside = _geometry(rng, kind, height, width)
    doppler = bool(rng.random() < 0.25)
    annotated = bool(rng.random() < 0.5) if annotated is None else annotated

    canvas = Image.new("RGB", (width, height), back)
    text = Image.new("1", (width, height))
    _interface(rng, canvas, text, style, inside)
    for _ in range(names):
        _somewhere(rng, canvas, text, inside)
    marks = Image.new("RGBA", (width, height))
    if annotated:
        _annotate(rng, marks, inside)
    drawn = np.asarray(marks)[:, :, 3] > 127

    picture = np.asarray(canvas)
    tissue = _Tissue(rng, kind)
    tint = _tint(rng)
    frames = np.empty((count, height, width, 3), np.uint8)
    quality = int(rng.integers(60, 96)) if rng.random() < 0.6 else None
    flow = _flow(rng, depth, across, inside) if doppler else None
    for i in range(count):
        grey = tissue.draw(depth, across, i)
        frame = picture.copy()
        frame[inside] = (grey[:, :, None] * tint)[inside].astype(np.uint8)
        if flow is not None:
            _colour(frame, flow, grey, i)
        shown = Image.fromarray(frame)
        shown.paste(marks, mask=marks.getchannel("A"))
        if quality is not None:
            stream = io.BytesIO()
            shown.save(stream, "JPEG", quality=quality)
            shown = Image.open(stream)
        frames[i] = np.asarray(shown)
    outside = np.asarray(text) & ~inside
    return Simulated(frames, inside, kind, drawn & inside, outside, doppler, style)


def find(kind: str, **wanted: Any) -> Simulated:
    """The first clip of a kind from seed 200 on, without flow and of six frames unless wanted.

    Args:
        kind: of the beam.
        wanted: `count` and `annotated` as of `simulate`, and `doppler`.
    """
    for seed in range(200, 400):
        truth = simulate(seed, count=wanted.get("count", 6), annotated=wanted.get("annotated"))
        if truth.kind == kind and truth.doppler == wanted.get("doppler", False):
            return truth
    raise AssertionError(kind)


def _background(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.7:
        return (0, 0, 0)
    level = int(rng.integers(4, 20)) if rng.random() < 0.7 else int(rng.integers(30, 70))
    return (level, level, min(level + int(rng.integers(0, 6)), 255))


def _tint(rng: np.random.Generator) -> NDArray[np.float64]:
    tints = ((255, 255, 255), (255, 232, 200), (215, 232, 255))
    return np.array(tints[rng.choice(3, p=(0.7, 0.15, 0.15))], float)


def _geometry(
    rng: np.random.Generator, kind: str, height: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Depth and lateral place of each pixel, 0-1 inside the beam, and the inside."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    top, bottom = height * rng.uniform(0.09, 0.2), height * rng.uniform(0.84, 0.97)
    centre = width * rng.uniform(0.45, 0.56)
    if kind == "linear":
        half = min(rng.uniform(0.25, 0.65) * (bottom - top), 0.36 * width)
        slant = math.tan(math.radians(rng.uniform(-15, 15))) if rng.random() < 0.15 else 0.0
        depth = (y - top) / (bottom - top)
        across = (x - slant * (y - top) - centre) / (2 * half) + 0.5
    else:
        if kind == "sector":
            angle, ratio = math.radians(rng.uniform(30, 45)), rng.uniform(0.0, 0.06)
        else:
            angle, ratio = math.radians(rng.uniform(22, 37)), rng.uniform(0.22, 0.5)
        far = (bottom - top) / (1 - ratio * math.cos(angle))
        if rng.random() < 0.75:  # else the sides are cut off by the frame, as on a zoomed image
            far = min(far, 0.40 * width / math.sin(angle))
        near, apex = ratio * far, top - ratio * far * math.cos(angle)
        r, theta = np.hypot(x - centre, y - apex), np.arctan2(x - centre, y - apex)
        depth, across = (r - near) / (far - near), theta / (2 * angle) + 0.5
    inside = (depth >= 0) & (depth <= 1) & (across >= 0) & (across <= 1)
    return depth.astype(np.float32), across.astype(np.float32), inside


class _Tissue:
    """Echoes on a grid of depths and beams, 0-1 after log compression."""

    shape = (512, 192)

    def __init__(self, rng: np.random.Generator, kind: str) -> None:
        depths = np.linspace(0, 1, self.shape[0], dtype=np.float32)[:, None]
        beams = np.linspace(0, 1, self.shape[1], dtype=np.float32)[None]
        self.fields = [
            _speckle(rng, self.shape, axial=rng.uniform(0.3, 0.6), lateral=rng.uniform(0.4, 0.9))
            for _ in range(2)
        ]
        coarse = np.abs(_speckle(rng, self.shape, axial=4.0, lateral=6.0))
        level = 0.25 + coarse * rng.uniform(0.3, 1.2)
        for _ in range(rng.integers(0, 4)):  # fascia, pleura, capsules
            place, bend = rng.uniform(0.05, 0.8), rng.uniform(-0.08, 0.08)
            off = depths - place - bend * np.sin(3 * beams + rng.uniform(0, 6))
            level += rng.uniform(1, 6) * np.exp(-0.5 * (off / 0.006) ** 2)
        for _ in range(rng.integers(0, 3)):  # cysts and vessels
            d, b = rng.uniform(0.15, 0.85), rng.uniform(0.1, 0.9)
            size = rng.uniform(0.04, 0.16)
            hole = np.hypot((depths - d), (beams - b) * 0.8) < size
            level = np.where(hole, level * 0.01, level)
        for _ in range(rng.integers(0, 3)):  # ribs, bowel gas, poor contact
            b, wide, start = rng.uniform(0, 1), rng.uniform(0.03, 0.12), rng.uniform(0.02, 0.5)
            edge = 0.5 - 0.5 * np.tanh((np.abs(beams - b) - wide) / 0.02)
            level = level * (1 - 0.995 * edge * (depths > start))
        self.level = level * np.exp(-depths * rng.uniform(0.0, 4.0))
        self.range = rng.uniform(45, 70)
        # the gain lifts the noise of deep echoes above black, on most scanners
        self.noise = 10 ** (-rng.uniform(1.6, 3.2))
        self.gain = rng.uniform(-14, 8)
        self.rng = rng
        self.pace = 0.0 if rng.random() < 0.1 else rng.uniform(0.1, 0.8)

    def draw(
        self, depth: NDArray[np.float32], across: NDArray[np.float32], frame: int
    ) -> NDArray[np.float32]:
        phase = self.pace * frame
        mixed = math.cos(phase) * self.fields[0] + math.sin(phase) * self.fields[1]
        echo = np.abs(mixed) * np.roll(self.level, round(2 * math.sin(phase)), axis=1)
        echo = echo + self.rng.rayleigh(self.noise, self.shape)
        compressed = np.clip(1 + (20 * np.log10(echo + 1e-6) + self.gain - 12) / self.range, 0, 1)
        rows, columns = (n - 1 for n in self.shape)
        polar = compressed.astype(np.float32)
        shown = cv2.remap(
            polar,
            np.clip(across, 0, 1) * columns,
            np.clip(depth, 0, 1) * rows,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(shown, np.float32)


def _flow(
    rng: np.random.Generator,
    depth: NDArray[np.float32],
    across: NDArray[np.float32],
    inside: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    """Outline of a colour box, its vessels, and which way they flow."""
    d, b = rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.5)
    high, wide = rng.uniform(0.2, 0.4), rng.uniform(0.25, 0.45)
    box = (depth > d) & (depth < d + high) & (across > b) & (across < b + wide) & inside
    outline = box & ~cv2.erode(box.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    vessel = np.zeros_like(depth)
    for sign in (1, -1):
        centre = d + high * rng.uniform(0.25, 0.75)
        off = depth - centre - rng.uniform(-0.3, 0.3) * (across - b - wide / 2)
        vessel = np.where(np.abs(off) < high * rng.uniform(0.06, 0.14), sign, vessel)
    vessel = np.where(box, vessel, 0)
    return outline, vessel != 0, vessel.astype(np.float32)


def _colour(frame: NDArray[np.uint8], flow: Any, grey: NDArray[np.float32], index: int) -> None:
    outline, vessel, sign = flow
    strength = 150 + 100 * math.sin(index) * 0.5
    for way, channel in ((1, 0), (-1, 2)):
        where = vessel & (sign == way)
        frame[where] = 0
        frame[where, channel] = np.clip(strength + 60 * grey[where], 0, 255)
        frame[where, 1] = np.clip(90 * grey[where], 0, 255)
    frame[outline] = (230, 230, 230)


# ------------------------------------------------------------------------------------ interfaces


def _font(size: float) -> Any:
    return ImageFont.load_default(size=size)


def _identity(rng: np.random.Generator) -> str:
    name = f"{_FAMILY[rng.integers(8)]}, {_GIVEN[rng.integers(8)]}"
    day = f"{rng.integers(1, 29):02}.{rng.integers(1, 13):02}.{rng.integers(1930, 2024)}"
    number = f"ID {rng.integers(10_000, 9_999_999)}"
    options = (name, f"{name} {day}", f"DOB {day}", number, f"{day} {rng.integers(24):02}:17:05")
    return str(options[rng.integers(len(options))])


def _write(
    canvas: Image.Image,
    text: Image.Image | None,
    at: tuple[float, float],
    words: str,
    size: float,
    fill: Colour,
) -> None:
    font = _font(size)
    ImageDraw.Draw(canvas).text(at, words, fill=fill, font=font)
    if text is not None:
        ImageDraw.Draw(text).text(at, words, fill=1, font=font)


def _free(inside: NDArray[np.bool_], box: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = (int(v) for v in box)
    height, width = inside.shape
    if left < 0 or top < 0 or right > width or bottom > height:
        return False
    return not inside[top:bottom, left:right].any()


def _somewhere(
    rng: np.random.Generator, canvas: Image.Image, text: Image.Image, inside: NDArray[np.bool_]
) -> None:
    """A line of identity at a random place outside the beam, as near to it as it comes."""
    height, width = inside.shape
    words, size = _identity(rng), float(rng.uniform(0.018, 0.034)) * height
    box = ImageDraw.Draw(canvas).textbbox((0, 0), words, font=_font(size))
    fill = ((255, 255, 255), (255, 220, 80), (120, 220, 255), (160, 160, 160))[rng.integers(4)]
    for _ in range(300):
        x, y = rng.uniform(0, width - box[2]), rng.uniform(0, height - box[3])
        if _free(inside, (x, y, x + box[2] + 1, y + box[3] + 1)):
            _write(canvas, text, (x, y), words, size, fill)
            return


def _interface(
    rng: np.random.Generator,
    canvas: Image.Image,
    text: Image.Image,
    style: str,
    inside: NDArray[np.bool_],
) -> None:
    draw = ImageDraw.Draw(canvas)
    height, width = inside.shape
    size = 0.026 * height
    line = 1.25 * size
    columns = np.nonzero(inside.any(0))[0]
    rows = np.nonzero(inside.any(1))[0]
    left, right = int(columns[0]), int(columns[-1])
    top, bottom = int(rows[0]), int(rows[-1])
    white: Colour = (235, 235, 235)
    settings = ("Gn 60", "DR 72", "MI 1.1", "TIs 0.2", "28 Hz", "11 cm", "C5-1", "Map 3", "2D")

    def write(at: tuple[float, float], words: str, fill: Colour = white, who: bool = False) -> None:
        _write(canvas, text if who else None, at, words, size, fill)

    def ruler(x: float, dots: bool) -> None:
        for i, level in enumerate(np.linspace(top, bottom, int(rng.integers(6, 18)))):
            long = 0.014 * width * (2 if i % 5 == 0 else 1)
            if dots:
                draw.ellipse((x, level - 2, x + 3, level + 1), fill=white)
            else:
                draw.line((x, level, x + long, level), fill=white)

    def bar(x: float, y: float, high: float, colour: bool) -> None:
        wide = 0.016 * width
        for i in range(int(high)):
            share = 1 - i / high
            level = int(255 * share)
            fill = (level, int(120 * abs(share - 0.5)), 255 - level) if colour else (level,) * 3
            draw.line((x, y + i, x + wide, y + i), fill=fill)

    if style == "header":
        shade = (70, 100, 140) if rng.random() < 0.5 else (60, 60, 60)
        draw.rectangle((0, 0, width, 0.06 * height), fill=shade)
        write((0.02 * width, 0.015 * height), _identity(rng), who=True)
        write((0.6 * width, 0.015 * height), "ST ELSEWHERE  " + _identity(rng), who=True)
        for i, words in enumerate(rng.permutation(settings)[:6]):
            write((0.01 * width, 0.12 * height + i * line), str(words))
        bar(width * 0.975, 0.1 * height, 0.25 * height, colour=False)
    elif style == "cart":
        write((0.02 * width, 0.01 * height), _identity(rng), who=True)
        write((0.02 * width, 0.01 * height + line), _identity(rng), who=True)
        write((0.7 * width, 0.01 * height), _identity(rng), who=True)
        ruler(min(right + 0.02 * width, 0.95 * width), dots=False)
        bar(0.02 * width, 0.2 * height, 0.3 * height, colour=bool(rng.random() < 0.4))
        for i, words in enumerate(rng.permutation(settings)[:5]):
            write((0.88 * width, 0.55 * height + i * line), str(words), (120, 220, 120))
    elif style == "column":
        draw.rectangle((0, 0, 0.075 * width, height), fill=(40, 44, 52))
        for i in range(8):
            y = height * (0.05 + 0.11 * i)
            draw.rounded_rectangle((4, y, 0.07 * width, y + 0.08 * height), 6, fill=(70, 76, 90))
        write((0.1 * width, 0.01 * height), _identity(rng), (255, 220, 80), who=True)
        # the curve of the time gain compensation
        spots = np.linspace(top, bottom, 8)
        points = [
            (0.955 * width + 0.02 * width * math.sin(i + rng.uniform(0, 1)), float(y))
            for i, y in enumerate(spots)
        ]
        draw.line(points, fill=(200, 200, 90), width=1)
    elif style == "handheld":
        draw.ellipse(
            (left, top - 0.05 * height, left + 0.03 * height, top - 0.02 * height),
            fill=(40, 120, 210),
        )
        ruler(right + 3, dots=True)
        write((0.35 * width, 0.005 * height), "MI 0.9  " + _identity(rng), who=True)
    else:
        draw.line((0, 0.075 * height, width, 0.075 * height), fill=(90, 90, 90))
        write((0.01 * width, 0.02 * height), "UNIVERSITY CLINIC", (150, 150, 150))
        write((0.4 * width, 0.02 * height), _identity(rng), who=True)
        draw.ellipse((0.93 * width, 0.01 * height, 0.97 * width, 0.07 * height), outline=white)
        ruler(max(left - 0.05 * width, 2), dots=bool(rng.random() < 0.5))
        # focus marks, and a heartbeat underneath
        for level in rng.uniform(top, bottom, 2):
            x = min(right + 6, width - 12)
            draw.polygon((x, level, x + 8, level - 5, x + 8, level + 5), fill=(240, 200, 60))
        beat = [
            (x, 0.985 * height - 0.012 * height * abs(math.sin(x / 23)) ** 9)
            for x in range(0, width, 2)
        ]
        draw.line(beat, fill=(60, 220, 60), width=1)
    # what was drawn where the beam comes is covered by it
    covered = Image.fromarray(inside)
    text.paste(0, mask=covered)


def _annotate(rng: np.random.Generator, marks: Image.Image, inside: NDArray[np.bool_]) -> None:
    """Calipers and words over the tissue."""
    draw = ImageDraw.Draw(marks)
    height = inside.shape[0]
    rows, columns = np.nonzero(cv2.erode(inside.astype(np.uint8), np.ones((41, 41), np.uint8)))
    fill = ((255, 255, 255), (255, 230, 60), (90, 255, 90), (80, 230, 255))[rng.integers(4)]
    arm, thick = max(4, round(0.011 * height)), 1 if height < 600 else 2

    def point() -> tuple[int, int]:
        i = rng.integers(len(rows))
        return int(columns[i]), int(rows[i])

    for _ in range(rng.integers(1, 3)):
        ends = point(), point()
        for x, y in ends:
            if rng.random() < 0.5:
                draw.line((x - arm, y, x + arm, y), fill=fill, width=thick)
                draw.line((x, y - arm, x, y + arm), fill=fill, width=thick)
            else:
                draw.line((x - arm, y - arm, x + arm, y + arm), fill=fill, width=thick)
                draw.line((x - arm, y + arm, x + arm, y - arm), fill=fill, width=thick)
        steps = int(math.dist(*ends) / 7)
        for t in np.linspace(0, 1, max(steps, 2)):
            x, y = (round(a + t * (b - a)) for a, b in zip(*ends, strict=True))
            draw.rectangle((x, y, x + thick - 1, y + thick - 1), fill=fill)
    for words in rng.permutation(("LIVER", "RT KIDNEY SAG", "1 D 1.06 cm", "PLEURA"))[:2]:
        draw.text(point(), str(words), fill=fill, font=_font(0.03 * height))
