"""`uscl evaluate` from data to report: its figures, what is kept, and what is said."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
from conftest import SUBJECT, draw_classes
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from timm.models import save_for_hf

from uscl_zoo import cli
from uscl_zoo.errors import DataError, UnknownModelError
from uscl_zoo.training.downstream import contenders, datasets, infold
from uscl_zoo.training.downstream.contenders import contender
from uscl_zoo.training.downstream.folds import Folds
from uscl_zoo.training.downstream.infold import Setting
from uscl_zoo.training.downstream.scoring import COMPARED
from uscl_zoo.training.evaluation import bench, pictures, protocols, results
from uscl_zoo.training.evaluation import evaluate as module
from uscl_zoo.training.evaluation.evaluate import Evaluation, _twins, evaluate
from uscl_zoo.training.evaluation.subset import take
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import Card, read_card
from uscl_zoo.zoo.catalogue import model_info
from uscl_zoo.zoo.checkpoint import metadata_of, write_backbone
from uscl_zoo.zoo.descriptions import standing
from uscl_zoo.zoo.digests import sha256_of

TINY = Setting(32, 1, "float32")
METHOD = "method:pocus_resnet18+classes=null+batch_size=4+smallest_batch=2"


@pytest.fixture
def drawn() -> None:
    """Asks for pictures, t-SNE and Grad-CAM among them, which cost more than all they show."""


@pytest.fixture(autouse=True)
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained here is trained briefly, and drawn where a test looks at it."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(pictures, "of", lambda evaluation: iter(()))
        monkeypatch.setattr(module, "_all_cases", lambda *arguments: {})
    monkeypatch.setitem(infold.SETTINGS, "reduced", TINY)
    monkeypatch.setattr(contenders, "SIZE", 32)
    monkeypatch.setitem(protocols.BUDGETS, "reduced", protocols.Budget(2, 2))


def run(data: Path, output: Path, *models: str, **options: Any) -> Evaluation:
    """Evaluate on a folder per class, quietly and with little."""
    given: dict[str, Any] = {"folds": 3, "seeds": 2, "resamples": 100, "workers": 1}
    return evaluate(
        models,
        datasets.load("folder", data),
        output,
        device="cpu",
        progress=False,
        tell=lambda line: None,
        **(given | options),
    )


#: Of the evaluation that several tests look at.
CHOSEN: dict[str, Any] = {"protocols": ("knn", "linear", "finetune-last"), "folds": 2}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


@pytest.fixture
def evaluated(classes: Path, where: Path, tiny: None) -> Evaluation:
    """Random weights beside those of a method, at `where`: the second time from what is kept."""
    return run(classes, where, "random", METHOD, **CHOSEN)


@pytest.mark.slow
def test_figures_are_those_of_the_answers(evaluated: Evaluation, tmp_path: Path) -> None:
    found = evaluated
    results.write(found, tmp_path, "uscl evaluate")
    told = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "answers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 3 * 27
    labels = told["classes"]
    for outcome in told["outcomes"]:
        scores = []
        for seed in range(outcome["seeds"]):
            own = [
                row for row in rows
                if (row["protocol"], row["model"], row["seed"])
                == (outcome["protocol"], outcome["model"], str(seed))
            ]  # fmt: skip
            rows_said = [[float(row[label]) for label in labels] for row in own]
            said = [labels[place] for place in np.argmax(rows_said, axis=1)]
            scores.append(balanced_accuracy_score([row["class"] for row in own], said))
        figure = outcome["clip"]["balanced accuracy"]
        assert figure["value"] == pytest.approx(np.mean(scores), abs=1e-5)
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert {(d["protocol"], d["first"], d["second"]) for d in told["differences"]} == {
        (protocol, "random", METHOD) for protocol in CHOSEN["protocols"]
    }
    assert {d["metric"] for d in told["differences"]} == set(COMPARED)
    assert told["about"]["precision"] == "float32"


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_the_page_needs_no_other_file(classes: Path, tmp_path: Path) -> None:
    found = run(classes, tmp_path, "random", protocols=("linear",), shares=(0.25, 1.0))
    results.write(found, tmp_path, "uscl evaluate random")
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {
        "compared.png",
        "efficiency.png",
        "confusion-linear-random.png",
        "roc-linear-random.png",
        "reliability-linear-random.png",
        "cases-random.png",
        "embedding-random.png",
    }
    assert page.count("data:image/png") == len(drawn)
    for name in drawn:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
    tables = (tmp_path / "results.md").read_text()
    assert "linear, by clip" in tables and "label efficiency" in tables
    # stills that are their own subject: three units would be three times the same
    assert "## linear, by frame" not in tables and "## linear, by subject" not in tables
    whole = found.efficiency["random"][-1][1]["clip"].scores["balanced accuracy"]
    same = found.outcomes[0].figures["clip"].scores["balanced accuracy"]
    assert whole.value == pytest.approx(same.value)


@pytest.mark.slow
def test_nothing_is_computed_twice(
    classes: Path, where: Path, evaluated: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("computed again")

    for name in ("features", "knn", "finetuned"):
        monkeypatch.setattr(bench, name, never)
    again = run(classes, where, "random", METHOD, **CHOSEN)
    for one, other in zip(evaluated.outcomes, again.outcomes, strict=True):
        assert np.array_equal(one.probabilities, other.probabilities)
        assert (one.best, one.last) == (other.best, other.last)


def test_the_optimistic_figure_stands_beside_the_last_epoch(classes: Path, tmp_path: Path) -> None:
    found = run(classes, tmp_path, "random", protocols=("finetune-last",))
    (outcome,) = found.outcomes
    assert outcome.last is not None and outcome.best is not None
    assert outcome.best >= outcome.last
    assert outcome.figures["clip"].scores["accuracy"].value == pytest.approx(outcome.last)
    tables = results.markdown(found, "")
    assert "best epoch on the held-out fold" in tables
    assert "paper" not in tables  # whose figure is of POCUS


def test_weights_that_have_seen_the_data_are_marked(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = model_info("resnet18_uscl").training.sources[0].name
    data = datasets.load("folder", classes)
    object.__setattr__(data, "name", name)
    monkeypatch.setattr(datasets, "load", lambda *a, **k: data)
    found = run(classes, tmp_path, "resnet18_uscl", "random")
    assert [outcome.seen.leaks for outcome in found.outcomes] == [True, False]
    told = [outcome.seen.words for outcome in found.outcomes]
    assert told == ["in corpus (by name; none of 27 files recognised)", "untrained"]
    for text in (results.markdown(found, ""), results.page(found, "", [])):
        assert told[0] in text
    # random networks are given what the others are
    assert [outcome.form.size for outcome in found.outcomes] == [224, 224]


def test_models_are_compared_with_one_at_each_share(classes: Path, tmp_path: Path) -> None:
    chosen: Any = {"shares": (0.25, 1.0), "against": "random:resnet50", "seeds": 1}
    found = run(classes, tmp_path, "random", "random:resnet50", **chosen)
    results.write(found, tmp_path, "uscl evaluate")
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["reference"] == "random:resnet50"
    assert [
        (one["share"], one["metric"], one["first"], one["second"])
        for one in told["differences by share"]
    ] == [
        (share, metric, "random", "random:resnet50") for metric in COMPARED for share in (0.25, 1.0)
    ]
    whole, at_all = (
        [one for one in told[key] if one["metric"] == "macro AUROC"][-1]
        for key in ("differences", "differences by share")
    )
    assert (whole["value"], whole["low"], whole["p"]) == (
        at_all["value"],
        at_all["low"],
        at_all["p"],
    )
    tables = (tmp_path / "results.md").read_text()
    assert "## label efficiency, by clip: differences to random:resnet50" in tables
    assert "| 25 % | random − random:resnet50 |" in tables
    with pytest.raises(DataError, match="`against=other`: is none of the models"):
        run(classes, tmp_path, "random", against="other")


def test_like_is_compared_with_like(classes: Path, tmp_path: Path) -> None:
    def sizes(*specs: str) -> list[int]:
        return [one.shape.size[1] for one in contenders.contenders(specs, Setting(64, 1, "auto"))]

    assert sizes("random") == [32]
    assert sizes("random", METHOD) == [64, 64]
    assert sizes("random", METHOD, "resnet18_uscl") == [224, 64, 224]
    assert "like is not compared" not in results.markdown(run(classes, tmp_path, "random"), "")


def weights(path: Path, metadata: dict[str, str] | None = None) -> Path:
    network = timm.create_model("resnet18", num_classes=0, zero_init_last=False)
    write_backbone(network.state_dict(), path, "resnet18", metadata=metadata)
    return path


def test_a_file_says_what_its_frames_are_normalised_by(tmp_path: Path) -> None:
    mean, std = (0.48, 0.45, 0.4), (0.229, 0.224, 0.225)
    own = contender(str(weights(tmp_path / "own.safetensors", metadata_of(mean, std))), TINY)
    assert (own.kind, own.shape.mean, own.shape.std) == ("file", mean, std)
    silent = str(weights(tmp_path / "silent.safetensors"))
    with pytest.raises(DataError, match=r"silent.safetensors: does not say .* .`statistics`"):
        contender(silent, TINY)
    (told,) = contenders.contenders([silent], TINY, (mean, std))
    assert (told.shape.mean, told.shape.std) == (mean, std)
    with pytest.raises(DataError, match="no model is one"):
        contenders.contenders(["random"], TINY, (mean, std))


def test_answers_are_of_the_mean_and_std_they_were_given(classes: Path, tmp_path: Path) -> None:
    silent = str(weights(tmp_path / "silent.safetensors"))
    dark, bright = (
        run(classes, tmp_path / "report", silent, statistics=((m, m, m), (0.25, 0.25, 0.25)))
        for m in (0.1, 0.9)
    )
    assert not np.array_equal(dark.outcomes[0].probabilities, bright.outcomes[0].probabilities)


def test_a_file_of_the_zoo_is_known_by_its_content(tmp_path: Path) -> None:
    bundled = weights_cache.locate(model_info("resnet18_uscl")).path
    copied = tmp_path / "mine.safetensors"
    copied.write_bytes(bundled.read_bytes())
    one = contender(str(copied), TINY)
    assert (one.kind, one.identity) == ("file", sha256_of(bundled))
    assert one.build(0, None).num_features == 512
    assert one.card is not None and one.card.name == model_info("resnet18_uscl").name
    assert one.shape.mean == one.card.input.mean


def labelled(store_: FrameStore, **options: Any) -> datasets.DataSet:
    return datasets.load_store(store_.folder, **options)


@pytest.fixture(scope="module")
def half(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """The clips of `small_store`, with two subjects of three held out."""
    return prepare(
        [clips],
        tmp_path_factory.mktemp("half") / "store",
        lambda name: from_name(name, subject_pattern=SUBJECT),
        sampling=Sampling(size=48),
        holdout=0.7,
        workers=1,
        origin={"name": "Clips", "url": None, "citation": None},
        progress=False,
    ).store


def test_a_store_is_judged_within_its_held_out_subjects(half: FrameStore, tmp_path: Path) -> None:
    data = labelled(half)
    held = set(half.description["held_out_subjects"])
    assert {video.subject for video in data.videos} == held and len(held) == 6
    options: Any = {"folds": 2, "seeds": 1, "resamples": 100, "progress": False, "device": "cpu"}
    found = evaluate(["random"], data, tmp_path, tell=lambda line: None, **options)
    assert {video.subject for video in found.folds.videos} == held
    # their own frames, in the size that was asked for
    copy = FrameStore(tmp_path / "work" / "store-32")
    assert copy.frames.shape[1:] == (32, 32, 3)
    for own, theirs in zip(copy.videos, data.videos, strict=True):
        assert (own.name, own.subject, own.label) == (theirs.name, theirs.subject, theirs.label)
        small = Image.fromarray(half.frames[theirs.first]).resize(
            (32, 32), Image.Resampling.BILINEAR
        )
        assert np.array_equal(copy.frames[own.first], np.asarray(small))
    text = results.markdown(found, "")
    assert "the 6 held-out subjects of the store, and no other" in text
    everyone = labelled(half, everyone=True)
    assert len({video.subject for video in everyone.videos}) == 9
    assert everyone.collection.notes[0].endswith("of whom 3 are not held out")


def test_classes_of_a_store_are_chosen(half: FrameStore) -> None:
    labels = sorted({video.label or "" for video in half.videos})
    some = labelled(half, classes=[labels[0][:3].upper() + "*", labels[1]])
    assert {video.label for video in some.videos} == set(labels[:2])
    assert "videos of other classes left out" in some.collection.notes[1]
    with pytest.raises(DataError, match=r"1 classes of .*, and two are needed; labels: "):
        labelled(half, classes=[labels[0]])


def test_a_store_of_which_nobody_is_held_out_is_said(half: FrameStore, tmp_path: Path) -> None:
    copy = take(half, half.select("train"), tmp_path / "copy", 32)
    with pytest.raises(DataError, match=r"none of a held-out subject; .* `everyone=True`"):
        labelled(copy)


def test_a_folder_of_timm_is_a_model_whatever_its_architecture(tmp_path: Path) -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=2)
    save_for_hf(network, str(tmp_path), safe_serialization=True)
    one = contender(f"local-dir:{tmp_path}", TINY)
    assert (one.kind, one.shape.size) == ("folder", (3, 224, 224))
    key = "conv_stem.weight"
    assert one.build(0, None).state_dict()[key].equal(network.state_dict()[key])
    other = timm.create_model("mobilenetv3_small_050", num_classes=2)
    save_for_hf(other, str(tmp_path), safe_serialization=True)
    assert contender(f"local-dir:{tmp_path}", TINY).identity != one.identity


def test_a_network_without_residual_blocks_is_refused_before_any_work(
    classes: Path, tmp_path: Path
) -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=2)
    save_for_hf(network, str(tmp_path / "model"), safe_serialization=True)
    spec, report = f"local-dir:{tmp_path / 'model'}", tmp_path / "report"
    with pytest.raises(DataError, match="has no last residual block"):
        run(classes, report, "random", spec, protocols=("knn", "finetune-last"))
    assert not report.exists()


def test_a_folder_without_a_network_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no model, .*config\.json"):
        contender(f"local-dir:{tmp_path}", TINY)


def test_random_networks_differ_by_seed() -> None:
    one = contenders.contender("random:resnet50", TINY)
    first, again, other = (one.build(seed, None).state_dict()["conv1.weight"] for seed in (0, 0, 1))
    assert first.equal(again) and not first.equal(other)
    assert one.varies


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet18_usc", "no file or folder, no model of timm"),
        ("random:vgg16", "should be one of resnet18, resnet50"),
    ],
)
def test_what_is_no_model_is_said(spec: str, said: str) -> None:
    with pytest.raises(UnknownModelError, match=said):
        contender(spec, TINY)


def test_a_file_of_something_else_is_said(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DataError, match="fits no architecture of the zoo"):
        contender(str(path), TINY)


@pytest.mark.parametrize(
    ("models", "options", "said"),
    [
        (("random", "random"), {}, "named twice"),
        (("random",), {"shares": (0.0,)}, "above 0 and up to 1"),
        (("random",), {"folds": 10}, "too few for 10 folds"),
    ],
)
def test_what_cannot_be_is_refused(
    classes: Path, tmp_path: Path, models: tuple[str, ...], options: Any, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        run(classes, tmp_path, *models, **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = draw_classes(tmp_path / "data", each=4), tmp_path / "report"
    asked = ["evaluate", "random", "--dataset", "folder", "--data", str(data), "-o", str(output)]
    asked += ["--folds", "2", "--seeds", "1", "--resamples", "100", "--workers", "1"]
    cli.main(asked)
    told = capsys.readouterr().out
    assert "| random | 32² |" in told and "report.html" in told
    assert json.loads((output / "results.json").read_text())["about"]["seeds"] == 1
    with pytest.raises(SystemExit) as stopped:
        cli.main([*asked[:2], "--dataset", "nothing", *asked[4:]])
    assert stopped.value.code == 2
    assert "nothing" in capsys.readouterr().err


def test_figures_go_onto_a_card(
    installed: Callable[..., Card],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, output = draw_classes(tmp_path / "data", each=4), tmp_path / "report"
    name = installed().name
    card = home / ".uscl_zoo" / f"{name}.yaml"
    asked = ["evaluate", name, "random", "--dataset", "folder", "--data", str(data)]
    asked += ["-o", str(output), "--folds", "2", "--seeds", "1", "--resamples", "100"]
    asked += ["--workers", "1", "--shares", "50,100", "--protocol", "knn", "--protocol", "linear"]
    words = [*asked, "--card", str(card), "--against", "random"]
    monkeypatch.setattr("sys.argv", ["uscl", *words])
    cli.main(words)
    assert f"{card}: figures written" in capsys.readouterr().out
    told = json.loads((output / "results.json").read_text())
    figures = read_card(card).metrics
    # of each protocol ours, the other's and the difference; and the difference at half
    assert [(one.model, one.compared_with) for one in figures] == [
        *[(None, None), ("random", None), (None, "random")] * 2,
        (None, "random"),
    ]
    outcome = told["outcomes"][0]
    assert (outcome["model"], outcome["protocol"]) == (name, "knn")
    assert figures[0].value == pytest.approx(outcome["clip"]["macro AUROC"]["value"], abs=6e-4)
    half = [one for one in told["differences by share"] if one["share"] == 0.5]
    differ = next(one for one in half if one["metric"] == "macro AUROC")
    assert figures[-1].value == pytest.approx(differ["value"], abs=6e-4)
    assert figures[-1].protocol.startswith("linear with 50 % of the training subjects")
    # the command measures them again, and writes on no card; whose disk it was is nobody's business
    asked_there = [word.replace(f"{tmp_path}/", "") for word in asked]
    assert figures[0].command == shlex.join(["uscl", *asked_there, "--against", "random"])
    assert len([line for line in standing(read_card(card)) if "random" in line]) == 3

    words = [*asked, "--against", "random", f"--card={card}"]
    monkeypatch.setattr("sys.argv", ["uscl", *words])
    cli.main(words)
    assert read_card(card).metrics == figures
    with pytest.raises(SystemExit) as stopped:
        cli.main([*asked, "--card", str(card), "--against", name])
    assert stopped.value.code == 2
    assert f"{name}: is not among the models that were compared (random)" in capsys.readouterr().err
    assert read_card(card).metrics == figures


def test_the_command_with_a_store(
    half: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "random", "--dataset", str(half.folder), "-o", str(tmp_path / "report")]
    asked += ["--folds", "2", "--seeds", "1", "--resamples", "100", "--shares", "50,100"]
    cli.main(asked)
    told = capsys.readouterr().out
    assert "# Clips" in told and "| model | 50 % | 100 % |" in told
    for more, said in (
        (["--data", "x"], "--data x: is not of a store"),
        (["--target", "x"], "--target x: is not of a store"),
        (["--mean", "0.5"], "--mean and --std go together"),
        (["--mean", "0.5", "--std", "50"], "--std: one number or three between 0 and 1"),
        (["--label-efficiency"], "exclude each other"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*asked, *more])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_files_that_are_there_twice_are_said() -> None:
    def video(name: str, label: str) -> Any:
        return SimpleNamespace(name=name, label=label)

    store: Any = SimpleNamespace(description={"sources_sha256": {"a": "1", "b": "1", "c": "2"}})
    videos = (video("a", "x"), video("b", "x"), video("c", "y"))
    apart = Folds(videos, np.array([0, 1, 1]), ("x", "y"), official=False)
    assert _twins(store, apart) == ["1 files are there twice, in two folds or in two classes"]
    assert _twins(store, dataclasses.replace(apart, fold=np.array([1, 1, 0]))) == []
    torn = (video("a", "x"), video("b", "y"), video("c", "y"))
    assert _twins(store, Folds(torn, np.array([1, 1, 0]), ("x", "y"), official=False)) != []
