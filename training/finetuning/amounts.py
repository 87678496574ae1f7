"""A number a file: an area, an age, an ejection fraction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from uscl_zoo.answers import NUMBER
from uscl_zoo.classifier.prediction import Answer
from uscl_zoo.errors import DataError, one_line

from ..downstream.bootstrap import Bootstrap, Floats
from ..downstream.goal import Features, Goal, Targets
from ..downstream.metrics import Judged, over
from ..downstream.sample import Rows
from ..downstream.settings import Settings

#: Bins of equal size by which subjects are spread evenly over splits.
BINS = 5
#: Penalties of the ridge regression, weakest first.
PENALTIES = tuple(10.0**k for k in range(7))
#: Numbers whose squares single precision holds.
_LEAST, _MOST = 1e-18, 1e18
#: Share of subjects that lie in the interval that is said with a number.
COVERED = 0.9


#: Digits in groups of three, by a comma: of 1,234 nobody can tell whether it is more than 2.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def number(text: str) -> float:
    """A number as people write it, a decimal comma included.

    Raises:
        DataError: if it is none, or not finite, or could be two: 1,234.
    """
    if _GROUPED.fullmatch(text.strip()):
        raise DataError(
            f"{text!r} may be a thousand and more, or a number with a decimal comma; write it with "
            "a point, or without"
        )
    try:
        if "_" in text:  # which Python reads over
            raise ValueError
        value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{text!r} is no number, and `task={NUMBER}` wants one a file")
    return value


class Amounts(Goal):
    """A number. Training is on standardised ones; what is kept says them in their own unit."""

    task = NUMBER
    main = "MAE"
    rises = False
    on_card = ("MAE", "R2", "bias", "share within the interval", "share flagged as unlike")
    unfit = ("label_smoothing", "class_weights", "classes")
    asked = "the number"
    # a size or a brightness may be what is asked for, and a crop to two fifths would change it
    own: ClassVar[Mapping[str, Any]] = {
        "crop": 0.8,
        "brightness": 0.1,
        "contrast": 0.1,
        "gamma": 0.1,
        "label_smoothing": 0.0,
        "class_power": 0.0,
    }

    def texts(self, labels: Mapping[str, str], data: str) -> dict[str, str]:
        """See `Goal`; two different numbers at least."""
        amounts = {}
        for file, label in labels.items():
            try:
                amounts[file] = f"{number(label):.10g}"
            except DataError as error:
                raise DataError(f"{data}: {file}: {error}") from error
        if len(set(amounts.values())) < 2:
            raise DataError(f"{data}: has {len(amounts)} files of less than two different numbers")
        values = np.array([float(amount) for amount in amounts.values()])
        with np.errstate(over="ignore"):
            away = np.abs(values - values.astype(np.float32)).max()
            spread, most = float(values.std()), float(np.abs(values).max())
        # they are standardised, and squared
        if not (away < 1e-3 * spread and spread > _LEAST and most < _MOST):
            raise DataError(
                f"{data}: numbers from {values.min():g} to {values.max():g} are not told apart in "
                "single precision; give them in another unit, or from another origin"
            )
        return amounts

    def outputs(self, labels: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
        """One: what the column is called."""
        return (one_line(columns[0]) if columns else "number",)

    def targets(self, labels: Sequence[str], outputs: Sequence[str]) -> Targets:
        """Numbers, (N, 1)."""
        return np.array([[number(label)] for label in labels], np.float32)

    def strata(self, target: Targets) -> Rows:
        """Which fifth of the numbers."""
        ranks = np.unique(target[:, 0], return_inverse=True)[1]
        return np.asarray(ranks * BINS // (ranks.max() + 1), np.int64)

    def balance(self, target: Targets, outputs: int, settings: Settings) -> Tensor:
        """Mean and standard deviation of the numbers, (2, 1)."""
        spread = np.maximum(target.std(axis=0), 1e-6 * np.abs(target).max() + 1e-12)
        return torch.from_numpy(np.stack([target.mean(axis=0), spread])).float()

    def loss(self, said: Tensor, target: Tensor, balance: Tensor, settings: Settings) -> Tensor:
        """Huber's, of standardised numbers."""
        return nn.functional.smooth_l1_loss(said, (target - balance[0]) / balance[1])

    def head(
        self,
        known: Features,
        target: Targets,
        subject: Rows,
        outputs: int,
        balance: Tensor,
        seed: int,
    ) -> tuple[Features, Features] | None:
        """A ridge regression."""
        mean, spread = balance.cpu().numpy()
        scaler, ridge = _ridge(known, (target - mean)[:, 0] / spread[0], subject)
        weight = ridge.coef_ / scaler.scale_
        bias = ridge.intercept_ - weight @ scaler.mean_
        return weight[None].astype(np.float32), np.array([bias], np.float32)

    def finish(self, head: nn.Linear, balance: Tensor) -> None:
        """Say numbers in their own unit."""
        with torch.no_grad():
            head.weight.mul_(balance[1][:, None])
            head.bias.mul_(balance[1]).add_(balance[0])

    def linear(
        self,
        train: Features,
        target: Targets,
        subject: Rows,
        test: Features,
        outputs: int,
        seed: int,
    ) -> Floats:
        """Numbers by a ridge regression."""
        scaler, ridge = _ridge(train, target[:, 0], subject)
        said: Floats = ridge.predict(scaler.transform(test.astype(np.float64)))
        return said[:, None]

    def calibration(
        self, said: Features, target: Targets, weights: Floats, count: int
    ) -> dict[str, Any]:
        """How far nine in ten subjects are from what is said of them (Vovk's conformal quantile).

        Of n subjects it is the one of rank ceil(0.9 (n + 1)), if there is one; else the farthest.
        """
        away = np.abs(said[:, 0] - target[:, 0])
        order = np.argsort(away)
        share = min(COVERED * (count + 1) / count, 1.0)
        place = int(np.searchsorted(weights[order].cumsum(), share - 1e-9))
        return {"temperature": 1.0, "spread": float(away[order[min(place, len(order) - 1)]])}

    def holds(self, answer: Answer, truth: Any) -> bool:
        """Whether the interval has the truth."""
        assert answer.interval is not None
        low, high = answer.interval
        return bool(low <= truth[0] <= high)

    def support(self, figure: str, judged: Judged) -> int:
        """All subjects."""
        return len(np.unique(judged.subject))

    def resampled(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """Errors, how much is explained, and the limits of agreement (Bland & Altman, 1986)."""
        truth, said = judged.target[:, 0], judged.probabilities[:, 0]
        away = said - truth

        def figures(weights: Floats) -> dict[str, Floats]:
            total = weights.sum(axis=1)
            bias, square = weights @ away / total, weights @ away**2 / total
            variance = weights @ truth**2 / total - (weights @ truth / total) ** 2
            spread = np.sqrt(np.maximum(square - bias**2, 0))
            return {
                "MAE": weights @ np.abs(away) / total,
                "R2": np.where(variance > 0, 1 - square / variance, np.nan),
                "root mean square error": np.sqrt(square),
                "bias": bias,
                "lower limit of agreement": bias - 1.96 * spread,
                "upper limit of agreement": bias + 1.96 * spread,
                "share within the interval": weights @ judged.answered / total,
                "share flagged as unlike": weights @ judged.unlike / total,
            }

        return over(bootstrap, judged.subject, figures)

    def compared(self, judged: Judged, bootstrap: Bootstrap) -> dict[str, Floats]:
        """MAE and R2."""
        intervals = self.resampled(judged, bootstrap)
        return {name: intervals[name] for name in ("MAE", "R2")}


def _ridge(known: Features, target: Floats, subject: Rows) -> tuple[StandardScaler, Ridge]:
    """A ridge regression on standardised features, its penalty chosen by folds of the subjects.

    It is the strongest within one standard error of the best (Breiman et al., 1984): a weaker one
    that does as well here is farther off where images differ more.
    """
    scaler = StandardScaler().fit(known.astype(np.float64))
    # what hardly moves in the training frames says little of one in which it does
    scaler.scale_ = np.maximum(scaler.scale_, 0.1 * np.median(scaler.scale_))
    inputs = scaler.transform(known.astype(np.float64))
    groups = len(np.unique(subject))
    alpha = PENALTIES[len(PENALTIES) // 2]
    # matrices this small are faster on one core
    with threadpool_limits(1):
        if groups > 2:
            errors = []
            for own, other in GroupKFold(min(5, groups)).split(inputs, target, subject):
                made = [Ridge(one).fit(inputs[own], target[own]) for one in PENALTIES]
                errors.append(
                    [np.mean((m.predict(inputs[other]) - target[other]) ** 2) for m in made]
                )
            table = np.array(errors)
            mean = table.mean(axis=0)
            best = int(mean.argmin())
            margin = table[:, best].std(ddof=1) / np.sqrt(len(table))
            alpha = PENALTIES[int(np.flatnonzero(mean <= mean[best] + margin)[-1])]
        return scaler, Ridge(alpha).fit(inputs, target)
