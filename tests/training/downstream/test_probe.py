from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import SUBJECT
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from uscl_zoo.card import Card, Input
from uscl_zoo.errors import DataError
from uscl_zoo.records import write_yaml
from uscl_zoo.training.downstream import probe
from uscl_zoo.training.downstream.probe import Bootstrap, Task
from uscl_zoo.training.frames import FrameStore
from uscl_zoo.training.labels import Annotation, from_name
from uscl_zoo.training.prepare import Sampling, prepare

Ints = NDArray[np.int64]


def make_task(test_target: list[int], test_subject: list[int]) -> Task:
    subjects = tuple(f"s{i}" for i in range(max(test_subject) + 1))
    none = np.zeros(0, np.int64)
    return Task(
        classes=("a", "b", "c")[: max(test_target) + 1],
        train=none,
        test=np.arange(len(test_target)),
        train_target=none,
        test_target=np.array(test_target),
        test_subject=np.array(test_subject),
        subjects=subjects,
    )


@pytest.fixture
def random_task() -> tuple[Task, Ints]:
    """Nine subjects of three classes with 4 to 12 frames, and guesses."""
    rng = np.random.default_rng(0)
    counts = rng.integers(4, 13, 9)
    subject = np.repeat(np.arange(9), counts)
    task = make_task((subject % 3).tolist(), subject.tolist())
    right = rng.random(len(subject)) < 0.6
    return task, np.where(right, task.test_target, rng.integers(0, 3, len(subject)))


# ------------------------------------------------------------------------------------ the task


def test_a_task_is_the_split_of_the_store(small_store: FrameStore) -> None:
    task = probe.make_task(small_store)
    owner = np.concatenate([[v.name] * v.count for v in small_store.videos])
    by_name = {v.name: v for v in small_store.videos}
    for rows, target, split in (
        (task.train, task.train_target, "train"),
        (task.test, task.test_target, "heldout"),
    ):
        videos = [by_name[name] for name in owner[rows]]
        assert {v.split for v in videos} == {split}
        assert [task.classes[t] for t in target] == [v.label for v in videos]
    assert len(task.train) + len(task.test) == len(small_store.frames)
    subjects = [by_name[name].subject for name in owner[task.test]]
    assert [task.subjects[s] for s in task.test_subject] == subjects
    assert not set(subjects) & {v.subject for v in small_store.select("train")}


@pytest.mark.parametrize(
    ("label", "holdout", "told"),
    [
        ("all", 0.0, "no heldout video of Cov, Pneu, Reg"),
        ("one", 0.3, "its labels are Cov;"),
        ("none", 0.3, "its labels are none;"),
    ],
)
def test_a_store_that_cannot_be_probed(
    clips: Path, tmp_path: Path, label: str, holdout: float, told: str
) -> None:
    def annotate(name: str) -> Annotation:
        found = from_name(name, subject_pattern=SUBJECT)
        keep = label == "all" or (label == "one" and found.label == "Cov")
        return Annotation(found.subject, found.label if keep else None)

    store = prepare(
        [clips],
        tmp_path / "store",
        annotate,
        sampling=Sampling(size=32),
        holdout=holdout,
        workers=1,
        progress=False,
    ).store
    with pytest.raises(DataError, match=f"^{tmp_path / 'store'}: .*{told}"):
        probe.make_task(store)


# -------------------------------------------------------------------------------- the features


