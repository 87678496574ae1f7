"""Where the frames of encapsulated pixel data are, whatever its offset table says.

Each frame is one or more fragments. A table says where frames begin; many tables are empty, and
some are wrong. A frame also shows by its content where it begins, and mostly where it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from .jpeg import SEAM, STARTS, Misfit

#: Start and length of a piece of a file.
Piece = tuple[int, int]

#: How an item begins.
ITEM = b"\xfe\xff\x00\xe0"
_END = b"\xfe\xff\xdd\xe0"

# Of eight bytes each, so that only a file made for it has more.
_MOST_FRAGMENTS = 2**20
_CHUNK = 2**20


class Layout(NamedTuple):
    """The frames, each as the pieces of the file that make it up, and what was detected instead."""

    frames: list[list[Piece]]
    note: str | None = None


class _Fragment(NamedTuple):
    start: int
    length: int
    begins: bool
    ends: bool


def find_frames(
    stream: BinaryIO, size: int, stated: int | None, extended: tuple[int, ...] = ()
) -> Layout:
    """Find the frames of pixel data, from the place where their first item is.

    Args:
        stream: at the first item.
        size: of the file.
        stated: frames the header promises, None if it does not say.
        extended: the Extended Offset Table, if there is one.

    Returns:
        The frames. Where content and table differ, content is right if it agrees with `stated` or
        the table cannot be.
    """
    fragments, table = _read(stream, size)
    nonempty = [fragment for fragment in fragments if fragment.length]
    if stated is None or len(nonempty) >= stated:
        fragments = nonempty
    if not fragments:
        return Layout([])
    table = extended or table
    by_table = _by_table(fragments, table)
    by_content = _by_content(fragments, stated)
    plain = stated == len(fragments) > 1 and (by_table or not table)
    if by_content is not None and not (plain and len(by_content) == stated):
        # a fragment may hold the end of a frame and the start of the next
        by_content = _by_seams(stream, fragments, by_content)
    if by_content is None:
        frames = by_table or _by_number(fragments, stated)
    elif by_table and len(by_table) == stated != len(by_content) and _agree(by_table, by_content):
        # the table knows of a frame that its content does not show: it is damaged
        frames = by_table
    else:
        frames = by_content
    wrong = bool(table) and by_table != frames
    note = f"its offset table is wrong; {len(frames)} frames are recognised by their content"
    return Layout(frames, note if wrong else None)


def find_bare(stream: BinaryIO, start: int, end: int) -> list[list[Piece]]:
    """Find frames in compressed pixels that no items hold."""
    return list(_cut(stream, [(start, end - start)]))


def join(stream: BinaryIO, pieces: list[Piece]) -> bytes:
    """The bytes of a frame."""
    parts = []
    for start, length in pieces:
        stream.seek(start)
        parts.append(stream.read(length))
    return b"".join(parts)


def _read(stream: BinaryIO, size: int) -> tuple[list[_Fragment], tuple[int, ...]]:
    """All fragments, and the Basic Offset Table."""
    fragments: list[_Fragment] = []
    table: tuple[int, ...] = ()
    first = True
    at = stream.tell()
    while at + 8 <= size and len(fragments) <= _MOST_FRAGMENTS:
        stream.seek(at)
        head = stream.read(8)
        if head.startswith(_END):
            break
        length = int.from_bytes(head[4:], "little")
        if not head.startswith(ITEM):
            # a length before it was wrong; what follows can still be searched for
            start = _search(stream, at, size)
            if start is None:
                break
            at = start
            continue
        if at + 8 + length > size:
            # cut off, or its length is damaged and others follow
            start = _search(stream, at + 8, size)
            length = (size if start is None else start) - at - 8
        fragment = _look(stream, at + 8, length)
        if first and not fragment.begins:
            table = _parse(stream, at + 8, length)
        else:
            fragments.append(fragment)
        first = False
        at += 8 + length
    if len(fragments) > _MOST_FRAGMENTS:
        raise Misfit(f"more than {_MOST_FRAGMENTS:,} fragments")
    return fragments, table


def _search(stream: BinaryIO, at: int, size: int) -> int | None:
    """Where the next item begins."""
    while at < size:
        stream.seek(at)
        chunk = stream.read(_CHUNK + 3)
        place = chunk.find(ITEM)
        if place >= 0:
            return at + place
        at += _CHUNK
    return None


def _look(stream: BinaryIO, start: int, length: int) -> _Fragment:
    stream.seek(start)
    head = stream.read(min(length, 64))
    stream.seek(start + max(0, length - 4))
    tail = stream.read(min(length, 4)).rstrip(b"\0")
    return _Fragment(start, length, begins(head), tail.endswith(b"\xff\xd9"))


def begins(head: bytes) -> bool:
    """Whether a frame of a known kind begins with these bytes, of which 64 are enough."""
    if head.startswith(STARTS):
        return True
    # RLE: how many segments, and where they are, the first behind this table of 64 bytes
    count = int.from_bytes(head[:4], "little")
    offsets = [int.from_bytes(head[i : i + 4], "little") for i in range(4, len(head) - 3, 4)]
    return (
        0 < count <= 15
        and offsets[:1] == [64]
        and all(a < b for a, b in pairwise(offsets[:count]))
        and not any(offsets[count:])
    )


def _parse(stream: BinaryIO, start: int, length: int) -> tuple[int, ...]:
    if length > 4 * _MOST_FRAGMENTS:
        return ()
    stream.seek(start)
    data = stream.read(length - length % 4)
    return tuple(int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4))


def _pieces(fragments: list[_Fragment]) -> list[Piece]:
    return [(fragment.start, fragment.length) for fragment in fragments]


def _split(fragments: list[_Fragment], firsts: list[int]) -> list[list[Piece]]:
    ends = [*firsts[1:], len(fragments)]
    return [_pieces(fragments[a:b]) for a, b in zip(firsts, ends, strict=True)]


def _by_table(fragments: list[_Fragment], table: tuple[int, ...]) -> list[list[Piece]]:
    """Frames as a table has them; none unless each offset is that of a fragment, and all rise."""
    base = fragments[0].start - 8
    # a file that is cut off lacks what its table still has
    end = fragments[-1].start + fragments[-1].length - base
    table = tuple(offset for offset in table if offset < end)
    places = {fragment.start - 8 - base: i for i, fragment in enumerate(fragments)}
    firsts = [places.get(offset, -1) for offset in table]
    rising = all(a < b for a, b in pairwise(firsts))
    return _split(fragments, firsts) if firsts and firsts[0] == 0 and rising else []


def _by_content(fragments: list[_Fragment], stated: int | None) -> list[list[Piece]] | None:
    """Frames as they show where they begin; None if none does."""
    if not any(fragment.begins for fragment in fragments):
        return None
    each = len(fragments) == stated and not any(fragment.ends for fragment in fragments)
    firsts = [
        i
        for i, fragment in enumerate(fragments)
        # what follows the end of a frame is another, even if it is damaged
        if i == 0 or fragment.begins or fragments[i - 1].ends or each
    ]
    return _split(fragments, firsts)


def _by_seams(
    stream: BinaryIO, fragments: list[_Fragment], frames: list[list[Piece]]
) -> list[list[Piece]]:
    """The frames cut further where one ends and another begins within a fragment."""
    return [piece for frame in frames for piece in _cut(stream, frame)]


def _cut(stream: BinaryIO, pieces: list[Piece]) -> Iterator[list[Piece]]:
    current: list[Piece] = []
    before, done, last = b"", 0, 0
    for start, length in pieces:
        stream.seek(start)
        # a seam may lie across fragments
        data = before + stream.read(length)
        current.append((start, length))
        for seam in SEAM.finditer(data):
            place = done - len(before) + seam.end()
            if place <= last:
                continue
            last = place
            head, rest = _divide(current, done + length - place)
            yield head
            current = rest
        done += length
        before = data[-8:]
    if current:
        yield current


def _divide(pieces: list[Piece], behind: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces in two: all but the last bytes, so many as are said, and these."""
    head = list(pieces)
    rest: list[Piece] = []
    while behind > 0:
        start, length = head.pop()
        taken = min(behind, length)
        rest.insert(0, (start + length - taken, taken))
        if taken < length:
            head.append((start, length - taken))
        behind -= taken
    return head, rest


def _by_number(fragments: list[_Fragment], stated: int | None) -> list[list[Piece]]:
    """Neither content nor a table says: a frame a fragment, unless there is but one."""
    return [_pieces(fragments)] if stated == 1 else [[piece] for piece in _pieces(fragments)]


def _agree(by_table: list[list[Piece]], by_content: list[list[Piece]]) -> bool:
    """Whether each frame that shows where it begins is one of the table's, too."""
    return {frame[0] for frame in by_content} <= {frame[0] for frame in by_table}
