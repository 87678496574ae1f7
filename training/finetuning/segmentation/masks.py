"""Masks as people keep them: which image each is of, and what its values and colours mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from uscl_zoo.errors import DataError, UnreadableError, one_line, quietly, reason
from uscl_zoo.segmentation.regions import Labels
from uscl_zoo.ultrasound.clip import MAX_PIXELS
from uscl_zoo.ultrasound.masks import image_of

#: Formats that keep values, and those of photographs.
_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG", "JPEG2000")
#: Values at most that are classes; more are the blurred edges of a mask of two.
_MOST = 64
#: Classes at most that are counted from 1; levels of grey that mean one lie further apart.
_FEW = 9
#: What programs write for `yes`: one of one bit, white, nearly so, and white of 16 bits.
_YES = frozenset((1, *range(240, 256), 65280, 65535))
# words of masks at the end of a stem, with a number behind them, and at its beginning
_END = re.compile(
    r"[-_.\s]*(?:masks?|gts?|ground[\W_]?truths?|seg|segmentations?|annotations?|labels?)"
    r"(?:[\W_]*\d+)?[-_.\s]*$",
    re.IGNORECASE,
)
_BEGINNING = re.compile(r"^(?:masks?|gt|seg|label)[\W_]+", re.IGNORECASE)
_TOKEN = re.compile(r"[\W_]+")

#: A value of a mask: a level, an index of a palette, or red, green and blue in one number.
Value = int
_COLOUR = 1 << 24


def pair(
    images: Sequence[Path], masks: Sequence[Path], root: Path
) -> tuple[dict[Path, list[Path]], list[Path]]:
    """Find the image of each mask, by its name and its folder.

    `x_mask.png`, `x_mask_1.png`, `masks/x.png` and `GT/x.png` are masks of `x.jpg`, and so is
    `mask_x.png`, or one that has another word in the place of `mask`. Of several images named so
    it is the one whose folders are named most like those of the mask.

    Args:
        images: files.
        masks: files.
        root: above both.

    Returns:
        The masks of each image, and those of none.

    Raises:
        DataError: if a mask may be of two images.
    """
    by_stem: dict[str, list[Path]] = {}
    by_tail: dict[str, list[Path]] = {}
    for image in images:
        stem = image.stem.casefold()
        by_stem.setdefault(stem, []).append(image)
        tail = _TOKEN.split(stem, maxsplit=1)
        if len(tail) == 2:
            by_tail.setdefault(tail[1], []).append(image)
    pairs: dict[Path, list[Path]] = {}
    lost: list[Path] = []
    for mask in masks:
        stem = mask.stem.casefold()
        bare = _BEGINNING.sub("", stem)
        candidates = (
            by_stem.get(stem)
            or by_stem.get(_END.sub("", stem))
            or (by_stem.get(bare) if bare != stem else None)
            or (by_tail.get(bare) if bare != stem else None)
            or by_stem.get(image_of(stem, by_stem) or "")
        )
        if not candidates:
            lost.append(mask)
            continue
        pairs.setdefault(_nearest(mask, candidates, root), []).append(mask)
    return pairs, lost


def _nearest(mask: Path, images: Sequence[Path], root: Path) -> Path:
    own = Counter(part.casefold() for part in mask.relative_to(root).parent.parts)

    def alike(image: Path) -> tuple[int, int]:
        parts = Counter(part.casefold() for part in image.relative_to(root).parent.parts)
        shared = (own & parts).total()
        return shared, -(own | parts).total()

    best = max(alike(image) for image in images)
    nearest = [image for image in images if alike(image) == best]
    if len(nearest) > 1:
        first, second = (path.relative_to(root) for path in nearest[:2])
        raise DataError(
            f"{mask}: may be of {one_line(str(first))} or of {one_line(str(second))}; name it "
            "after one of them, or give a CSV with `mask_column`"
        )
    return nearest[0]


def values_of(path: Path) -> npt.NDArray[np.int64]:
    """The values of a mask, int64 (H, W): levels, indices of a palette, or colours.

    A colour is red, green and blue in one number, above all levels; grey in three channels is a
    level, and a transparent pixel is background.

    Raises:
        UnreadableError: if it is no image, or too large.
    """
    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableError(f"{path}: has more than {MAX_PIXELS:,} pixels")
            if getattr(file, "n_frames", 1) > 1:
                raise UnreadableError(f"{path}: has several pages, and a mask is one")
            quietly(file.load)
            # as its image is, where it says so
            image: Image.Image = quietly(lambda: ImageOps.exif_transpose(file))
            if image.mode in ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "F"):
                if image.mode == "P" and _is_grey(image):
                    image = image.convert("L")
                levels = np.asarray(image)
                # a NaN is not what it is rounded to either, and above are the colours
                whole = levels.dtype.kind in "ub" or bool((levels == np.floor(levels)).all())
                if not whole or levels.min() < 0 or levels.max() >= _COLOUR:
                    raise UnreadableError(
                        f"{path}: has values that are not whole, negative or above {_COLOUR:,}; "
                        "save it with a number a class"
                    )
                values = levels.astype(np.int64)
            else:
                layers = np.asarray(image.convert("RGBA")).astype(np.int64)
                red, green, blue, alpha = np.moveaxis(layers, -1, 0)
                values = _COLOUR + (red << 16) + (green << 8) + blue
                grey = (red == green) & (green == blue)
                values[grey] = red[grey]
                values[alpha == 0] = 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path}: cannot be read as a mask ({reason(error)})") from error
    return values


def _is_grey(image: Image.Image) -> bool:
    """Whether a palette is a scale of grey whose values mean more than their places."""
    table = image.getpalette() or []
    triples = np.reshape(table, (-1, 3))
    used = sorted(set(np.unique(np.asarray(image)).tolist()))
    own = triples[[index for index in used if index < len(triples)]]
    return bool(len(own)) and bool((own == own[:, :1]).all()) and len(np.unique(own[:, 0])) > 1


@dataclass(frozen=True)
class Legend:
    """What the values of masks mean.

    Attributes:
        values: of each class, in their order.
        classes: their names.
        above: if not None, masks have one class, which is what is brighter than that: their edges
            are blurred, by JPEG for instance.
    """

    values: tuple[Value, ...]
    classes: tuple[str, ...]
    above: int | None = None

    def read(self, paths: Sequence[Path]) -> Labels:
        """The masks of an image as one map of classes, uint8 (H, W).

        Raises:
            UnreadableError: as `values_of`.
            DataError: if they have several sizes, or a value that is no class.
        """
        labels: Labels | None = None
        for path in paths:
            values = values_of(path)
            if labels is None:
                labels = np.zeros(values.shape, np.uint8)
            if values.shape != labels.shape:
                raise DataError(f"{path}: is of another size than {paths[0].name}, of one image")
            if self.above is not None:
                labels[_grey(values) > self.above] = 1
                continue
            for number, value in enumerate(self.values, start=1):
                labels[values == value] = number
        assert labels is not None
        return labels

    def __str__(self) -> str:
        if self.above is not None:
            return f"what is brighter than {self.above} is {self.classes[0]}"
        pairs = zip(self.values, self.classes, strict=True)
        return ", ".join(f"{shown(value)} is {name}" for value, name in pairs)


def shown(value: Value) -> str:
    """A value in words: a level, or a colour as on the web."""
    return f"#{value - _COLOUR:06x}" if value >= _COLOUR else str(value)


def _grey(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Levels of values, colours by their brightest channel."""
    colours = values - _COLOUR
    brightest = np.maximum(np.maximum(colours >> 16, (colours >> 8) & 255), colours & 255)
    return np.where(values >= _COLOUR, brightest, values)


