from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from uscl_zoo.training.learning import augment
from uscl_zoo.training.learning.feed import Feed
from uscl_zoo.training.learning.frames import FrameStore, Video
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining import monitor
from uscl_zoo.training.pretraining.monitor import Embedded, alignment, embed, neighbours, uniformity
from uscl_zoo.training.pretraining.network import UsclNetwork, build

CPU = torch.device("cpu")
RECIPE = Recipe(projection_dim=16, seed=5)
NAMES = {
    *("alignment", "uniformity", "held-out alignment", "held-out uniformity"),
    *("kNN, held-out frames", "kNN, held-out videos"),
}


@pytest.fixture(scope="module")
def network() -> UsclNetwork:
    made: UsclNetwork = build(RECIPE, 3)
    return made


def points(seed: int, count: int = 7, width: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def test_alignment_is_the_mean_over_pairs_of_a_video_then_over_videos() -> None:
    z = points(0)
    whose = np.array([0, 0, 0, 1, 2, 2, 3])
    first = [(z[i] - z[j]).square().sum().item() for i, j in ((0, 1), (0, 2), (1, 2))]
    third = (z[4] - z[5]).square().sum().item()
    assert alignment(z, whose) == pytest.approx((np.mean(first) + third) / 2, rel=1e-5)
    assert alignment(z[[0, 0, 4, 4]], np.array([0, 0, 1, 1])) == 0
    assert alignment(z, np.arange(7)) is None


def test_uniformity_is_over_pairs_of_different_videos() -> None:
    z = points(1)
    whose = np.array([0, 0, 0, 1, 2, 2, 3])
    kernel = [
        math.exp(-2 * (z[i] - z[j]).square().sum().item())
        for i in range(7)
        for j in range(7)
        if whose[i] != whose[j]
    ]
    assert uniformity(z, whose) == pytest.approx(math.log(np.mean(kernel)), rel=1e-5)
    assert uniformity(z[[0, 0]], np.array([0, 1])) == 0
    assert uniformity(torch.stack([z[0], -z[0]]), np.array([0, 1])) == pytest.approx(-8)
    assert uniformity(z, np.zeros(7, np.int64)) is None


def side(h: Tensor, counts: list[int], labels: list[str | None]) -> Embedded:
    videos = tuple(
        Video(f"v{i}", f"s{i}", label, "train", "", None, 0, count)
        for i, (label, count) in enumerate(zip(labels, counts, strict=True))
    )
    return Embedded(h, h, np.repeat(np.arange(len(counts)), counts), videos)


def test_neighbours_vote_by_their_cosine_and_classes_count_equally() -> None:
    bank = side(points(2, 60), [20, 20, 20], ["a", "b", None])
    queries = side(points(3, 40), [10, 20, 5, 3, 2], ["a", "b", "b", None, "unknown"])
    votes, truth = [], []
    for i, video in enumerate(queries.video[:35]):
        cosine = (bank.h[:40] @ queries.h[i]).numpy()
        nearest = cosine.argsort()[::-1][:20]
        weight = np.exp(cosine[nearest] / 0.07)
        votes.append([weight[nearest < 20].sum(), weight[nearest >= 20].sum()])
        truth.append(min(int(video), 1))
    right = np.argmax(votes, axis=1) == truth
    by_frame = (right[:10].mean() + right[10:].mean()) / 2
    summed = [np.sum(votes[start:end], axis=0) for start, end in ((0, 10), (10, 30), (30, 35))]
    hits = [np.argmax(vote) == label for vote, label in zip(summed, (0, 1, 1), strict=True)]
    assert neighbours(bank, queries) == pytest.approx((by_frame, (hits[0] + np.mean(hits[1:])) / 2))


def test_neighbours_find_classes_that_lie_apart() -> None:
    centres = torch.eye(5)[:3]

    def around(seed: int) -> Tensor:
        return F.normalize(centres.repeat_interleave(4, 0) + 0.1 * points(seed, 12))

    bank = side(around(0), [4] * 3, ["a", "b", "c"])
    assert neighbours(bank, side(around(1), [4] * 3, ["a", "b", "c"])) == (1, 1)
    assert neighbours(bank, side(around(1), [4] * 3, ["a", "a", "c"])) == (0.75, 0.75)


@pytest.mark.parametrize(
    ("bank", "queries"),
    [((None, None), ("a", "b")), (("a", "a"), ("a", "a")), (("a", "b"), (None, None))],
)
def test_neighbours_take_labels(
    bank: tuple[str | None, str | None], queries: tuple[str | None, str | None]
) -> None:
    h = points(0, 4)
    assert neighbours(side(h, [2, 2], [*bank]), side(h, [2, 2], [*queries])) is None


def test_frames_are_taken_evenly_and_embedded_without_augmentation(
    network: UsclNetwork, small_store: FrameStore
) -> None:
    videos = small_store.videos[:6]
    shown = embed(network, Feed(small_store, CPU), RECIPE, videos, 3, "float32")
    expected: list[int] = []
    for video in videos:
        places = {2: [0, 1], 3: [0, 1, 2], 4: [0, 2, 3], 5: [0, 2, 4], 6: [1, 3, 5]}[video.count]
        expected += [video.first + place for place in places]
    assert np.bincount(shown.video).tolist() == [min(3, video.count) for video in videos]
    frames = torch.from_numpy(small_store.frames[expected])
    network.eval()
    with torch.no_grad():
        h = network.encoder(augment.normalise(augment.to_float(frames), RECIPE))
        z = network.projection(h)
    assert torch.allclose(shown.h, F.normalize(h), atol=1e-5)
    assert torch.allclose(shown.z, F.normalize(z), atol=1e-5)


def states() -> list[object]:
    """Of the random generators that everybody shares."""
    legacy = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), str(legacy), random.getstate()]


