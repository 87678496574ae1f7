"""How logits become answers, and what the training images of a model look like.

A *model* is a folder that `uscl finetune` wrote. Beside the weights it holds what makes answers of
logits: a temperature, the confidence below which there is no answer, and the statistics of the
training images by which an image of another kind is known.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .errors import CardError, CheckpointError, DataError, DigestError, reason
from .files import open_file
from .records import from_mapping, read_json
from .zoo.card import Card
from .zoo.catalogue import card_in

#: Files of a model beside `model.safetensors` and its card.
ANSWERS, STATISTICS = "predict.json", "statistics.safetensors"
#: Tasks of models that outline; those of `uscl_zoo.segmentation` say theirs in `predict.json`.
OUTLINING = ("segmentation", "detection")
#: What timm reads.
CONFIG = "config.json"

#: What a model may say of a frame: one of several classes, a number, or which of several labels.
CLASSES, NUMBER, LABELS = "classification", "regression", "multilabel"

#: Temperatures that are fitted lie between 0.05 and 20; nobody meant others than these.
TEMPERATURES = (0.01, 100.0)
TEMPERATURE = "from 0.01 to 100"

#: A distance from the training images, in standard deviations of each number, that no image has.
_OFF = 100.0

#: Bytes of statistics: a ResNet-50 has 768 numbers, and their square of 8 bytes.
_LARGEST = 1 << 26

Floats = NDArray[np.float64]


class UnguardedWarning(UserWarning):
    """Nothing tells images apart that are unlike those that the model was trained on."""


@dataclass(frozen=True)
class Answers:
    """How logits become answers; the file `predict.json`.

    Attributes:
        classes: in the order of the logits.
        temperature: that divides the logits, fitted on subjects that the network had not seen.
        confidence: probability below which the answer is "cannot tell".
        threshold: distance from the training images above which an image is of another kind.
        quantile: of such frames' distances that the threshold is.
        validation_frames: of how many.
        rate: frames a second to sample from videos, as in training.
        statistics_sha256: digest of the statistics, which belong to these weights.
        flips: whether an answer is the mean over a frame and its mirror image.
        clean: whether frames are cut to the beam and cleaned of what is drawn, as in training.
        grey: whether their brightness alone is kept, as in training.
        task: what it says: `CLASSES`, `NUMBER` or `LABELS`.
        cuts: of labels: the probability from which on each is said, by the best F1 among subjects
            that the network had not seen; none for a half. Of a rare label it is below.
        spread: of numbers: nine in ten of subjects that the network had not seen lie within this of
            what it said.
    """

    classes: tuple[str, ...]
    temperature: float
    confidence: float
    threshold: float
    quantile: float
    validation_frames: int
    rate: float
    statistics_sha256: str
    flips: bool = False
    clean: bool = False
    grey: bool = False
    task: str = CLASSES
    spread: float = 0.0
    cuts: tuple[float, ...] = ()

    def of(self, logits: NDArray[Any]) -> Floats:
        """What the logits (N, outputs) of frames say: probabilities, or numbers as they are."""
        if self.task == NUMBER:
            return logits.astype(np.float64)
        if self.task == LABELS:
            return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64) / self.temperature)))
        return softmax(logits, self.temperature)

    def best(self, said: Floats) -> str:
        """The answer in a word: the most probable class, the labels likelier than not, a number.

        Args:
            said: of a frame, clip or subject, (outputs,).
        """
        if self.task == NUMBER:
            return f"{said[0]:.6g}"
        if self.task == LABELS:
            there = self._there(said)
            return in_words([c for c, one in zip(self.classes, there, strict=True) if one])
        return self.classes[int(said.argmax())]

    def is_sure(self, said: Floats) -> bool:
        """Whether it is sure enough to answer, as far as probabilities tell; of every label.

        Of a number the probabilities say nothing, and the interval is given instead.
        """
        if self.task == NUMBER:
            return True
        if self.task == LABELS:
            return not self.unsure(said)
        return bool(said.max() >= self.confidence)

    def unsure(self, said: Floats) -> list[str]:
        """Labels that it is not sure enough to say or to leave out."""
        sure = np.where(self._there(said), said, 1 - said) >= self.confidence
        return [label for label, one in zip(self.classes, sure, strict=True) if not one]

    @property
    def doubt(self) -> dict[str, tuple[float, float]]:
        """Of several labels: from and to which probability of each it cannot tell."""
        cuts = self.cuts or (0.5,) * len(self.classes)
        yes, no = self.confidence, 1 - self.confidence
        return {c: (min(cut, no), max(cut, yes)) for c, cut in zip(self.classes, cuts, strict=True)}

    def agree(self, frames: Floats, said: Floats) -> NDArray[np.bool_]:
        """Which frames say the same as their clip, or a number within `spread` of it.

        Args:
            frames: (N, outputs).
            said: of the clip, (outputs,).
        """
        if self.task == NUMBER:
            return np.asarray(np.abs(frames[:, 0] - said[0]) <= self.spread)
        if self.task == LABELS:
            return np.asarray((self._there(frames) == self._there(said)).all(axis=1))
        return np.asarray(frames.argmax(axis=1) == said.argmax())

    def _there(self, said: Floats) -> NDArray[np.bool_]:
        """Which labels are said."""
        return np.asarray(said >= (np.array(self.cuts) if self.cuts else 0.5))

    def made_for(self, sampling: Mapping[str, Any]) -> Answers:
        """These, of a network trained on frames that were sampled so (`Sampling.settings`)."""
        clean, grey = (bool(sampling.get(key, False)) for key in ("clean", "grey"))
        return replace(self, clean=clean, grey=grey)


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
        """Mahalanobis distance of each image, (N,), as root mean square over the D numbers.

        Raises:
            CheckpointError: if they are of a network of another width.
        """
        if textures.shape[1] != len(self.mean):
            raise CheckpointError(
                f"{STATISTICS}: holds statistics of {len(self.mean)} numbers, where the network "
                f"has {textures.shape[1]}; copy the model's folder again"
            )
        away = textures.astype(np.float64) - self.mean
        squares = (away @ self.precision * away).mean(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0)))


def in_words(labels: Sequence[str]) -> str:
    """Several labels as one cell has them; `none` of none."""
    return "; ".join(labels) or "none"


def softmax(logits: NDArray[Any], temperature: float) -> Floats:
    """Probabilities (N, classes) of logits divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def task_of(folder: Path) -> str | None:
    """What the model of a folder was made for, where it says so; None for anything else."""
    try:
        said = read_json(folder / ANSWERS)
    except CardError:
        return None
    task = said.get("task") if isinstance(said, Mapping) else None
    return task if isinstance(task, str) else None


