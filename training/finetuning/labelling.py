"""Several labels a file, of which any may be there: A-lines, B-lines, an effusion."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor, nn

from uscl_zoo.answers import LABELS
from uscl_zoo.classifier.prediction import Answer
from uscl_zoo.data.annotations import fold, known
from uscl_zoo.errors import DataError

from ..downstream.bootstrap import Bootstrap, Floats
from ..downstream.goal import Decided, Features, Goal, Targets
from ..downstream.metrics import Judged, auroc, over
from ..downstream.regression import choose_penalty, linear, linear_classifier
from ..downstream.sample import Rows
from ..downstream.settings import Settings

#: What says that a label is there, that it is not, and that none of any is, in lower case.
THERE = frozenset({"1", "1.0", "yes", "y", "true", "present", "positive", "pos", "x"})
ABSENT = frozenset({"0", "0.0", "no", "n", "false", "absent", "negative", "neg"})
NONE = frozenset({"none", "no finding", "no findings", "no label", "normal"})
_BETWEEN = re.compile(r"[;|]")
# What parts labels in lists of others, and may be a part of a label here.
_ELSEWHERE = re.compile(r"\s*[,/+&]\s*")
# Logits beyond which a first classifier does not begin, of a label that all or none have.
_ABSENT = -4.0
# Probabilities at most that are tried to cut at.
_CUTS = 500


def of_columns(cells: Mapping[str, str | None]) -> str | None:
    """A label text from a column a label: `A-lines=1;B-lines=0`; None if nothing is known.

    Raises:
        DataError: if a cell says neither that it is there nor that it is not.
    """
    labels = []
    plain = {name: _plain(name) for name in cells}
    for folded, count in Counter(map(fold, plain.values())).items():
        if count > 1 or not folded:
            twice = [name for name in cells if fold(plain[name]) == folded]
            raise DataError(f"columns {', '.join(map(repr, twice))} have one name, or none")
    for name, cell in cells.items():
        text = known(cell)
        if text is None:
            continue
        word = text.casefold()
        if word not in THERE | ABSENT:
            raise DataError(f"column {name!r} has {text!r}; should be 1 or 0, yes or no, or empty")
        labels.append(f"{plain[name]}={int(word in THERE)}")
    return ";".join(labels) or None


def _plain(name: str) -> str:
    """A name that can stand in a list."""
    return " ".join(_BETWEEN.sub(" ", name).split())


def parsed(text: str) -> dict[str, bool | None]:
    """The labels of a text: by columns, or a list of those that are there, `A;B`, or `none`.

    Returns:
        Whether each is there; of a list, what is not in it is not there, which `spread` adds.
    """
    parts = list(filter(None, map(str.strip, _BETWEEN.split(text))))
    if is_of_columns(text):
        return {part[:-2]: part[-1] == "1" for part in parts}
    # `A; unknown` says of A alone
    spelt = [known(part) for part in parts]
    return {part: True for part in spelt if part is not None and fold(part) not in NONE}


def is_of_columns(text: str) -> bool:
    """Whether a text says of each label whether it is there; a name may have any sign in it."""
    parts = list(filter(None, map(str.strip, _BETWEEN.split(text))))
    return bool(parts) and all(re.fullmatch(r".*=[01]", part, re.DOTALL) for part in parts)


def spread(texts: Mapping[str, str]) -> dict[str, str]:
    """Label texts by file in one form, `A=1;B=0`, with one spelling a label.

    Raises:
        DataError: if there is no label; if a label is a list of others, parted otherwise, or all
            are the 1 and 0 of a single column.
    """
    columns = all(map(is_of_columns, filter(None, texts.values())))
    if not columns:
        # of labels such as `grade=1`, not of columns
        texts = {file: _escaped(text) for file, text in texts.items()}
    rows = {file: parsed(text) for file, text in texts.items()}
    spelling: dict[str, str] = {}
    for row in rows.values():
        for name in row:
            spelling.setdefault(fold(name), name)
    if not spelling:
        raise DataError("no file has any label")
    if not columns:
        _check_lists(list(spelling.values()))
    names = sorted(spelling.values())
    result = {}
    for file, row in rows.items():
        own = {spelling[fold(name)]: there for name, there in row.items()}
        recorded = own if columns else {name: own.get(name, False) for name in names}
        result[file] = ";".join(
            f"{name}={int(bool(there))}" for name, there in sorted(recorded.items())
        )
    return result


def _escaped(text: str) -> str:
    """A list of labels that cannot be taken for columns."""
    return f"{text};none" if is_of_columns(text) else text


def _check_lists(labels: Sequence[str]) -> None:
    """Refuse labels that are lists themselves, and cells that say whether one label is there."""
    words = {fold(label) for label in labels}
    # a letter may be what a label is called
    if words <= {word for word in THERE | ABSENT if word.isdigit() or len(word) > 1}:
        raise DataError(
            f"the labels are {', '.join(sorted(labels))}, as of a column of one label: give a "
            "column each (`label_column` twice or more), or `task=classification`"
        )
    for label in labels:
        parts = [fold(part) for part in _ELSEWHERE.split(label)]
        own = [part for part in parts if part in words]
        # what a slash or plus parts may be a finding of its own
        if len(parts) > 1 and own and ("," in label or len(own) == len(parts)):
            raise DataError(
                f"the label {label!r} seems to be a list that has {own[0]!r} in it; labels are "
                "parted by ; or |"
            )


class Labelling(Goal):
    """Any of several labels; of some files it may not be known whether one is there."""

    task = LABELS
    main = "mean AUROC"
    chance = 0.5
    on_card = ("mean AUROC", "mean F1", "share flagged as unlike")
    unfit = ("class_weights", "classes")
    asked = "the labels (or a column each)"
    own: ClassVar[Mapping[str, Any]] = {"class_power": 0.0}

    def join(
        self, columns: Sequence[str]
    ) -> Callable[[Mapping[str, str | None]], str | None] | None:
        """See `Goal`."""
        return of_columns if len(columns) > 1 else None

    def texts(self, labels: Mapping[str, str], data: str) -> dict[str, str]:
        """See `Goal`; a label that some have and others have not, at least."""
        try:
            texts = spread(labels)
        except DataError as error:
            raise DataError(f"{data}: {error}") from error
        said: dict[str, set[bool | None]] = {}
        for text in texts.values():
            for name, there in parsed(text).items():
                said.setdefault(name, set()).add(there)
        if all(len(values) < 2 for values in said.values()):
            raise DataError(f"{data}: has no label that some files have and others have not")
        return texts

    def outputs(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted({name for text in labels for name in parsed(text)}))

    def targets(self, labels: Sequence[str], outputs: Sequence[str]) -> Targets:
        """1, 0, or NaN where nobody knows, (N, labels)."""
        target = np.full((len(labels), len(outputs)), np.nan, np.float32)
        for row, text in zip(target, labels, strict=True):
            if not is_of_columns(text):
                # a list of those that are there
                row[:] = 0
            for name, there in parsed(text).items():
                row[outputs.index(name)] = bool(there)
        return target

    def strata(self, target: Targets) -> Rows:
        """The labels that are there, as one class."""
        return np.unique(np.nan_to_num(target), axis=0, return_inverse=True)[1].reshape(-1)

    def loss(self, said: Tensor, target: Tensor, balance: Tensor, settings: Settings) -> Tensor:
        """Binary cross-entropy of smoothed labels, over those that are known."""
        there = torch.isfinite(target)
        soft = torch.nan_to_num(target) * (1 - settings.label_smoothing)
        soft = soft + settings.label_smoothing / 2
        losses = nn.functional.binary_cross_entropy_with_logits(said, soft, reduction="none")
        return (losses * there).sum() / there.sum().clamp(min=1)

    def head(
        self,
        known: Features,
        target: Targets,
        subject: Rows,
        outputs: int,
        balance: Tensor,
        seed: int,
    ) -> tuple[Features, Features] | None:
        """A logistic regression a label."""
        weight = np.zeros((outputs, known.shape[1]), np.float32)
        bias = np.full(outputs, _ABSENT, np.float32)
        for place in range(outputs):
            rows, own = _known(target, place)
            if len(np.unique(own)) < 2:
                bias[place] = -_ABSENT if own.any() else _ABSENT
                continue
            penalty = choose_penalty(known[rows], own, subject[rows], seed)
            slope, start = linear_classifier(known[rows], own, penalty, 2)
            weight[place], bias[place] = slope[1] - slope[0], start[1] - start[0]
        return weight, bias

    def linear(
        self,
        train: Features,
        target: Targets,
        subject: Rows,
        test: Features,
        outputs: int,
        seed: int,
    ) -> Floats:
        """Probabilities by a logistic regression a label."""
        said = np.empty((len(test), outputs))
        for place in range(outputs):
            rows, own = _known(target, place)
            if len(np.unique(own)) < 2:
                said[:, place] = own.mean() if len(own) else 0.5
                continue
            said[:, place] = linear(train[rows], own, subject[rows], test, 2, seed)[0][:, 1]
        return said

    def calibration(
        self, said: Features, target: Targets, weights: Floats, count: int
    ) -> dict[str, Any]:
        """A temperature, for all labels, by Platt's targets as of classes; and where to cut."""
        there = np.isfinite(target)
        high = (count + 1) / (count + 2)
        wanted = np.where(np.nan_to_num(target) > 0, high, 1 - high)
        share = weights[:, None] * there / max(float((weights[:, None] * there).sum()), 1e-12)

        def loss(log: float) -> float:
            scaled = said.astype(np.float64) / float(np.exp(log))
            return float((share * (np.logaddexp(0, scaled) - wanted * scaled)).sum())

        fitted = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
        temperature = float(np.exp(fitted.x))
        chances = 1 / (1 + np.exp(-said.astype(np.float64) / temperature))
        cuts = []
        for place in range(said.shape[1]):
            rows, own = _known(target, place)
            cuts.append(best_cut(chances[rows, place], own.astype(bool), weights[rows]))
        return {"temperature": temperature, "cuts": tuple(cuts)}

    def decided(self, answers: Sequence[Answer], outputs: Sequence[str]) -> Decided | None:
        """Which labels are said."""
        words = [set(answer.best.split("; ")) for answer in answers]
        return np.array([[name in said for name in outputs] for said in words])

    def support(self, figure: str, judged: Judged) -> int:
        """Of a label the fewer of those who have it and who have not; of a mean the fewest."""
        counts = {}
        for place, label in enumerate(judged.classes):
            own = judged.target[:, place]
            sides = (len(np.unique(judged.subject[own == there])) for there in (0, 1))
            counts[label] = min(sides)
        about = figure.partition(" of ")[2]
        if about in counts:
            return counts[about]
        if figure.startswith("mean"):
            return min(filter(None, counts.values()), default=0)
        return len(np.unique(judged.subject))

    def resampled(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """AUROC, F1 and what it is made of, of each label; files of which it is known count."""

        def figures(weights: Floats) -> dict[str, Floats]:
            parts: dict[str, dict[str, Floats]] = {"AUROC": {}, "F1": {}}
            more: dict[str, Floats] = {}
            for place, label in enumerate(judged.classes):
                rows, own = _known(judged.target, place)
                share, there = weights[:, rows], own.astype(bool)
                chances = judged.probabilities[rows, place]
                said = _said(judged)[rows, place]
                hit, called, real = (share @ one for one in (said & there, said, there))
                parts["AUROC"][label] = auroc(chances, there, share)
                parts["F1"][label] = np.where(real > 0, 2 * hit / (called + real), np.nan)
                more[f"recall of {label}"] = hit / real
                more[f"precision of {label}"] = hit / called
                more[f"share with {label}"] = real / share.sum(axis=1)
            total = weights.sum(axis=1)
            return {
                **{f"mean {name}": _mean(own) for name, own in parts.items()},
                **{f"{name} of {c}": v for name, own in parts.items() for c, v in own.items()},
                **more,
                "share answered": weights @ judged.answered / total,
                "share flagged as unlike": weights @ judged.unlike / total,
            }

        return over(bootstrap, judged.subject, figures)

    def compared(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """AUROC and F1."""
        intervals = self.resampled(judged, bootstrap)
        return {
            name: v for name, v in intervals.items() if name.startswith(("mean", "AUROC", "F1"))
        }


def best_cut(chances: Floats, there: npt.NDArray[np.bool_], weights: Floats) -> float:
    """The probability from which on to say a label, by the best F1; a half where none has it.

    Args:
        chances: (N,).
        there: (N,), whether it is there.
        weights: (N,), of each.
    """
    if not there.any() or there.all():
        return 0.5
    # between two that differ, so that rounding decides nothing; of many the quantiles do
    values = np.unique(chances)
    if len(values) > _CUTS:
        values = np.quantile(values, np.linspace(0, 1, _CUTS))
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    said = chances[None] >= cuts[:, None]
    hit, called = (said & there) @ weights, said @ weights
    f1 = 2 * hit / (called + weights @ there)
    # of those that are as good, the nearest to a half
    best = cuts[f1 >= f1.max() - 1e-9]
    return float(np.clip(best[np.abs(best - 0.5).argmin()], 0.01, 0.99))


def _said(judged: Judged) -> npt.NDArray[np.bool_]:
    """Which labels are said, (N, labels)."""
    return judged.probabilities >= 0.5 if judged.said is None else judged.said


def _known(target: Targets, place: int) -> tuple[Rows, Rows]:
    """Where a label is known, and whether it is there."""
    rows = np.flatnonzero(np.isfinite(target[:, place]))
    return rows, target[rows, place].astype(np.int64)


def _mean(values: Mapping[str, Floats]) -> Floats:
    """Over the labels that have a value."""
    stack = np.stack(list(values.values()))
    there = np.isfinite(stack)
    return np.asarray(np.where(there, stack, 0).sum(axis=0) / there.sum(axis=0))
