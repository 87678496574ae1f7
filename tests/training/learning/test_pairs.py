from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import beta, chisquare, kstest  # type: ignore[import-untyped]

from uscl_zoo.training.learning.frames import Video
from uscl_zoo.training.learning.pairs import (
    Purpose,
    draw_batches,
    draw_items,
    draw_labelled,
    draw_pairs,
    draw_videos,
    stream,
)
from uscl_zoo.training.learning.recipe import Recipe, replace

RECIPE = Recipe(seed=7)


def videos(*counts: int, labels: tuple[str | None, ...] = ()) -> list[Video]:
    first = np.cumsum([10, *counts])
    return [
        Video(
            name=f"v{i}",
            subject=f"s{i}",
            label=labels[i % len(labels)] if labels else None,
            split="train",
            source="",
            licence=None,
            first=int(first[i]),
            count=count,
        )
        for i, count in enumerate(counts)
    ]


def test_three_distinct_frames_of_the_video() -> None:
    given = videos(*range(3, 40))
    for epoch in range(20):
        frames = draw_pairs(given, RECIPE, epoch).frames
        for video, rows in zip(given, frames, strict=True):
            assert len(set(rows)) == 3
            assert set(rows) <= set(range(video.first, video.first + video.count))


def test_every_order_of_three_frames_is_as_likely() -> None:
    frames = draw_pairs(videos(*[3] * 6000), RECIPE, 0).frames
    orders = (frames - frames.min(axis=1, keepdims=True)) @ np.array([9, 3, 1])
    _, counts = np.unique(orders, return_counts=True)
    assert len(counts) == 6
    assert chisquare(counts).pvalue > 1e-3


def test_every_frame_is_as_likely_in_every_place() -> None:
    given = videos(*[7] * 7000)
    frames = draw_pairs(given, RECIPE, 0).frames - np.array([[v.first] for v in given])
    for place in range(3):
        assert chisquare(np.bincount(frames[:, place], minlength=7)).pvalue > 1e-3


def test_two_frames_are_the_pair_and_nothing_is_mixed() -> None:
    for epoch in range(10):
        pairs = draw_pairs(videos(2, 2, 2), RECIPE, epoch)
        for row, first in zip(pairs.frames, (10, 12, 14), strict=True):
            assert {row[0], row[2]} == {first, first + 1}
            assert row[1] in row[[0, 2]]
        assert pairs.lam.tolist() == [[1, 1]] * 3


def test_one_frame_is_paired_with_itself() -> None:
    pairs = draw_pairs(videos(1, 1), RECIPE, 0)
    assert pairs.frames.tolist() == [[10] * 3, [11] * 3]
    assert pairs.lam.tolist() == [[1, 1]] * 2


@pytest.mark.parametrize("lambdas", [1, 2])
@pytest.mark.parametrize("parameter", [0.5, 2.0])
def test_lambda_is_beta_distributed(parameter: float, lambdas: int) -> None:
    recipe = replace(RECIPE, beta=parameter, lambdas=lambdas)
    lam = draw_pairs(videos(*[5] * 5000), recipe, 0).lam
    assert lam.dtype == np.float32
    assert lam.shape == (5000, 2)
    for view in lam.T:
        assert kstest(view, beta(parameter, parameter).cdf).pvalue > 1e-3


def test_one_lambda_is_both_views_and_two_are_independent() -> None:
    given = videos(*[5] * 5000)
    one, two = (draw_pairs(given, replace(RECIPE, lambdas=count), 0) for count in (1, 2))
    assert np.array_equal(one.lam[:, 0], one.lam[:, 1])
    assert abs(np.corrcoef(*two.lam.T)[0, 1]) < 0.05
    # the second draw changes neither the frames nor the first
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.lam[:, 0], two.lam[:, 0])


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize(
    "method", ["pair", "supervised", "simclr", "moco", "pi", "temporal", "fixmatch"]
)
def test_methods_to_compare_with_see_fewer_of_the_same_frames(method: str, count: int) -> None:
    given = videos(*[count] * 200)
    uscl = draw_pairs(given, RECIPE, 3)
    other = draw_pairs(given, dataclasses.replace(RECIPE, method=method), 3)
    seen = (
        uscl.frames[:, [0, 0]] if method not in ("pair", "supervised") else uscl.frames[:, [0, 2]]
    )
    assert np.array_equal(other.frames[:, [0, 2]], seen)
    assert (other.lam == 1).all()
    assert (uscl.lam < 1).any() == (count >= 3)


