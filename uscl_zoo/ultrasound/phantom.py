"""A synthetic lung clip, for trying things out where no ultrasound is at hand.

The clip is drawn, not recorded and not simulated from physics: speckle and the artefacts that
readers of lung ultrasound look for, so that pictures and tests have something to show. Nothing
measured on it says anything about patients.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import DataError

Floats = NDArray[np.floating[Any]]

# The probe and its polar grid, in mm and degrees.
_PROBE_RADIUS = 55.0
_HALF_ANGLE = 27.0
_DEPTH = 140.0
_DEPTHS = np.linspace(0, _DEPTH, 560, dtype=np.float32)[:, None]
_ANGLES = np.linspace(-_HALF_ANGLE, _HALF_ANGLE, 224, dtype=np.float32)[None]
_PER_MM = 560 / _DEPTH
_PER_DEGREE = 224 / (2 * _HALF_ANGLE)

# What the log compression shows, in dB below the brightest echo.
_DYNAMIC_RANGE = 54.0


def lung_clip(
    seconds: float = 4.0,
    rate: float = 15.0,
    size: tuple[int, int] = (480, 480),
    seed: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Draw a synthetic clip of a lung seen by a convex probe between two ribs.

    The pleural line slides with the breath. In the first half its reverberations show as A-lines,
    horizontal echoes at multiples of its depth; in the second half B-lines, vertical rays from the
    pleura to the bottom, come up one by one and wipe them out. The word SYNTHETIC is burnt in
    outside the beam of each frame.

    Args:
        seconds: length of the clip.
        rate: frames a second.
        size: height and width in pixels, at least 64 each.
        seed: of the speckle, and of where the B-lines are.

    Returns:
        Frames, uint8 of shape (T, H, W, 3), and their times in seconds, float64 of shape (T,).

    Raises:
        DataError: if the clip would have no frame, or the frames are too small to draw in.
    """
    count = round(seconds * rate) if 0 < seconds < math.inf and 0 < rate < math.inf else 0
    if not count:
        raise DataError(f"a clip of {seconds} s at {rate} frames a second has no frame")
    if min(size) < 64:
        raise DataError(f"frames should be at least 64 pixels high and wide, not {size}")
    rng = np.random.default_rng(seed)
    scene = _Scene(rng)
    convert = _scan_converter(*size)
    times = np.arange(count) / rate
    frames = np.zeros((count, *size, 3), np.uint8)
    for frame, time in zip(frames, times, strict=True):
        polar = scene.draw(float(time), progress=float(time) / seconds, rng=rng)
        frame[...] = convert(polar)[:, :, None]
    return frames, times