@pytest.mark.parametrize("training", [True, False])
def test_measuring_changes_nothing(
    network: UsclNetwork, small_store: FrameStore, tmp_path: Path, training: bool
) -> None:
    network.train(training)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    train, held = small_store.select("train"), small_store.select("heldout")
    watched = (network, Feed(small_store, CPU), RECIPE, train, held, "float32")
    first = monitor.measure(*watched)
    # imports draw random numbers of their own, so the states are taken after those of the first
    monitor.picture(*watched, tmp_path / "first.png")
    torch.manual_seed(1)
    before = states()
    assert monitor.measure(*watched) == first
    monitor.picture(*watched, tmp_path / "second.png")
    assert states() == before
    assert set(first) == NAMES
    assert all(math.isfinite(value) for value in first.values())
    assert network.training == network.get_submodule("encoder.bn1").training == training
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    with Image.open(tmp_path / "first.png") as image:
        assert image.width > 1000
        assert image.format == "PNG"


def test_a_failure_leaves_the_mode_too(network: UsclNetwork, small_store: FrameStore) -> None:
    network.train()
    video = small_store.videos[0]
    beyond = Video(**(vars(video) | {"first": len(small_store.frames)}))
    with pytest.raises(IndexError):
        embed(network, Feed(small_store, CPU), RECIPE, [beyond], 2, "float32")
    assert network.training


def test_what_the_videos_do_not_allow_is_left_out(
    network: UsclNetwork, small_store: FrameStore, tmp_path: Path
) -> None:
    train, feed = small_store.select("train"), Feed(small_store, CPU)
    assert set(monitor.measure(network, feed, RECIPE, train, [], "float32")) == {
        "alignment",
        "uniformity",
    }
    assert set(monitor.measure(network, feed, RECIPE, train[:1], [], "float32")) == {"alignment"}
    few = [video for video in train if video.count == 2][:1]
    monitor.picture(network, feed, RECIPE, few, [], "float32", tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_of_many_videos_some_are_looked_at(
    network: UsclNetwork, small_store: FrameStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "VIDEOS", 5)
    train, feed = small_store.select("train"), Feed(small_store, CPU)
    chosen = monitor._choose(train, 5, RECIPE)
    assert len(chosen) == 5
    assert (
        chosen == [video for video in train if video in chosen] == monitor._choose(train, 5, RECIPE)
    )
    row = monitor.measure(network, feed, RECIPE, train, [], "float32")
    assert row == monitor.measure(network, feed, RECIPE, chosen, [], "float32")
