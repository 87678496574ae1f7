"""The beam: where in the picture ultrasound is, and the picture without anything else.

A scanner draws its image into a shape it knows: a fan of rays from one apex, cut by two arcs, or a
rectangle. So a model of that shape is fitted to what differs from the interface's background, and
the mask is drawn from the model. For a given apex the best angles and radii are those of an
interval of rays and one of depths, found exactly by summing over each; only the apex is searched.
The edges are then refined by robust least squares on the outline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError
from .clip import Clip, Facts, Frame, Region

if TYPE_CHECKING:
    import types

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SECTOR, CURVED, LINEAR, UNKNOWN = "sector", "curved", "linear", "unknown"

#: Below this confidence a beam should not be relied on.
DOUBTFUL = 0.5

# Longest side of the picture that the model is fitted to, and of the one its apex is searched on.
_FINE, _COARSE = 320, 112

# What a dark pixel inside the beam costs, a bright one outside it costing 1. Beams hold shadows;
# pictures hold few bright pixels that are neither beam nor lettering, which has been taken out.
_DARK = 0.12

# A clip is judged by this many frames at most, spread over its length.
_FRAMES = 16


@dataclass(frozen=True)
class Beam:
    """The ultrasound field of view of a clip.

    Attributes:
        mask: inside the beam, bool (H, W).
        kind: `sector` (a fan from a point), `curved` (from an arc), `linear` (a rectangle), or
            `unknown`, where no edge of the beam is in the picture: the mask is then the whole of it.
        box: left, top, right, bottom of the mask in pixels; right and bottom are the first outside.
        confidence: 0 to 1, how well the model explains the picture.
        apex: x and y in pixels, where the rays of a fan meet; often above the picture.
        angles: of the leftmost and rightmost ray in degrees from straight down, right positive.
        radii: of the nearest and farthest arc in pixels from the apex.
    """

    mask: Mask
    kind: str
    box: Box
    confidence: float
    apex: tuple[float, float] | None = None
    angles: tuple[float, float] | None = None
    radii: tuple[float, float] | None = None


class _Shape(NamedTuple):
    """A fan: rays between two angles from an apex, and depths between two radii.

    With `apex` None, a rectangle of `across` in x and `along` in y. That of a steered linear probe
    leans: `slant` is how far x moves with each y, measured at half its depth.
    """

    apex: tuple[float, float] | None
    across: tuple[float, float]
    along: tuple[float, float]
    slant: float = 0.0

    def draw(self, height: int, width: int) -> Mask:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        along, across = _coordinates(self.apex, x, y)
        if self.apex is None:
            across = across - np.float32(self.slant) * (y - np.float32(sum(self.along) / 2))
        inside: Mask = (across >= self.across[0]) & (across <= self.across[1])
        inside &= (along >= self.along[0]) & (along <= self.along[1])
        return inside

    def scaled(self, scale: float, left: int = 0, top: int = 0) -> _Shape:
        """The same in a picture `scale` times as large, which begins at `left` and `top`."""

        def move(values: tuple[float, float], by: float) -> tuple[float, float]:
            # pixel 0 of the small picture covers pixels 0 to scale - 1 of the large one
            low, high = ((value + 0.5) * scale - 0.5 + by for value in values)
            return low, high

        if self.apex is None:
            return _Shape(None, move(self.across, left), move(self.along, top), self.slant)
        x, y = self.apex
        (x, _), (y, _) = move((x, x), left), move((y, y), top)
        return _Shape((x, y), self.across, (self.along[0] * scale, self.along[1] * scale))


def beam(clip: Clip) -> Beam:
    """Find the beam of a clip.

    What the scanner declared (DICOM regions of 2D and colour images) bounds the search. A clip is
    judged by at most 16 frames spread over its length, so that memory does not grow with it.

    Args:
        clip: any; a still is one of a single frame.

    Returns:
        The beam. Where it cannot be told, `kind` is `unknown` and `confidence` low.

    Raises:
        MissingDependencyError: if OpenCV or SciPy is not installed.
        UnreadableError: if the clip cannot be decoded.
    """
    return _beam(_spread(clip), clip.facts)


def _beam(frames: Pixels, facts: Facts) -> Beam:
    height, width = frames.shape[1:3]
    left, top, right, bottom = _declared(facts, height, width)
    evidence = _Evidence.of(frames[:, top:bottom, left:right])
    shape, confidence = _fit(evidence)
    if shape is None:
        # what the scanner declared is a beam, even where the picture says nothing more
        declared = (left, top, right, bottom) != (0, 0, width, height)
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        return Beam(mask, UNKNOWN, (left, top, right, bottom), 0.6 if declared else confidence)
    shape = shape.scaled(evidence.scale, left, top)
    mask = shape.draw(height, width)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    mask &= inside
    return Beam(mask, *_describe(shape, mask), round(confidence, 3), *_geometry(shape))


def _describe(shape: _Shape, mask: Mask) -> tuple[str, Box]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    if shape.apex is None:
        return LINEAR, box
    return (SECTOR if shape.along[0] < 0.12 * shape.along[1] else CURVED), box


def _geometry(shape: _Shape) -> tuple[Any, Any, Any]:
    if shape.apex is None:
        return None, None, None
    angles = tuple(round(math.degrees(angle), 2) for angle in shape.across)
    return tuple(round(v, 1) for v in shape.apex), angles, tuple(round(v, 1) for v in shape.along)


def _declared(facts: Facts, height: int, width: int) -> Box:
    """The box around the regions with images that the scanner declared, or the whole picture."""
    boxes = [region.box for region in facts.regions if region.kind in ("2D", "colour")]
    if boxes:
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        left, top = max(min(lefts), 0), max(min(tops), 0)
        right, bottom = min(max(rights), width), min(max(bottoms), height)
        if right - left > 16 and bottom - top > 16:
            return left, top, right, bottom
    return 0, 0, width, height


def _spread(clip: Clip) -> Pixels:
    """At most `_FRAMES` frames spread over a clip, holding no more than those at any time."""
    kept: list[Pixels] = []
    step = 1
    for index, frame in enumerate(clip):
        if index % step:
            continue
        kept.append(np.asarray(frame.image.convert("RGB")))
        if len(kept) == _FRAMES:
            # every other one from here on, and of those so far
            kept = kept[::2]
            step *= 2
    return np.stack(kept)


# -------------------------------------------------------------------------------------- evidence


class _Evidence(NamedTuple):
    """What of a picture is not background, at a size fit for fitting.

    Attributes:
        beam: 1 where the beam may be, 0 where it is not, (h, w).
        weight: how much to believe that: less where lettering was, (h, w).
        outline: a stricter mask, whose outline follows sharp edges, (h, w).
        scale: of the picture to this.
    """

    beam: Floats
    weight: Floats
    outline: Mask
    scale: float

    @classmethod
    def of(cls, frames: Pixels) -> _Evidence:
        cv2 = _opencv()
        height, width = frames.shape[1:3]
        scale = max(height, width) / _FINE
        size = max(round(width / scale), 8), max(round(height / scale), 8)
        total = np.zeros((size[1], size[0]), np.float32)
        squares = np.zeros_like(total)
        noise = 0.0
        for frame in frames:
            back, shaken = _background(frame)
            away = cv2.absdiff(frame, np.full_like(frame, back)).max(axis=2)
            small = cv2.resize(away, size, interpolation=cv2.INTER_AREA).astype(np.float32)
            total += small
            squares += small * small
            noise = max(noise, shaken)
        mean = total / len(frames)
        moving = np.sqrt(np.maximum(squares / len(frames) - mean * mean, 0))
        faint = _faint(mean, noise)
        bright = (mean > noise) | faint
        still = len(frames) < 3 or np.median(moving[bright]) < 1.5 if bright.any() else True
        if not still:
            # the deepest noise is seen by its flicker first; and what stands still is drawn
            bright |= moving > 2
            bright &= (moving > 0.3) | (mean < 25)
        bright &= ~_bars(bright)
        beam, lettering = _separate(bright, None if still else moving)
        around = cv2.blur(mean, (13, 13))
        outline = beam & (faint | (mean > np.maximum(noise, 0.25 * around)))
        closed = cv2.morphologyEx(beam.astype(np.uint8), cv2.MORPH_CLOSE, _disc(7))
        weight = np.where(lettering & (closed == 0), np.float32(0.05), np.float32(1))
        return cls(closed.astype(np.float32), weight, outline, scale)


def _faint(mean: Floats, noise: float) -> Mask:
    """Wide fields of one level that is not quite the background's: the beam at low gain."""
    cv2 = _opencv()
    faint = np.zeros(mean.shape, np.uint8)
    for level in range(1, math.ceil(noise)):
        field = (np.abs(mean - level) < 0.02).astype(np.uint8)
        field = cv2.morphologyEx(field, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
        if field.mean() > 0.05:
            faint |= cv2.dilate(field, np.ones((3, 3), np.uint8))
    return faint.astype(bool)


def _bars(bright: Mask) -> Mask:
    """Headers and side bars: strips along a border, filled from end to end."""
    bars = np.zeros_like(bright)
    for turns in range(4):
        side = np.rot90(bright, turns)
        filled = side.mean(axis=1)
        limit = side.shape[0] // 6
        first = int((filled < 0.95).argmax())
        # a beam that fills the picture goes on, and a shadow in it does not begin so sharply
        if 2 < first < limit and filled[min(first + 2, len(filled) - 1)] < 0.7:
            np.rot90(bars, turns)[: first + 2] = True
    return bars


def _background(frame: Pixels) -> tuple[Pixels, float]:
    """The colour of the interface behind the beam, and how far from it noise goes."""
    cv2 = _opencv()
    grey = frame.max(axis=2)
    flat = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) <= 2
    band = max(3, min(grey.shape) // 24)
    border = np.ones_like(flat)
    border[band:-band, band:-band] = False
    for where in (flat & border, flat):
        levels = np.bincount(grey[where], minlength=256)
        level = int(levels.argmax())
        near = levels[max(level - 2, 0) : level + 3].sum()
        if near >= 0.1 * (border if where is not flat else flat).sum() and near > 0.02 * grey.size:
            chosen = flat & (np.abs(grey.astype(int) - level) <= 2)
            colour = np.median(frame[chosen], axis=0).astype(np.uint8)
            exact = (grey[chosen] == colour.max()).mean()
            return colour, 3.0 if exact > 0.95 else 6.0
    return np.zeros(3, np.uint8), 6.0


def _separate(bright: Mask, moving: Floats | None) -> tuple[Mask, Mask]:
    """Part what may be beam from lettering, rulers, bars and headers by its connected parts."""
    cv2 = _opencv()
    filled = cv2.morphologyEx(bright.astype(np.uint8), cv2.MORPH_CLOSE, _disc(3))
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, _disc(5))
    count, labels = cv2.connectedComponents(opened)
    beam = np.zeros_like(bright)
    if count == 1:
        return beam, bright
    # the pace of the part that moves most; lettering stands still
    sizes = np.bincount(labels.ravel(), minlength=count)
    paces = np.bincount(labels.ravel(), None if moving is None else moving.ravel(), count) / sizes
    scores = sizes.astype(float)
    scores[0] = 0
    for i in range(1, count):
        if moving is not None and paces[i] < 0.25:
            scores[i] *= 0.2
    main = int(scores.argmax())
    for i in range(1, count):
        moves = moving is not None and paces[i] > max(0.15 * paces[main], 0.4) and sizes[i] > 12
        if scores[i] and (moves or scores[i] >= 0.03 * scores[main]):
            beam |= labels == i
    beam = cv2.dilate(beam.astype(np.uint8), _disc(3)).astype(bool)
    return beam & bright, bright & ~beam


