"""The card: everything there is to know about one checkpoint, in one YAML file.

`list`, `info`, the timm registration, the Hub's model card and the table in the README are all
printed from cards, so a fact about a checkpoint stands in exactly one place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..checks import beyond_white
from ..errors import CardError
from ..records import from_mapping, read_yaml

#: The models of the zoo, each an entry point of timm, and the timm model that implements each.
MODELS = {
    "resnet18_uscl": "resnet18",
    "resnet50_uscl": "resnet50",
    "resnet18_imagenet": "resnet18",
}
#: Architectures the zoo wraps.
ARCHITECTURES = tuple(dict.fromkeys(MODELS.values()))


@dataclass(frozen=True)
class Origin:
    """Weights that others came of: a run's start, a teacher, a file that was converted.

    Attributes:
        name: a checkpoint of the zoo, a model of timm, or a file in words.
        sha256: of the file, 64 hexadecimal digits; None where it is not known.
        licence: of the weights; None where none is stated.
    """

    name: str
    sha256: str | None
    licence: str | None


@dataclass(frozen=True)
class Weights:
    """The weights file of a card and where it may be.

    Attributes:
        file: its name, the same wherever it lives.
        sha256: 64 hexadecimal digits, or None for weights that others publish and users import.
        bytes: its size.
        hub_repo: `namespace/name` on the Hugging Face Hub, None until published.
        revision: the commit to fetch, pinned: a branch would let weights change under a card.
        origin: where the original authors publish it, for weights that have to be imported.
        converted_from: the file of others that it was converted from.
        licence_file: name of the text of the licence, which travels with the weights.
        again: how to make the file again, for one that is distributed no more.
    """

    file: str
    sha256: str | None = None
    bytes: int | None = None
    hub_repo: str | None = None
    revision: str | None = None
    origin: str | None = None
    converted_from: Origin | None = None
    licence_file: str | None = None
    again: str | None = None


@dataclass(frozen=True)
class Corpus:
    """Fingerprints of what weights were trained on, in a file beside the card.

    They show whether a file or an image has been seen; `uscl audit` reads them.

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
    """A collection the weights were trained on.

    Attributes:
        name: what it is called.
        url: where it is published.
        citation: of its authors.
        videos: files of it, a still counting as one; None where nobody says how many.
        frames: of them; None where nobody says how many.
        subjects: patients; None where they are not distinguished.
        classes: videos by label.
        licences: videos by licence, as the collection words it.
        organs: that are shown, where that is known.
    """

    name: str
    url: str | None
    citation: str | None
    videos: int | None
    frames: int | None
    subjects: int | None
    classes: dict[str, int]
    licences: dict[str, int]
    organs: tuple[str, ...] = ()

    @property
    def counts(self) -> str:
        """How much there is of it, in words; empty where nobody says."""
        counted = []
        if self.videos is not None and self.videos == self.frames:
            counted.append(f"{self.videos:,} images")
        else:
            counted += [f"{self.videos:,} videos"] if self.videos is not None else []
            counted += [f"{self.frames:,} frames"] if self.frames is not None else []
        counted += [f"{self.subjects:,} subjects"] if self.subjects is not None else []
        return ", ".join(counted)


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
        start: the weights it began from; None for random ones.
        teachers: frozen networks whose features it learned from.
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
    start: Origin | None = None
    teachers: tuple[Origin, ...] = ()


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
        task: None where the outputs are classes, of which one is right; `multilabel` where any of
            them may be, `regression` where they are numbers.
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
    task: str | None = None
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
    def is_uscl(self) -> bool:
        """Whether it was made by the method that this package is named after, or one beside it."""
        return self.model.endswith("_uscl")

    @property
    def has_weights(self) -> bool:
        """Whether there is a file that this card can verify."""
        return self.weights.sha256 is not None


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
    check(card.model in MODELS, "name", f"should begin with one of {', '.join(MODELS)} and a dot")
    check(
        card.architecture == MODELS.get(card.model),
        "name",
        f"{card.model} is a {MODELS.get(card.model)}, and architecture says {card.architecture}",
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
    check(
        weights.licence_file is None
        or re.fullmatch(r"LICENSE[\w.-]*", weights.licence_file) is not None,
        "weights.licence_file",
        f"should be the bare name of a file LICENSE…, not {weights.licence_file!r}",
    )
    training = card.training
    for key, origin in (
        ("weights.converted_from", weights.converted_from),
        ("training.start", training.start),
        *((f"training.teachers[{i}]", teacher) for i, teacher in enumerate(training.teachers)),
    ):
        check(
            origin is None
            or origin.sha256 is None
            or re.fullmatch(r"[0-9a-f]{64}", origin.sha256) is not None,
            f"{key}.sha256",
            "should be 64 lower-case hexadecimal digits",
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
    wrong = beyond_white(card.input.mean, card.input.std)
    check(wrong is None, "input", wrong or "")
    check(
        card.task in (None, "regression", "multilabel"),
        "task",
        "should be regression or multilabel, or left out",
    )
    check(
        (len(card.classes) != 1 or card.task is not None)
        and len(set(card.classes)) == len(card.classes),
        "classes",
        "should be none, or at least two different ones",
    )
    return card


def licences_of(training: Training) -> tuple[str | None, ...]:
    """The licences of the data, the start and the teachers, each once; None where none is stated.

    They bind the weights.
    """
    bound: dict[str | None, None] = {}
    for source in training.sources:
        # what nobody counted is not what nobody licensed: such a source is as good as unstated
        bound |= dict.fromkeys(source.licences or [None])
    for origin in (training.start, *training.teachers):
        if origin is not None:
            bound[origin.licence] = None
    return tuple(bound)
