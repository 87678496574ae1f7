"""Answers: what a fine-tuned model says of frames, clips and subjects, and when it says nothing.

A *model* is a folder that `uscl finetune` wrote. Beside the weights it holds what makes answers of
logits: a temperature, the confidence below which there is no answer, and the statistics of the
training images by which an image of another kind is known.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from tqdm.auto import tqdm

from . import checkpoint, store
from .annotations import SubjectPattern, known
from .card import Card, read_card
from .embed import written_whole
from .errors import (
    CardError,
    CheckpointError,
    DataError,
    DigestError,
    UnreadableError,
    one_line,
)
from .files import expanded
from .names import cell
from .records import from_mapping, read_json, to_plain
from .ultrasound.reading import sample
from .ultrasound.sources import Named, name_sources
from .ultrasound.transforms import FrameTransform, create_transform

#: Files of a model beside `model.safetensors`, `config.json` and its card.
ANSWERS, STATISTICS = "predict.json", "statistics.safetensors"
SUFFIXES = (".csv", ".json")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """How logits become answers; the file `predict.json`.

    Attributes:
        classes: in the order of the logits.
        temperature: that divides the logits, fitted on the validation subjects.
        confidence: probability below which the answer is "cannot tell".
        threshold: distance from the training images above which an image is of another kind.
        quantile: of the validation frames' distances that the threshold is.
        validation_frames: of how many.
        rate: frames a second to sample from videos, as in training.
        statistics_sha256: digest of the statistics, which belong to these weights.
    """

    classes: tuple[str, ...]
    temperature: float
    confidence: float
    threshold: float
    quantile: float
    validation_frames: int
    rate: float
    statistics_sha256: str


@dataclass(frozen=True)
class Statistics:
    """The training images in the space where other kinds of image are told apart from them.

    The space is not the embedding: a network that has seen nothing but ultrasound places a
    photograph among its classes. The mean activations of the first two stages, which are texture
    and contrast, tell it apart (docs/finetune.md has both measured).

    Attributes:
        mean: float64 (D,).
        precision: float64 (D, D), inverse of the shrunk covariance.
    """

    mean: Floats
    precision: Floats

    #: Share of the diagonal in the covariance, which 50 images cannot fill.
    SHRINKAGE = 0.1

    @classmethod
    def of(cls, textures: NDArray[np.float32]) -> Statistics:
        """The statistics of some images, (N, D)."""
        values = textures.astype(np.float64)
        spread = values.std(axis=0)
        # a channel that the training images hardly move says little of an image that does
        spread = np.maximum(spread, 0.1 * np.median(spread) + 1e-6)
        scaled = (values - values.mean(axis=0)) / spread
        width = values.shape[1]
        covariance = (1 - cls.SHRINKAGE) * scaled.T @ scaled / len(values)
        covariance += cls.SHRINKAGE * np.eye(width)
        return cls(values.mean(axis=0), np.linalg.inv(covariance) / np.outer(spread, spread))

    def distance(self, textures: NDArray[np.float32]) -> Floats:
        """Mahalanobis distance of each image, (N,), as root mean square over the D numbers."""
        away = textures.astype(np.float64) - self.mean
        squares = (away @ self.precision * away).mean(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0)))


@torch.inference_mode()
def run(
    network: Any,
    transform: FrameTransform,
    frames: Iterable[Image.Image | NDArray[Any]],
    batch_size: int = 32,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a classifier makes of frames.

    Args:
        network: a ResNet of timm with a classifier.
        transform: its input.
        frames: anything that `to_frame` takes.
        batch_size: frames at a time.

    Returns:
        Logits (N, classes) and textures (N, D), see `Statistics`.
    """
    parameter = next(network.parameters())
    network.eval()
    tensors = (transform(frame) for frame in frames)
    logits, textures = [], []
    while batch := list(islice(tensors, batch_size)):
        inputs = torch.stack(batch).to(parameter.device, parameter.dtype)
        last, stages = network.forward_intermediates(inputs, indices=5)
        logits.append(network.forward_head(last).float().cpu().numpy())
        pooled = torch.cat([stage.mean((2, 3)) for stage in stages[1:3]], dim=1)
        textures.append(pooled.float().cpu().numpy())
    if not logits:
        return np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)
    return np.concatenate(logits), np.concatenate(textures)


