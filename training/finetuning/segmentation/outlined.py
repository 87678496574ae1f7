"""Images of which somebody has outlined what they show: from masks beside them, or COCO's JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from uscl_zoo.data.annotations import SubjectPattern, words_of
from uscl_zoo.errors import DataError, one_line
from uscl_zoo.segmentation.regions import Labels, Region, components, painted
from uscl_zoo.ultrasound.sources import Named, name_sources

from . import coco
from . import table as rows
from .masks import Legend, legend_of, pair, survey


@dataclass(frozen=True)
class Item:
    """An image, and what is outlined in it.

    Attributes:
        name: within the folder given.
        source: the image.
        subject: whose it is.
        masks: files of its masks; none where `annotations` are, or nothing is outlined.
        annotations: of COCO, with `label` for the class.
        size: height and width as COCO says; None where nobody does.
    """

    name: str
    source: Path
    subject: str
    masks: tuple[Path, ...] = ()
    annotations: tuple[dict[str, Any], ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Outlined:
    """Images with outlines.

    Attributes:
        items: one an image.
        classes: that are outlined, without the background.
        legend: of masks; None of COCO's JSON.
        subjects: whether subjects are known; otherwise each image is its own.
        notes: what was left out, in words.
        name: of the collection.
        url: where it is published.
        citation: of its authors.
        licence: of it.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    legend: Legend | None
    subjects: bool
    notes: tuple[str, ...]
    name: str
    url: str | None = None
    citation: str | None = None
    licence: str | None = None
    inputs: tuple[Path, ...] = field(default=())

    def labels(self, item: Item, size: tuple[int, int]) -> Labels:
        """The map of classes of an image of that height and width.

        Raises:
            DataError: if its masks are of another shape.
            UnreadableError: if a mask cannot be read.
        """
        if self.legend is None:
            return painted(self.regions(item, size), *size)
        if not item.masks:
            return np.zeros(size, np.uint8)
        return fitted(self.legend.read(item.masks), size, item.masks[0])

    def regions(self, item: Item, size: tuple[int, int]) -> list[Region]:
        """The regions of an image: of COCO as they are drawn, else connected parts of masks.

        Raises:
            DataError: as `labels`.
            UnreadableError: as `labels`.
        """
        if self.legend is None:
            if item.size is not None and item.size != size:
                # outlines are in the pixels of the image that they were drawn on
                height, width = item.size
                raise DataError(
                    f"{item.source}: is of {size[1]} x {size[0]} pixels, and in COCO's JSON of "
                    f"{width} x {height}"
                )
            return coco.regions(item.annotations, size)
        return components(self.labels(item, size), len(self.classes))


def fitted(labels: Labels, size: tuple[int, int], where: Path) -> Labels:
    """A map of classes at the size of its image, if it has the shape of it.

    Raises:
        DataError: if it has not.
    """
    if labels.shape == size:
        return labels
    height, width = labels.shape
    if abs(height * size[1] - width * size[0]) > 0.01 * max(height * size[1], width * size[0]):
        raise DataError(
            f"{where}: is of {width} x {height} pixels, and its image of {size[1]} x {size[0]}"
        )
    # the middle of each pixel
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(int)
    return np.ascontiguousarray(labels[rows][:, columns])


