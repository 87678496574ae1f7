"""Frames out of anything: videos, DICOM, animated images, stills and folders of frames.

`find` turns what a user names into sources, `iterate` decodes one source lazily, and `sample`
thins it to a few frames a second. A *source* is a video, DICOM or image file, or a folder that
holds the frames of one clip.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from ..errors import DataError, MissingDependencyError, UnreadableError
from .clip import Clip, Facts, Frame
from .transforms import to_frame

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")

#: Read by PyAV; suffixes are compared without case.
VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
)
#: Read by Pillow, whether they move or not.
IMAGE_SUFFIXES = frozenset(
    {".apng", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
#: Read by pydicom, as is any file with `DICM` at byte 128.
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

# Seconds a frame of an animation lasts that states none, as web browsers have it.
_UNSTATED_DURATION = 0.1

# What Pillow raises for damaged files, the decompression bomb included.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class DamageWarning(UserWarning):
    """Part of a source could not be decoded; the frames that could were used."""


OnDamage = Callable[[str], None]
#: Whether the frame at a time, in seconds or NaN, is to be made an image.
Wanted = Callable[[float], bool]


def _warn(message: str) -> None:
    warnings.warn(message, DamageWarning, stacklevel=4)


def find(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Find the sources in the files and folders a user names.

    Folders are searched to any depth, in natural order (`f2` before `f10`), hidden and other files
    left out. A folder is one source, a clip, if it holds at least two images and neither videos nor
    sub-folders, and all images have one size, one suffix and one name up to a final number, as in
    `Reg-1_mp4/Reg-1_mp4_frame0.jpg`. In any other folder each file is its own source. Files without
    a suffix are taken if they are DICOM by their content. Files that are named themselves are
    returned whatever they are: reading them says what is wrong.

    Args:
        paths: one file or folder, or several.

    Returns:
        The sources, each once, in the order in which they were named.

    Raises:
        UnreadableError: if there is no such file or folder, or a folder cannot be listed.
        DataError: if a folder holds no source.
    """
    sources: dict[Path, Path] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path).expanduser()
        if path.is_dir():
            found = list(_search(path, visited=set()))
            if not found:
                raise DataError(f"{path}: the folder holds no image or video that can be read")
        elif path.exists():
            found = [path]
        else:
            raise UnreadableError(f"{path}: no such file or folder")
        for source in found:
            sources.setdefault(source.resolve(), source)
    return list(sources.values())


def iterate(
    path: str | Path,
    *,
    frame_rate: float | None = None,
    threads: int = 1,
    on_damage: OnDamage = _warn,
) -> Iterator[Frame]:
    """Decode one source frame by frame; memory does not grow with its length.

    Videos are turned upright as their metadata ask. Pixels are as stored: neither overlays nor
    non-square pixels are touched. DICOM is shown as it asks, by palette, look-up tables and the
    first window; of its header nothing but these and the times is read.

    Args:
        path: of a video, a DICOM file, an image, or a folder of frames.
        frame_rate: frames a second of what states none: a folder of frames, a stack of pages, and
            DICOM at times.
        threads: that decode one video; loaders with many processes want 1.
        on_damage: called with one line if a video or DICOM file breaks off early, or a frame of a
            folder is unreadable; a `DamageWarning` unless given.

    Yields:
        `Frame(time, image)`.

    Raises:
        UnreadableError: naming the file and the reason, if not a single frame can be decoded.
        MissingDependencyError: if a video is asked for and PyAV is not installed, or DICOM and
            pydicom is not.
    """
    return _frames(path, frame_rate, threads, on_damage, lambda time: True)


