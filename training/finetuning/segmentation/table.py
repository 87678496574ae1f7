"""A CSV that says which masks an image has, and whose it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uscl_zoo.data.annotations import SubjectPattern, read_table
from uscl_zoo.data.collection import of_table
from uscl_zoo.errors import DataError, one_line

from .masks import values_of


@dataclass(frozen=True)
class Row:
    """An image of a table.

    Attributes:
        name: from the folder of the table.
        source: the image.
        subject: whose it is; its own name where nobody says.
        masks: of it; none where it shares an empty one with others, of whatever size that is.
    """

    name: str
    source: Path
    subject: str
    masks: tuple[Path, ...]


def read(
    path: Path,
    file_column: str,
    mask_columns: Sequence[str],
    subject_column: str | None,
    pattern: SubjectPattern | None,
    notes: list[str],
) -> list[Row]:
    """The images of a table that have masks; several rows of one are as many masks of it.

    Args:
        path: of the CSV; names in it count from its folder, as for `rows.assign`.
        file_column: images.
        mask_columns: masks of them.
        subject_column: whom they show.
        pattern: of subjects, in their paths.
        notes: is given what was left out.

    Raises:
        UnreadableError: if it is no CSV that can be read.
        DataError: if it has no such column, a mask that outlines something is of two images, the
            subjects of an image disagree, or no image has a mask.
    """
    home = path.parent
    table = read_table(path, file_column, file_column, subject_column, join=_as_it_is(file_column))
    # a row a mask is no mistake
    table = dataclasses.replace(table, repeated=frozenset())
    images = of_table(table, home, pattern, False, notes)
    by_key = {row.label: name for name, (_, row) in images.items()}
    masks: dict[str, list[Path]] = {name: [] for name in images}
    images_of: dict[Path, dict[str, None]] = {}
    for column in mask_columns:
        pairs: list[tuple[str | None, str | None]] = []

        def mask_of(
            cells: Mapping[str, str | None],
            column: str = column,
            pairs: list[tuple[str | None, str | None]] = pairs,
        ) -> str | None:
            pairs.append((cells[file_column], cells[column]))
            return cells[column]

        table = read_table(path, column, [file_column, column], join=mask_of)
        if not table.rows:
            raise DataError(f"{path}: no row has a mask in the column {column!r}")
        # an image a row: one mask may be of several, if nothing is outlined in it
        table = dataclasses.replace(table, repeated=frozenset())
        found = {row.label: m for m, row in of_table(table, home, None, False, notes).values()}
        for image, mask in dict.fromkeys(pairs):
            if image in by_key and mask in found:
                masks[by_key[image]].append(found[mask])
                images_of.setdefault(found[mask], {})[by_key[image]] = None
    for drawn, of in images_of.items():
        if len(of) > 1 and len(np.unique(values_of(drawn))) > 1:
            first, second, *more = of
            raise DataError(
                f"{path}: {drawn.name} is the mask of {len(of)} images ({first}, {second}"
                f"{', …' if more else ''}), and outlines something; each needs its own"
            )
    bare = [name for name, own in masks.items() if not own]
    if bare:
        notes.append(
            f"{len(bare)} images without a mask left out, the first: {one_line(bare[0])}; one that "
            "shows nothing to outline needs an empty mask"
        )
    rows = [
        Row(name, source, row.subject, tuple(m for m in masks[name] if len(images_of[m]) == 1))
        for name, (source, row) in images.items()
        if masks[name]
    ]
    if not rows:
        raise DataError(f"{path}: none of {len(images)} images has a mask")
    return rows


def _as_it_is(column: str) -> Callable[[Mapping[str, str | None]], str | None]:
    """A name, of which spaces within it and `NA` are no mistakes."""
    return lambda cells: cells[column]
