"""Fine-tuning: what is read, who is held out, what is frozen, and the model that is left."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import TINTS, draw_classes, draw_clip
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn

import uscl_zoo
from uscl_zoo import answers, network, publish
from uscl_zoo.classifier import prediction
from uscl_zoo.errors import CardError, DataError
from uscl_zoo.signals import Interrupted
from uscl_zoo.training.downstream.bootstrap import Bootstrap, Task
from uscl_zoo.training.downstream.collection import collect, split
from uscl_zoo.training.downstream.goal import Classes, fit_temperature
from uscl_zoo.training.downstream.metrics import Judged, auroc, calibration_error
from uscl_zoo.training.downstream.regression import PENALTIES, fit_predict, linear_classifier
from uscl_zoo.training.downstream.sample import Sample
from uscl_zoo.training.downstream.settings import PAPER, Settings, sensible
from uscl_zoo.training.finetuning.crossing import folds_of
from uscl_zoo.training.finetuning.finetune import finetune
from uscl_zoo.training.finetuning.gathering import Base, backbone, warnings_of
from uscl_zoo.training.finetuning.judging import threshold_of
from uscl_zoo.training.finetuning.loop import fit
from uscl_zoo.training.finetuning.tuning import Tuner, cost_of, merge, sides_of, steps_of
from uscl_zoo.training.finetuning.writing import limits_of
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo.card import Card, Origin, read_card

# ------------------------------------------------------------------------------------- the data


def test_numbered_stills_of_a_class_are_no_clip(classes: Path) -> None:
    found = collect(classes)
    assert len(found.sources) == 27
    assert {row.label for row in found.annotations.values()} == set(TINTS)
    assert found.annotations["Cov/2.png"].subject == "Cov/2.png"
    assert any("each file counts as its own" in note for note in found.notes)


def test_clips_within_a_class_are_clips(tmp_path: Path) -> None:
    for label in ("a", "b"):
        folder = tmp_path / label / "P1_x"
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(draw_clip(i, 1, (9, 9, 9))[0]).save(folder / f"f{i}.png")
    found = collect(tmp_path, subject_pattern=r"(P\d+)_")
    assert sorted(found.sources) == ["a/P1_x", "b/P1_x"]
    assert found.annotations["a/P1_x"].subject == "P1"
    assert found.subjects


def test_masks_beside_the_images_are_left_out_and_said(tmp_path: Path) -> None:
    data = draw_classes(tmp_path / "data", each=2)
    mask = (data / "Cov" / "1.png").read_bytes()
    (data / "Cov" / "1_mask.png").write_bytes(mask)
    (data / "Cov" / "1_mask_1.png").write_bytes(mask)
    found = collect(data)
    assert len(found.sources) == 6
    assert any("2 files are left out, being masks by name" in note for note in found.notes)
    assert len(collect(data, exclude=["2.*"]).sources) == 3


def write_table(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("Filename", "diagnosis", "patient"), *rows])
    return path


def test_a_table_names_paths_or_stems(tmp_path: Path) -> None:
    draw_classes(tmp_path / "images", each=2)
    rows = [
        ("images/Cov/1.png", "x", "p1"),
        ("images/Cov/2.png", "x", "p1"),
        ("images/Reg/1.png", "y", "p2"),
        ("lost.png", "y", "p3"),
        ("images/Pneu/1.png", "z", "p4"),
    ]
    found = collect(
        write_table(tmp_path / "t.csv", rows),
        label_column="diagnosis",
        subject_column="patient",
        classes=("X", "y"),
    )
    assert sorted(found.sources) == ["images/Cov/1.png", "images/Cov/2.png", "images/Reg/1.png"]
    assert found.annotations["images/Cov/2.png"].subject == "p1"
    told = " ".join(found.notes)
    assert "1 rows of t.csv have no file, the first: lost.png" in told
    assert "1 files left out by class (z 1)" in told
    assert "counts as its own" not in told
    for i in range(2):
        Image.fromarray(draw_clip(i, 1, (9, 9, 9))[0]).save(tmp_path / f"stem{i}.png")
    stems = write_table(tmp_path / "s.csv", [("stem0", "a", "p1"), ("STEM1", "b", "p2")])
    found = collect(stems, label_column="diagnosis", subject_column="patient")
    assert sorted(found.sources) == ["stem0.png", "stem1.png"]
    assert not any("no file" in note for note in found.notes)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: write_table(folder / "t.csv", [("a", "x", "p")]), "label_column"),
        (lambda folder: folder, "less than two classes"),
    ],
)
def test_data_that_is_none(tmp_path: Path, make: Callable[[Path], Path], told: str) -> None:
    (tmp_path / "one").mkdir()
    Image.fromarray(draw_clip(0, 1, (9, 9, 9))[0]).save(tmp_path / "one" / "a.png")
    with pytest.raises(DataError, match=told):
        collect(make(tmp_path))


def test_no_subject_is_on_two_sides(small_store: FrameStore) -> None:
    parts = split(small_store)
    sides = [parts.train, parts.held_out]
    subjects = [{video.subject for video in side} for side in sides]
    assert not subjects[0] & subjects[1]
    assert all({video.label for video in side} == set(TINTS) for side in sides)
    assert sum(map(len, sides)) == len(small_store.videos)
    sample = Sample.of(parts.train, small_store.labels)
    folds = folds_of(sample, 0)
    assert sorted(np.concatenate([other for _, other in folds]).tolist()) == [*range(len(sample))]
    for own, other in folds:
        assert not set(sample.subject[own]) & set(sample.subject[other])


def test_two_subjects_of_a_class_are_too_few(tmp_path: Path, installed: Callable[[], Card]) -> None:
    installed()
    data = draw_classes(tmp_path / "data", each=2)
    with pytest.raises(DataError, match=r"at least three subjects each.*Cov 2, Pneu 2, Reg 2"):
        finetune(data, tmp_path / "model", size=32, workers=1, progress=False, tell=print)


@pytest.mark.parametrize("effort", ["quick", "normal", "best"])
def test_three_subjects_of_a_class_are_enough(
    effort: str, tmp_path: Path, installed: Callable[[], Card]
) -> None:
    installed()
    data = draw_classes(tmp_path / "data", each=3)
    said: list[str] = []
    done = finetune(
        data,
        tmp_path / "model",
        model="resnet18_uscl.trial",
        effort=effort,
        size=32,
        epochs=1,
        resamples=20,
        workers=1,
        device="cpu",
        progress=False,
        tell=said.append,
    )
    assert done.card.classes == tuple(TINTS)
    assert any("folds of 1; about" in line for line in said)
    averaged = [note for note in done.notes if note.startswith("the weights of 3 networks")]
    assert len(averaged) == (effort == "best")
    assert done.card.training.recipe["members"] == (3 if effort == "best" else 1)
    page = (tmp_path / "model" / "report.html").read_text(encoding="utf-8")
    assert ("the weights of 3 networks are averaged" in page) == (effort == "best")


def test_a_fold_of_one_class_begins_with_a_random_classifier(small_store: FrameStore) -> None:
    tuner = make_tuner(small_store, Settings("last", probe=True, epochs=1, batch_size=8))
    tuner.train = tuner.train.take(np.flatnonzero(tuner.train.target == 0))
    before = copy_of(tuner.network)
    tuner.begin()
    assert all(torch.equal(t, before[k]) for k, t in tuner.network.state_dict().items())


def test_thinning_keeps_some_frames_of_every_clip() -> None:
    clip = np.repeat([0, 1, 2], [10, 2, 5])
    sample = Sample(np.arange(17), clip, clip, clip)
    for kept in (sample.thin(4), sample.thin(4, np.random.default_rng(0).random(17))):
        assert np.bincount(clip[kept]).tolist() == [4, 2, 4]
    assert sample.thin(4)[:4].tolist() == [0, 3, 5, 8]
    assert len(sample.thin(0)) == 17
    # every subject counts the same
    assert np.bincount(clip, sample.weights()) == pytest.approx([1 / 3] * 3)


# ------------------------------------------------------------------------------------- training


def test_the_more_there_are_the_fewer_epochs() -> None:
    few, many = sensible(30), sensible(64_000)
    assert (few.train, few.batch_size, few.epochs) == ("all", 8, 30)
    assert (many.train, many.batch_size, many.epochs) == ("all", 64, 5)
    assert (few.crop, many.crop) == (0.8, 0.4)
    quick = sensible(30, "quick")
    assert (quick.train, quick.probe, quick.batch_statistics) == ("last", True, False)
    assert sensible(30, train="head").epochs == 0
    assert sensible(30, epochs=3, learning_rate=None).epochs == 3
    with pytest.raises(DataError, match="head, last, all"):
        sensible(30, train="tail")
    with pytest.raises(DataError, match="quick, normal, best"):
        sensible(30, "some")


def make_tuner(store: FrameStore, settings: Settings, seed: int = 0) -> Tuner:
    torch.manual_seed(seed)
    network = timm.create_model("resnet18", num_classes=3, zero_init_last=False)
    train = Sample.of(split(store).train, store.labels)
    return Tuner(network, store.frames, train, settings, torch.device("cpu"))


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("train", "batch_statistics", "prefixes"),
    [
        ("head", False, ("fc.",)),
        ("head", True, ("fc.",)),
        ("last", False, ("layer4.1.", "fc.")),
        ("last", True, ("layer4.1.", "fc.")),
        ("all", False, ("",)),
    ],
)
def test_frozen_means_frozen(
    train: str, batch_statistics: bool, prefixes: tuple[str, ...], small_store: FrameStore
) -> None:
    settings = Settings(train, batch_statistics, probe=False, epochs=1, batch_size=8)
    tuner = make_tuner(small_store, settings)
    before = copy_of(tuner.network)
    fit(tuner)
    changed = {k for k, t in tuner.network.state_dict().items() if not torch.equal(t, before[k])}
    statistics = {k for k in before if k.rpartition(".")[2].startswith(("running_", "num_"))}
    expected = {k for k in before if k.startswith(prefixes)}
    assert changed == (expected if batch_statistics else expected - statistics)


def test_the_papers_protocol_sees_all_frames_of_every_clip(small_store: FrameStore) -> None:
    settings = dataclasses.replace(PAPER, epochs=3, batch_size=8)
    tuner = make_tuner(small_store, settings)
    assert fit(tuner).epoch == 3
    assert sum(len(batch) for batch in tuner._draw(0)[1]) == len(tuner.train)


def test_small_images_come_first(small_store: FrameStore) -> None:
    train = Sample.of(split(small_store).train, small_store.labels)
    settings = Settings(epochs=10, batch_size=8, sizes=((4 / 7, 0.8), (1.0, 1.0)))
    sides = sides_of(train, settings, 224)
    steps = steps_of(train, settings)
    assert sides == [128] * (8 * steps) + [224] * (2 * steps)
    # no smaller than what can be recognised, and never larger than the frames
    assert set(sides_of(train, settings, 160)) == {128, 160}
    assert set(sides_of(train, settings, 96)) == {96}
    assert cost_of(train, settings, 224) == pytest.approx(steps * (8 * (128 / 224) ** 2 + 2))
    full = dataclasses.replace(settings, sizes=((1.0, 1.0),))
    assert cost_of(train, full, 224) == 10 * steps


def test_the_rate_rises_then_falls_and_the_classifiers_is_larger(small_store: FrameStore) -> None:
    settings = Settings(epochs=10, batch_size=8, warmup=0.2, learning_rate=1e-3, head_rate=3)
    tuner = make_tuner(small_store, settings)
    rates = []
    while not tuner.finished:
        while tuner.progress.step < tuner.steps:
            tuner.step()
            backbone, head = (group["lr"] for group in tuner.optimizer.param_groups)
            assert head == pytest.approx(3 * backbone)
            rates.append(backbone)
        tuner.close_epoch()
    top = int(np.argmax(rates))
    assert top == pytest.approx(0.2 * len(rates), abs=1)
    assert rates[top] == pytest.approx(1e-3, rel=0.01)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) < 0)


def test_the_average_is_what_is_kept(small_store: FrameStore) -> None:
    settings = Settings(epochs=2, batch_size=8, average=0.5)
    tuner = make_tuner(small_store, settings)
    steps: list[Tensor] = []
    step = tuner.step

    def stepping() -> None:
        step()
        steps.append(tuner.network.get_parameter("fc.bias").detach().clone())

    tuner.step = stepping  # type: ignore[method-assign, assignment]
    fit(tuner)
    expected = steps[0]
    for bias in steps[1:]:
        expected = 0.5 * expected + 0.5 * bias
    assert torch.allclose(tuner.network.get_parameter("fc.bias"), expected, atol=1e-6)


def test_networks_are_merged_by_the_mean_of_their_weights(small_store: FrameStore) -> None:
    tuners = []
    for seed in range(3):
        tuners.append(make_tuner(small_store, Settings(epochs=2, batch_size=8, seed=seed)))
        fit(tuners[-1])
    states = [copy_of(tuner.network) for tuner in tuners]
    merged = merge(tuners).network.state_dict()
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            mean = torch.stack([state[name] for state in states]).mean(0)
            assert torch.allclose(tensor, mean, atol=1e-6), name
    assert not tuners[0].network.training
    alone = make_tuner(small_store, Settings(epochs=1, batch_size=8))
    fit(alone)
    before = copy_of(alone.network)
    merge([alone])
    assert all(torch.equal(t, before[k]) for k, t in alone.network.state_dict().items())


def test_a_resumed_run_ends_with_the_same_weights(small_store: FrameStore) -> None:
    settings = Settings("last", probe=True, epochs=3, batch_size=8, average=0.9)
    whole = make_tuner(small_store, settings)
    fit(whole)
    first = make_tuner(small_store, settings)
    first.begin()
    for _ in range(first.steps):
        first.step()
    first.close_epoch()
    first.step()
    # the same backbone, and a classifier to be overwritten
    second = make_tuner(small_store, settings)
    nn.init.zeros_(second.network.get_parameter("fc.weight"))
    second.restore(first.state())
    fit(second)
    assert second.progress.history == whole.progress.history
    expected = whole.network.state_dict()
    assert all(torch.equal(t, expected[k]) for k, t in second.network.state_dict().items())


def test_the_first_classifier_is_the_regression(small_store: FrameStore) -> None:
    tuner = make_tuner(small_store, Settings("head", probe=True, epochs=0, frames_per_clip=0))
    before = copy_of(tuner.network)
    assert fit(tuner).history == []
    after = tuner.network.state_dict()
    assert {k for k in before if not torch.equal(before[k], after[k])} == {"fc.weight", "fc.bias"}
    features = tuner._forward(tuner.train.rows, pooled=True)
    said = {
        tuple(fit_predict(features, tuner.train.target, features, penalty)) for penalty in PENALTIES
    }
    assert tuple(tuner._forward(tuner.train.rows).argmax(axis=1)) in said


def test_two_classes_make_two_logits() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (40, 5)).astype(np.float32)
    target = (features[:, 0] > 3).astype(np.int64)
    weight, bias = linear_classifier(features, target, 1.0, 2)
    predicted = (features @ weight.T + bias).argmax(axis=1)
    assert np.array_equal(predicted, fit_predict(features, target, features, 1.0))
    # of a class that nobody showed there is nothing to say
    weight, bias = linear_classifier(features, 2 * target, 1.0, 3)
    assert weight.shape == (3, 5)
    assert np.array_equal((features @ weight.T + bias).argmax(axis=1), 2 * predicted)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_rare_classes_weigh_more(small_store: FrameStore, power: float) -> None:
    tuner = make_tuner(small_store, Settings(batch_size=8, class_power=power))
    kept = tuner.train.take(tuner.train.thin(4))
    counts = np.bincount(kept.target)
    weight = tuner.balance.numpy()
    assert weight @ counts == pytest.approx(len(kept))
    assert weight / weight[0] == pytest.approx((counts / counts[0]) ** -power)


# ------------------------------------------------------------------------------------ the answers


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3)).astype(np.float32)
    chances = answers.softmax(logits, 1)
    target = np.array([rng.choice(3, p=p) for p in chances])
    weights = np.full(4000, 1 / 4000)
    for factor in (np.float32(3), np.float32(0.5)):
        found = fit_temperature(factor * logits, target, weights, 4000)
        assert found == pytest.approx(factor, rel=0.1)


def test_a_few_subjects_told_right_do_not_make_certainty() -> None:
    logits = 5 * np.eye(3, dtype=np.float32)
    temperature = fit_temperature(logits, np.arange(3), np.full(3, 1 / 3), 3)
    sure = answers.softmax(logits, temperature).max()
    assert sure == pytest.approx((3 + 1) / (3 + 3), abs=1e-3)


def judged_by_chance(seed: int = 0) -> tuple[Judged, Bootstrap]:
    rng = np.random.default_rng(seed)
    target, subject = rng.integers(0, 3, 60), np.repeat(np.arange(12), 5)
    probabilities = rng.dirichlet((1, 1, 1), 60).round(1)  # with ties
    every = np.ones(60, bool)
    judged = Judged("frame", ("a", "b", "c"), probabilities, target, subject, every, ~every)
    rows = np.arange(60)
    names = tuple(map(str, range(12)))
    task = Task(judged.classes, rows, rows, target, target, subject, names)
    return judged, Bootstrap.draw(task, 200)


def test_figures_are_those_of_scikit_learn() -> None:
    judged, bootstrap = judged_by_chance()
    figures = Classes().measure(judged, bootstrap)
    expected = balanced_accuracy_score(judged.target, judged.predicted)
    assert figures["balanced accuracy"].value == pytest.approx(expected)
    again = bootstrap.score(bootstrap.balanced_accuracy(judged.predicted))
    assert dataclasses.astuple(figures["balanced accuracy"]) == pytest.approx(
        dataclasses.astuple(again)
    )
    weights = bootstrap.counts[:5][:, judged.subject].astype(float)
    areas = auroc(judged.probabilities[:, 0], judged.target == 0, weights)
    for area, weight in zip(areas, weights, strict=True):
        expected = roc_auc_score(
            judged.target == 0, judged.probabilities[:, 0], sample_weight=weight
        )
        assert area == pytest.approx(expected)
    assert figures["share answered"].value == 1
    assert figures["share flagged as unlike"].value == 0


def test_calibration_error_is_the_gap_between_claim_and_truth() -> None:
    sure = np.tile([0.9, 0.1], (10, 1))
    target, every = np.repeat([0, 1], [6, 4]), np.ones(10, bool)
    judged = Judged("clip", ("a", "b"), sure, target, np.arange(10), every, every)
    assert calibration_error(judged, np.ones((1, 10)))[0] == pytest.approx(0.9 - 0.6)


# -------------------------------------------------------------------------------------- the model


def test_the_model_is_a_folder_of_plain_files(tuned: Path) -> None:
    assert {path.name for path in tuned.iterdir()} == {
        "model.safetensors",
        "config.json",
        "resnet18_uscl.model.yaml",
        "predict.json",
        "statistics.safetensors",
        "report.html",
        "heldout.csv",
        *("curves.png", "confusion.png", "roc.png", "reliability.png", "cases.png", "verdict.png"),
    }
    page = (tuned / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page.replace("https://github.com", "")
    assert "each file counts as its own" in page
    card, told = answers.read_model(tuned)
    assert card.classes == told.classes == tuple(TINTS)
    assert {metric.unit for metric in card.metrics} == {"clip"}


def test_timm_and_the_zoo_load_it(tuned: Path) -> None:
    state = load_file(tuned / "model.safetensors")
    for create in (timm.create_model, uscl_zoo.create_model):
        model: Any = create(f"local-dir:{tuned}", pretrained=True)
        assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
        assert model.pretrained_cfg["label_names"] == list(TINTS)
    features = timm.create_model(f"local-dir:{tuned}", pretrained=True, num_classes=0).eval()
    assert features(torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_it_learns_what_it_is_shown(tuned: Path) -> None:
    card, _ = answers.read_model(tuned)
    figures = {metric.metric: metric for metric in card.metrics if metric.compared_with is None}
    assert figures["balanced accuracy"].value == 1
    assert figures["macro AUROC"].value == 1
    # of two subjects of a class
    assert figures["balanced accuracy"].interval is None
    beside = {metric.compared_with for metric in card.metrics if metric.compared_with}
    assert beside == {
        "a linear head on resnet18_uscl",
        "a linear head on resnet18_imagenet.mit",
        "a linear head on random:resnet18",
    }


def test_the_report_begins_with_the_verdict_and_ends_with_tables(tuned: Path) -> None:
    page = (tuned / "report.html").read_text(encoding="utf-8")
    heads = ['class="verdict">Of 6 held-out files, Cov, Pneu and Reg are told apart']
    heads += ['alt="verdict.png"', "What to do next", "<h2>Figures", "<h2>Limits"]
    places = [page.find(head) for head in heads]
    assert -1 not in places and places == sorted(places)
    assert page.find("<table") > page.find("<h2>Figures")


def test_held_out_files_get_the_same_answers_from_predict(tuned: Path, classes: Path) -> None:
    with (tuned / "heldout.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["unit"] == "clip"]
    assert len(rows) == 6
    assert all(row["source"].startswith(f"{row['label']}/") for row in rows)
    paths = [classes / row["source"] for row in rows]
    told = prediction.predict(tuned, paths, device="cpu", progress=False)
    for row, answer in zip(rows, told.clips, strict=True):
        for label in TINTS:
            assert answer.probabilities[label] == pytest.approx(float(row[f"p_{label}"]), abs=1e-4)


def test_a_finished_model_is_not_overwritten(tuned: Path, classes: Path) -> None:
    with pytest.raises(DataError, match="holds a model already"):
        finetune(classes, tuned, tell=print)


def test_a_folder_in_use_is_left_alone(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.yaml").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        finetune(classes, tmp_path, overwrite=True, tell=print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.yaml"]


def test_it_can_be_published(tuned: Path, tmp_path: Path) -> None:
    built = publish.build(str(tuned), tmp_path / "repository", "me/tuned")
    names = {path.name for path in built.iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "confusion.png"} <= names
    # pictures and names of patients stay
    assert not names & {"cases.png", "report.html", "heldout.csv"}
    text = (built / "README.md").read_text(encoding="utf-8")
    assert "image-classification" in text
    assert "uscl predict" in text
    assert answers.read_model(built)[1] == answers.read_model(tuned)[1]
    loaded = network.load(built, "cpu")
    assert loaded.card is not None and loaded.card.name == "resnet18_uscl.model"


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Tensor]:
    """Weights of a run that nobody stopped; the first test that wants them fills them in."""
    return {}


@pytest.mark.parametrize("at", [1, 3, 7], ids=["first fold", "second fold", "final"])
def test_stopped_and_run_again_it_ends_as_if_it_had_not_been(
    at: int,
    undisturbed: dict[str, Tensor],
    classes: Path,
    tmp_path: Path,
    installed: Callable[[], Card],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = installed()

    def call(output: Path, **changes: Any) -> None:
        finetune(
            classes,
            output,
            **{
                "model": "resnet18_uscl.trial",
                "size": 32,
                "epochs": 3,
                "resamples": 100,
                "workers": 1,
                "device": "cpu",
                "progress": False,
                "tell": print,
                **changes,
            },
        )

    if not undisturbed:
        call(tmp_path / "whole")
        undisturbed.update(load_file(tmp_path / "whole" / "model.safetensors"))
    step, steps = Tuner.step, []

    def stepping(tuner: Tuner, side: int | None = None) -> None:
        step(tuner, side)
        # those that only measure how long it will take are none of the run
        if side is None:
            steps.append(1)
            if len(steps) == at:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tuner, "step", stepping)
    with pytest.raises(Interrupted, match="the same command continues it"):
        call(tmp_path / "parted")
    assert not (tmp_path / "parted" / "predict.json").exists()
    with pytest.raises(DataError, match="other data or settings"):
        call(tmp_path / "parted", epochs=2)
    call(tmp_path / "parted")
    # two epochs of a step in each fold, three of two with all files
    assert len(steps) == 10
    parted = load_file(tmp_path / "parted" / "model.safetensors")
    assert all(torch.equal(undisturbed[k], parted[k]) for k in undisturbed)
    # without a licence nobody could use what is published, which the card says what it came of
    (description,) = (tmp_path / "parted").glob("resnet18_uscl.*.yaml")
    origin = Origin(begun.name, begun.weights.sha256, begun.licence)
    assert read_card(description).training.start == origin
    with pytest.raises(CardError, match="states no licence"):
        publish.build(str(tmp_path / "parted"), tmp_path / "repository")


@pytest.mark.parametrize(("licence", "binding"), [("MIT", None), ("CC0-1.0", "MIT"), ("CC", "CC")])
def test_a_licence_looser_than_the_backbones_is_refused_before_the_work(
    licence: str, binding: str | None, classes: Path, tmp_path: Path
) -> None:
    base = backbone("resnet18_imagenet")
    if binding is None:
        base.allows(licence)
        # the licence of the data counts too, where it is known
        with pytest.raises(DataError, match=r"MIT is looser than CC-BY-NC-4\.0"):
            base.allows(licence, "CC-BY-NC-4.0")
        return
    with pytest.raises(DataError, match=f"`licence={licence}`: .*{binding}"):
        finetune(classes, tmp_path / "model", model=base.name, licence=licence, tell=print)
    assert not (tmp_path / "model" / "work").exists()


@pytest.mark.parametrize("licence", [None, "cc-by-nc-4.0"])
@pytest.mark.parametrize("scheme", ["", "local-dir:"])
def test_a_folder_to_begin_with_says_its_licence_and_not_where_it_is(
    licence: str | None, scheme: str, tmp_path: Path
) -> None:
    folder = tmp_path / "Dr Doe" / "weights of Jane Roe"
    folder.mkdir(parents=True)
    network: Any = timm.create_model("resnet18", num_classes=0)
    timm.models.save_for_hf(network, str(folder), safe_serialization="both")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"license": licence}
    (folder / "config.json").write_text(json.dumps(config))
    base = backbone(f"{scheme}{folder}")
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert base.origin == Origin("a resnet18 of one's own", digest, licence)
    assert (base.card, base.licence) == (None, licence)
    limits = " ".join(limits_of("frames", base, None))
    assert f"Begun from {base.name}, whose licence ({licence or 'not stated'}) binds" in limits
    for text in (base.name, str(base.origin), limits, base.doubt or ""):
        assert "Doe" not in text and "Roe" not in text
    if licence is None:
        assert base.doubt is not None and "nobody states its licence" in base.doubt
        base.allows("MIT")
        return
    assert base.doubt is None
    with pytest.raises(DataError, match=r"MIT is looser than cc-by-nc-4\.0"):
        base.allows("MIT")


def test_frames_are_resized_as_the_backbone_was_made_for(classes: Path, tmp_path: Path) -> None:
    """So they are in the store, on the card, in timm and in predict."""
    torch.manual_seed(0)
    network: Any = timm.create_model("resnet18", num_classes=0)
    timm.models.save_for_hf(network, str(tmp_path / "cubic"))
    config = json.loads((tmp_path / "cubic" / "config.json").read_text())
    config["pretrained_cfg"] |= {"interpolation": "bicubic"}
    (tmp_path / "cubic" / "config.json").write_text(json.dumps(config))
    how: Any = {"train": "head", "size": 32, "workers": 1, "progress": False}
    made = tmp_path / "made"
    finetune(classes, made, model=tmp_path / "cubic", device="cpu", tell=print, **how)
    told = json.loads((made / "config.json").read_text())["pretrained_cfg"]
    assert told["interpolation"] == "bicubic"
    test_held_out_files_get_the_same_answers_from_predict(made, classes)


def test_the_backbone_that_has_seen_the_data_is_said(small_store: FrameStore) -> None:
    card = uscl_zoo.model_info("resnet18_uscl")
    base = Base(card.name, None, card.model, "resnet18", card.input, card, None, card.licence)
    parts = split(small_store)
    assert warnings_of(parts, small_store, base, "mine") == []
    said = warnings_of(parts, small_store, base, card.training.sources[0].name)
    assert said[0].startswith("in corpus (by name; none of 6 files recognised): resnet18_uscl")


@pytest.mark.parametrize("count", [2, 3, 5, 20, 60])
def test_of_few_frames_the_next_is_not_unlike(count: int) -> None:
    rng = np.random.default_rng(count)
    flagged, largest = [], []
    for _ in range(400):
        distances = np.exp(rng.normal(0, 0.2, count))
        others = np.exp(rng.normal(0, 0.2, 50))
        flagged.append((others > threshold_of(distances)).mean())
        largest.append((others > distances.max()).mean())
    assert np.mean(flagged) < 0.02
    assert np.mean(largest) == pytest.approx(1 / (count + 1), abs=0.03)


def test_of_many_the_threshold_is_a_figure_of_theirs() -> None:
    distances = np.exp(np.random.default_rng(0).normal(0, 0.2, 500))
    assert threshold_of(distances) == np.sort(distances)[495]
    assert threshold_of(distances[:1]) == distances[0]


def test_a_store_brings_its_own_split(
    small_store: FrameStore, tmp_path: Path, installed: Callable[[], Card]
) -> None:
    installed()
    call: dict[str, Any] = {
        "model": "resnet18_uscl.trial",
        "train": "head",
        "resamples": 20,
        "device": "cpu",
        "progress": False,
        "tell": print,
    }
    done = finetune(small_store.folder, tmp_path / "model", **call)
    with (tmp_path / "model" / "heldout.csv").open(newline="") as stream:
        judged = {row["source"] for row in csv.DictReader(stream) if row["unit"] == "clip"}
    assert judged == {video.name for video in small_store.select("heldout")}
    assert done.card.training.recipe["epochs"] == 0
    with pytest.raises(DataError, match=r"is a store.*`label_column` is of a folder or CSV"):
        finetune(small_store.folder, tmp_path / "other", label_column="diagnosis", **call)
