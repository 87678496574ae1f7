from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from conftest import draw_clip, files_of, write_clip
from PIL import Image
from short_runs import CPU, RECIPE, StopAfter, assert_same, run
from torch import Tensor

from uscl_zoo.errors import CardError, CheckpointError, DataError
from uscl_zoo.records import read_yaml, write_text
from uscl_zoo.signals import Interrupted
from uscl_zoo.training.learning import augment, runs
from uscl_zoo.training.learning.execution import Execution, device_named, precision_on
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.pairs import draw_pairs, draw_videos
from uscl_zoo.training.learning.recipe import Recipe, load_recipe, replace
from uscl_zoo.training.learning.runs import load_checkpoint, load_run, save_checkpoint
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.training.pretraining import curves, network
from uscl_zoo.training.pretraining import pretrain as module
from uscl_zoo.training.pretraining import trainer as trainer_module
from uscl_zoo.training.pretraining.objective import nt_xent, uscl_loss
from uscl_zoo.training.pretraining.pretrain import Clock, pretrain
from uscl_zoo.training.pretraining.steps import Sample, Tables, learning_rate
from uscl_zoo.training.pretraining.trainer import NotFiniteError, Trainer
from uscl_zoo.training.pretraining.views import mix

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture(scope="module")
def finished(
    narrow: None, small_store: FrameStore, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nothing has interrupted, with its pictures."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(small_store, folder, pictures=True)
    return folder


def steps_of(state: dict[str, Any]) -> int:
    """How many steps the optimiser has done."""
    return int(state["optimizer"]["state"][0]["step"])


# ---------------------------------------------------------------------------- rates and views


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 3e-4),
        (10, 3e-4),
        (11, 3e-4),
        (12, 1e-6 + 299e-6 * (1 + math.cos(math.pi / 288)) / 2),
        (155, (3e-4 + 1e-6) / 2),
        (299, 1e-6),
    ],
)
def test_learning_rate(epoch: int, expected: float) -> None:
    assert learning_rate(Recipe(), epoch) == pytest.approx(expected, rel=1e-9)


