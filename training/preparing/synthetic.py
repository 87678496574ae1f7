"""A store of the shape of US-4 with nothing in it: for timing, not for training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from uscl_zoo.files import written
from uscl_zoo.records import write_text

from ..learning.frames import DESCRIPTION, FRAMES, MANIFEST, FrameStore, manifest_of
from .labels import US4_CLASSES

#: Videos and frames of the four parts of US-4, and the prefixes of their files (METHOD, US-4).
US4 = (
    (22, 1533, ("Reg", "Cov")),
    (63, 3150, ("Rb1", "Rb2", "Rb3", "Rb4", "Rb5")),
    (296, 11714, ("F0", "F1", "F2", "F3", "F4")),
    (670, 6834, ("Ali", "Bli", "Ple", "Oth")),
)


def us4_shaped(folder: Path, size: int = 224, share: float = 1.0, grey: bool = False) -> FrameStore:
    """Write a store with the counts of US-4: 1,051 videos, 23,231 frames, a fifth held out.

    The frames are noise on a gradient: kernels can be faster on zeros than on what they will meet.

    Args:
        folder: of the store.
        size: height and width in pixels.
        share: of the videos of each part to make, for a machine with little room or time.
        grey: draw one noise for all channels, and have the store say that no frame has colour.
    """
    rng = np.random.default_rng(0)
    rows, total, number = [], 0, 0
    for videos, frames, prefixes in US4:
        made = max(round(share * videos), len(prefixes))
        counts = np.full(made, frames // videos)
        counts[: round(share * (frames % videos))] += 1
        for i, count in enumerate(counts.tolist()):
            prefix = prefixes[i % len(prefixes)]
            # one of five in turn, so that it is not always the same prefix
            split = "heldout" if (number + number // 5) % 5 == 4 else "train"
            number += 1
            name = f"{prefix}-{i:04}_mp4"
            for frame in range(count):
                rows.append((name, name, US4_CLASSES[prefix], split, frame, frame / 3, "", ""))
            total += count
    ramp = np.linspace(20, 160, size)[:, None, None]
    with written(folder / FRAMES) as partial, partial.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (total, size, size, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        for _ in range(total):
            noise = rng.integers(0, 60, (size, size, 1 if grey else 3), dtype=np.uint8)
            pixels = np.broadcast_to((ramp + noise).astype(np.uint8), (size, size, 3))
            stream.write(pixels.tobytes())
    write_text(folder / MANIFEST, manifest_of(rows))
    description = {
        "digest": f"synthetic, {total} frames of {size}{', grey' * grey}",
        "grey": grey,
        "origin": {"name": "synthetic, shaped as US-4"},
        "sampling": {"rate": 3.0, "size": size},
        "held_out_subjects": [],
    }
    write_text(folder / DESCRIPTION, json.dumps(description))
    return FrameStore(folder)
