"""The card: everything there is to know about one checkpoint, in one YAML file.

`list`, `info`, the timm registration, the Hub's model card and the table in the README are all
printed from cards, so a fact about a checkpoint stands in exactly one place.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .errors import CardError
from .records import from_mapping, read_yaml

#: Architectures the zoo wraps, by the timm model that implements each.
ARCHITECTURES = ("resnet18", "resnet50")


@dataclass(frozen=True)
class Weights:
    """The weights file of a card and where it may be found.

    Attributes:
        file: its name, the same wherever it lives.
        sha256: 64 hexadecimal digits, or None for weights that others publish and users import.
        bytes: its size.
        hub_repo: `namespace/name` on the Hugging Face Hub, None until published.
        revision: the commit to fetch, pinned: a branch would let weights change under a card.
        origin: where the original authors publish it, for weights that have to be imported.
    """

    file: str
    sha256: str | None = None
    bytes: int | None = None
    hub_repo: str | None = None
    revision: str | None = None
    origin: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Fingerprints of what weights were trained on, in a file beside the card.

    They tell whether a file or an image has been seen; `uscl audit` reads them.

    Attributes:
        file: its name.
        sha256: 64 hexadecimal digits.
        bytes: its size.
    """

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Input:
    """What the network was trained to see.

    Attributes:
        size: channels, height, width in pixels.
        mean: per channel, of intensities in 0-1.
        std: per channel, of intensities in 0-1.
        interpolation: of the resize to `size`.
        crop_mode: timm's name; `squash` resizes both sides and keeps no aspect ratio.
        crop_pct: timm's share of the resized image that is kept.
    """

    size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    crop_mode: str = "squash"
    crop_pct: float = 1.0


@dataclass(frozen=True)
class Source:
    """A collection of videos the weights were trained on."""

    name: str
    url: str | None
    citation: str | None
    videos: int
    frames: int
    subjects: int | None
    classes: dict[str, int]
    licences: dict[str, int]


@dataclass(frozen=True)
class Training:
    """How the weights came to be.

    Attributes:
        method: `uscl`, or the name of the recipe's method.
        sources: the collections trained on, held-out subjects left out.
        labels: class names that the classification term saw.
        held_out_subjects: subjects no frame of which was trained on.
        recipe: the settings of the run, resolved.
        epochs: completed.
        steps: completed.
        seed: of every random draw.
        code: version of uscl-zoo and the commit it was run from.
        hardware: in words.
        hours: wall-clock time of the run.
    """

    method: str
    sources: tuple[Source, ...]
    labels: tuple[str, ...] = ()
    held_out_subjects: tuple[str, ...] = ()
    recipe: dict[str, object] = field(default_factory=dict)
    epochs: int | None = None
    steps: int | None = None
    seed: int | None = None
    code: str | None = None
    hardware: str | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Metric:
    """One measured figure.

    Attributes:
        dataset: what was measured on.
        protocol: how, in a sentence.
        unit: of the sample: frame, clip or subject.
        metric: its name, e.g. `balanced accuracy`.
        value: the figure.
        interval: lower and upper bound.
        interval_kind: e.g. `95 %, bootstrap over 13 held-out subjects`.
        compared_with: None, or the model whose figure was subtracted.
        command: that reproduces it.
        model: None, or what was measured for comparison instead of this checkpoint.
    """

    dataset: str
    protocol: str
    unit: str
    metric: str
    value: float
    interval: tuple[float, float] | None
    interval_kind: str | None
    compared_with: str | None
    command: str
    model: str | None


