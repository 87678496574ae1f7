"""Logistic regression on frozen features, its penalty chosen by other subjects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from uscl_zoo.card import Input
from uscl_zoo.inference import batched, infer
from uscl_zoo.ultrasound.transforms import FrameTransform, create_transform

from ..frames import FrameStore
from .bootstrap import Task

Floats = npt.NDArray[np.float64]


def features(
    model: nn.Module,
    store: FrameStore,
    rows: npt.NDArray[np.int64],
    progress: bool = False,
    shape: Input | None = None,
) -> npt.NDArray[np.float32]:
    """Embed frames of a store with a frozen network.

    Args:
        model: a timm model; its pooled features are used, whatever its classifier.
        store: frames, resized to what the model takes if they are not already.
        rows: which.
        progress: show a bar.
        shape: what the model takes; None for what it says itself.

    Returns:
        float32 (len(rows), num_features).
    """
    transform = (
        create_transform(model)
        if shape is None
        else FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
    )
    bar = tqdm(rows, unit="frame", disable=not progress, leave=False)
    frames = (
        frame if frame.shape[:2] == transform.size else transform.resize(frame)
        for frame in (store.frames[row] for row in bar)
    )
    return np.concatenate(list(infer(model, transform.normalise, batched(frames, 64))))


#: Inverse penalties a probe may take, strongest first.
PENALTIES = tuple(10.0**k for k in range(-6, 1))


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