@dataclass
class Found:
    """What is in masks.

    Attributes:
        counts: pixels of each value.
        together: values besides 0 that are in one mask, of many the largest, and the first such.
        corners: how many masks have a value in all four corners.
        masks: how many there are.
    """

    counts: Counter[Value] = field(default_factory=Counter)
    together: dict[frozenset[Value], Path] = field(default_factory=dict)
    corners: Counter[Value] = field(default_factory=Counter)
    masks: int = 0

    def take(self, path: Path, values: npt.NDArray[np.int64]) -> None:
        """Count a mask in."""
        numbers, pixels = np.unique(values, return_counts=True)
        self.counts.update(dict(zip(numbers.tolist(), pixels.tolist(), strict=True)))
        self.masks += 1
        others = frozenset(numbers.tolist()) - {0}
        # black alone is 1 to JPEG of some qualities
        if others and 0 in numbers:
            self.together.setdefault(
                others if len(others) <= _FEW else frozenset({max(others)}), path
            )
        ends = np.unique(values[[0, 0, -1, -1], [0, -1, 0, -1]])
        if len(ends) == 1:
            self.corners[int(ends[0])] += 1

    @property
    def scales(self) -> tuple[Path, Path] | None:
        """Two masks of which one has small numbers and the other large ones, if none has both."""
        small = [own for own in self.together if max(own) <= _FEW]
        large = [own for own in self.together if max(own) > _FEW]
        if not small or not large or any(min(own) <= _FEW for own in large):
            return None
        return self.together[small[0]], self.together[large[0]]

    @property
    def is_one(self) -> bool:
        """Whether each mask has one value at most, and it is what programs write for `yes`."""
        return self.counts.keys() <= _YES | {0} and all(len(own) == 1 for own in self.together)

    def inverted(self, outlined: Callable[[Value], bool]) -> list[str]:
        """A line about masks all of whose corners are outlined, if there are any."""
        inside = sum(count for value, count in self.corners.items() if outlined(value))
        said = (
            f"in {inside} of {self.masks} masks all four corners are outlined; if black is what "
            "they outline, invert them"
        )
        return [said] if inside else []


