"""Ways to read classes off a backbone, each giving probabilities for frames it was not shown."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from threadpoolctl import threadpool_limits

from uscl_zoo.card import Input
from uscl_zoo.prediction import softmax

from .probe import PENALTIES, Floats, regression
from .tuning import PAPER, Sample, Tuner

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

#: Protocols by name, and what a reader of a table should know of each.
PROTOCOLS = {
    "knn": "20 nearest training frames by cosine similarity, weighted exp(similarity / 0.07)",
    "linear": "logistic regression on standardised frozen features, classes weighted equally; the "
    "strongest penalty within one standard error of the best, in a cross-validation by subject "
    "within the training folds",
    "finetune-last": "last residual block and a new classifier, the rest frozen, batch-norm "
    "statistics of it included; Adam 0.01, weight decay 1e-4, cosine, batch 32, crop and flip; the "
    "last epoch",
    "finetune": "everything and a new classifier; Adam 0.0003, weight decay 1e-4, cosine, batch "
    "32, crop and flip; the last epoch",
}
NEIGHBOURS, TEMPERATURE = 20, 0.07


def knn(train: Features, target: Rows, test: Features, classes: int) -> Floats:
    """Probabilities by weighted votes of the nearest training frames (Wu et al., CVPR 2018).

    Args:
        train: (N, D).
        target: (N,).
        test: (M, D).
        classes: how many.

    Returns:
        (M, classes).
    """
    bank, asked = _unit(train), _unit(test)
    near = min(NEIGHBOURS, len(bank))
    votes = np.zeros((len(asked), classes))
    # in pieces, so that memory grows with the frames and not with their square
    for start in range(0, len(asked), 1024):
        similarity = asked[start : start + 1024] @ bank.T
        nearest = np.argpartition(-similarity, near - 1, axis=1)[:, :near]
        found = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        weight = np.exp((found - found.max(axis=1, keepdims=True)) / TEMPERATURE)
        place = np.arange(len(found))[:, None] + start
        np.add.at(votes, (place, target[nearest]), weight)
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


def _unit(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))


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
        chosen = _penalty(train, target, subject, seed)
        fitted = regression(chosen).fit(train, target)
        # of a class that no training subject has nothing can be said
        probabilities[:, fitted.classes_] = fitted.predict_proba(test)
    return probabilities, chosen


def _penalty(train: Features, target: Rows, subject: Rows, seed: int) -> float:
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
    scores = np.array(
        [
            cross_val_score(regression(c), train, target, cv=parts, scoring="balanced_accuracy")
            for c in PENALTIES
        ]
    ).T
    mean = scores.mean(axis=0)
    best = int(mean.argmax())
    error = scores[:, best].std(ddof=1) / np.sqrt(len(parts)) if len(parts) > 1 else 0.0
    return PENALTIES[int(np.flatnonzero(mean >= mean[best] - error)[0])]


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long fine-tuning may take.

    Attributes:
        epochs: passes.
        frames_per_clip: frames of a clip an epoch, 0 for all.
    """

    epochs: int
    frames_per_clip: int


#: Of the settings of `infold`: the paper's, and one that two cores can do.
BUDGETS = {"reduced": Budget(20, 4), "full": Budget(PAPER.epochs, PAPER.frames_per_clip)}


def finetuned(
    network: Any,
    frames: npt.NDArray[np.uint8],
    train: Sample,
    test: Sample,
    shape: Input,
    classes: int,
    *,
    everything: bool,
    budget: Budget,
    seed: int,
    device: torch.device,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Floats, Floats]:
    """Fine-tune by the paper's protocol and look at the test frames after every epoch.

    Args:
        network: a timm model; it is changed.
        frames: uint8 (F, H, W, 3), of the store.
        train: to train on.
        test: to be judged; nothing is chosen by it.
        shape: of the input.
        classes: how many.
        everything: train all of it; otherwise the last residual block and the classifier.
        budget: epochs and frames.
        seed: of the classifier and every draw.
        device: to compute on.
        tick: called after every epoch.

    Returns:
        Probabilities of the test frames after the last epoch, (M, classes), and the share of right
        ones after each epoch, (epochs,).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.reset_classifier(classes)
    settings = dataclasses.replace(
        PAPER,
        train="all" if everything else "last",
        # what the paper takes for one block would undo all of a network
        learning_rate=3e-4 if everything else PAPER.learning_rate,
        epochs=budget.epochs,
        frames_per_clip=budget.frames_per_clip,
        seed=seed,
    )
    tuner = Tuner(network, frames, train, None, settings, device, shape.mean, shape.std)
    look = tuner.logits if everything else _watch(network, tuner, test.rows)
    right = []
    logits = np.zeros((len(test), classes), np.float32)
    while not tuner.finished:
        while tuner.progress.step < tuner.steps:
            tuner.step()
        tuner.close_epoch()
        logits = look(test.rows)
        right.append(float((logits.argmax(axis=1) == test.target).mean()))
        tick()
    return np.asarray(softmax(logits, 1), dtype=np.float64), np.array(right)


def _watch(network: Any, tuner: Tuner, rows: Rows) -> Callable[[Rows], Features]:
    """Logits of the same frames again and again, of which the last block alone has to be run.

    What comes before it is frozen, and the frames are not augmented: the block's input is kept.
    """
    block = network.layer4[-1]
    kept: list[torch.Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, given: kept.append(given[0].cpu()))
    tuner.logits(rows)
    hook.remove()

    @torch.inference_mode()
    def look(_: Rows) -> Features:
        network.eval()
        parts = [network.forward_head(block(part.to(tuner.device))).float().cpu() for part in kept]
        return np.asarray(torch.cat(parts).numpy())

    return look
