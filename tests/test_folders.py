"""The folder of a model works wherever a name of the zoo does, and is verified wherever it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINTS, draw_classes, draw_clip
from own import CLASSES, NAME, run, write_model
from PIL import Image

import uscl_zoo
from uscl_zoo.errors import UsclError
from uscl_zoo.ultrasound.transforms import FrameTransform

FRAME = draw_clip(0, 1, TINTS["Cov"])[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("own") / "model")


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("still") / "x.png"
    Image.fromarray(FRAME).save(path)
    return path


@pytest.mark.parametrize("kind", [str, Path, lambda path: f"local-dir:{path}"])
def test_create_model(kind: Callable[[Path], Any], model: Path) -> None:
    network = uscl_zoo.create_model(kind(model), pretrained=True).eval()
    transform = uscl_zoo.create_transform(model)
    assert (
        transform
        == uscl_zoo.create_transform(network)
        == FrameTransform((64, 64), (0.5,) * 3, (0.25,) * 3)
    )
    with torch.inference_mode():
        logits = network(transform(FRAME)[None])
        said = torch.softmax(logits / 1.5, 1)[0]
    answer = uscl_zoo.predict(model, FRAME, device="cpu", progress=False)[0]
    assert said.tolist() == pytest.approx([answer.probabilities[c] for c in CLASSES], abs=1e-4)
    headless = uscl_zoo.create_model(kind(model), pretrained=True, num_classes=0).eval()
    with torch.inference_mode():
        vector = headless(transform(FRAME)[None])[0].numpy()
    assert vector == pytest.approx(uscl_zoo.Embedder(model, device="cpu")(FRAME), abs=1e-4)


def test_create_model_without_its_weights(model: Path) -> None:
    torch.manual_seed(0)
    network = uscl_zoo.create_model(model)
    known = uscl_zoo.create_model(model, pretrained=True)
    assert not torch.equal(network.fc.weight, known.fc.weight)  # type: ignore[arg-type, union-attr]


def test_a_changed_folder_is_not_loaded(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    for call in (
        lambda: uscl_zoo.create_model(model, pretrained=True),
        lambda: uscl_zoo.embed(model, FRAME),
    ):
        with pytest.raises(UsclError, match=r"model\.safetensors"):
            call()


def test_a_name_of_the_zoo_is_not_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "resnet18_uscl")
    assert uscl_zoo.model_info("resnet18_uscl").name == "resnet18_uscl.open"
    assert uscl_zoo.create_transform("resnet18_uscl").size == (224, 224)
    assert uscl_zoo.create_model("resnet18_uscl").num_classes == 0
    assert uscl_zoo.model_info("./resnet18_uscl").name == NAME


def test_in_python(model: Path, still: Path) -> None:
    assert uscl_zoo.model_info(model).name == NAME
    assert uscl_zoo.embed(model, still, device="cpu", progress=False).features.shape == (1, 512)
    assert uscl_zoo.explain(model, still, device="cpu", progress=False).label in CLASSES
    network = uscl_zoo.network.load(model, "cpu")
    # what was loaded once is as good as its name
    assert np.allclose(
        uscl_zoo.embed(network, still, progress=False).features,
        uscl_zoo.embed(model, still, device="cpu", progress=False).features,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("info MODEL", NAME),
        ("info MODEL --json", f'"name": "{NAME}"'),
        ("where MODEL", "MODEL/model.safetensors"),
        ("verify MODEL", f"{NAME}: verified"),
        ("embed STILL --model MODEL -o OUT/x.npz --device cpu", "1 frames of 1 files"),
        ("predict MODEL STILL --device cpu", "x.png: "),
        ("explain MODEL STILL -o OUT/x.png --device cpu", "written"),
        ("shortcut MODEL STILL -o OUT/x.html --device cpu", "written"),
        ("demo --model MODEL -o OUT/demo.png", "written"),
        (
            "evaluate MODEL --dataset folder --data DATA -o OUT/e --protocol knn --folds 3 "
            "--resamples 100 --device cpu",
            "MODEL",
        ),
        ("publish MODEL --to me --dry-run --licence MIT -o OUT/repo", ""),
    ],
)
def test_on_the_command_line(
    command: str,
    said: str,
    model: Path,
    still: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = {"MODEL": model, "STILL": still, "OUT": tmp_path}
    if "DATA" in command:
        words["DATA"] = draw_classes(tmp_path / "data")
    for word, path in words.items():
        command, said = command.replace(word, str(path)), said.replace(word, str(path))
    assert run(*command.split()) == 0, capsys.readouterr().err
    assert said in capsys.readouterr().out


def test_to_begin_with(model: Path) -> None:
    from uscl_zoo.training.finetuning.gathering import backbone
    from uscl_zoo.training.pretraining.starts import load_start

    start = load_start(str(model))
    assert (start.architecture, start.mean, start.reference) == ("resnet18", (0.5,) * 3, str(model))
    base = backbone(str(model))
    assert (base.architecture, base.input.size) == ("resnet18", (3, 64, 64))
    assert base.card is not None and base.card.name == NAME
    own = uscl_zoo.create_model(model, pretrained=True, num_classes=0)
    for network in (start.network, base.network):
        weight: Any = network.get_parameter("conv1.weight")
        assert torch.equal(weight, own.get_parameter("conv1.weight"))
