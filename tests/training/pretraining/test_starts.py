from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from uscl_zoo import create_model
from uscl_zoo.errors import CheckpointError, DataError, UnknownModelError
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining.network import build
from uscl_zoo.training.pretraining.starts import Start, fit, load_start
from uscl_zoo.zoo.card import Card
from uscl_zoo.zoo.checkpoint import backbone_shapes, write_backbone

STATISTICS = {"mean": "0.4 0.5 0.6", "std": "0.1 0.2 0.3"}


def network(architecture: str = "resnet18", seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    made: torch.nn.Module = timm.create_model(architecture, num_classes=0).eval()
    return made


def test_a_checkpoint_of_the_zoo_is_verified(home: Path, installed: Callable[..., Card]) -> None:
    card = installed()
    start = load_start(card.name)
    assert start.sha256 == card.weights.sha256
    assert (start.mean, start.std, start.licence) == (card.input.mean, card.input.std, card.licence)
    expected = create_model(card.name, pretrained=True).state_dict()
    for key, tensor in start.network.state_dict().items():
        assert torch.equal(tensor, expected[key])
    assert not start.network.training


def test_a_file_says_what_belongs_to_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_backbone(network().state_dict(), path, "resnet18", half=False, metadata=STATISTICS)
    start = load_start(str(path))
    assert (start.architecture, start.mean, start.std) == (
        "resnet18",
        (0.4, 0.5, 0.6),
        (0.1, 0.2, 0.3),
    )
    assert start.recorded() == {"reference": str(path), "sha256": start.sha256, "licence": None}
    assert torch.equal(
        start.network.state_dict()["conv1.weight"], network().state_dict()["conv1.weight"]
    )


def test_a_file_need_not_count_batches(tmp_path: Path) -> None:
    state = {k: t for k, t in network().state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "x.safetensors", STATISTICS)
    assert load_start(str(tmp_path / "x.safetensors")).architecture == "resnet18"


def test_a_file_that_does_not_say_its_statistics(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="do not say what mean and std"):
        load_start(str(tmp_path / "x.safetensors"))


def test_a_file_of_another_architecture(tmp_path: Path) -> None:
    save_file(network("resnet10t").state_dict(), tmp_path / "x.safetensors", STATISTICS)
    with pytest.raises(CheckpointError, match="fits no architecture of the zoo"):
        load_start(str(tmp_path / "x.safetensors"))


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(UnknownModelError, match="resnet18_uscl"):
        load_start("resnet18_usl")


@pytest.mark.parametrize("name", ["no_such_network", "resnet18.no_such_tag"])
def test_a_name_that_timm_does_not_know(name: str) -> None:
    with pytest.raises(DataError, match=f"^timm:{name}: timm could not get it"):
        load_start(f"timm:{name}")


def test_weights_of_timms(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet18",
        "num_classes": 0,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "license": "mit"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    start = load_start(f"timm:local-dir:{tmp_path}")
    assert (start.architecture, start.mean, start.licence) == ("resnet18", (0.1, 0.2, 0.3), "mit")
    assert torch.equal(
        start.network.state_dict()["conv1.weight"], network().state_dict()["conv1.weight"]
    )
    again = load_start(f"timm:local-dir:{tmp_path}")
    assert start.sha256 == again.sha256
    save_file(network(seed=2).state_dict(), tmp_path / "model.safetensors")
    assert load_start(f"timm:local-dir:{tmp_path}").sha256 != start.sha256


def a_start(architecture: str) -> Start:
    half = (0.5, 0.5, 0.5)
    return Start("x", network(architecture), architecture, half, half, "0" * 64, None)


def unasked() -> Tensor:
    raise AssertionError("no frames are needed")


def test_of_the_same_architecture_all_fits() -> None:
    start = a_start("resnet18")
    given = fit(start, "resnet18", unasked)
    assert given.keys() == backbone_shapes("resnet18").keys()


def test_a_resnet50_is_grown_from_a_resnet18() -> None:
    start = a_start("resnet18")
    frames = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = fit(start, "resnet50", lambda: frames, seed=3)
    shapes = backbone_shapes("resnet50")
    assert {key: tuple(tensor.shape) for key, tensor in given.items()} == shapes
    again = fit(start, "resnet50", lambda: frames, seed=3)
    assert all(torch.equal(again[key], tensor) for key, tensor in given.items())
    encoder: Any = build(Recipe(architecture="resnet50"), 0, given).encoder
    assert torch.equal(encoder.layer1[0].conv2.weight, given["layer1.0.conv2.weight"])


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("mobilenetv3_small_050", "resnet18"), ("resnet50", "resnet18")],
)
def test_what_cannot_begin_with_it_is_an_error(kind: str, architecture: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^init: a {architecture} cannot begin with x"):
        fit(a_start(kind), architecture, unasked)
