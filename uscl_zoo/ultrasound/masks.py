"""Masks: drawings of what an image shows, kept beside it, which are no ultrasound themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import one_line

# Files left out whose names are listed.
_NAMED = 5

# How masks are named: `mask` is the word of nothing else, the others have something before them.
_MASK = re.compile(
    r"(?:.*[\W_])?masks?(?![a-z]).*"
    r"|.+[\W_](?:gts?|ground[\W_]?truths?|seg|segmentations?|annotations?|labels?)"
    r"(?:[\W_]+\d+[\W_]*)*",
    re.IGNORECASE | re.DOTALL,
)
# `imageMask`, in this case alone
_CAMEL_MASK = re.compile(r".*[a-z0-9](?:Masks?|GT)(?:[\W_]*\d+)?", re.DOTALL)
#: Names of folders of masks.
MASKS = re.compile(
    r"(?:.*[\W_])?masks?(?:[\W_]*\d+)?|masks?[\W_].*"
    r"|gts?|ground[\W_]?truths?|seg|segmentations?|annotations?|labels?",
    re.IGNORECASE | re.DOTALL,
)


def masks_left_out(folder: Path, masks: Sequence[Path]) -> str:
    """A line that says which files of a folder are left out as masks."""
    return one_line(
        f"{folder}: {counted(masks)} left out, being masks by name: {some(folder, masks)}"
    )


def counted(files: Sequence[Path]) -> str:
    """How many files, with the verb."""
    return f"{len(files):,} files are" if len(files) > 1 else "1 file is"


def some(folder: Path, files: Sequence[Path]) -> str:
    """The first of some files by name, and how many more there are."""
    names = [file.relative_to(folder).as_posix() for file in files[:_NAMED]]
    more = f" and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    return f"{', '.join(names)}{more}"


def is_mask(path: Path) -> bool:
    """Whether a file or folder is of masks, by its name."""
    if path.is_dir():
        return bool(MASKS.fullmatch(path.name))
    return is_mask_name(path.stem)


def is_mask_name(stem: str) -> bool:
    """Whether a name, without its suffix, is that of a mask."""
    return bool(_MASK.fullmatch(stem) or _CAMEL_MASK.fullmatch(stem))
