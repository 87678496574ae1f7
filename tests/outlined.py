"""Made-up images with outlines: dark discs on noise, and what is around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def draw(
    seed: int, *, empty: bool = False, size: tuple[int, int] = (96, 120)
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Noise with a dark ellipse in it, and where that is."""
    rng = np.random.default_rng(seed)
    height, width = size
    levels = rng.normal(110, 20, size)
    mask = Image.new("1", (width, height))
    if not empty:
        left, top = int(rng.integers(5, width // 2)), int(rng.integers(5, height // 2))
        wide, high = int(rng.integers(24, 44)), int(rng.integers(22, 40))
        ImageDraw.Draw(mask).ellipse((left, top, left + wide, top + high), fill=1)
    there = np.asarray(mask)
    levels[there] -= 70
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8)), there


def write(folder: Path, count: int = 24) -> Path:
    """Images of subjects who have two each, with masks beside them; every sixth shows nothing."""
    folder.mkdir(parents=True)
    for i in range(count):
        image, there = draw(i, empty=i % 6 == 0)
        image.save(folder / f"P{i // 2:02}_{i}.png")
        Image.fromarray(there).save(folder / f"P{i // 2:02}_{i}_mask.png")
    return folder
