"""The beam: where in the picture ultrasound is.

A scanner draws its image into a shape it knows: a fan of rays from one apex, cut by two arcs, or a
rectangle. So a model of that shape is fitted to what differs from the interface's background, and
the mask is drawn from the model: `evidence` has what differs, `shape` the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from .clip import Clip, Facts
from .evidence import Evidence
from .morphology import Mask, Pixels, disc, opencv
from .shape import Shape, fit

Box = tuple[int, int, int, int]

SECTOR, CURVED, LINEAR, UNKNOWN = "sector", "curved", "linear", "unknown"

#: Below this confidence a beam should not be relied on.
DOUBTFUL = 0.5


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
    def of(cls, evidence: Evidence, declared: Box, shape: tuple[int, int]) -> Interface:
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
    """Detect the beam of a clip.

    What the scanner declared (DICOM regions of 2D and colour images) bounds the search. A clip is
    judged by at most 16 frames spread over its length, so that memory does not grow with it.

    Args:
        clip: any; a still is one of a single frame.

    Returns:
        The beam. Where none is detected, `kind` is `unknown` and `confidence` low.

    Raises:
        MissingDependencyError: if OpenCV or SciPy is not installed.
        UnreadableError: if the clip cannot be decoded.
    """
    return look(spread_over(clip), clip.facts)[0]


def look(frames: Pixels, facts: Facts) -> tuple[Beam, Interface]:
    """Detect the beam in frames of one clip, and what the scanner drew around it.

    Args:
        frames: uint8 (T, H, W, 3).
        facts: what the file says of itself.
    """
    height, width = frames.shape[1:3]
    declared = left, top, right, bottom = _declared(facts, height, width)
    evidence = Evidence.of(frames[:, top:bottom, left:right])
    interface = Interface.of(evidence, declared, (height, width))
    shape, confidence = fit(evidence)
    if shape is None:
        # what the scanner declared is a beam, even where the picture says nothing more
        declares = declared != (0, 0, width, height)
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        return Beam(mask, UNKNOWN, declared, 0.6 if declares else confidence), interface
    shape = shape.scaled(evidence.scale, left, top)
    mask = shape.draw(height, width)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    mask &= inside
    detected = Beam(mask, *_describe(shape, mask), round(confidence, 3), *_geometry(shape))
    return detected, interface


def _describe(shape: Shape, mask: Mask) -> tuple[str, Box]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    if shape.apex is None:
        return LINEAR, box
    return (SECTOR if shape.along[0] < 0.12 * shape.along[1] else CURVED), box


def _geometry(shape: Shape) -> tuple[Any, Any, Any]:
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
