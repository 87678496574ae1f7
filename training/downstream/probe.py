"""The linear probe: what a logistic regression reads off frozen features of unseen subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from tqdm import tqdm

from uscl_zoo.card import Input, Metric
from uscl_zoo.errors import DataError
from uscl_zoo.inference import batched, infer
from uscl_zoo.registry import create_model
from uscl_zoo.ultrasound.transforms import FrameTransform, create_transform

from ..frames import FrameStore, Video

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """Frames to fit on and frames to judge on, of different subjects.

    Attributes:
        classes: in the order of the target's integers.
        train: rows of the store.
        test: rows of the store.
        train_target: int64, the class of each row.
        test_target: int64.
        test_subject: int64, an index into `subjects`.
        subjects: the held-out subjects.
    """

    classes: tuple[str, ...]
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    train_target: npt.NDArray[np.int64]
    test_target: npt.NDArray[np.int64]
    test_subject: npt.NDArray[np.int64]
    subjects: tuple[str, ...]


def make_task(store: FrameStore) -> Task:
    """The labelled frames of a store, by its split.

    Raises:
        DataError: if there are no two classes, or one is missing from a side of the split.
    """
    classes = store.labels
    if len(classes) < 2:
        raise DataError(
            f"{store.folder}: a probe tells classes apart, and its labels are "
            f"{', '.join(classes) or 'none'}; prepare it with --label-column or --label-scheme"
        )
    sides = {}
    for split in ("train", "heldout"):
        videos = [video for video in store.select(split) if video.label is not None]
        absent = [label for label in classes if label not in {v.label for v in videos}]
        if not videos or absent:
            raise DataError(
                f"{store.folder}: no {split} video of {', '.join(absent) or 'any class'}; "
                "a probe needs every class on both sides of the split"
            )
        sides[split] = videos
    subjects = tuple(sorted({video.subject for video in sides["heldout"]}))

    def spread(videos: Sequence[Video], value: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.repeat(np.array(value, dtype=np.int64), [video.count for video in videos])

    def rows(videos: Sequence[Video]) -> npt.NDArray[np.int64]:
        return np.concatenate([np.arange(v.first, v.first + v.count) for v in videos])

    train, test = sides["train"], sides["heldout"]
    return Task(
        classes=classes,
        train=rows(train),
        test=rows(test),
        train_target=spread(train, [classes.index(v.label or "") for v in train]),
        test_target=spread(test, [classes.index(v.label or "") for v in test]),
        test_subject=spread(test, [subjects.index(v.subject) for v in test]),
        subjects=subjects,
    )


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


@dataclass(frozen=True)
class Score:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Bootstrap:
    """Resampled held-out subjects, shared by every model so that differences are paired.

    Subjects are drawn with replacement within the classes, as they were held out: an unstratified
    draw would often miss a class of few subjects, where balanced accuracy has no value.

    Attributes:
        task: whose held-out subjects.
        counts: int (resamples + 1, subjects), how often each is drawn; the first row is all ones.
    """

    task: Task
    counts: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, task: Task, resamples: int = 10_000, seed: int = 0) -> Bootstrap:
        """Draw the resamples."""
        subjects = len(task.subjects)
        per_class = np.zeros((subjects, len(task.classes)), dtype=np.int64)
        np.add.at(per_class, (task.test_subject, task.test_target), 1)
        stratum = per_class.argmax(axis=1)
        rng = np.random.default_rng(seed)
        counts = np.zeros((resamples + 1, subjects), dtype=np.int64)
        counts[0] = 1
        for label in np.unique(stratum):
            members = np.flatnonzero(stratum == label)
            share = np.full(len(members), 1 / len(members))
            counts[1:, members] = rng.multinomial(len(members), share, size=resamples)
        return cls(task, counts)

    def balanced_accuracy(self, predicted: npt.NDArray[np.int64]) -> Floats:
        """Balanced accuracy over the frames of each resample, (resamples + 1,)."""
        task = self.task
        shape = (len(task.subjects), len(task.classes))
        right, total = np.zeros(shape), np.zeros(shape)
        where = (task.test_subject, task.test_target)
        np.add.at(total, where, 1)
        np.add.at(right, where, predicted == task.test_target)
        weight = self.counts @ total
        with np.errstate(invalid="ignore"):
            recall = np.where(weight > 0, (self.counts @ right) / weight, np.nan)
        return np.asarray(np.nanmean(recall, axis=1))

    @staticmethod
    def score(values: Floats) -> Score:
        """The figure itself and the percentile interval of its resamples."""
        low, high = np.quantile(values[1:], (0.025, 0.975))
        return Score(float(values[0]), float(low), float(high))


def balanced_accuracies(
    models: Sequence[nn.Module], store: FrameStore, bootstrap: Bootstrap, progress: bool = True
) -> Floats:
    """Probe some networks and average their balanced accuracy, resample by resample."""
    task = bootstrap.task
    values = []
    for model in tqdm(models, unit="network", disable=not progress, leave=False):
        train, test = features(model, store, task.train), features(model, store, task.test)
        predictions = [fit_predict(train, task.train_target, test, c) for c in PENALTIES]
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
    progress: bool = True,
) -> Comparison:
    """Compare a checkpoint with random initialisation of the same code on held-out subjects.

    Args:
        name: of the zoo.
        store: with held-out subjects and labels.
        random_seeds: how many random networks to average.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: show bars.
    """
    task = make_task(store)
    bootstrap = Bootstrap.draw(task, resamples, seed)
    ours = balanced_accuracies([_pretrained(name)], store, bootstrap, progress)
    randoms = [random_network(name, number) for number in range(random_seeds)]
    theirs = balanced_accuracies(randoms, store, bootstrap, progress)
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


def penalty_table(name: str, store: FrameStore, seed: int = 0) -> str:
    """Show what the penalty does to a checkpoint and to one random network.

    Args:
        name: of the zoo.
        store: with held-out subjects and labels.
        seed: of the random network and of the folds.

    Returns:
        A table in Markdown: balanced accuracy by frame in a five-fold cross-validation by subject
        within the training subjects, and on the held-out subjects.
    """
    task = make_task(store)
    bootstrap = Bootstrap.draw(task, resamples=0)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    subject_of_row = np.repeat([v.subject for v in store.videos], [v.count for v in store.videos])
    columns = []
    for model in (_pretrained(name), random_network(name, seed)):
        train, test = features(model, store, task.train), features(model, store, task.test)
        for c in PENALTIES:
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
    half = len(PENALTIES)
    for i, c in enumerate(PENALTIES):
        lines.append(f"| {c:g} | {columns[i]} | {columns[half + i]} |")
    return "\n".join(lines)


def _pretrained(name: str) -> nn.Module:
    return create_model(name, pretrained=True, num_classes=0)


def random_network(name: str, seed: int) -> nn.Module:
    """A network as pretraining starts it, with every residual branch alive."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(name, num_classes=0, zero_init_last=False)
