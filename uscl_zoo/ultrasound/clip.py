"""A clip: frames of ultrasound, their times, and what the file said of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError

#: Larger frames are refused: no screen has more than 8K, 7,680 x 4,320. Whatever their depth, these
#: decode within 10 s and 2 GB.
MAX_PIXELS = 2**25

OnDamage = Callable[[str], None]


class Wanted:
    """Whether the frame at a time, in seconds or NaN, is to be made an image.

    To be asked once of each frame and in order: the first at or behind each multiple of 1/`rate`
    seconds is, and every one without a time, or without a rate.
    """

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._next = 0

    def __call__(self, time: float) -> bool:
        """Whether the next frame, which is at that time, is."""
        if self.rate is None or math.isnan(time):
            return True
        tick = self.tick(time)
        if tick < self._next:
            return False
        self._next = tick + 1
        return True

    def tick(self, time: float) -> int:
        """The number of the last multiple that a time has reached; -1 without a rate."""
        if self.rate is None:
            return -1
        # Matroska rounds times to milliseconds: 0.333 s has reached the tick at 1/3 s
        return math.floor((time + 0.001) * self.rate)


class DamageWarning(UserWarning):
    """A source is not what it says of itself, or part of it could not be used.

    The message says what was detected instead; the frames that could be decoded were.
    """


class Frame(NamedTuple):
    """One frame.

    Attributes:
        time: seconds since the first frame; 0 for a still, NaN where the source does not say.
        image: RGB, 8 bits a channel.
    """

    time: float
    image: Image.Image


@dataclass(frozen=True)
class Region:
    """A part of the picture that a scanner has declared (DICOM, ultrasound region calibration).

    Attributes:
        box: left, top, right, bottom in pixels; right and bottom are the first outside.
        kind: `2D`, `colour`, `M-mode`, `spectral` or `other`.
        spacing: height and width of a pixel in mm, None where it is not a length.
    """

    box: tuple[int, int, int, int]
    kind: str
    spacing: tuple[float, float] | None = None


@dataclass(frozen=True)
class Facts:
    """What a file says of its own acquisition. Nothing in it can name a person.

    Attributes:
        regions: parts of the picture the scanner declared.
        spacing: height and width of a pixel in mm, None if unknown or not the same everywhere.
        transducer: type, a defined term of DICOM with spaces for underscores, such as
            `CURVED LINEAR`; None if unknown or anything else.
        frame_rate: frames a second of what moves, None if unknown.
    """

    regions: tuple[Region, ...] = ()
    spacing: tuple[float, float] | None = None
    transducer: str | None = None
    frame_rate: float | None = None


@dataclass(frozen=True)
class Clip:
    """Frames of one source, decoded when they are asked for.

    Iterating decodes anew each time and holds one frame; `frames` decodes once and keeps them all.

    Attributes:
        decode: starts decoding from the first frame.
        source: file or folder, None for frames from memory.
        facts: what the file says of itself.
    """

    decode: Callable[[], Iterator[Frame]] = field(repr=False)
    source: Path | None = None
    facts: Facts = Facts()

    @classmethod
    def of(
        cls,
        frames: NDArray[Any],
        times: NDArray[Any] | None = None,
        source: Path | None = None,
        facts: Facts | None = None,
    ) -> Clip:
        """A clip of frames in memory.

        Args:
            frames: uint8 (T, H, W, 3), at least one.
            times: seconds since the first frame, (T,); None where unknown, 0 for a single frame.
            source: where they came from.
            facts: what that says of itself.

        Raises:
            DataError: if the frames have another shape or type, or the times another length.
        """
        if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise DataError(
                f"frames should be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}"
            )
        if times is None:
            times = np.zeros(1) if len(frames) == 1 else np.full(len(frames), np.nan)
        if times.shape != (len(frames),):
            raise DataError(f"{len(frames)} frames should have as many times, not {times.shape}")

        def decode() -> Iterator[Frame]:
            for time, frame in zip(times, frames, strict=True):
                yield Frame(float(time), Image.fromarray(frame))

        clip = cls(decode, source, facts or Facts())
        # they are decoded already
        clip.__dict__["_decoded"] = (frames, times.astype(np.float64))
        return clip

    def __iter__(self) -> Iterator[Frame]:
        return self.decode()

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def _decoded(self) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        times, images = zip(*self.decode(), strict=True)
        sizes = sorted({image.size for image in images})
        if len(sizes) > 1:
            (width, height), (other_width, other_height) = sizes[:2]
            raise DataError(
                f"{self.source}: frames of {width} x {height} and {other_width} x {other_height} "
                "pixels make no array; iterate over the clip instead"
            )
        return np.stack([np.asarray(image) for image in images]), np.array(times, np.float64)

    @property
    def frames(self) -> NDArray[np.uint8]:
        """All frames, uint8 (T, H, W, 3).

        Raises:
            DataError: if they have different sizes, as the pages of a TIFF may.
        """
        return self._decoded[0]

    @property
    def times(self) -> NDArray[np.float64]:
        """Seconds since the first frame, float64 (T,), NaN where the source does not say."""
        return self._decoded[1]
