"""Masks: drawings of what an image shows, kept beside it, which are no ultrasound themselves."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
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

# Words that say so beside the image that they are of, as `x_roi.png` beside `x.png`.
_DRAWN = (
    r"masks?|gts?|ground[\W_]?truths?|truths?|seg(?:mentations?|mented|masks?|maps?|m)?s?|"
    r"labels?(?:ids?|map|me)?|anno(?:tations?|tated|t)?s?|contours?|outlines?|trimaps?"
)
_BESIDE = re.compile(
    rf"{_DRAWN}|ann|rois?|overlays?|binary|bw|manual|delineations?|pred(?:iction)?s?|lesions?|"
    r"tumou?rs?",
    re.IGNORECASE,
)
# Of folders fewer: `lesion` and `roi` may be classes.
_OF_FOLDERS = re.compile(rf"(?:{_DRAWN})(?:tr|ts|te|val|class|object)?", re.IGNORECASE)
_APART = " -_.()[]~"


def image_of(stem: str, stems: Container[str]) -> str | None:
    """The stem of the image that a mask is of by its name, among others of its folder.

    Args:
        stem: without its suffix, in lower case.
        stems: of the others, the same.
    """
    for word in _BESIDE.finditer(stem):
        before, after = stem[: word.start()].rstrip(_APART), stem[word.end() :]
        if before and before in stems and not after[:1].isalpha():
            return before
        if not before and after[:1] in _APART and after.strip(_APART) in stems:
            return after.strip(_APART)
    return None


def masks_among(files: Iterable[Path]) -> set[Path]:
    """Those of the files of a folder that are masks: by their names, or beside their images."""
    own = {file: file.stem.casefold() for file in files}
    stems = set(own.values())
    return {f for f, stem in own.items() if is_mask_name(f.stem) or image_of(stem, stems)}


def folders_of_masks(folders: Sequence[Path]) -> list[Path]:
    """Those of the folders beside each other that are of masks.

    That is by their names, or by those of their files where the names may mean something else:
    `labelsTr` has what `imagesTr` has, and the classes `label_1` and `label_2` are none.
    """
    doubtful = [one for one in folders if not is_mask(one) and _has_word(one.name)]
    others = [one for one in folders if one not in doubtful and not is_mask(one)]
    images = {stem for one in others for stem in _stems(one)} if doubtful else set()
    # as `x_0000.png` in the folder of the images
    images |= {re.sub(r"_\d+$", "", stem) for stem in images}

    def has_theirs(folder: Path) -> bool:
        own = _stems(folder)
        shared = sum(stem in images or image_of(stem, images) is not None for stem in own)
        return shared > len(own) / 2

    found = [one for one in doubtful if has_theirs(one)]
    return [one for one in folders if is_mask(one) or one in found]


def _has_word(name: str) -> bool:
    tokens = [name, *re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    return any(map(_OF_FOLDERS.fullmatch, tokens))


def _stems(folder: Path) -> set[str]:
    """Stems of the files in a folder, in lower case; none if it cannot be listed."""
    try:
        return {file.stem.casefold() for file in folder.iterdir() if file.name[0] != "."}
    except OSError:
        return set()


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