def small_model(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    overlay = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model: torch.nn.Module = timm.create_model(
        "resnet18", pretrained_cfg_overlay=overlay, **{"num_classes": 0, **changes}
    )
    return model


def test_features_are_those_of_normalised_frames(small_store: FrameStore) -> None:
    model = small_model()
    rows = np.array([5, 0, 3])
    found = probe.features(model, small_store, rows)
    frames = torch.from_numpy(small_store.frames[rows]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    with torch.no_grad():
        expected = model.eval()((frames - mean[:, None, None]) / std[:, None, None])
    assert found.shape == (3, 512)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_features_do_not_depend_on_batches_classifier_or_mode(small_store: FrameStore) -> None:
    rows = np.arange(len(small_store.frames))
    assert len(rows) > 64  # more than one batch
    whole = probe.features(small_model(), small_store, rows)
    alone = probe.features(small_model(), small_store, rows[-1:])
    classified = small_model(num_classes=7).train()
    classified.load_state_dict(small_model().state_dict(), strict=False)
    assert np.allclose(whole[-1:], alone, atol=1e-4)
    assert np.allclose(whole[:2], probe.features(classified, small_store, rows[:2]), atol=1e-4)


def test_the_network_is_frozen(small_store: FrameStore) -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe.features(model, small_store, np.arange(8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ----------------------------------------------------------------------------------- the probe


def test_a_probe_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], [90, 10])  # weighted equally all the same
    train = rng.normal(size=(100, 5)).astype(np.float32)
    # in units that only standardising makes comparable
    train[:, 2] = 1e-4 * (train[:, 2] + 4 * target)
    assert (probe.fit_predict(train, target, train, 1.0) == target).mean() > 0.9


def test_penalties_grow_weaker() -> None:
    assert list(probe.PENALTIES) == sorted(probe.PENALTIES)


def test_no_subject_chooses_its_own_penalty() -> None:
    """Each subject's frames are predicted by what is best for the others."""
    task = make_task([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5])
    truth = task.test_target
    # the first is right of all but subjects 0 and 1, the second of none but them
    first = np.where(task.test_subject < 2, 1 - truth, truth)
    second = 1 - first
    assert np.array_equal(probe.cross_fit(task, [first, second]), first)
    assert np.array_equal(probe.cross_fit(task, [second, first]), first)


def test_a_subjects_own_frames_do_not_count() -> None:
    task = make_task([0, 0, 0, 1, 1], [0, 0, 0, 1, 2])
    truth = task.test_target
    # best over all frames, and only by those of subject 0
    own = np.where(task.test_subject == 0, truth, 1 - truth)
    chosen = probe.cross_fit(task, [own, 1 - own])
    assert np.array_equal(chosen[:3], (1 - own)[:3])


def test_of_equal_penalties_the_stronger_is_taken(random_task: tuple[Task, Ints]) -> None:
    task, predicted = random_task
    # wrong throughout and as wrong as each other
    first, second = (task.test_target + 1) % 3, (task.test_target + 2) % 3
    assert np.array_equal(probe.cross_fit(task, [first, second]), first)
    assert np.array_equal(probe.cross_fit(task, [predicted]), predicted)


# ------------------------------------------------------------------------------- the bootstrap


def test_the_figure_is_the_balanced_accuracy(random_task: tuple[Task, Ints]) -> None:
    task, predicted = random_task
    values = Bootstrap.draw(task, 50).balanced_accuracy(predicted)
    assert values[0] == pytest.approx(balanced_accuracy_score(task.test_target, predicted))


def test_resamples_are_those_of_drawn_subjects(random_task: tuple[Task, Ints]) -> None:
    task, predicted = random_task
    bootstrap = Bootstrap.draw(task, 50)
    values = bootstrap.balanced_accuracy(predicted)
    for counts, value in zip(bootstrap.counts, values, strict=True):
        frames = np.repeat(np.arange(len(predicted)), counts[task.test_subject])
        expected = balanced_accuracy_score(task.test_target[frames], predicted[frames])
        assert value == pytest.approx(expected)


def test_subjects_are_drawn_within_their_class(random_task: tuple[Task, Ints]) -> None:
    task, _ = random_task
    counts = Bootstrap.draw(task, 500).counts
    assert (counts[0] == 1).all()
    for label in range(3):
        assert (counts[:, label::3].sum(axis=1) == 3).all()
    # every subject is as likely, and with replacement
    assert counts[1:].mean(axis=0) == pytest.approx(np.ones(9), abs=0.15)
    assert counts.max() == 3


def test_the_seed_decides(random_task: tuple[Task, Ints]) -> None:
    task, _ = random_task
    first, again, other = (Bootstrap.draw(task, 20, seed).counts for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_interval_leaves_out_a_fortieth_on_each_side() -> None:
    score = Bootstrap.score(np.concatenate([[0.7], np.linspace(0, 1, 1001)]))
    assert (score.value, score.low, score.high) == pytest.approx((0.7, 0.025, 0.975))
    assert str(score) == "0.700 [0.025, 0.975]"


def test_a_difference_with_oneself_is_nothing(random_task: tuple[Task, Ints]) -> None:
    task, predicted = random_task
    bootstrap = Bootstrap.draw(task, 100)
    values = bootstrap.balanced_accuracy(predicted)
    score = bootstrap.score(values - bootstrap.balanced_accuracy(predicted.copy()))
    assert (score.value, score.low, score.high) == (0, 0, 0)


# ------------------------------------------------------------------------------ the comparison


@pytest.fixture
def small_card(installed: Callable[..., Card], home: Path) -> Card:
    """Random weights that take frames of 32x32."""
    card = installed()
    small = replace(card, input=Input((3, 32, 32), card.input.mean, card.input.std))
    write_yaml(home / ".uscl_zoo" / f"{card.name}.yaml", small)
    return small


def test_a_comparison(small_card: Card, small_store: FrameStore) -> None:
    settings = SimpleNamespace(random_seeds=2, resamples=200, seed=3)
    report = probe.compare(small_card.name, small_store, progress=False, **vars(settings))
    for score in (report.pretrained, report.random, report.difference):
        assert score.low <= score.value <= score.high
    assert report.difference.value == pytest.approx(
        report.pretrained.value - report.random.value, abs=1e-9
    )
    told = str(report)
    assert "3 held-out subjects" in told
    assert "random, mean of 2 seeds" in told
    again = probe.compare(small_card.name, small_store, progress=False, **vars(settings))
    assert str(again) == told
    metrics = report.metrics("uscl probe x")
    assert [metric.value for metric in metrics] == [
        round(s.value, 3) for s in (report.pretrained, report.random, report.difference)
    ]
    assert {metric.command for metric in metrics} == {"uscl probe x"}
    assert {metric.unit for metric in metrics} == {"frame"}
