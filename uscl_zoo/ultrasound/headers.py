"""Headers of DICOM, by pydicom, as far as they take no longer to read than a header may."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .jpeg import Misfit

if TYPE_CHECKING:
    from pydicom import Dataset

# pydicom makes a data set of each item of a sequence, and asks for bytes some three times: eight of
# a file can take a tenth of a millisecond. A header has some hundred, one that says everything of
# each of a thousand frames some ten thousand.
_MOST_READS = 60_000
# Of a sequence that is looked into.
_MOST_BYTES = 2**18
_MOST_ENTRIES = 2**16


class _Bounded:
    """A stream that is not asked for bytes without end."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.left = stream, _MOST_READS
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Misfit("its header has more parts than any that is known")
        return self.stream.read(size)


def read(stream: BinaryIO, tags: list[Any]) -> Dataset:
    """Of the header of a file the tags that are wanted; the stream is at the pixels then.

    Raises:
        Misfit: if it takes too long.
        Exception: of any kind, as pydicom raises whatever a damaged byte leads to.
    """
    from pydicom import dcmread

    bounded: Any = _Bounded(stream)
    return dcmread(bounded, stop_before_pixels=True, specific_tags=tags, force=True)


def is_long(header: Dataset, keyword: str) -> bool:
    """Whether a sequence is longer than is looked into."""
    # not read yet, its value is bytes
    held: Any = header.get_item(keyword) if keyword in header else None
    value = getattr(held, "value", None)
    return isinstance(value, bytes) and len(value) > _MOST_BYTES


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none if it is absent, or too long.

    Raises:
        Exception: as `read`.
    """
    return [] if is_long(header, keyword) else list(header.get(keyword) or ())


def expand_segments(words: Sequence[int], wide: bool) -> list[int]:
    """The entries of a palette that is in segments: PS3.3 C.7.9.2.

    Segments are runs of entries, lines from the last entry to another, and copies of segments
    before them. pydicom takes the places of copies, which are in bytes, for those of words.

    Args:
        words: of the data.
        wide: whether they have 16 bits, else 8.

    Raises:
        Misfit: if they come to more entries than a palette can have, or copy what is not there.
    """
    if len(words) > 2 * _MOST_ENTRIES:
        raise Misfit("its palette is longer than one can be")
    starts: dict[int, int] = {}
    segments: list[tuple[int, Sequence[int]]] = []
    table: list[int] = []
    at = 0
    while at + 2 < len(words):
        kind, count = words[at], words[at + 1]
        size = {0: count, 1: 1, 2: 2 if wide else 4}.get(kind, 0)
        held = words[at + 2 : at + 2 + size]
        added = [(count, held) if kind == 1 else (0, held)]
        if kind == 2:
            place = sum(word << (16 if wide else 8) * i for i, word in enumerate(held))
            first = starts.get(place // 2 if wide else place, len(segments))
            added = segments[first : first + count]
            if len(added) < count:
                raise Misfit("its palette copies what is not there")
        else:
            # copies of copies, nobody writes
            starts[at] = len(segments)
            segments += added
        for length, values in added:
            line = (
                np.linspace(table[-1] if table else 0, values[0], length + 1)[1:] if length else ()
            )
            table += [int(value) for value in np.around(line)] or values
            if len(table) > _MOST_ENTRIES:
                raise Misfit("its palette has more entries than one can have")
        at += 2 + size
    return table