def read_model(folder: Path) -> tuple[Card, Answers]:
    """Card and answers of a model's folder.

    Raises:
        DataError: if it holds none.
        CardError: if one of them is damaged.
    """
    if not (folder / ANSWERS).is_file():
        raise DataError(f"{folder}: holds no model (`uscl finetune --data DIR -o {folder}`)")
    if task_of(folder) in OUTLINING:
        raise DataError(
            f"{folder}: is a model that outlines, and tells no classes apart; `uscl predict` and "
            "`uscl_zoo.outline` take it"
        )
    card = card_in(folder)
    path = folder / ANSWERS
    answers = from_mapping(Answers, read_json(path), str(path))
    if answers.classes != card.classes or answers.task != (card.task or CLASSES):
        raise CardError(f"{path}: does not belong to the card of {card.name}, by its classes")
    fewest = 2 if answers.task == CLASSES else 1
    for key, right, rule in (
        ("task", answers.task in (CLASSES, NUMBER, LABELS), f"{CLASSES}, {NUMBER} or {LABELS}"),
        (
            "classes",
            len(set(answers.classes)) == len(answers.classes) >= fewest,
            "two or more names" if fewest > 1 else "one or more names",
        ),
        ("spread", answers.spread >= 0, "0 or more"),
        (
            "cuts",
            len(answers.cuts) in (0, len(answers.classes)) and all(0 < c < 1 for c in answers.cuts),
            "a probability a label",
        ),
        ("temperature", is_temperature(answers.temperature), TEMPERATURE),
        ("confidence", 0 <= answers.confidence <= 1, "a probability"),
        ("threshold", answers.threshold > 0, "positive"),
        ("quantile", 0 < answers.quantile <= 1, "a share"),
        ("validation_frames", answers.validation_frames > 0, "positive"),
        ("rate", answers.rate > 0, "positive"),
        (
            "statistics_sha256",
            re.fullmatch(r"[0-9a-f]{64}", answers.statistics_sha256) is not None,
            "64 lower-case hexadecimal digits",
        ),
    ):
        if not right:
            raise CardError(f"{path}: {key}: should be {rule}, not {getattr(answers, key)!r}")
    _check_config(folder / CONFIG, card)
    return card, answers


