"""The shape of a beam, a fan or a rectangle, and its fit to what differs from the background.

For a given apex the best angles and radii are those of an interval of rays and one of depths,
computed exactly by summing over each; only the apex is searched. The edges are then refined by
robust least squares on the outline.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependencyError
from .evidence import Evidence
from .morphology import Floats, Mask, disc, opencv

# Longest side of the picture on which the apex is searched.
_COARSE = 112


# What a dark pixel inside the beam costs, a bright one outside it costing 1. Beams hold shadows;
# pictures hold few bright pixels that are neither beam nor lettering, which has been taken out.
_DARK = 0.12


class Shape(NamedTuple):
    """A fan: rays between two angles from an apex, and depths between two radii.

    With `apex` None, a rectangle of `across` in x and `along` in y. That of a steered linear probe
    leans: `slant` is how far x moves with each y, measured at half its depth.
    """

    apex: tuple[float, float] | None
    across: tuple[float, float]
    along: tuple[float, float]
    slant: float = 0.0

    def draw(self, height: int, width: int) -> Mask:
        """The mask of it in a picture of that size, bool (height, width)."""
        y, x = np.mgrid[:height, :width].astype(np.float32)
        along, across = _coordinates(self.apex, x, y)
        if self.apex is None:
            across = across - np.float32(self.slant) * (y - np.float32(sum(self.along) / 2))
        inside: Mask = (across >= self.across[0]) & (across <= self.across[1])
        inside &= (along >= self.along[0]) & (along <= self.along[1])
        return inside

    def scaled(self, scale: float, left: int = 0, top: int = 0) -> Shape:
        """The same in a picture `scale` times as large, which begins at `left` and `top`."""

        def move(values: tuple[float, float], by: float) -> tuple[float, float]:
            # pixel 0 of the small picture covers pixels 0 to scale - 1 of the large one
            low, high = ((value + 0.5) * scale - 0.5 + by for value in values)
            return low, high

        if self.apex is None:
            return Shape(None, move(self.across, left), move(self.along, top), self.slant)
        x, y = self.apex
        (x, _), (y, _) = move((x, x), left), move((y, y), top)
        return Shape((x, y), self.across, (self.along[0] * scale, self.along[1] * scale))


def fit(evidence: Evidence) -> tuple[Shape | None, float]:
    """Fit a fan and a rectangle, and take the one that explains more.

    Returns:
        The shape at the evidence's scale and the confidence in it, 0 to 1; None where no edge of a
        beam is in the picture.
    """
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
    fitted: list[tuple[float, Shape]] = []
    # a fan can mimic a rectangle from afar: it has to be the better of the two
    for (shape, score), handicap in ((grid.best(None), 0.0), (_search(grid), 0.004)):
        shape = _settle(_refine(shape.scaled(by), outline), outline, evidence)
        worth = score / grid.bright - handicap + 0.05 * outline.support(shape).mean()
        fitted.append((worth, shape))
    _, shape = max(fitted, key=lambda one: one[0])
    mask = shape.draw(height, width)
    if mask.mean() > 0.985:
        return None, 0.3
    return shape, _confidence(mask, evidence)


def _settle(shape: Shape, outline: _Outline, evidence: Evidence) -> Shape:
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


def _confidence(mask: Mask, evidence: Evidence) -> float:
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

    def best(self, apex: tuple[float, float] | None) -> tuple[Shape, float]:
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
        return Shape(apex, span, reach), score


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


def _search(grid: _Grid) -> tuple[Shape, float]:
    """Look for the apex: first on a coarse grid, then downhill from the best places."""
    optimize = _scipy()
    width, height = float(grid.x.max()) + 1, float(grid.y.max()) + 1
    rows = grid.y[grid.gain > 0]
    columns = grid.x[grid.gain > 0]
    top, high = float(np.percentile(rows, 1)), float(np.ptp(rows)) + 1
    middle = float(columns.min() + columns.max()) / 2
    tried = []
    for x in (middle, width / 2, middle - 0.1 * width, middle + 0.1 * width):
        for above in (0.0, 0.1, 0.22, 0.4, 0.65, 1.0, 1.6, 2.6):
            apex = (x, top - above * high)
            tried.append((grid.best(apex)[1], apex))
    tried.sort(reverse=True)

    def loss(apex: NDArray[np.float64]) -> float:
        return -grid.best((float(apex[0]), float(apex[1])))[1]

    best: tuple[float, tuple[float, float]] = tried[0]
    for _, start in tried[:2]:
        simplex = np.array(start) + np.array([[0, 0], [0.04 * width, 0], [0, -0.08 * height]])
        done = optimize.minimize(
            loss,
            start,
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "maxfev": 60, "xatol": 0.2, "fatol": 1.0},
        )
        best = max(best, (-float(done.fun), (float(done.x[0]), float(done.x[1]))))
    return grid.best(best[1])


def _deepen(shape: Shape, bright: Mask) -> Shape:
    """Move the far arc of a fan out to the last echoes that are spread over its whole width.

    In a still these may be too sparse to be distinguished from lettering, which is nowhere as wide.
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

    def support(self, shape: Shape) -> Floats:
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


def _refine(shape: Shape, outline: _Outline) -> Shape:
    """Move the edges onto the outline by robust least squares."""
    reach = 0.025 * math.hypot(*outline.shape)
    for band in (reach, reach / 2):
        shape = _pull(shape, outline, band)
    return shape


def _pull(shape: Shape, outline: _Outline, band: float) -> Shape:
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


def _scales(shape: Shape) -> Floats:
    """How much of each parameter moves an edge by a pixel."""
    if shape.apex is None:
        return np.array([2 / (shape.along[1] - shape.along[0]), 1, 1, 1, 1])
    return np.array([1, 1, 1 / shape.along[1], 1 / shape.along[1], 1, 1])


def _scipy() -> Any:
    try:
        from scipy import optimize  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "detecting the beam needs SciPy: pip install 'uscl-zoo[clean]'"
        ) from error
    return optimize
