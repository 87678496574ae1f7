"""The beam: where in the picture ultrasound is.

A scanner draws its image into a shape it knows: a fan of rays from one apex, cut by two arcs, or a
rectangle. So a model of that shape is fitted to what differs from the interface's background, and
the mask is drawn from the model. For a given apex the best angles and radii are those of an
interval of rays and one of depths, found exactly by summing over each; only the apex is searched.
The edges are then refined by robust least squares on the outline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingDependencyError
from .clip import Clip, Facts

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
            `unknown`, where no edge of the beam is in the picture: the mask is then all of it.
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


@dataclass(frozen=True)
class Interface:
    """What of a clip is not tissue, whatever model of the beam it lies in.

    Attributes:
        plain: neither tissue nor within a few pixels of it, bool (H, W).
        black: whether the background is.
    """

    plain: Mask
    black: bool

    @classmethod
    def of(cls, evidence: _Evidence, declared: Box, shape: tuple[int, int]) -> Interface:
        """From the evidence within the box that the scanner declared.

        Args:
            evidence: of that box.
            declared: left, top, right and bottom.
            shape: height and width of the picture.
        """
        cv2 = opencv()
        left, top, right, bottom = declared
        tissue = cv2.dilate(evidence.beam, disc(3))
        tissue = cv2.resize(tissue, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        plain = np.ones(shape, bool)
        plain[top:bottom, left:right] = tissue < 0.5
        return cls(plain, evidence.black)


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
    return look(spread_over(clip), clip.facts)[0]


def look(frames: Pixels, facts: Facts) -> tuple[Beam, Interface]:
    """Find the beam in frames of one clip, and what the scanner drew around it.

    Args:
        frames: uint8 (T, H, W, 3).
        facts: what the file says of itself.
    """
    height, width = frames.shape[1:3]
    declared = left, top, right, bottom = _declared(facts, height, width)
    evidence = _Evidence.of(frames[:, top:bottom, left:right])
    interface = Interface.of(evidence, declared, (height, width))
    shape, confidence = _fit(evidence)
    if shape is None:
        # what the scanner declared is a beam, even where the picture says nothing more
        said = declared != (0, 0, width, height)
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        return Beam(mask, UNKNOWN, declared, 0.6 if said else confidence), interface
    shape = shape.scaled(evidence.scale, left, top)
    mask = shape.draw(height, width)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    mask &= inside
    found = Beam(mask, *_describe(shape, mask), round(confidence, 3), *_geometry(shape))
    return found, interface


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


def spread_over(clip: Clip) -> Pixels:
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
    sizes = sorted({(frame.shape[1], frame.shape[0]) for frame in kept})
    if len(sizes) > 1:
        (width, height), (other_width, other_height) = sizes[:2]
        raise DataError(
            f"{clip.source}: frames of {width} x {height} and {other_width} x {other_height} "
            "pixels have no beam in common; split the clip"
        )
    return np.stack(kept)


# -------------------------------------------------------------------------------------- evidence


class _Evidence(NamedTuple):
    """What of a picture is not background, at a size fit for fitting.

    Attributes:
        beam: 1 where the beam may be, 0 where it is not, (h, w).
        weight: how much to believe that: less where lettering was, (h, w).
        outline: a stricter mask, whose outline follows sharp edges, (h, w).
        bright: all that is not background, lettering and the sparsest echoes too, (h, w).
        black: whether the background is.
        scale: of the picture to this.
    """

    beam: Floats
    weight: Floats
    outline: Mask
    bright: Mask
    black: bool
    scale: float

    @classmethod
    def of(cls, frames: Pixels) -> _Evidence:
        cv2 = opencv()
        height, width = frames.shape[1:3]
        scale = max(height, width) / _FINE
        size = max(round(width / scale), 8), max(round(height / scale), 8)
        whole = np.zeros((height, width), np.float32)
        mean, squares = np.zeros((2, size[1], size[0]), np.float32)
        noise, black = 0.0, True
        for frame in frames:
            back, shaken = _background(frame)
            black &= int(back.max()) <= 3
            away = brightest(cv2.absdiff(frame, np.full_like(frame, back)))
            cv2.accumulate(away, whole)
            small = cv2.resize(away, size, interpolation=cv2.INTER_AREA).astype(np.float32)
            mean += small / len(frames)
            squares += small * small / len(frames)
            noise = max(noise, shaken)
        whole /= len(frames)
        moving = np.sqrt(np.maximum(squares - mean * mean, 0))
        # between strokes there is background, between speckles hardly ever
        stroke = max(3, round(max(height, width) / 128)) | 1
        opened = cv2.morphologyEx(whole, cv2.MORPH_OPEN, np.ones((stroke, stroke), np.uint8))
        solid = cv2.resize(opened, size, interpolation=cv2.INTER_AREA)
        around = cv2.blur(mean, (13, 13))
        faint = _faint(mean, noise)
        bright = (mean > noise) | faint
        still = len(frames) < 3 or np.median(moving[bright]) < 1.5 if bright.any() else True
        if not still:
            # the deepest noise is seen by its flicker first; and what stands still is drawn
            bright |= moving > 2
            bright &= (moving > 0.3) | (mean < 25)
        bright &= ~_bars(bright)
        firm = bright & (faint | (solid > np.maximum(noise, 0.25 * around)))
        beam, lettering = _separate(bright, firm, None if still else moving)
        outline = beam & (faint | (mean > np.maximum(noise, 0.25 * around)))
        closed = cv2.morphologyEx(beam.astype(np.uint8), cv2.MORPH_CLOSE, disc(7))
        weight = np.where(lettering & (closed == 0), np.float32(0.05), np.float32(1))
        return cls(closed.astype(np.float32), weight, outline, bright, black, scale)


def _faint(mean: Floats, noise: float) -> Mask:
    """Wide fields of one level that is not quite the background's: the beam at low gain."""
    cv2 = opencv()
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
        # a beam that fills the picture goes on, and a shadow in it does not begin so sharply; JPEG
        # may draw the edge of a bar twice
        if 2 < first < limit and np.median(filled[first + 1 : first + 6]) < 0.7:
            doubled = np.nonzero(filled[first : first + 6] >= 0.95)[0]
            np.rot90(bars, turns)[: first + 2 + int(doubled.max(initial=0))] = True
    return bars


