"""Frames out of anything: videos, DICOM, animated images, stills and folders of frames.

`find` turns what a user names into sources, `iterate` decodes one source lazily, and `sample`
thins it to a few frames a second. A *source* is a video, DICOM or image file, or a folder that
holds the frames of one clip.
"""

from __future__ import annotations

import math
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from ..errors import DataError, UnreadableError, one_line, reason
from . import dicom, images, video
from .clip import Clip, DamageWarning, Facts, Frame, OnDamage, Wanted

__all__ = ["DamageWarning", "Frame", "find", "iterate", "read", "sample"]

_SUFFIXES = video.SUFFIXES | images.SUFFIXES | dicom.SUFFIXES


def _warn(message: str) -> None:
    warnings.warn(message, DamageWarning, stacklevel=5)


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
    sources: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(path).expanduser()
        found = list(_search(path, visited=set())) if _is_folder(path) else [path]
        if not found:
            raise DataError(f"{path}: the folder holds no image or video that can be read")
        for source in found:
            sources.setdefault(os.path.realpath(source), source)
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
    first window; of its header nothing but these and the times is read. Frames of more pixels than
    8K has are refused, and an animation that has many more pixels than bytes breaks off.

    Args:
        path: of a video, a DICOM file, an image, or a folder of frames.
        frame_rate: frames a second of what states none: a folder of frames, a stack of pages, and
            DICOM at times.
        threads: that decode one video; loaders with many processes want 1.
        on_damage: called with one line if a file breaks off early, or a frame of a
            folder is unreadable; a `DamageWarning` unless given.

    Yields:
        `Frame(time, image)`.

    Raises:
        UnreadableError: naming the file and the reason, if not a single frame can be decoded.
        MissingDependencyError: if a video is asked for and PyAV is not installed, or DICOM and
            pydicom is not.
    """
    return _frames(path, frame_rate, threads, on_damage, Wanted())


def _frames(
    path: str | Path,
    frame_rate: float | None,
    threads: int,
    on_damage: OnDamage,
    wanted: Wanted,
    grey: bool = False,
) -> Iterator[Frame]:
    """The frames that are wanted, each asked about once and in order.

    All are decoded, most from the one before; but to make an image of a decoded frame takes as long
    again, and is left out for those that nobody wants.
    """
    path = Path(path).expanduser()
    if frame_rate is not None and not 0 < frame_rate < math.inf:
        raise DataError(f"frame_rate should be a positive number of frames a second: {frame_rate}")

    def tell(message: str) -> None:
        on_damage(one_line(message))

    kind = _kind(path)
    if kind == "folder":
        return _iterate_folder(path, frame_rate, tell, wanted)
    if kind == "video":
        return video.iterate(path, threads, tell, wanted, grey)
    if kind == "image":
        return images.iterate(path, frame_rate, tell, wanted)
    return dicom.iterate(path, frame_rate, tell, wanted)


def read(path: str | Path, *, frame_rate: float | None = None, threads: int = 1) -> Clip:
    """Open one source as a clip; nothing is decoded but its first frame, to see that it can be.

    Of what the file says of itself, `Facts` holds all that is kept: numbers, and words from fixed
    lists. Comments, titles, names, dates and identifiers are not among them.

    Args:
        path: of a video, a DICOM file, an image, or a folder of frames.
        frame_rate: as for `iterate`.
        threads: as for `iterate`.

    Raises:
        UnreadableError: naming the file and the reason, if not a single frame can be decoded.
        MissingDependencyError: if the library for that kind of file is not installed.
    """
    path = Path(path).expanduser()
    decode = partial(iterate, path, frame_rate=frame_rate, threads=threads)
    next(decode())
    told = {"video": video.facts, "image": images.facts, "dicom": dicom.facts}.get(_kind(path))
    return Clip(decode, path, told(path) if told else Facts())


def sample(
    path: str | Path,
    rate: float = 3.0,
    *,
    frame_rate: float | None = None,
    threads: int = 1,
    grey: bool = False,
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
        grey: give frames of videos that hold no colour as one channel (`L`) of the same levels,
            which takes a third of the time to make and to resize.
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
    return _frames(path, frame_rate, threads, on_damage, Wanted(rate), grey)


def natural_key(path: Path) -> tuple[object, ...]:
    """Sorting key that puts `frame2.jpg` before `frame10.jpg`."""
    parts = re.split(r"(\d+)", path.name.casefold())
    # split alternates text and digits, so like is compared with like; the name breaks ties
    return (*(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name)


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder rather than a file.

    Raises:
        UnreadableError: if it is neither, or not there.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path}: cannot be read ({reason(error)})") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UnreadableError(f"{path}: neither a file nor a folder")
    return stat.S_ISDIR(mode)


def _kind(path: Path) -> str:
    """`folder`, `video`, `image` or `dicom`."""
    suffix = path.suffix.lower()
    if _is_folder(path):
        return "folder"
    if suffix in video.SUFFIXES:
        return "video"
    if suffix in images.SUFFIXES:
        return "image"
    if suffix in dicom.SUFFIXES or _dicom(path):
        return "dicom"
    raise UnreadableError(
        f"{path}: not an image or video by its name, nor DICOM by its content; "
        f"known are {', '.join(sorted(_SUFFIXES))}"
    )


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
    # sets, as a folder may hold a hundred thousand
    folders = {entry for entry in entries if entry.is_dir()}
    files = [entry for entry in entries if entry not in folders and _is_source(entry)]
    if not folders and _are_one_clip(files):
        yield folder
        return
    sources = set(files)
    for entry in entries:
        if entry in folders:
            yield from _search(entry, visited)
        elif entry in sources:
            yield entry


def _is_source(file: Path) -> bool:
    suffix = file.suffix.lower()
    if suffix in _SUFFIXES:
        return True
    # archives name files by number or UID, 1.2.840.10008; DICOMDIR is their table of contents
    nameless = not suffix or suffix[1:].isdigit()
    return nameless and file.name.casefold() != "dicomdir" and _dicom(file)


def _are_one_clip(files: list[Path]) -> bool:
    patterns = {
        (match[1], file.suffix.lower()) if (match := re.fullmatch(r"(.*?)\d+", file.stem)) else None
        for file in files
    }
    if len(files) < 2 or len(patterns) != 1 or None in patterns:
        return False
    if files[0].suffix.lower() not in images.SUFFIXES:
        return False
    # numbered stills of different patients look the same by name, and seldom by size
    sizes = set()
    for file in files:
        sizes.add(images.size(file))
        if len(sizes - {None}) > 1:
            return False
    return len(sizes - {None}) == 1


def _iterate_folder(
    folder: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    files = [entry for entry in _entries(folder) if entry.suffix.lower() in images.SUFFIXES]
    if not files:
        raise UnreadableError(f"{folder}: the folder holds no images")
    unread: list[str] = []
    for index, file in enumerate(files):
        try:
            frame = next(images.iterate(file, None, on_damage, Wanted()))
        except UnreadableError as error:
            unread.append(str(error))
            continue
        # an unreadable frame still took its time
        time = index / frame_rate if frame_rate else math.nan
        if wanted(time):
            yield Frame(time, frame.image)
    if len(unread) == len(files):
        raise UnreadableError(f"{folder}: no image in it can be read; {unread[0]}")
    for message in unread:
        on_damage(message)


def _dicom(path: Path) -> bool:
    from ..records import open_file

    try:
        with open_file(path) as s:
            return dicom.is_dicom(s.read(132))
    except OSError:
        return False
