"""Folds: no subject in two, and every video judged once."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from uscl_zoo.errors import DataError
from uscl_zoo.training.downstream.folds import draw_folds, official_folds, some_subjects
from uscl_zoo.training.learning.frames import FrameStore


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_in_two_folds_and_every_class_in_each(
    small_store: FrameStore, seed: int
) -> None:
    folds = draw_folds(small_store, 3, seed)
    assert len(folds.videos) == 18 and folds.count == 3
    for number in range(3):
        held = folds.held_out(number)
        others = {s for other in range(3) if other != number for s in folds.held_out(other)}
        assert held and not held & others
        labels = {v.label for v, f in zip(folds.videos, folds.fold, strict=True) if f == number}
        assert labels == set(folds.classes)
    assert len(folds.of_frames()) == len(folds.sample()) == len(small_store.frames)


def test_the_seed_decides(small_store: FrameStore) -> None:
    drawn = [draw_folds(small_store, 3, seed).fold.tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_class_of_few_subjects_asks_for_fewer_folds(small_store: FrameStore) -> None:
    with pytest.raises(DataError, match="has 3 subjects, too few for 4 folds"):
        draw_folds(small_store, 4)


def test_official_folds_are_kept_as_they_are(small_store: FrameStore) -> None:
    subjects = sorted({video.subject for video in small_store.videos})
    # numbered from 1, as in published tables
    given = {v.name: 1 + subjects.index(v.subject) // 3 for v in small_store.videos}
    folds = official_folds(small_store, given)
    assert folds.official and folds.count == 3
    assert (folds.fold + 1).tolist() == [given[video.name] for video in folds.videos]


def test_official_folds_that_share_a_subject_are_refused(small_store: FrameStore) -> None:
    given = {video.name: i % 3 for i, video in enumerate(small_store.videos)}
    with pytest.raises(DataError, match="is in two folds"):
        official_folds(small_store, given)
    del given[small_store.videos[4].name]
    with pytest.raises(DataError, match="1 have no official fold"):
        official_folds(small_store, given)


def test_a_fold_must_leave_every_class_to_learn_from(small_store: FrameStore) -> None:
    given = {
        video.name: small_store.labels.index(video.label or "") for video in small_store.videos
    }
    with pytest.raises(DataError, match="without fold 1 there is no Cov to learn from"):
        official_folds(small_store, given)


def test_other_subjects_can_be_held_out(small_store: FrameStore) -> None:
    chosen = {small_store.videos[0].subject, small_store.videos[-1].subject}
    other = small_store.holding_out(chosen)
    assert {video.subject for video in other.select("heldout")} == chosen
    assert [dataclasses.replace(v, split="train") for v in other.videos] == [
        dataclasses.replace(v, split="train") for v in small_store.videos
    ]
    assert np.shares_memory(other.frames, small_store.frames)
    digests = {s.digest for s in (small_store, other, small_store.holding_out(set()))}
    assert len(digests) == 3
    with pytest.raises(DataError, match="no such subject: nobody"):
        small_store.holding_out({"nobody"})


def test_subjects_of_a_smaller_share_are_among_those_of_a_larger() -> None:
    subject = np.repeat(np.arange(40), 3)
    target = subject % 3
    some = [set(some_subjects(target, subject, share, (0, 1))) for share in (0.01, 0.25, 0.5, 1)]
    assert all(small <= large for small, large in itertools.pairwise(some))
    assert {one % 3 for one in some[0]} == {0, 1, 2} and len(some[0]) == 3
    assert some[3] == set(range(40))
    assert some[1] != set(some_subjects(target, subject, 0.25, (1, 1)))