def softmax(logits: NDArray[Any], temperature: float) -> Floats:
    """Probabilities (N, classes) of logits divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Answer:
    """What a model says of one frame, clip or subject.

    Attributes:
        unit: `frame`, `clip` or `subject`.
        source: the file or folder; of a subject None.
        subject: whom it shows; None where nobody said.
        frame: number of the frame among those sampled; None but for a frame.
        time: seconds since the source's first frame, NaN where it does not say; None but for a
            frame.
        frames: how many there are.
        probabilities: calibrated, a class each. Of a clip the mean over its frames, of a subject
            the mean over its clips.
        agreement: share of the frames whose most probable class is this one's.
        distance: from the training images, of several frames the median.
        unlike: whether the image is of another kind: the distance is above the model's threshold.
        best: the most probable class.
        answer: that class; None for "cannot tell", which is said below the confidence and of images
            of another kind.
    """

    unit: str
    source: Path | None
    subject: str | None
    frame: int | None
    time: float | None
    frames: int
    probabilities: dict[str, float]
    agreement: float
    distance: float
    unlike: bool
    best: str
    answer: str | None

    def __str__(self) -> str:
        name = self.subject if self.source is None else self.source
        share = f"{self.best} {self.probabilities[self.best]:.2f}"
        if self.unlike:
            said = "cannot tell: unlike the training images"
        else:
            said = share if self.answer else f"cannot tell ({share})"
        many = f"; {self.frames} frames, agreement {self.agreement:.2f}" if self.frames > 1 else ""
        return one_line(f"{name}: {said}{many}")


@dataclass(frozen=True)
class Predictions:
    """What a model says of some files.

    Attributes:
        model: the folder of the model.
        answers: how logits became answers.
        frames: an answer a sampled frame.
        clips: an answer a file.
        subjects: an answer a subject, none where subjects are not known.
        skipped: files that could not be read, and why.
    """

    model: Path
    answers: Answers
    frames: list[Answer]
    clips: list[Answer]
    subjects: list[Answer]
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write every answer, whole or not at all.

        `.csv` has a row a frame, clip and subject; the column `unit` says which, and the column
        `answer` is empty for "cannot tell". `.json` has the same under `frames`, `clips` and
        `subjects`, and how they came about.

        Raises:
            DataError: if the suffix is another, or the file cannot be written.
        """
        path = check_suffix(path)
        with written_whole(path) as partial:
            (self._write_json if path.suffix.lower() == ".json" else self._write_csv)(partial)
        return path

    def _write_json(self, path: Path) -> None:
        def plain(answer: Answer) -> dict[str, Any]:
            row: dict[str, Any] = to_plain(answer)
            row["source"] = None if answer.source is None else one_line(str(answer.source))
            row["subject"] = None if answer.subject is None else one_line(answer.subject)
            # NaN is no JSON
            row["time"] = None if answer.time is None or np.isnan(answer.time) else answer.time
            return row

        content = {
            "model": one_line(str(self.model)),
            "how": to_plain(self.answers),
            "subjects": [plain(answer) for answer in self.subjects],
            "clips": [plain(answer) for answer in self.clips],
            "frames": [plain(answer) for answer in self.frames],
            "skipped": [
                {"source": one_line(str(source)), "reason": one_line(reason)}
                for source, reason in self.skipped
            ],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            write_rows(stream, self.answers.classes, self.frames, self.clips, self.subjects)


def write_rows(
    stream: Any,
    classes: Sequence[str],
    *tables: Sequence[Answer],
    truth: Callable[[Answer], str] | None = None,
) -> None:
    """Write answers as CSV to an open stream, a row each; with a column `label` if it is known."""
    writer = csv.writer(stream, lineterminator="\n")
    names = (f"p_{label}" for label in classes)
    head = ["unit", "source", "subject", "frame", "time_s", "frames", "answer", "best"]
    head += ["agreement", "distance", "unlike_training", *names]
    writer.writerow(head if truth is None else [*head, "label"])
    for answer in (answer for table in tables for answer in table):
        untimed = answer.time is None or np.isnan(answer.time)
        writer.writerow(
            [
                answer.unit,
                cell(answer.source),
                cell(answer.subject),
                answer.frame if answer.frame is not None else "",
                "" if untimed else f"{answer.time:.6g}",
                answer.frames,
                cell(answer.answer),
                cell(answer.best),
                f"{answer.agreement:.4g}",
                f"{answer.distance:.4g}",
                int(answer.unlike),
                *(f"{answer.probabilities[label]:.6g}" for label in classes),
                *([] if truth is None else [cell(truth(answer))]),
            ]
        )


class Classifier:
    """A model that `uscl finetune` wrote, verified and ready to answer.

    Attributes:
        folder: of the model.
        card: what is known of the weights.
        answers: how logits become answers.
        network: with its classifier.
        transform: its input.
        statistics: of the training images.
    """

    def __init__(self, folder: str | Path, device: str | torch.device | None = None) -> None:
        """Load a model.

        Args:
            folder: of the model.
            device: to compute on; None for a GPU where there is one.

        Raises:
            DataError: if the folder holds no model.
            DigestError: if a file is not the one the others were made with.
            CheckpointError: if weights or statistics are not the network's.
        """
        self.folder = expanded(folder)
        self.card, self.answers = read_model(self.folder)
        located = store.locate(self.card, folder=self.folder, download=False)
        classes = len(self.answers.classes)
        checkpoint.check_file(located.path, self.card.architecture, classes)
        self.network = timm.create_model(self.card.architecture, num_classes=classes)
        self.network.load_state_dict(load(located.path.read_bytes()))
        located.recheck()
        self.statistics = _read_statistics(self.folder / STATISTICS, self.answers)
        self.transform = create_transform(self.card)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.network.to(device).eval()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"device {str(device)!r} cannot be used ({reason})") from error

    def run(
        self, frames: Iterable[Image.Image | NDArray[Any]], batch_size: int = 32
    ) -> tuple[Floats, Floats]:
        """Calibrated probabilities (N, classes) and distances (N,) of frames."""
        logits, textures = run(self.network, self.transform, frames, batch_size)
        if not len(logits):
            return np.empty((0, len(self.answers.classes))), np.empty(0)
        return softmax(logits, self.answers.temperature), self.statistics.distance(textures)


