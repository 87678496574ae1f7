"""kNN, regression and fine-tuning, on features and frames whose answer is known."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

import uscl_zoo
from uscl_zoo.errors import DataError
from uscl_zoo.training.downstream import regression as regressions
from uscl_zoo.training.downstream.folds import draw_folds
from uscl_zoo.training.downstream.regression import PENALTIES, linear, regression
from uscl_zoo.training.evaluation import protocols
from uscl_zoo.training.evaluation.protocols import Budget, finetuned, knn, quick_figures
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo.card import Input

Features = npt.NDArray[np.float32]
SHAPE = Input((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def blobs(subjects: int, noise: float, seed: int = 0) -> tuple[Features, Any, Any]:
    """Five frames of every subject, three classes in turn, 16 features."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(subjects), 5)
    target = subject % 3
    features = np.eye(16)[target] + noise * rng.standard_normal((len(subject), 16))
    return features.astype(np.float32), target, subject


def test_neighbours_vote_by_similarity() -> None:
    train, target, _ = blobs(9, 0.05)
    test, wanted, _ = blobs(6, 0.05, seed=1)
    said = knn(train, target, test * 7, 3)  # lengths do not matter
    assert said.shape == (30, 3)
    assert (said.argmax(axis=1) == wanted).all()
    assert np.allclose(said.sum(axis=1), 1)


def test_few_frames_are_all_neighbours() -> None:
    train = np.eye(2, dtype=np.float32)
    said = knn(train, np.array([0, 1]), np.array([[1.0, 0.0]], np.float32), 2)
    odds = np.exp(1 / protocols.TEMPERATURE)
    assert said[0, 0] == pytest.approx(odds / (odds + 1))


def test_a_regression_finds_what_there_is() -> None:
    train, target, subject = blobs(18, 0.3)
    test, wanted, _ = blobs(9, 0.3, seed=1)
    said, penalty = linear(train, target, subject, test, 3)
    assert (said.argmax(axis=1) == wanted).mean() > 0.9
    assert penalty in PENALTIES


def test_the_penalty_is_as_weak_as_other_subjects_bear() -> None:
    """What is told apart may be said; what is chance may not, nor is it by a few right guesses."""
    train, target, subject = blobs(18, 0.01)
    assert linear(train, target, subject, train, 3)[1] == PENALTIES[-1]
    noise = np.random.default_rng(0).normal(size=(90, 200)).astype(np.float32)
    said, penalty = linear(noise, np.arange(90) % 3, np.arange(90), noise[:6], 3)
    assert penalty <= 1e-4
    assert np.allclose(said, 1 / 3, atol=0.1)


def test_a_class_nobody_showed_has_no_probability() -> None:
    train, target, subject = blobs(18, 0.3)
    some = target < 2
    said, _ = linear(train[some], target[some], subject[some], train, 3)
    assert (said[:, 2] == 0).all()
    assert np.allclose(said.sum(axis=1), 1)


def test_one_subject_a_class_leaves_nothing_to_choose_by() -> None:
    train, target, subject = blobs(3, 0.1)
    assert linear(train, target, subject, train, 3)[1] == PENALTIES[len(PENALTIES) // 2]


def tune(store: FrameStore, everything: bool, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    folds = draw_folds(store, 3)
    sample, fold = folds.sample(), folds.of_frames()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = uscl_zoo.create_model("resnet18_uscl", num_classes=0)
    before = copy.deepcopy(network.state_dict())
    said, right = finetuned(
        network,
        store.frames,
        sample.take(np.flatnonzero(fold != 0)),
        sample.take(np.flatnonzero(fold == 0)),
        SHAPE,
        3,
        everything=everything,
        budget=Budget(4, 0),
        seed=seed,
        device=torch.device("cpu"),
    )
    return before, network, said, right


def test_the_last_block_is_tuned_and_what_is_frozen_stays(small_store: FrameStore) -> None:
    before, network, said, right = tune(small_store, everything=False)
    assert right.shape == (4,) and said.shape[1] == 3
    changed = {
        name for name, value in network.state_dict().items()
        if name in before and not torch.equal(value, before[name])
    }  # fmt: skip
    assert changed and all(name.startswith("layer4.1.") for name in changed)


def test_the_kept_input_of_the_last_block_gives_the_same_answers(small_store: FrameStore) -> None:
    _, network, said, _ = tune(small_store, everything=False)
    folds = draw_folds(small_store, 3)
    rows = folds.sample().rows[folds.of_frames() == 0]
    images = torch.from_numpy(small_store.frames[rows]).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        whole = network.eval()((images - 0.5) / 0.25).softmax(dim=1)
    assert np.allclose(said, whole.numpy(), atol=1e-4)


def test_everything_is_tuned_where_asked(small_store: FrameStore) -> None:
    before, network, _, _ = tune(small_store, everything=True)
    assert not torch.equal(network.state_dict()["conv1.weight"], before["conv1.weight"])


def test_a_seed_gives_the_same_answers(small_store: FrameStore) -> None:
    first, again, other = (tune(small_store, False, seed)[2] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_test_frames_choose_nothing(small_store: FrameStore) -> None:
    """The answer is the last epoch's, though labels of the test frames are there to choose by."""
    folds = draw_folds(small_store, 3)
    sample, fold = folds.sample(), folds.of_frames()
    test = sample.take(np.flatnonzero(fold == 0))
    liar = dataclasses.replace(test, target=(test.target + 1) % 3)
    said = []
    for asked in (test, liar):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: Any = uscl_zoo.create_model("resnet18_uscl", num_classes=0)
        answers, _ = finetuned(
            network, small_store.frames, sample.take(np.flatnonzero(fold != 0)), asked, SHAPE, 3,
            everything=False, budget=Budget(3, 2), seed=0, device=torch.device("cpu"),
        )  # fmt: skip
        said.append(answers)
    honest, lied = said
    assert np.array_equal(honest, lied)


def test_fewer_frames_than_features_give_the_regression_of_all_features() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.standard_normal((n, 200)).astype(np.float32) for n in (60, 20))
    target = np.arange(60) % 3
    train[np.arange(60), target] += 2
    said, penalty = linear(train, target, np.arange(60), test, 3)
    whole = regression(penalty).fit(train.astype(np.float64), target)
    assert np.allclose(said, whole.predict_proba(test.astype(np.float64)), atol=1e-3)
    # a column a frame, and the lengths of the standardised features
    known, asked = regressions._turned(train, test)
    assert known.shape == (60, 60) and asked.shape == (20, 60)
    assert np.allclose(known @ known.T, regressions._turned(train, train)[1] @ known.T)


def test_quick_figures_are_those_of_the_protocols_over_folds() -> None:
    features, target, subject = blobs(30, 0.6)
    found = quick_figures(features, target, subject, shares=(0.2,), folds=5, repeats=2)
    assert list(found) == ["knn", "linear", "linear 20 %"]
    said = np.zeros((len(target), 3))
    parts = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for train, test in parts.split(features, target, subject):
        assert not set(subject[train]) & set(subject[test])
        said[test] = knn(features[train], target[train], features[test], 3)
    assert found["knn"] == pytest.approx(roc_auc_score(target, said, multi_class="ovr"))
    assert found["linear 20 %"] < found["linear"] <= 1
    shuffled = np.random.default_rng(0).permutation(30)[subject] % 3
    assert quick_figures(features, shuffled, subject, shares=())["linear"] < 0.75


def test_quick_figures_need_a_subject_of_each_class_a_fold() -> None:
    with pytest.raises(DataError, match="class 0 has 3 subjects, too few for 5 folds"):
        quick_figures(*blobs(9, 0.3))
