from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from uscl_zoo.training.preparing import fingerprints
from uscl_zoo.training.preparing.fingerprints import SHIFT, SIDE, Pairs, Prints, find_pairs


def noise(seed: int) -> Image.Image:
    """Speckle on a tissue that all have: their hashes are near, their textures are not."""
    tissue = np.random.default_rng(0).normal(100, 60, (12, 12)).astype(np.float32)
    side = SIDE + 2 * SHIFT
    smooth = Image.fromarray(tissue).resize((side, side), Image.Resampling.BICUBIC)
    grey = np.asarray(smooth) + np.random.default_rng(seed).normal(0, 12, (side, side))
    return Image.fromarray(np.clip(grey, 10, 255).astype(np.uint8))


def window(image: Image.Image, right: int, down: int) -> Image.Image:
    return image.crop((SHIFT + right, SHIFT + down, SHIFT + right + SIDE, SHIFT + down + SIDE))


@pytest.fixture(scope="module")
def prints() -> Prints:
    """Twenty scenes; the first five again, shifted, and one from right to left."""
    scenes = [window(noise(seed), 0, 0) for seed in range(1, 21)]
    shifts = [(0, 0), (SHIFT, -SHIFT), (-1, SHIFT), (0, 1), (-SHIFT, -SHIFT)]
    again = [window(noise(1 + i), *shift) for i, shift in enumerate(shifts)]
    turned = window(noise(6), 1, 0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Prints.of([*scenes, *again, turned])


def rows(pairs: Pairs) -> list[tuple[int, int, int, bool]]:
    columns = (pairs.first, pairs.second, pairs.distance, pairs.mirrored)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def brute(prints: Prints, first: int, second: int, mirrored: bool) -> float:
    """The largest correlation, shift by shift and pixel by pixel."""
    one, two = (prints.textures[i].astype(np.float64) for i in (first, second))
    one = one[:, ::-1] if mirrored else one
    padded = np.pad(one, SHIFT)
    shifts = range(2 * SHIFT + 1)
    return max(
        float((padded[y : y + SIDE, x : x + SIDE] * two).sum()) for y in shifts for x in shifts
    )


def all_pairs(prints: Prints, own: npt.NDArray[np.int64]) -> Pairs:
    return find_pairs(prints, own, own, distance=120, correlation=-1)


def test_shifted_and_mirrored_copies_are_pairs_and_nothing_else(prints: Prints) -> None:
    own = np.arange(len(prints))
    # by the hashes alone, shifts of two pixels both ways are further apart than candidates are
    found = find_pairs(prints, own, own, distance=120)
    assert [row[:2] for row in rows(found)] == [(i, 20 + i) for i in range(6)]
    assert [row[3] for row in rows(found)] == [False] * 5 + [True]


def test_the_correlation_is_the_largest_over_the_shifts(prints: Prints) -> None:
    found = all_pairs(prints, np.arange(len(prints)))
    assert len(found) > 100
    for k in range(0, len(found), 10):
        pair = int(found.first[k]), int(found.second[k]), bool(found.mirrored[k])
        assert found.correlation[k] == pytest.approx(brute(prints, *pair), abs=1e-5)


def test_blocks_do_not_change_what_is_found(
    prints: Prints, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = np.arange(len(prints))
    whole = all_pairs(prints, own)
    for name, size in (("_ROWS", 7), ("_COLUMNS", 5), ("_WIDE", 3)):
        monkeypatch.setattr(fingerprints, name, size)
    parts = all_pairs(prints, own)
    assert rows(parts) == rows(whole)
    assert np.sort(parts.correlation) == pytest.approx(np.sort(whole.correlation), abs=1e-5)


def test_of_two_videos_the_best_frames_are_the_pair(prints: Prints) -> None:
    # two videos: the scenes, and the copies of which the first is exact
    owner = np.repeat([0, 1], [20, len(prints) - 20])
    assert [row[:2] for row in rows(find_pairs(prints, owner, owner))] == [(0, 20)]
    assert not len(find_pairs(prints, owner, np.zeros_like(owner)))