@dataclass(frozen=True)
class Card:
    """One checkpoint.

    Attributes:
        name: `<model>.<tag>`, as timm writes it, e.g. `resnet18_uscl.pocus`.
        architecture: the timm model that implements it, one of `ARCHITECTURES`.
        summary: one line for tables.
        weights: the file.
        input: what to feed it.
        training: provenance.
        licence: of the weights, as an SPDX identifier; None where the authors state none.
        intended_use: a sentence or two.
        limits: known limits, a sentence each.
        metrics: measured figures.
        classes: what the outputs of the classifier stand for; empty for a backbone.
        corpus: fingerprints of the training data; None where nobody took them.
    """

    name: str
    architecture: str
    summary: str
    weights: Weights
    input: Input
    training: Training
    licence: str | None
    intended_use: str
    limits: tuple[str, ...]
    metrics: tuple[Metric, ...] = ()
    classes: tuple[str, ...] = ()
    corpus: Corpus | None = None

    @property
    def model(self) -> str:
        """The model name without its tag, which is the name of the timm entry point."""
        return self.name.split(".")[0]

    @property
    def tag(self) -> str:
        """The part of the name after the dot."""
        return self.name.split(".")[1]

    @property
    def has_weights(self) -> bool:
        """Whether there is a file that this card can verify."""
        return self.weights.sha256 is not None


def home() -> Path:
    """The user's own folder of cards and weights: `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`."""
    named = os.environ.get("USCL_ZOO_WEIGHTS")
    return Path(named).expanduser() if named else Path("~/.uscl_zoo").expanduser()


def read_card(path: Path) -> Card:
    """Read and check one card.

    Raises:
        CardError: naming the file and the key that is missing, unknown or wrong.
    """
    path = Path(path)
    card = from_mapping(Card, read_yaml(path), str(path))

    def check(right: bool, key: str, rule: str) -> None:
        if not right:
            raise CardError(f"{path}: {key}: {rule}")

    check(
        re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", card.name) is not None,
        "name",
        f"should look like resnet18_uscl.pocus, not {card.name!r}",
    )
    check(card.name == path.stem, "name", f"is {card.name!r}, but the file is named {path.name}")
    check(
        card.architecture in ARCHITECTURES,
        "architecture",
        f"should be one of {', '.join(ARCHITECTURES)}, not {card.architecture!r}",
    )
    check(
        card.model == f"{card.architecture}_uscl",
        "name",
        f"should begin with {card.architecture}_uscl, its architecture",
    )
    weights = card.weights
    # a name, not a way out of the folder
    check(
        re.fullmatch(r"[\w.-]+\.safetensors", weights.file) is not None,
        "weights.file",
        f"should be the bare name of a .safetensors file, not {weights.file!r}",
    )
    check(
        weights.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", weights.sha256) is not None,
        "weights.sha256",
        "should be 64 lower-case hexadecimal digits",
    )
    check(
        (weights.sha256 is None) == (weights.bytes is None),
        "weights.bytes",
        "goes with sha256: give both or neither",
    )
    check(weights.bytes is None or 0 < weights.bytes < 2**40, "weights.bytes", "should be positive")
    check(
        (weights.hub_repo is None) == (weights.revision is None),
        "weights.revision",
        "goes with hub_repo: give both or neither",
    )
    check(
        weights.hub_repo is None or re.fullmatch(r"[\w.-]+/[\w.-]+", weights.hub_repo) is not None,
        "weights.hub_repo",
        "should look like namespace/name",
    )
    check(
        weights.revision is None or re.fullmatch(r"[0-9a-f]{40}", weights.revision) is not None,
        "weights.revision",
        "should be a commit, 40 hexadecimal digits: a branch can change",
    )
    corpus = card.corpus
    check(
        corpus is None or corpus.file == f"{card.name}.corpus.safetensors",
        "corpus.file",
        f"should be {card.name}.corpus.safetensors",
    )
    check(
        corpus is None or re.fullmatch(r"[0-9a-f]{64}", corpus.sha256) is not None,
        "corpus.sha256",
        "should be 64 lower-case hexadecimal digits",
    )
    check(
        card.input.size[0] == 3 and all(32 <= s <= 4096 for s in card.input.size[1:]),
        "input.size",
        "should be 3 channels and sides between 32 and 4096 pixels",
    )
    check(all(s > 0 for s in card.input.std), "input.std", "should be positive")
    check(
        len(card.classes) != 1 and len(set(card.classes)) == len(card.classes),
        "classes",
        "should be none, or at least two different ones",
    )
    return card


def packaged_folder() -> Path:
    """The folder of the cards that come with uscl-zoo."""
    return Path(__file__).parent / "cards"


