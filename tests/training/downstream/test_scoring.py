"""From probabilities to figures: units, intervals, and corrected comparisons."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from uscl_zoo.training.downstream.folds import Folds, draw_folds
from uscl_zoo.training.downstream.scoring import (
    COMPARED,
    bootstrap_of,
    differences,
    figures,
    holm,
    two_sided,
    units,
)
from uscl_zoo.training.learning.frames import FrameStore


@pytest.fixture(scope="module")
def folds(small_store: FrameStore) -> Folds:
    return draw_folds(small_store, 3)


def answers(folds: Folds, wrong: float, seed: int = 0) -> np.ndarray:
    """Certain answers, a share of them wrong."""
    target = folds.sample().target
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(len(target)) < wrong, (target + 1) % 3, target)
    return np.asarray(np.eye(3)[said])


def test_clips_and_subjects_are_means(folds: Folds) -> None:
    sample = folds.sample()
    said = np.random.default_rng(0).dirichlet(np.ones(3), len(sample))
    frame, clip, subject = units(said, folds)
    assert [len(unit) for unit in (frame, clip, subject)] == [len(sample), 18, 9]
    for number in range(18):
        own = sample.clip == number
        assert clip.probabilities[number] == pytest.approx(said[own].mean(axis=0))
        assert clip.target[number] == sample.target[own][0]
    for number in range(9):
        own = clip.subject == number
        assert subject.probabilities[number] == pytest.approx(clip.probabilities[own].mean(axis=0))


def test_a_subject_of_two_classes_is_no_subject(folds: Folds) -> None:
    first = folds.videos[0]
    other = next(label for label in folds.classes if label != first.label)
    videos = (dataclasses.replace(first, label=other), *folds.videos[1:])
    mixed = dataclasses.replace(folds, videos=videos)
    subject = units(answers(mixed, 0.0), mixed)[2]
    assert len(subject) == 8
    # those that are left keep their own number, by which they are resampled
    assert set(subject.subject) == set(range(9)) - {mixed.sample().subject[0]}


def test_seeds_are_averaged_and_their_spread_is_told(folds: Folds) -> None:
    bootstrap = bootstrap_of(folds, 200, 0)
    said = np.stack([answers(folds, 0.0), answers(folds, 0.5)])
    both, good, bad = (figures(part, folds, bootstrap)[0] for part in (said, said[:1], said[1:]))
    name = "balanced accuracy"
    points = [one.scores[name].value for one in (good, bad)]
    assert both.scores[name].value == pytest.approx(np.mean(points))
    assert both.spread[name] == pytest.approx(np.std(points, ddof=1))
    assert np.isnan(good.spread[name])
    assert good.scores[name].value == good.scores[name].low == 1
    assert bad.scores[name].low < bad.scores[name].value < bad.scores[name].high
    assert "share answered" not in both.scores


def test_models_are_compared_on_the_same_resamples(folds: Folds) -> None:
    bootstrap = bootstrap_of(folds, 500, 0)
    compared = {
        name: figures(answers(folds, wrong)[None], folds, bootstrap)[0]
        for name, wrong in (("right", 0.0), ("half", 0.5), ("same", 0.5))
    }
    every = differences({1.0: compared})
    assert {one.metric for one in every} == set(COMPARED)
    found = {(one.first, one.second): one for one in every if one.metric == COMPARED[0]}
    assert set(found) == {("right", "half"), ("right", "same"), ("half", "same")}
    clear, none = found["right", "half"], found["half", "same"]
    assert clear.difference.low > 0 and clear.p == pytest.approx(2 / 501)
    assert clear.corrected == pytest.approx(3 * 2 / 501)
    assert none.difference.value == 0 and none.p == none.corrected == 1


def test_one_model_is_compared_with_all_others_at_every_share(folds: Folds) -> None:
    bootstrap = bootstrap_of(folds, 200, 0)
    good, bad = (figures(answers(folds, wrong)[None], folds, bootstrap)[0] for wrong in (0.0, 0.5))
    given = {0.1: {"ours": bad, "in18": bad}, 1.0: {"ours": good, "in18": bad}}
    found = [one for one in differences(given, "in18") if one.metric == "macro AUROC"]
    assert [(one.share, one.first, one.second) for one in found] == [
        (0.1, "ours", "in18"),
        (1.0, "ours", "in18"),
    ]
    assert found[0].difference.value == 0
    gap = good.scores["macro AUROC"].value - bad.scores["macro AUROC"].value
    assert found[1].difference.value == pytest.approx(gap) and gap > 0
    # corrected for both shares
    assert found[1].corrected == pytest.approx(min(2 * found[1].p, 1))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_counts_the_smaller_tail_twice() -> None:
    # the first is the figure itself
    assert two_sided(np.array([9.0, *np.linspace(-1, 9, 99)])) == pytest.approx(2 * 11 / 100, 0.1)
    assert two_sided(np.array([0.0, *np.zeros(99)])) == 1
