"""Cleaning, and brightness alone, belong to the model: it is shown what it was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own import answers_of, run, write_answers, write_model
from PIL import Image, ImageDraw

pytest.importorskip("uscl_zoo.ultrasound.beam")

from uscl_zoo.answers import read_model
from uscl_zoo.classifier.gradcam import explain
from uscl_zoo.classifier.prediction import predict
from uscl_zoo.classifier.shortcuts import shortcut
from uscl_zoo.cli import main
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.errors import DataError
from uscl_zoo.network import load
from uscl_zoo.training.downstream import datasets, regression
from uscl_zoo.training.evaluation import evaluate as module
from uscl_zoo.training.evaluation import probe, results
from uscl_zoo.training.evaluation.subset import take
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.labels import Annotation
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.ultrasound.phantom import lung_clip
from uscl_zoo.ultrasound.sources import Look


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The phantom with nothing around it, and with a bright bar in a corner outside its beam."""
    folder = tmp_path_factory.mktemp("phantoms")
    frames, _ = lung_clip(seconds=2, rate=3, size=(240, 240))
    frames = frames.copy()
    frames[:40, :100] = 0
    found = {}
    for name in ("bare", "marked"):
        pictures = [Image.fromarray(frame) for frame in frames]
        if name == "marked":
            for picture in pictures:
                ImageDraw.Draw(picture).rectangle((2, 2, 40, 12), fill=(255, 220, 40))
        found[name] = folder / f"{name}.png"
        pictures[0].save(
            found[name], save_all=True, append_images=pictures[1:], duration=333, loop=0
        )
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "clean", clean=True)


def frames_of(model: Path, clip: Path, **told: Any) -> np.ndarray[Any, Any]:
    found = predict(model, clip, device="cpu", progress=False, **told)
    return np.array([list(answer.probabilities.values()) for answer in found.frames])


def test_predict_explain_shortcut_and_embed_say_the_same(
    model: Path, phantoms: dict[str, Path]
) -> None:
    ways: list[dict[str, Any]] = [{}, {"clean": False}]
    for told in ways:
        probabilities = frames_of(model, phantoms["marked"], **told)
        mean = probabilities.mean(axis=0)
        explained = explain(model, phantoms["marked"], device="cpu", progress=False, **told)
        best = int(mean.argmax())
        assert explained.label == load(model, "cpu").classes[best]
        assert explained.scores == pytest.approx(probabilities[:, best], abs=1e-5)
        assert explained.clean is not bool(told)
        (case,) = shortcut(model, phantoms["marked"], device="cpu", progress=False, **told).cases
        assert case.before == pytest.approx(mean, abs=1e-5)
        embedded = embed(model, phantoms["marked"], device="cpu", progress=False, **told)
        network: Any = load(model, "cpu").module
        logits = embedded.features @ network.fc.weight.detach().numpy().T
        logits = (logits + network.fc.bias.detach().numpy()) / 1.5
        powers = np.exp(logits - logits.max(1, keepdims=True))
        assert powers / powers.sum(1, keepdims=True) == pytest.approx(probabilities, abs=1e-5)


def test_what_is_around_the_beam_reaches_no_model_made_for_cleaned_frames(
    model: Path, phantoms: dict[str, Path]
) -> None:
    bare, marked = (frames_of(model, phantoms[name]) for name in ("bare", "marked"))
    assert marked == pytest.approx(bare, abs=0.02)
    whole = [frames_of(model, phantoms[name], clean=False) for name in ("bare", "marked")]
    assert np.abs(whole[0] - whole[1]).max() > 0.02
    result = shortcut(model, phantoms["marked"], device="cpu", progress=False)
    assert result.cases[0].moved == 0
    assert any("made for cleaned frames" in name for name, _ in result.summary())
    assert (
        shortcut(model, phantoms["marked"], device="cpu", progress=False, clean=False)
        .cases[0]
        .moved
    )


def test_explanations_are_of_what_the_network_saw(model: Path, phantoms: dict[str, Path]) -> None:
    found = explain(model, phantoms["marked"], device="cpu", progress=False)
    left, top, right, bottom = found.beam.box
    assert found.beam.mask.shape == (240, 240) and (right - left, bottom - top) != (240, 240)
    assert found.frames[0].size == (right - left, bottom - top)
    assert "cleaned before the network saw it" in found.subtitle


def test_frames_are_cleaned_as_prepare_cleans_them(
    phantoms: dict[str, Path], tmp_path: Path
) -> None:
    for sampling in (Sampling(size=64, clean=True), Sampling(size=64, clean=True, grey=True)):
        store = prepare(
            [phantoms["marked"]],
            tmp_path / f"store{sampling.grey}",
            lambda name: Annotation(name, "a"),
            sampling=sampling,
            holdout=0,
            workers=1,
            progress=False,
        ).store
        look = Look(3.0, clean=True, grey=sampling.grey)
        own = [
            np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
            for _, image in look.at(phantoms["marked"])
        ]
        # grey before it is resized, or after
        assert np.abs(np.stack(own).astype(int) - store.frames[:]).max() <= sampling.grey


def test_models_of_before_and_those_of_stores(model: Path, tmp_path: Path) -> None:
    answers = read_model(model)[1]
    for sampling in (Sampling(), Sampling(clean=True), Sampling(grey=True)):
        made = answers.made_for(sampling.settings())
        assert (made.clean, made.grey) == (sampling.clean, sampling.grey)
    old = Path(shutil.copytree(model, tmp_path / "old"))
    content = answers_of(old)
    del content["clean"], content["grey"]
    write_answers(old, content)
    network = load(old, "cpu")
    assert network.look() == Look(3.0)
    assert network.look(1.0, True) == Look(1.0, clean=True)