class _Scene:
    """Everything in polar coordinates: depth from the probe's face, and beam."""

    def __init__(self, rng: np.random.Generator) -> None:
        shape = (_DEPTHS.size, _ANGLES.size)
        self.wall = np.abs(_speckle(rng, shape, axial=0.35, lateral=0.45))
        # fibres of muscle and fascia: long across the beams, thin along them
        fibres = np.abs(_speckle(rng, shape, axial=0.45, lateral=5.0))
        self.wall_level = (0.06 + 0.20 * fibres**2).astype(np.float32)
        # two independent fields, whose mixture twinkles and stays Rayleigh distributed
        self.lung = [_speckle(rng, shape, axial=0.4, lateral=0.5) for _ in range(2)]
        self.ring_down = np.abs(_speckle(rng, shape, axial=0.5, lateral=1.2))
        self.gleam = np.abs(_speckle(rng, (1, shape[1]), axial=0.01, lateral=1.2))
        # contact with the skin is better on some beams than on others
        contact = np.abs(_speckle(rng, (1, shape[1]), axial=0.01, lateral=2.5))
        self.contact = 0.45 + 0.55 * np.minimum(contact, 1.5)
        self.waves = rng.uniform(0, 2 * math.pi, 4)
        self.b_angles = np.linspace(-10.5, 10.5, 5) + rng.uniform(-1.2, 1.2, 5)
        self.b_widths = rng.uniform(0.45, 1.15, 5)
        self.b_levels = rng.uniform(0.55, 1.0, 5)
        self.b_onsets = 0.5 + 0.3 * rng.permutation(5) / 5

    def draw(self, time: float, progress: float, rng: np.random.Generator) -> Floats:
        """One frame, log-compressed to 0-1: (depths, beams)."""
        breath = math.sin(2 * math.pi * time / 3.5)
        shift = 2.6 * breath  # degrees
        pleura = (
            30.0 + 0.8 * np.sin(_ANGLES / 9 + self.waves[0]) + 0.03 * _ANGLES**2 / 10 + 0.7 * breath
        )
        below = _DEPTHS - pleura
        lung = _step(below, 0.4)
        gleam = 0.3 + 0.7 * _slide(self.gleam, shift)

        b_lines = np.zeros_like(_ANGLES)
        for angle, width, level, onset in zip(
            self.b_angles, self.b_widths, self.b_levels, self.b_onsets, strict=True
        ):
            risen = 1 / (1 + math.exp(-(progress - onset) / 0.025))
            ray = np.exp(-0.5 * ((_ANGLES - angle - shift) / width) ** 2)
            b_lines = np.maximum(b_lines, risen * level * ray)
        sick = 1 / (1 + math.exp(-(progress - 0.58) / 0.05))

        echo = (1 - lung) * self.wall * self.wall_level
        echo += (1 - lung) * self._fascia()
        phase = 0.9 * time
        mixed = math.cos(phase) * self.lung[0] + math.sin(phase) * self.lung[1]
        haze = np.abs(_slide(mixed, shift))
        echo += lung * haze * self.contact * (0.012 + 0.075 * np.exp(-np.maximum(below, 0) / 24))

        echo += 2.6 * gleam * _line(below, 0.55) + 0.5 * gleam * _line(below - 1.8, 0.9)
        fading = 1.0
        for order in (2, 3, 4):
            fading *= 0.36
            a_line = _line(_DEPTHS - order * pleura, 0.55 + 0.2 * order)
            wiped = (1 - 0.85 * sick) * np.clip(1 - 1.6 * b_lines, 0, 1)
            echo += 1.5 * fading * gleam * self.contact * wiped * a_line * (0.5 + 0.5 * haze)

        ring = 0.35 + 0.65 * _slide(self.ring_down, shift)
        echo += lung * b_lines * ring * (0.13 + 0.55 * np.exp(-np.maximum(below, 0) / 42))

        echo = self._ribs(echo)
        # from the probe's own face, the same in each frame
        echo += 1.2 * np.exp(-_DEPTHS / 1.1) + 0.5 * _line(_DEPTHS - 3.2, 0.5)
        noise = rng.rayleigh(0.0018, echo.shape) * (1 + _DEPTHS / 60)
        decibels = 20 * np.log10(echo + noise + 1e-6) + 9 - 22 * (_ANGLES / _HALF_ANGLE) ** 10
        compressed: Floats = np.clip(1 + (decibels - 14) / _DYNAMIC_RANGE, 0, 1) ** 1.25
        return compressed

    def _fascia(self) -> Floats:
        depths = (7.5, 12.0, 18.5, 24.0)
        lines = sum(
            level
            * _line(_DEPTHS - depth - 0.7 * np.sin(_ANGLES / (5 + depth / 4) + wave), 0.5)
            * (0.6 + 0.4 * np.sin(_ANGLES / 6 + 2 * wave))
            for depth, level, wave in zip(depths, (0.9, 0.5, 0.8, 0.5), self.waves, strict=True)
        )
        return np.asarray(lines, np.float32) * (0.4 + 0.6 * self.wall)

    def _ribs(self, echo: Floats) -> Floats:
        """Bone returns a bright cap and lets nothing through."""
        for angle, outwards in ((-23.5, -1), (22.5, 1)):
            across = (_ANGLES - angle) / 5.0
            # beyond a rib lies the edge of the beam, which touches no skin
            across = np.where(across * outwards > 0, 0.6 * across, across)
            cap = 20.5 + 3.2 * across**2
            covered = _step(1.05 - np.abs(across), 0.16)
            shadow = covered * _step(_DEPTHS - cap - 1.4, 0.5)
            echo = echo * (1 - 0.99 * shadow)
            echo += 1.6 * covered * _line(_DEPTHS - cap, 0.7) * (0.4 + 0.6 * self.wall)
        return echo