def _check_config(path: Path, card: Card) -> None:
    """Refuse what timm would read of a model if it is of another than the card.

    Raises:
        CardError: naming the key.
    """
    if not os.path.lexists(path):
        return
    said = read_json(path)
    shape: Any = said.get("pretrained_cfg") if isinstance(said, Mapping) else None
    if not isinstance(shape, Mapping):
        raise CardError(f"{path}: should be a mapping with `pretrained_cfg`; copy the model again")
    for key, there, here in (
        ("architecture", said.get("architecture"), card.architecture),
        ("num_classes", said.get("num_classes"), len(card.classes)),
        ("label_names", said.get("label_names"), card.classes),
        ("mean", shape.get("mean"), card.input.mean),
        ("std", shape.get("std"), card.input.std),
        ("input_size", shape.get("input_size"), card.input.size),
    ):
        there = tuple(there) if isinstance(there, list) else there
        if there != here:
            raise CardError(
                f"{path}: {key} is {there!r}, and {here!r} on the card of {card.name}; copy the "
                "model's folder again"
            )


def is_temperature(number: float) -> bool:
    """Whether logits may have been divided by a number."""
    return TEMPERATURES[0] <= number <= TEMPERATURES[1]


def warn_unguarded(path: Path, threshold: float, seen: str) -> None:
    """Say so if a threshold lets every image pass as like the training images.

    Args:
        path: of the file that has it.
        threshold: of distances.
        seen: what it was determined by.
    """
    if threshold > _OFF:
        warnings.warn(
            f"{path}: its threshold of {threshold:.3g}, by {seen}, lets every image pass as like "
            "the training images",
            UnguardedWarning,
            stacklevel=3,
        )


class HasStatistics(Protocol):
    """Whatever names the digest of the statistics that belong to it."""

    @property
    def statistics_sha256(self) -> str:
        """64 hexadecimal digits."""
        ...


def verified_bytes(path: Path, sha256: str, lost: str = "", most: int = _LARGEST) -> bytes:
    """A file of a model's folder, taken from one reading: what is checked is what is used.

    Args:
        path: of the file.
        sha256: as the model says it.
        lost: what its absence means, to be said.
        most: bytes; a longer file is another.

    Raises:
        DataError: if it cannot be read.
        DigestError: if it is another.
    """
    try:
        with open_file(path) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({reason(error)}){lost}; copy the model's folder again"
        ) from error
    if (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise DigestError(
            f"{path}: is not the file the model was written with: expected SHA-256 "
            f"{sha256}, found {actual}; copy the model's folder again"
        )
    return content


def read_statistics(path: Path, answers: HasStatistics) -> Statistics:
    """The statistics of the training images of a model.

    Raises:
        DataError: if the file cannot be read.
        DigestError: if it is not the one the model was written with.
        CheckpointError: if it holds something else.
    """
    lost = ", and without it nothing says which images are unlike the training images"
    content = verified_bytes(path, answers.statistics_sha256, lost)
    try:
        tensors: dict[str, Tensor] = load(content)
        mean, precision = (tensors[name].double().numpy() for name in ("mean", "precision"))
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: holds no statistics ({error})") from error
    if mean.ndim != 1 or precision.shape != (len(mean), len(mean)):
        raise CheckpointError(
            f"{path}: holds no statistics (mean {mean.shape}, precision {precision.shape})"
        )
    try:
        # of a matrix that is no inverse of a covariance, distances would be none
        fits = np.isfinite(mean).all() and np.isfinite(np.linalg.cholesky(precision)).all()
    except np.linalg.LinAlgError:
        fits = False
    if not fits or not np.allclose(precision, precision.T):
        raise CheckpointError(
            f"{path}: holds no statistics (its precision is not symmetric and positive definite, "
            "or a number is not finite)"
        )
    return Statistics(mean, precision)