def test_finetune_records_how_its_store_was_made(
    small_store: FrameStore, tmp_path: Path, installed: Any
) -> None:
    from uscl_zoo.training.finetuning.finetune import finetune

    store = Path(shutil.copytree(small_store.folder, tmp_path / "store"))
    path = store / "store.json"
    description = json.loads(path.read_text())
    description["sampling"] |= {"clean": True, "grey": True}
    path.write_text(json.dumps(description))
    finetune(
        store,
        tmp_path / "model",
        model=installed().name,
        epochs=1,
        train="head",
        resamples=20,
        device="cpu",
        progress=False,
        tell=lambda text: None,
    )
    answers = read_model(tmp_path / "model")[1]
    assert answers.clean and answers.grey


@pytest.fixture(scope="module")
def divided(phantoms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, with two clips each, of the phantom bare and marked."""
    folder = tmp_path_factory.mktemp("divided")
    for name, clip in phantoms.items():
        (folder / name).mkdir()
        for number in range(2):
            shutil.copy(clip, folder / name / f"{number}.png")
    return folder


def test_evaluate_shows_each_model_the_frames_it_was_made_for(
    model: Path, divided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_all_cases", lambda *arguments: {})
    grey = write_model(tmp_path / "grey", grey=True)
    whole = write_model(tmp_path / "whole")
    files = sorted(divided.glob("*/*"))

    def judged(*models: Path, **told: Any) -> module.Evaluation:
        return module.evaluate(
            [str(one) for one in models],
            datasets.load("folder", divided),
            tmp_path / "report",
            folds=2,
            seeds=1,
            resamples=100,
            workers=1,
            device="cpu",
            progress=False,
            tell=lambda text: None,
            **told,
        )

    found = judged(model, grey, whole)
    forms = [str(outcome.form) for outcome in found.outcomes]
    assert forms == ["64², clean", "64², grey", "64²"]
    assert "like is not compared with like" in results.markdown(found, "")
    for one in (model, grey, whole):
        own = embed(one, files, device="cpu", progress=False).features
        # grey before it is resized, or after
        assert found.embedded[str(one)] == pytest.approx(own, abs=0.05 if one == grey else 1e-4)
    plain = judged(model, clean=False)
    own = embed(model, files, clean=False, device="cpu", progress=False).features
    assert plain.embedded[str(model)] == pytest.approx(own, abs=1e-4)
    assert np.abs(plain.embedded[str(model)] - found.embedded[str(model)]).max() > 0.01
    assert str(judged(whole, clean=True).outcomes[0].form) == "64², clean"


def test_a_store_of_other_frames_is_refused(
    model: Path, small_store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cleaned = Path(shutil.copytree(small_store.folder, tmp_path / "store"))
    description = json.loads((cleaned / "store.json").read_text())
    description["sampling"]["clean"] = True
    (cleaned / "store.json").write_text(json.dumps(description))
    store, whole = FrameStore(cleaned), write_model(tmp_path / "whole")
    few: dict[str, Any] = {"random_seeds": 1, "resamples": 100, "progress": False}
    for one, there, made, other in (
        (model, small_store, "cleaned", "whole"),
        (whole, store, "whole", "cleaned"),
    ):
        said = rf"is to be shown {made} frames, and those of .* are {other}; .*`clean="
        with pytest.raises(DataError, match=said):
            probe.compare(str(one), there, **few)
        with pytest.raises(DataError, match=said):
            probe.penalty_table(str(one), there)
        data = datasets.load_store(there.folder)
        with pytest.raises(DataError, match=said):
            module.evaluate([str(one)], data, tmp_path / "report", progress=False)
        assert run("probe", one, "--data", there.folder) == 2
        assert "prepare another, or take them as they are by --" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    # a backbone says nothing of it
    for name, clean in ((str(model), None), (str(whole), True), ("resnet18_uscl", None)):
        probe._judged(name, store, clean)


def test_probe_shows_brightness_alone_to_what_was_made_for_it(
    small_store: FrameStore, tmp_path: Path
) -> None:
    grey = write_model(tmp_path / "grey", grey=True)
    few: dict[str, Any] = {"random_seeds": 1, "resamples": 100, "progress": False}
    copied = take(small_store, small_store.videos, tmp_path / "copied", 32, grey=True)
    assert copied.is_grey and not small_store.is_grey
    frames = copied.frames[:]
    assert (frames == frames[..., :1]).all()
    network: Any = load(grey, "cpu").module
    rows = np.arange(len(frames))
    shown, same = (
        regression.features(network, store, rows, grey=store is small_store)
        for store in (small_store, copied)
    )
    assert shown == pytest.approx(same, abs=1e-5)
    assert (
        probe.compare(str(grey), small_store, **few).pretrained
        == probe.compare(str(grey), copied, **few).pretrained
    )


def test_the_commands_take_it(
    model: Path, phantoms: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(phantoms["marked"])
    for option in ([], ["--no-clean"]):
        name = "no" if option else "as_made"
        main(["predict", str(model), clip, "-o", f"{tmp_path}/{name}.json", *option])
        main(["embed", "--model", str(model), clip, "-o", f"{tmp_path}/{name}.npz", *option])
        main(["explain", str(model), clip, "-o", f"{tmp_path}/{name}.png", *option])
        main(["shortcut", str(model), clip, "-o", f"{tmp_path}/{name}.html", *option])
        told = capsys.readouterr().out
        assert ("made for cleaned frames" in told) is not bool(option)
        assert ("cleaned before the network" in told) is not bool(option)
    with np.load(tmp_path / "as_made.npz") as one, np.load(tmp_path / "no.npz") as other:
        assert np.abs(one["features"] - other["features"]).max() > 0.01