@pytest.mark.parametrize(
    "method", ["pair", "supervised", "simclr", "moco", "pi", "temporal", "fixmatch"]
)
def test_held_out_videos_are_paired_alike_for_every_method(method: str) -> None:
    given = videos(*range(1, 40))
    uscl = draw_pairs(given, RECIPE, 0, validation=True)
    other = draw_pairs(given, dataclasses.replace(RECIPE, method=method), 0, validation=True)
    assert np.array_equal(uscl.frames, other.frames)
    assert np.array_equal(uscl.lam, other.lam)


@pytest.mark.parametrize("change", [{"epoch": 1}, {"seed": 8}, {"validation": True}])
def test_draws_are_keyed(change: dict[str, int]) -> None:
    given = videos(*range(1, 60))
    # whatever one asked before, and however large the batches are
    before = draw_pairs(given, RECIPE, 0)
    draw_pairs(given, RECIPE, 5)
    again = draw_pairs(given, replace(RECIPE, batch_size=4), 0)
    assert np.array_equal(before.frames, again.frames)
    assert np.array_equal(before.lam, again.lam)
    recipe = replace(RECIPE, seed=change.get("seed", RECIPE.seed))
    validation = bool(change.get("validation"))
    other = draw_pairs(given, recipe, change.get("epoch", 0), validation)
    assert not np.array_equal(before.frames, other.frames)
    assert not np.array_equal(before.lam, other.lam)


def test_streams_are_different_and_begin_anew() -> None:
    drawn = {
        (epoch, purpose): stream(3, epoch, purpose).random()
        for epoch in (0, 1)
        for purpose in Purpose
    }
    assert len(set(drawn.values())) == 2 * len(Purpose)
    assert stream(3, 1, Purpose.PAIRS).random() == drawn[1, Purpose.PAIRS]


@pytest.mark.parametrize(
    ("count", "batch", "smallest", "sizes"),
    [
        (64, 32, 8, [32, 32]),
        (72, 32, 8, [32, 32, 8]),
        (71, 32, 8, [32, 39]),
        (32, 32, 8, [32]),
        (33, 32, 8, [33]),
        (5, 2, 2, [2, 3]),
        (8, 4, 8, [4, 4]),
        (7, 4, 8, [7]),
    ],
)
def test_batches(count: int, batch: int, smallest: int, sizes: list[int]) -> None:
    recipe = replace(RECIPE, batch_size=batch, smallest_batch=smallest)
    for epoch in range(3):
        batches = draw_batches(count, recipe, epoch)
        assert [len(b) for b in batches] == sizes
        assert sorted(np.concatenate(batches)) == list(range(count))


@pytest.mark.parametrize(("rate", "used"), [(0.0, 0), (0.1, 4), (0.5, 20), (1.0, 40)])
def test_data_rate_is_a_share_of_the_videos(rate: float, used: int) -> None:
    given = videos(*[3] * 40)
    drawn = draw_videos(given, replace(RECIPE, data_rate=rate))
    assert len(drawn) == used
    # in the order of the store, each once
    assert [video for video in given if video in drawn] == drawn


def test_a_smaller_share_of_the_videos_is_part_of_a_larger_one() -> None:
    given = videos(*[3] * 40)
    names = [
        {video.name for video in draw_videos(given, replace(RECIPE, data_rate=rate))}
        for rate in (0.1, 0.3, 0.9)
    ]
    assert names[0] < names[1] < names[2]