def legend_of(found: Found, classes: Sequence[str] | None) -> tuple[Legend, list[str]]:
    """What the values of all masks together mean.

    Black is the background, or what is most common where nothing is black. Of one other value the
    class is `lesion`, unless it is named; and so it is of 1 in some masks and 255 in others, which
    some programs write for the same.

    Args:
        found: in them.
        classes: names, in the order of the values, colours behind levels; None for names by them.

    Returns:
        The legend, and what is to be said of it.

    Raises:
        DataError: if there is no class, as many names as there are not classes, or numbers from 1
            in some masks and levels of grey or colours in others, which may be the same.
    """
    notes: list[str] = []
    counts = found.counts
    background = 0 if 0 in counts else max(counts, key=lambda value: (counts[value], -value))
    others = sorted(value for value in counts if value != background)
    if not others:
        what = "empty" if not background else f"of one value, {shown(background)}"
        raise DataError(f"every mask is {what}, so there is nothing to learn to outline")
    if background:
        notes.append(f"no mask has black in it; {shown(background)}, the commonest, is background")
    if not background and len(others) > 1 and found.is_one and len(classes or "1") == 1:
        legend = Legend((255,), tuple(classes or ("lesion",)), above=0)
        notes.append(
            f"masks have one value each, {' or '.join(map(shown, others))}, which is taken for the "
            f"same: {legend}"
        )
        return legend, notes + found.inverted(bool)
    two = found.scales
    total = sum(counts.values())
    ends = sum(count for value, count in counts.items() if _level(value) in _ENDS)
    if len(others) > _MOST or (len(others) > 2 and _is_blurred(counts, total, ends)):
        if ends < 0.9 * total:
            raise DataError(
                f"the masks have {len(others)} values besides the background, too many for classes "
                "and too evenly spread for blurred edges; are they the images?"
            )
        names = tuple(classes or ("lesion",))
        if two is not None:
            raise DataError(_apart(two))
        if len(names) != 1:
            raise DataError(
                f"the masks have blurred edges, so only two values are told apart in them: name "
                f"one class, not {len(names)}; save masks of several as PNG"
            )
        legend = Legend((255,), names, above=127)
        notes.append(f"masks with blurred edges ({len(others) + 1} values): {legend}")
        return legend, notes + found.inverted(lambda value: _level(value) > 127)
    if two is not None and len(classes or ()) != len(others):
        raise DataError(_apart(two))
    if classes is None:
        names = ("lesion",) if len(others) == 1 else tuple(shown(value) for value in others)
    else:
        names = tuple(classes)
    if len(names) != len(others) or len(set(names)) != len(names):
        raise DataError(
            f"{len(names)} names of classes for {len(others)} values of masks "
            f"({', '.join(map(shown, others[:10]))}); name each once, in that order (`classes`)"
        )
    legend = Legend(tuple(others), names)
    notes.append(f"in the masks {shown(background)} is background, {legend}")
    return legend, notes + found.inverted(lambda value: value != background)


def _apart(two: tuple[Path, Path]) -> str:
    """What is wrong with masks of which some count classes, and others show them."""
    return (
        f"{two[0].name} and {two[1].name}: one has numbers from 1, the other levels or colours, "
        "and no mask has both, so they may mean the same; save all in one way, or name each value "
        "(`classes`)"
    )


#: Levels near black and white, between which JPEG and resizing blur.
_ENDS = frozenset((*range(16), *range(240, 256)))


def _level(value: Value) -> int:
    return int(_grey(np.array([value]))[0])


def _is_blurred(counts: Mapping[Value, int], total: int, ends: int) -> bool:
    """Whether values are those of two levels with blurred edges: mostly near black and white.

    Classes are few values, and stand apart: levels 0, 1 and 2 are classes.
    """
    between = [value for value in counts if _level(value) not in _ENDS]
    bright = sum(count for value, count in counts.items() if _level(value) >= 240)
    neighbours = sum(value + 1 in counts for value in counts)
    return (
        bright > 0
        and ends > 0.9 * total
        and len(counts) > 8
        and bool(between or neighbours)
        and neighbours > len(counts) / 4
    )


def survey(paths: Iterable[Sequence[Path]]) -> Found:
    """What is in masks; one that is damaged is left to who reads it with its image.

    Raises:
        UnreadableError: as `values_of`, if none can be read.
    """
    found = Found()
    damage: UnreadableError | None = None
    for own in paths:
        for path in own:
            try:
                values = values_of(path)
            except UnreadableError as error:
                damage = damage or error
                continue
            found.take(path, values)
    if not found.masks and damage is not None:
        raise damage
    return found