class _ScanConverter(NamedTuple):
    """From the polar grid to the picture.

    Attributes:
        inside: the N pixels inside the beam: bool (H, W).
        rows: of the four grid points around each of them: (4, N).
        columns: likewise.
        weights: of those four in a bilinear interpolation.
        overlay: what is drawn outside the beam: uint8 (H, W).
    """

    inside: NDArray[np.bool_]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    weights: Floats
    overlay: NDArray[np.uint8]

    def __call__(self, polar: Floats) -> NDArray[np.uint8]:
        picture = self.overlay.copy()
        picture[self.inside] = (polar[self.rows, self.columns] * self.weights).sum(axis=0) * 255
        return picture


def _speckle(
    rng: np.random.Generator, shape: tuple[int, int], axial: float, lateral: float
) -> NDArray[np.complex64]:
    """Complex noise blurred by a Gaussian point spread function; its modulus is Rayleigh.

    Args:
        rng: of the noise.
        shape: depths and beams.
        axial: standard deviation in mm.
        lateral: standard deviation in degrees.
    """
    noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    across = np.exp(-2 * (np.pi * np.fft.fftfreq(shape[0]) * axial * _PER_MM) ** 2)
    along = np.exp(-2 * (np.pi * np.fft.fftfreq(shape[1]) * lateral * _PER_DEGREE) ** 2)
    field = np.fft.ifft2(np.fft.fft2(noise) * across[:, None] * along[None])
    field /= np.sqrt((np.abs(field) ** 2).mean())
    return field.astype(np.complex64)


def _slide(field: NDArray[Any], degrees: float) -> NDArray[Any]:
    """Move a field across the beams; what leaves on one side comes in on the other."""
    whole, part = divmod(degrees * _PER_DEGREE, 1)
    near, far = (np.roll(field, int(whole) + step, axis=1) for step in (0, 1))
    return near * np.float32(1 - part) + far * np.float32(part)


def _line(distance: Floats, thickness: float) -> Floats:
    line: Floats = np.exp(-0.5 * (distance / thickness) ** 2)
    return line


def _step(distance: Floats, softness: float) -> Floats:
    step: Floats = 0.5 + 0.5 * np.tanh(distance / softness)
    return step


def _scan_converter(height: int, width: int) -> _ScanConverter:
    half = math.radians(_HALF_ANGLE)
    top = _PROBE_RADIUS * math.cos(half)
    far = _PROBE_RADIUS + _DEPTH
    scale = max((far - top) / (0.96 * height), 2 * far * math.sin(half) / (0.98 * width))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    above = (height - (far - top) / scale) / 2  # pixels
    y = (y - above) * scale + top
    x = (x - (width - 1) / 2) * scale
    row = (np.hypot(x, y) - _PROBE_RADIUS) * (_DEPTHS.size - 1) / _DEPTH
    column = (np.degrees(np.arctan2(x, y)) / _HALF_ANGLE + 1) * (_ANGLES.size - 1) / 2
    inside = (row >= 0) & (row < _DEPTHS.size - 1) & (column >= 0) & (column < _ANGLES.size - 1)
    row, column = row[inside], column[inside]
    top_row, left = row.astype(np.intp), column.astype(np.intp)
    down, right = row - top_row, column - left
    rows = np.stack([top_row, top_row, top_row + 1, top_row + 1])
    columns = np.stack([left, left + 1, left, left + 1])
    weights = np.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    )

    overlay = Image.new("L", (width, height))
    draw = ImageDraw.Draw(overlay)
    margin = width // 60
    font = ImageFont.load_default(size=max(8, width // 26))
    draw.text((margin, margin), "SYNTHETIC", fill=150, font=font)
    for depth in range(0, int(_DEPTH) + 1, 10):  # mm
        level = above + (_PROBE_RADIUS + depth - top) / scale
        long = 2 if depth % 50 == 0 else 1
        draw.line(
            (width - margin * long, level, width, level), fill=120, width=max(1, width // 400)
        )
    return _ScanConverter(inside, rows, columns, weights, np.array(overlay))
