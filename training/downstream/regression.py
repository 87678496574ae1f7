"""Logistic regression on frozen features, its penalty chosen by other subjects."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm import tqdm

from uscl_zoo.inference import batched, infer
from uscl_zoo.ultrasound.transforms import FrameTransform, create_transform
from uscl_zoo.zoo.card import Input

from ..learning.frames import FrameStore
from .bootstrap import Floats, Task
from .sample import Rows

Features = npt.NDArray[np.float32]


def features(
    model: nn.Module,
    store: FrameStore,
    rows: npt.NDArray[np.int64],
    progress: bool = False,
    shape: Input | None = None,
    grey: bool = False,
) -> npt.NDArray[np.float32]:
    """Embed frames of a store with a frozen network.

    Args:
        model: a timm model; its pooled features are used, whatever its classifier.
        store: frames, resized to what the model takes if they are not already.
        rows: which.
        progress: show a bar.
        shape: what the model takes; None for what it says itself.
        grey: show it their brightness alone.

    Returns:
        float32 (len(rows), num_features).
    """
    transform = (
        create_transform(model)
        if shape is None
        else FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
    )
    bar = tqdm(rows, unit="frame", disable=not progress, leave=False)
    given = (store.frames[row] for row in bar)
    if grey and not store.is_grey:
        given = (np.asarray(Image.fromarray(frame).convert("L").convert("RGB")) for frame in given)
    frames = (
        frame if frame.shape[:2] == transform.size else transform.resize(frame) for frame in given
    )
    return np.concatenate(list(infer(model, transform.normalise, batched(frames, 64))))


#: Inverse penalties a linear classifier may take, strongest first, by half decades: whole ones cost
#: most figures of BUSI a little, 0.008 of AUROC at most (docs/results.md).
PENALTIES: tuple[float, ...] = tuple(10.0 ** (k / 2) for k in range(-12, 1))
#: Those of `uscl probe`, by which cards were measured.
DECADES = PENALTIES[::2]


def fit_predict(
    train: npt.NDArray[np.float32],
    target: npt.NDArray[np.int64],
    test: npt.NDArray[np.float32],
    inverse_penalty: float,
) -> npt.NDArray[np.int64]:
    """Logistic regression on standardised features, classes weighted equally.

    Args:
        train: features to fit on.
        target: their classes.
        test: features to predict.
        inverse_penalty: scikit-learn's C.
    """
    probe = regression(inverse_penalty)
    probe.fit(train.astype(np.float64), target)
    predicted: npt.NDArray[np.int64] = probe.predict(test.astype(np.float64))
    return predicted


def regression(inverse_penalty: float) -> Pipeline:
    """Logistic regression on standardised features, classes weighted equally.

    Args:
        inverse_penalty: scikit-learn's C.
    """
    return make_pipeline(StandardScaler(), bare_regression(inverse_penalty))


def bare_regression(inverse_penalty: float) -> LogisticRegression:
    """`regression` on features that are standardised already."""
    return LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=500)


def cross_fit(task: Task, predictions: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Choose the penalty of each held-out subject on the other held-out subjects.

    The penalty cannot be chosen on the training subjects: USCL has seen their labels, so their
    features are separable at any penalty (cross-validation there says 0.99 and picks the weakest),
    which says nothing of subjects it has not seen. Nor may a subject choose its own.

    Args:
        task: whose held-out frames were predicted.
        predictions: of the held-out frames, one array a penalty, strongest first.

    Returns:
        For each frame the prediction under the penalty that its subject's peers chose, the
        stronger of two that are equally good.
    """
    stack = np.stack(predictions)
    chosen: npt.NDArray[np.int64] = np.empty_like(stack[0])
    for subject in range(len(task.subjects)):
        own = task.test_subject == subject
        hits = stack[:, ~own] == task.test_target[~own]
        among = task.test_target[~own]
        recalls = [hits[:, among == label].mean(axis=1) for label in np.unique(among)]
        best = int(np.mean(recalls, axis=0).argmax())
        chosen[own] = stack[best, own]
    return chosen


#: Logit of a class of which there is nothing to learn.
_ABSENT = -10.0


def linear(
    train: Features, target: Rows, subject: Rows, test: Features, classes: int, seed: int = 0
) -> tuple[Floats, float]:
    """Probabilities by logistic regression, its penalty chosen by training subjects alone.

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
    """The penalty whose probabilities lose least on other subjects, by folds of the subjects.

    By the logarithm of what it gives the right class, averaged over the classes: of a few dozen
    images balanced accuracy says so little that it chose penalties a thousand times too strong
    (docs/results.md).

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
    losses = np.empty((len(parts), len(PENALTIES)))
    for row, (own, other) in zip(losses, parts, strict=True):
        known, asked = _turned(train[own], train[other])
        weight = compute_sample_weight("balanced", target[other])
        # each begins where the one before ended, which is near
        fitted = bare_regression(PENALTIES[0]).set_params(warm_start=True)
        for place, penalty in enumerate(PENALTIES):
            fitted.set_params(C=penalty).fit(known, target[own])
            chances = fitted.predict_proba(asked)
            row[place] = log_loss(target[other], chances, sample_weight=weight, labels=labels)
    return PENALTIES[int(losses.mean(axis=0).argmin())]


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
