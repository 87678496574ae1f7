"""A clip without what the scanner drew around its beam and over it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from .beam import DOUBTFUL, UNKNOWN, Beam, Box, Interface, look, spread_over
from .clip import Clip, Frame, Region
from .lettering import lettering
from .morphology import Mask, Pixels, brightest, disc, opencv

# Wider than any stroke of lettering at the sizes scanners export.
_STROKE = np.ones((9, 9), np.uint8)
# Frames cleaned side by side; most of it is OpenCV's, which lets other threads run.
_THREADS = 2
# Steps of 12 degrees around the circle of hues.
_HUES = 30


@dataclass(frozen=True)
class Cleaned:
    """A clip without what the scanner drew around and over the ultrasound.

    Attributes:
        clip: cropped to the beam, black outside it, lettering inside it painted over; frames are
            cleaned when they are asked for.
        beam: that was detected, in pixels of the original.
        colour: whether there is colour Doppler, which is kept.
        cleaner: makes each frame.
        original: the clip as it was.
    """

    clip: Clip
    beam: Beam
    colour: bool
    cleaner: Cleaner
    original: Clip

    def overlays(self) -> Iterator[Mask]:
        """What was painted over or blanked in the beam of each frame: bool (H, W) of the crop."""
        for frame in self.original:
            yield self.cleaner(frame.image)[1]


def clean(clip: Clip) -> Cleaned:
    """Crop a clip to its beam, blank what is outside, and take out what is drawn inside.

    Where the background or lettering of the interface reaches into the detected beam, it is
    blanked too. Text inside the beam is detected by a network; calipers and rulers by their sharp
    strokes, by their colour, and in a moving clip by standing still. They are painted over (Telea's
    inpainting). Frames are cleaned two at a time, in order, where OpenCV is left two threads.
    Where no beam is detected the frames are left as they are: see `Beam.confidence`.

    Args:
        clip: any; it is decoded once to look at it and again for each use of the result.

    Raises:
        MissingDependencyError: if OpenCV, SciPy or RapidOCR is not installed.
        UnreadableError: if the clip cannot be decoded.
    """
    cleaner = Cleaner.of(clip)

    def decode() -> Iterator[Frame]:
        threads = min(_THREADS, opencv().getNumThreads())
        waiting: deque[tuple[float, Future[tuple[Image.Image, Mask]]]] = deque()
        with ThreadPoolExecutor(threads, "cleaning") as pool:
            for frame in clip:
                waiting.append((frame.time, pool.submit(cleaner, frame.image)))
                if len(waiting) > threads:
                    time, done = waiting.popleft()
                    yield Frame(time, done.result()[0])
            for time, done in waiting:
                yield Frame(time, done.result()[0])

    facts = replace(clip.facts, regions=_moved(clip.facts.regions, cleaner.box))
    cleaned = Clip(decode, clip.source, facts)
    return Cleaned(cleaned, cleaner.beam, cleaner.colour, cleaner, clip)


def _moved(regions: tuple[Region, ...], box: Box) -> tuple[Region, ...]:
    """Regions in pixels of a crop; those outside it are left out."""
    moved = []
    for region in regions:
        left, top = max(region.box[0], box[0]) - box[0], max(region.box[1], box[1]) - box[1]
        right, bottom = min(region.box[2], box[2]) - box[0], min(region.box[3], box[3]) - box[1]
        if left < right and top < bottom:
            moved.append(replace(region, box=(left, top, right, bottom)))
    return tuple(moved)


@dataclass(frozen=True)
class Cleaner:
    """Cleans the frames of one clip.

    Attributes:
        beam: of the clip.
        hues: those of colour Doppler, bool (30,), which is kept; none where there is none.
        tint: of the grey scale, its colour as shares of the brightest channel, float32 (3,).
        drawn: what stands still over moving tissue, and lines of text; bool of the crop.
        foreign: of the interface, though within the beam: the model is not that exact; bool of the
            crop.
        still: whether nothing moves, so that white strokes have to be known by their shape.
    """

    beam: Beam
    hues: NDArray[np.bool_]
    tint: NDArray[np.float32]
    drawn: Mask
    foreign: Mask
    still: bool

    @classmethod
    def of(cls, clip: Clip) -> Cleaner:
        """Look at a clip.

        Raises:
            MissingDependencyError: if OpenCV, SciPy or RapidOCR is not installed.
            UnreadableError: if the clip cannot be decoded.
        """
        frames = spread_over(clip)
        with ThreadPoolExecutor(1, "lettering") as pool:
            # on another core, while the beam is fitted
            text = pool.submit(lettering, frames)
            beam, interface = look(frames, clip.facts)
            within, across = _written(text.result(), beam.mask)
        left, top, right, bottom = beam.box
        foreign = (across | _reaching_in(beam.mask, interface))[top:bottom, left:right]
        frames, inside = frames[:, top:bottom, left:right], beam.mask[top:bottom, left:right]
        tint = _tint(frames, inside)
        hues = _hues(frames, inside, tint)
        drawn = _standing(frames, inside) | within[top:bottom, left:right]
        still = _is_still(frames, inside)
        return cls(beam, hues, tint, drawn, foreign, still)

    @property
    def colour(self) -> bool:
        """Whether there is colour Doppler."""
        return bool(self.hues.any())

    @property
    def sure(self) -> bool:
        """Whether a beam was detected, so that frames are cropped and blanked."""
        return self.beam.kind != UNKNOWN and self.beam.confidence >= DOUBTFUL

    @property
    def box(self) -> Box:
        """What frames are cropped to."""
        if self.sure:
            return self.beam.box
        height, width = self.beam.mask.shape
        return 0, 0, width, height

    def __call__(self, image: Image.Image) -> tuple[Image.Image, Mask]:
        """Clean a frame.

        Args:
            image: of the size of the clip.

        Returns:
            The frame, and what was painted over or blanked in the beam: bool of its size.

        Raises:
            DataError: if the image has another size.
        """
        cv2 = opencv()
        height, width = self.beam.mask.shape
        if image.size != (width, height):
            raise DataError(
                f"a frame of {image.width}x{image.height} in a clip of {width}x{height} cannot be "
                "cleaned; split the clip"
            )
        if not self.sure:
            return image, np.zeros((height, width), bool)
        left, top, right, bottom = self.box
        crop = np.array(image.crop(self.box).convert("RGB"))
        inside = self.beam.mask[top:bottom, left:right]
        overlay = self.drawn | _strokes(crop, inside, self.tint, self.still, self.hues)
        if overlay.any():
            overlay = cv2.dilate(overlay.astype(np.uint8), disc(3)).astype(bool) & inside
            _paint_over(crop, overlay)
        crop[~inside | self.foreign] = 0
        return Image.fromarray(crop), overlay | self.foreign


def _written(text: Mask, inside: Mask) -> tuple[Mask, Mask]:
    """Lines of text within the beam, and those of which a quarter or more is outside it.

    The latter are of the interface, and what is behind them may not be tissue.
    """
    cv2 = opencv()
    # a letter may stick out of its box
    count, labels = cv2.connectedComponents(cv2.dilate(text.astype(np.uint8), disc(5)))
    outside = np.bincount(labels[~inside], minlength=count)
    across = (outside >= 0.25 * np.bincount(labels.ravel(), minlength=count))[labels]
    written = (labels > 0) & inside
    return written & ~across, written & across


def _reaching_in(inside: Mask, interface: Interface) -> Mask:
    """Background that is not black, as a dark part of a beam is, as far as it reaches into it."""
    if interface.black:
        return np.zeros_like(inside)
    _, labels = opencv().connectedComponents((interface.plain | ~inside).astype(np.uint8))
    return np.isin(labels, np.unique(labels[~inside])) & interface.plain & inside


def _is_still(frames: Pixels, inside: Mask) -> bool:
    if len(frames) < 4:
        return True
    first, last = brightest(frames[0])[inside], brightest(frames[len(frames) // 2])[inside]
    return float(np.abs(first.astype(int) - last).mean()) < 2


def _paint_over(picture: Pixels, overlay: Mask) -> None:
    """Inpaint, piece by piece: the library's cost is that of the whole picture."""
    cv2 = opencv()
    pieces = cv2.dilate(overlay.astype(np.uint8), np.ones((15, 15), np.uint8))
    outlines, _ = cv2.findContours(pieces, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for left, top, wide, high in map(cv2.boundingRect, outlines):
        part = np.s_[top : top + high, left : left + wide]
        hole = overlay[part].astype(np.uint8)
        picture[part] = cv2.inpaint(np.ascontiguousarray(picture[part]), hole, 2, cv2.INPAINT_TELEA)


def _tint(frames: Pixels, inside: Mask) -> NDArray[np.float32]:
    """The colour of the grey scale: some scanners show sepia or blue."""
    pixels = frames[len(frames) // 2][inside][::7].astype(np.float32)
    brightest = pixels.max(axis=1)
    pixels, brightest = pixels[brightest > 40], brightest[brightest > 40]
    if len(pixels) < 50:
        return np.ones(3, np.float32)
    tint: NDArray[np.float32] = np.median(pixels / brightest[:, None], axis=0).astype(np.float32)
    return tint


def _tinged(picture: Pixels, tint: NDArray[np.float32]) -> Pixels:
    """How far each pixel's colour is from the tint, 0-255."""
    cv2 = opencv()
    channels = cv2.split(picture)
    brightest = cv2.max(cv2.max(channels[0], channels[1]), channels[2])
    away = [
        cv2.absdiff(channel, brightest if share == 1 else cv2.multiply(brightest, float(share)))
        for channel, share in zip(channels, tint, strict=True)
    ]
    tinged: Pixels = cv2.max(cv2.max(away[0], away[1]), away[2])
    return tinged


def _flow(tinged: Pixels, inside: Mask) -> Mask:
    """Areas of colour too wide to be strokes: flow."""
    cv2 = opencv()
    coloured = ((tinged > 60) & inside).astype(np.uint8)
    flow: Mask = cv2.morphologyEx(coloured, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8)).astype(bool)
    return flow


def _hue(picture: Pixels) -> NDArray[np.intp]:
    """The hue of each pixel, in `_HUES` steps around the circle."""
    cv2 = opencv()
    hue = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)[..., 0]
    return np.asarray(hue.astype(np.intp) * _HUES // 256)


def _hues(frames: Pixels, inside: Mask, tint: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The hues of flow: bool (_HUES,), none if there is too little of it to be flow."""
    counts = np.zeros(_HUES, np.int64)
    most = 0.0
    for frame in frames:
        flow = _flow(_tinged(frame, tint), inside)
        most = max(most, float(flow.mean()))
        if flow.any():
            counts += np.bincount(_hue(frame)[flow], minlength=_HUES)
    if most <= 0.002:
        return np.zeros(_HUES, bool)
    common = counts > 0.02 * counts.sum()
    # its edges fade into the hues beside them
    near: NDArray[np.bool_] = common | np.roll(common, 1) | np.roll(common, -1)
    return near


def _standing(frames: Pixels, inside: Mask) -> Mask:
    """Bright thin strokes that stay where the tissue under them moves."""
    cv2 = opencv()
    marks = np.zeros_like(inside)
    grey = [brightest(frame) for frame in frames]
    # each half on its own: lettering may come or go
    half = max(len(grey) // 2, 4)
    for some in (grey[:half], grey[-half:]):
        if len(some) < 4:
            continue
        lowest, highest = np.min(some, axis=0), np.max(some, axis=0)
        spread = cv2.subtract(highest, lowest)
        thin = cv2.morphologyEx(lowest, cv2.MORPH_TOPHAT, _STROKE)
        around = cv2.blur(spread, (15, 15))
        marks |= (thin > 60) & (around > 24) & (spread < 0.3 * around) & inside
    return _glyphs(marks)


def _strokes(
    picture: Pixels,
    inside: Mask,
    tint: NDArray[np.float32],
    still: bool,
    hues: NDArray[np.bool_],
) -> Mask:
    """Sharp thin strokes of one frame: of another colour, and in a still white ones."""
    cv2 = opencv()
    grey = brightest(picture)
    tinged = _tinged(picture, tint)
    strokes = (cv2.morphologyEx(tinged, cv2.MORPH_TOPHAT, _STROKE) > 40) & (grey > 60)
    flow = _flow(tinged, inside)
    if flow.any():
        strokes &= cv2.dilate(flow.astype(np.uint8), _STROKE) == 0
    if hues.any():
        # a thin vessel is a stroke, and only its colour tells
        strokes &= ~hues[_hue(picture)]
    if still:
        # white ones stand out from the speckle around them, or could not be distinguished from it
        thin = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, _STROKE)
        speckle = cv2.blur(thin, (41, 41))
        strokes |= (thin > 100) & (grey > 180) & (thin > 7 * speckle.astype(int))
    strokes &= inside
    return _glyphs(strokes) if strokes.any() else strokes


def _glyphs(strokes: Mask) -> Mask:
    """Strokes of more than a few pixels."""
    cv2 = opencv()
    around = cv2.boxFilter(strokes.astype(np.uint8), -1, (5, 5), normalize=False)
    kept: Mask = strokes & (around >= 5)
    return kept
