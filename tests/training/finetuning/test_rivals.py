"""Linear heads on frozen features: of the same subjects, by the same clips, in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch

from uscl_zoo.training.downstream.bootstrap import Bootstrap, Task
from uscl_zoo.training.downstream.collection import split
from uscl_zoo.training.downstream.goal import Classes
from uscl_zoo.training.downstream.metrics import Judged
from uscl_zoo.training.downstream.regression import features, linear
from uscl_zoo.training.downstream.sample import Sample
from uscl_zoo.training.finetuning.rivals import MOST, OWN, Standing, compare, frames_of
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo.card import Card, Input


@pytest.fixture(scope="module")
def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model("resnet18", num_classes=0, zero_init_last=False)


def beside(
    store: FrameStore, network: Any, names: list[str], pairs: list[tuple[Sample, Sample]]
) -> Standing:
    """The rivals of a network that gives every clip the same chances."""
    tests = [test for _, test in pairs]
    clip, at = np.unique(np.concatenate([t.clip for t in tests]), return_index=True)
    target, subject = (
        np.concatenate([getattr(t, name) for t in tests])[at] for name in ("target", "subject")
    )
    every = np.ones(len(clip), bool)
    flat = np.full((len(clip), len(store.labels)), 1 / len(store.labels))
    judged = Judged("clip", store.labels, flat, target, subject, every, ~every)
    people = tuple(map(str, range(subject.max() + 1)))
    task = Task(store.labels, clip, clip, target, target, subject, people)
    shape = Input((3, *store.frames.shape[1:3]), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    where = torch.device("cpu"), "float32", 0
    drawn = Bootstrap.draw(task, 50)
    return compare(names, network, Classes(), store.frames, pairs, judged, drawn, shape, *where)


def test_a_head_is_the_regression_on_frozen_features(
    small_store: FrameStore, network: Any, installed: Callable[[], Card]
) -> None:
    parts = split(small_store)
    train, test = (Sample.of(side, small_store.labels) for side in (parts.train, parts.held_out))
    names = [OWN, "random:resnet18", "resnet18_uscl.lost"]
    standing = beside(small_store, network, names, [(train, test)])
    own, random = standing.rivals
    assert (own.name, random.name) == tuple(names[:2])
    # weights that cannot be had cost the comparison with them, and nothing else
    assert len(standing.absent) == 1 and standing.absent[0].startswith("resnet18_uscl.lost: ")
    ((kept, asked),), _ = frames_of([(train, test)])
    shape = Input((3, *small_store.frames.shape[1:3]), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    known, other = (features(network, small_store, p.rows, shape=shape) for p in (kept, asked))
    chances, _ = linear(known, kept.target, kept.subject, other, len(small_store.labels))
    mean = [chances[asked.clip == i].mean(axis=0) for i in range(len(parts.held_out))]
    np.testing.assert_allclose(own.judged.probabilities, mean, atol=1e-4)
    # the network that says nothing is behind it by all that it says
    for name, score in own.gap.items():
        assert score.value == pytest.approx(standing.values[name][0] - own.values[name][0])
    assert own.gap["macro AUROC"].value < 0
    assert set(standing.learns) == set(own.values)


def test_every_fold_has_a_head_of_its_own(small_store: FrameStore, network: Any) -> None:
    sample = Sample.of(small_store.videos, small_store.labels)
    odd = sample.subject % 2 == 1
    sides = np.flatnonzero(odd), np.flatnonzero(~odd)
    pairs = [(sample.take(own), sample.take(other)) for own, other in (sides, sides[::-1])]
    standing = beside(small_store, network, [OWN], pairs)
    assert len(standing.rivals[0].judged) == len(small_store.videos)
    np.testing.assert_allclose(standing.rivals[0].judged.probabilities.sum(axis=1), 1)


def test_of_many_frames_some_are_taken() -> None:
    clip = np.repeat(np.arange(2000), 6)
    sample = Sample(np.arange(len(clip)), clip % 2, clip, clip)
    ((train, test),), rows = frames_of([(sample, sample.take(np.arange(12)))])
    assert len(train) == MOST and len(test) == 8
    assert set(rows) == {*train.rows, *test.rows}