def _frames(
    path: str | Path,
    frame_rate: float | None,
    threads: int,
    on_damage: OnDamage,
    wanted: Wanted,
) -> Iterator[Frame]:
    """The frames that are wanted, each asked about once and in order.

    All are decoded, most from the one before; but to make an image of a decoded frame takes as long
    again, and is left out for those that nobody wants.
    """
    path = Path(path).expanduser()
    if frame_rate is not None and not 0 < frame_rate < math.inf:
        raise DataError(f"frame_rate should be a positive number of frames a second: {frame_rate}")
    suffix = path.suffix.lower()
    if path.is_dir():
        return _iterate_folder(path, frame_rate, on_damage, wanted)
    if not path.exists():
        raise UnreadableError(f"{path}: no such file or folder")
    if suffix in VIDEO_SUFFIXES:
        return _iterate_video(path, threads, on_damage, wanted)
    if suffix in IMAGE_SUFFIXES:
        return _iterate_image(path, frame_rate, on_damage, wanted)
    if suffix in DICOM_SUFFIXES or _is_dicom(path):
        return _iterate_dicom(path, frame_rate, on_damage, wanted)
    known = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES | DICOM_SUFFIXES))
    raise UnreadableError(
        f"{path}: not an image or video by its name, nor DICOM by its content; known are {known}"
    )


def read(path: str | Path, *, frame_rate: float | None = None, threads: int = 1) -> Clip:
    """Open one source as a clip; nothing is decoded but its first frame, to see that it can be.

    Args:
        path: of a video, a DICOM file, an image, or a folder of frames.
        frame_rate: as for `iterate`.
        threads: as for `iterate`.

    Raises:
        UnreadableError: naming the file and the reason, if not a single frame can be decoded.
        MissingDependencyError: if the library for that kind of file is not installed.
    """
    path = Path(path).expanduser()

    def decode() -> Iterator[Frame]:
        return iterate(path, frame_rate=frame_rate, threads=threads)

    next(decode())
    return Clip(decode, path, Facts())


def sample(
    path: str | Path,
    rate: float = 3.0,
    *,
    frame_rate: float | None = None,
    threads: int = 1,
    on_damage: OnDamage = _warn,
) -> Iterator[Frame]:
    """Decode about `rate` frames a second of one source.

    The first frame is always taken, and then each that is the first at or behind the next multiple
    of 1/`rate` seconds, so a source slower than `rate` is taken whole. So are sources without
    times, stills and folders of frames among them: those were sampled before.

    Args:
        path: as for `iterate`.
        rate: frames a second to take.
        frame_rate: as for `iterate`.
        threads: as for `iterate`.
        on_damage: as for `iterate`.

    Yields:
        `Frame(time, image)`.

    Raises:
        DataError: if `rate` is not positive.
        UnreadableError: as `iterate`.
        MissingDependencyError: as `iterate`.
    """
    if not 0 < rate < math.inf:
        raise DataError(f"rate should be a positive number of frames a second, not {rate}")
    return _frames(path, frame_rate, threads, on_damage, _thinned(rate))


