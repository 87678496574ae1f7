"""Images and their maps of classes, decoded once, and the split of their subjects."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from uscl_zoo.data.annotations import Annotation
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.files import written, written_folder
from uscl_zoo.segmentation.regions import Labels, Region
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Card
from uscl_zoo.zoo.digests import sha256_of

from ...downstream.seen import Material, pretrained_on
from ...preparing.labels import hold_out
from .outlined import Item, Outlined

FRAMES, LABELS, ABOUT = "frames.npy", "labels.npy", "about.json"
#: The stratum of images that show nothing to outline.
NONE = "none"


@dataclass(frozen=True)
class Decoded:
    """Images and their maps of classes, at the size of the network.

    Attributes:
        items: N of them, those that could be read.
        frames: uint8 (N, H, W, 3), a memory map.
        labels: uint8 (N, H, W), a memory map.
        sizes: of each, height and width in its own pixels.
        spacing: of each, height and width of a pixel in mm; None where it does not say.
        present: of each the classes that are in it.
        held_out: bool (N,), whether its subject is held out.
        digest: of the images, masks and split.
    """

    items: tuple[Item, ...]
    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    sizes: tuple[tuple[int, int], ...]
    spacing: tuple[tuple[float, float] | None, ...]
    present: tuple[tuple[int, ...], ...]
    held_out: npt.NDArray[np.bool_]
    digest: str

    @property
    def train(self) -> npt.NDArray[np.int64]:
        """Rows of the subjects to train on."""
        return np.flatnonzero(~self.held_out)

    @property
    def judged(self) -> npt.NDArray[np.int64]:
        """Rows of the held-out subjects."""
        return np.flatnonzero(self.held_out)

    def subjects(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Of some rows."""
        return [self.items[row].subject for row in rows.tolist()]

    def strata(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Which classes some rows show, in a word each."""
        return [_stratum(self.present[row]) for row in rows.tolist()]


def _stratum(present: Sequence[int]) -> str:
    return "+".join(map(str, present)) or NONE


def gather(
    outlined: Outlined,
    folder: Path,
    transform: FrameTransform,
    note: Callable[[str], None],
    *,
    holdout: float,
    seed: int,
    held_out: Sequence[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Decoded:
    """Decode images and masks once, and hold subjects out.

    A subject counts for what most of its images show: each class, or none of them, is held out by
    the same share.

    Args:
        outlined: the images.
        folder: for what is decoded; what an earlier call of the same left there is used.
        transform: of the network.
        note: is given what the reader of the figures should know.
        holdout: share of the subjects to be judged on.
        seed: of the split.
        held_out: the subjects to hold out, where that is settled.
        workers: threads that decode; None for one a core.
        progress: show a bar.

    Raises:
        DataError: if there are too few subjects, or none with an outline.
    """
    key = _key(outlined, transform, holdout, seed, held_out)
    about = _about(folder)
    if about is None or about["key"] != key or about.get("content") != _contents(folder):
        with written_folder(folder, replace=True) as partial:
            _decode(outlined, partial, transform, key, workers, progress)
        about = _about(folder)
        assert about is not None
    for reason in about["skipped"][:5]:
        note(f"skipped: {reason}")
    if len(about["skipped"]) > 5:
        note(f"skipped: {len(about['skipped']) - 5} more")
    items = tuple(outlined.items[index] for index in about["kept"])
    present = tuple(tuple(one) for one in about["present"])
    annotations = {
        item.name: Annotation(item.subject, _stratum(of))
        for item, of in zip(items, present, strict=True)
    }
    chosen = set(hold_out(annotations, holdout, seed) if held_out is None else held_out)
    out = np.array([item.subject in chosen for item in items])
    shown = [bool(of) for of in present]
    trained = {i.subject for i, o, s in zip(items, out, shown, strict=True) if s and not o}
    judged = {i.subject for i, o, s in zip(items, out, shown, strict=True) if s and o}
    if len(trained) < 2 or not judged:
        raise DataError(
            "at least three subjects with something outlined are needed, two to train on and one "
            f"to be judged on; there are {len(trained | judged)}"
        )
    for label, title in enumerate(outlined.classes):
        if not any(label in of for of, o in zip(present, out, strict=True) if o):
            note(f"{title}: too few subjects to be judged on")
    return Decoded(
        items=items,
        frames=np.load(folder / FRAMES, mmap_mode="r"),
        labels=np.load(folder / LABELS, mmap_mode="r"),
        sizes=tuple((height, width) for height, width in about["sizes"]),
        spacing=tuple(None if s is None else (s[0], s[1]) for s in about["spacing"]),
        present=present,
        held_out=out,
        digest=key,
    )


def doubts(outlined: Outlined, decoded: Decoded, card: Card | None) -> list[str]:
    """What makes the figures say less than they seem to.

    Args:
        outlined: the images.
        decoded: the same.
        card: of the backbone; None of one that has none.
    """
    said = []
    digests = [sha256_of(item.source) for item in decoded.items]
    both = set(np.array(digests)[decoded.held_out]) & set(np.array(digests)[~decoded.held_out])
    if both:
        said.append(f"{len(both)} images are there twice, on two sides of the split")
    if card is not None:
        rows = decoded.judged.tolist()
        texts = tuple(text for text in (outlined.url, outlined.citation) if text)
        said += pretrained_on(
            card,
            Material(
                (outlined.name,),
                texts,
                tuple(digests[row] for row in rows),
                tuple(decoded.items[row].subject for row in rows),
                lambda place: decoded.frames[rows[place]][None],
            ),
        )
    return said


def _key(outlined: Outlined, transform: FrameTransform, *split: Any) -> str:
    """Whatever decoding depends on, as a digest."""
    legend = None if outlined.legend is None else str(outlined.legend)
    files = [
        [item.name, item.subject, *(_content(path) for path in (item.source, *item.masks))]
        for item in outlined.items
    ]
    drawn = [item.annotations for item in outlined.items]
    parts = [files, drawn, outlined.classes, legend, transform.size, transform.interpolation, split]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _content(path: Path) -> str | None:
    """What is in a file, whenever it was written; None if it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return None


def _contents(folder: Path) -> list[str | None]:
    """What is in the files of frames and maps: what was changed since is decoded again."""
    return [_content(folder / FRAMES), _content(folder / LABELS)]


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about


def opened(outlined: Outlined, item: Item) -> tuple[Image.Image, Labels, list[Region]]:
    """An image as it is, its map of classes and its regions, in its own pixels.

    Raises:
        UnreadableError: if the image or a mask cannot be read.
        DataError: if it is a clip, or its mask of another shape.
    """
    frames = reading.iterate(item.source, on_damage=lambda message: None)
    image = next(frames).image
    if next(frames, None) is not None:
        raise DataError(f"{item.source}: has several frames, and masks are of stills")
    size = image.height, image.width
    return image, outlined.labels(item, size), outlined.regions(item, size)


def _decode(
    outlined: Outlined,
    folder: Path,
    transform: FrameTransform,
    key: str,
    workers: int | None,
    progress: bool,
) -> None:
    height, width = transform.size
    count = len(outlined.items)
    rows = np.lib.format.open_memmap
    frames = rows(folder / FRAMES, "w+", np.uint8, (count, height, width, 3))
    labels = rows(folder / LABELS, "w+", np.uint8, (count, height, width))
    kept: list[int] = []
    present: list[list[int]] = []
    spacing: list[tuple[float, float] | None] = []
    sizes: list[tuple[int, int]] = []
    skipped: list[str] = []

    def one(item: Item) -> Any:
        try:
            image, drawn, regions = opened(outlined, item)
            facts = reading.read(item.source).facts
        except (UnreadableError, DataError) as error:
            return str(error)
        small = Image.fromarray(drawn).resize((width, height), Image.Resampling.NEAREST)
        there = sorted({region.label for region in regions})
        return transform.resize(image), np.asarray(small), there, facts.spacing, drawn.shape

    for index, read in enumerate(
        tqdm(
            _in_order(one, outlined.items, workers),
            total=count,
            unit="image",
            disable=not progress,
        )
    ):
        if isinstance(read, str):
            skipped.append(read)
            continue
        place = len(kept)
        frames[place], labels[place] = read[:2]
        present.append(read[2])
        spacing.append(read[3])
        sizes.append(read[4])
        kept.append(index)
    frames.flush()
    labels.flush()
    if not any(present):
        first = f"; {skipped[0]}" if skipped else ""
        raise DataError(f"none of {count} images can be read and has something outlined{first}")
    about = {
        "key": key,
        "kept": kept,
        "present": present,
        "sizes": sizes,
        "spacing": spacing,
        "skipped": skipped,
        "content": _contents(folder),
    }
    with written(folder / ABOUT) as partial:
        partial.write_text(json.dumps(about), encoding="utf-8")


def _in_order(
    call: Callable[[Item], Any], items: Sequence[Item], workers: int | None
) -> Iterator[Any]:
    """Results in the order of the items, a few of them ahead of whoever takes them."""
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(items)
        waiting = [pool.submit(call, item) for item in islice(rest, 64)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(call, item) for item in islice(rest, 1)]


def forget(folder: Path) -> None:
    """Take away what was decoded."""
    shutil.rmtree(folder, ignore_errors=True)
