"""Fingerprints of images, and the pairs among them that show the same picture.

A fingerprint is a perceptual hash, the signs of the lowest frequencies of a small grey copy, and
that copy itself with its brightness and contrast evened out. Hashes find candidates by their
Hamming distance; what confirms them is the correlation of the copies, over small shifts, as speckle
agrees only in pictures of one recording. docs/audit.md has the figures the thresholds are from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from scipy.fft import dctn  # type: ignore[import-untyped]
from scipy.ndimage import gaussian_filter, minimum_filter  # type: ignore[import-untyped]
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from tqdm import tqdm

#: Side of the grey copy in pixels, and frequencies a side of the hash.
SIDE, FREQUENCIES = 64, 16
#: Bits of a hash: all of these frequencies but the mean.
BITS = FREQUENCIES**2 - 1
#: Largest Hamming distance of a candidate, smallest correlation of a pair.
DISTANCE, CORRELATION = 76, 0.55
#: Smallest correlation of a pair within one source, where far fewer are compared: looked at pair by
#: pair in BUSI and in AUL's livers, whose first pair of two scenes has 0.397.
SCENE = 0.4
#: Largest Hamming distance of a pair of which only the hashes are known.
ALONE = 26
#: Pixels of the grey copy by which two are shifted against each other, at most.
SHIFT = 2

# Pixels; what is wider than this, as the beam's shape, is not compared.
_SCALE = 1.5
# grey levels of texture that count as none
_FLAT = 4.0
# Grey levels that are black, width in pixels of what is left out around them, and least share of
# an image that must then be left to tell it by.
_BLACK, _EDGE, _SHARE = 4, 5, 0.1
# sides of a block of the distance matrix; images fingerprinted, and correlated, at a time
_ROWS, _COLUMNS, _CHUNK, _WIDE = 1024, 8192, 256, 2048
# candidates kept of two sources in a block of rows: videos have thousands of like frames
_TRIES = 8


@dataclass(frozen=True)
class Prints:
    """Fingerprints of many images.

    Attributes:
        hashes: uint8 (N, 32), packed bits.
        textures: float16 (N, 64, 64) of norm 1 each, or 0 for an image without texture.
    """

    hashes: npt.NDArray[np.uint8]
    textures: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, images: Iterable[Image.Image]) -> Prints:
        """The fingerprints of images, of which a few hundred are in memory at a time."""
        rest = map(shrink, images)
        parts = []
        while block := list(islice(rest, _CHUNK)):
            grey = np.stack(block)
            parts.append(cls(hash_of(grey), texture_of(grey)))
        return cls.join(parts)

    @classmethod
    def join(cls, parts: Sequence[Prints]) -> Prints:
        """The fingerprints of several, one after the other."""
        none = np.empty((0, (BITS + 7) // 8), np.uint8), np.empty((0, SIDE, SIDE), np.float16)
        return cls(
            np.concatenate([none[0], *(part.hashes for part in parts)]),
            np.concatenate([none[1], *(part.textures for part in parts)]),
        )


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, as arrays of one length.

    Attributes:
        first: int64, rows of the one collection.
        second: int64, rows of the other.
        distance: int64, Hamming.
        correlation: float64; NaN where only hashes are known.
        mirrored: bool, whether the second is the first from left to right.
    """

    first: npt.NDArray[np.int64]
    second: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int64]
    correlation: npt.NDArray[np.float64]
    mirrored: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.first)

    def take(self, which: npt.NDArray[Any]) -> Pairs:
        """Some of the pairs, by index or mask."""
        return Pairs(
            self.first[which],
            self.second[which],
            self.distance[which],
            self.correlation[which],
            self.mirrored[which],
        )


