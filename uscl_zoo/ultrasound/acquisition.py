"""What a DICOM header says of the acquisition: when frames were taken, where, and by what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, count
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from .clip import Facts, Region
from .headers import items

if TYPE_CHECKING:
    from pydicom import Dataset

_BY_RATE = ("CineRate", "RecommendedDisplayFrameRate")
#: All that is read to time the frames.
CLOCK = ("NumberOfFrames", "FrameIncrementPointer", "FrameTimeVector", "FrameTime", *_BY_RATE)
#: All that is read for lengths.
SCALE = ("SequenceOfUltrasoundRegions", "PixelSpacing")
#: All that is read for the facts. Of the regions numbers are kept, and of the transducer what
# is in the list below, so that neither can hold a name.
TOLD = [
    "Rows",
    "Columns",
    *SCALE,
    "TransducerType",
    *CLOCK,
]
# PS3.3 C.8.5.6.1: the defined terms, with spaces for underscores
_TRANSDUCERS = frozenset(
    {
        *("SECTOR PHASED", "SECTOR MECH", "SECTOR ANNULAR", "LINEAR", "CURVED LINEAR"),
        *("SINGLE CRYSTAL", "SPLIT XTAL CWD", "IV PHASED", "IV ROT XTAL", "IV ROT MIRROR"),
        *("ENDOCAV PA", "ENDOCAV MECH", "ENDOCAV CLA", "ENDOCAV AA", "ENDOCAV LINEAR"),
        "VECTOR PHASED",
    }
)

# Milliseconds between frames that no clip has; as many microseconds are a hundred frames a second.
_MICRO = 1e4

# Millimetres of the longer side of a picture: from that of a catheter to a panorama of a leg.
_LEAST, _MOST = 1.0, 1000.0


class Clock(NamedTuple):
    """When the frames of a file were taken.

    Attributes:
        steps: seconds between one and the next; none if they are all the same or unknown.
        rate: frames a second, on average; None if unknown.
        note: one line if the header does not say it as it should.
        still: whether there is but one frame.
    """

    steps: list[float]
    rate: float | None
    note: str | None = None
    still: bool = False

    def times(self) -> Iterator[float]:
        """Seconds since the first frame, NaN where unknown."""
        if self.still:
            return iter([0.0])
        if self.steps:
            return accumulate(self.steps, initial=0.0)
        step = 1 / self.rate if self.rate else math.nan
        return (index * step for index in count())


def number_of_frames(header: Dataset) -> int | None:
    """Frames the header promises; None if it does not say, or nothing that can be."""
    stated = numbers(header, "NumberOfFrames")
    return int(stated[0]) if len(stated) == 1 and 1 <= stated[0] < 2**31 else None


def clock(header: Dataset, frames: int) -> Clock:
    """When so many frames were taken.

    FrameIncrementPointer says which tag holds it; else a time for each frame goes before one time
    for all, and that before a rate.
    """
    if frames < 2:
        return Clock([], None, still=True)
    pointed = _pointed(header)
    steps, note = _steps(header, frames)
    rate, other = _rate(header, pointed)
    if steps and not (rate and pointed == "FrameTime"):
        return Clock(steps, len(steps) / sum(steps), note)
    return Clock([], rate, other or note)


def _pointed(header: Dataset) -> str | None:
    """The tag of ours that FrameIncrementPointer names."""
    from pydicom.datadict import keyword_for_tag

    try:
        value = header.get("FrameIncrementPointer")
        tags = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
        named = [keyword_for_tag(tag) for tag in tags if tag is not None]
    except Exception:  # whatever a damaged byte leads to
        return None
    return next((name for name in named if name in CLOCK), None)


def _steps(header: Dataset, frames: int) -> tuple[list[float], str | None]:
    """Seconds between frames by FrameTimeVector, none unless it states them for each."""
    vector = numbers(header, "FrameTimeVector")
    if not vector:
        return [], None
    notes = []
    # the first is of no interval and 0; some leave it out
    steps = vector if vector[0] != 0 and len(vector) == frames - 1 else vector[1:]
    if len(steps) == frames - 2 and steps:
        steps = [*steps, median(steps)]
        notes.append("its FrameTimeVector is one short")
    steps = steps[: frames - 1]
    if len(steps) < frames - 1 or min(steps) <= 0:
        return [], "its FrameTimeVector does not time its frames"
    gaps = [b - a for a, b in zip([0.0, *steps], steps, strict=False)]
    if len(gaps) > 2 and min(gaps) > 0 and max(gaps) < 1.5 * min(gaps):
        # each longer than the last by as much: that is the time since the first
        steps = gaps
        notes.append("its FrameTimeVector counts from the first frame")
    if median(steps) < 1:
        steps = [1000 * step for step in steps]
        notes.append("its FrameTimeVector is in seconds, not milliseconds")
    elif median(steps) >= _MICRO:
        steps = [step / 1000 for step in steps]
        notes.append("its FrameTimeVector is in microseconds, not milliseconds")
    return [step / 1000 for step in steps], "; ".join(notes) or None


def _rate(header: Dataset, pointed: str | None) -> tuple[float | None, str | None]:
    """Frames a second, by the first tag that states a number."""
    rates = {
        keyword: rate
        for keyword in _BY_RATE
        for rate in numbers(header, keyword)[:1]
        if 0 < rate < math.inf
    }
    rate = rates.get(pointed or "", next(iter(rates.values()), None))
    time = next((time for time in numbers(header, "FrameTime")[:1] if time > 0), None)
    if time is None or pointed in rates:
        return rate, None
    if rate is not None:
        for unit, name in ((1.0, ""), (1e3, "seconds"), (1e-3, "microseconds")):
            if abs(1000 / (time * unit) / rate - 1) < 0.25:
                note = f"its FrameTime is in {name}, not milliseconds" if name else None
                return 1000 / (time * unit), note
    # no scanner takes a thousand frames a second, and many programs take seconds for the unit
    if time < 1e-3:
        return rate, "its FrameTime is no time between frames"
    if time < 1:
        return 1 / time, "its FrameTime is in seconds, not milliseconds"
    if time >= _MICRO:
        return 1e6 / time, "its FrameTime is in microseconds, not milliseconds"
    return 1000 / time, None


def facts(header: Dataset, frames: int) -> Facts:
    """What the header says, as far as it cannot name anybody."""
    regions = _regions(header)
    spacing, transducer = _spacing(header, regions), _transducer(header)
    return Facts(regions, spacing, transducer, clock(header, frames).rate)


def scale_note(header: Dataset) -> str | None:
    """One line if lengths of the header make a picture that no probe takes."""
    stated = [_stated(item) for item in items(header, "SequenceOfUltrasoundRegions")]
    if not any(stated):
        stated.append(_of_picture(header))
    for lengths in stated:
        if lengths and _plausible(header, lengths) is None:
            longest = _longest(header, lengths)
            return f"by its header it shows {longest:.3g} mm: no lengths are taken from that"
    return None


def _longest(header: Dataset, sides: tuple[float, float]) -> float:
    """Millimetres of the longer side of the picture, by the height and width of a pixel."""
    return max(sides[0] * int(header.Rows), sides[1] * int(header.Columns))


def _plausible(header: Dataset, sides: tuple[float, float] | None) -> tuple[float, float] | None:
    """Height and width of a pixel, None where a picture of them is of no ultrasound."""
    if sides is None or not _LEAST <= _longest(header, sides) <= _MOST:
        return None
    return sides


def numbers(header: Dataset, keyword: str) -> list[float]:
    """The finite numbers of a tag; none if it is missing or damaged."""
    try:
        value = header.get(keyword)
        numbers = [float(item) for item in (value if hasattr(value, "__len__") else [value])]
    except Exception:  # as for the header
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _regions(header: Dataset) -> tuple[Region, ...]:
    regions = []
    for item in items(header, "SequenceOfUltrasoundRegions"):
        corners = [
            number
            for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")
            for number in numbers(item, f"RegionLocation{corner}")[:1]
        ]
        if len(corners) < 4:
            continue
        left, top = (max(0, int(corner)) for corner in corners[:2])
        # the last pixel inside, though some write the first outside
        right = min(int(corners[2]) + 1, header.Columns)
        bottom = min(int(corners[3]) + 1, header.Rows)
        if left < right and top < bottom:
            lengths = _plausible(header, _stated(item))
            regions.append(Region((left, top, right, bottom), _kind(item), lengths))
    return tuple(regions)


def _kind(item: Dataset) -> str:
    """PS3.3 C.8.5.5.1: by how the region is laid out, then by what it shows."""
    layout, content = (
        next(iter(numbers(item, keyword)), 0)
        for keyword in ("RegionSpatialFormat", "RegionDataType")
    )
    if layout == 1:
        # tissue, and integrated backscatter of it
        return {1: "2D", 2: "colour", 15: "2D"}.get(int(content), "other")
    return {2: "M-mode", 3: "spectral"}.get(int(layout), "other")


def _stated(item: Dataset) -> tuple[float, float] | None:
    """Height and width of a pixel of a region in mm."""
    sides = []
    for axis in "YX":
        cm = numbers(item, f"PhysicalUnits{axis}Direction")[:1] == [3]
        sides += [abs(10 * delta) for delta in numbers(item, f"PhysicalDelta{axis}")[:1] if cm]
    return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None


def _spacing(header: Dataset, regions: tuple[Region, ...]) -> tuple[float, float] | None:
    """That of the 2D regions, if it is the same in all of them; else that of the picture."""
    stated = {region.spacing for region in regions if region.kind in ("2D", "colour")} - {None}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    return _plausible(header, _of_picture(header))


def _of_picture(header: Dataset) -> tuple[float, float] | None:
    """Height and width of a pixel in mm, stated for the picture as a whole."""
    sides = numbers(header, "PixelSpacing")
    return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None


def _transducer(header: Dataset) -> str | None:
    stated = header.get("TransducerType")
    plain = stated.replace("_", " ").strip().upper() if isinstance(stated, str) else None
    return plain if plain in _TRANSDUCERS else None
