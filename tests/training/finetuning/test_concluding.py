"""The verdict on a fine-tuned model: what is said first, and no interval that there cannot be."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from uscl_zoo.training.downstream.bootstrap import LEAST, Bootstrap, Floats, Task
from uscl_zoo.training.downstream.goal import Classes
from uscl_zoo.training.downstream.metrics import Judged, compared, resampled
from uscl_zoo.training.finetuning import concluding
from uscl_zoo.training.finetuning.rivals import IMAGENET, OWN, Rival, Standing, heads
from uscl_zoo.training.learning.frames import FrameStore

GOAL = Classes()


def answering(right: float, subjects: int = 60, seed: int = 0) -> tuple[Judged, Bootstrap]:
    """A clip a subject of two classes, with a share of them told right."""
    rng = np.random.default_rng(seed)
    target = np.arange(subjects) % 2
    said = np.where(rng.random(subjects) < right, target, 1 - target)
    chances = np.where(said[:, None] == [0, 1], 0.7, 0.3) + rng.normal(0, 0.05, (subjects, 1))
    rows, every = np.arange(subjects), np.ones(subjects, bool)
    names = tuple(map(str, rows))
    task = Task(("benign", "malignant"), rows, rows, target, target, rows, names)
    judged = Judged("clip", task.classes, chances, target, rows, every, ~every)
    return judged, Bootstrap.draw(task, 200)


def beside(own: float, head: float, subjects: int = 60) -> Standing:
    judged, bootstrap = answering(own, subjects)
    values = compared(judged, bootstrap)

    def rival(name: str, right: float, seed: int) -> Rival:
        other, _ = answering(right, subjects, seed)
        theirs = compared(other, bootstrap)
        ahead = {k: GOAL.score(k, values[k] - theirs[k], judged) for k in values}
        return Rival(name, other, theirs, ahead)

    rivals = rival(OWN, head, 1), rival(IMAGENET, 0.5, 2)
    return Standing(GOAL, judged, values, rivals, {})


def said(standing: Standing) -> str:
    return concluding.verdict(standing, len(standing.judged), "subjects", "held-out")


def test_what_is_compared_are_the_figures_of_the_report() -> None:
    judged, bootstrap = answering(0.8)
    every = resampled(judged, bootstrap)
    for name, values in compared(judged, bootstrap).items():
        np.testing.assert_allclose(values, every[name], err_msg=name)


def test_training_that_did_not_beat_a_linear_head_is_said_at_once() -> None:
    assert said(beside(0.8, 0.8)).startswith("Training did not beat a linear head on the same ")
    assert said(beside(0.6, 0.97)).startswith("Training is worse than a linear head")
    ahead = said(beside(0.97, 0.6))
    assert ahead.startswith("Of 60 held-out subjects, benign and malignant are told apart")
    assert "training was worth its while" in ahead
    # one sentence, with what it is compared with and for whom it is not
    for told in (ahead, said(beside(0.8, 0.8))):
        assert told.endswith(".") and ". " not in told
        assert "ImageNet's features 0." in told and "it is worst at" in told


def test_few_subjects_give_no_interval() -> None:
    for each in (1, 2, LEAST - 1, LEAST):
        judged, bootstrap = answering(0.7, 2 * each, seed=5)
        figures = GOAL.measure(judged, bootstrap)
        bounded = {name for name, score in figures.items() if score.bounded}
        assert ("balanced accuracy" in bounded) == (each == LEAST), each
        assert "[" not in str(figures["recall of benign"]) or each == LEAST
    assert "cannot say" in said(beside(0.9, 0.5, subjects=4))


def test_subjects_that_all_agree_give_none_either() -> None:
    judged, bootstrap = answering(1.0)
    figures = GOAL.measure(judged, bootstrap)
    assert str(figures["accuracy"]) == str(figures["macro AUROC"]) == "1.000"
    assert "no class is missed" in said(beside(1.0, 0.6))
    # nor does their difference have one, and it is none
    assert said(beside(1.0, 1.0)).startswith("Training did not beat a linear head")


def test_a_class_at_which_the_head_is_better_is_said_though_training_won() -> None:
    standing = beside(0.97, 0.6)
    assert "that head" not in said(standing)
    own, other = standing.rivals
    lost: Floats = np.linspace(-0.3, -0.2, 201)
    gap = GOAL.score("recall of benign", lost, standing.judged)
    behind = dataclasses.replace(own, gap=own.gap | {"recall of benign": gap})
    text = said(dataclasses.replace(standing, rivals=(behind, other)))
    assert "training was worth its while" in text
    assert re.search(r"; of benign that head recognises 0\.\d+, difference -0\.300 \[", text)


def test_a_linear_head_is_not_compared_with_itself() -> None:
    standing = beside(0.8, 0.8)
    alone = dataclasses.replace(standing, rivals=standing.rivals[1:])
    assert said(alone).startswith("This is a linear head")
    assert heads("resnet18_uscl.open", "resnet18", trained=False)[0] == IMAGENET
    assert IMAGENET not in heads(IMAGENET, "resnet18", trained=True)


@pytest.mark.parametrize(
    ("mean", "told"), [(0.1, "collect more"), (0.0, "bring little"), (0.03, "does not say")]
)
def test_more_subjects_are_asked_for_where_the_last_ones_helped(mean: float, told: str) -> None:
    standing = beside(0.8, 0.8)
    spread = 0.1 if mean == 0.03 else 0.001
    gain: Floats = mean + spread * np.random.default_rng(0).normal(size=201)
    learns = {"macro AUROC": GOAL.score("macro AUROC", gain, standing.judged)}
    standing = dataclasses.replace(standing, learns=learns)
    (advice,) = concluding.more_subjects(standing, 40, "subjects")
    assert told in advice.text and "From 20 to 40 training subjects" in advice.text
    # who judged by all subjects has no more to judge by
    (crossed,) = concluding.more_subjects(standing, 40, "subjects", crossed=True)
    assert "`folds`" not in crossed.text and told in crossed.text


def test_errors_are_counted_most_frequent_first() -> None:
    standing = beside(0.7, 0.7)
    judged = standing.judged
    (advice,) = concluding.errors(standing)
    missed = np.bincount(judged.target[judged.predicted != judged.target])
    assert advice.text.startswith(f"{missed.max()} of 30 {judged.classes[missed.argmax()]} files")
    assert concluding.errors(beside(1.0, 0.7)) == []


def test_one_picture_of_two_subjects_is_found(small_store: FrameStore) -> None:
    first, *others = small_store.videos
    assert concluding.twins(small_store, others, [first]) == []
    copy = dataclasses.replace(first, name="copy", subject="another", label="other")
    (advice,) = concluding.twins(small_store, [*others, copy], [first])
    assert advice.text.startswith("1 pairs of files of different subjects")
    assert "1 of them with different labels, 1 with one trained on" in advice.text
    assert "copy" in advice.text and advice.text.endswith("too good.")
    # on one side they make no figure better
    (advice,) = concluding.twins(small_store, [first, copy], others)
    assert advice.text.endswith("lists all.")
