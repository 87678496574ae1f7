"""How long an audit takes after decoding, and where its thresholds come from.

python -m tests.benchmarks.audit                                   # 10,000 made images
python -m tests.benchmarks.audit --busi DATA/busi --pocus STORE     # the distributions
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom  # type: ignore[import-untyped]

from uscl_zoo.training.downstream.datasets import load
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.fingerprints import BITS, Prints, find_pairs
from uscl_zoo.ultrasound import reading

#: Of the made images, this many are copies of others, disturbed in the ways below.
COPIES = 500
_WAYS = ("recompressed", "brighter", "cropped", "mirrored", "calipers")


def make(count: int, seed: int) -> Iterator[Image.Image]:
    """Speckle over smooth tissue in one sector, the last ones copies of the first."""
    for i in range(count - COPIES):
        yield Image.fromarray(_scene(seed + i))
    for i in range(COPIES):
        yield _disturbed(_scene(seed + i), _WAYS[i % len(_WAYS)], seed + i)


def _scene(seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    tissue = zoom(rng.normal(0, 1, (6, 6)), 192 / 6, order=1)
    # the middle part of a beam is alike in all
    y, x = np.mgrid[0:192, 0:192] / 192
    beam = (np.abs(x - 0.5) < 0.12 + 0.4 * y) & (np.hypot(x - 0.5, y + 0.1) < 1.05)
    speckle = gaussian_filter(rng.rayleigh(1, (192, 192)), 1.2)
    image = beam * speckle * np.exp(1.5 * tissue - 0.5 * y) * 60
    return np.asarray(np.clip(image, 0, 255), np.uint8)


def _disturbed(scene: npt.NDArray[np.uint8], way: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed + 1_000_000)
    image = scene.astype(float)
    if way == "recompressed":
        image += rng.normal(0, 6, image.shape)
    elif way == "brighter":
        image = 255 * (image / 255) ** 0.7
    elif way == "cropped":
        image = image[3:-2, 2:-3]
    elif way == "mirrored":
        image = image[:, ::-1]
    else:
        row, column = rng.integers(50, 140, 2)
        image[row - 6 : row + 7, column] = image[row, column - 6 : column + 7] = 255
        image[row : row + 1, column : column + 40 : 3] = 255
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def speed(count: int, seed: int) -> None:
    """Times of the stages, peak memory, and how many of the copies were found."""
    images = list(make(count, seed))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock, cpu = time.perf_counter(), time.process_time()
    prints = Prints.of(images)
    middle, cpu_middle = time.perf_counter(), time.process_time()
    own = np.arange(count)
    pairs = find_pairs(prints, own, own)
    end, cpu_end = time.perf_counter(), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    print(f"{count} images of 192x192, {COPIES} of them copies; seconds by the clock, and of CPU")
    print(f"fingerprints {middle - clock:6.1f} {cpu_middle - cpu:6.1f}")
    print(f"pairs        {end - middle:6.1f} {cpu_end - cpu_middle:6.1f}")
    print(f"peak memory {(peak - before) / 1024:.0f} MB above the {before / 1024:.0f} MB before")
    planted = {(i, count - COPIES + i) for i in range(COPIES)}
    for k, way in enumerate(_WAYS):
        own_way = {pair for pair in planted if pair[0] % len(_WAYS) == k}
        print(f"{way:13} {len(own_way & found)} of {len(own_way)} found")
    print(f"pairs that are no copies: {len(found - planted)}")


_DISTANCES = np.array([0, 26, 38, 51, 64, 77, 90, 103])
_CORRELATIONS = np.array([-1, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.01])


def distribution(
    prints: Prints, owner: npt.NDArray[np.int64], group: npt.NDArray[np.int64]
) -> None:
    """A table of pairs of sources, by distance of the hashes and correlation of the textures."""
    widest = int(_DISTANCES[-1]) - 1
    pairs = find_pairs(prints, owner, group, distance=widest, correlation=-1)
    print("bits apart  " + "".join(f"<{edge:<6.2f}" for edge in _CORRELATIONS[1:]))
    for low, high in pairwise(_DISTANCES.tolist()):
        chosen = (pairs.distance >= low) & (pairs.distance < high)
        counts = np.histogram(pairs.correlation[chosen], _CORRELATIONS)[0]
        print(f"{low:3}-{high - 1:<3} of {BITS} " + "".join(f"{count:<7}" for count in counts))
    turned = pairs.correlation[pairs.mirrored]
    print(f"mirrored: {len(turned)}, the most alike {turned.max(initial=-1):.2f}")


def _busi(folder: Path) -> None:
    sources = load("busi", folder, grouped=False).collection.sources
    prints = Prints.of(next(reading.iterate(source)).image for source in sources.values())
    own = np.arange(len(sources))
    print("BUSI, pairs of images")
    distribution(prints, own, own)


def _pocus(folder: Path) -> None:
    store = FrameStore(folder)
    prints = Prints.of(Image.fromarray(frame) for frame in store.frames)
    counts = [video.count for video in store.videos]
    subjects = {video.subject: i for i, video in enumerate(store.videos)}
    owner = np.repeat(np.arange(len(counts)), counts)
    group = np.repeat([subjects[video.subject] for video in store.videos], counts)
    print("POCUS, pairs of videos of different subjects, by their best pair of frames")
    distribution(prints, owner, group)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--busi", type=Path)
    parser.add_argument("--pocus", type=Path)
    given = parser.parse_args()
    if given.busi:
        _busi(given.busi)
    if given.pocus:
        _pocus(given.pocus)
    if not (given.busi or given.pocus):
        speed(given.images, given.seed)


if __name__ == "__main__":
    main()
