"""What fine-tuning begins with: frames of labelled subjects, and a backbone."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uscl_zoo import network as door
from uscl_zoo.answers import CLASSES
from uscl_zoo.data.annotations import words_of
from uscl_zoo.errors import DataError, one_line
from uscl_zoo.ultrasound.transforms import create_transform
from uscl_zoo.zoo import licences
from uscl_zoo.zoo.card import ARCHITECTURES, MODELS, Card, Input, Origin, licences_of
from uscl_zoo.zoo.catalogue import folder_of, model_info, own_folder
from uscl_zoo.zoo.digests import sha256_of
from uscl_zoo.zoo.hub import HUB_FILE
from uscl_zoo.zoo.registry import create_model

from ..downstream.collection import Split, collect, divide, everyone, split
from ..downstream.goal import Goal
from ..downstream.sample import Sample
from ..downstream.seen import Material, pretrained_on
from ..learning.frames import DESCRIPTION, FrameStore, Video
from ..learning.seal import check_frames
from ..preparing.parts import BILINEAR, Sampling
from ..preparing.prepare import prepare


@dataclass(frozen=True)
class Base:
    """The backbone to begin with.

    Attributes:
        name: for people, on cards too: of a folder that of its card, and never where it is.
        network: with its weights, without a classifier.
        model: of the zoo, which it is an instance of.
        architecture: timm's name.
        input: what it takes.
        card: its own; None of one that has none.
        sha256: of the weights; None where they are not of one file.
        licence: of the weights; None where nobody states one.
    """

    name: str
    network: Any
    model: str
    architecture: str
    input: Input
    card: Card | None
    sha256: str | None
    licence: str | None

    @property
    def origin(self) -> Origin:
        """What a card says of it as the start of others."""
        name = self.name if self.card is None else self.card.name
        return Origin(name, self.sha256, self.licence)

    def allows(self, licence: str | None, *of_data: str | None) -> None:
        """Refuse a licence of fine-tuned weights before they are trained.

        Args:
            licence: wished for.
            of_data: what they are to be trained on, as far as it is known.

        Raises:
            DataError: if it is looser than that of the backbone or of the data.
        """
        if licence is None:
            return
        earlier = () if self.card is None else licences_of(self.card.training)
        wrong = licences.fault(licence, (self.licence, *earlier, *of_data))
        if wrong is not None:
            raise DataError(f"`licence={licence}`: {wrong}")

    @property
    def doubt(self) -> str | None:
        """What is to be said of a licence that binds whatever comes of it, and is not known."""
        if self.licence is not None:
            return None
        return (
            f"{self.name}: nobody states its licence, which binds what is fine-tuned from it; ask "
            "its authors before you pass that on"
        )


def backbone(name: str | Path) -> Base:
    """Load a backbone to begin with.

    Args:
        name: a checkpoint of the zoo, a folder, or timm's `local-dir:` or `hf-hub:`.

    Raises:
        UnknownModelError: if there is none of that name.
        DataError: if it is of an architecture that the zoo has not.
    """
    name = str(name)
    folder = folder_of(name) if name.startswith(door.LOCAL) else own_folder(name)
    loaded = None
    if folder is not None or name.startswith((door.LOCAL, door.HUB)):
        # timm verifies nothing: what is not of the card beside it is refused by the one door
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", door.UnverifiedWarning)
            loaded = door.load(name, "cpu")
    network: Any = create_model(name, pretrained=True, num_classes=0)
    model = network.pretrained_cfg["architecture"]
    architecture = MODELS.get(model, model)
    if architecture not in ARCHITECTURES:
        raise DataError(f"{name}: is a {architecture}; should be one of {', '.join(ARCHITECTURES)}")
    wanted = create_transform(network)
    shape = Input((3, *wanted.size), wanted.mean, wanted.std, wanted.interpolation)  # type: ignore[arg-type]
    model = model if model in MODELS else f"{architecture}_uscl"
    card = model_info(name) if loaded is None else loaded.card
    sha256, licence = (None, None) if card is None else (card.weights.sha256, card.licence)
    if card is None and loaded is not None:
        licence = loaded.licence
    spoken = name
    if folder is not None:
        # where somebody keeps it is nobody's business: a path may have names of people
        spoken = f"a {architecture} of one's own" if card is None else card.name
        if card is None and (folder / HUB_FILE).is_file():
            sha256 = sha256_of(folder / HUB_FILE)
    return Base(spoken, network, model, architecture, shape, card, sha256, licence)


@dataclass(frozen=True)
class Gathered:
    """Frames of labelled subjects, decoded.

    Attributes:
        store: of the frames.
        parts: its labelled videos, to train on and to be judged on.
        subjects: whether subjects are known; otherwise each file is its own.
        shape: of the input.
        rate: frames a second that were sampled.
        name: of the collection.
        goal: what is to be said of a file.
        outputs: names of what is said: classes, labels or a number.
    """

    store: FrameStore
    parts: Split
    subjects: bool
    shape: Input
    rate: float
    name: str
    goal: Goal
    outputs: tuple[str, ...]

    def sample(self, videos: Sequence[Video]) -> Sample:
        """The frames of some of the videos, with what is to be said of them."""
        texts = [video.label or "" for video in videos]
        return Sample.of(videos, self.outputs, self.goal.targets(texts, self.outputs))


def gather(
    data: Path,
    store: Path,
    base: Base,
    note: Callable[[str], None],
    *,
    goal: Goal,
    folds: int | None,
    columns: dict[str, Any],
    rate: float,
    size: int | None,
    holdout: float,
    seed: int,
    name: str | None,
    overwrite: bool,
    workers: int | None,
    progress: bool,
) -> Gathered:
    """Find labelled files, decode them once and split their subjects.

    Args:
        data: a folder with a folder per class, a CSV, or a store.
        store: folder for the decoded frames; of a store nothing is decoded.
        base: backbone, by which the frames are shaped.
        note: is given what the reader of the figures should know.
        goal: what is to be said of a file.
        folds: of a cross-validation over all subjects; None to hold some out.
        columns: arguments of `collect`, by name.
        rate: frames a second to take from videos.
        size: height and width of the frames; None for the backbone's.
        holdout: share of the subjects of each class to be judged on.
        seed: of the split.
        name: of the collection; None for that of the data.
        overwrite: replace what an earlier call decoded.
        workers: processes that decode.
        progress: show bars.

    Raises:
        DataError: if the data cannot serve.
        UnreadableError: if nothing can be decoded.
    """
    shape = base.input if size is None else dataclasses.replace(base.input, size=(3, size, size))
    if (data / DESCRIPTION).is_file():
        # the column of files has a name by default, and says nothing
        wrong = [name for name, value in columns.items() if value and name != "file_column"]
        if wrong:
            raise DataError(
                f"{data}: is a store, which records labels and subjects; `{wrong[0]}` is of a "
                "folder or CSV"
            )
        frames, subjects = FrameStore(data), True
        check_frames(frames, progress)
        if folds and frames.select("heldout"):
            note("of a cross-validation no subject is held out: those of the store are not either")
        rate = float(frames.description["sampling"]["rate"])
        # its frames have been resized already, and new ones have to be as they were
        sampled = frames.description["sampling"].get("interpolation", BILINEAR)
        shape = dataclasses.replace(
            shape, size=(3, *frames.frames.shape[1:3]), interpolation=sampled
        )
    else:
        collection = collect(data, **columns, goal=goal)
        for text in collection.notes:
            note(text)
        prepared = prepare(
            collection.sources,
            store,
            collection.annotations.get,
            sampling=Sampling(rate, shape.size[1], interpolation=shape.interpolation),
            holdout=0 if folds or goal.task != CLASSES else holdout,
            seed=seed,
            overwrite=overwrite,
            workers=workers,
            origin={"name": name or one_line(data.resolve().stem), "url": None, "citation": None},
            progress=progress,
        )
        frames, subjects = prepared.store, collection.subjects
        if prepared.reused == len(frames.videos):
            check_frames(frames)
        for _, reason in prepared.skipped[:5]:
            note(f"skipped: {reason}")
        if len(prepared.skipped) > 5:
            note(f"skipped: {len(prepared.skipped) - 5} more")
    name = name or one_line(frames.description["origin"].get("name") or data.resolve().stem)
    texts = [video.label for video in frames.videos if video.label is not None]
    outputs = goal.outputs(texts, words_of(columns["label_column"]))
    if goal.task != CLASSES:
        # a store of `uscl prepare` may have labels in other words
        goal.targets(texts, outputs)
        parts = divide(frames, goal, holdout, seed, none=folds is not None)
    else:
        parts = everyone(frames, folds) if folds else split(frames)
    for text in warnings_of(parts, frames, base, name, goal):
        note(text)
    return Gathered(frames, parts, subjects, shape, rate, name, goal, outputs)


def warnings_of(
    parts: Split, frames: FrameStore, base: Base, name: str, goal: Goal | None = None
) -> list[str]:
    """What makes the figures say less than they seem to."""
    said = []
    of_classes = goal is None or goal.task == CLASSES
    for label in frames.labels if of_classes and parts.held_out else ():
        if label not in {video.label for video in parts.held_out}:
            said.append(f"{label}: too few subjects to be judged on")
    content = frames.description["sources_sha256"]
    side_of: dict[str, set[tuple[str, str | None]]] = {}
    for side in dataclasses.fields(parts):
        for video in getattr(parts, side.name):
            side_of.setdefault(content[video.name], set()).add((side.name, video.label))
    twins = sum(len(places) > 1 for places in side_of.values())
    if twins:
        said.append(f"{twins} files are there twice, on two sides of the split or in two classes")
    if base.card is not None:
        sources = frames.sources(frames.videos)
        names = (name, *(str(source["name"]) for source in sources))
        texts = tuple(s[key] for s in sources for key in ("url", "citation") if s[key])
        judged = parts.held_out or parts.train
        said += pretrained_on(base.card, Material.of(names, texts, frames, tuple(judged)))
    return said
