"""The one door: every way to name a network, and what is refused at it."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import uscl_zoo
from uscl_zoo import cli
from uscl_zoo.embedding.extraction import embed_frames
from uscl_zoo.errors import DataError, DigestError, UnknownModelError, UsclError
from uscl_zoo.network import RATE, Network, UnverifiedWarning, load
from uscl_zoo.zoo.card import Card
from uscl_zoo.zoo.checkpoint import metadata_of, write_backbone

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 90, 120, 3), np.uint8)


def alike(one: Network, other: Network) -> bool:
    return bool(np.allclose(one(FRAMES), other(FRAMES), rtol=0, atol=1e-5))


# -------------------------------------------------------------------------------------- references


def test_one_network_by_all_its_names(
    installed: Callable[..., Card], home: Path, tmp_path: Path
) -> None:
    card = installed()
    folder = home / ".uscl_zoo"
    file, description = folder / card.weights.file, folder / f"{card.name}.yaml"
    copied = tmp_path / "elsewhere.safetensors"
    shutil.copy(file, copied)
    module = uscl_zoo.create_model(card.name, pretrained=True)
    first = load(card.name, "cpu")
    assert (first.kind, first.verified, first.sha256) == ("zoo", True, card.weights.sha256)
    assert first.rate == RATE and first.temperature == 1 and first.classes == ()
    for reference, kind in (
        (str(description), "file"),
        (file, "file"),
        # known by its content, wherever it lies
        (copied, "file"),
        (folder, "folder"),
        (f"local-dir:{folder}", "folder"),
    ):
        found = load(reference, "cpu")
        assert (found.kind, found.verified) == (kind, True)
        assert found.card == card
        assert found.licence == card.licence
        assert not found.module.training
        assert found.transform == first.transform
        assert alike(found, first)
    assert alike(load(module), first)
    assert load(module).kind == "module"
    assert np.allclose(embed_frames(module, FRAMES), first(FRAMES), atol=1e-5)


def test_a_model_of_ones_own(tuned: Path) -> None:
    found = load(tuned, "cpu")
    assert found.kind == "model" and found.verified
    assert found.answers is not None and found.statistics is not None
    assert found.rate == found.answers.rate
    assert found.classes == found.answers.classes
    probabilities, distances = found.run(FRAMES)
    assert np.allclose(probabilities.sum(1), 1)
    assert (distances > 0).all()
    # what timm makes of the folder says the same before the temperature
    network: Any = timm.create_model(f"local-dir:{tuned}", pretrained=True).eval()
    seen = found.transform.batch(FRAMES)
    with torch.inference_mode():
        # of both looks, where the model's answer is
        looks = [seen, seen.flip(3)] if found.flips else [seen]
        logits = np.mean([network(look).numpy() for look in looks], axis=0) / found.temperature
    odds = np.exp(logits - logits.max(1, keepdims=True))
    assert np.allclose(odds / odds.sum(1, keepdims=True), probabilities, atol=1e-5)


def test_what_no_card_vouches_for_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = timm.create_model("test_resnet", num_classes=2)
    save_for_hf(network, str(tmp_path / "m"), {"label_names": ["ill", "well"]})
    with pytest.warns(UnverifiedWarning, match="m: its weights are not verified"):
        found = load(tmp_path / "m", "cpu")
    assert (found.kind, found.verified, found.card) == ("folder", False, None)
    assert found.classes == ("ill", "well")
    path = tmp_path / "a.safetensors"
    state = timm.create_model("resnet50", num_classes=0).state_dict()
    write_backbone(state, path, "resnet50", metadata=metadata_of((0.4, 0.5, 0.6), (0.2, 0.2, 0.3)))
    with pytest.warns(UnverifiedWarning):
        found = load(path, "cpu")
    assert (found.transform.mean, found.transform.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_without_statistics_needs_them(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(timm.create_model("resnet18", num_classes=7).state_dict(), path)
    with pytest.raises(DataError, match="does not say what mean and std"):
        load(path, "cpu")
    with pytest.warns(UnverifiedWarning):
        found = load(path, "cpu", statistics=((0.5,) * 3, (0.25,) * 3))
    assert found.transform.std == (0.25,) * 3
    assert found(FRAMES).shape == (5, 512)


@pytest.mark.parametrize("reference", ["resnet18_usc", "no/such/file", "local-dir:nowhere", ""])
def test_what_is_nothing_is_said(reference: str) -> None:
    with pytest.raises((UnknownModelError, DataError)) as caught:
        load(reference, "cpu")
    assert "\n" not in str(caught.value)


def test_a_name_of_the_zoo_is_not_a_folder_of_that_name(
    installed: Callable[..., Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = installed()
    (tmp_path / card.name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(card.name, "cpu").kind == "zoo"
    with pytest.raises(DataError, match="holds no model"):
        load(f"./{card.name}", "cpu")


def test_an_unusable_device_is_said(installed: Callable[..., Card]) -> None:
    with pytest.raises(DataError, match="device 'cuda:99' cannot be used"):
        load(installed().name, "cuda:99")


# ---------------------------------------------------------------------------------------- refusals


def negate(path: Path) -> None:
    state = load_file(path)
    save_file({name: -tensor for name, tensor in state.items()}, path, {"format": "pt"})


@pytest.fixture
def negated(tuned: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    negate(folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("command", ["predict", "explain", "shortcut", "embed", "evaluate"])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_negated_weights_are_refused_by_every_command(
    command: str,
    prefix: str,
    negated: Path,
    classes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, image = f"{prefix}{negated}", str(classes / "Cov" / "1.png")
    words = {
        "predict": [model, image],
        "explain": [model, image, "-o", str(tmp_path / "o.png")],
        "shortcut": [model, image, "-o", str(tmp_path / "o.html")],
        "embed": ["--model", model, image, "-o", str(tmp_path / "o.npz")],
        "evaluate": [model, "--dataset", "folder", "--data", str(classes), "-o", f"{tmp_path}/r"],
    }
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, *words[command]])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "model.safetensors" in told and "SHA-256" in told
    assert not (tmp_path / "o.png").exists() and not (tmp_path / "o.npz").exists()


def test_a_card_beside_a_file_is_kept(installed: Callable[..., Card], home: Path) -> None:
    card = installed()
    path = home / ".uscl_zoo" / card.weights.file
    negate(path)
    for reference in (card.name, path, path.with_suffix(".yaml"), path.parent):
        with pytest.raises(DigestError):
            load(reference, "cpu")


def test_weights_of_another_architecture_are_refused(
    installed: Callable[..., Card], home: Path
) -> None:
    """A card that names its file rightly, and itself wrongly."""
    card = installed()
    path = home / ".uscl_zoo" / f"{card.name}.yaml"
    path.write_text(path.read_text().replace("architecture: resnet18", "architecture: resnet50"))
    with pytest.raises(UsclError):
        load(path, "cpu")


def test_a_file_that_is_swapped_all_the_while_is_never_believed(
    tuned: Path, tmp_path: Path
) -> None:
    """Another process puts two files in turn where the weights are to be."""
    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    path, good, bad = folder / "model.safetensors", tmp_path / "good", tmp_path / "bad"
    shutil.copy(path, good)
    shutil.copy(path, bad)
    negate(bad)
    expected = load(folder, "cpu")(FRAMES)
    stop = threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            for source in (bad, good):
                beside = tmp_path / f"beside{turn}"
                turn += 1
                os.link(source, beside)
                beside.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = []
    try:
        for _ in range(20):
            try:
                found = load(folder, "cpu")(FRAMES)
            except DigestError:
                outcomes.append("refused")
            else:
                assert np.allclose(found, expected, atol=1e-5)
                outcomes.append("right")
    finally:
        stop.set()
        thread.join()
    assert len(outcomes) == 20


# --------------------------------------------------------------------------------- the same answers


def test_one_output_tells_nothing_apart() -> None:
    found = load(timm.create_model("test_resnet", num_classes=1))
    with pytest.raises(DataError, match="one output"):
        found(FRAMES)
    # whose embedding is as good as any
    assert embed_frames(found.module, FRAMES).shape[0] == 5


def test_no_frames() -> None:
    found = load(timm.create_model("test_resnet", num_classes=2))
    assert found.run([])[0].shape == (0, 2)
    with pytest.raises(DataError, match="there are no frames"):
        found([])
    with pytest.raises(DataError, match="`batch_size` should be a whole number of at least 1"):
        found(FRAMES, batch_size=0)


def test_what_frames_may_be(tuned: Path) -> None:
    found = load(tuned, "cpu")
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    assert np.allclose(found(pictures), found(FRAMES), atol=1e-6)
    assert np.allclose(found(FRAMES, batch_size=2), found(FRAMES), atol=1e-5)