def test_learning_rate_never_grows() -> None:
    rates = [learning_rate(Recipe(), epoch) for epoch in range(300)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("epochs", [1, 11, 12])
def test_learning_rate_of_a_short_run_is_constant(epochs: int) -> None:
    recipe = replace(Recipe(), epochs=epochs)
    assert {learning_rate(recipe, epoch) for epoch in range(epochs)} == {3e-4}


def by_hand(trainer: Trainer, video: int) -> tuple[Tensor, Tensor]:
    """The two views of one video in the first epoch, one operation after another."""
    recipe = trainer.recipe
    pairs, draws = trainer.tables(0).pairs, trainer.tables(0).draws
    rows, (lam1, lam2) = pairs.frames[video], pairs.lam[video].tolist()
    frames = torch.from_numpy(np.array(trainer.store.frames[rows])).permute(0, 3, 1, 2) / 255

    def augmented(image: Tensor, place: int) -> Tensor:
        chosen = draws[torch.tensor([3 * video + place])]
        view: Tensor = augment.augment(image[None], chosen, recipe)[0]
        return view

    def mixed(f1: Tensor, anchor: Tensor, f3: Tensor) -> tuple[Tensor, Tensor]:
        return lam1 * f1 + (1 - lam1) * anchor, lam2 * f3 + (1 - lam2) * anchor

    if recipe.mix == "after":
        return mixed(*(augmented(frame, place) for place, frame in enumerate(frames)))
    view1, view2 = mixed(*frames)
    return augmented(view1, 0), augmented(view2, 2)


def views_of(trainer: Trainer, videos: np.ndarray) -> tuple[Tensor, Tensor]:
    """The views of some videos in the first epoch."""
    tables: Tables = trainer.tables(0)
    views: tuple[Tensor, Tensor] = trainer.views(trainer.sample(tables, videos))
    return views


VIEWS: list[dict[str, Any]] = [
    {},
    {"lambdas": 2},
    {"mix": "before"},
    {"mix": "before", "lambdas": 2},
    {"method": "simclr", "classes": ()},
    {"method": "pair"},
    {"method": "supervised"},
]


@pytest.mark.parametrize("change", VIEWS, ids=str)
def test_views_are_what_the_recipe_says(small_store: FrameStore, change: dict[str, Any]) -> None:
    trainer = Trainer(replace(RECIPE, **change), small_store, CPU)
    together = views_of(trainer, np.arange(12))
    for video in range(12):
        for ours, expected in zip(together, by_hand(trainer, video), strict=True):
            assert torch.allclose(ours[video], expected, atol=1e-4)


@pytest.mark.parametrize("change", [{"lambdas": 2}, {"mix": "before"}], ids=str)
def test_an_option_of_the_views_changes_the_mixed_views_alone(
    small_store: FrameStore, change: dict[str, Any]
) -> None:
    trainers = [Trainer(r, small_store, CPU) for r in (RECIPE, replace(RECIPE, **change))]
    before, after = (trainer.tables(0) for trainer in trainers)
    assert np.array_equal(before.pairs.frames, after.pairs.frames)
    assert torch.equal(before.draws.factor, after.draws.factor)
    assert all(np.array_equal(a, b) for a, b in zip(before.batches, after.batches, strict=True))
    views, others = (torch.cat(views_of(trainer, np.arange(12))) for trainer in trainers)
    mixed = np.array([video.count >= 3 for video in trainers[0].videos] * 2)
    assert 0 < mixed.sum() < len(mixed)
    # with one λ or two, the first view is the same
    moved = mixed & (np.arange(24) >= 12) if "lambdas" in change else mixed
    for i, expected in enumerate(moved):
        assert torch.allclose(views[i], others[i], atol=1e-5) != expected


def test_two_views_of_one_frame_are_two_augmentations_of_it(small_store: FrameStore) -> None:
    trainer = Trainer(replace(RECIPE, method="simclr", classes=()), small_store, CPU)
    pairs = trainer.tables(0).pairs
    view1, view2 = views_of(trainer, np.arange(12))
    assert (pairs.frames[:, 0] == pairs.frames[:, 2]).all()
    assert all(not torch.allclose(a, b, atol=0.1) for a, b in zip(view1, view2, strict=True))


def test_a_sample_does_not_depend_on_its_batch(small_store: FrameStore) -> None:
    trainer = Trainer(RECIPE, small_store, CPU)
    together = views_of(trainer, np.arange(12))
    for i in range(12):
        alone = views_of(trainer, np.array([i]))
        for whole, one in zip(together, alone, strict=True):
            assert torch.allclose(whole[i], one[0], atol=1e-5)


def test_each_view_has_its_own_batch_statistics(small_store: FrameStore) -> None:
    """One forward a view, compared with normalising by hand and with both views in one forward."""
    trainer = Trainer(RECIPE, small_store, CPU)
    batches = trainer.tables(0).batches
    view1, view2 = views_of(trainer, batches[0])
    encoder: Any = trainer.network.train().encoder
    seen: list[Tensor] = []
    handle = encoder.bn1.register_forward_hook(lambda m, i, output: seen.append(output.clone()))
    loss = trainer.loss(torch.from_numpy(trainer.targets[batches[0]]), view1, view2)
    handle.remove()
    assert len(seen) == 2
    with torch.no_grad():
        maps = [F.conv2d(v, encoder.conv1.weight, stride=2, padding=3) for v in (view1, view2)]
        for output, own in zip(seen, maps, strict=True):
            mean, var = own.mean((0, 2, 3)), own.var((0, 2, 3), unbiased=False)
            by_hand = (own - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
            assert torch.allclose(output, by_hand, atol=1e-4)
        # two updates with momentum 0.1, from a mean of zero
        means = [own.mean((0, 2, 3)) for own in maps]
        expected = 0.9 * 0.1 * means[0] + 0.1 * means[1]
        assert torch.allclose(encoder.bn1.running_mean, expected, atol=1e-5)
        fused = trainer.network(torch.cat([view1, view2]))
        z1, z2 = fused[0].chunk(2)
        logits1, logits2 = fused[1].chunk(2)
        target = torch.from_numpy(trainer.targets[batches[0]])
        other = uscl_loss((z1, logits1), (z2, logits2), target, RECIPE)
    assert not torch.allclose(loss.total, other.total, rtol=1e-4)


def gradient(trainer: Trainer) -> Tensor:
    """Of the loss of the first batch, by the weights of the encoder."""
    trainer.network.zero_grad()
    sample = trainer.sample(trainer.tables(0), trainer.tables(0).batches[0])
    weight = trainer.network.get_parameter("encoder.conv1.weight")
    views = (view.to(weight.dtype) for view in trainer.views(sample))
    trainer.loss(sample.target, *views).total.backward()
    gradients = [p.grad for p in trainer.network.encoder.parameters()]
    return torch.cat([one.flatten() for one in gradients if one is not None])


@pytest.mark.parametrize("classes", [None, ()])
def test_fused_views_share_their_batch_statistics(
    small_store: FrameStore, classes: tuple[str, ...] | None
) -> None:
    recipe = replace(RECIPE, batch_statistics="fused", classes=classes)
    trainer = Trainer(recipe, small_store, CPU)
    batches = trainer.tables(0).batches
    view1, view2 = views_of(trainer, batches[0])
    encoder: Any = trainer.network.train().encoder
    seen: list[int] = []
    handle = encoder.bn1.register_forward_hook(lambda m, i, output: seen.append(len(output)))
    loss = trainer.loss(torch.from_numpy(trainer.targets[batches[0]]), view1, view2)
    handle.remove()
    assert seen == [8]
    both = torch.cat([view1, view2])
    with torch.no_grad():
        maps = F.conv2d(both, encoder.conv1.weight, stride=2, padding=3)
        # one update, with momentum 0.1 and from a mean of zero
        assert torch.allclose(encoder.bn1.running_mean, 0.1 * maps.mean((0, 2, 3)), atol=1e-5)
        z, logits = trainer.network(both)
        halves = (None, None) if logits is None else logits.chunk(2)
        first, second = zip(z.chunk(2), halves, strict=True)
        expected = uscl_loss(first, second, torch.from_numpy(trainer.targets[batches[0]]), recipe)
    assert torch.allclose(loss.total, expected.total, rtol=1e-4)
    assert torch.allclose(loss.labelled, expected.labelled, rtol=1e-4)


def test_fusing_changes_the_gradient_and_nothing_but_the_statistics(
    small_store: FrameStore,
) -> None:
    apart = Trainer(RECIPE, small_store, CPU)
    fused = Trainer(replace(RECIPE, batch_statistics="fused"), small_store, CPU)
    for trainer in (apart, fused):
        # in float32, rounding turns the sign of an activation here and there
        trainer.network.double().train()
    assert F.cosine_similarity(gradient(apart), gradient(fused), dim=0) < 0.99
    # with the running statistics, which no view moves, it is one method
    fused.network.load_state_dict(apart.network.state_dict())
    for trainer in (apart, fused):
        trainer.network.eval()
    ours, expected = gradient(fused), gradient(apart)
    assert F.cosine_similarity(ours, expected, dim=0) > 1 - 1e-9
    assert ours.norm().item() == pytest.approx(expected.norm().item(), rel=1e-6)


@pytest.mark.parametrize(("classifier_on", "moved"), [("z", True), ("h", False)])
def test_supervision_moves_the_projection_only_through_the_classifier(
    small_store: FrameStore, classifier_on: str, moved: bool
) -> None:
    recipe = replace(RECIPE, method="supervised", classifier_on=classifier_on)
    trainer = Trainer(recipe, small_store, CPU)
    before = trainer.network.get_parameter("projection.0.weight").clone()
    trainer.step()
    after = trainer.network.get_parameter("projection.0.weight")
    assert torch.equal(before, after) != moved
    assert trainer.progress.sums[0] == pytest.approx(0.2 * trainer.progress.sums[2])


def test_validation_is_deterministic(small_store: FrameStore) -> None:
    trainer = Trainer(RECIPE, small_store, CPU)
    trainer.step()
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    first = trainer.validate()
    torch.manual_seed(1)
    assert first == trainer.validate()
    assert_same(before, dict(trainer.network.state_dict()))


def test_validation_is_nt_xent_of_plain_frames(small_store: FrameStore) -> None:
    trainer = Trainer(replace(RECIPE, batch_size=12), small_store, CPU)
    pairs = draw_pairs(trainer.held_out, RECIPE, 0, validation=True)
    frames = torch.from_numpy(np.array(small_store.frames[pairs.frames.reshape(-1)]))
    images = (frames.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    view1, view2 = mix(images, torch.from_numpy(pairs.lam))
    network = trainer.network.eval()
    with torch.no_grad():
        expected = nt_xent(network(view1)[0], network(view2)[0], RECIPE.temperature)
    assert trainer.validate() == pytest.approx(expected.item(), rel=1e-4)


# -------------------------------------------------------------------------------------- a run


def test_a_run_learns_and_leaves_what_it_promises(finished: Path, small_store: FrameStore) -> None:
    recipe, about, state = load_run(finished)
    assert recipe == RECIPE
    assert state["progress"]["epoch"] == 3
    assert steps_of(state) == 9
    history = state["progress"]["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert ["held-out contrastive" in row for row in history] == [False, True, True]
    for row in history:
        total = row["contrastive"] + RECIPE.class_weight * row["labelled"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert about["store_digest"] == small_store.digest
    assert about["training"]["videos"] == 12
    assert about["held_out_subjects"] == small_store.description["held_out_subjects"]
    assert about["classes"] == ["Cov", "Pneu", "Reg"]
    assert about["code"].startswith("uscl-zoo ")
    for name in ("curves.png", "embedding.png"):
        with Image.open(finished / name) as picture:
            assert picture.format == "PNG"
    assert not list(finished.rglob("*.partial"))


def test_training_lowers_the_loss(
    small_store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in eighteen steps a narrow network learns little
    monkeypatch.setattr(network, "timm", timm)
    recipe = replace(RECIPE, epochs=6, constant_epochs=6, class_weight=1.0)
    history = run(small_store, tmp_path / "run", recipe)["progress"]["history"]
    assert history[-1]["labelled"] < 0.85 * history[0]["labelled"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_run_is_a_function_of_its_recipe_and_store(
    finished: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002, the global state is what should not matter
    again = run(small_store, tmp_path / "again")
    assert_same(load_checkpoint(finished), again)
    other = run(small_store, tmp_path / "other", replace(RECIPE, seed=12))
    assert not torch.equal(
        again["network"]["encoder.conv1.weight"], other["network"]["encoder.conv1.weight"]
    )


def points(folder: Path, name: str) -> list[int]:
    """The steps for which TensorBoard shows a value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]


#: Each way to depart from the released code.
OPTIONS: list[dict[str, Any]] = [
    {"method": "simclr", "classes": ()},
    {"method": "moco", "classes": (), "momentum": 0.9, "queue": 10},
    {"method": "pair"},
    {"method": "pair", "classes": ()},
    {"method": "supervised"},
    {"method": "supervised", "classifier_on": "h"},
    {"method": "pi", "consistency_weight": 10.0},
    {"method": "temporal", "consistency_weight": 10.0},
    {"method": "fixmatch", "confidence": 0.0},
    {"classifier_on": "h"},
    {"lambdas": 2},
    {"mix": "before"},
    {"batch_statistics": "fused"},
    {"data_rate": 0.5},
    {"sampling_power": 0.5},
    {"optimizer": "adamw"},
    {"schedule": "steps", "warmup": 0.3},
    {"mix": "before", "rotation": 0.2, "gamma": 0.4, "speckle": 0.2, "speckle_rate": 0.5},
]


@pytest.mark.parametrize("change", OPTIONS, ids=str)
def test_every_option_begins_alike_ends_elsewhere_and_resumes(
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    from contextlib import nullcontext

    recipe = replace(RECIPE, epochs=1, **change)
    usual, trainer = (Trainer(r, small_store, CPU) for r in (RECIPE, recipe))
    assert_same(
        dict(usual.network.encoder.state_dict()), dict(trainer.network.encoder.state_dict())
    )
    assert trainer.held_out == usual.held_out
    whole = run(small_store, tmp_path / "whole", recipe)
    with monkeypatch.context() as patch:
        patch.setattr(module, "listening", lambda: nullcontext(StopAfter(2)))
        with pytest.raises(Interrupted):
            run(small_store, tmp_path / "run", recipe)
    assert_same(run(small_store, tmp_path / "run", recipe, resume=True), whole)
    for _ in range(3):
        usual.step()
    learnt = whole["network"]["encoder.conv1.weight"]
    assert not torch.equal(learnt, usual.network.get_parameter("encoder.conv1.weight"))


def test_a_run_from_before_the_options_goes_on(
    finished: Path, small_store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe lacks their keys, which then have the meaning they always had."""
    from contextlib import nullcontext

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "listening", lambda: nullcontext(StopAfter(4)))
        with pytest.raises(Interrupted):
            run(small_store, folder)
    settings = read_yaml(folder / "recipe.yaml")
    for key in ("method", "classifier_on", "data_rate", "lambdas", "mix", "batch_statistics"):
        del settings[key]
    write_text(folder / "recipe.yaml", yaml.safe_dump(settings))
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    save_checkpoint(folder, state | {"recipe": settings})
    resumed = run(small_store, folder, load_recipe(str(folder / "recipe.yaml")), resume=True)
    assert_same(resumed, load_checkpoint(finished))


def test_a_run_keeps_its_method(finished: Path, small_store: FrameStore) -> None:
    told = r"recipe\.yaml: method is 'uscl' in the run and 'pair' now"
    with pytest.raises(CardError, match=told):
        run(small_store, finished, replace(RECIPE, method="pair"), resume=True)


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_a_resumed_run_is_the_uninterrupted_one(
    finished: Path,
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """Stopped within an epoch, at the end of one, in the last."""
    from contextlib import nullcontext

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "listening", lambda: nullcontext(StopAfter(steps)))
        with pytest.raises(Interrupted, match=r"stopped by SIGTERM in epoch .* `resume=True`"):
            run(small_store, folder)
    stopped = load_checkpoint(folder)
    assert stopped is not None
    assert steps_of(stopped) == steps
    assert_same(run(small_store, folder, resume=True), load_checkpoint(finished))
    assert points(folder, "loss") == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run(
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """Of this process; test_cli.py and test_ranks.py send it to others."""
    step, done = Trainer.step, []

    def stepping(trainer: Trainer) -> int:
        images = int(step(trainer))
        done.append(images)
        if len(done) == 5:
            signal.raise_signal(number)
        return images

    monkeypatch.setattr(Trainer, "step", stepping)
    before = signal.getsignal(number)
    folder, recipe = tmp_path / "run", replace(RECIPE, epochs=10_000)
    with pytest.raises(Interrupted, match=f"^stopped by {number.name} in epoch 2 of 10000, saved"):
        run(small_store, folder, recipe)
    assert len(done) == 5
    assert signal.getsignal(number) == before
    state = load_checkpoint(folder)
    assert state is not None
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 2)
    assert steps_of(state) == 5


# -------------------------------------------------------------------------------- checkpoints


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(b"\x80" * 5000),
    "a flipped bit": flip_a_bit,
    "another format": lambda path: torch.save({"format": 2}, path),
    "another thing": lambda path: torch.save([1], path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    for epoch in (1, 2):
        weights = torch.full((1000,), float(epoch))
        save_checkpoint(tmp_path, {"format": 1, "epoch": epoch, "weights": weights})
    damage(tmp_path / "checkpoint.pt")
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["epoch"] == 1
    damage(tmp_path / "checkpoint.previous.pt")
    told = r"^no checkpoint can be read: .*checkpoint\.pt \(.*checkpoint\.previous\.pt \("
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(tmp_path)


def test_a_run_goes_on_from_the_checkpoint_before(
    finished: Path, small_store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import nullcontext

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "listening", lambda: nullcontext(StopAfter(7)))
        with pytest.raises(Interrupted):
            run(small_store, folder)
    flip_a_bit(folder / "checkpoint.pt")
    assert_same(run(small_store, folder, resume=True), load_checkpoint(finished))
    assert points(folder, "loss") == [1, 2, 3]


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"format": 1, "epoch": 1})
    with files_of(1 << 16), pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path, {"format": 1, "epoch": 2, "network": torch.zeros(1 << 16)})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["epoch"] == 1


# ------------------------------------------------------------------------- what stops a run


def test_a_loss_that_is_not_finite_stops_the_run(small_store: FrameStore, tmp_path: Path) -> None:
    # intensities of 1e38 overflow in the first convolution
    recipe = replace(RECIPE, std=(1e-38,) * 3)
    told = r"^the loss is nan in epoch 1, step 1; the last good checkpoint: none yet$"
    with pytest.raises(NotFiniteError, match=told):
        run(small_store, tmp_path / "run", recipe)
    assert load_checkpoint(tmp_path / "run") is None


@pytest.mark.parametrize(
    ("batch_size", "told"),
    [
        (4, "the loss is nan in epoch 2, step 2"),
        # the only step of the epoch: its loss was still that of finite weights
        (12, "the weights are not finite after epoch 2"),
    ],
)
def test_the_last_good_checkpoint_is_good(
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    told: str,
) -> None:
    monkeypatch.setattr(
        trainer_module, "learning_rate", lambda recipe, epoch, *_: (3e-4, math.inf)[epoch]
    )
    folder = tmp_path / "run"
    with pytest.raises(NotFiniteError) as caught:
        run(small_store, folder, replace(RECIPE, batch_size=batch_size, epochs=2))
    assert str(caught.value) == f"{told}; the last good checkpoint: {folder / 'checkpoint.pt'}"
    state = load_checkpoint(folder)
    assert state is not None
    assert state["progress"]["epoch"] == 1
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


def test_a_batch_larger_than_the_data(small_store: FrameStore) -> None:
    told = r"^batch_size: 13 is more than the 12 training videos of .*store; add batch_size=12$"
    with pytest.raises(DataError, match=told):
        Trainer(replace(RECIPE, batch_size=13), small_store, CPU)


def test_a_class_that_no_video_has(small_store: FrameStore) -> None:
    told = r"^classes: no training video of .*store is labelled 'Vir'; it has Cov, Pneu, Reg; set"
    with pytest.raises(DataError, match=told):
        Trainer(replace(RECIPE, classes=("Cov", "Vir")), small_store, CPU)


@pytest.mark.parametrize("change", [{"label_rate": 0.0}, {"classes": None}], ids=str)
def test_supervision_takes_labels(tmp_path: Path, change: dict[str, Any]) -> None:
    store = make_store(tmp_path, 4, labelled="label_rate" in change)
    recipe = replace(RECIPE, method="supervised", **change)
    with pytest.raises(DataError, match=r"store: no label to learn from, and method supervised"):
        Trainer(recipe, store, CPU)


def test_simclr_takes_no_labels(tmp_path: Path) -> None:
    store = make_store(tmp_path, 4, labelled=False)
    trainer = Trainer(load_recipe("pocus_resnet18_simclr", ["batch_size=4"]), store, CPU)
    trainer.step()
    assert trainer.network.classifier is None
    assert trainer.progress.sums[0] == trainer.progress.sums[1] > 0


def test_data_rate_takes_videos_and_neither_classes_nor_held_out_ones(
    small_store: FrameStore,
) -> None:
    everything = Trainer(RECIPE, small_store, CPU)
    recipe = replace(RECIPE, data_rate=1 / 3, classes=("Cov", "Pneu", "Reg"))
    trainer = Trainer(recipe, small_store, CPU)
    assert trainer.videos == draw_videos(small_store.select("train"), recipe)
    assert len(trainer.videos) == len(trainer.targets) == 4
    assert trainer.held_out == everything.held_out
    assert trainer.classes == everything.classes
    seen = {int(row) for epoch in range(20) for row in trainer.tables(epoch).pairs.frames.ravel()}
    assert seen <= {v.first + i for v in trainer.videos for i in range(v.count)}


def test_a_share_of_the_data_too_small(small_store: FrameStore) -> None:
    with pytest.raises(DataError, match=r"1 training video, .*, or raise data_rate$"):
        Trainer(replace(RECIPE, data_rate=0.1), small_store, CPU)


def test_classes_are_those_of_the_recipe_or_the_store(small_store: FrameStore) -> None:
    chosen = Trainer(replace(RECIPE, classes=("Reg", "Cov")), small_store, CPU)
    assert chosen.classes == ("Reg", "Cov")
    named = {v.label: int(t) for v, t in zip(chosen.videos, chosen.targets, strict=True)}
    assert named == {"Reg": 0, "Cov": 1, "Pneu": -1}
    assert Trainer(RECIPE, small_store, CPU).classes == ("Cov", "Pneu", "Reg")


def make_store(
    folder: Path, videos: int, holdout: float = 0.0, labelled: bool = True
) -> FrameStore:
    for i in range(videos):
        clip = draw_clip(i, 1 + i % 3, (90, 90, 90))
        write_clip(folder / "clips" / (f"Cov-{i}_mp4" if labelled else f"{i}_mp4"), clip)
    store: FrameStore = prepare(
        [folder / "clips"],
        folder / "store",
        from_name,
        sampling=Sampling(size=32),
        holdout=holdout,
        workers=1,
        progress=False,
    ).store
    return store


def test_one_video_cannot_be_contrasted(tmp_path: Path) -> None:
    store = make_store(tmp_path, 2, holdout=0.5)
    with pytest.raises(DataError, match=r"store: 1 training video, and contrast takes two"):
        Trainer(replace(RECIPE, batch_size=2), store, CPU)


def test_videos_without_labels_can_be_pretrained_on(tmp_path: Path) -> None:
    """Videos of one, two and three frames among them, and none held out."""
    store = make_store(tmp_path, 6, labelled=False)
    assert {v.label for v in store.videos} == {None}
    assert {v.count for v in store.videos} == {1, 2, 3}
    state = run(store, tmp_path / "run", replace(RECIPE, epochs=1))
    (row,) = state["progress"]["history"]
    assert row["labelled"] == 0
    assert row["loss"] == row["contrastive"]
    assert "held-out contrastive" not in row
    assert not [name for name in state["network"] if name.startswith("classifier")]


def test_a_run_is_not_overwritten(finished: Path, small_store: FrameStore) -> None:
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(DataError, match=f"^{finished}: holds a run already; add `resume=True`"):
        run(small_store, finished)
    assert (finished / "checkpoint.pt").read_bytes() == before


def test_there_must_be_a_run_to_resume(small_store: FrameStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path}: holds no run to resume$"):
        run(small_store, tmp_path, resume=True)
    with pytest.raises(DataError, match=f"^{tmp_path}: holds no run"):
        load_run(tmp_path)


def test_a_run_is_resumed_with_its_own_recipe(finished: Path, small_store: FrameStore) -> None:
    told = r"recipe\.yaml: temperature is 0\.5 in the run and 0\.4 now"
    with pytest.raises(CardError, match=told):
        run(small_store, finished, replace(RECIPE, temperature=0.4), resume=True)


def test_a_run_is_resumed_on_its_own_store(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the store that"):
        run(make_store(tmp_path, 6, holdout=0.2), finished, replace(RECIPE), resume=True)


def test_a_finished_run_stays_as_it_is(finished: Path, small_store: FrameStore) -> None:
    before = load_checkpoint(finished)
    assert_same(run(small_store, finished, resume=True), before)


@pytest.mark.parametrize(("share", "expected"), [(1.0, [1, 2, 3, 4]), (0.0, [1, 4])])
def test_looking_checkpoints_and_curves_take_their_share_of_the_time(
    small_store: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    expected: list[int],
) -> None:
    """The first and the last of each there are always."""
    saved: list[int] = []

    def save(run: Path, state: dict[str, Any]) -> None:
        if state["progress"]["step"] == 0:
            saved.append(state["progress"]["epoch"])

    drawn: list[int] = []
    looked: list[int] = []
    monkeypatch.setattr(module, "_SHARES", dict.fromkeys(module._SHARES, share))
    monkeypatch.setattr(module, "save_checkpoint", save)
    monkeypatch.setattr(curves, "draw", lambda history, path: drawn.append(len(history)))
    monkeypatch.setattr(Trainer, "validate", lambda trainer: looked.append(trainer.progress.epoch))
    recipe = replace(RECIPE, epochs=4, validate_every=1)
    pretrain(recipe, small_store, tmp_path / "run", execution=CPU, progress=False)
    assert saved == drawn == looked == expected


def test_the_first_look_does_not_depend_on_the_epochs_before(
    small_store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    monkeypatch.setattr(module, "_SHARES", dict.fromkeys(module._SHARES, 0.0))
    monkeypatch.setattr(Trainer, "validate", lambda trainer: looked.append(trainer.progress.epoch))
    recipe = replace(RECIPE, epochs=7, validate_every=2)
    run(small_store, tmp_path / "run", recipe)
    assert looked == [2, 7]


def test_a_run_killed_in_its_last_look_has_no_step_to_repeat(
    finished: Path, small_store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(trainer: Trainer) -> float | None:
        if trainer.progress.epoch == RECIPE.epochs:
            raise KeyboardInterrupt
        return 0.0

    monkeypatch.setattr(module, "_SHARES", dict.fromkeys(module._SHARES, 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(small_store, tmp_path / "run")
    monkeypatch.setattr(Trainer, "step", lambda trainer: pytest.fail("a step was repeated"))
    state = load_checkpoint(finished)
    assert state is not None
    again = run(small_store, tmp_path / "run", resume=True)
    assert_same({"network": again["network"]}, {"network": state["network"]})


def test_what_is_beside_the_steps_takes_a_twentieth() -> None:
    assert sum(module._SHARES.values()) <= 0.05 + 1e-9


def test_a_clock_tells_what_time_went_to(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock()
    assert clock.affords("pictures")
    for what, seconds in (("steps", 30.0), ("pictures", 0.3), ("steps", 5.7)):
        with clock.on(what):
            now[0] += seconds
    now[0] += 4
    assert str(clock) == "40.0 s: 35.7 s steps, 0.3 s pictures"
    assert clock.affords("pictures")  # less than a hundredth
    with pytest.raises(KeyError), clock.on("pictures"):
        now[0] += 1
        raise KeyError
    assert not clock.affords("pictures")
    assert clock.affords("checkpoints")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_cannot_be_used(device: str) -> None:
    told = f"^device '{device}' cannot be used .*; try cpu$"
    with pytest.raises(DataError, match=told) as caught:
        device_named(device)
    assert "\n" not in str(caught.value)


def test_bf16_is_used_when_asked_for(small_store: FrameStore) -> None:
    trainer = Trainer(replace(RECIPE, precision="bf16"), small_store, CPU)
    seen = []
    first = trainer.network.get_submodule("encoder.conv1")
    first.register_forward_hook(lambda m, i, output: seen.append(output))
    trainer.step()
    assert {output.dtype for output in seen} == {torch.bfloat16}
    assert {p.dtype for p in trainer.network.parameters()} == {torch.float32}
    assert Trainer(RECIPE, small_store, CPU).precision == "float32"


def test_a_resumed_run_keeps_its_precision(
    small_store: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun where `auto` was bf16, and moved to a processor without."""
    from contextlib import nullcontext

    # where a processor has to do without, bf16 takes twelve times as long
    recipe = replace(RECIPE, precision="auto", epochs=1)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with monkeypatch.context() as patch:
        patch.setattr(module, "listening", lambda: nullcontext(StopAfter(1)))
        with pytest.raises(Interrupted):
            run(small_store, tmp_path / "run", recipe)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert precision_on(CPU.device, "auto") == "float32"
    whole = run(small_store, tmp_path / "whole", replace(recipe, precision="bf16"))
    resumed = run(small_store, tmp_path / "run", recipe, resume=True)
    assert_same(resumed["network"], whole["network"])


@pytest.mark.parametrize(
    ("has", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "float32")],
    ids=str,
)
def test_a_processor_is_asked_whether_it_has_bf16(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert precision_on(CPU.device, "auto") == expected
    assert precision_on(CPU.device, "bf16") == "bf16"
    assert precision_on(CPU.device, "float32") == "float32"
    # the oldest torch we run on cannot tell
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision_on(CPU.device, "auto") == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inductor", "aot_eager_decomp_partition"])
def test_compiling_changes_only_rounding(
    small_store: FrameStore, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Kernels of the stem, heads and loss; of the whole network all that comes before kernels.

    Where nothing is cached a kernel takes a second of a core, and each block has a dozen.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = (
        Trainer(RECIPE, small_store, Execution(CPU.device, compiled=compiled))
        for compiled in (False, True)
    )
    for trainer in (plain, compiled):
        # in float32, rounding turns the sign of an activation here and there
        encoder = trainer.network.double().encoder
        if backend == "inductor":
            encoder.layer1 = encoder.layer2 = encoder.layer3 = torch.nn.Identity()
            torch.manual_seed(0)
            width, features = len(encoder.get_parameter("bn1.weight")), encoder.num_features
            encoder.layer4 = torch.nn.Conv2d(width, int(features), 1, dtype=torch.float64)  # type: ignore[arg-type]
    ours, expected = gradient(compiled), gradient(plain)
    assert F.cosine_similarity(ours, expected, dim=0) > 1 - 1e-9
    assert ours.norm().item() == pytest.approx(expected.norm().item(), rel=1e-5)


def in_float64(trainer: Trainer) -> Trainer:
    """Network and views in float64, where no rounding decides a sign."""
    trainer.network.double()
    views = trainer.views

    def doubled(sample: Sample, size: int | None = None) -> tuple[Tensor, Tensor]:
        view1, view2 = views(sample, size)
        return view1.double(), view2.double()

    trainer.views = doubled  # type: ignore[method-assign]
    return trainer


@pytest.mark.parametrize("switch", [{"channels_last": False}, {"fused": False}], ids=str)
def test_a_switch_changes_only_rounding(small_store: FrameStore, switch: dict[str, Any]) -> None:
    def pair() -> Iterator[Trainer]:
        return (
            Trainer(RECIPE, small_store, Execution(CPU.device, **change)) for change in ({}, switch)
        )

    usual, other = pair()
    for trainer in (usual, other):
        trainer.step()
    assert other.progress.sums == pytest.approx(usual.progress.sums, rel=1e-4)
    # in float32, a gradient that is rounding alone is a whole step of Adam in some direction
    usual, other = map(in_float64, pair())
    before = copy.deepcopy(usual.network.state_dict())
    for trainer in (usual, other):
        for _ in range(2):
            trainer.step()
    assert other.progress.sums == pytest.approx(usual.progress.sums, rel=1e-9)
    found = other.network.state_dict()
    for name, expected in usual.network.state_dict().items():
        assert torch.allclose(found[name], expected, rtol=1e-7, atol=1e-8), name
        assert not torch.equal(expected, before[name]), name


def test_augmentation_is_drawn_once_a_frame_and_epoch(small_store: FrameStore) -> None:
    trainer = Trainer(RECIPE, small_store, CPU)
    draws = trainer.tables(1).draws
    expected = augment.draw(RECIPE, 1, 12, 32)
    assert torch.equal(draws.factor, expected.factor)
    assert torch.equal(draws.box, expected.box)


# ------------------------------------------------------------------------- what it says it is


def test_code_version_names_the_commit_of_this_checkout() -> None:
    here = Path(runs.__file__).parent
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=here, text=True)
    assert runs.code_version().startswith("uscl-zoo ")
    assert f"({head[:12]}" in runs.code_version()


def test_code_version_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    import uscl_zoo

    monkeypatch.setenv("PATH", os.devnull)
    assert runs.code_version() == f"uscl-zoo {uscl_zoo.__version__}"


def test_code_version_is_not_another_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed in an environment inside somebody's repository."""
    import uscl_zoo

    installed = tmp_path / "project" / "venv" / "runs.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *command], cwd=tmp_path / "project", check=True)
    monkeypatch.setattr(runs, "__file__", str(installed))
    assert runs.code_version() == f"uscl-zoo {uscl_zoo.__version__}"


def test_hardware_is_told_in_words() -> None:
    assert runs.hardware(CPU.device).endswith("(CPU)")


def test_the_description_of_a_run_is_json(finished: Path) -> None:
    assert json.loads((finished / "run.json").read_text())["torch"] == torch.__version__