# ------------------------------------------------------------------------------------------- fit


def _fit(evidence: _Evidence) -> tuple[_Shape | None, float]:
    cv2 = _opencv()
    height, width = evidence.beam.shape
    bright = float((evidence.beam * evidence.weight).sum())
    share = bright / evidence.beam.size
    if share < 0.02:
        return None, 0.0
    by = max(height, width) / _COARSE
    size = max(round(width / by), 4), max(round(height / by), 4)
    beam, weight = (
        cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        for part in (evidence.beam, evidence.weight)
    )
    grid = _Grid.of(beam, weight)
    linear, straight = grid.best(None)
    fan, fanned = _search(grid)
    shape, score = (fan, fanned) if fanned > straight + 0.004 * grid.bright else (linear, straight)
    shape = shape.scaled(by)
    shape = _refine(shape, evidence)
    mask = shape.draw(height, width)
    if mask.mean() > 0.985:
        return None, 0.3
    return shape, _confidence(mask, evidence)


def _confidence(mask: Mask, evidence: _Evidence) -> float:
    """Agreement of the model with the outline: how much of its edge is one in the picture."""
    believed = evidence.beam * evidence.weight
    outside = float(believed[~mask].sum()) / max(float(believed.sum()), 1)
    filled = float(evidence.beam[mask].mean()) if mask.any() else 0.0
    return float(np.clip((1 - 4 * outside) * min(1.0, 0.25 + filled), 0, 1))


