"""Public ultrasound data sets by name, and one's own: what is in them, whose it is, on what terms.

A loader reads a data set as it is published, checks it, and reports what it left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uscl_zoo.errors import DataError, UnreadableError, one_line
from uscl_zoo.files import expanded

from ..learning.frames import FrameStore, Video
from ..learning.seal import check_frames
from .collection import Collection, is_wanted
from .published import LOADERS, where_from

#: The names that `load` knows.
DATASETS = tuple(LOADERS)


@dataclass(frozen=True)
class DataSet:
    """A labelled data set.

    Attributes:
        name: of POCUS as the cards of weights trained on it have it.
        collection: sources by name, their labels, subjects and licences, and what was left out.
        folds: official fold of each source by name, as the data set numbers them; None where it
            has none.
        url: where it is published.
        citation: how its authors ask to be cited.
        licence: as its authors state it; None where they do not, or file by file, on annotations.
        target: what its labels distinguish.
        targets: what they could be asked to.
        store: whose frames are judged, where nothing is to be decoded; None otherwise.
        videos: of the store, those that are judged.
    """

    name: str
    collection: Collection
    folds: dict[str, int] | None
    url: str | None
    citation: str | None
    licence: str | None
    target: str
    targets: tuple[str, ...]
    store: FrameStore | None = None
    videos: tuple[Video, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the data set and of the sources it is made of."""
        return (self.name, *(str(source["name"]) for source in self._sources()))

    @property
    def texts(self) -> tuple[str, ...]:
        """In which its addresses stand."""
        sources = self._sources()
        texts = [self.url, self.citation]
        texts += [source[key] for source in sources for key in ("url", "citation")]
        return tuple(text for text in texts if text)

    def _sources(self) -> list[dict[str, Any]]:
        return [] if self.store is None else self.store.sources(self.videos)


def load_store(
    folder: Path, *, classes: Sequence[str] | None = None, everyone: bool = False
) -> DataSet:
    """Take the labelled videos of a store of `uscl prepare`, by default of its held-out subjects.

    A backbone that was trained on the store has seen the labels of all others.

    Args:
        folder: of the store.
        classes: the only labels to take, in any case and with `*` for what they have in common;
            None for all.
        everyone: take all subjects.

    Raises:
        DataError: if nobody is held out, or less than two classes are left.
    """
    store = FrameStore(folder)
    labelled = [video for video in store.videos if video.label is not None]
    sides = [video for video in labelled if everyone or video.split == "heldout"]
    if not sides:
        raise DataError(
            f"{folder}: has {len(labelled)} labelled videos, and none of a held-out subject; "
            "for a backbone that was not trained on it, add `everyone=True`"
        )
    videos = tuple(video for video in sides if is_wanted(video.label, classes))
    labels = sorted({video.label or "" for video in videos})
    if len(labels) < 2:
        there = ", ".join(sorted({video.label or "" for video in sides}))
        raise DataError(
            f"{folder}: {len(labels)} classes of {', '.join(classes or ['any'])}, and two are "
            f"needed; labels: {there}"
        )
    check_frames(store, videos=videos)
    whom = {video.subject for video in videos}
    trained = len({video.subject for video in videos if video.split == "train"})
    if everyone:
        note = f"all {len(whom)} subjects of the store, of whom {trained} are not held out"
    else:
        note = f"the {len(whom)} held-out subjects of the store, and no other; folds within them"
    notes = [note]
    if len(videos) < len(sides):
        notes.append(f"{len(sides) - len(videos)} videos of other classes left out")
    own = store.sources(videos)
    origin = store.description.get("origin") or {}
    name = str(origin.get("name") or store.folder.resolve().name)
    return DataSet(
        name=f"{name} ({', '.join(classes)})" if classes else name,
        collection=Collection({}, {}, True, tuple(notes)),
        folds=None,
        url=own[0]["url"] if len(own) == 1 else None,
        citation="; ".join(source["citation"] for source in own if source["citation"]) or None,
        licence=None,
        target="label",
        targets=("label",),
        store=store,
        videos=videos,
    )


def load(
    name: str, data: Path, *, target: str | None = None, folds: int = 5, **columns: Any
) -> DataSet:
    """Read a data set.

    Args:
        name: one of `DATASETS`.
        data: its folder; of `csv`, the file.
        target: what to distinguish, one of the data set's `targets`; None for the first.
        folds: how many official folds are wanted, where a data set has several divisions.
        **columns: of `folder` and `csv`, what `collect` takes; of `pocus`, `stills=True` for its
            images as well; of `busi`, `grouped=False` for every image as its own subject, the
            contradictory ones too.

    Raises:
        UnreadableError: if there is no such folder, or a table in it cannot be read.
        DataError: if the name, the target or an option is unknown, or something is missing: what,
            where, and where to get it.
    """
    if name not in LOADERS:
        raise DataError(f"no data set {name!r}; known are {', '.join(DATASETS)}")
    known = LOADERS[name]
    data = expanded(data)
    if not data.exists():
        raise UnreadableError(f"{data}: no such file or folder; {where_from(known)}")
    if target is not None and target not in known.targets:
        raise DataError(f"{name} has no target {target!r}, only {', '.join(known.targets)}")
    unknown = sorted(set(columns) - set(known.options))
    if unknown:
        allowed = ", ".join(known.options) or "none"
        raise DataError(f"{name} has no option {unknown[0]!r}; it has {allowed}")
    target = target or known.targets[0]
    collection, official = known.read(known, data, target, folds, **columns)
    return DataSet(
        name=known.name or one_line(data.resolve().stem),
        collection=collection,
        folds=official,
        url=known.url,
        citation=known.citation,
        licence=known.licence,
        target=target,
        targets=known.targets,
    )