def find_outlined(
    data: Path,
    *,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    file_column: str = "Filename",
    mask_column: str | Sequence[str] | None = None,
    subject_column: str | None = None,
) -> Outlined:
    """Find images and what is outlined in them.

    Args:
        data: a folder of images with masks beside them or in a folder of masks, or COCO's JSON, or
            a folder that holds a single one; or a CSV of images and masks.
        subject_pattern: see `SubjectPattern`.
        classes: names of the classes, in the order of the values of the masks; of COCO the only
            categories to take.
        exclude: patterns of file names to leave out.
        file_column: of a CSV: the images.
        mask_column: of a CSV: the masks; several columns, or rows, are as many masks of an image.
        subject_column: of a CSV: whom they show.

    Raises:
        UnreadableError: if there is no such file or folder, or a mask cannot be read.
        DataError: if there is no image with an outline.
    """
    pattern = None if subject_pattern is None else SubjectPattern(subject_pattern)
    notes: list[str] = []
    is_csv = data.is_file() and data.suffix.lower() == ".csv"
    columns = words_of(mask_column)
    classes = None if classes is None else words_of(classes)
    exclude = words_of(exclude)
    if is_csv and not columns:
        raise DataError(f"{data}: `mask_column` is missing: which column has the masks?")
    if pattern is not None and subject_column is not None:
        raise DataError("`subject_column` and `subject_pattern` exclude each other")
    for argument, given in (
        ("mask_column", bool(columns)),
        ("subject_column", subject_column is not None),
    ):
        if given and not is_csv:
            raise DataError(f"{data}: `{argument}` is of a CSV, and this is none")
    table = None if is_csv else coco.file_in(data)
    legend = None
    if is_csv:
        listed = rows.read(data, file_column, columns, subject_column, pattern, notes)
        items = [
            Item(row.name, row.source, row.subject, row.masks)
            for row in listed
            if not _is_excluded(row.source, exclude)
        ]
        legend, said = _legend(data, [item.masks for item in items], classes)
        notes += said
        names = legend.classes
        inputs = [data, *(file for item in items for file in (item.source, *item.masks))]
    elif table is not None:
        read = coco.read(table, classes)
        notes += read.notes
        sources = coco.images_of(read, table, notes)
        items = [
            Item(
                name=own.name,
                source=own.path,
                subject=_subject(pattern, own),
                annotations=tuple(read.annotations.get(number, ())),
                size=read.sizes.get(number),
            )
            for number, own in sources.items()
            if not _is_excluded(own.path, exclude)
        ]
        names = read.classes
        inputs = [table, *(item.source for item in items)]
    else:
        found, masks = _pairs(data, exclude, notes)
        legend, said = _legend(data, masks.values(), classes)
        notes += said
        names = legend.classes
        items = [
            Item(own.name, own.path, _subject(pattern, own), tuple(masks[own.path]))
            for own in found
        ]
        inputs = [file for item in items for file in (item.source, *item.masks)]
    known = pattern is not None or subject_column is not None
    if not known:
        notes.append(
            "no subjects are known, so each image counts as its own; if subjects have several, "
            "name the pattern or column, or the figures will be too good"
        )
    name = one_line((data if data.is_dir() else data.parent).resolve().name)
    return Outlined(
        items=tuple(items),
        classes=names,
        legend=legend,
        subjects=known,
        notes=tuple(notes),
        name=name,
        inputs=tuple(inputs),
    )


def _legend(
    data: Path, masks: Iterable[Sequence[Path]], classes: Sequence[str] | None
) -> tuple[Legend, list[str]]:
    found = survey(masks)
    try:
        return legend_of(found, classes)
    except DataError as error:
        raise DataError(f"{data}: {error}") from error


def _subject(pattern: SubjectPattern | None, own: Named) -> str:
    return (None if pattern is None else pattern(own.within)) or own.name


def _is_excluded(path: Path, exclude: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in exclude)


def _pairs(
    data: Path, exclude: Sequence[str], notes: list[str]
) -> tuple[list[Named], dict[Path, list[Path]]]:
    """The images of a folder that have masks."""
    drawn: list[Path] = []
    found = [own for own, _ in name_sources([data], on_damage=notes.append, masks=drawn)]
    if not data.is_dir() or not drawn:
        raise DataError(
            f"{data}: has no masks; give a folder with x_mask.png beside x.png, or a folder masks/ "
            "with the same names, or COCO's JSON"
        )
    found = [own for own in found if not _is_excluded(own.path, exclude)]
    masks, lost = pair([own.path for own in found], drawn, data)
    if lost:
        notes.append(f"{len(lost)} masks are of no image, the first: {_short(lost[0], data)}")
    bare = [own for own in found if own.path not in masks]
    if bare:
        notes.append(
            f"{len(bare)} images without a mask left out, the first: {bare[0].name}; one that "
            "shows nothing to outline needs an empty mask"
        )
    found = [own for own in found if own.path in masks]
    if not found:
        raise DataError(
            f"{data}: none of {len(drawn)} masks is of an image, by its name; the first is "
            f"{_short(drawn[0], data)}"
        )
    return found, masks


def _short(path: Path, root: Path) -> str:
    return one_line(path.relative_to(root).as_posix())
