"""DICOM, by pydicom: frames and times, and the few facts that can name nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError, UnreadableError, quietly, reason
from ..files import open_file
from . import acquisition, encapsulated, headers, jpeg, pixels
from .acquisition import CLOCK, SCALE
from .clip import MAX_PIXELS, Facts, Frame, OnDamage, Wanted
from .display import GROUPS, Display, of_groups
from .encapsulated import Piece
from .jpeg import Misfit
from .pixels import NoDecoderError, Picture, Stated

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

#: Suffixes, compared without case; any file that is DICOM by its content is taken besides.
SUFFIXES = frozenset({".acr", ".dc3", ".dcm", ".dicm", ".dicom", ".ima"})

_UNDEFINED = 0xFFFFFFFF

# Frames that are looked at, all over a file, for the bits and the range that they use.
_LOOKED_AT = 8

# How much rougher a picture has to be for its samples to be laid out in the other way: of 225 files
# of a dozen sources none is below 1.17 in the wrong one, nor above 0.85 in the right one.
_ROUGHER = 1.1

# Implicit and little-endian but for the pixels, which the name of a syntax of GE alone says.
_PIXELS_BIG_ENDIAN = "1.2.840.113619.5.2"

# All that is read of a header to show the pixels, to time the frames, and to doubt its lengths.
_SHOWN = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
    "ExtendedOffsetTable",
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(
        f"{segmented}{colour}PaletteColorLookupTable{part}"
        for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for colour in ("Red", "Green", "Blue")
    ),
    *GROUPS,
    *CLOCK,
    *SCALE,
]
# Bits that overlays of the old kind are in, each in a group of its own.
_OVERLAYS = [0x60000102 + (group << 16) for group in range(0, 32, 2)]
_COLOURS = {
    1: {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"},
    3: {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"},
}


def is_dicom(head: bytes) -> bool:
    """Whether a file is DICOM by its first 132 bytes, or ACR-NEMA, which begins at once.

    That has neither preamble nor name; its first element is of group 2 or 8, mostly the length of
    the group or the character set.
    """
    if head[128:132] == b"DICM":
        return True
    group, element = int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little")
    if group not in (2, 8) or element > 0x70 or len(head) < 16:
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"SH", b"DA", b"LO", b"OB")
    return explicit or 0 < int.from_bytes(head[4:8], "little") <= 64


@dataclass(frozen=True)
class _File:
    """An open file whose header has been read.

    Attributes:
        stream: of its bytes.
        header: the tags we keep.
        syntax: of the transfer.
        stated: what the header says of every frame.
        start: of the pixels.
        promised: frames it promises, None if it says nothing that can be.
        frames: where each is: pieces of the file of one that is encapsulated, else its start.
        swapped: whether bytes of frames that are not compressed come in pairs, exchanged.
        halved: whether two neighbours in them share their colour.
        big_endian: the order of bytes in samples of 16 bits.
        notes: what was detected instead of what the header says, a line each.
    """

    stream: BinaryIO
    header: Dataset
    syntax: UID
    stated: Stated
    start: int
    promised: int | None
    frames: Sequence[list[Piece]] | range
    swapped: bool
    halved: bool
    big_endian: bool
    notes: tuple[str, ...]

    def decode(self, index: int) -> Picture:
        """A frame, by its number from 0."""
        frame = self.frames[index]
        if not isinstance(frame, int):
            data = encapsulated.join(self.stream, frame)
            return pixels.of_stream(data, self.stated, self.syntax)
        size = self.stated.length * 2 // 3 if self.halved else self.stated.length
        if self.swapped:
            before = (frame - self.start) % 2
            self.stream.seek(frame - before)
            pairs = np.frombuffer(self.stream.read(before + size + 1 & ~1), "<u2")
            data = pairs.byteswap().tobytes()[before : before + size]
        else:
            self.stream.seek(frame)
            data = self.stream.read(size)
        return pixels.of_native(data, self.stated, self.big_endian, self.halved)

    def pictures(self, spread: int) -> list[Picture]:
        """So many frames from all over the file, those that can be decoded."""
        decoded = []
        for index in dict.fromkeys(
            np.linspace(0, len(self.frames) - 1, spread).astype(int).tolist()
        ):
            with suppress(Exception):  # it is met again in its turn
                decoded.append(quietly(partial(self.decode, index)))
        return decoded


def iterate(
    path: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    """Decode a DICOM file; see `reading.iterate`."""
    try:
        import pydicom.pixels  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading DICOM needs pydicom; install it by: pip install 'uscl-zoo[dicom]'"
        ) from error

    with _open(path) as stream:
        try:
            file = quietly(lambda: _read(path, stream))
            clock = quietly(lambda: acquisition.clock(file.header, len(file.frames)))
            display = Display(file.header, file.stated, _overlays(file.header))
            if file.stated.allocated > 8 or file.stated.stored < 8:
                quietly(lambda: display.learn(file.pictures(_LOOKED_AT)))
        except UnreadableError:
            raise
        except NoDecoderError as error:
            raise UnreadableError(f"{path}: {error}") from None
        except Misfit as error:
            raise UnreadableError(f"{path}: cannot be read ({error})") from None
        # pydicom raises whatever a damaged byte leads to. What it says may quote the file, so it
        # goes no further, not even as the cause
        except Exception:
            raise UnreadableError(f"{path}: the DICOM header is damaged or incomplete") from None
        if clock.rate is None and frame_rate:
            clock = clock._replace(rate=frame_rate)
        yield from _decode(path, file, display, clock, on_damage, wanted)


def _decode(
    path: Path,
    file: _File,
    display: Display,
    clock: acquisition.Clock,
    on_damage: OnDamage,
    wanted: Wanted,
) -> Iterator[Frame]:
    """The frames that are there, but for those that are damaged."""
    there = len(file.frames)
    promised = max(file.promised or 1, there)
    scale = quietly(lambda: acquisition.scale_note(file.header))
    reported = dict.fromkeys([*file.notes, *filter(None, (clock.note, scale))], False)
    lost: list[int] = []
    trouble = f"its header promises {promised}"
    times = clock.times()
    for index in range(there):
        time = next(times)
        try:
            picture = quietly(partial(file.decode, index))
        except NoDecoderError as error:
            raise UnreadableError(f"{path}: {error}") from None
        except Exception as error:
            if not lost or lost[-1] != index - 1:
                # the first of those at the end, if it comes to that
                why = f": {error}" if isinstance(error, Misfit) else ""
                trouble = f"frame {index + 1} of {promised} is damaged{why}"
            lost.append(index)
            continue
        try:
            shown = quietly(partial(display, picture)) if wanted(time) else None
        except Exception:  # as for the header, of which this is the rest
            raise UnreadableError(f"{path}: the DICOM header is damaged or incomplete") from None
        for note in (*([picture.note] if picture.note else []), *display.notes):
            reported.setdefault(note, False)
        for note in [note for note, done in reported.items() if not done]:
            reported[note] = True
            on_damage(f"{path}: {note}")
        if shown is not None:
            yield Frame(time, Image.fromarray(shown).convert("RGB"))
    if len(lost) == there:
        raise UnreadableError(f"{path}: no frame can be decoded ({trouble})")
    whole = there
    while lost and lost[-1] == whole - 1:
        whole = lost.pop()
    if lost:
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        on_damage(f"{path}: frame {lost[0] + 1}{others} of {promised} damaged, and left out")
    if whole < promised:
        on_damage(f"{path}: breaks off after {whole} frames ({trouble})")


def facts(path: Path) -> Facts:
    """What the header says of the acquisition; nothing where it is damaged."""

    def read() -> Facts:
        with _open(path) as stream:
            # how many there are, whatever is promised
            frames = len(_read(path, stream).frames)
        with open_file(path) as stream:
            header = headers.read(stream, acquisition.TOLD)
        return acquisition.facts(header, frames)

    try:
        return quietly(read)
    except Exception:  # as for the pixels
        return Facts()


def _open(path: Path) -> BinaryIO:
    try:
        stream = open_file(path)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({reason(error)})") from error
    if not is_dicom(stream.read(132)):
        stream.close()
        raise UnreadableError(f"{path}: not a DICOM file by its content")
    stream.seek(0)
    return stream


def _read(path: Path, stream: BinaryIO) -> _File:
    """The header, and where the frames are."""
    from pydicom import uid

    size = stream.seek(0, os.SEEK_END)
    syntax = _syntax(path, stream)
    of_ge = syntax == _PIXELS_BIG_ENDIAN
    # pydicom would inflate it whole
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        raise UnreadableError(f"{path}: deflated DICOM is not read; convert it, e.g. by dcmconv")
    stream.seek(0)
    header = headers.read(stream, [*_SHOWN, *_OVERLAYS])
    if any(headers.is_long(header, f"{name}LUTSequence") for name in ("Modality", "VOI")):
        raise Misfit("its look-up tables are longer than any that is known")
    stated = _check(path, header)
    # now at the pixels: tag, its type if that is explicit, length
    at, start = stream.tell(), stream.read(12)
    explicit = start[4:6] in (b"OB", b"OW", b"UN")
    if len(start) < (12 if explicit else 8):
        raise UnreadableError(f"{path}: the DICOM file holds no pixels")
    little = bool(header.original_encoding[1])
    length = int.from_bytes(start[8:12] if explicit else start[4:8], "little" if little else "big")
    at += 12 if explicit else 8
    if syntax is None or not syntax.is_transfer_syntax:
        syntax = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    promised = acquisition.number_of_frames(header)
    end = size if length == _UNDEFINED else min(size, at + length)
    stream.seek(at)
    head = stream.read(12)
    stream.seek(at)
    notes = of_groups(header)
    notes += [] if stated.photometric else ["its header does not say what its samples are"]
    halved = False
    frames: Sequence[list[Piece]] | range
    fits = length != _UNDEFINED and length >= stated.length
    if length == _UNDEFINED or head.startswith(encapsulated.ITEM):
        frames, note = encapsulated.find_frames(stream, end, promised, _extended(header))
        notes += [note] if note else []
        _refuse_unknown(path, stream, syntax, frames)
    elif head.startswith(jpeg.STARTS) and (syntax.is_encapsulated or not fits):
        frames = encapsulated.find_bare(stream, at, end)
        notes.append("its frames are compressed and not encapsulated")
    else:
        stated, halved, note = _layout(stream, at, end, stated, promised)
        notes += [note] if note else []
        stated, note = _planes(stream, at, stated) if not halved else (stated, None)
        notes += [note] if note else []
        each = stated.length * 2 // 3 if halved else stated.length
        length = end - at
        if length == (promised or 1) * each + 1:
            # what fills an odd length up to an even one is no frame
            length -= 1
        frames = range(at, at + length // each * each, each)
    there = len(frames)
    if there > (promised or 1):
        said = f"promises {promised}" if promised else "does not say how many"
        notes.append(f"{there} frames are there, its header {said}")
    swapped = not little and stated.allocated == 8 and start[4:6] == b"OW"
    if not little and not isinstance(frames, range):
        raise Misfit("big-endian and compressed")
    big_endian = of_ge or not syntax.is_little_endian
    return _File(
        *(stream, header, syntax, stated, at, promised, frames, swapped, halved, big_endian),
        tuple(notes),
    )


def _syntax(path: Path, stream: BinaryIO) -> UID | None:
    """The transfer syntax, None if the file does not say."""
    from pydicom.filereader import read_file_meta_info

    stream.seek(0)
    if stream.read(132)[128:] != b"DICM":
        return None
    syntax: UID | None = read_file_meta_info(path).get("TransferSyntaxUID")
    return syntax


def _refuse_unknown(
    path: Path, stream: BinaryIO, syntax: UID, frames: Sequence[list[Piece]]
) -> None:
    """Say what pixels are that nothing here decodes, by the transfer syntax."""
    from pydicom.pixels.decoders.base import get_decoder

    known = frames and encapsulated.begins(encapsulated.join(stream, frames[0])[:64])
    if known or syntax == pixels.ENCAPSULATED_UNCOMPRESSED:
        return
    try:
        get_decoder(syntax)
    except NotImplementedError:
        name = syntax.name if syntax.type else "unknown"
        raise UnreadableError(f"{path}: no decoder for its pixels ({name})") from None


def _extended(header: Dataset) -> tuple[int, ...]:
    data = header.get("ExtendedOffsetTable")
    if not isinstance(data, bytes):
        return ()
    return tuple(np.frombuffer(data[: len(data) // 8 * 8], "<u8").tolist())


def _layout(
    stream: BinaryIO, at: int, end: int, stated: Stated, promised: int | None
) -> tuple[Stated, bool, str | None]:
    """How frames that are not compressed are laid out, which their length can tell.

    Returns:
        What is stated, put right, whether neighbours share their colour, and what was detected.
    """
    whole, half, length, count = stated.length, stated.length * 2 // 3, end - at, promised or 1
    fits_whole, fits_half = (0 <= length - count * each <= 1 for each in (whole, half))
    if stated.photometric == "YBR_FULL" and fits_half:
        return stated, True, "its frames share colours between neighbours (YBR_FULL_422)"
    if stated.photometric != "YBR_FULL_422" or stated.samples != 3:
        return stated, False, None
    if not fits_whole and (fits_half or length % half <= 1 or length % whole > 1):
        return stated, True, None
    # a colour for each pixel, then; which, shows in what has none: equal, or in the middle
    stream.seek(at)
    first = pixels.of_native(stream.read(whole), stated, False, False).samples.astype(np.int32)
    middle = 2 ** (stated.stored - 1)
    if np.abs(first[..., 1:] - middle).mean() < np.abs(np.diff(first, axis=2)).mean():
        photometric, name = "YBR_FULL", "YCbCr"
    else:
        photometric, name = "RGB", "RGB"
    note = f"its frames have the length of {name} without subsampling, and are shown as that"
    return replace(stated, photometric=photometric), False, note


def _planes(stream: BinaryIO, at: int, stated: Stated) -> tuple[Stated, str | None]:
    """Whether colours have planes of their own, which shows in what is no picture otherwise.

    Returns:
        What is stated, put right, and what was detected.
    """
    if stated.samples != 3 or stated.allocated != 8:
        return stated, None
    stream.seek(at)
    data = stream.read(stated.length)
    if len(data) < stated.length:
        return stated, None
    other = replace(stated, planar=not stated.planar)
    here, there = (
        _roughness(pixels.of_native(data, each, False, False).samples) for each in (stated, other)
    )
    if here <= _ROUGHER * there:
        return stated, None
    words = "a plane of their own" if other.planar else "no planes"
    return other, f"its colours have {words}, whatever the planar configuration says"


def _roughness(samples: NDArray[Any]) -> float:
    """How far neighbours are from each other, down, across and in colour, as most is grey."""
    values = samples.astype(np.int16)
    steps = (np.abs(np.diff(values, axis=axis)) for axis in range(3))
    return sum(float(each.mean()) for each in steps if each.size)


def _overlays(header: Dataset) -> int:
    """The bits of samples that hold overlays."""
    mask = 0
    for tag in _OVERLAYS:
        with suppress(Exception):  # a tag that is damaged
            position = int(header[tag].value)
            mask |= 1 << position if 0 < position < 16 else 0
    return mask


def _check(path: Path, header: Dataset) -> Stated:
    # pydicom would go on with some of these, and give wrong pixels or fill the memory
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored"):
        if not isinstance(header[keyword].value, int):  # nor anything to quote
            raise TypeError(keyword)
    if not 0 < header.Rows * header.Columns <= MAX_PIXELS:
        raise UnreadableError(
            f"{path}: an image of {header.Columns} x {header.Rows} pixels; "
            f"up to {MAX_PIXELS:,} are read"
        )
    photometric = str(header.get("PhotometricInterpretation") or "").strip().upper()
    if photometric not in {"", *_COLOURS.get(header.SamplesPerPixel, ())} or (
        header.SamplesPerPixel not in _COLOURS
    ):
        known = ", ".join(sorted(set().union(*_COLOURS.values())))
        raise UnreadableError(
            f"{path}: photometric interpretation unknown or unfit; known are {known}"
        )
    header.PhotometricInterpretation = photometric
    if header.BitsAllocated not in (8, 16) or not 0 < header.BitsStored <= header.BitsAllocated:
        raise UnreadableError(
            f"{path}: {header.BitsStored} bits in {header.BitsAllocated} a sample; "
            "should be 8 or 16 allocated, and not more stored"
        )
    high = header.get("HighBit")
    return Stated(
        header.Rows,
        header.Columns,
        header.SamplesPerPixel,
        photometric,
        header.BitsAllocated,
        header.BitsStored,
        high if isinstance(high, int) else header.BitsStored - 1,
        header.get("PixelRepresentation") == 1,
        header.get("PlanarConfiguration") == 1,
    )
