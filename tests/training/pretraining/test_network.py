from __future__ import annotations

from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor

from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.pretraining.network import TwoViews, UsclNetwork, build

RECIPE = Recipe(seed=3)


def views(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def classified(network: UsclNetwork, read: Tensor) -> Tensor:
    assert network.classifier is not None
    logits: Tensor = network.classifier(read)
    return logits


@pytest.mark.parametrize(("architecture", "width"), [("resnet18", 512), ("resnet50", 2048)])
@pytest.mark.parametrize("classes", [0, 1, 3])
def test_shapes(architecture: str, width: int, classes: int) -> None:
    network = build(Recipe(architecture=architecture, projection_dim=32), classes).eval()
    first, _, second = cast("Any", network.projection)
    assert (first.in_features, first.out_features, second.out_features) == (width, width, 32)
    with torch.no_grad():
        z, logits = network(views())
    assert z.shape == (2, 32)
    assert (logits is None) == (classes == 0)
    if logits is not None:
        assert logits.shape == (2, classes)


@torch.no_grad()
def test_the_classifier_reads_the_projection() -> None:
    network = build(RECIPE, 3).eval()
    h = network.encoder(views())
    z, logits = network(views())
    assert torch.allclose(z, network.projection(h))
    assert torch.allclose(logits, classified(network, z))


@torch.no_grad()
def test_the_classifier_can_read_the_features() -> None:
    network = build(replace(RECIPE, classifier_on="h"), 3).eval()
    h = network.encoder(views())
    z, logits = network(views())
    assert torch.allclose(z, network.projection(h))
    assert torch.allclose(logits, classified(network, h))


def test_where_the_classifier_reads_changes_no_other_initial_weight() -> None:
    on_z, on_h = (build(replace(RECIPE, classifier_on=c), 3).state_dict() for c in "zh")
    assert on_z.keys() == on_h.keys()
    different = {name for name in on_z if not torch.equal(on_z[name], on_h[name])}
    assert all(name.startswith("classifier.") for name in different)
    assert on_h["classifier.weight"].shape == (3, 512)


@pytest.mark.parametrize(("classifier_on", "reached"), [("z", True), ("h", False)])
def test_whether_labels_reach_the_projection(classifier_on: str, reached: bool) -> None:
    network = build(replace(RECIPE, classifier_on=classifier_on), 3).eval()
    network(views())[1].sum().backward()
    assert all((p.grad is not None) == reached for p in network.projection.parameters())
    gradient = network.encoder.get_parameter("conv1.weight").grad
    assert gradient is not None
    assert gradient.any()


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_batch_of_one_is_a_batch(count: int) -> None:
    z, logits = build(RECIPE, 3).eval()(views(count))
    assert (z.shape, logits.shape) == ((count, 256), (count, 3))


def test_the_encoder_is_timms() -> None:
    encoder = build(RECIPE, 3).encoder
    other = timm.create_model("resnet18", num_classes=0)
    other.load_state_dict(encoder.state_dict(), strict=True)


def test_no_branch_begins_at_zero() -> None:
    state = build(RECIPE, 3).encoder.state_dict()
    assert all((state[name] == 1).all() for name in state if name.endswith("bn2.weight"))


def test_the_seed_is_the_initialisation() -> None:
    first, again, other = (build(Recipe(seed=s), 3).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("encoder.conv1.weight", "projection.0.weight", "classifier.weight"):
        assert not torch.equal(first[name], other[name])


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build(RECIPE, 3)
    assert torch.equal(torch.rand(3), expected)


# ----------------------------------------------------------------- starts, maps, hidden layers


def test_a_hidden_layer_stands_before_the_logits() -> None:
    network = build(replace(RECIPE, classifier_hidden=24, classifier_on="h"), 3)
    first, _, second = cast("Any", network.classifier)
    assert (first.in_features, first.out_features, second.out_features) == (512, 24, 3)
    assert network(views())[1].shape == (2, 3)


def test_both_views_are_mapped_to_what_teachers_give() -> None:
    network = build(RECIPE, 3, taught=[7, 9])
    outputs = TwoViews(network.eval(), RECIPE)(views(4), views(4).flip(0))
    assert [m.shape for m in outputs.mapped] == [(8, 7), (8, 9)]
    assert torch.allclose(outputs.h[:4], network.encoder(views(4)), atol=1e-5)
    assert torch.allclose(outputs.h[4:].flip(0), outputs.h[:4], atol=1e-5)
    assert torch.allclose(outputs.mapped[1], network.maps[1](outputs.h))
    z, logits = network(views(4))
    assert torch.allclose(outputs.first[0], z, atol=1e-5)
    assert torch.allclose(outputs.first[1], logits, atol=1e-5)


def test_what_begins_with_given_weights_has_the_heads_of_the_seed() -> None:
    other = build(Recipe(seed=8), 3).encoder.state_dict()
    plain, begun = build(RECIPE, 3), build(RECIPE, 3, other)
    for key, tensor in begun.encoder.state_dict().items():
        assert torch.equal(tensor, other[key])
    for key in ("projection.0.weight", "classifier.weight"):
        assert torch.equal(begun.get_parameter(key), plain.get_parameter(key))