@lru_cache(maxsize=1)
def packaged_cards() -> dict[str, Card]:
    """The cards that come with uscl-zoo, by name."""
    return {path.stem: read_card(path) for path in sorted(packaged_folder().glob("*.yaml"))}


def user_cards(folder: Path | None = None) -> dict[str, Card]:
    """The cards in the user's folder, by name; read anew at each call.

    One damaged file should not cost the user the zoo: it is left out with a warning.
    """
    cards = {}
    for path in sorted((folder or home()).glob("*.yaml")):
        try:
            cards[path.stem] = read_card(path)
        except CardError as error:
            warnings.warn(f"left out of the zoo: {error}", stacklevel=2)
    return cards


def all_cards() -> dict[str, Card]:
    """Every card in reach. A user's card stands in for a packaged one that has no weights."""
    cards = dict(packaged_cards())
    for name, card in user_cards().items():
        if name not in cards or not cards[name].has_weights:
            cards[name] = card
    return cards


def describe(card: Card) -> str:
    """A card as a person reads it."""
    weights, training = card.weights, card.training
    lines = [card.name, f"  {card.summary}", ""]

    def row(key: str, value: object) -> None:
        lines.append(f"  {key:18} {value}")

    row("architecture", f"{card.architecture} (timm), embeds frames {card.input.size}")
    row("normalisation", f"mean {card.input.mean[0]}, std {card.input.std[0]}, intensities in 0-1")
    row("licence", card.licence or "not stated by the authors")
    if card.has_weights:
        row("weights", f"{weights.file}, {(weights.bytes or 0) / 1e6:.1f} MB")
        row("sha256", weights.sha256)
    else:
        row("weights", f"published by their authors at {weights.origin}; `uscl import` takes them")
    if weights.hub_repo:
        row("Hub", f"{weights.hub_repo} at {weights.revision}")
    for source in training.sources:
        subjects = f", {source.subjects} subjects" if source.subjects is not None else ""
        row("trained on", source.name)
        row("", f"{source.videos} videos, {source.frames} frames{subjects}")
        row("", ", ".join(f"{label} {count}" for label, count in source.classes.items()))
        row("licences", ", ".join(f"{name} {count}" for name, count in source.licences.items()))
    if card.corpus is not None:
        row("fingerprints", f"of the training data, {card.corpus.file}; `uscl audit` reads them")
    if training.held_out_subjects:
        row("held out", f"{len(training.held_out_subjects)} subjects")
    if training.epochs is not None:
        row("run", f"{training.epochs} epochs, {training.steps} steps, seed {training.seed}")
        row("", f"{training.hours} h on {training.hardware}; {training.code}")
    for metric in card.metrics:
        interval = (
            f" [{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]" if metric.interval else ""
        )
        what = f"{metric.metric} of {metric.model}" if metric.model else metric.metric
        row("measured", f"{what}, by {metric.unit}: {metric.value:.3f}{interval}")
        row("", f"{metric.protocol}; {metric.dataset}")
        row("", f"{metric.interval_kind}; {metric.command}")
    row("intended use", card.intended_use)
    for i, limit in enumerate(card.limits):
        row("" if i else "limits", limit)
    return "\n".join(lines)


def table(cards: Iterable[Card]) -> str:
    """Cards as a table in Markdown: the one of the README."""
    lines = [
        "| checkpoint | weights | trained on | licence | measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        size = f"{(card.weights.bytes or 0) / 1e6:.0f} MB" if card.has_weights else "`uscl import`"
        sources = "; ".join(f"{s.name}: {s.videos:,} videos" for s in card.training.sources)
        differences = [metric for metric in card.metrics if metric.compared_with]
        measured = "; ".join(
            f"{metric.metric} to {metric.compared_with}, by {metric.unit}: {metric.value:+.3f}"
            + (" [{:+.3f}, {:+.3f}]".format(*metric.interval) if metric.interval else "")
            for metric in differences
        )
        licence = card.licence or "not stated"
        lines.append(f"| `{card.name}` | {size} | {sources} | {licence} | {measured or '-'} |")
    return "\n".join(lines)
