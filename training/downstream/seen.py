"""What weights have seen of a data set: detected by name, address, file and picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import Card

from ..learning.frames import FrameStore, Video
from ..preparing.corpus import read_corpus
from ..preparing.fingerprints import SIDE, Prints, find_known, hash_of, shrink

# What tells no data set from another. Of one word, as "BUS" or "liver", only the same is the same.
_COMMON = frozenset(
    """
    a abdomen all an and annotated archive breast bus by carotid clip clips collection data
    database dataset datasets diagnosis fetal for frame frames from heart held hip hospital
    image images in kidney liver lung lus muscle my nerve of on open or organ own patient
    patients scan scans set sets still stills store test the thyroid train training
    ultrasonic ultrasonography ultrasound us usg video videos with
    """.split()  # noqa: SIM905 - a list of fifty quoted words says no more
)
# letters of the shortest name by which a longer one is recognised
_SHORTEST = 3
_DOI = re.compile(r"10\.\d{4,9}/[^\s\"'<>,;)\]]+")
_ZENODO = re.compile(r"zenodo(?:\.org)?\D{0,12}(\d{4,})")
_URL = re.compile(r"https?://(?:www\.)?([^\s\"'<>,;)\]]+)")


@dataclass(frozen=True)
class Seen:
    """What there is to say of one model and one data set.

    Attributes:
        words: for a table.
        leaks: whether it was trained on what it is judged by, or may have been.
    """

    words: str
    leaks: bool = False

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Material:
    """What models are judged on: files, and the frames of each.

    Attributes:
        names: of the data set, or of the sources of a store.
        texts: in which its addresses stand: URLs and citations.
        digests: SHA-256 of each file.
        subjects: whose each is.
        frames: of a file, by its place: uint8 (N, H, W, 3).
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    digests: tuple[str, ...]
    subjects: tuple[str, ...]
    frames: Callable[[int], npt.NDArray[np.uint8]]

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        texts: tuple[str, ...],
        store: FrameStore,
        videos: Sequence[Video],
    ) -> Material:
        """Some videos of a store, whose files it has digests of."""
        content = store.description["sources_sha256"]

        def frames(place: int) -> npt.NDArray[np.uint8]:
            video = videos[place]
            return np.asarray(store.frames[video.first : video.first + video.count])

        digests = tuple(content[video.name] for video in videos)
        return cls(names, texts, digests, tuple(video.subject for video in videos), frames)

    @cached_property
    def prints(self) -> tuple[Prints, npt.NDArray[np.int64]]:
        """Hashes of all frames, and the place of the file that each is of."""
        hashes = [
            hash_of(np.stack([shrink(Image.fromarray(frame)) for frame in self.frames(place)]))
            for place in range(len(self.digests))
        ]
        owner = np.repeat(np.arange(len(hashes)), [len(part) for part in hashes])
        # of a corpus no textures are known to compare with
        return Prints(np.concatenate(hashes), np.empty((0, SIDE, SIDE), np.float16)), owner


def seen_by(card: Card, material: Material, folder: Path | None = None) -> Seen:
    """Find out what the weights of a card have seen of a data set.

    Files are known by their SHA-256, pictures by their perceptual hash (`fingerprints.ALONE`),
    which stays when they are saved anew, resized or squashed; docs/evaluate.md has the rates.

    Args:
        card: of the weights.
        material: what they are judged on.
        folder: where the file of the card's corpus may be, besides the usual places.
    """
    by = []
    sources = card.training.sources
    if any(same_name(one, source.name) for one in material.names for source in sources):
        by.append("name")
    theirs = addresses(*(text for s in sources for text in (s.url, s.citation) if text))
    if theirs & addresses(*material.texts):
        by.append("address")
    path = weights_cache.corpus_of(card, folder)
    count = len(material.digests)
    if path is None:
        if by:
            return Seen(f"in corpus (by {' and '.join(by)})", True)
        return Seen("not on its card, which has no fingerprints")
    corpus = read_corpus(path)
    files = {i for i, digest in enumerate(material.digests) if digest in set(corpus.digests)}
    prints, owner = material.prints
    pairs = find_known(prints, owner, corpus.hashes, corpus.owner)
    known = files | set(owner[pairs.first].tolist())
    if known:
        how = [f"{len(known)} of {count} files", *(f"by {one}" for one in by)]
        if len(known) > len(files):
            how.insert(1, f"{len(known) - len(files)} by picture alone")
        return Seen(f"in corpus ({', '.join(how)})", True)
    if not by:
        return Seen("not in corpus")
    if set(material.subjects) <= set(card.training.held_out_subjects):
        return Seen("in corpus, but none of these subjects")
    return Seen(f"in corpus (by {' and '.join(by)}; none of {count} files recognised)", True)


def pretrained_on(card: Card, material: Material) -> list[str]:
    """What has to be said beside figures of a network begun from weights; nothing if they are new.

    Args:
        card: of the weights.
        material: what the network is judged on.
    """
    seen = seen_by(card, material)
    if not seen.leaks:
        return []
    subjects = set(material.subjects)
    known = len(subjects & set(card.training.held_out_subjects))
    return [
        f"{seen}: {card.name} was pretrained on it, and of the {len(subjects)} subjects it is "
        f"judged on, its card names {known} as held out"
    ]


def same_name(one: str, other: str) -> bool:
    """Whether two names are, as far as names can tell, of one data set.

    They are where they have the same words, or where what is left of one without the words that any
    data set may have stands in the other: "BUS-BRA" in "BUS-BRA breast ultrasound", "busbra" too.
    """
    first, second = _words(one), _words(other)
    return first == second or _stands_in(first, second) or _stands_in(second, first)


def _words(name: str) -> list[str]:
    # what a hyphen joins is one word: "BUS" is not "BUS-BRA"
    return re.findall(r"[^\W_]+", re.sub(r"(?<=\w)[-_](?=\w)", "", name.casefold()))


def _stands_in(words: Sequence[str], others: Sequence[str]) -> bool:
    key = "".join(word for word in words if word not in _COMMON)
    if len(key) < _SHORTEST or not re.search(r"[^\W\d_]", key):
        return False
    ends = range(len(others) + 1)
    return any("".join(others[start:end]) == key for start in ends for end in ends[start:])


def addresses(*texts: str) -> set[str]:
    """DOIs and URLs in texts, each in one spelling; a record of Zenodo is its DOI."""
    addresses = set()
    for text in texts:
        lower = text.casefold()
        addresses |= {doi.rstrip("./") for doi in _DOI.findall(lower)}
        addresses |= {f"10.5281/zenodo.{number}" for number in _ZENODO.findall(lower)}
        for url in _URL.findall(lower):
            bare = url.rstrip("./").removesuffix(".git")
            # the page of a host is that of many data sets
            if "/" in bare and not bare.startswith(("doi.org/", "dx.doi.org/", "zenodo.org/")):
                addresses.add(bare)
    return addresses
