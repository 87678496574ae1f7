"""The frames of a clip with what is not ultrasound blanked; the rest stays where it was."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..ultrasound.beam import UNKNOWN
from ..ultrasound.cleaning import Cleaner
from ..ultrasound.clip import Clip
from ..ultrasound.reading import read, sample
from ..ultrasound.sources import Look

#: Frames taken from a clip at most.
MOST_FRAMES = 24


class Blanked(NamedTuple):
    """The frames of a clip with less and less in them; what is left stays where it was.

    Attributes:
        frames: as they are, uint8 (T, H, W, 3).
        outside: without what is outside the beam, of the same shape.
        all: without text and calipers in it either.
        cut: that, cut to the beam: what a network sees that was made for cleaned frames.
        beam: its kind.
        confidence: of the beam.
        blanked: share of the pixels that lie outside it.
        removed: share of those in it that were painted over.
    """

    frames: NDArray[np.uint8]
    outside: NDArray[np.uint8]
    all: NDArray[np.uint8]
    cut: NDArray[np.uint8]
    beam: str
    confidence: float
    blanked: float
    removed: float


def blank(source: Path, look: Look) -> Blanked:
    """Blank, in the first frames of a source, what is not ultrasound.

    Args:
        source: file or folder.
        look: how; the beam is that of all frames that would be looked at, as for `explain`.

    Raises:
        UnreadableError: if it cannot be decoded.
        DataError: if its frames are of several sizes.
    """
    clip = _open(source, look.rate)
    return _blanked(clip, look.cleaner(source), look.grey)


def _open(source: Path, rate: float) -> Clip:
    """The frames to look at, with what the file says of itself."""
    frames = list(islice(sample(source, rate), MOST_FRAMES))
    shapes = {frame.image.size for frame in frames}
    if len(shapes) > 1:
        raise DataError(f"{source}: its frames are of several sizes")
    pixels = np.stack([np.asarray(frame.image) for frame in frames])
    times = np.array([frame.time for frame in frames])
    return Clip.of(pixels, times, source, read(source).facts)


def _blanked(clip: Clip, cleaner: Cleaner, grey: bool) -> Blanked:
    left, top, right, bottom = cleaner.box
    mask = cleaner.beam.mask if cleaner.sure else np.ones_like(cleaner.beam.mask)
    outside = clip.frames * mask[:, :, None]
    everything = np.zeros_like(outside)
    painted = 0
    for target, frame in zip(everything, clip.frames, strict=True):
        # not cropped: the network would see the ultrasound at another size
        target[top:bottom, left:right], overlay = cleaner(Image.fromarray(frame))
        painted += int(overlay.sum())
    frames, outside, everything = (
        _grey(some) if grey else some for some in (clip.frames, outside, everything)
    )
    return Blanked(
        frames,
        outside,
        everything,
        everything[:, top:bottom, left:right],
        cleaner.beam.kind if cleaner.sure else UNKNOWN,
        cleaner.beam.confidence,
        1 - float(mask.mean()),
        painted / (len(outside) * max(int(mask.sum()), 1)),
    )


def _grey(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness alone, in all channels, as `Look.at` has it."""
    return np.stack(
        [np.asarray(Image.fromarray(frame).convert("L").convert("RGB")) for frame in frames]
    )
