"""Ways to read classes off a backbone, each giving probabilities for frames it was not shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import StratifiedGroupKFold

from uscl_zoo.answers import softmax
from uscl_zoo.errors import DataError
from uscl_zoo.zoo.card import Input

from ..downstream.bootstrap import Floats
from ..downstream.folds import some_subjects
from ..downstream.metrics import auroc
from ..downstream.regression import Features, linear
from ..downstream.sample import Rows, Sample
from ..downstream.settings import PAPER
from ..finetuning.tuning import Tuner

#: Protocols by name, and what a reader of a table should know of each.
PROTOCOLS = {
    "knn": "20 nearest training frames by cosine similarity, weighted exp(similarity / 0.07)",
    "linear": "logistic regression on standardised frozen features, classes weighted equally; the "
    "penalty of the least log loss, to half a decade, in a cross-validation by subject within the "
    "training folds",
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
        similar = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        weight = np.exp((similar - similar.max(axis=1, keepdims=True)) / TEMPERATURE)
        place = np.arange(len(similar))[:, None] + start
        np.add.at(votes, (place, target[nearest]), weight)
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


def _unit(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))


def quick_figures(
    features: Features,
    target: Rows,
    group: Rows,
    *,
    shares: Sequence[float] = (0.1,),
    folds: int = 5,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, float]:
    """Macro AUROC of frozen features, to choose between backbones by, in seconds.

    The protocols and the draws of folds and subjects are those of `uscl evaluate`; there are no
    intervals.

    Args:
        features: float32 (N, D), a row an image.
        target: int64 (N,), its class, from 0.
        group: int64 (N,), its subject; none is on two sides of a fold.
        shares: of the training subjects, for the linear protocol besides all of them.
        folds: how many; each image is judged once.
        repeats: draws of a share's subjects, over which the mean is taken.
        seed: of the folds.

    Returns:
        By `knn`, `linear`, and for each share e.g. `linear 10 %`.

    Raises:
        DataError: if a class has fewer subjects than there are folds.
    """
    classes = int(target.max()) + 1
    for label in range(classes):
        count = len(np.unique(group[target == label]))
        if count < folds:
            raise DataError(f"class {label} has {count} subjects, too few for {folds} folds")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(splitter.split(features, target, group))

    def figure(fit: Callable[[int, Rows, Rows], Floats]) -> float:
        said = np.zeros((len(target), classes))
        for fold, (train, test) in enumerate(parts):
            said[test] = fit(fold, train, test)
        one = np.ones((1, len(target)))
        return float(np.mean([auroc(said[:, k], target == k, one)[0] for k in range(classes)]))

    def thinned(share: float, repeat: int) -> Callable[[int, Rows, Rows], Floats]:
        def fit(fold: int, train: Rows, test: Rows) -> Floats:
            some = some_subjects(target[train], group[train], share, (repeat, fold))
            own = train[np.isin(group[train], some)]
            return linear(features[own], target[own], group[own], features[test], classes)[0]

        return fit

    judged = {
        "knn": figure(
            lambda _, own, test: knn(features[own], target[own], features[test], classes)
        ),
        "linear": figure(thinned(1.0, 0)),
    }
    for share in shares:
        values = [figure(thinned(share, repeat)) for repeat in range(repeats)]
        judged[f"linear {share:.0%}".replace("%", " %")] = float(np.mean(values))
    return judged


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
    tuner = Tuner(network, frames, train, settings, device, shape.mean, shape.std)
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