def test_the_seed_chooses_the_videos() -> None:
    given = videos(*[3] * 40)
    drawn = [draw_videos(given, replace(RECIPE, data_rate=0.5, seed=s)) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_every_epoch_is_shuffled_anew() -> None:
    first, again, second = (draw_batches(40, RECIPE, epoch)[0].tolist() for epoch in (0, 0, 1))
    assert first == again != second
    assert sorted(first) != first


def test_labels_become_class_indices() -> None:
    given = videos(1, 1, 1, 1, labels=("Reg", "Cov", None, "Vir"))
    assert draw_labelled(given, RECIPE, ("Cov", "Reg")) == [1, 0, -1, -1]


@pytest.mark.parametrize(("rate", "used"), [(0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_label_rate_is_a_share_of_the_labelled(rate: float, used: int) -> None:
    given = videos(*[1] * 40, labels=("Cov", None))
    recipe = replace(RECIPE, label_rate=rate)
    targets = draw_labelled(given, recipe, ("Cov",))
    assert sum(target == 0 for target in targets) == used
    assert targets == draw_labelled(given, replace(recipe, batch_size=4), ("Cov",))


def test_the_seed_chooses_whose_labels_are_used() -> None:
    given = videos(*[1] * 40, labels=("Cov",))
    drawn = [
        draw_labelled(given, replace(RECIPE, label_rate=0.5, seed=s), ("Cov",)) for s in (0, 1)
    ]
    assert drawn[0] != drawn[1]


# ------------------------------------------------------------------------- sampling by label


def labelled(**counts: int) -> list[Video]:
    """As many videos of each label, one after another."""
    labels = tuple(label for label, count in counts.items() for _ in range(count))
    return videos(*[3] * len(labels), labels=labels)


def drawn(given: list[Video], power: float, epoch: int = 0) -> list[list[int]]:
    """The videos of every batch of an epoch."""
    recipe = replace(RECIPE, sampling_power=power, batch_size=10)
    batches = draw_batches(len(given), recipe, epoch)
    items = draw_items(given, recipe, epoch, batches)
    return [items[batch].tolist() for batch in batches]


def test_without_sampling_every_video_stands_at_its_own_place() -> None:
    given = labelled(a=30, b=10)
    recipe = replace(RECIPE, batch_size=10)
    items = draw_items(given, recipe, 3, draw_batches(40, recipe, 3))
    assert items.tolist() == list(range(40))


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_labels_are_sampled_by_a_power_of_their_count(power: float) -> None:
    given = labelled(a=1600, b=400, c=100)
    counts = np.zeros(3)
    for epoch in range(12):
        for batch in drawn(given, power, epoch):
            counts += np.bincount(
                [("a", "b", "c").index(str(given[i].label)) for i in batch], None, 3
            )
    expected = np.array([1600.0, 400.0, 100.0]) ** power
    expected *= counts.sum() / expected.sum()
    # a draw without replacement is a little more even than independent ones
    assert chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.0, 0.3, 0.9])
def test_no_video_comes_twice_in_a_batch(power: float) -> None:
    given = labelled(a=40, b=2, c=1)
    for epoch in range(5):
        batches = drawn(given, power, epoch)
        assert sum(map(len, batches)) == len(given)
        assert all(len(set(batch)) == len(batch) for batch in batches)
    # but more than once in an epoch
    assert len({i for batch in batches for i in batch}) < len(given)


def test_videos_without_a_label_are_sampled_as_a_label_of_their_own() -> None:
    given = [*labelled(a=400), *videos(*[3] * 100)]
    share = np.mean([i >= 400 for batch in drawn(given, 0.0) for i in batch])
    assert share == pytest.approx(0.5, abs=0.08)


def test_sampling_is_keyed() -> None:
    given = labelled(a=40, b=20)
    assert drawn(given, 0.5, 3) == drawn(given, 0.5, 3)
    assert drawn(given, 0.5, 3) != drawn(given, 0.5, 4)


def test_a_video_drawn_again_gets_frames_of_its_own() -> None:
    one = videos(50)[0]
    pairs = draw_pairs([one] * 40, RECIPE, 0)
    assert len({tuple(row) for row in pairs.frames.tolist()}) > 30
    assert len(set(pairs.lam[:, 0].tolist())) > 30


# --------------------------------------------------------------------------------- other draws


def test_a_folded_lambda_leaves_more_frame_than_anchor() -> None:
    given = videos(*[5] * 500)
    plain, folded = (draw_pairs(given, replace(RECIPE, fold_lambda=f), 0) for f in (False, True))
    assert np.allclose(folded.lam, np.maximum(plain.lam, 1 - plain.lam), atol=1e-6)
    assert folded.lam.min() >= 0.5


def test_sources_that_are_left_out_are_not_used() -> None:
    given = [dataclasses.replace(v, origin="ab"[i % 2]) for i, v in enumerate(videos(*[3] * 10))]
    used = draw_videos(given, replace(RECIPE, leave_out=("b",)))
    assert [v.name for v in used] == [f"v{i}" for i in range(0, 10, 2)]
    half = draw_videos(given, replace(RECIPE, leave_out=("b",), data_rate=0.4))
    assert len(half) == 2
