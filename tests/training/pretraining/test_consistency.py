"""Each baseline against its paper's equations, written out in loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from uscl_zoo.errors import CardError, DataError
from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import CONSISTENT, Recipe, load_recipe, replace
from uscl_zoo.training.pretraining.consistency import Ensemble, consistency_loss, consistency_weight
from uscl_zoo.training.pretraining.trainer import Trainer

CPU = Execution(torch.device("cpu"))
TARGET = torch.tensor([0, -1, 2, -1, 1])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chances(logits: Tensor) -> list[list[float]]:
    """Softmax, written out."""
    rows = []
    for row in logits.tolist():
        powers = [math.exp(value) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def by_laine(z: list[list[float]], z2: list[list[float]], target: Tensor, w: float) -> float:
    size, classes = len(z), len(z[0])
    labelled = -sum(math.log(z[i][y]) for i, y in enumerate(target.tolist()) if y >= 0) / size
    apart = sum(
        (a - b) ** 2
        for own, other in zip(z, z2, strict=True)
        for a, b in zip(own, other, strict=True)
    )
    return labelled + w * apart / (classes * size)


@pytest.mark.parametrize("target", [TARGET, torch.full((5,), -1)], ids=["some", "none"])
@pytest.mark.parametrize("weight", [0.0, 30.0])
def test_the_pi_model_is_algorithm_1(weight: float, target: Tensor) -> None:
    first, second = normal(5, 3), normal(5, 3, seed=1)
    loss = consistency_loss(first, second, target, weight, Recipe(method="pi", class_weight=1))
    expected = by_laine(chances(first), chances(second), target, weight)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


def test_both_evaluations_of_the_pi_model_learn() -> None:
    first, second = (normal(5, 3, seed=s).requires_grad_() for s in (0, 1))
    consistency_loss(first, second, TARGET, 1.0, Recipe(method="pi")).total.backward()
    assert first.grad is not None and second.grad is not None
    assert second.grad.abs().sum() > 0


def test_temporal_ensembling_is_algorithm_2() -> None:
    """Three epochs of five videos, an answer a video and epoch."""
    recipe, alpha, weight = Recipe(method="temporal", class_weight=1), 0.6, 30.0
    ensemble = Ensemble(5, 3, alpha)
    said = np.zeros((5, 3))
    for epoch in range(3):
        logits = normal(5, 3, seed=epoch)
        targets, known = ensemble.targets(torch.arange(5))
        w = 0.0 if epoch == 0 else weight
        loss = consistency_loss(logits, targets, TARGET, w, recipe, known=known)
        z = chances(logits)
        corrected = (said / (1 - alpha**epoch)).tolist() if epoch else z
        assert loss.total.item() == pytest.approx(by_laine(z, corrected, TARGET, w), rel=1e-5)
        ensemble.hear(torch.arange(5), logits.softmax(1))
        said = alpha * said + (1 - alpha) * np.array(z)


def test_an_ensemble_counts_each_video_by_itself() -> None:
    ensemble, one = Ensemble(3, 2, 0.9), torch.tensor([[0.25, 0.75]])
    for _ in range(4):
        ensemble.hear(torch.tensor([1]), one)
    targets, known = ensemble.targets(torch.tensor([1, 2]))
    assert torch.allclose(targets[0], one[0])
    assert known.tolist() == [True, False]
    loss = consistency_loss(
        normal(2, 2), targets, torch.tensor([-1, -1]), 1.0, Recipe(method="temporal"), known=known
    )
    expected = (normal(2, 2).softmax(1)[0] - one[0]).square().mean() / 2
    assert torch.allclose(loss.consistency, expected)


def by_sohn(weak: Tensor, strong: Tensor, target: Tensor, tau: float, weight: float) -> float:
    p, s = chances(weak), chances(strong)
    known = [-math.log(p[i][y]) for i, y in enumerate(target.tolist()) if y >= 0]
    guessed = [
        -math.log(s[i][own.index(max(own))]) if max(own) >= tau else 0.0 for i, own in enumerate(p)
    ]
    return sum(known) / max(len(known), 1) + weight * sum(guessed) / len(p)


@pytest.mark.parametrize("target", [TARGET, torch.full((5,), -1)], ids=["some", "none"])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_fixmatch_is_equations_3_and_4(tau: float, target: Tensor) -> None:
    weak, strong = 2 * normal(5, 3), normal(5, 3, seed=1)
    recipe = Recipe(method="fixmatch", class_weight=1, confidence=tau)
    loss = consistency_loss(weak, strong, target, 0.7, recipe)
    expected = by_sohn(weak, strong, target, tau, 0.7)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_nothing_of_fixmatch_flows_back_through_its_own_labels() -> None:
    weak, strong = (normal(5, 3, seed=s).requires_grad_() for s in (0, 1))
    recipe = Recipe(method="fixmatch", confidence=0.0)
    consistency_loss(weak, strong, torch.full((5,), -1), 1.0, recipe).total.backward()
    assert weak.grad is not None and strong.grad is not None
    assert not weak.grad.any()
    assert strong.grad.any()


def test_it_is_computed_in_float32() -> None:
    first, second = normal(5, 3).bfloat16(), normal(5, 3, seed=1).bfloat16()
    for method in CONSISTENT:
        recipe = Recipe(method=method)
        loss = consistency_loss(first, second, TARGET, 1.0, recipe).total
        assert loss.dtype == torch.float32
        whole = consistency_loss(first.float(), second.float(), TARGET, 1.0, recipe).total
        assert torch.equal(loss, whole)


def test_the_weight_ramps_up_as_in_section_2_3() -> None:
    recipe = Recipe(method="pi", epochs=300, consistency_weight=100, consistency_ramp=80 / 300)
    for epoch in (0, 1, 40, 79, 80, 299):
        ramp = math.exp(-5 * (1 - min(epoch / 80, 1)) ** 2)
        assert consistency_weight(recipe, epoch, 0.2) == pytest.approx(100 * 0.2 * ramp)
    temporal = replace(recipe, method="temporal")
    assert consistency_weight(temporal, 0, 0.2) == 0
    assert consistency_weight(temporal, 40, 0.2) == consistency_weight(recipe, 40, 0.2)
    fixmatch = replace(recipe, method="fixmatch", consistency_weight=1.5)
    assert {consistency_weight(fixmatch, epoch, 0.2) for epoch in (0, 299)} == {1.5}


@pytest.fixture
def trainer_of(small_store: FrameStore) -> Any:
    def make(method: str, **settings: Any) -> Trainer:
        recipe = load_recipe(f"pocus_resnet18_{method}", ["classes=null", "precision=float32"])
        small = {"batch_size": 6, "epochs": 2, "projection_dim": 8, "label_rate": 0.5}
        return Trainer(replace(recipe, **(small | settings)), small_store, CPU)

    return make


@pytest.mark.parametrize("method", CONSISTENT)
def test_the_two_views_are_of_one_frame(trainer_of: Any, method: str) -> None:
    tables = trainer_of(method).tables(0)
    assert np.array_equal(tables.pairs.frames[:, 0], tables.pairs.frames[:, 2])
    assert (tables.pairs.lam == 1).all()


def test_the_first_view_of_fixmatch_keeps_its_light(trainer_of: Any) -> None:
    change = {"rotation": 0.3, "gamma": 0.5, "speckle": 0.2, "speckle_rate": 1.0, "blur": 1.0}
    weakly, usual = trainer_of("fixmatch", **change), trainer_of("pi", **change)
    for ours, other in zip(
        weakly.tables(0).draws.parts(), usual.tables(0).draws.parts(), strict=True
    ):
        assert torch.equal(ours[2::3], other[2::3])
    draws = weakly.tables(0).draws[0::3]
    assert torch.equal(draws.factor, torch.tensor([1.0, 1, 1, 0]).expand(len(draws.factor), 4))
    assert not draws.angle.any() and not draws.speckle.any() and not draws.blur.any()
    assert (draws.gamma == 1).all()
    assert torch.equal(draws.box, usual.tables(0).draws[0::3].box)
    assert torch.equal(draws.flip, usual.tables(0).draws[0::3].flip)


@pytest.mark.parametrize("method", CONSISTENT)
def test_a_step_moves_the_encoder_by_the_loss_of_its_method(trainer_of: Any, method: str) -> None:
    trainer = trainer_of(method, confidence=0.0)
    before = trainer.network.get_parameter("encoder.conv1.weight").clone()
    steps = trainer.steps
    for _ in range(steps):
        trainer.step()
    total, contrastive, labelled, _, agreement = trainer.progress.sums
    assert contrastive == 0
    weight = consistency_weight(trainer.recipe, 0, float((trainer.targets >= 0).mean()))
    assert total == pytest.approx(labelled + weight * agreement, rel=1e-4)
    assert not torch.equal(before, trainer.network.get_parameter("encoder.conv1.weight"))
    if method == "temporal":
        assert agreement == 0
        times = trainer.ensemble.get_buffer("times")
        assert times.tolist() == [1.0] * len(trainer.videos)


@pytest.mark.parametrize("method", CONSISTENT)
def test_without_labels_there_is_nothing_to_agree_on(trainer_of: Any, method: str) -> None:
    with pytest.raises(DataError, match=f"no label to learn from, and method {method}"):
        trainer_of(method, label_rate=0.0)
    for setting in ("classes=[]", "class_weight=0", "teachers=[a]"):
        with pytest.raises(CardError, match=setting.partition("=")[0]):
            load_recipe(f"pocus_resnet18_{method}", [setting])
