"""The table of docs/loading.md, a test a row."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import trial
from hub import Hub
from torch import Tensor
from torch.testing import assert_close

import uscl_zoo
from uscl_zoo import modelcard, publish
from uscl_zoo.zoo.card import MODELS, read_card

ROOT = Path(__file__).parents[1]
REPO = f"me/{trial.NAME}"
PLAIN = [
    "timm_hub",
    "timm_local_dir",
    "timm_classifier",
    "timm_features",
    "torchvision_state_dict",
    "transformers_model",
    "transformers_folder",
    "transformers_classifier",
]
PREPROCESSING = ["timm_preprocessing", "transformers_preprocessing"]
PLAIN_TIMM = ["timm_hub", "timm_local_dir", "timm_classifier", "timm_features"]


@dataclass(frozen=True)
class Published:
    """A published checkpoint, and what its network makes of `trial.FRAMES`."""

    hub: Hub
    folder: Path
    own: Path
    expected: Tensor

    def load(self, output: Path, rows: list[str], path: Path | None = None) -> Path:
        """Load it in another Python, without uscl-zoo, in each of the ways of `plain.py`."""
        output.mkdir()
        torch.save(trial.FRAMES, output / "frames")
        trial.python(
            *(str(ROOT / "tests" / "plain.py"), REPO, str(self.folder)),
            *(str(output / "frames"), str(output), *rows),
            environment={**self.hub.environment(), "HOME": output, "HF_HOME": output / "hf"},
            path=path,
        )
        return output


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch, Hub() as hub:
        patch.setenv("HOME", str(folder))
        patch.setenv("USCL_ZOO_WEIGHTS", str(folder / "own"))
        trial.write(folder / "own")
        repository = publish.build(trial.NAME, folder / "repository", REPO)
        hub.add(REPO, {path.name: path.read_bytes() for path in repository.iterdir()})
        model = uscl_zoo.create_model(trial.NAME, pretrained=True).eval()
        yield Published(hub, repository, folder / "own", embed(model))


@pytest.fixture(autouse=True)
def own(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(published.own))


@pytest.fixture(scope="module")
def plain(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.load(tmp_path_factory.mktemp("plain") / "output", [*PLAIN, *PREPROCESSING])


def embed(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(trial.FRAMES)
    return output


def outcome(output: Path, row: str) -> Any:
    error = output / f"{row}.txt"
    assert not error.exists(), error.read_text()
    return torch.load(output / f"{row}.pt", weights_only=True)


def test_the_expected_embedding_is_one(published: Published) -> None:
    assert published.expected.shape == (2, 512)
    assert published.expected.std() > 0.01
    # of the file's weights, by hand
    model = timm.create_model("resnet18", num_classes=0)
    halved = {k: v.half().float() if v.ndim == 4 else v for k, v in trial.random_state().items()}
    model.load_state_dict(halved)
    assert torch.equal(embed(model), published.expected)


# --------------------------------------------------------------------------- without uscl-zoo


@pytest.mark.parametrize("row", PLAIN)
def test_without_uscl_zoo(row: str, plain: Path, published: Published) -> None:
    found = outcome(plain, row)
    assert found.dtype == torch.float32
    assert_close(found.flatten(1), published.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", PREPROCESSING)
def test_preprocessing_without_uscl_zoo(row: str, plain: Path) -> None:
    found, asked = outcome(plain, row), trial.CARD.input
    assert tuple(found["input_size"]) == asked.size
    assert tuple(found["mean"]) == asked.mean
    assert tuple(found["std"]) == asked.std


def oldest_timm() -> str:
    needed = re.search(r"^ +timm>=([\d.]+)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert needed is not None
    return needed[1]


@pytest.fixture(scope="module")
def old_timm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the oldest supported timm, to go before the installed one."""
    target = tmp_path_factory.mktemp("timm")
    wanted = f"timm=={oldest_timm()}"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*install, wanted], check=True)
    return target


@pytest.mark.slow
def test_oldest_timm_without_uscl_zoo(old_timm: Path, published: Published, tmp_path: Path) -> None:
    output = published.load(tmp_path / "output", PLAIN_TIMM, path=old_timm)
    for row in PLAIN_TIMM:
        assert_close(outcome(output, row), published.expected, rtol=1e-5, atol=1e-5)


WITH_OLD_TIMM = f"""
import sys, timm, torch, uscl_zoo
frames = torch.load(sys.argv[1], weights_only=True)
for create in (timm.create_model, uscl_zoo.create_model):
    model = create({trial.NAME!r}, pretrained=True).eval()
    with torch.no_grad():
        torch.save(model(frames), sys.argv[2])
print(timm.__version__)
"""


