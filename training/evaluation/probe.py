"""The linear probe: what a logistic regression reads off frozen features of unseen subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from torch import nn
from tqdm import tqdm

from uscl_zoo.checks import seed_of
from uscl_zoo.errors import UnknownModelError
from uscl_zoo.zoo.card import Input, Metric

from ..downstream.bootstrap import Bootstrap, Floats, Score, Task, make_task
from ..downstream.contenders import Contender, contender, random_like
from ..downstream.infold import SETTINGS
from ..downstream.regression import DECADES, cross_fit, features, fit_predict, regression
from ..learning.frames import FrameStore
from ..learning.seal import check_frames


def balanced_accuracies(
    models: Sequence[nn.Module],
    store: FrameStore,
    bootstrap: Bootstrap,
    progress: bool = True,
    shape: Input | None = None,
    grey: bool = False,
) -> Floats:
    """Probe some networks and average their balanced accuracy, resample by resample."""
    task = bootstrap.task
    values = []
    for model in tqdm(models, unit="network", disable=not progress, leave=False):
        train, test = (
            features(model, store, rows, shape=shape, grey=grey) for rows in (task.train, task.test)
        )
        predictions = [fit_predict(train, task.train_target, test, c) for c in DECADES]
        values.append(bootstrap.balanced_accuracy(cross_fit(task, predictions)))
    return np.asarray(np.mean(values, axis=0))


@dataclass(frozen=True)
class Comparison:
    """A model against random initialisation, on one task.

    Attributes:
        model: its name.
        collection: what the store was made of.
        task: frames and subjects.
        pretrained: balanced accuracy of the model.
        random: mean balanced accuracy of randomly initialised networks of its architecture.
        difference: paired, pretrained minus random.
        random_seeds: how many random networks.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    model: str
    collection: str
    task: Task
    pretrained: Score
    random: Score
    difference: Score
    random_seeds: int
    resamples: int
    seed: int

    def __str__(self) -> str:
        task = self.task
        return "\n".join(
            [
                f"{self.collection}: {len(task.test)} frames of {len(task.subjects)} held-out "
                f"subjects, {len(task.classes)} classes ({', '.join(task.classes)})",
                "balanced accuracy by frame, logistic regression on frozen features "
                f"[95 %, bootstrap over subjects, {self.resamples} resamples, seed {self.seed}]",
                f"  {self.model:32} {self.pretrained}",
                f"  {f'random, mean of {self.random_seeds} seeds':32} {self.random}",
                f"  {'difference':32} {self.difference}",
            ]
        )

    def metrics(self, command: str) -> list[Metric]:
        """The three figures as a card holds them."""
        subjects = len(self.task.subjects)
        random = f"random initialisation, mean of {self.random_seeds} seeds"
        rows = (
            ("balanced accuracy", self.pretrained, None, None),
            ("balanced accuracy", self.random, random, None),
            ("balanced accuracy, difference", self.difference, None, random),
        )
        return [
            Metric(
                dataset=f"{self.collection}, {subjects} held-out subjects",
                protocol="logistic regression on frozen features, fitted on the training subjects, "
                "penalty cross-fitted over held-out subjects; weights of the last epoch",
                unit="frame",
                metric=name,
                value=round(score.value, 3),
                interval=(round(score.low, 3), round(score.high, 3)),
                interval_kind=f"95 %, bootstrap over {subjects} held-out subjects within classes",
                compared_with=other,
                command=command,
                model=model,
            )
            for name, score, model, other in rows
        ]


def compare(
    name: str,
    store: FrameStore,
    *,
    random_seeds: int = 3,
    resamples: int = 10_000,
    seed: int = 0,
    clean: bool | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare a checkpoint with random initialisation of the same code on held-out subjects.

    Args:
        name: whatever `network.load` takes.
        store: with held-out subjects and labels.
        random_seeds: how many random networks to average.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        clean: whether it is to be shown cleaned frames; None for as it was made.
        progress: show bars.

    Raises:
        DataError: if the frames of the store are of the other kind, or nobody is held out.
        UnknownModelError: if there is no such model.
    """
    seed = seed_of(seed)
    one = _judged(name, store, clean)
    task = make_task(store)
    bootstrap = Bootstrap.draw(task, resamples, seed)
    network = one.build(0, None)
    randoms = [random_like(network, number) for number in range(random_seeds)]
    ours, theirs = (
        balanced_accuracies(networks, store, bootstrap, progress, one.shape, one.grey)
        for networks in ([network], randoms)
    )
    return Comparison(
        model=name,
        collection=str(store.description["origin"].get("name") or store.folder.name),
        task=task,
        pretrained=bootstrap.score(ours),
        random=bootstrap.score(theirs),
        difference=bootstrap.score(ours - theirs),
        random_seeds=random_seeds,
        resamples=resamples,
        seed=seed,
    )


def penalty_table(name: str, store: FrameStore, seed: int = 0, clean: bool | None = None) -> str:
    """Show what the penalty does to a checkpoint and to one random network.

    Args:
        name: whatever `network.load` takes.
        store: with held-out subjects and labels.
        seed: of the random network and of the folds.
        clean: as for `compare`.

    Returns:
        A table in Markdown: balanced accuracy by frame in a five-fold cross-validation by subject
        within the training subjects, and on the held-out subjects.
    """
    seed = seed_of(seed)
    one = _judged(name, store, clean)
    task = make_task(store)
    bootstrap = Bootstrap.draw(task, resamples=0)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    subject_of_row = np.repeat([v.subject for v in store.videos], [v.count for v in store.videos])
    columns = []
    network = one.build(0, None)
    for model in (network, random_like(network, seed)):
        train, test = (
            features(model, store, rows, shape=one.shape, grey=one.grey)
            for rows in (task.train, task.test)
        )
        for c in DECADES:
            probe = regression(c)
            inner = cross_val_score(
                probe,
                train.astype(np.float64),
                task.train_target,
                groups=subject_of_row[task.train],
                cv=folds,
                scoring="balanced_accuracy",
            ).mean()
            predicted = fit_predict(train, task.train_target, test, c)
            columns.append(f"{inner:.3f} | {bootstrap.balanced_accuracy(predicted)[0]:.3f}")
    lines = [f"| C | {name} inner | held out | random inner | held out |", "|" + " --- |" * 5]
    half = len(DECADES)
    for i, c in enumerate(DECADES):
        lines.append(f"| {c:g} | {columns[i]} | {columns[half + i]} |")
    return "\n".join(lines)


def _judged(name: str, store: FrameStore, clean: bool | None) -> Contender:
    """A model with weights of its own, to be shown the frames of a store."""
    one = contender(name, SETTINGS["reduced"], clean=clean)
    if one.varies:
        raise UnknownModelError(f"{name}: has no weights to be judged by; `uscl evaluate` takes it")
    check_frames(store)
    return one.judged_on(store)
