"""Models that are not what they say: refused at the door, and so by every command."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import FULL
from own import answers_of, write_answers, write_model
from safetensors.torch import load_file, save, save_file
from timm.models import save_for_hf

from uscl_zoo.answers import CONFIG, STATISTICS, UnguardedWarning
from uscl_zoo.cli import main
from uscl_zoo.errors import DataError, UsclError
from uscl_zoo.network import UnverifiedWarning, load
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.ultrasound.transforms import FrameTransform

Spoil = Callable[[Path], None]
NAN, INFINITY = float("nan"), float("inf")


def answers(**changes: Any) -> Spoil:
    """Change `predict.json`, or take keys out of it (`...`)."""

    def spoil(folder: Path) -> None:
        content = answers_of(folder) | changes
        write_answers(folder, {k: v for k, v in content.items() if v is not ...})

    return spoil


def card(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (path,) = folder.glob("*.yaml")
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content))

    return spoil


def config(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        change(content)
        (folder / CONFIG).write_text(json.dumps(content))

    return spoil


def statistics(**tensors: Any) -> Spoil:
    """Other statistics, of which `predict.json` has the digest."""

    def spoil(folder: Path) -> None:
        own = load_file(folder / STATISTICS)
        changed = {k: v(own[k]) if callable(v) else v for k, v in (own | tensors).items()}
        content = save({k: v.contiguous() for k, v in changed.items() if v is not None})
        (folder / STATISTICS).write_bytes(content)
        answers(statistics_sha256=sha256(content).hexdigest())(folder)

    return spoil


def weights(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({k: change(v) for k, v in load_file(path).items()}, path, {"format": "pt"})

    return spoil


def swapped(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    one, other = "layer1.0.conv1.weight", "layer1.0.conv2.weight"
    save_file(state | {one: state[other], other: state[one]}, path, {"format": "pt"})


def another(name: str, seed: int = 1) -> Spoil:
    """A file of another model, of the same kind and classes."""

    def spoil(folder: Path) -> None:
        other = write_model(folder.parent / "other", seed)
        shutil.copy(other / name, folder / name)

    return spoil


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def at(tensor: torch.Tensor, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


SPOILED: dict[str, Spoil] = {
    "no predict.json": without("predict.json"),
    "no threshold": answers(threshold=...),
    "no temperature": answers(temperature=...),
    "a threshold that is NaN": answers(threshold=NAN),
    "a threshold without end": answers(threshold=INFINITY),
    "no threshold but null": answers(threshold=None),
    "a threshold in words": answers(threshold="off"),
    "a threshold of 0": answers(threshold=0),
    "a negative threshold": answers(threshold=-1.0),
    "a negative temperature": answers(temperature=-1.0),
    "a temperature at which nothing is sure": answers(temperature=1e308),
    "a temperature at which all is": answers(temperature=1e-9),
    "a confidence of 7": answers(confidence=7),
    "a rate of 0": answers(rate=0),
    "no validation": answers(validation_frames=0),
    "an unknown key": answers(guard=False),
    "classes in another order": answers(classes=["Reg", "Pneu", "Cov"]),
    "a class twice": answers(classes=["Cov", "Cov", "Reg"]),
    "no statistics": without(STATISTICS),
    "another model's statistics": another(STATISTICS),
    "statistics of other names": statistics(mean=None),
    "statistics that are shorter": statistics(mean=lambda m: m[:-1]),
    "statistics of another network": statistics(
        mean=lambda m: m[:64], precision=lambda p: p[:64, :64]
    ),
    "statistics with NaN": statistics(mean=lambda m: at(m, NAN)),
    "a precision with NaN": statistics(precision=lambda p: at(p, NAN)),
    "a precision of zeros": statistics(precision=torch.zeros_like),
    "a negative precision": statistics(precision=torch.neg),
    "a lopsided precision": statistics(precision=lambda p: p + torch.ones_like(p).triu(1)),
    "whole numbers": statistics(mean=lambda m: m.round().long()[:3]),
    "another model's card": lambda f: card(lambda c: c["weights"].update(sha256="0" * 64))(f),
    "two cards": lambda f: (f / "resnet18_uscl.other.yaml").write_text("name: x"),  # type: ignore
    "no card": lambda f: next(iter(f.glob("*.yaml"))).unlink(),
    "a mean of two": card(lambda c: c["input"].update(mean=[0.5, 0.5])),
    "a mean of NaN": card(lambda c: c["input"].update(mean=[0.5, NAN, 0.5])),
    "a mean in words": card(lambda c: c["input"].update(mean="grey")),
    "a std of zero": card(lambda c: c["input"].update(std=[0.25, 0.0, 0.25])),
    "a negative std": card(lambda c: c["input"].update(std=[0.25, -0.25, 0.25])),
    "another mean in config.json": config(lambda c: c["pretrained_cfg"].update(mean=[0, 0, 0])),
    "another std in config.json": config(lambda c: c["pretrained_cfg"].update(std=[1, 1, -1])),
    "other classes in config.json": config(lambda c: c.update(label_names=["a", "b", "c"])),
    "config.json that is a list": lambda f: (f / CONFIG).write_text("[]"),  # type: ignore
    "swapped weights": swapped,
    "negated weights": weights(torch.neg),
    "weights of zeros": weights(torch.zeros_like),
    "another model's weights": another("model.safetensors"),
    "no weights": without("model.safetensors"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "whole")


def spoiled(whole: Path, folder: Path, how: str) -> Path:
    copied = Path(shutil.copytree(whole, folder / "model"))
    SPOILED[how](copied)
    return copied


def test_what_is_whole_is_taken(whole: Path) -> None:
    found = load(whole, "cpu")
    assert found.verified and found.statistics is not None and found.answers is not None


@pytest.mark.parametrize("how", SPOILED)
def test_refused_at_the_door(how: str, whole: Path, tmp_path: Path) -> None:
    model = spoiled(whole, tmp_path, how)
    for reference in (model, f"local-dir:{model}"):
        with pytest.raises(UsclError) as caught:
            load(reference, "cpu")
        assert str(model) in str(caught.value)
        assert "\n" not in str(caught.value)


COMMANDS = ("predict", "explain", "shortcut", "embed", "evaluate", "probe", "publish")


def words(command: str, model: Path, classes: Path, store: FrameStore, folder: Path) -> list[str]:
    image = str(classes / "Cov" / "1.png")
    return [
        command,
        *{
            "predict": [str(model), image],
            "explain": [str(model), image, "-o", f"{folder}/o.png"],
            "shortcut": [str(model), image, "-o", f"{folder}/o.html"],
            "embed": ["--model", str(model), image, "-o", f"{folder}/o.npz"],
            "evaluate": [
                *(str(model), "--dataset", "folder", "--data", str(classes)),
                *("-o", f"{folder}/r"),
            ],
            "probe": [str(model), "--data", str(store.folder)],
            "publish": [str(model), "--to", "me", "--dry-run", "-o", f"{folder}/repository"],
        }[command],
    ]


@pytest.mark.parametrize(
    ("command", "how"),
    [
        (command, how)
        for i, command in enumerate(COMMANDS)
        for j, how in enumerate(SPOILED)
        if FULL or j % 12 == i
    ],
)
def test_refused_by_every_command(
    command: str,
    how: str,
    whole: Path,
    classes: Path,
    small_store: FrameStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = spoiled(whole, tmp_path, how)
    with pytest.raises(SystemExit) as stopped:
        main(words(command, model, classes, small_store, tmp_path))
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert str(model) in told.strip().splitlines()[-1] and "Traceback" not in told
    assert not [path for path in tmp_path.iterdir() if path.name[0] in "or" and path.is_file()]
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("how", ["negated weights", "another model's card", "no threshold"])
def test_refused_by_finetune(
    how: str, whole: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = spoiled(whole, tmp_path, how)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                *("finetune", "--data", str(classes), "--model", f"local-dir:{model}"),
                *("-o", f"{tmp_path}/own"),
            ]
        )
    assert stopped.value.code == 2
    assert str(model) in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "own" / "predict.json").exists()


# --------------------------------------------------------------------------- folders of timm's own


TIMM: dict[str, dict[str, Any]] = {
    "a mean of two": {"mean": [0.5, 0.5]},
    "a mean of none": {"mean": []},
    "a mean in words": {"mean": "grey"},
    "a mean of words": {"mean": ["a", "b", "c"]},
    "a mean of NaN": {"mean": [0.5, NAN, 0.5]},
    "a mean without end": {"mean": [0.5, INFINITY, 0.5]},
    "one mean": {"mean": 0.5},
    "a std of zero": {"std": [0.2, 0.0, 0.2]},
    "a negative std": {"std": [0.2, -0.2, 0.2]},
    "a std of four": {"std": [0.2, 0.2, 0.2, 0.2]},
    "a size of two": {"input_size": [3, 64]},
    "a size in words": {"input_size": ["3", "64", "64"]},
    "a negative size": {"input_size": [3, -64, 64]},
    "an interpolation of its own": {"interpolation": "magic"},
}


@pytest.mark.parametrize("how", TIMM)
def test_timms_own_folders(how: str, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=2)
    save_for_hf(network, str(tmp_path / "m"), {})
    path = tmp_path / "m" / CONFIG
    content = json.loads(path.read_text())
    content["pretrained_cfg"] |= TIMM[how]
    path.write_text(json.dumps(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedWarning)
        with pytest.raises(DataError) as caught:
            load(tmp_path / "m", "cpu")
    assert str(tmp_path / "m") in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (0.5, NAN)}, {"std": (0.1, 0.0)}, {"std": (0.1, -1.0)}, {"std": ("a", "b")}],
)
def test_no_transform_has_them(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="should be"):
        FrameTransform(**({"size": (8, 8), "mean": (0.5, 0.5), "std": (0.2, 0.2)} | wrong))


# -------------------------------------------------------------------------------------- the guard


def test_a_guard_that_lets_all_pass_is_said(whole: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        model = write_model(tmp_path / "low", threshold=90.0)
        load(model, "cpu")
    with pytest.warns(UnguardedWarning, match="lets every image pass"):
        load(write_model(tmp_path / "high", threshold=1e30), "cpu")


def test_explanations_without_a_guard_say_so(
    whole: Path, classes: Path, installed: Callable[..., Any]
) -> None:
    from uscl_zoo.classifier.gradcam import explain

    image = classes / "Cov" / "1.png"
    guarded = explain(whole, image, device="cpu", progress=False)
    assert "not known" not in guarded.title
    network = timm.create_model("test_resnet", num_classes=2)
    found = explain(network, image, device="cpu", progress=False)
    assert found.title.endswith("whether it is like the training images is not known")
    # of a backbone it says that it has no classifier at all
    assert "not known" not in explain(installed().name, image, device="cpu", progress=False).title


def test_zoo_networks_of_other_channels_are_taken_still() -> None:
    for channels in (1, 3, 4, 5):
        network = timm.create_model("test_resnet", in_chans=channels)
        frames = np.zeros((1, 20, 20, 3), np.uint8)
        assert load(network).transform.channels == channels
        assert len(load(network)(frames)) == 1
