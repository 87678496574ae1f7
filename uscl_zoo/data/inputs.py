"""What people hand over to be looked at: files and folders, or images and clips in memory."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import DataError, one_line, reason
from ..files import expanded, is_address
from ..ultrasound.clip import Clip, DamageWarning, Frame
from ..ultrasound.rgb import in_use, to_frame, upright
from ..ultrasound.sources import Named, Source, name_sources
from ..zoo.catalogue import refuse_model
from .annotations import Annotation, SubjectPattern, Table, known_subject
from .rows import survey

#: What can be looked at: one image, clip, file or folder, or several; `one_by_one` says how.
#: Arrays and tensors are what they are of any type, and so are columns of a table.
Inputs = Any

_WANTED = "an image is a path, a Pillow image, an array or a tensor"
#: Pixels that a grey image in a stack is wide at least: a shorter last axis is one of channels.
_NARROWEST = 8


@dataclass(frozen=True)
class Gathered:
    """The sources in what was handed over.

    Attributes:
        sources: files and folders, and what is in memory.
        names: what each is called.
        items: which of the things handed over each came in, by number.
        count: of the things handed over.
        rows: annotations by path, of those that have a row in the table.
        notes: what of the table had to be bent, in words.
        again: things handed over that are files which were before, by number, and which.
    """

    sources: list[Source]
    names: list[Named]
    items: list[int]
    count: int
    rows: Mapping[Path, Annotation] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    again: Mapping[int, int] = field(default_factory=dict)


def find(given: Inputs, table: Table | None = None, *, every_row: bool = False) -> Gathered:
    """The sources in whatever was handed over; folders among it are searched.

    Args:
        given: see `one_by_one`.
        table: of annotations, where all are files and folders.
        every_row: as for `rows.survey`.

    Raises:
        UnreadableError: as `reading.find`.
        DataError: as `reading.find` and `rows.survey`; if something is no image.
    """
    items = one_by_one(given)
    if table is not None:
        if not all(isinstance(item, (str, Path)) for item in items):
            raise DataError(
                f"{table.path}: a table is of files, and these are images in memory; say whom they "
                "show by a list, one of each"
            )
        surveyed = survey(items, table, every_row=every_row)
        names = list(surveyed.sources)
        paths: list[Source] = [name.path for name in names]
        return Gathered(paths, names, [0] * len(names), 1, surveyed.rows, surveyed.notes)
    clips: dict[Any, tuple[Source, Named, int]] = {}
    again: dict[int, int] = {}
    for number, item in enumerate(items):
        if isinstance(item, (str, Path)):
            refuse_model(item)
            for name, _ in name_sources(item):
                # of a file that is named twice one is enough; of an image in memory nobody knows
                real = name.path if is_address(name.path) else name.path.resolve()
                first = clips.setdefault(real, (name.path, name, number))[2]
                if first != number:
                    again[number] = first
        else:
            called = f"image {number}" if len(items) > 1 else "image"
            clip = source_of(item, called)
            assert isinstance(clip, Clip)
            clips[number] = clip, Named(Path(called), called, called), number
    sources, named, numbers = zip(*clips.values(), strict=True) if clips else ((), (), ())
    return Gathered(list(sources), list(named), list(numbers), len(items), again=again)


def report_clips(given: Inputs, sources: Iterable[Any]) -> list[str]:
    """A line about folders that were taken for a clip, and named by nobody: they may hold stills.

    Args:
        given: what was handed over, files and folders.
        sources: what was found in it.
    """
    named = {
        expanded(item).resolve() for item in one_by_one(given) if isinstance(item, (str, Path))
    }
    folders = [
        path
        for path in sources
        if isinstance(path, Path) and not is_address(path) and path.is_dir()
        if path.resolve() not in named
    ]
    if not folders:
        return []
    return [
        one_line(
            f"{len(folders)} folders of numbered images are taken for one clip each, the first: "
            f"{folders[0]}; if they are stills of several, give the files: {folders[0] / '*'}"
        )
    ]


def one_by_one(given: Inputs) -> list[Any]:
    """What was handed over, one by one; of a single thing a list of it.

    One is a path; a Pillow image; a `Clip`; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or
    a tensor (H, W), (1, H, W) or (3, H, W). Several are a list of these, in which there may also be
    clips as arrays or lists of frames; a column of a table; an array (N, H, W, C) or, grey, (N, H,
    W); or a tensor (N, C, H, W).

    Raises:
        DataError: if it is none of these, or an array could be one image or three.
    """
    items = several(given)
    if items is None:
        return [given]
    if isinstance(given, np.ndarray) and given.ndim == 3 and len(given) == 3:
        raise DataError(
            f"an array {given.shape} is one image with its channels first or three grey ones: give "
            "`np.moveaxis(array, 0, -1)` of the one, or `array[..., None]` of the three"
        )
    return items


def several(given: Inputs) -> list[Any] | None:
    """Several things one by one; None of one.

    Raises:
        DataError: if it is neither.
    """
    if isinstance(given, (str, Path, Image.Image, Clip)):
        return None
    if isinstance(given, torch.Tensor):
        if given.ndim == 4 and given.shape[1] not in (1, 3):
            raise DataError(f"a tensor of images is (N, C, H, W), not {tuple(given.shape)}")
        return list(given) if given.ndim > 3 else None
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        raise DataError(
            f"{_WANTED}, not a whole {type(given).__name__}: give the column of the files"
        )
    if hasattr(given, "to_numpy"):  # a column of pandas or Polars
        given = given.to_numpy()
    if isinstance(given, np.ndarray):
        if given.dtype.kind in "OU":
            return list(given.reshape(-1))
        if given.ndim == 4 and given.shape[3] not in (1, 3, 4):
            hint = ": `np.moveaxis(array, 1, -1)`" if given.shape[1] in (1, 3) else ""
            raise DataError(f"an array of images is (N, H, W, C), not {given.shape}{hint}")
        return list(given) if given.ndim > 3 or _is_grey_stack(given) else None
    if isinstance(given, Iterable) and not isinstance(given, (bytes, bytearray, memoryview, type)):
        return list(given)
    raise DataError(f"{_WANTED}, not {described(given)}")


def source_of(item: Any, called: str) -> Source:
    """One thing as a source: a path, or a clip in memory, which of a single image is a still.

    Args:
        item: one of what `one_by_one` gives.
        called: what to call it in messages and tables, if it has no path.

    Raises:
        DataError: if it is no image. What its pixels hold is checked when they are looked at.
    """
    if isinstance(item, (str, Path)):
        return expanded(item)
    if isinstance(item, Clip):
        return item if item.source else Clip(item.decode, Path(called), item.facts)
    if isinstance(item, (list, tuple)):
        frames = [_pixels(frame) for frame in item]
        if not frames:
            raise DataError(f"{called}: has no frames")
        return _clip(frames, called)
    array = _pixels(item)
    if isinstance(array, np.ndarray) and (array.ndim > 3 or _is_grey_stack(array)):
        if array.ndim == 3 and len(array) == 3:
            raise DataError(
                f"{called}: an image should be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not "
                f"{array.shape}: `np.moveaxis(array, 0, -1)` puts the channels last"
            )
        return _clip(list(array), called)
    return _clip([array], called)


def described(item: Any) -> str:
    """What something is, for messages."""
    if isinstance(item, (str, Path)):
        return str(item)
    shape = getattr(item, "shape", None)
    return type(item).__name__ if shape is None else f"{type(item).__name__} {tuple(shape)}"


def on_disk(given: Inputs) -> list[str | Path]:
    """The files and folders among what was handed over.

    Raises:
        DataError: if there is anything else: it could not be gone on with after an interruption.
    """
    items = one_by_one(given)
    paths = [item for item in items if isinstance(item, (str, Path))]
    if len(paths) < len(items):
        raise DataError(
            "what is in memory cannot be gone on with: give no `output`, and `save` what you get"
        )
    return paths


def whose(
    subjects: Any, gathered: Gathered, asked: Callable[[Named], Any] = lambda name: name.name
) -> list[str | None]:
    """Whom each source shows; None of whom nobody knows.

    Args:
        subjects: a pattern, see `annotations.SubjectPattern`; a table; a mapping by path or file
            name; a function; or a list, whom each of the things handed over shows. None of none.
        gathered: the sources.
        asked: what a function is given of a source.

    Raises:
        DataError: if a pattern is none, or finds nobody in a name; if a list is not as long.
    """
    names = gathered.names
    reported: Iterable[Any]
    if subjects is None:
        reported = [None] * len(names)
    elif isinstance(subjects, Table):
        rows = (gathered.rows.get(name.path) for name in names)
        reported = (row.subject if row else None for row in rows)
    elif isinstance(subjects, str):
        pattern = SubjectPattern(subjects)
        reported = (pattern(name.within) for name in names)
    elif isinstance(subjects, Mapping):
        bare = Counter(n.path.name for n in names if str(n.path) not in subjects)
        if several := [name for name, count in bare.items() if count > 1 and name in subjects]:
            raise DataError(
                f"`subjects` has {several[0]!r}, and {bare[several[0]]} files are called so; name "
                "them by their paths"
            )
        reported = (subjects.get(str(n.path), subjects.get(n.path.name)) for n in names)
    elif callable(subjects):
        reported = (subjects(asked(name)) for name in names)
    else:
        one_each = list(subjects)
        if len(one_each) != gathered.count:
            raise DataError(
                f"`subjects` names {len(one_each)}, and {gathered.count} files or images were given"
            )
        for item, first in gathered.again.items():
            if known_subject(one_each[item]) != known_subject(one_each[first]):
                raise DataError(
                    f"`subjects` has two for one file, {one_each[first]!r} and {one_each[item]!r}"
                )
        reported = (one_each[item] for item in gathered.items)
    return [known_subject(one) for one in reported]


def _is_grey_stack(array: Any) -> bool:
    """Whether an array is several grey images.

    Raises:
        DataError: if its last axis is too long for channels and too short for a row of pixels.
    """
    if array.ndim != 3 or array.shape[2] in (1, 3, 4):
        return False
    if 0 < array.shape[2] < _NARROWEST:
        raise DataError(
            f"an array {array.shape} is no image, of 1, 3 or 4 channels; if it is several grey "
            f"ones, each is {array.shape[2]} pixels wide: give `array[..., None]`"
        )
    return True


def _pixels(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        if item.ndim == 3 and item.shape[0] not in (1, 3):
            hint = "several grey ones are (N, 1, H, W): `tensor[:, None]`"
            if item.shape[2] in (1, 3, 4):
                hint = "`permute(2, 0, 1)` puts the channels first"
            raise DataError(
                f"a tensor of an image is (1, H, W) or (3, H, W), not {tuple(item.shape)}; {hint}"
            )
        try:
            held = item.detach().cpu()
            array = (held.float() if held.is_floating_point() else held).numpy()
        except (RuntimeError, TypeError) as error:  # sparse, quantised, or on no device
            raise DataError(f"a tensor is not dense or has no values ({reason(error)})") from error
        return np.moveaxis(array, -3, -1) if array.ndim > 2 else array
    if isinstance(item, Image.Image):
        return upright(item)
    if isinstance(item, np.ndarray):
        return item
    raise DataError(f"{_WANTED}, not {described(item)}")


def _widened(frames: list[Any], called: str) -> list[Any]:
    """Frames of 16 bits that leave the uppermost unused, in the range they use, as from a file.

    Of 12 bits in 16 there would be a picture that is almost black.
    """
    deep = [np.asarray(frame) if _is_deep(frame) else None for frame in frames]
    pixels = [array for array in deep if array is not None and array.size]
    if not pixels or len(pixels) < len(frames):
        return frames
    # alpha, which is dropped, says nothing of how bright a picture is
    shown = [array[..., :3] if array.ndim == 3 else array for array in pixels]
    lowest = min(int(array.min()) for array in shown)
    highest = max(int(array.max()) for array in shown)
    top, note = in_use(highest)
    if lowest < 0 or note is None:
        return frames
    warnings.warn(DamageWarning(f"{called}: {note}"), stacklevel=2)
    return [
        ((array.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16) for array in shown
    ]


def _is_deep(frame: Any) -> bool:
    if isinstance(frame, Image.Image):
        return frame.mode in ("I", "I;16", "I;16B", "I;16L")
    deep = isinstance(frame, np.ndarray) and frame.dtype == np.uint16
    # masked pixels are refused where frames are made
    return deep and not np.ma.is_masked(frame)


def _clip(frames: list[Any], called: str) -> Clip:
    frames = _widened(frames, called)
    time = 0.0 if len(frames) == 1 else float("nan")

    def decode() -> Iterator[Frame]:
        for frame in frames:
            try:
                image = to_frame(frame)
            except DataError as error:
                raise DataError(f"{called}: {error}") from error
            yield Frame(time, image)

    return Clip(decode, Path(called))
