"""Frames out of anything: videos, DICOM, animated images, stills and folders of frames.

`find` turns what a user names into sources, `iterate` decodes one source lazily, and `sample`
thins it to a few frames a second. A *source* is a video, DICOM or image file, or a folder that
holds the frames of one clip. A *mask* is a drawing of what an image shows, kept beside it.
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
from typing import Any

from ..checks import real
from ..errors import DataError, UnreadableError, one_line, reason
from ..files import Address, expanded, open_file
from . import dicom, images, remote, video
from .clip import Clip, DamageWarning, Facts, Frame, OnDamage, Wanted
from .masks import MASKS, counted, folders_of_masks, masks_among, masks_left_out, some

__all__ = ["DamageWarning", "Frame", "find", "iterate", "read", "sample"]

_SUFFIXES = video.SUFFIXES | images.SUFFIXES | dicom.SUFFIXES

# What systems and archives leave beside the files of their users, in lower case.
_NEVER = frozenset(
    {
        *("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found"),
        *("system volume information", "desktop.ini", "dicomdir", "ehthumbs.db", "thumbs.db"),
    }
)

# How files begin, and where, by what reads them.
_MAGIC = (
    ("image", 0, (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")),
    ("image", 0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("image", 8, (b"WEBP",)),
    ("image", 4, images.HEIC),
    ("video", 4, (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free", b"pnot")),
    ("video", 8, (b"AVI ",)),
    ("video", 0, (b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"FLV\1", b"OggS")),
    ("video", 0, (b"\0\0\1\xba", b"\0\0\1\xb3")),
)


def warn(message: str) -> None:
    """Tell of damage by a `DamageWarning`."""
    warnings.warn(message, DamageWarning, stacklevel=5)


def find(
    paths: str | Path | Iterable[str | Path],
    *,
    on_damage: OnDamage = warn,
    masks: list[Path] | None = None,
    table: Path | None = None,
) -> list[Path]:
    """Find the sources in the files and folders a user names.

    Folders are searched to any depth, in natural order (`f2` before `f10`). A folder is one source,
    a clip, if it holds at least two images and neither videos nor sub-folders, and all images have
    one size, one suffix and one name up to a final number, as in
    `Reg-1_mp4/Reg-1_mp4_frame0.jpg`. In any other folder each file is its own source. Files of
    other suffixes, or none, are taken if their content is one that can be read. Files that are
    named themselves are returned whatever they are: reading them says what is wrong.

    Hidden files and folders, and what systems and archives leave behind (`@eaDir`, `__MACOSX`,
    `Thumbs.db`, `DICOMDIR`), are passed over; whatever else is left out is reported. So are masks,
    which are no ultrasound: `x_mask.png`, `x_GT.png` and the like, and folders named so. Who names
    such a file or folder itself has it.

    In object storage, as `s3://bucket/folder`, what a file is goes by its suffix alone, and no
    folder is a clip: to know one, its images would have to be fetched.

    Args:
        paths: one file or folder, or several; addresses of object storage too.
        on_damage: called with one line for a folder of whose files some are left out; a
            `DamageWarning` unless given.
        masks: is given those left out, which are not reported then.
        table: which is read otherwise, so that it is not reported either.

    Returns:
        The sources, each once, in the order in which they were named.

    Raises:
        UnreadableError: if there is no such file or folder, or a folder cannot be listed.
        DataError: if a folder holds no source.
    """
    sources: dict[str, Path] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        path = expanded(path)
        left_out: list[Path] = []
        drawn: list[Path] = []
        # in a folder of masks that is named itself, they are what is wanted, but by who tells apart
        beside = None if masks is None and MASKS.fullmatch(path.name) else drawn
        if not _is_folder(path):
            own = [path]
        elif isinstance(path, Address):
            own = list(_search_remote(path, left_out, beside, on_damage))
        else:
            own = list(_search(path, set(), left_out, beside))
        if not own and drawn and masks is None:
            raise DataError(
                f"{path}: the folder holds nothing but masks ({some(path, drawn)}); who wants "
                "them names the files themselves"
            )
        if not own and not drawn:
            raise DataError(f"{path}: the folder holds no image or video that can be read")
        if table is not None:
            is_it = os.path.realpath(str(table))
            left_out = [one for one in left_out if os.path.realpath(str(one)) != is_it]
        if left_out:
            what = f"{counted(left_out)} left out, being neither image nor video nor DICOM"
            on_damage(one_line(f"{path}: {what}: {some(path, left_out)}"))
        if masks is not None:
            masks += drawn
        elif drawn:
            on_damage(masks_left_out(path, drawn))
        for source in own:
            real = str(source) if isinstance(source, Address) else os.path.realpath(source)
            sources.setdefault(real, source)
    return list(sources.values())


def iterate(
    path: str | Path,
    *,
    frame_rate: float | None = None,
    threads: int = 1,
    on_damage: OnDamage = warn,
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
    path = expanded(path)
    if isinstance(path, Address):
        return _fetched(path, frame_rate, threads, on_damage, wanted, grey)
    if frame_rate is not None:
        frame_rate = real("frame_rate", frame_rate, 0, math.inf)

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


def _fetched(
    path: Address,
    frame_rate: float | None,
    threads: int,
    on_damage: OnDamage,
    wanted: Wanted,
    grey: bool,
) -> Iterator[Frame]:
    """The frames of a file in object storage, which is here while they are taken."""
    with remote.fetched(path) as local:

        def tell(message: str) -> None:
            on_damage(message.replace(str(local), str(path)))

        yield from _frames(local, frame_rate, threads, tell, wanted, grey)


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
    path = expanded(path)
    decode = partial(iterate, path, frame_rate=frame_rate, threads=threads)
    if isinstance(path, Address):
        with remote.fetched(path) as local:
            return Clip(decode, path, read(local, frame_rate=frame_rate).facts)
    next(decode())
    stated = {"video": video.facts, "image": images.facts, "dicom": dicom.facts}.get(_kind(path))
    return Clip(decode, path, stated(path) if stated else Facts())


def sample(
    path: str | Path,
    rate: float = 3.0,
    *,
    frame_rate: float | None = None,
    threads: int = 1,
    grey: bool = False,
    on_damage: OnDamage = warn,
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
    return _frames(path, frame_rate, threads, on_damage, wanted_at(rate), grey)


def wanted_at(rate: float) -> Wanted:
    """Whether the frame at a time is one of `rate` a second.

    Raises:
        DataError: if `rate` is not positive.
    """
    return Wanted(real("rate", rate, 0, math.inf))


def natural_key(path: Path) -> tuple[tuple[object, ...], str]:
    """Sorting key that puts `frame2.jpg` before `frame10.jpg`, and `scan` before `scan2`."""
    parts = re.split(r"(\d+)", path.name.casefold())
    # split alternates text and digits, so like is compared with like; the name breaks ties
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder rather than a file.

    Raises:
        UnreadableError: if it is neither, or not there.
    """
    if isinstance(path, Address):
        return remote.is_folder(path)
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
    """`folder`, `video`, `image` or `dicom`: by content, and by name where that tells nothing."""
    if _is_folder(path):
        return "folder"
    if kind := _by_head(path):
        return kind
    suffix = path.suffix.lower()
    if suffix in video.SUFFIXES:
        return "video"
    if suffix in images.SUFFIXES:
        return "image"
    if suffix in dicom.SUFFIXES:
        return "dicom"
    raise UnreadableError(
        f"{path}: not an image or video by its name, nor DICOM by its content; "
        f"known are {', '.join(sorted(_SUFFIXES))}"
    )


