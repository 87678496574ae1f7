"""Frames out of anything: videos, animated images, stills and folders of frames.

`find` turns what a user names into sources, `iterate` decodes one source lazily, and `sample`
thins it to a few frames a second. A *source* is a video or image file, or a folder that holds the
frames of one clip.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageOps, ImageSequence

from ..errors import DataError, MissingDependencyError, UnreadableError
from .transforms import to_frame

#: Read by PyAV; suffixes are compared without case.
VIDEO_SUFFIXES = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
)
#: Read by Pillow, whether they move or not.
IMAGE_SUFFIXES = frozenset(
    {".apng", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)

# Seconds a frame of an animation lasts that states none, as web browsers have it.
_UNSTATED_DURATION = 0.1

# What Pillow raises for damaged files, the decompression bomb included.
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class Frame(NamedTuple):
    """One frame.

    Attributes:
        time: seconds since the first frame; 0 for a still, NaN where the source does not say.
        image: RGB, 8 bits a channel.
    """

    time: float
    image: Image.Image


class DamageWarning(UserWarning):
    """Part of a source could not be decoded; the frames that could were used."""


OnDamage = Callable[[str], None]


def _warn(message: str) -> None:
    warnings.warn(message, DamageWarning, stacklevel=4)


def find(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Find the sources in the files and folders a user names.

    Folders are searched to any depth, in natural order (`f2` before `f10`), hidden and other files
    left out. A folder is one source, a clip, if it holds at least two images and neither videos nor
    sub-folders, and all images have one size, one suffix and one name up to a final number, as in
    `Reg-1_mp4/Reg-1_mp4_frame0.jpg`. In any other folder each file is its own source. Files that
    are named themselves are returned whatever they are: reading them says what is wrong.

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
    non-square pixels are touched.

    Args:
        path: of a video, an image, or a folder of frames.
        frame_rate: frames a second of a folder of frames or stack of pages, which state none.
        threads: that decode one video; loaders with many processes want 1.
        on_damage: called with one line if a video breaks off early, or a frame of a folder is
            unreadable; a `DamageWarning` unless given.

    Yields:
        `Frame(time, image)`.

    Raises:
        UnreadableError: naming the file and the reason, if not a single frame can be decoded.
        MissingDependencyError: if a video is asked for and PyAV is not installed.
    """
    path = Path(path).expanduser()
    if frame_rate is not None and not 0 < frame_rate < math.inf:
        raise DataError(f"frame_rate should be a positive number of frames a second: {frame_rate}")
    suffix = path.suffix.lower()
    if path.is_dir():
        return _iterate_folder(path, frame_rate, on_damage)
    if not path.exists():
        raise UnreadableError(f"{path}: no such file or folder")
    if suffix in VIDEO_SUFFIXES:
        return _iterate_video(path, threads, on_damage)
    if suffix in IMAGE_SUFFIXES:
        return _iterate_image(path, frame_rate, on_damage)
    known = ", ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
    raise UnreadableError(f"{path}: not an image or video by its name; known are {known}")


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
    frames = iterate(path, frame_rate=frame_rate, threads=threads, on_damage=on_damage)
    return _thin(frames, rate)


def _thin(frames: Iterator[Frame], rate: float) -> Iterator[Frame]:
    tick = 0
    for frame in frames:
        if math.isnan(frame.time):
            yield frame
            continue
        # Matroska rounds times to milliseconds: 0.333 s has reached the tick at 1/3 s
        ticks = math.floor((frame.time + 0.001) * rate)
        if ticks >= tick:
            tick = ticks + 1
            yield frame


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
    files = [e for e in entries if e.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    if not folders and _are_one_clip(files):
        yield folder
        return
    for entry in entries:
        if entry in folders:
            yield from _search(entry, visited)
        elif entry in files:
            yield entry


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


def _iterate_folder(folder: Path, frame_rate: float | None, on_damage: OnDamage) -> Iterator[Frame]:
    files = [entry for entry in _entries(folder) if entry.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise UnreadableError(f"{folder}: the folder holds no images")
    reasons: list[str] = []
    for index, file in enumerate(files):
        try:
            frame = next(_iterate_image(file, None, on_damage))
        except UnreadableError as error:
            reasons.append(str(error))
            continue
        # an unreadable frame still took its time
        yield Frame(index / frame_rate if frame_rate else math.nan, frame.image)
    if len(reasons) == len(files):
        raise UnreadableError(f"{folder}: no image in it can be read; {reasons[0]}")
    for reason in reasons:
        on_damage(reason)


def _iterate_image(path: Path, frame_rate: float | None, on_damage: OnDamage) -> Iterator[Frame]:
    time, index = 0.0, 0
    try:
        with Image.open(path) as image:
            # a JPEG with several pictures is one picture and its previews
            moves = getattr(image, "is_animated", False) and image.format != "MPO"
            for page in ImageSequence.Iterator(image) if moves else (image,):
                if image.format in {"GIF", "PNG", "WEBP"}:
                    frame = Frame(time, _upright(page))
                elif moves:  # pages of a TIFF have no times
                    frame = Frame(index / frame_rate if frame_rate else math.nan, _upright(page))
                else:
                    frame = Frame(0.0, _upright(page))
                yield frame
                time += page.info.get("duration", 0) / 1000 or _UNSTATED_DURATION
                index += 1
    except _PILLOW_ERRORS as error:
        if not index:
            raise UnreadableError(f"{path}: cannot be read ({_reason(error)})") from error
        on_damage(f"{path}: breaks off after {index} frames ({_reason(error)})")


def _upright(image: Image.Image) -> Image.Image:
    return to_frame(ImageOps.exif_transpose(image))


def _iterate_video(path: Path, threads: int, on_damage: OnDamage) -> Iterator[Frame]:
    try:
        import av
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
                    image = frame.to_image()  # type: ignore[no-untyped-call]
                    yield Frame(clock.read(frame.time), _turn(image, frame.rotation))
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


def _reason(error: BaseException) -> str:
    """The first line of an error, without the path, which the message already has."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"'?cannot identify image file .*", "not an image", str(text).splitlines()[0])
    return text.rstrip(".")