def _background(frame: Pixels) -> tuple[Pixels, float]:
    """The colour of the interface behind the beam, and how far from it noise goes."""
    cv2 = opencv()
    full = brightest(frame)
    flat = cv2.morphologyEx(full, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) <= 2
    step = max(1, max(full.shape) // _FINE)
    grey, flat, frame = full[::step, ::step], flat[::step, ::step], frame[::step, ::step]
    band = max(2, min(grey.shape) // 24)
    border = np.ones_like(flat)
    border[band:-band, band:-band] = False
    for where, of in ((flat & border, border), (flat, flat)):
        levels = np.bincount(grey[where], minlength=256)
        level = int(levels.argmax())
        near = levels[max(level - 2, 0) : level + 3].sum()
        if near >= 0.1 * of.sum() and near > 0.02 * grey.size:
            chosen = flat & (cv2.absdiff(grey, np.full_like(grey, level)) <= 2)
            colour = np.median(frame[chosen], axis=0).astype(np.uint8)
            exact = (grey[chosen] == colour.max()).mean()
            return colour, 3.0 if exact > 0.95 else 6.0
    return np.zeros(3, np.uint8), 6.0


def _separate(bright: Mask, firm: Mask, moving: Floats | None) -> tuple[Mask, Mask]:
    """Part what may be beam from lettering, rulers, bars and headers by its connected parts."""
    cv2 = opencv()
    filled = cv2.morphologyEx(firm.astype(np.uint8), cv2.MORPH_CLOSE, disc(5))
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, disc(5))
    if moving is not None:
        # lettering does not move: here small parts count too
        moves = cv2.morphologyEx((moving > 0.5).astype(np.uint8), cv2.MORPH_CLOSE, disc(5))
        opened |= cv2.morphologyEx(moves, cv2.MORPH_OPEN, disc(3))
    count, labels = cv2.connectedComponents(opened)
    beam = np.zeros_like(bright)
    if count == 1:
        return beam, bright
    # the pace of the part that moves most; lettering stands still
    sizes = np.bincount(labels.ravel(), minlength=count)
    moves_of = np.bincount(labels.ravel(), None if moving is None else moving.ravel(), count)
    paces = moves_of / np.maximum(sizes, 1)
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
    beam = cv2.dilate(beam.astype(np.uint8), disc(7)).astype(bool)
    return beam & bright, bright & ~beam


# ------------------------------------------------------------------------------------------- fit


def _fit(evidence: _Evidence) -> tuple[_Shape | None, float]:
    cv2 = opencv()
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
    outline = _Outline.of(evidence.outline)
    found: list[tuple[float, _Shape]] = []
    # a fan can mimic a rectangle from afar: it has to be the better of the two
    for (shape, score), handicap in ((grid.best(None), 0.0), (_search(grid), 0.004)):
        shape = _settle(_refine(shape.scaled(by), outline), outline, evidence)
        worth = score / grid.bright - handicap + 0.05 * outline.support(shape).mean()
        found.append((worth, shape))
    _, shape = max(found, key=lambda one: one[0])
    mask = shape.draw(height, width)
    if mask.mean() > 0.985:
        return None, 0.3
    return shape, _confidence(mask, evidence)


def _settle(shape: _Shape, outline: _Outline, evidence: _Evidence) -> _Shape:
    """Place edges that are nowhere to be seen where they most likely are."""
    left, right, near, far = outline.support(shape)
    height, width = outline.shape
    if shape.apex is not None:
        # a shadow hides one side of a fan; most are as wide to the left as to the right
        span, wide = shape.across, max(-shape.across[0], shape.across[1])
        hidden, shown = (left, right) if wide == span[1] else (right, left)
        even = shape._replace(across=(-wide, wide))
        # a shadow has straight edges too, but begins below the skin
        beyond = even.draw(height, width) & ~shape.draw(height, width)
        seen = (evidence.beam * evidence.weight)[beyond].mean() if beyond.any() else 0.0
        if hidden < 0.3 < shown or seen > 0.02:
            shape = even
        return _deepen(shape, evidence.bright)
    # a shadow along the border of a picture that was cropped inside the beam
    margin = 0.05 * max(height, width)
    across = [
        -1.0 if left < 0.3 and shape.across[0] < margin else shape.across[0],
        width + 1.0 if right < 0.3 and shape.across[1] > width - margin else shape.across[1],
    ]
    along = [
        -1.0 if near < 0.3 and shape.along[0] < margin else shape.along[0],
        height + 1.0 if far < 0.3 and shape.along[1] > height - margin else shape.along[1],
    ]
    return shape._replace(across=(across[0], across[1]), along=(along[0], along[1]))


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
    place: NDArray[np.intp]
    low: float
    width: float
    many: int

    @classmethod
    def of(cls, values: Floats, width: float) -> _Bins:
        low = float(values.min()) - width / 2
        index = ((values - low) / width).astype(np.intp)
        return cls(index, low, width, int(index.max()) + 1)

    def interval(self, gain: Floats) -> tuple[tuple[float, float], float]:
        """The interval of bins with the greatest sum, and that sum."""
        sums = np.concatenate([[0.0], np.bincount(self.place, gain, self.many).cumsum()])
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


def _deepen(shape: _Shape, bright: Mask) -> _Shape:
    """Move the far arc of a fan out to the last echoes that are spread over its whole width.

    In a still these may be too sparse to be told from lettering, which is nowhere as wide.
    """
    y, x = np.nonzero(bright)
    along, across = _coordinates(shape.apex, x.astype(np.float32), y.astype(np.float32))
    (low, high), (near, far) = shape.across, shape.along
    thick = 0.02 * (far - near)
    sector = np.floor(12 * (across - low) / (high - low)).astype(int)
    ring = np.floor((along - far) / thick).astype(int)
    there = (sector >= 0) & (sector < 12) & (ring >= 0)
    filled = np.zeros((60, 12), bool)
    filled[np.minimum(ring[there], 59), sector[there]] = True
    spread = filled.mean(axis=1) >= 0.6
    # a line across the picture, such as a heartbeat, fills one ring alone
    spread[1:-1] &= spread[:-2] | spread[2:]
    # two empty rings end it
    deepest = -1
    for i in range(59):
        if spread[i]:
            deepest = i
        elif i > deepest + 2:
            break
    return shape._replace(along=(near, far + (deepest + 1) * thick)) if deepest > 1 else shape


class _Outline(NamedTuple):
    """Where what is seen ends, apart from the border of the picture.

    Attributes:
        x: of its N pixels.
        y: likewise.
        near: whether a pixel is within two of the outline, (h, w).
    """

    x: Floats
    y: Floats
    near: Mask

    @classmethod
    def of(cls, seen: Mask) -> _Outline:
        cv2 = opencv()
        height, width = seen.shape
        closed = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, disc(7))
        contours, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        points = np.concatenate([np.zeros((0, 1, 2), np.intp), *contours])[:, 0]
        x, y = points.T
        free = (x > 1) & (y > 1) & (x < width - 2) & (y < height - 2)
        x, y = x[free], y[free]
        near = np.zeros(seen.shape, np.uint8)
        near[y, x] = 1
        near = cv2.dilate(near, disc(5)).astype(bool)
        return cls(x.astype(np.float64), y.astype(np.float64), near)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture."""
        height, width = self.near.shape
        return height, width

    def support(self, shape: _Shape) -> Floats:
        """Shares of the left, right, near and far edge, as far as in the picture, that are seen."""
        t = np.linspace(0.02, 0.98, 100)
        low, high = shape.across
        first, last = shape.along
        across, along = low + t * (high - low), first + t * (last - first)
        ends = ((low, along), (high, along), (across, first), (across, last))
        height, width = self.shape
        shares = []
        for a, d in ends:
            if shape.apex is None:
                x, y = a + shape.slant * (d - (first + last) / 2), d
            else:
                x, y = shape.apex[0] + d * np.sin(a), shape.apex[1] + d * np.cos(a)
            x, y = np.broadcast_arrays(np.rint(x).astype(int), np.rint(y).astype(int))
            there = (x > 1) & (y > 1) & (x < width - 2) & (y < height - 2)
            # too little of an edge says nothing
            seen = self.near[y[there], x[there]].mean() if there.sum() > 8 else 0.0
            shares.append(float(seen))
        return np.array(shares)


def _refine(shape: _Shape, outline: _Outline) -> _Shape:
    """Move the edges onto the outline by robust least squares."""
    reach = 0.025 * math.hypot(*outline.shape)
    for band in (reach, reach / 2):
        shape = _pull(shape, outline, band)
    return shape


def _pull(shape: _Shape, outline: _Outline, band: float) -> _Shape:
    """One round: the edges to those points of the outline that are within `band` of them."""
    apex, x, y = shape.apex, outline.x, outline.y
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
    if len(x) < 20:
        return shape
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

    done = _scipy().least_squares(
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


def disc(size: int) -> Pixels:
    """A round kernel, uint8 (size, size)."""
    cv2 = opencv()
    disc: Pixels = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return disc


def brightest(picture: Pixels) -> Pixels:
    """The brightest channel of each pixel; NumPy's own maximum is 20 times slower."""
    cv2 = opencv()
    red, green, blue = cv2.split(picture)
    brightest: Pixels = cv2.max(cv2.max(red, green), blue)
    return brightest


def opencv() -> Any:
    """OpenCV, imported when it is needed.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            "finding the beam needs OpenCV: pip install 'uscl-zoo[clean]'"
        ) from error
    return cv2


def _scipy() -> Any:
    try:
        from scipy import optimize  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "finding the beam needs SciPy: pip install 'uscl-zoo[clean]'"
        ) from error
    return optimize