def _by_head(path: Path) -> str | None:
    """`video`, `image` or `dicom` by the first bytes of a file, None if they tell nothing."""
    try:
        with open_file(path) as stream:
            head = stream.read(512)
    except (OSError, ValueError):
        return None
    # its first 128 bytes may be those of another
    if head[128:132] == b"DICM":
        return "dicom"
    for kind, place, starts in _MAGIC:
        if head[place:].startswith(starts):
            return kind
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 40, 52, 56, 108, 124):
        return "image"
    # transport stream: packets of 188 bytes, of 192 with a time before each
    if any(head[at::size][:2] == b"GG" and len(head) > size for at, size in ((0, 188), (4, 192))):
        return "video"
    return "dicom" if dicom.is_dicom(head) else None


def entries(folder: Path) -> list[Path]:
    """The files and folders in a folder that are its user's, in natural order.

    Raises:
        UnreadableError: if it cannot be listed.
    """
    try:
        entries = [Path(entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise UnreadableError(f"{folder}: cannot be listed ({error.strerror})") from error
    return sorted(
        (e for e in entries if e.name[0] != "." and e.name.casefold() not in _NEVER),
        key=natural_key,
    )


def _search(
    folder: Path,
    visited: set[Path],
    left_out: list[Path],
    masks: list[Path] | None,
    has_masks: bool = False,
) -> Iterator[Path]:
    """The sources of a folder; those that are masks are added to `masks`, where it is given.

    Whether it has masks may be known from the folders beside it.
    """
    real = folder.resolve()
    if real in visited:  # symbolic links can make rings
        return
    visited.add(real)
    own = entries(folder)
    # sets, as a folder may hold a hundred thousand
    folders = {entry for entry in own if entry.is_dir()}
    sources = {entry for entry in own if entry not in folders and _is_source(entry)}
    left_out += [entry for entry in own if entry not in folders and entry not in sources]
    below: list[Path] = []
    if masks is not None:
        drawn = masks_among(sources)
        masks += sorted(drawn, key=natural_key)
        sources -= drawn
        below = folders_of_masks([entry for entry in own if entry in folders])
        for entry in below:
            masks += _files_in(entry, visited)
            folders.remove(entry)
        has_masks = has_masks or bool(drawn or below)
    # images with masks are of a collection, and one merged by mistake is worse than one divided
    files = [entry for entry in own if entry in sources]
    if not folders and not has_masks and _are_one_clip(files):
        yield folder
        return
    for entry in own:
        if entry in folders:
            yield from _search(entry, visited, left_out, masks, bool(below))
        elif entry in sources:
            yield entry


def _search_remote(
    folder: Address, left_out: list[Path], masks: list[Path] | None, on_damage: OnDamage
) -> Iterator[Path]:
    """The sources below an address, as far as names tell, in natural order."""

    def order(file: Path) -> tuple[Any, ...]:
        below = file.relative_to(folder)
        return tuple(natural_key(Path(part)) for part in below.parts)

    files = sorted(remote.files_under(folder, on_damage), key=order)
    together: dict[Path, list[Path]] = {}
    for file in files:
        together.setdefault(file.parent, []).append(file)
    drawn = {file for own in together.values() for file in masks_among(own)}
    for file in files:
        within = file.relative_to(folder)
        if any(part[0] == "." or part.casefold() in _NEVER for part in within.parts):
            continue
        if file.suffix.lower() not in _SUFFIXES:
            left_out.append(file)
        elif masks is not None and (file in drawn or any(map(MASKS.fullmatch, within.parts[:-1]))):
            masks.append(file)
        else:
            yield file


def _files_in(folder: Path, visited: set[Path]) -> Iterator[Path]:
    """Every file in a folder that can be read, a folder of frames as its files."""
    real = folder.resolve()
    if real in visited:
        return
    visited.add(real)
    for entry in entries(folder):
        if entry.is_dir():
            yield from _files_in(entry, visited)
        elif _is_source(entry):
            yield entry


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order, without their masks."""
    files = [entry for entry in entries(folder) if entry.suffix.lower() in images.SUFFIXES]
    # a folder of nothing else is only here if it was named itself
    drawn = set() if MASKS.fullmatch(folder.name) else masks_among(files)
    return [file for file in files if file not in drawn] or files


def _is_source(file: Path) -> bool:
    # most need not be opened
    return file.suffix.lower() in _SUFFIXES or _by_head(file) is not None


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
    layouts = set()
    for file in files:
        layouts.add(images.layout(file))
        if len(layouts - {None}) > 1:
            return False
    # numbered animations and stacks of pages are a clip each
    return any(layout is not None and not layout[2] for layout in layouts)


def _iterate_folder(
    folder: Path, frame_rate: float | None, on_damage: OnDamage, wanted: Wanted
) -> Iterator[Frame]:
    files = images_in(folder)
    if not files:
        raise UnreadableError(f"{folder}: the folder holds no images")
    unread: list[str] = []
    for index, file in enumerate(files):
        try:
            pictures = images.iterate(file, None, on_damage, Wanted())
            frame = next(pictures)
            if next(pictures, None) is not None:
                on_damage(f"{file}: holds several pictures; the first is taken for a frame")
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