def read_model(folder: Path) -> tuple[Card, Answers]:
    """Card and answers of a model's folder.

    Raises:
        DataError: if it holds none.
        CardError: if one of them is damaged.
    """
    if not (folder / ANSWERS).is_file():
        raise DataError(f"{folder}: holds no model (`uscl finetune --data DIR -o {folder}`)")
    card = model_card(folder)
    path = folder / ANSWERS
    answers = from_mapping(Answers, read_json(path), str(path))
    if answers.classes != card.classes or answers.temperature <= 0:
        raise CardError(f"{path}: does not belong to the card of {card.name}")
    return card, answers


def model_card(folder: Path) -> Card:
    """The card of a model's folder.

    Raises:
        CardError: if there is none, or several, or it is damaged.
    """
    cards = sorted(folder.glob("*.yaml"))
    if len(cards) != 1:
        raise CardError(f"{folder}: should hold one card, NAME.yaml, not {len(cards)}")
    return read_card(cards[0])


def _read_statistics(path: Path, answers: Answers) -> Statistics:
    try:
        # taken from one reading, so that what is checked is what is used
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if (found := hashlib.sha256(content).hexdigest()) != answers.statistics_sha256:
        raise DigestError(
            f"{path}: is not the file the model was written with: expected SHA-256 "
            f"{answers.statistics_sha256}, found {found}; copy the model's folder again"
        )
    try:
        tensors: dict[str, Tensor] = load(content)
        return Statistics(tensors["mean"].numpy(), tensors["precision"].numpy())
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path}: holds no statistics ({error})") from error


