"""Some videos of a store, as a store of their own in another size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from uscl_zoo.files import written_folder
from uscl_zoo.records import write_text

from ..learning.frames import COLUMNS, DESCRIPTION, FRAMES, MANIFEST, FrameStore, Video, manifest_of


def take(
    store: FrameStore,
    videos: Sequence[Video],
    folder: Path,
    size: int,
    progress: bool = False,
    grey: bool = False,
) -> FrameStore:
    """Copy videos of a store, their frames resized as `uscl prepare` resizes them.

    What is there already, of the same videos, labels and size, is not made again.

    Args:
        store: to take from.
        videos: of it, in its order.
        folder: of the copy; what else it held is replaced.
        size: height and width in pixels.
        progress: show a bar.
        grey: keep the brightness alone, in all channels.
    """
    own = [[video.name, video.subject, video.label, video.split, video.count] for video in videos]
    basis = json.dumps([store.digest, size, own, *(["grey"] if grey else [])])
    digest = hashlib.sha256(basis.encode()).hexdigest()
    if (folder / DESCRIPTION).is_file():
        before = FrameStore(folder)
        if before.digest == digest:
            return before
    with written_folder(folder, replace=True) as partial:
        _fill(partial, store, videos, size, digest, progress, grey)
    return FrameStore(folder)


def _fill(
    folder: Path,
    store: FrameStore,
    videos: Sequence[Video],
    size: int,
    digest: str,
    progress: bool,
    grey: bool,
) -> None:
    count = sum(video.count for video in videos)
    frames = np.lib.format.open_memmap(
        folder / FRAMES, mode="w+", dtype=np.uint8, shape=(count, size, size, 3)
    )
    rows, place, held = [], 0, {}
    for video in tqdm(videos, desc=f"frames of {size}²", leave=False, disable=not progress):
        content_of = hashlib.sha256()
        for index, row in enumerate(range(video.first, video.first + video.count)):
            image = Image.fromarray(store.frames[row])
            image = image.resize((size, size), Image.Resampling.BILINEAR)
            frames[place] = image.convert("L").convert("RGB") if grey else image
            content_of.update(frames[place].tobytes())
            values = video.name, video.subject, video.label or "", video.split
            time, licence = f"{store.times[row]:.3f}", video.licence or ""
            rows.append([*values, index, time, video.source, licence])
            place += 1
        held[video.name] = content_of.hexdigest()
    frames.flush()
    write_text(folder / MANIFEST, manifest_of(rows, COLUMNS))
    content = store.description["sources_sha256"]
    described = store.description | {
        "digest": digest,
        "sampling": store.description["sampling"] | {"size": size},
        "sources_sha256": {video.name: content[video.name] for video in videos},
        "frames_sha256": held,
    }
    if grey:
        described |= {"sampling": described["sampling"] | {"grey": True}, "grey": True}
    write_text(folder / DESCRIPTION, json.dumps(described, indent=1))
