"""What an image stream in DICOM says of itself: JPEG, JPEG-lossless, JPEG-LS and JPEG 2000.

The stream is what a decoder goes by, and the header of the file only what somebody has written
about it. So size, bits and colours are asked of the stream first, here and nowhere else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .clip import MAX_PIXELS

#: How each kind of stream begins.
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")

#: An image that ends, and another that begins: neither can be within the data of one.
SEAM = re.compile(rb"\xff\xd9\0?(?=\xff\xd8\xff|\xff\x4f\xff\x51|\0\0\0\x0cjP  )")

# A scan of a progressive JPEG goes over the whole picture, and can be 20 bytes. Pictures have ten;
# these many pixels are gone over in two to three seconds.
_MOST_SCANNED = 12 * MAX_PIXELS

_LUMA_CHROMA = frozenset({"YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_PARTIAL_422"})


class Misfit(ValueError):
    """A frame is not what it should be, in words that quote nothing of the file."""


class UnknownError(Misfit):
    """A stream whose markers cannot be followed."""


@dataclass(frozen=True)
class Stream:
    """What a stream says of itself.

    Attributes:
        kind: `JPEG` (Huffman or arithmetic, of 8 or 12 bits), `JPEG-lossless`, `JPEG-LS` or
            `JPEG 2000`.
        width: in pixels.
        height: in pixels.
        components: samples a pixel.
        bits: of a sample.
        signed: whether samples are (JPEG 2000 only).
        ids: of the components.
        subsampled: whether another component is coarser than the first.
        adobe: the colour transform of an APP14 marker, None without one.
        jfif: whether it has a JFIF marker, which makes three components YCbCr.
        transformed: whether it undoes a colour transform of its own (JPEG 2000, HP's in JPEG-LS).
        luma_chroma: whether a box around it says so, None where none says anything (JPEG 2000).
        scans: passes over the picture, if it is progressive, else 1.
        wide: whether a difference between samples can be 32,768 (JPEG-lossless).
    """

    kind: str
    width: int
    height: int
    components: int
    bits: int
    signed: bool = False
    ids: tuple[int, ...] = ()
    subsampled: bool = False
    adobe: int | None = None
    jfif: bool = False
    transformed: bool = False
    luma_chroma: bool | None = None
    scans: int = 1
    wide: bool = False


def describe(data: bytes) -> Stream:
    """Read the markers of a stream; no pixel is decoded.

    Raises:
        UnknownError: if it is none of those known, or ends before its frame is described.
    """
    try:
        if data.startswith(STARTS[0]):
            return _describe_jpeg(data)
        if data.startswith(STARTS[1:]):
            return _describe_jpeg_2000(data)
    except IndexError:
        raise UnknownError("its stream breaks off") from None
    raise UnknownError("its stream is none of JPEG, JPEG-LS and JPEG 2000")


def colours(stream: Stream, photometric: str) -> tuple[str, bool]:
    """What three components are, `RGB` or `YBR`: the stream first, then the header.

    Half of the samples of a coarser colour cannot be red's, whatever a marker says. Else an Adobe
    marker was written to tell; then ids spell the colours, or JFIF is what the stream is. Where it
    leaves the question open, the header answers; if that cannot, JPEG is YCbCr by its decoders'
    custom, and what is coded without loss is RGB.

    Args:
        stream: what the stream says of itself.
        photometric: the Photometric Interpretation of the header.

    Returns:
        The colours, and whether the header says otherwise.
    """
    stated = "YBR" if photometric in _LUMA_CHROMA else "RGB" if photometric == "RGB" else None
    declared = _declared(stream)
    if declared is None and stream.kind == "JPEG 2000" and stated is None:
        declared = "RGB"  # YBR_RCT and YBR_ICT are what a transform of the stream makes of RGB
    if declared is None:
        return stated or ("YBR" if stream.kind == "JPEG" else "RGB"), stated is None
    if stream.kind == "JPEG 2000" and photometric in ("YBR_RCT", "YBR_ICT"):
        stated = "RGB"
    return declared, declared != stated


def _declared(stream: Stream) -> str | None:
    """The colours by the stream alone; None if it leaves them open."""
    if stream.kind == "JPEG 2000":
        if stream.luma_chroma or stream.subsampled:
            return "YBR"
        return "RGB" if stream.transformed or stream.luma_chroma is False else None
    if stream.transformed:
        return "RGB"
    if stream.subsampled:
        return "YBR"
    if stream.adobe is not None:
        return "RGB" if stream.adobe == 0 else "YBR"
    if bytes(stream.ids).upper() == b"RGB":
        return "RGB"
    return "YBR" if stream.jfif else None


def check_work(stream: Stream) -> None:
    """Refuse a stream that is small to send and long to decode.

    Raises:
        Misfit: if it goes over its picture too often.
    """
    if stream.scans > 1 and stream.scans * stream.width * stream.height > _MOST_SCANNED:
        raise Misfit(
            f"a progressive JPEG of {stream.width} x {stream.height} pixels in {stream.scans} scans"
        )


def mark(data: bytes, colours: str) -> bytes:
    """The same JPEG with an Adobe marker that says its colours, in place of any that did."""
    transform = b"\1" if colours == "YBR" else b"\0"
    parts = [b"\xff\xd8", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0", transform]
    at = 2
    for marker, start, end in _segments(data):
        spoken = (marker == 0xE0 and data[start:end].startswith(b"JFIF\0")) or (
            marker == 0xEE and data[start:end].startswith(b"Adobe")
        )
        if spoken:
            parts.append(data[at : start - 4])
            at = end
        if marker == 0xDA:
            break
    return b"".join((*parts, data[at:]))


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """Marker, start and end of what it holds, of each segment up to the first scan."""
    segments, at = [], 2
    while True:
        if data[at] != 0xFF:
            raise UnknownError("its stream is damaged")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in (0x01, *range(0xD0, 0xD9)):  # nothing follows these
            continue
        size = data[at] << 8 | data[at + 1]
        if size < 2:
            raise UnknownError("its stream is damaged")
        segments.append((marker, at + 2, at + size))
        if marker in (0xD9, 0xDA) or len(segments) > 4096:
            return segments
        at += size


def _describe_jpeg(data: bytes) -> Stream:
    stream, adobe, jfif, wide, transformed = None, None, False, False, False
    for marker, start, end in _segments(data):
        held = data[start:end]
        if marker == 0xE0 and held.startswith(b"JFIF\0"):
            jfif = True
        elif marker == 0xEE and held.startswith(b"Adobe") and len(held) >= 12:
            adobe = held[11]
        elif marker == 0xE8 and held.startswith(b"mrfx") and len(held) >= 5:
            transformed = held[4] > 0
        elif marker == 0xC4:
            wide |= _has_category_16(held)
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC8, 0xCC)):
            kind = {0xC3: "JPEG-lossless", 0xF7: "JPEG-LS"}.get(marker, "JPEG")
            if kind == "JPEG" and marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA):
                raise UnknownError("a hierarchical or arithmetic JPEG, which nobody decodes")
            parts = [held[6 + 3 * i : 9 + 3 * i] for i in range(held[5])]
            sampling = [part[1] for part in parts]
            stream = Stream(
                kind,
                width=held[3] << 8 | held[4],
                height=held[1] << 8 | held[2],
                components=held[5],
                bits=held[0],
                ids=tuple(part[0] for part in parts),
                subsampled=any(
                    factor >> 4 < sampling[0] >> 4 or factor & 15 < sampling[0] & 15
                    for factor in sampling[1:]
                ),
                scans=data.count(b"\xff\xda") if marker in (0xC2, 0xCA) else 1,
            )
    if stream is None:
        raise UnknownError("its stream describes no picture")
    return replace(stream, adobe=adobe, jfif=jfif, wide=wide, transformed=transformed)


def _has_category_16(tables: bytes) -> bool:
    at = 0
    while at + 17 <= len(tables):
        count = sum(tables[at + 1 : at + 17])
        if 16 in tables[at + 17 : at + 17 + count]:
            return True
        at += 17 + count
    return False


def _describe_jpeg_2000(data: bytes) -> Stream:
    luma_chroma = None
    at = 0
    if data.startswith(STARTS[2]):
        at = data.find(STARTS[1])
        if at < 0:
            raise UnknownError("its stream breaks off")
        box = data.find(b"colr\1", 0, at)
        if box >= 0:
            space = int.from_bytes(data[box + 7 : box + 11], "big")
            luma_chroma = {16: False, 18: True}.get(space)
    # ISO 15444-1, A.5.1: two corners of the picture, then those of tiles
    start = at + 6
    words = [int.from_bytes(data[i : i + 4], "big") for i in range(start + 2, start + 34, 4)]
    components = data[start + 34] << 8 | data[start + 35]
    parts = [data[start + 36 + 3 * i : start + 39 + 3 * i] for i in range(min(components, 8))]
    depths = {part[0] for part in parts}
    if len(depths) != 1:
        raise UnknownError("its stream has components of different bits")
    style = data.find(b"\xff\x52", start, start + 2**16)
    if style < 0:
        raise UnknownError("its stream is damaged")
    return Stream(
        "JPEG 2000",
        width=words[0] - words[2],
        height=words[1] - words[3],
        components=components,
        bits=(parts[0][0] & 0x7F) + 1,
        signed=parts[0][0] >> 7 == 1,
        ids=tuple(range(components)),
        subsampled=any(part[1:] != parts[0][1:] for part in parts),
        transformed=data[style + 8] == 1,
        luma_chroma=luma_chroma,
    )