@pytest.mark.slow
def test_oldest_timm_with_uscl_zoo(old_timm: Path, published: Published, tmp_path: Path) -> None:
    torch.save(trial.FRAMES, tmp_path / "frames")
    version = trial.python(
        *("-c", WITH_OLD_TIMM, str(tmp_path / "frames"), str(tmp_path / "seen.pt")),
        environment={"HOME": tmp_path, "USCL_ZOO_WEIGHTS": published.own},
        path=old_timm,
    )
    assert version.strip() == oldest_timm() != importlib.metadata.version("timm")
    seen = torch.load(tmp_path / "seen.pt", weights_only=True)
    assert_close(seen, published.expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------ with uscl-zoo


def torch_hub(name: str, **kwargs: Any) -> Any:
    load: Any = torch.hub.load
    return load(str(ROOT), name, source="local", **kwargs)


@pytest.mark.parametrize(("name", "architecture"), MODELS.items())
def test_torch_hub(name: str, architecture: str, published: Published) -> None:
    model = torch_hub(name)
    assert model.num_features == modelcard._WIDTHS[architecture]
    assert embed(model).shape == (2, model.num_features)


def test_torch_hub_pretrained(published: Published) -> None:
    model = torch_hub("resnet18_uscl", pretrained=True, pretrained_cfg="trial")
    assert torch.equal(embed(model), published.expected)


def test_segmentation_models_pytorch(published: Published) -> None:
    import segmentation_models_pytorch as smp

    # the tag names the weights; True takes them
    model = smp.Unet(f"tu-{trial.NAME}", encoder_weights=True, classes=2)
    with torch.no_grad():
        assert model.eval()(trial.FRAMES).shape == (2, 2, 64, 64)
        features = model.encoder(trial.FRAMES)[-1].mean((2, 3))
    assert_close(features, published.expected, rtol=1e-5, atol=1e-5)


def _mask_rcnn(backbone: Any) -> None:
    from torchvision.models.detection import MaskRCNN

    detector = MaskRCNN(backbone, num_classes=2, min_size=64, max_size=64).eval()
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        (found,) = detector([image])
    assert {"boxes", "labels", "masks"} <= found.keys()
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    }
    losses = detector.train()([image], [target])
    assert torch.isfinite(sum(losses.values()))


def test_torchvision_mask_rcnn_on_timms_network(published: Published) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    model = uscl_zoo.create_model(trial.NAME, pretrained=True)
    stages = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    backbone = BackboneWithFPN(model, stages, [64, 128, 256, 512], 256)
    with torch.no_grad():
        last = backbone.body.eval()(trial.FRAMES)["3"].mean((2, 3))
    assert_close(last, published.expected, rtol=1e-5, atol=1e-5)
    _mask_rcnn(backbone)


def test_torchvision_mask_rcnn_on_its_own_network(published: Published) -> None:
    import torchvision
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

    weights = uscl_zoo.create_model(trial.NAME, pretrained=True).state_dict()
    model = torchvision.models.resnet18(weights=None)
    left = model.load_state_dict(weights, strict=False)
    assert (left.missing_keys, left.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    backbone = _resnet_fpn_extractor(model, trainable_layers=3)
    with torch.no_grad():
        last = backbone.body.eval()(trial.FRAMES)["3"].mean((2, 3))
    assert_close(last, published.expected, rtol=1e-5, atol=1e-5)
    _mask_rcnn(backbone)


def test_torch_export(published: Published) -> None:
    model = uscl_zoo.create_model(trial.NAME, pretrained=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (trial.FRAMES,), dynamic_shapes=({0: batch},))
    assert_close(program.module()(trial.FRAMES), published.expected, rtol=1e-5, atol=1e-5)
    one = program.module()(trial.FRAMES[:1])
    assert_close(one, published.expected[:1], rtol=1e-4, atol=1e-5)


def test_onnx(published: Published, tmp_path: Path) -> None:
    import onnxruntime

    model = uscl_zoo.create_model(trial.NAME, pretrained=True).eval()
    path = str(tmp_path / "backbone.onnx")
    torch.onnx.export(model, (trial.FRAMES,), path, dynamo=True, input_names=["frames"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"frames": trial.FRAMES.numpy()})
    assert_close(torch.from_numpy(found), published.expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------- the table


def test_each_row_of_the_table_names_a_test_that_is_there() -> None:
    table = (ROOT / "docs" / "loading.md").read_text(encoding="utf-8")
    source = Path(__file__).read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= len(PLAIN)
    named = re.findall(r"`(test_\w+)(?:\[(\w+)\])?`", "\n".join(rows))
    for test, row in named:
        assert f"def {test}(" in source
        assert not row or row in (*PLAIN, *PREPROCESSING)
    assert {row for _, row in named if row} == {*PLAIN, *PREPROCESSING}
    assert set(re.findall(r"in timm ([\d.]+)", table)) == {oldest_timm()}


def test_the_card_on_disk_is_the_one_published(published: Published) -> None:
    card = read_card(published.own / f"{trial.NAME}.yaml")
    assert (published.folder / "model.safetensors").stat().st_size == card.weights.bytes
