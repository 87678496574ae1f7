"""What of a picture is not background: where the beam may be, and where lettering is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .morphology import Floats, Mask, Pixels, brightest, disc, opencv

# Longest side of the picture that the shape is fitted to.
_FINE = 320


class Evidence(NamedTuple):
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
    def of(cls, frames: Pixels) -> Evidence:
        """From frames of one clip, uint8 (T, H, W, 3)."""
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
