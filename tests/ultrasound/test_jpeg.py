"""What JPEG streams say of themselves, and the colours DICOM of them is shown in.

Each stream is made in known colours, so that what is right is known: what Pillow decodes of the
stream before its markers were changed, or the pixels that went in.
"""

import io
import struct
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.pixels.processing import convert_color_space
from test_dicom import make_encoded, noise, scene, write

from uscl_zoo.errors import UnreadableError
from uscl_zoo.ultrasound import jpeg
from uscl_zoo.ultrasound.reading import iterate

Pixels = NDArray[Any]

INTERPRETATIONS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
IDS = ((1, 2, 3), (0, 1, 2), tuple(b"RGB"), tuple(b"rgb"))


def colourful() -> Pixels:
    """Smooth, with no two channels alike."""
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([3 * x + 20, 4 * y + 30, 255 - 2 * (x + y)], axis=-1).astype(np.uint8)


def encode(pixels: Pixels, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def decode(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Markers and what they hold, up to the first scan, and all from there on."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return [*found, (0xDA, data[at + 2 :])]


def remark(data: bytes, adobe: int | None, jfif: bool, ids: Sequence[int] | None = None) -> bytes:
    """The same stream with other markers and numbers of its components."""
    parts = [b"\xff\xd8"]
    if jfif:
        parts.append(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
    if adobe is not None:
        parts.append(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([adobe]))
    for marker, held in segments(data):
        changed = bytearray(held)
        if marker in (0xE0, 0xEE):
            continue
        if ids and 0xC0 <= marker <= 0xC3:
            for i, name in enumerate(ids):
                changed[6 + 3 * i] = name
        if marker == 0xDA:
            if ids:
                for i, name in enumerate(ids):
                    changed[3 + 2 * i] = name
            parts.append(b"\xff\xda" + bytes(changed))
        else:
            parts.append(struct.pack(">BBH", 0xFF, marker, len(changed) + 2) + bytes(changed))
    return b"".join(parts)


def show(
    path: Path, data: bytes, photometric: str, syntax: uid.UID = uid.JPEGBaseline8Bit, **tags: Any
) -> tuple[Pixels, list[str]]:
    """One frame as it is shown, and what was told."""
    shape = (1, 48, 64, 3) if tags.pop("colour", True) else (1, 48, 64)
    size = tags.pop("size", None)
    if size:
        tags["Rows"], tags["Columns"] = size
    dataset = make_encoded(np.zeros(shape, np.uint8), [data], photometric, syntax, **tags)
    told: list[str] = []
    (frame,) = iterate(write(path, dataset), on_damage=told.append)
    return np.asarray(frame.image), [line.removeprefix(f"{path}: ") for line in told]


@pytest.mark.parametrize("photometric", INTERPRETATIONS)
@pytest.mark.parametrize("progressive", [False, True])
class TestJPEG:
    """Every marker and number that tells, alone and against the header."""

    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    def test_ycbcr(
        self, tmp_path: Path, photometric: str, progressive: bool, subsampling: str
    ) -> None:
        data = encode(colourful(), subsampling=subsampling, progressive=progressive)
        expected = decode(data)
        # each scan of a progressive stream names its components again
        names = IDS[:1] if progressive else IDS
        for adobe, jfif, ids in product((None, 0, 1, 2), (False, True), names):
            whole = subsampling == "4:4:4"
            open_question = whole and adobe is None and not jfif
            if whole and (adobe == 0 or (adobe is None and bytes(ids).upper() == b"RGB")):
                continue  # that says it is not
            if open_question and photometric == "RGB":
                continue
            shown, told = show(tmp_path / "a.dcm", remark(data, adobe, jfif, ids), photometric)
            assert np.array_equal(shown, expected), (adobe, jfif, ids)
            agrees = photometric in ("YBR_FULL", "YBR_FULL_422")
            assert bool(told) != agrees, (adobe, jfif, ids)

    def test_rgb(self, tmp_path: Path, photometric: str, progressive: bool) -> None:
        data = encode(colourful(), subsampling="4:4:4", keep_rgb=True, progressive=progressive)
        expected = decode(data)
        assert np.abs(expected.astype(int) - colourful()).mean() < 3
        names = [tuple(b"RGB")] if progressive else IDS
        for adobe, jfif, ids in product((None, 0), (False, True), names):
            spelled = bytes(ids).upper() == b"RGB"
            if adobe is None and not spelled and (jfif or photometric != "RGB"):
                continue
            shown, told = show(tmp_path / "a.dcm", remark(data, adobe, jfif, ids), photometric)
            assert np.array_equal(shown, expected), (adobe, jfif, ids)
            assert bool(told) != (photometric == "RGB"), (adobe, jfif, ids)


def flat_code() -> bytes:
    """A Huffman table in which each of 17 categories has five bits."""
    lengths = bytes([0, 0, 0, 0, 17] + [0] * 11)
    return b"\xff\xc4" + struct.pack(">HB", 19 + 17, 0) + lengths + bytes(range(17))


def encode_lossless(
    planes: Sequence[Pixels],
    bits: int = 8,
    predictor: int = 1,
    ids: Sequence[int] = (1, 2, 3),
    adobe: int | None = None,
    interleaved: bool = True,
) -> bytes:
    """JPEG-lossless (ITU T.81, annex H), by hand: no library of the tests writes all of it."""
    height, width = planes[0].shape
    out = [b"\xff\xd8"]
    if adobe is not None:
        out.append(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([adobe]))
    frame = struct.pack(">HBHHB", 8 + 3 * len(planes), bits, height, width, len(planes))
    out.append(b"\xff\xc3" + frame)
    ids = ids[: len(planes)]
    out += [bytes([name, 0x11, 0]) for name in ids]
    out.append(flat_code())
    coded = [_code(plane.astype(np.int64), bits, predictor) for plane in planes]
    scans = [range(len(planes))] if interleaved else [[i] for i in range(len(planes))]
    for scan in scans:
        head = struct.pack(">HB", 6 + 2 * len(scan), len(scan))
        head += b"".join(bytes([ids[i], 0]) for i in scan) + bytes([predictor, 0, 0])
        text = "".join("".join(parts) for parts in zip(*(coded[i] for i in scan), strict=True))
        text += "1" * (-len(text) % 8)
        data = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
        out += [b"\xff\xda", head, data]
    return b"".join((*out, b"\xff\xd9"))


def _code(plane: Pixels, bits: int, predictor: int) -> list[str]:
    left, above = np.roll(plane, 1, 1), np.roll(plane, 1, 0)
    corner = np.roll(above, 1, 1)
    predicted = {
        1: left,
        2: above,
        4: left + above - corner,
        7: (left + above) >> 1,
    }[predictor].copy()
    predicted[:, 0], predicted[0] = above[:, 0], left[0]
    predicted[0, 0] = 1 << bits - 1
    codes = []
    for value in ((plane - predicted + 32768) % 65536 - 32768).ravel().tolist():
        size = abs(value).bit_length()
        rest = value if value > 0 else value + (1 << size) - 1
        codes.append(f"{size:05b}" + (f"{rest:0{size}b}" if 0 < size < 16 else ""))
    return codes


class TestLossless:
    @pytest.mark.parametrize("syntax", [uid.JPEGLossless, uid.JPEGLosslessSV1])
    @pytest.mark.parametrize("photometric", INTERPRETATIONS)
    def test_colours(self, tmp_path: Path, photometric: str, syntax: uid.UID) -> None:
        samples = noise(8, 10, 3)
        as_ybr = convert_color_space(samples, "YBR_FULL", "RGB")
        for adobe, ids, interleaved in product((None, 0, 1), IDS, (True, False)):
            data = encode_lossless(
                [*np.moveaxis(samples, 2, 0)], adobe=adobe, ids=ids, interleaved=interleaved
            )
            by_ids = "RGB" if bytes(ids).upper() == b"RGB" else None
            by_header = "YBR" if photometric.startswith("YBR_FULL") else "RGB"
            right = {0: "RGB", 1: "YBR"}.get(adobe if adobe is not None else 9, by_ids or by_header)
            shown, told = show(
                tmp_path / "a.dcm", data, photometric, syntax, size=samples.shape[:2]
            )
            assert np.array_equal(shown, samples if right == "RGB" else as_ybr), (adobe, ids)
            stated = {"RGB": "RGB", "YBR_FULL": "YBR", "YBR_FULL_422": "YBR"}.get(photometric)
            assert bool(told) == (right != stated), (adobe, ids)

    @pytest.mark.parametrize("bits", range(2, 16))
    def test_fewer_bits_than_stored(self, tmp_path: Path, bits: int) -> None:
        grey = noise(8, 10, high=2**bits, dtype=np.uint16)
        grey[0, :2] = 0, 2**bits - 1
        allocated = 8 if bits < 8 else 16
        data = encode_lossless([grey], bits, predictor=(1, 2, 4, 7)[bits % 4])
        shown, told = show(
            tmp_path / "a.dcm",
            data,
            "MONOCHROME2",
            uid.JPEGLossless,
            colour=False,
            size=grey.shape,
            BitsAllocated=allocated,
            BitsStored=allocated,
            HighBit=allocated - 1,
        )
        expected = np.rint(grey.astype(float) / (2**bits - 1) * 255)
        assert np.array_equal(shown[..., 0], expected)
        assert told == [f"its frames have {bits} bits, the header says {allocated}"]

    @pytest.mark.parametrize("bits", [9, 10, 12, 15])
    def test_deep_grey_comes_with_the_extra(self, tmp_path: Path, bits: int) -> None:
        grey = noise(8, 10, high=2**bits, dtype=np.uint16)
        grey[0, :2] = 0, 2**bits - 1
        shown, told = show(
            tmp_path / "a.dcm",
            encode_lossless([grey], bits),
            "MONOCHROME2",
            uid.JPEGLosslessSV1,
            colour=False,
            size=grey.shape,
            BitsAllocated=16,
            BitsStored=bits,
            HighBit=bits - 1,
        )
        assert np.array_equal(shown[..., 1], np.rint(grey.astype(float) / (2**bits - 1) * 255))
        assert not told


class TestJPEG2000:
    @pytest.mark.parametrize("photometric", INTERPRETATIONS)
    @pytest.mark.parametrize("transform", [0, 1])
    @pytest.mark.parametrize("boxed", [False, True])
    def test_colours(self, tmp_path: Path, photometric: str, transform: int, boxed: bool) -> None:
        samples = noise(48, 64, 3)
        stream = io.BytesIO()
        image = Image.fromarray(samples)
        image.save(stream, "JPEG2000", irreversible=False, mct=transform, no_jp2=not boxed)
        shown, told = show(tmp_path / "a.dcm", stream.getvalue(), photometric, uid.JPEG2000Lossless)
        # a box says sRGB
        as_ybr = not transform and not boxed and photometric.startswith("YBR_FULL")
        right = convert_color_space(samples, "YBR_FULL", "RGB") if as_ybr else samples
        assert np.array_equal(shown, right)
        assert bool(told) == (photometric.startswith("YBR_FULL") and not as_ybr)


def encode_jpeg_ls(samples: Pixels) -> bytes:
    """By FFmpeg."""
    codec: Any = av.CodecContext.create("jpegls", "w")
    kind = "rgb24" if samples.ndim == 3 else "gray" if samples.dtype == np.uint8 else "gray16le"
    codec.height, codec.width = samples.shape[:2]
    codec.pix_fmt, codec.time_base = kind, 1
    frame = av.VideoFrame.from_ndarray(samples, format=kind)
    return b"".join(bytes(packet) for packet in (*codec.encode(frame), *codec.encode(None)))


class TestJPEGLS:
    @pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
    def test_colours(self, tmp_path: Path, photometric: str) -> None:
        samples = noise(48, 64, 3)
        data = encode_jpeg_ls(samples)
        shown, told = show(tmp_path / "a.dcm", data, photometric, uid.JPEGLSLossless)
        ybr = photometric == "YBR_FULL"
        assert np.array_equal(
            shown, convert_color_space(samples, "YBR_FULL", "RGB") if ybr else samples
        )
        assert not told

    def test_grey(self, tmp_path: Path) -> None:
        samples = noise(48, 64)
        data = encode_jpeg_ls(samples)
        shown, told = show(
            tmp_path / "a.dcm", data, "MONOCHROME1", uid.JPEGLSLossless, colour=False
        )
        assert np.array_equal(shown[..., 0], 255 - samples)
        assert not told


SYNTAXES = (
    *(uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1),
    *(uid.JPEGLSLossless, uid.JPEG2000, uid.JPEG2000Lossless, uid.RLELossless),
)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_any_stream_under_any_syntax(tmp_path: Path, syntax: uid.UID) -> None:
    samples = noise(48, 64)
    coded = io.BytesIO()
    Image.fromarray(samples).save(coded, "JPEG2000", irreversible=False, no_jp2=True)
    baseline = encode(scene())
    streams = {
        "JPEG": (baseline, decode(baseline)[..., 0]),
        "JPEG-lossless": (encode_lossless([samples]), samples),
        "JPEG-LS": (encode_jpeg_ls(samples), samples),
        "JPEG 2000": (coded.getvalue(), samples),
    }
    for kind, (data, right) in streams.items():
        shown, told = show(tmp_path / "a.dcm", data, "MONOCHROME2", syntax, colour=False)
        assert np.array_equal(shown[..., 0], right), kind
        own = {"JPEG-lossless": "Lossless, Non", "JPEG-LS": "JPEG-LS", "JPEG 2000": "2000"}
        fits = own.get(kind, "Baseline|Extended")
        agrees = any(part in syntax.name for part in fits.split("|"))
        assert bool(told) != agrees, (kind, told)


def test_grey_under_colour_and_colour_under_grey(tmp_path: Path) -> None:
    grey, colour = encode(scene()), encode(colourful())
    shown, told = show(tmp_path / "a.dcm", grey, "RGB")
    assert np.array_equal(shown, decode(grey))
    assert told == ["its frames are grey, the header says 3 samples a pixel"]
    shown, told = show(tmp_path / "a.dcm", colour, "MONOCHROME2", colour=False)
    assert np.array_equal(shown, decode(colour))
    assert "its frames are in colour, the header says 1 samples a pixel" in told[0]


def test_another_size_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="its stream has 64 x 48 pixels, the header 32 x 48"):
        show(tmp_path / "a.dcm", encode(colourful()), "YBR_FULL_422", size=(48, 32))


def test_a_progressive_jpeg_of_a_thousand_scans(tmp_path: Path) -> None:
    """In DICOM as by itself: refused before its first scan is decoded."""
    data = encode(np.zeros((5700, 5700), np.uint8), progressive=True)
    start = data.rindex(b"\xff\xda")
    bomb = data[:-2] + data[start:-2] * 1000 + b"\xff\xd9"
    with pytest.raises(UnreadableError, match=r"progressive JPEG of 5700 x 5700 pixels in 10\d\d"):
        show(tmp_path / "a.dcm", bomb, "MONOCHROME2", colour=False, size=(5700, 5700))
    (tmp_path / "a.jpg").write_bytes(bomb)
    with pytest.raises(UnreadableError, match=r"progressive JPEG of 5700 x 5700 pixels in 10\d\d"):
        list(iterate(tmp_path / "a.jpg"))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(jpeg.STARTS))
def test_whatever_a_stream_says_ends(data: bytes, start: bytes) -> None:
    """In a description, or in the one error; never in another."""
    try:
        stream = jpeg.describe(start + data)
    except jpeg.Misfit:
        return
    assert stream.kind in ("JPEG", "JPEG-lossless", "JPEG-LS", "JPEG 2000")
    if stream.components == 3:
        for photometric in INTERPRETATIONS:
            assert jpeg.colours(stream, photometric)[0] in ("RGB", "YBR")