def shrink(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A grey copy, uint8 (64, 64); the aspect ratio is not kept, as the method's frames do not."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def hash_of(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Hashes, uint8 (N, 32), of grey copies (N, 64, 64): the signs of the lowest frequencies."""
    waves = dctn(grey.astype(np.float32), axes=(1, 2))[:, :FREQUENCIES, :FREQUENCIES]
    return np.packbits(waves.reshape(len(grey), -1)[:, 1:] > 0, axis=1)


def texture_of(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    """Textures, float16 (N, 64, 64), of grey copies: what is finer than speckle is wide."""
    around = (0, _SCALE, _SCALE)
    fine = grey.astype(np.float32)
    fine -= gaussian_filter(fine, around)
    power = gaussian_filter(fine * fine, tuple(2 * scale for scale in around))
    fine /= np.sqrt(power) + _FLAT
    # the edge of the beam is as sharp as speckle, and the same in all that one scanner made
    inside = minimum_filter(grey, (1, _EDGE, _EDGE)) > _BLACK
    fine *= inside & (inside.mean(axis=(1, 2), keepdims=True) >= _SHARE)
    fine -= inside * (fine.sum(axis=(1, 2)) / np.maximum(inside.sum(axis=(1, 2)), 1))[:, None, None]
    norm = np.sqrt((fine * fine).sum(axis=(1, 2), keepdims=True))
    return np.asarray(fine / np.maximum(norm, 1e-6), np.float16)


def find_pairs(
    prints: Prints,
    owner: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    *,
    distance: int = DISTANCE,
    correlation: float = CORRELATION,
    progress: bool = False,
) -> Pairs:
    """The best pair of images of any two sources that show the same picture.

    Args:
        prints: of the images, N.
        owner: (N,), the source of each.
        group: (N,), of each; no pair within a group is looked for.
        distance: largest Hamming distance of the hashes.
        correlation: smallest correlation of the textures.
        progress: show a bar.

    Returns:
        Pairs of rows, the first's source before the second's, most alike first.
    """
    usable = np.asarray(prints.textures.any(axis=(1, 2)) & prints.hashes.any(axis=1))

    def wanted(
        first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        apart = (owner[first] < owner[second]) & (group[first] != group[second])
        return np.asarray(apart & usable[first] & usable[second])

    close = []
    for near in _near(prints.hashes, prints.hashes, owner, owner, distance, wanted, progress):
        near.correlation[:] = _correlate(prints.textures, near)
        close.append(near.take(near.correlation >= correlation))
    pairs = _join(close)
    order = np.lexsort((pairs.distance, -pairs.correlation))
    return _best(pairs.take(order), owner, owner, 1)


def find_known(
    prints: Prints,
    owner: npt.NDArray[np.int64],
    known: npt.NDArray[np.uint8],
    known_owner: npt.NDArray[np.int64],
    *,
    distance: int = ALONE,
    progress: bool = False,
) -> Pairs:
    """The best pair of a source and one of a collection of which only the hashes are known.

    Args:
        prints: of the images, N.
        owner: (N,), the source of each.
        known: hashes, uint8 (M, 32).
        known_owner: (M,), the source of each.
        distance: largest Hamming distance.
        progress: show a bar.

    Returns:
        Pairs of a row of `prints` and one of `known`, nearest first.
    """
    lit, known_lit = (np.asarray(hashes.any(axis=1)) for hashes in (prints.hashes, known))

    def wanted(
        first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        return np.asarray(lit[first] & known_lit[second])

    near = _join(list(_near(prints.hashes, known, owner, known_owner, distance, wanted, progress)))
    order = np.argsort(near.distance, kind="stable")
    return _best(near.take(order), owner, known_owner, 1)


def clusters(
    count: int, first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """A number for each of `count` sources, the same for those that pairs link, directly or not."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _near(
    first: npt.NDArray[np.uint8],
    second: npt.NDArray[np.uint8],
    first_owner: npt.NDArray[np.int64],
    second_owner: npt.NDArray[np.int64],
    distance: int,
    wanted: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
    progress: bool,
) -> Iterator[Pairs]:
    """Candidates, by blocks of rows of the distance matrix, the nearest few of any two sources."""
    one, two = _signs(first), _signs(second)
    # from left to right, the odd waves across change their sign
    odd = np.arange(1, BITS + 1) % FREQUENCIES % 2 == 1
    turned = np.where(odd, -one, one)
    least = BITS - 2 * distance
    blocks = range(0, len(one), _ROWS)
    for row in tqdm(blocks, "comparing", unit="block", disable=not progress):
        of_rows: list[Pairs] = []
        for column in range(0, len(two), _COLUMNS):
            across = two[column : column + _COLUMNS].T
            for mirrored, left in ((False, one), (True, turned)):
                agreement = left[row : row + _ROWS] @ across
                i, j = np.nonzero(agreement >= least)
                if len(i) == 0:
                    continue
                apart = (BITS - agreement[i, j].astype(np.int64)) // 2
                i, j = i + row, j + column
                kept = wanted(i, j)
                i, j, apart = i[kept], j[kept], apart[kept]
                none = np.full(len(i), np.nan)
                of_rows.append(Pairs(i, j, apart, none, np.full(len(i), mirrored)))
        near = _join(of_rows)
        order = np.argsort(near.distance, kind="stable")
        yield _best(near.take(order), first_owner, second_owner, _TRIES)


def _best(
    pairs: Pairs,
    first_owner: npt.NDArray[np.int64],
    second_owner: npt.NDArray[np.int64],
    count: int,
) -> Pairs:
    """Of pairs in order the first few of any two sources, still in order."""
    if len(pairs) == 0:
        return pairs
    sources = first_owner[pairs.first] * (second_owner.max() + 1) + second_owner[pairs.second]
    order = np.argsort(sources, kind="stable")
    starts = np.flatnonzero(np.diff(sources[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return pairs.take(np.sort(order[place < count]))


def _signs(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    # in float32 a product counts bits without error, and BLAS is faster than counting them
    return np.unpackbits(hashes, axis=1, count=BITS).astype(np.float32) * 2 - 1


def _join(parts: Sequence[Pairs]) -> Pairs:
    integers = np.empty(0, np.int64)
    empty = Pairs(integers, integers, integers, np.empty(0), np.empty(0, bool))
    fields = [
        [getattr(part, f.name) for part in (empty, *parts)] for f in dataclasses.fields(Pairs)
    ]
    return Pairs(*(np.concatenate(field) for field in fields))


def _correlate(textures: npt.NDArray[np.float16], pairs: Pairs) -> npt.NDArray[np.float64]:
    """The largest correlation of each pair over the shifts."""
    highest = np.empty(len(pairs))
    own = pairs.first * 2 + pairs.mirrored
    seconds, place = np.unique(pairs.second, return_inverse=True)
    for start in range(0, len(seconds), _WIDE):
        second = textures[seconds[start : start + _WIDE]].astype(np.float32)
        second = second.reshape(len(second), -1)
        here = np.flatnonzero(place // _WIDE == start // _WIDE)
        here = here[np.argsort(own[here], kind="stable")]
        # an image is shifted once for all that it is near to; quicker than transforming these
        for of in np.split(here, np.flatnonzero(np.diff(own[here])) + 1):
            first = _shifted(textures[pairs.first[of[0]]], bool(pairs.mirrored[of[0]]))
            highest[of] = (second[place[of] - start] @ first.T).max(axis=1)
    return highest


def _shifted(texture: npt.NDArray[np.float16], mirrored: bool) -> npt.NDArray[np.float32]:
    """A texture in all shifts, (25, 4096); what is shifted in is 0."""
    padded = np.pad(texture[:, ::-1] if mirrored else texture, SHIFT).astype(np.float32)
    return sliding_window_view(padded, texture.shape).reshape(-1, texture.size)
