"""What a network is to say of a file, and all that differs by it: the contract, and classes.

Numbers are in `amounts.py`, several labels in `labelling.py`; `tasks.py` knows them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor, nn

from uscl_zoo.answers import CLASSES, softmax
from uscl_zoo.classifier.prediction import Answer
from uscl_zoo.data.annotations import fold
from uscl_zoo.errors import DataError

from .bootstrap import Bootstrap, Floats, Score
from .metrics import Judged, compared, measured, resampled
from .regression import choose_penalty, linear, linear_classifier
from .sample import Rows
from .settings import Settings

Targets = npt.NDArray[Any]
Features = npt.NDArray[np.float32]
Decided = npt.NDArray[np.bool_]


#: Characters of a class: a longer one is somebody's notes, and has no place on a card.
_LONGEST = 200


class Goal(ABC):
    """What is said of a file. It holds nothing: what it needs is given.

    Attributes:
        task: as `uscl finetune` and `predict.json` have it.
        main: the figure that networks are compared by.
        rises: whether more of it is better.
        chance: the figure of one who knows nothing.
        on_card: the figures that cards have.
        unfit: settings that have no meaning here.
        asked: what a column of a CSV should be.
        own: settings that differ from those for classes.
    """

    task: ClassVar[str]
    main: ClassVar[str]
    rises: ClassVar[bool] = True
    chance: ClassVar[float | None] = None
    on_card: ClassVar[tuple[str, ...]]
    unfit: ClassVar[tuple[str, ...]] = ()
    asked: ClassVar[str] = "the class"
    own: ClassVar[Mapping[str, Any]] = {}

    def join(
        self, columns: Sequence[str]
    ) -> Callable[[Mapping[str, str | None]], str | None] | None:
        """What makes one label of several columns of a CSV; None for one column as it is.

        Raises:
            DataError: if there are several, and there should not be.
        """
        if len(columns) > 1:
            raise DataError(
                f"`label_column` was given {len(columns)} times; several are of `task=multilabel`"
            )
        return None

    @abstractmethod
    def texts(self, labels: Mapping[str, str], data: str) -> dict[str, str]:
        """Labels by file as stores have them, in one form.

        Args:
            labels: as they were read.
            data: where, for messages.

        Raises:
            DataError: if they are not what is needed.
        """

    @abstractmethod
    def outputs(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """Names of what is said.

        Args:
            labels: of all files, as `texts` made them.
            columns: of the CSV that they are from, if one is.
        """

    @abstractmethod
    def targets(self, labels: Sequence[str], outputs: Sequence[str]) -> Targets:
        """What is to be said of files: (N,) int64, or (N, outputs) float32."""

    @abstractmethod
    def strata(self, target: Targets) -> Rows:
        """A number (N,) by which subjects are spread evenly over splits."""

    def balance(self, target: Targets, outputs: int, settings: Settings) -> Tensor:
        """What the loss takes of the targets (N,) of a training epoch."""
        return torch.ones(outputs)

    @abstractmethod
    def loss(self, said: Tensor, target: Tensor, balance: Tensor, settings: Settings) -> Tensor:
        """Of a batch.

        Args:
            said: float32 (N, outputs).
            target: as `targets`, on the same device.
            balance: as `balance` gave it.
            settings: how is trained.
        """

    @abstractmethod
    def head(
        self,
        known: Features,
        target: Targets,
        subject: Rows,
        outputs: int,
        balance: Tensor,
        seed: int,
    ) -> tuple[Features, Features] | None:
        """Weight (outputs, D) and bias (outputs,) to begin with; None if nothing can be fitted."""

    def finish(self, head: nn.Linear, balance: Tensor) -> None:
        """Make what the network says what people read; of most it is already."""
        return

    @abstractmethod
    def linear(
        self,
        train: Features,
        target: Targets,
        subject: Rows,
        test: Features,
        outputs: int,
        seed: int,
    ) -> Floats:
        """What a linear head on frozen features says of others, (M, outputs)."""

    @abstractmethod
    def calibration(
        self, said: Features, target: Targets, weights: Floats, count: int
    ) -> dict[str, Any]:
        """Fields of `Answers`, by what was said of subjects that were left out.

        Args:
            said: (N, outputs), of frames.
            target: of them.
            weights: (N,), summing to 1, that count every subject the same.
            count: of the subjects.
        """

    def within(self, target: Targets) -> Rows:
        """What resamples keep the shares of, (N,) from 0: all the same, unless they are classes."""
        return np.zeros(len(target), np.int64)

    def holds(self, answer: Answer, truth: Any) -> bool:
        """Whether it was sure enough to answer, or of a number whether the interval has it."""
        return answer.answer is not None

    def decided(self, answers: Sequence[Answer], outputs: Sequence[str]) -> Decided | None:
        """Which outputs are said, bool (N, outputs), where probabilities alone do not say it."""
        return None

    @abstractmethod
    def support(self, figure: str, judged: Judged) -> int:
        """The fewest subjects that a figure is about."""

    @abstractmethod
    def resampled(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """Every figure of all subjects and of each resample, (resamples + 1,) each."""

    @abstractmethod
    def compared(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """Those of them that networks are compared by, `main` first."""

    def score(self, figure: str, values: Floats, judged: Judged) -> Score:
        """A figure with its interval, if the subjects can give one."""
        return measured(values, self.support(figure, judged))

    def measure(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Score]:
        """Every figure with its interval, if the subjects can give one."""
        values = self.resampled(judged, bootstrap)
        return {name: self.score(name, drawn, judged) for name, drawn in values.items()}


class Classes(Goal):
    """One of several classes."""

    task = CLASSES
    main = "macro AUROC"
    chance = 0.5
    on_card = (
        "balanced accuracy",
        "macro AUROC",
        "expected calibration error",
        "share flagged as unlike",
    )

    def texts(self, labels: Mapping[str, str], data: str) -> dict[str, str]:
        """See `Goal`; two classes at least."""
        if len({fold(label) for label in labels.values()}) < 2:
            found = "".join(f" ({label})" for label in sorted(set(labels.values()))[:1])
            raise DataError(
                f"{data}: has {len(labels)} files of less than two classes{found}; "
                "give a folder per class, or a CSV and its `label_column`"
            )
        longest = max(labels.values(), key=len)
        if len(longest) > _LONGEST:
            raise DataError(
                f"{data}: has a label of {len(longest):,} characters, {longest[:40]!r} …; is that "
                "the column of the classes?"
            )
        return dict(labels)

    def outputs(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """The classes, sorted."""
        return tuple(sorted(set(labels)))

    def targets(self, labels: Sequence[str], outputs: Sequence[str]) -> Targets:
        """See `Goal`."""
        return np.array([outputs.index(label) for label in labels], np.int64)

    def strata(self, target: Targets) -> Rows:
        """See `Goal`."""
        return target

    def within(self, target: Targets) -> Rows:
        """The classes: a draw without them would often miss one of few subjects."""
        return target

    def balance(self, target: Targets, outputs: int, settings: Settings) -> Tensor:
        """Weights of the classes, whose mean over the frames is 1."""
        counts = np.bincount(target, minlength=outputs)
        share = np.where(counts > 0, np.maximum(counts, 1.0) ** -settings.class_power, 0.0)
        share *= counts.sum() / (share @ counts)
        return torch.tensor(share, dtype=torch.float32)

    def loss(self, said: Tensor, target: Tensor, balance: Tensor, settings: Settings) -> Tensor:
        """Cross-entropy of smoothed labels."""
        return nn.functional.cross_entropy(
            said, target, weight=balance, label_smoothing=settings.label_smoothing
        )

    def head(
        self,
        known: Features,
        target: Targets,
        subject: Rows,
        outputs: int,
        balance: Tensor,
        seed: int,
    ) -> tuple[Features, Features] | None:
        """A logistic regression."""
        if len(np.unique(target)) < 2:
            # a fold of few subjects may hold one class, which no regression tells from nothing
            return None
        penalty = choose_penalty(known, target, subject, seed)
        return linear_classifier(known, target, penalty, outputs)

    def linear(
        self,
        train: Features,
        target: Targets,
        subject: Rows,
        test: Features,
        outputs: int,
        seed: int,
    ) -> Floats:
        """Probabilities by a logistic regression."""
        if len(np.unique(target)) < 2:
            return np.tile(np.bincount(target, minlength=outputs) / len(target), (len(test), 1))
        return linear(train, target, subject, test, outputs, seed)[0]

    def calibration(
        self, said: Features, target: Targets, weights: Floats, count: int
    ) -> dict[str, Any]:
        """A temperature."""
        return {"temperature": fit_temperature(said, target, weights, count)}

    def support(self, figure: str, judged: Judged) -> int:
        """Of a class its subjects, of a mean over classes those of the rarest."""
        counts = {
            label: len(np.unique(judged.subject[judged.target == i]))
            for i, label in enumerate(judged.classes)
        }
        about = figure.partition(" of ")[2]
        if about in counts:
            return counts[about]
        if figure.startswith(("macro", "balanced")):
            return min(filter(None, counts.values()))
        return len(np.unique(judged.subject))

    def resampled(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """See `metrics.resampled`."""
        return resampled(judged, bootstrap)

    def compared(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """See `metrics.compared`."""
        return compared(judged, bootstrap)


def fit_temperature(logits: Features, target: Rows, weights: Floats, count: int) -> float:
    """The temperature that minimises the negative log-likelihood.

    The targets are those of Platt (1999): of few subjects that are all told right the plain
    likelihood would ask for certainty. With `count` subjects and C classes the true class has
    (count + 1) / (count + C).

    Args:
        logits: (N, C).
        target: (N,).
        weights: (N,), summing to 1.
        count: how many subjects there are.
    """
    classes = logits.shape[1]
    wanted = np.full(logits.shape, 1 / (count + classes))
    wanted[np.arange(len(target)), target] = (count + 1) / (count + classes)

    def loss(log: float) -> float:
        chances = softmax(logits, float(np.exp(log)))
        return float(-(weights @ (wanted * np.log(chances + 1e-12)).sum(axis=1)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
