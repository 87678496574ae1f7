"""What makes probabilities of what networks say, fitted on subjects that they had not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression

from uscl_zoo.segmentation.model import Pixels, Trust, trusted


def fit_pixels(
    logits: npt.NDArray[np.float64],
    target: npt.NDArray[np.int64],
    subject: npt.NDArray[np.int64],
) -> Pixels:
    """What minimises the negative log-likelihood of pixels, every subject alike.

    Args:
        logits: (images, pixels, classes + 1).
        target: (images, pixels).
        subject: (images,), whose each is.
    """
    weights = 1 / np.bincount(subject)[subject]
    weights /= weights.sum() * target.shape[1]
    two = np.partition(logits, -2, axis=2)[:, :, -2:]
    margin = np.log(np.maximum(two[:, :, 1] - two[:, :, 0], 1e-6))

    def loss(values: npt.NDArray[np.float64]) -> float:
        heat, exponent = np.exp(values)
        scaled = logits * np.exp((exponent - 1) * margin - np.log(heat))[:, :, None]
        scaled = scaled - scaled.max(axis=2, keepdims=True)
        right = np.take_along_axis(scaled, target[:, :, None], axis=2)[:, :, 0]
        likelihood = right - np.log(np.exp(scaled).sum(axis=2))
        return float(-(weights @ likelihood).sum())

    # of a network that is never wrong neither has an end
    bounds = [(-3, 4), (np.log(0.5), np.log(3))]
    fitted = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    temperature, exponent = np.exp(fitted.x)
    return Pixels(float(temperature), float(exponent))


def trust_of(seen: Sequence[tuple[float, float, bool]]) -> Trust:
    """How sure one may be of regions: a logistic regression on those that were predicted.

    Its targets are Platt's (1999): of few regions that are all right, or all wrong, the plain
    likelihood would ask for certainty.

    Args:
        seen: score of each region, its share of the frame, and whether it is there.
    """
    if not seen:
        return Trust()
    scores, shares, right = (np.array(column) for column in zip(*seen, strict=True))
    count, hits = len(right), int(right.sum())
    columns = np.stack([trusted(scores), np.log(np.maximum(shares, 1e-9))], axis=1)
    middle, spread = columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-3)
    scaled = (columns - middle) / spread
    chance = np.where(right, (hits + 1) / (hits + 2), 1 / (count - hits + 2))
    # each region is one of both kinds, by its target
    regression = LogisticRegression(C=1.0).fit(
        np.concatenate([scaled, scaled]),
        np.repeat([1, 0], count),
        sample_weight=np.concatenate([chance, 1 - chance]),
    )
    weights = regression.coef_[0] / spread
    offset = float(regression.intercept_[0] - weights @ middle)
    return Trust(float(weights[0]), float(weights[1]), offset, count)
