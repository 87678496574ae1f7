"""`uscl info` of files and folders: what they are, or why they are nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from conftest import draw_clip, write_clip
from own import NAME, run, write_model
from timm.models import save_for_hf

from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo.card import Card


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "own", clean=True)


def told(path: object, capsys: pytest.CaptureFixture[str]) -> tuple[str, Any]:
    assert run("info", path) == 0
    text = capsys.readouterr().out
    assert run("info", path, "--json") == 0
    return text, json.loads(capsys.readouterr().out)


def refused(path: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert run("info", path) == 2
    streams = capsys.readouterr()
    (line,) = streams.err.strip().splitlines()
    assert not streams.out and line.startswith("uscl: ")
    return line


def test_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (model, f"local-dir:{model}"):
        text, plain = told(name, capsys)
        assert f"{model}: a model of `uscl finetune`" in text and NAME in text
        assert "3 a second, clean" in text and "temperature 1.5" in text
        assert "Cov, Pneu, Reg" in text and "those of the card" in text
        assert plain["card"]["name"] == NAME and plain["answers"]["clean"] is True


@pytest.mark.parametrize("how", ["weights", "statistics", "answers", "no weights", "no statistics"])
def test_a_model_that_is_malformed(
    how: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    weights = own / "model.safetensors"
    if how == "weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif how == "statistics":
        (own / "statistics.safetensors").write_bytes(b"x")
    elif how == "answers":
        (own / "predict.json").write_text("{")
    else:
        next(own.glob("model.s*" if how == "no weights" else "stat*")).unlink()
    assert str(own) in refused(own, capsys)


def test_a_store(
    small_store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (small_store.folder, small_store.folder / "frames.npy"):
        text, plain = told(path, capsys)
        assert f"{small_store.folder}: a store of `uscl prepare`" in text
        assert f"{len(small_store.frames)} of 32 x 32, 3.0 a second" in text
        assert "3 subjects; Cov 2, Pneu 2, Reg 2" in text and small_store.digest in text
        assert plain["sides"]["heldout"]["subjects"] == 3
    begun = tmp_path / "begun"
    (begun / "parts").mkdir(parents=True)
    assert "was interrupted" in refused(begun, capsys)
    cut = Path(shutil.copytree(small_store.folder, tmp_path / "cut"))
    (cut / "manifest.csv").unlink()
    assert "damaged store" in refused(cut, capsys)
    # one of before there were digests of frames, or anything that may be absent
    old = Path(shutil.copytree(small_store.folder, tmp_path / "old"))
    content = json.loads((old / "store.json").read_text())
    kept = {key: content[key] for key in ("digest", "origin", "sampling")}
    (old / "store.json").write_text(json.dumps(kept))
    assert "32 x 32" in told(old, capsys)[0]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("{}")
    about: dict[str, Any] = {"store": "somewhere\n", "precision": "float32", "training": {}}
    (tmp_path / "run.json").write_text(json.dumps(about))
    text, plain = told(tmp_path, capsys)
    assert "a run of `uscl pretrain`" in text and "none yet" in text and plain == about
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert "`uscl export`" in told(tmp_path, capsys)[0]
    (tmp_path / "run.json").write_text("[]")
    assert "does not describe a run" in refused(tmp_path, capsys)


def test_cards(
    installed: Callable[..., Card], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = installed()
    folder = home / ".uscl_zoo"
    for path in (folder, folder / f"{card.name}.yaml", folder / f"{card.name}.safetensors"):
        text, plain = told(path, capsys)
        assert text.startswith(card.name) and plain["name"] == card.name
    alone = shutil.copy(folder / f"{card.name}.safetensors", home / "alone.safetensors")
    assert "`uscl import` makes one" in refused(alone, capsys)
    (folder / f"{card.name}.yaml").write_text("name: x")
    assert str(folder / f"{card.name}.yaml") in refused(folder, capsys)


def test_a_folder_of_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=2), str(tmp_path / "m"), {})
    text, plain = told(tmp_path / "m", capsys)
    assert "test_resnet" in text and "nobody vouches" in text
    assert plain["architecture"] == "test_resnet"
    for content in ("[]", "{}", '{"architecture": 3}', "{"):
        (tmp_path / "m" / "config.json").write_text(content)
        assert str(tmp_path / "m") in refused(tmp_path / "m", capsys)


def test_what_is_none_of_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it is empty" in refused(empty, capsys)
    write_clip(tmp_path / "clips" / "a", draw_clip(0, 2, (90, 90, 90)))
    assert "read its 1 images or videos" in refused(tmp_path / "clips", capsys)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a\nb.txt").write_text("x")
    (tmp_path / "texts" / "settings.yaml").write_text("- of another program")
    assert "in it are" in refused(tmp_path / "texts", capsys)
    assert "is no card" in refused(tmp_path / "texts" / "a\nb.txt", capsys)
    (tmp_path / "link").symlink_to(tmp_path / "link")
    assert str(tmp_path / "link") in refused(tmp_path / "link", capsys)
    assert "no model" in refused(tmp_path / "nowhere", capsys)