def predict(
    model: str | Path | Classifier,
    paths: str | Path | Iterable[str | Path],
    *,
    subjects: str | Mapping[str, str] | Callable[[Path], str | None] | None = None,
    confidence: float | None = None,
    rate: float | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Predictions:
    """Classify images, videos, DICOM files and folders of them.

    Args:
        model: a folder that `uscl finetune` wrote, or one that is loaded.
        paths: files and folders, as for `ultrasound.reading.find`.
        subjects: whom a file shows: a pattern, see `annotations.SubjectPattern`, a mapping by path
            or file name, or a function of the path.
        confidence: probability below which the answer is "cannot tell"; the model's own if None.
        rate: frames a second to sample from videos; the model's own if None.
        batch_size: frames at a time.
        device: to compute on, see `Classifier`.
        progress: show a bar.

    Raises:
        DataError: if nothing can be read, the folder holds no model, or an argument is out of
            range.
        UnreadableError: if a path does not exist.
        DigestError: if a file of the model is not the one it was written with.
    """
    if batch_size < 1:
        raise DataError(f"batch_size should be at least 1, not {batch_size}")
    if confidence is not None and not 0 <= confidence <= 1:
        raise DataError(f"confidence should be a probability, not {confidence}")
    whose = _subjects(subjects)
    found = [source for source, _ in name_sources(paths)]
    if not found:
        raise DataError("there is nothing to classify: name a file or folder")
    sources = [source.path for source in found]
    # a wrong pattern should not cost an hour of work
    told = [known(whose(source)) for source in found]
    classifier = model if isinstance(model, Classifier) else Classifier(model, device)
    answers = classifier.answers
    if confidence is not None:
        answers = from_mapping(Answers, to_plain(answers) | {"confidence": confidence}, "")
    origins: list[tuple[int, int, float]] = []
    skipped: list[tuple[Path, str]] = []

    def frames() -> Iterator[Image.Image]:
        for index, source in enumerate(tqdm(sources, unit="file", disable=not progress)):
            try:
                for number, (time, image) in enumerate(sample(source, rate or answers.rate)):
                    origins.append((index, number, time))
                    yield image
            except UnreadableError as error:
                skipped.append((source, str(error).removeprefix(f"{source}: ")))

    probabilities, distances = classifier.run(frames(), batch_size)
    if not origins:
        raise DataError(
            f"none of {len(sources)} files can be read; {skipped[0][0]}: {skipped[0][1]}"
        )
    owner, number, time = (np.array(column) for column in zip(*origins, strict=True))
    tables = answer(
        answers,
        probabilities,
        distances,
        owner=owner,
        number=number,
        time=time,
        sources=sources,
        subjects=told,
    )
    return Predictions(classifier.folder, answers, *tables, skipped)


def answer(
    answers: Answers,
    probabilities: Floats,
    distances: Floats,
    *,
    owner: NDArray[np.int64],
    number: NDArray[np.int64],
    time: Floats,
    sources: Sequence[Path],
    subjects: Sequence[str | None],
) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Answers by frame, by clip and by subject.

    Args:
        answers: how.
        probabilities: of N frames, (N, classes).
        distances: of N frames.
        owner: the source of each frame, an index.
        number: of each frame within its source.
        time: of each frame, seconds.
        sources: files.
        subjects: of each source.
    """
    top = probabilities.argmax(axis=1)

    def make(unit: str, rows: NDArray[np.int64], mean: Floats, **of: Any) -> Answer:
        best = int(mean.argmax())
        distance = float(np.median(distances[rows]))
        unlike = distance > answers.threshold
        sure = bool(mean[best] >= answers.confidence) and not unlike
        return Answer(
            unit=unit,
            frames=len(rows),
            probabilities={c: float(p) for c, p in zip(answers.classes, mean, strict=True)},
            agreement=float((top[rows] == best).mean()),
            distance=distance,
            unlike=unlike,
            best=answers.classes[best],
            answer=answers.classes[best] if sure else None,
            **({"source": None, "frame": None, "time": None} | of),
        )

    frames = [
        make(
            "frame",
            np.array([row]),
            probabilities[row],
            source=sources[index],
            subject=subjects[index],
            frame=int(number[row]),
            time=float(time[row]),
        )
        for row, index in enumerate(owner)
    ]
    # the frames of a source are neighbours
    read, first = np.unique(owner, return_index=True)
    rows_of = dict(zip(read, np.split(np.arange(len(owner)), first[1:]), strict=True))
    means = {index: probabilities[rows].mean(axis=0) for index, rows in rows_of.items()}
    clips = [
        make("clip", rows, means[index], source=sources[index], subject=subjects[index])
        for index, rows in rows_of.items()
    ]
    members: dict[str, list[int]] = {}
    for index in read:
        if (subject := subjects[index]) is not None:
            members.setdefault(subject, []).append(int(index))
    people = [
        make(
            "subject",
            np.concatenate([rows_of[index] for index in own]),
            np.mean([means[index] for index in own], axis=0),
            subject=subject,
        )
        for subject, own in members.items()
    ]
    return frames, clips, people


def _subjects(
    given: str | Mapping[str, str] | Callable[[Path], str | None] | None,
) -> Callable[[Named], str | None]:
    if given is None:
        return lambda source: None
    if isinstance(given, str):
        pattern = SubjectPattern(given)
        return lambda source: pattern(source.within)
    if isinstance(given, Mapping):
        return lambda source: given.get(str(source.path), given.get(source.path.name))
    return lambda source: given(source.path)


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that `Predictions.save` can write to a path.

    Raises:
        DataError: naming the suffixes it can.
    """
    path = expanded(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: the name should end in {' or '.join(SUFFIXES)}")
    return path
