from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SUBJECT
from sklearn.metrics import balanced_accuracy_score
from tasks import Ints, guessed

from uscl_zoo.errors import DataError
from uscl_zoo.training.downstream import bootstrap
from uscl_zoo.training.downstream.bootstrap import Bootstrap, Task
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.labels import Annotation, from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare


@pytest.fixture
def random_task() -> tuple[Task, Ints]:
    return guessed()


def test_a_task_is_the_split_of_the_store(small_store: FrameStore) -> None:
    task = bootstrap.make_task(small_store)
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
        bootstrap.make_task(store)


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