def _coordinates(apex: tuple[float, float] | None, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Depth along the rays and place across them: radius and angle, or y and x."""
    if apex is None:
        return y, x
    x, y = x - np.float32(apex[0]), y - np.float32(apex[1])
    return np.hypot(x, y), np.arctan2(x, y)


class _Grid(NamedTuple):
    """The pixels of a small picture and what each adds if it is inside the beam."""

    x: Floats
    y: Floats
    gain: Floats
    bright: float

    @classmethod
    def of(cls, beam: Floats, weight: Floats) -> _Grid:
        y, x = np.mgrid[: beam.shape[0], : beam.shape[1]].astype(np.float32)
        gain = (beam - _DARK * (1 - beam)) * weight
        return cls(x.ravel(), y.ravel(), gain.ravel(), float((beam * weight).sum()))

    def best(self, apex: tuple[float, float] | None) -> tuple[_Shape, float]:
        """The best shape with that apex, and its score."""
        along, across = _coordinates(apex, self.x, self.y)
        gain = self.gain
        if apex is not None:
            # rays go down from the probe
            gain = np.where(np.abs(across) < 1.4, gain, 0)
        rays = _Bins.of(across, 1.0 if apex is None else 1.5 / float(along.max() + 1))
        depths = _Bins.of(along, 1.0)
        # alternately: what lies outside one interval should not sway the other
        inside: Any = np.ones(len(gain), bool)
        span = reach = (0.0, 0.0)
        score = 0.0
        for _ in range(2):
            span, _ = rays.interval(np.where(inside, gain, 0))
            inside = (across >= span[0]) & (across <= span[1])
            reach, score = depths.interval(np.where(inside, gain, 0))
            inside = (along >= reach[0]) & (along <= reach[1])
        return _Shape(apex, span, reach), score


class _Bins(NamedTuple):
    index: NDArray[np.intp]
    low: float
    width: float
    count: int

    @classmethod
    def of(cls, values: Floats, width: float) -> _Bins:
        low = float(values.min()) - width / 2
        index = ((values - low) / width).astype(np.intp)
        return cls(index, low, width, int(index.max()) + 1)

    def interval(self, gain: Floats) -> tuple[tuple[float, float], float]:
        """The interval of bins with the greatest sum, and that sum."""
        sums = np.concatenate([[0.0], np.bincount(self.index, gain, self.count).cumsum()])
        # of equally good ones the widest: beyond the picture there is nothing to be seen
        lows = np.minimum.accumulate(sums)
        gains = sums - lows
        last = int(len(gains) - 1 - gains[::-1].argmax())
        first = int(sums[: last + 1].argmin())
        low, high = self.low + first * self.width, self.low + last * self.width
        return (low, high), float(gains[last])


def _search(grid: _Grid) -> tuple[_Shape, float]:
    """Look for the apex: first on a coarse grid, then downhill from the best places."""
    optimize = _scipy()
    width, height = float(grid.x.max()) + 1, float(grid.y.max()) + 1
    rows = grid.y[grid.gain > 0]
    columns = grid.x[grid.gain > 0]
    top, high = float(np.percentile(rows, 1)), float(np.ptp(rows)) + 1
    middle = float(columns.min() + columns.max()) / 2
    found = []
    for x in (middle, width / 2, middle - 0.1 * width, middle + 0.1 * width):
        for above in (0.0, 0.1, 0.22, 0.4, 0.65, 1.0, 1.6, 2.6):
            apex = (x, top - above * high)
            found.append((grid.best(apex)[1], apex))
    found.sort(reverse=True)

    def loss(apex: NDArray[np.float64]) -> float:
        return -grid.best((float(apex[0]), float(apex[1])))[1]

    best: tuple[float, tuple[float, float]] = found[0]
    for _, start in found[:2]:
        simplex = np.array(start) + np.array([[0, 0], [0.04 * width, 0], [0, -0.08 * height]])
        done = optimize.minimize(
            loss,
            start,
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "maxfev": 60, "xatol": 0.2, "fatol": 1.0},
        )
        best = max(best, (-float(done.fun), (float(done.x[0]), float(done.x[1]))))
    return grid.best(best[1])


def _refine(shape: _Shape, evidence: _Evidence) -> _Shape:
    """Move the edges onto the outline by robust least squares."""
    cv2, optimize = _opencv(), _scipy()
    height, width = evidence.outline.shape
    closed = cv2.morphologyEx(evidence.outline.astype(np.uint8), cv2.MORPH_CLOSE, _disc(7))
    contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return shape
    points = np.concatenate(contours)[:, 0].astype(np.float64)
    # the outline runs through the last pixels inside; what the frame cuts off is no edge
    x, y = points.T
    free = (x > 1) & (y > 1) & (x < width - 2) & (y < height - 2)
    x, y = x[free], y[free]
    reach = 0.025 * math.hypot(height, width)
    for band in (reach, reach / 2):
        shape = _pull(shape, x, y, band, optimize)
    return shape


def _pull(shape: _Shape, x: Floats, y: Floats, band: float, optimize: Any) -> _Shape:
    """One round: the edges to those points of the outline that are within `band` of them."""
    apex = shape.apex
    middle = sum(shape.along) / 2

    def distances(values: Floats) -> Floats:
        """Of each point to the left, right, near and far edge, outside positive: (4, N)."""
        left, right, near, far = values[-4:]
        if apex is None:
            lean = x - values[0] * (y - middle)
            return np.stack([left - lean, lean - right, near - y, y - far])
        u, v = x - values[0], y - values[1]
        r = np.hypot(u, v)
        left_off = v * math.sin(left) - u * math.cos(left)
        right_off = u * math.cos(right) - v * math.sin(right)
        return np.stack([left_off, right_off, near - r, r - far])

    def places(values: Floats) -> Floats:
        """Where the edges cross the middle of the shape, in pixels."""
        left, right, near, far = values[-4:]
        if apex is None:
            return np.array([left, right, near, far])
        sides = [values[0] + middle * math.sin(left), values[0] + middle * math.sin(right)]
        return np.array([*sides, values[1] + near, values[1] + far])

    start = np.array([*(apex or (shape.slant,)), *shape.across, *shape.along])
    apart = np.abs(distances(start))
    edge, near = apart.argmin(axis=0), apart.min(axis=0) < band
    if near.sum() < 20:
        return shape
    index, edge = np.nonzero(near)[0], edge[near]
    # an edge that is nowhere to be seen stays where it is
    seen = np.bincount(edge, minlength=4) >= 12
    hold = np.where(seen, 0.01, 10.0)
    at = places(start)

    def residuals(values: Floats) -> Floats:
        stay = hold * (places(values) - at)
        return np.concatenate([distances(values)[edge, index], stay])

    done = optimize.least_squares(
        residuals, start, loss="cauchy", f_scale=0.7, x_scale=_scales(shape), max_nfev=40
    )
    values = [float(value) for value in done.x]
    across, along = (values[-4], values[-3]), (max(values[-2], 0.0), values[-1])
    if apex is None:
        return shape._replace(across=across, along=(values[-2], values[-1]), slant=values[0])
    return shape._replace(apex=(values[0], values[1]), across=across, along=along)


def _scales(shape: _Shape) -> Floats:
    """How much of each parameter moves an edge by a pixel."""
    if shape.apex is None:
        return np.array([2 / (shape.along[1] - shape.along[0]), 1, 1, 1, 1])
    return np.array([1, 1, 1 / shape.along[1], 1 / shape.along[1], 1, 1])


# -------------------------------------------------------------------------------------- libraries


def _disc(size: int) -> Pixels:
    cv2 = _opencv()
    disc: Pixels = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return disc


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            "finding the beam needs OpenCV: pip install 'uscl-zoo[clean]'"
        ) from error
    return cv2


def _scipy() -> Any:
    try:
        from scipy import optimize
    except ImportError as error:
        raise MissingDependencyError(
            "finding the beam needs SciPy: pip install 'uscl-zoo[clean]'"
        ) from error
    return optimize
