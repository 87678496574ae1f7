"""What weights were trained on, recorded by fingerprints in a file beside their card.

A safetensors file of the SHA-256 of every video's file and of a perceptual hash of every frame. It
holds neither names nor subjects, which may be a hospital's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from uscl_zoo.errors import CardError, DataError
from uscl_zoo.files import written
from uscl_zoo.records import from_mapping, write_yaml
from uscl_zoo.zoo.card import Card, read_card
from uscl_zoo.zoo.card import Corpus as CorpusFile
from uscl_zoo.zoo.digests import sha256_of

from ..learning.frames import FrameStore, Video
from ..learning.pairs import draw_videos
from ..learning.recipe import Recipe
from .fingerprints import BITS, SIDE, Prints

# what a hash is, so that no other kind is ever compared with it
_KIND = f"signs of {BITS} waves of {SIDE}x{SIDE} pixels"


@dataclass(frozen=True)
class Corpus:
    """Fingerprints of the videos that weights were trained on.

    Attributes:
        digests: SHA-256 of each video's file in hexadecimal, V.
        hashes: uint8 (N, 32), perceptual hashes of their frames.
        owner: int64 (N,), the video of each.
    """

    digests: tuple[str, ...]
    hashes: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.int64]


def write_corpus(folder: Path, name: str, store: FrameStore, videos: Sequence[Video]) -> CorpusFile:
    """Write the fingerprints of some videos of a store as `NAME.corpus.safetensors`.

    Args:
        folder: to write to.
        name: of the checkpoint.
        store: with the videos' frames, and the digests of their files.
        videos: those trained on.

    Returns:
        What the card has to say of the file.

    Raises:
        CardError: if something else has its name.
        WriteError: if it cannot be written.
    """
    digests = store.description["sources_sha256"]
    # in the order of the digests: that of the store could be one of names or dates
    ordered = sorted(videos, key=lambda video: (digests[video.name], video.name))
    prints = [
        Prints.of(
            Image.fromarray(frame)
            for frame in store.frames[video.first : video.first + video.count]
        )
        for video in ordered
    ]
    tensors: dict[str, npt.NDArray[Any]] = {
        "digests": np.array([list(bytes.fromhex(digests[v.name])) for v in ordered], np.uint8),
        "counts": np.array([video.count for video in ordered], np.int64),
        "hashes": np.concatenate([part.hashes for part in prints]),
    }
    path = folder / f"{name}.corpus.safetensors"
    if path.exists():
        # an earlier one may go, and nothing else of that name
        read_corpus(path)
    with written(path) as partial:
        # not save_file, whose files nobody else may read
        partial.write_bytes(save(tensors, {"hash": _KIND}))
    return CorpusFile(path.name, sha256_of(path), path.stat().st_size)


def read_corpus(path: Path) -> Corpus:
    """Read what `write_corpus` wrote.

    Raises:
        CardError: if the file is damaged, or of a kind of hash that this version does not know.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            kind = (opened.metadata() or {}).get("hash")
            digests, counts, hashes = (
                opened.get_tensor(key) for key in ("digests", "counts", "hashes")
            )
    except (OSError, SafetensorError, ValueError) as error:
        raise CardError(f"{path}: are no fingerprints of a corpus ({error})") from error
    if kind != _KIND or digests.shape != (len(counts), 32) or hashes.shape != (counts.sum(), 32):
        raise CardError(f"{path}: fingerprints of another kind ({kind}) than {_KIND}")
    return Corpus(
        digests=tuple(bytes(digest).hex() for digest in digests.astype(np.uint8)),
        hashes=hashes.astype(np.uint8),
        owner=np.repeat(np.arange(len(counts)), counts),
    )


def add_corpus(path: Path, store: FrameStore) -> Card:
    """Put fingerprints on the card of weights that were exported without.

    Args:
        path: of the card; the file is written beside it.
        store: that the weights were trained on.

    Returns:
        The card, as read back from its file.

    Raises:
        DataError: if the store holds other videos than the card says.
    """
    card = read_card(path)
    recipe = from_mapping(Recipe, dict(card.training.recipe), str(path))
    videos = draw_videos(store.select("train"), recipe)
    here = store.sources(videos)
    held = tuple(store.description["held_out_subjects"])
    # not the frames: releases have sampled the same video a frame apart
    on_card = [(s.videos, s.subjects, s.classes) for s in card.training.sources]
    if on_card != [(one["videos"], one["subjects"], one["classes"]) for one in here] or (
        held != card.training.held_out_subjects
    ):
        subjects = len({video.subject for video in videos})
        raise DataError(
            f"{store.folder}: its {len(videos)} training videos of {subjects} subjects "
            f"are not those on the card of {card.name}; name the store it was trained on"
        )
    write_yaml(path, replace(card, corpus=write_corpus(path.parent, card.name, store, videos)))
    return read_card(path)
