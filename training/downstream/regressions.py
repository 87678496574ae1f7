"""Logistic regression on frozen features, its penalty chosen by training subjects alone."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from .probe import PENALTIES, Floats, bare_regression, regression
from .sample import Rows

Features = npt.NDArray[np.float32]

#: Logit of a class of which there is nothing to learn.
_ABSENT = -10.0


def linear(
    train: Features, target: Rows, subject: Rows, test: Features, classes: int, seed: int = 0
) -> tuple[Floats, float]:
    """Probabilities by logistic regression, its penalty chosen by training subjects alone.

    Features of pretraining with labels tell the training subjects apart at any penalty, so that the
    best of an inner cross-validation would be any; the strongest within one standard error of the
    best (Breiman et al., 1984) is a definite one.

    Args:
        train: (N, D).
        target: (N,).
        subject: (N,).
        test: (M, D).
        classes: how many.
        seed: of the inner folds.

    Returns:
        (M, classes), and scikit-learn's C.
    """
    probabilities = np.zeros((len(test), classes))
    # matrices this small are faster on one core, and far faster beside other work
    with threadpool_limits(1), warnings.catch_warnings():
        # of the weakest penalties, which fit the training frames long before
        warnings.simplefilter("ignore", ConvergenceWarning)
        chosen = choose_penalty(train, target, subject, seed)
        known, asked = _turned(train, test)
        fitted = bare_regression(chosen).fit(known, target)
        # of a class that no training subject has nothing can be said
        probabilities[:, fitted.classes_] = fitted.predict_proba(asked)
    return probabilities, chosen


def _turned(train: Features, test: Features) -> tuple[Floats, Floats]:
    """Standardised features, turned into the space of the training frames where it is smaller.

    The penalty is on the length of the weights, which a rotation keeps, and no weight outside that
    space is ever anything but 0: the regression is the same, with a column a frame.
    """
    scaler = StandardScaler().fit(train.astype(np.float64))
    known, asked = (scaler.transform(part.astype(np.float64)) for part in (train, test))
    if len(known) >= known.shape[1]:
        return known, asked
    basis, own = np.linalg.qr(known.T)
    return np.ascontiguousarray(own.T), asked @ basis


def choose_penalty(train: Features, target: Rows, subject: Rows, seed: int) -> float:
    """The strongest penalty within one standard error of the best, by folds of the subjects.

    Args:
        train: (N, D).
        target: (N,).
        subject: (N,).
        seed: of the folds.

    Returns:
        scikit-learn's C; the middle of `PENALTIES` where a class has too few subjects for folds.
    """
    fewest = min(len(np.unique(subject[target == label])) for label in np.unique(target))
    if fewest < 2:
        # nothing to choose by, and the middle has to do
        return PENALTIES[len(PENALTIES) // 2]
    splitter = StratifiedGroupKFold(min(5, fewest), shuffle=True, random_state=seed)
    parts = list(splitter.split(train, target, subject))
    labels = np.unique(target)
    # a greedy split of few subjects may leave a class out of a side
    parts = [part for part in parts if all(len(np.unique(target[s])) == len(labels) for s in part)]
    if not parts:
        return PENALTIES[len(PENALTIES) // 2]
    scores = np.empty((len(parts), len(PENALTIES)))
    for row, (own, other) in zip(scores, parts, strict=True):
        known, asked = _turned(train[own], train[other])
        for place, penalty in enumerate(PENALTIES):
            said = bare_regression(penalty).fit(known, target[own]).predict(asked)
            row[place] = balanced_accuracy_score(target[other], said)
    mean = scores.mean(axis=0)
    best = int(mean.argmax())
    error = scores[:, best].std(ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else 0.0
    return PENALTIES[int(np.flatnonzero(mean >= mean[best] - error)[0])]


def linear_classifier(
    features: Features, target: Rows, inverse_penalty: float, classes: int
) -> tuple[Features, Features]:
    """The probe's logistic regression as a layer on features that are not standardised.

    Args:
        features: (N, D).
        target: (N,).
        inverse_penalty: scikit-learn's C.
        classes: how many; one that no frame is of becomes the least probable.

    Returns:
        Weight (classes, D) and bias (classes,).
    """
    scaler, logistic = regression(inverse_penalty).fit(features.astype(np.float64), target)
    slope, start = logistic.coef_, logistic.intercept_
    if len(slope) == 1:
        # of two classes there is one logit, the second's over the first's
        slope, start = (np.concatenate([-part / 2, part / 2]) for part in (slope, start))
    slope = slope / scaler.scale_
    weight = np.zeros((classes, features.shape[1]), np.float32)
    bias = np.full(classes, _ABSENT, np.float32)
    weight[logistic.classes_], bias[logistic.classes_] = slope, start - slope @ scaler.mean_
    return weight, bias
