"""Whether a store still holds what it held when a run began, without reading all of it every time.

The digest of a store is of what it was made of; a seal is of what it holds. While the file of the
frames is untouched by the clock of the file system, frames from all over it are compared. Once it
is not, as after a copy, all of them are, and then not again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from uscl_zoo.errors import DataError
from uscl_zoo.names import say

from .frames import FRAMES, MANIFEST, FrameStore, Video

#: What a seal says, by name.
SEALED = ("store_sample", "store_frames", "store_state")

# Frames that are compared where the file is untouched.
_SAMPLED = 256
# Bytes that are read at a time.
_PIECE = 1 << 22


def seal_of(store: FrameStore) -> dict[str, Any]:
    """What tells later whether a store is still the same, as JSON takes it.

    Returns:
        `store_sample`, SHA-256 over its manifest and frames from all over it; `store_frames`, over
        the digests of the frames of every video, None of a store that has none; and `store_state`,
        of their file.
    """
    return {
        "store_sample": _sample_of(store),
        "store_frames": _digests_of(store),
        "store_state": _state_of(store),
    }


def reseal(store: FrameStore, seal: dict[str, Any], progress: bool = False) -> dict[str, Any]:
    """Compare a store with a seal.

    Args:
        store: as it is now.
        seal: what `seal_of` said of it; of runs of earlier releases a part of it, or nothing.
        progress: show a bar where all frames are read.

    Returns:
        The seal to compare with next time.

    Raises:
        DataError: if it does not hold the same.
    """
    now = seal_of(store)
    other = f"{store.folder}: is not the store that the run was trained on"
    if seal.get("store_sample") not in (None, now["store_sample"]):
        raise DataError(other)
    if seal.get("store_frames") not in (None, now["store_frames"]):
        raise DataError(other)
    if "store_state" not in seal or seal["store_state"] == now["store_state"]:
        return {key: now[key] for key in seal}
    if seal["store_frames"] is None:
        say(
            f"{store.folder / FRAMES}: was written or moved since the run began; {_SAMPLED} of its "
            "frames are the same, and of the others its store, of an earlier release, has no digest"
        )
        return now
    check_frames(store, progress)
    return now


def check_frames(
    store: FrameStore, progress: bool = False, videos: Sequence[Video] | None = None
) -> None:
    """Compare frames of a store with what was prepared, if it has digests of them.

    Args:
        store: as it is now.
        progress: show a bar.
        videos: whose frames are compared; None for all.

    Raises:
        DataError: if they are not the same.
    """
    if "frames_sha256" not in store.description:
        return
    changed = _changed(store, store.videos if videos is None else videos, progress)
    if changed:
        listed = ", ".join(changed[:3]) + (", …" if len(changed) > 3 else "")
        raise DataError(
            f"{store.folder / FRAMES}: was changed since it was prepared, in {len(changed)} videos "
            f"({listed}); prepare it again"
        )


def _changed(store: FrameStore, videos: Sequence[Video], progress: bool) -> list[str]:
    """The videos whose frames are not those that were prepared."""
    known = store.description["frames_sha256"]
    size = int(np.prod(store.frames.shape[1:]))
    changed = []
    bar = tqdm(
        total=sum(video.count for video in videos) * size,
        desc="frames are compared with what was prepared",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
    # past the memory map, whose pages count as memory of the process
    with bar, (store.folder / FRAMES).open("rb", buffering=0) as stream:
        for video in videos:
            digest, left = hashlib.sha256(), video.count * size
            stream.seek(store.frames.offset + video.first * size)  # type: ignore[attr-defined]
            while left and (piece := stream.read(min(left, _PIECE))):
                digest.update(piece)
                left -= len(piece)
                bar.update(len(piece))
            if digest.hexdigest() != known.get(video.name):
                changed.append(video.name)
    return changed


def _sample_of(store: FrameStore) -> str:
    digest = hashlib.sha256((store.folder / MANIFEST).read_bytes())
    digest.update(repr(store.frames.shape).encode())
    count = len(store.frames)
    rows = np.unique(np.linspace(0, count - 1, min(count, _SAMPLED)).astype(np.int64))
    for row in rows:
        digest.update(store.frames[row].tobytes())
    return digest.hexdigest()


def _digests_of(store: FrameStore) -> str | None:
    known = store.description.get("frames_sha256")
    if known is None:
        return None
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _state_of(store: FrameStore) -> list[int]:
    """Size and times of the file of frames; nobody but the system sets the last of them."""
    about = (store.folder / FRAMES).stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]