def _thinned(rate: float) -> Wanted:
    tick = 0

    def wanted(time: float) -> bool:
        nonlocal tick
        if math.isnan(time):
            return True
        # Matroska rounds times to milliseconds: 0.333 s has reached the tick at 1/3 s
        ticks = math.floor((time + 0.001) * rate)
        if ticks < tick:
            return False
        tick = ticks + 1
        return True

    return wanted


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorting key that puts `frame2.jpg` before `frame10.jpg`."""
    parts = re.split(r"(\d+)", path.name.casefold())
    # split alternates text and digits, so like is compared with like; the name breaks ties
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name)


def _entries(folder: Path) -> list[Path]:
    try:
        entries = [Path(entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise UnreadableError(f"{folder}: cannot be listed ({error.strerror})") from error
    return sorted((e for e in entries if not e.name.startswith(".")), key=natural_key)


def _search(folder: Path, visited: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in visited:  # symbolic links can make rings
        return
    visited.add(real)
    entries = _entries(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry not in folders and _is_source(entry)]
    if not folders and _are_one_clip(files):
        yield folder
        return
    for entry in entries:
        if entry in folders:
            yield from _search(entry, visited)
        elif entry in files:
            yield entry


def _is_source(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES | DICOM_SUFFIXES:
        return True
    # archives name files by number or UID, 1.2.840.10008; DICOMDIR is their table of contents
    nameless = not suffix or suffix[1:].isdigit()
    return nameless and file.name.casefold() != "dicomdir" and _is_dicom(file)


def _are_one_clip(files: list[Path]) -> bool:
    patterns = {
        (match[1], file.suffix.lower()) if (match := re.fullmatch(r"(.*?)\d+", file.stem)) else None
        for file in files
    }
    if len(files) < 2 or len(patterns) != 1 or None in patterns:
        return False
    if files[0].suffix.lower() not in IMAGE_SUFFIXES:
        return False
    # numbered stills of different patients look the same by name, and seldom by size
    sizes: set[tuple[int, int]] = set()
    for file in files:
        try:
            with Image.open(file) as image:
                sizes.add(image.size)
        except _PILLOW_ERRORS:
            continue
        if len(sizes) > 1:
            return False
    return len(sizes) == 1


def _iterate_folder(
    folder: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    files = [entry for entry in _entries(folder) if entry.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UnreadableError(f"{folder}: the folder holds no images")
    reasons: list[str] = []
    for index, file in enumerate(files):
        try:
            frame = next(_iterate_image(file, None, on_damage, lambda time: True))
        except UnreadableError as error:
            reasons.append(str(error))
            continue
        # an unreadable frame still took its time
        time = index / frame_rate if frame_rate else math.nan
        if wanted(time):
            yield Frame(time, frame.image)
    if len(reasons) == len(files):
        raise UnreadableError(f"{folder}: no image in it can be read; {reasons[0]}")
    for reason in reasons:
        on_damage(reason)


def _iterate_image(
    path: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    shown, index = 0.0, 0
    try:
        with Image.open(path) as image:
            # a JPEG with several pictures is one picture and its previews
            moves = getattr(image, "is_animated", False) and image.format != "MPO"
            for page in ImageSequence.Iterator(image) if moves else (image,):
                time = 0.0
                if image.format in {"GIF", "PNG", "WEBP"}:
                    time = shown
                elif moves:  # pages of a TIFF have no times
                    time = index / frame_rate if frame_rate else math.nan
                # what cannot be decoded shows here, wanted or not
                page.load()
                if wanted(time):
                    yield Frame(time, _upright(page))
                shown += page.info.get("duration", 0) / 1000 or _UNSTATED_DURATION
                index += 1
    except _PILLOW_ERRORS as error:
        if not index:
            raise UnreadableError(f"{path}: cannot be read ({_reason(error)})") from error
        on_damage(f"{path}: breaks off after {index} frames ({_reason(error)})")


def _upright(image: Image.Image) -> Image.Image:
    return to_frame(ImageOps.exif_transpose(image))


def _iterate_video(
    path: Path, threads: int, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    try:
        import av
        from av.video.reformatter import VideoReformatter
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading video needs PyAV; install it by: pip install 'uscl-zoo[video]'"
        ) from error

    count, trouble = 0, None
    try:
        # `file:` and the whitelist keep FFmpeg from reading names as URLs, and from following
        # playlists that point elsewhere; metadata need not be UTF-8
        container = av.open(
            f"file:{path}",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file"},
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(f"{path}: cannot be read ({_reason(error)})") from error
    with container:
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise UnreadableError(f"{path}: holds no video")
        stream.codec_context.thread_count = threads
        clock = _Clock(stream.average_rate)
        # kept: a new one for every frame takes longer than the conversion itself
        converter = VideoReformatter()
        try:
            for packet in container.demux(stream):
                try:
                    decoded = stream.decode(packet)
                except av.FFmpegError as error:
                    trouble = _reason(error)
                    # what follows a damaged packet is predicted from it; before the first frame
                    # there is nothing to spoil
                    if count:
                        break
                    continue
                for frame in decoded:
                    time = clock.read(frame.time)
                    if wanted(time):
                        rgb = converter.reformat(frame, format="rgb24", threads=threads)
                        image = Image.fromarray(rgb.to_ndarray())
                        yield Frame(time, _turn(image, frame.rotation))
                    count += 1
        except av.FFmpegError as error:
            trouble = _reason(error)
    if not count:
        raise UnreadableError(f"{path}: no frame can be decoded ({trouble or 'it is empty'})")
    if trouble:
        on_damage(f"{path}: breaks off after {count} frames ({trouble})")


class _Clock:
    """Seconds since the first frame; the frame rate stands in where a frame has no time."""

    def __init__(self, rate: Any) -> None:
        self.step = float(1 / rate) if rate else 1 / 25
        self.start: float | None = None
        self.last = -self.step

    def read(self, time: float | None) -> float:
        if time is not None and self.start is None:
            self.start = time - (self.last + self.step)
        now = self.last + self.step if time is None else time - (self.start or 0.0)
        # time stamps that run backwards would stop the sampling
        self.last = now if now > self.last else self.last + self.step
        return self.last


def _turn(image: Image.Image, degrees: int) -> Image.Image:
    """Turn anticlockwise, by a multiple of a right angle."""
    turns = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_270,
    }
    turn = turns.get(degrees % 360)
    return image if turn is None else image.transpose(turn)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


# All that is ever read of a DICOM header: enough to show the pixels and to time the frames, and
# nothing that says whose they are.
_DICOM_TAGS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(
        f"{segmented}{colour}PaletteColorLookupTable{part}"
        for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
        for colour in ("Red", "Green", "Blue")
    ),
    *("FrameTimeVector", "FrameTime", "CineRate", "RecommendedDisplayFrameRate"),
]
_DICOM_COLOURS = {
    1: {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"},
    3: {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"},
}


def _iterate_dicom(
    path: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    try:
        import pydicom.pixels  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading DICOM needs pydicom; install it by: pip install 'uscl-zoo[dicom]'"
        ) from error

    if not _is_dicom(path):
        raise UnreadableError(f"{path}: not a DICOM file by its content")
    try:
        header, there, offset = _quietly(lambda: _read_header(path))
        plugin = _plugin(path, header)
        to_bytes = _quietly(lambda: _display(header))
        times = _quietly(lambda: _times(header, frame_rate))
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
            pixels = _quietly(lambda: next(frames))
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


def _quietly(call: Callable[[], T]) -> T:
    """Call without the warnings of pydicom, which quote values of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


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
        header = dcmread(stream, stop_before_pixels=True, specific_tags=_DICOM_TAGS)
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
    packed = header.PhotometricInterpretation == "YBR_FULL_422"
    if packed and not header.file_meta.TransferSyntaxUID.is_encapsulated:
        # iter_pixels of pydicom 3.0 loses its place from the second such frame on
        return (pixel_array(path, index=index, number_of_frames=there) for index in range(there))
    return iter_pixels(path, decoding_plugin=plugin, number_of_frames=there or 1)


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
            codec.options = {"err_detect": "explode"}
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
    limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)  # where Pillow refuses
    if not 0 < header.Rows * header.Columns <= limit:
        raise UnreadableError(f"{path}: an image of {header.Columns} x {header.Rows} pixels")
    if header.PhotometricInterpretation not in _DICOM_COLOURS.get(header.SamplesPerPixel, ()):
        known = ", ".join(sorted(set().union(*_DICOM_COLOURS.values())))
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

    def to_bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
        shown: NDArray[np.uint8] = table.take(pixels.astype(np.int32) - lowest, 0, mode="clip")
        return shown

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
    vector = _numbers(header, "FrameTimeVector")[1:promised]
    if len(vector) == promised - 1 and min(vector) > 0:
        return accumulate((step / 1000 for step in vector), initial=0.0)
    steps = [time / 1000 for time in _numbers(header, "FrameTime")[:1]]
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        steps += [1 / rate for rate in _numbers(header, keyword)[:1] if rate]
    if frame_rate:
        steps.append(1 / frame_rate)
    step = next((step for step in steps if step > 0), math.nan)
    return (index * step for index in count())


def _reason(error: BaseException) -> str:
    """The first line of an error, without the path, which the message already has."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"'?cannot identify image file .*", "not an image", str(text).splitlines()[0])
    return text.rstrip(".")
