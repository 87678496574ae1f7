"""DICOM, by pydicom: pixels as they ask to be shown, and the few facts that can name nobody."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Iterator
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError, UnreadableError, quietly
from .clip import MAX_PIXELS, Facts, Frame, OnDamage, Region, Wanted

if TYPE_CHECKING:
    from pydicom import Dataset

#: Suffixes, compared without case; any file with `DICM` at byte 128 is DICOM too.
SUFFIXES = frozenset({".dcm", ".dicom"})


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content."""
    try:
        # a pipe would be waited for
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


# All that is read of a header to show the pixels and to time the frames.
_CLOCK = ("NumberOfFrames", "FrameTimeVector", "FrameTime")
_CLOCK_BY_RATE = ("CineRate", "RecommendedDisplayFrameRate")
_SHOWN = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(
        f"{segmented}{colour}PaletteColorLookupTable{part}"
        for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for colour in ("Red", "Green", "Blue")
    ),
    *_CLOCK,
    *_CLOCK_BY_RATE,
]
# All that is read of it for the facts. Of the regions numbers are kept, and of the transducer what
# is in the list below, so that neither can hold a name.
_TOLD = [
    "Rows",
    "Columns",
    "SequenceOfUltrasoundRegions",
    "PixelSpacing",
    "TransducerType",
    *_CLOCK,
    *_CLOCK_BY_RATE,
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
_COLOURS = {
    1: {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"},
    3: {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"},
}


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

    if not is_dicom(path):
        raise UnreadableError(f"{path}: not a DICOM file by its content")
    try:
        header, there, offset = quietly(lambda: _read_header(path))
        plugin = _plugin(path, header)
        to_bytes = quietly(lambda: _display(header))
        times = quietly(lambda: _times(header, frame_rate))
    except UnreadableError:
        raise
    # pydicom raises whatever a damaged byte leads to. What it says may quote the file, so it goes
    # no further, not even as the cause
    except Exception:
        raise UnreadableError(f"{path}: the DICOM header is damaged or incomplete") from None

    promised = _promised(header)
    frames = _decode(path, header, there, offset, plugin)
    done, trouble = 0, f"its header promises {promised}"
    while done < there:
        try:
            pixels = quietly(lambda: next(frames))
            time = next(times)
            image = Image.fromarray(to_bytes(pixels)).convert("RGB") if wanted(time) else None
        except StopIteration:
            break
        except Exception:
            trouble = f"frame {done + 1} of {promised} is damaged"
            break
        if image is not None:
            yield Frame(time, image)
        done += 1
    if not done:
        raise UnreadableError(f"{path}: no frame can be decoded ({trouble})")
    if done < promised:
        on_damage(f"{path}: breaks off after {done} frames ({trouble})")


def _read_header(path: Path) -> tuple[Dataset, int, int]:
    """The tags we keep, how many frames there can be (not more than promised), and where.

    Uncompressed pixels are counted by their length, and compressed ones by their fragments, so that
    a header that promises too many does not have pydicom refuse those there are.
    """
    from pydicom import dcmread
    from pydicom.encaps import parse_basic_offsets, parse_fragments
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels.utils import get_expected_length

    syntax = read_file_meta_info(path).TransferSyntaxUID
    if syntax.is_deflated:  # pydicom would inflate it whole
        raise UnreadableError(f"{path}: deflated DICOM is not read; convert it, e.g. by dcmconv")
    with path.open("rb") as stream:
        header = dcmread(stream, stop_before_pixels=True, specific_tags=_SHOWN)
        _check(path, header)
        # now at the pixels: tag, its type if that is explicit, length
        start = stream.read(8 if syntax.is_implicit_VR else 12)
        if len(start) < 8:
            raise UnreadableError(f"{path}: the DICOM file holds no pixels")
        promised, offset = _promised(header), stream.tell()
        if syntax.is_encapsulated:
            parse_basic_offsets(stream)
            fragments, _ = parse_fragments(stream)
            return header, min(promised, fragments), offset
        stated = int.from_bytes(start[-4:], "little" if syntax.is_little_endian else "big")
        length = min(stated, path.stat().st_size - offset)
    return header, min(promised, length * promised // get_expected_length(header)), offset


def _decode(
    path: Path, header: Dataset, there: int, offset: int, plugin: str
) -> Iterator[NDArray[Any]]:
    from pydicom.pixels.utils import iter_pixels, pixel_array

    if plugin == "av":
        return _decode_lossless_jpeg(path, header, there, offset)
    if not header.file_meta.TransferSyntaxUID.is_encapsulated:
        if header.PhotometricInterpretation == "YBR_FULL_422":
            # iter_pixels of pydicom 3.0 loses its place from the second such frame on
            return (pixel_array(path, index=i, number_of_frames=there) for i in range(there))
        return iter_pixels(path, number_of_frames=there or 1)
    frames = iter_pixels(path, decoding_plugin=plugin, number_of_frames=there or 1)
    return (next(frames) for _ in _encoded(path, header, there, offset, plugin))


def _encoded(path: Path, header: Dataset, there: int, offset: int, plugin: str) -> Iterator[bytes]:
    """The frames as they are stored, if decoding them takes no more than the header says."""
    from pydicom import uid
    from pydicom.encaps import generate_frames

    rle = header.file_meta.TransferSyntaxUID == uid.RLELossless
    size = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
    with path.open("rb") as stream:
        stream.seek(offset)
        for data in generate_frames(stream, number_of_frames=there):
            # RLE at its worst, of one column, takes twice as much, and its table 64 bytes
            if rle and len(data) > 2 * size + 128:
                raise ValueError("not what the header says")
            if plugin == "pillow":
                with Image.open(io.BytesIO(data), formats=("JPEG", "JPEG2000")) as image:
                    if image.size != (header.Columns, header.Rows):
                        raise ValueError("not what the header says")
            yield data


def _decode_lossless_jpeg(
    path: Path, header: Dataset, there: int, offset: int
) -> Iterator[NDArray[Any]]:
    import av
    from pydicom.encaps import generate_frames
    from pydicom.pixels.processing import convert_color_space

    colour = header.SamplesPerPixel == 3
    size = (header.Rows, header.Columns, *([3] if colour else []))
    with path.open("rb") as stream:
        stream.seek(offset)
        for data in generate_frames(stream, number_of_frames=there):
            codec = av.CodecContext.create("mjpeg", "r")
            codec.options = {"err_detect": "explode", "max_pixels": str(2 * MAX_PIXELS)}
            (frame,) = [*codec.decode(av.Packet(data)), *codec.decode(None)]
            pixels = frame.to_ndarray()
            # FFmpeg calls three samples blue, green and red, whatever they are
            if frame.format.name not in ("gray", "bgr24") or pixels.shape != size:
                raise ValueError("not what the header says")
            if colour:
                pixels = pixels[..., ::-1]
                if header.PhotometricInterpretation != "RGB":
                    pixels = convert_color_space(pixels, "YBR_FULL", "RGB")
            elif header.PixelRepresentation:
                spare = 32 - header.BitsStored
                pixels = pixels.astype(np.int32) << spare >> spare
            yield pixels


def _check(path: Path, header: Dataset) -> None:
    # pydicom would go on with some of these, and give wrong pixels or fill the memory
    for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored"):
        if not isinstance(header[keyword].value, int):  # nor anything to quote
            raise TypeError(keyword)
    if not 0 < header.Rows * header.Columns <= MAX_PIXELS:
        raise UnreadableError(
            f"{path}: an image of {header.Columns} x {header.Rows} pixels; "
            f"up to {MAX_PIXELS:,} are read"
        )
    if header.PhotometricInterpretation not in _COLOURS.get(header.SamplesPerPixel, ()):
        known = ", ".join(sorted(set().union(*_COLOURS.values())))
        raise UnreadableError(
            f"{path}: photometric interpretation unknown or unfit; known are {known}"
        )
    if header.BitsAllocated not in (8, 16) or not 0 < header.BitsStored <= header.BitsAllocated:
        raise UnreadableError(
            f"{path}: {header.BitsStored} bits in {header.BitsAllocated} a sample; "
            "should be 8 or 16 allocated, and not more stored"
        )


def _plugin(path: Path, header: Dataset) -> str:
    """The decoder to use: FFmpeg by PyAV, a plug-in of pydicom, or none where none is needed.

    Not GDCM, though pydicom would: it ends the interpreter on some damaged JPEGs.
    """
    from pydicom import uid
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    deep, wanted = header.BitsStored > 8, "'uscl-zoo[dicom]'"
    lossless = syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1)
    if lossless and header.BitsAllocated == 8:
        if importlib.util.find_spec("av"):
            return "av"
    else:
        try:
            plugins = {*get_decoder(syntax).available_plugins} - {"gdcm"}
        except NotImplementedError:
            name = syntax.name if syntax.type else "unknown"
            raise UnreadableError(f"{path}: no decoder for its pixels ({name})") from None
        if deep and (header.SamplesPerPixel == 3 or syntax == uid.JPEGExtended12Bit):
            plugins.discard("pillow")
        for plugin in ("pydicom", "pillow", "pylibjpeg", "pyjpegls"):
            if plugin in plugins:
                return plugin
        if syntax in uid.JPEGLSTransferSyntaxes:
            wanted = "pyjpegls"
        elif lossless or syntax == uid.JPEGExtended12Bit:
            # of 16 bits FFmpeg misreads differences of 32,768
            wanted = "pylibjpeg pylibjpeg-libjpeg"
        else:
            wanted = "pylibjpeg pylibjpeg-openjpeg"
    raise UnreadableError(
        f"{path}: no decoder for its pixels ({syntax.name}); install one by: pip install {wanted}"
    )


def _display(header: Dataset) -> Callable[[NDArray[Any]], NDArray[np.uint8]]:
    """How stored samples are shown in 8 bits, as a table of all values that can be stored."""
    lowest = -(2 ** (header.BitsStored - 1)) if header.PixelRepresentation else 0
    stored = np.arange(lowest, lowest + 2**header.BitsStored, dtype=np.int32)
    if header.SamplesPerPixel == 3:
        table = _scale(stored, stored[0], stored[-1])
    elif header.PhotometricInterpretation == "PALETTE COLOR":
        table = _palette(stored, header)
    else:
        table = _grey(stored, header)

    as_stored = np.array_equal(table, np.arange(256))

    def to_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
        if as_stored and pixels.dtype == np.uint8:
            return pixels
        # row by row: indices take eight bytes each
        return np.stack(
            [table.take(row.astype(np.int32) - lowest, 0, mode="clip") for row in pixels]
        )

    return to_bytes


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    shares = (values.astype(np.float64) - low) / (high - low)
    if not np.isfinite(shares).all():
        raise ValueError("a range that is empty or not finite")
    scaled: NDArray[np.uint8] = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _grey(stored: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    # writers that have no window fill in 0
    if not all(width > 0 for width in _numbers(header, "WindowWidth") or [0]):
        header.pop("WindowWidth", None)
        header.pop("WindowCenter", None)
    values = apply_modality_lut(stored, header)
    shown = apply_voi_lut(values, header)
    # the range that pydicom scales a window to
    low, high = float(values[0]), float(values[-1])
    if header.get("ModalityLUTSequence"):
        low, high = 0, 2 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    if shown is values:
        low, high = sorted((low, high))
    elif header.get("VOILUTSequence"):
        low, high = 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    table = _scale(shown, low, high)
    return 255 - table if header.PhotometricInterpretation == "MONOCHROME1" else table


def _palette(stored: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    entries = header.RedPaletteColorLookupTableDescriptor[0] or 2**16
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableData"
        if keyword in header:
            # apply_color_lut takes words as little endian, and indexes bytes by bytes
            order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
            words = np.frombuffer(header[keyword].value, f"{order}u2").astype("<u2")
            if len(words) < entries:  # two to a word
                words = words.view(np.uint8).astype("<u2")
            header[keyword].value = words[:entries].tobytes()
    table = apply_color_lut(stored, header)
    # 16-bit entries are 8-bit ones shifted or repeated: the high byte is either's. What the
    # descriptor says of their depth is not to be relied on
    shown: NDArray[np.uint8] = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
    return shown


def _promised(header: Dataset) -> int:
    return max(1, int(header.get("NumberOfFrames") or 1))


def _numbers(header: Dataset, keyword: str) -> list[float]:
    """The finite numbers of a tag; none if it is missing or damaged."""
    try:
        value = header.get(keyword)
        numbers = [float(item) for item in (value if hasattr(value, "__len__") else [value])]
    except Exception:  # as for the header
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def _times(header: Dataset, frame_rate: float | None) -> Iterator[float]:
    promised = _promised(header)
    if promised == 1:
        return iter([0.0])
    if vector := _steps(header):
        return accumulate(vector, initial=0.0)
    rate = _rate(header) or frame_rate
    step = 1 / rate if rate else math.nan
    return (index * step for index in count())


def _steps(header: Dataset) -> list[float]:
    """Seconds between frames, none unless stated for each."""
    vector = _numbers(header, "FrameTimeVector")[1 : _promised(header)]
    whole = vector and len(vector) == _promised(header) - 1 and min(vector) > 0
    return [step / 1000 for step in vector] if whole else []


def _rate(header: Dataset) -> float | None:
    """Frames a second, by the first tag that states a number."""
    rates = [1000 / time for time in _numbers(header, "FrameTime")[:1] if time]
    for keyword in _CLOCK_BY_RATE:
        rates += _numbers(header, keyword)[:1]
    return next((rate for rate in rates if 0 < rate < math.inf), None)


def facts(path: Path) -> Facts:
    """What the header says of the acquisition; nothing where it is damaged."""
    from pydicom import dcmread

    def read() -> Facts:
        header = dcmread(path, stop_before_pixels=True, specific_tags=_TOLD)
        regions = _regions(header)
        steps = _steps(header)
        rate = len(steps) / sum(steps) if steps else _rate(header)
        return Facts(
            regions,
            _spacing(header, regions),
            _transducer(header),
            rate if _promised(header) > 1 else None,
        )

    try:
        return quietly(read)
    except Exception:  # as for the pixels
        return Facts()


def _regions(header: Dataset) -> tuple[Region, ...]:
    regions = []
    for item in header.get("SequenceOfUltrasoundRegions") or ():
        corners = [
            number
            for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")
            for number in _numbers(item, f"RegionLocation{corner}")[:1]
        ]
        if len(corners) < 4:
            continue
        left, top = (max(0, int(corner)) for corner in corners[:2])
        # the last pixel inside, though some write the first outside
        right = min(int(corners[2]) + 1, header.Columns)
        bottom = min(int(corners[3]) + 1, header.Rows)
        if left < right and top < bottom:
            regions.append(Region((left, top, right, bottom), _kind(item), _lengths(item)))
    return tuple(regions)


def _kind(item: Dataset) -> str:
    """PS3.3 C.8.5.5.1: by how the region is laid out, then by what it shows."""
    layout, content = (
        next(iter(_numbers(item, keyword)), 0)
        for keyword in ("RegionSpatialFormat", "RegionDataType")
    )
    if layout == 1:
        # tissue, and integrated backscatter of it
        return {1: "2D", 2: "colour", 15: "2D"}.get(int(content), "other")
    return {2: "M-mode", 3: "spectral"}.get(int(layout), "other")


def _lengths(item: Dataset) -> tuple[float, float] | None:
    """Height and width of a pixel in mm."""
    sides = []
    for axis in "YX":
        cm = _numbers(item, f"PhysicalUnits{axis}Direction")[:1] == [3]
        sides += [abs(10 * delta) for delta in _numbers(item, f"PhysicalDelta{axis}")[:1] if cm]
    return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None


def _spacing(header: Dataset, regions: tuple[Region, ...]) -> tuple[float, float] | None:
    """That of the 2D regions, if it is the same in all of them; else that of the picture."""
    stated = {region.spacing for region in regions if region.kind in ("2D", "colour")} - {None}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    sides = _numbers(header, "PixelSpacing")
    return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None


def _transducer(header: Dataset) -> str | None:
    stated = header.get("TransducerType")
    plain = stated.replace("_", " ").strip().upper() if isinstance(stated, str) else None
    return plain if plain in _TRANSDUCERS else None
