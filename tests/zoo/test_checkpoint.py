from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from uscl_zoo.errors import CheckpointError
from uscl_zoo.zoo.checkpoint import (
    backbone_shapes,
    check_file,
    check_shapes,
    metadata_of,
    statistics_in,
    write_backbone,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("resnet18", num_classes=0, zero_init_last=False)
    tensors: dict[str, Tensor] = model.state_dict()
    return tensors


@pytest.mark.parametrize(("architecture", "count"), [("resnet18", 120), ("resnet50", 318)])
def test_a_backbone_has_so_many_tensors(architecture: str, count: int) -> None:
    shapes = backbone_shapes(architecture)
    assert len(shapes) == count
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert not [name for name in shapes if name.startswith("fc.")]


def test_written_weights_load_strictly(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.safetensors"
    write_backbone(state, path, "resnet18")
    check_file(path, "resnet18")
    assert list(path.parent.iterdir()) == [path]
    stored = load_file(path)
    timm.create_model("resnet18", num_classes=0).load_state_dict(stored, strict=True)
    for name, tensor in stored.items():
        if state[name].ndim == 4:
            assert tensor.dtype == torch.float16
            # half a unit in the last of eleven bits; below 6e-5 half precision thins out
            assert torch.allclose(tensor.float(), state[name], rtol=2**-11, atol=2**-25)
        else:
            assert torch.equal(tensor, state[name])
            assert tensor.dtype == state[name].dtype


def test_full_precision_is_bit_for_bit(state: dict[str, Tensor], tmp_path: Path) -> None:
    write_backbone(state, tmp_path / "a.safetensors", "resnet18", half=False)
    stored = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in state.items())


def test_rounding_moves_embeddings_by_about_a_thousandth(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    write_backbone(state, tmp_path / "a.safetensors", "resnet18")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    embeddings = []
    for tensors in (state, load_file(tmp_path / "a.safetensors")):
        model = timm.create_model("resnet18", num_classes=0).eval()
        model.load_state_dict(tensors)
        with torch.no_grad():
            embeddings.append(model(images))
    before, after = embeddings
    moved = ((after - before).norm() / before.norm()).item()
    assert 0 < moved < 5e-3


def changed(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    state = dict(state)
    if how == "missing":
        del state["layer4.1.bn2.bias"]
    elif how == "extra":
        state |= {"fc.bias": torch.zeros(3), "fc.weight": torch.zeros(3, 512)}
    elif how == "mis-shaped":
        state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    elif how == "renamed":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    return state


FAULTS = [
    ("missing", "1 missing: layer4.1.bn2.bias"),
    ("extra", "2 extra: fc.bias, fc.weight"),
    ("mis-shaped", "1 mis-shaped: conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)"),
    ("renamed", "120 missing: conv1.weight, bn1.weight, bn1.bias and 117 more; 120 extra: module."),
]


@pytest.mark.parametrize(("how", "told"), FAULTS)
def test_other_tensors_are_not_written(
    state: dict[str, Tensor], tmp_path: Path, how: str, told: str
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(CheckpointError, match=re.escape(told)):
        write_backbone(changed(state, how), path, "resnet18")
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(("how", "told"), FAULTS)
def test_other_tensors_are_not_accepted(
    state: dict[str, Tensor], tmp_path: Path, how: str, told: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(changed(state, how), path)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{re.escape(told)}"):
        check_file(path, "resnet18")


def test_shapes_are_those_of_the_architecture(state: dict[str, Tensor]) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(shapes, "resnet18", "here")
    with pytest.raises(CheckpointError, match=r"^here: does not hold the 318 tensors of resnet50"):
        check_shapes(shapes, "resnet50", "here")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bn1.running_var", float("inf")),
        ("layer1.0.conv1.weight", float("nan")),
        ("conv1.weight", 1e6),  # finite, but not in half precision
    ],
)
def test_what_is_not_finite_is_not_written(
    state: dict[str, Tensor], tmp_path: Path, name: str, value: float
) -> None:
    wrong = {**state, name: torch.full_like(state[name], value)}
    with pytest.raises(CheckpointError, match=f"^{re.escape(name)}: has values that are not"):
        write_backbone(wrong, tmp_path / "a.safetensors", "resnet18")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("conv1.weight", torch.float64), ("conv1.weight", torch.int8), ("bn1.bias", torch.int64)],
)
def test_other_types_are_not_accepted(
    state: dict[str, Tensor], tmp_path: Path, name: str, kind: torch.dtype
) -> None:
    save_file({**state, name: state[name].to(kind)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is of type"):
        check_file(tmp_path / "a.safetensors", "resnet18")


@pytest.mark.parametrize("read", [statistics_in, lambda path: check_file(path, "resnet18")])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle", b"\xff" * 64, None])
def test_files_of_another_kind(tmp_path: Path, content: bytes | None, read: Any) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no readable safetensors file") as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_file_says_what_it_was_normalised_by(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    statistics = (0.48294756, 0.45452112, 0.40416715), (0.229, 0.224, 0.225)
    write_backbone(state, path, "resnet18", metadata={**metadata_of(*statistics), "licence": "MIT"})
    check_file(path, "resnet18")
    assert statistics_in(path) == statistics
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["licence"], metadata["format"]) == ("MIT", "pt")


def test_a_file_may_say_nothing_of_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    write_backbone(state, tmp_path / "a.safetensors", "resnet18")
    assert statistics_in(tmp_path / "a.safetensors") is None
    save_file(state, tmp_path / "b.safetensors")
    assert statistics_in(tmp_path / "b.safetensors") is None


RIGHT = {"mean": "0.4 0.5 0.6", "std": "0.2 0.2 0.2"}


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"mean": "0.5 0.5 0.5"}, "has `mean` alone"),
        ({"std": "0.5 0.5 0.5"}, "has `std` alone"),
        *(
            ({**RIGHT, key: wrong}, f"`{key}` in its metadata should be three .*numbers")
            for key in ("mean", "std")
            for wrong in ("", "0.5", "0.5 0.5", "1 1 1 1", "(0.5, 0.5, 0.5)", "nan 1 1", "1 inf 1")
        ),
        ({**RIGHT, "std": "0 0.2 0.2"}, "should be three positive numbers"),
        ({**RIGHT, "std": "-1 0.2 0.2"}, "should be three positive numbers"),
    ],
)
def test_malformed_statistics_are_told(tmp_path: Path, metadata: dict[str, str], told: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{told}"):
        statistics_in(path)


def test_a_truncated_file_is_not_accepted(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_backbone(state, path, "resnet18")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is no readable safetensors file"):
        check_file(path, "resnet18")


def test_the_same_weights_are_the_same_bytes(state: dict[str, Tensor], tmp_path: Path) -> None:
    """safetensors shuffles what a header says of a file; the digest on a card would be any."""
    says = {"name": "é", "mean": "1 2 3", "std": "4 5 6", "licence": 'MI"T', "x": "y", "z": "0"}
    path = tmp_path / "w.safetensors"
    contents = set()
    for _ in range(3):
        write_backbone(state, path, "resnet18", half=False, metadata=says)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == says | {"format": "pt"}
    loaded = load_file(path)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
