"""Numbers and several labels a file: what is read, trained, said and measured."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_clip, install_card
from PIL import Image
from sklearn.metrics import f1_score, mean_absolute_error, r2_score, roc_auc_score

import uscl_zoo
from uscl_zoo import answers, network, publish
from uscl_zoo.classifier import gradcam, prediction
from uscl_zoo.classifier.shortcuts import shortcut
from uscl_zoo.errors import CardError, DataError
from uscl_zoo.signals import Interrupted
from uscl_zoo.training.downstream.bootstrap import Bootstrap, Task
from uscl_zoo.training.downstream.collection import collect
from uscl_zoo.training.downstream.goal import Goal
from uscl_zoo.training.downstream.metrics import Judged
from uscl_zoo.training.downstream.settings import Settings
from uscl_zoo.training.finetuning.amounts import Amounts, number
from uscl_zoo.training.finetuning.finetune import finetune
from uscl_zoo.training.finetuning.labelling import Labelling, best_cut, of_columns, spread
from uscl_zoo.training.finetuning.tasks import GOALS, TASKS
from uscl_zoo.training.finetuning.tuning import Tuner

# ------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("text", "value"), [("12.5", 12.5), ("12,5", 12.5), ("-1e3", -1000.0), (" 7 ", 7.0)]
)
def test_a_number_is_read_as_people_write_it(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["", "n/a", "nan", "inf", "12 cm", "1,234.5", "1_000"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="is no number"):
        number(text)


def test_labels_are_read_from_columns_and_from_lists() -> None:
    assert of_columns({"A": "1", "B;x": "No", "C": "", "D": "n/a"}) == "A=1;B x=0"
    assert of_columns({"A": "", "B": None}) is None
    with pytest.raises(DataError, match="column 'A' has 'maybe'"):
        of_columns({"A": "maybe"})
    # of a list, what is not in it is not there; of columns, what is empty is not known
    listed = spread({"a": "X; y", "b": "none", "c": "Y"})
    assert listed == {"a": "X=1;y=1", "b": "X=0;y=0", "c": "X=0;y=1"}
    target = Labelling().targets(["A=1;B=0", "B=1", "A;B", "none"], ("A", "B"))
    np.testing.assert_array_equal(target, [[1, 0], [np.nan, 1], [1, 1], [0, 0]])


@pytest.mark.parametrize("text", ["1,234", "-12,500", "999,999"])
def test_a_number_that_may_be_two_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="may be a thousand and more"):
        number(text)


@pytest.mark.parametrize(
    "numbers", [(1e9, 1e9 + 1), (1e300, 2e300), (1e37, 2e37), (1e-40, 2e-40), (5e8, 5e8 + 9)]
)
def test_numbers_that_are_not_told_apart_are_refused(numbers: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="not told apart in single precision"):
        Amounts().texts({str(i): repr(number) for i, number in enumerate(numbers)}, "t.csv")


def test_numbers_of_any_unit_are_taken() -> None:
    for scale in (1e-9, 1.0, 1e9):
        kept = Amounts().texts({str(i): repr(scale * (i + 3)) for i in range(9)}, "t.csv")
        np.testing.assert_allclose(
            [number(text) for text in kept.values()], [scale * (i + 3) for i in range(9)]
        )
    # a few that lie close together are no reason
    assert len(Amounts().texts({"a": "1.00000001", "b": "1", "c": "900"}, "t.csv")) == 3


def test_labels_that_all_or_none_have_are_refused() -> None:
    with pytest.raises(DataError, match="no label that some files have and others have not"):
        Labelling().texts({"a": "A;B", "b": "B;A"}, "t.csv")
    assert Labelling().texts({"a": "A;B", "b": "B"}, "t.csv")["b"] == "A=0;B=1"


def test_signs_within_names_of_labels() -> None:
    # what is not in a list is not there, whatever its labels are called
    listed = spread({"a": "E=1;B", "b": "B", "c": "none", "d": "E/A=high"})
    assert listed["b"] == "B=1;E/A=high=0;E=1=0"
    assert listed["c"] == "B=0;E/A=high=0;E=1=0"
    assert spread({"a": "E=1", "b": "B"})["b"] == "B=1;E=1=0"
    assert spread({"a": "A=x=1;B=0", "b": "B=1"}) == {"a": "A=x=1;B=0", "b": "B=1"}
    assert spread({"a": "A; unknown", "b": "B;NA"}) == {"a": "A=1;B=0", "b": "A=0;B=1"}


@pytest.mark.parametrize(
    "cells",
    [["A, B", "A"], ["A,B;C", "B"], ["A/B", "A", "B"], ["A & B", "a;b"], ["A+B+C", "a|b|c"]],
)
def test_lists_that_are_parted_otherwise_are_refused(cells: list[str]) -> None:
    with pytest.raises(DataError, match=r"seems to be a list .* parted by ; or \|"):
        spread(dict(zip("xyz", cells, strict=False)))


def test_labels_that_are_no_lists() -> None:
    assert spread({"x": "mass/cyst", "y": "mass"})["y"] == "mass=1;mass/cyst=0"
    assert spread({"x": "left, upper", "y": "right, upper"})["x"] == "left, upper=1;right, upper=0"


@pytest.mark.parametrize("cells", [["1", "0"], ["yes", "no", "yes"], ["true"]])
def test_a_column_of_one_label_is_no_list(cells: list[str]) -> None:
    with pytest.raises(DataError, match="as of a column of one label"):
        spread(dict(zip("xyz", cells, strict=False)))


@pytest.mark.parametrize("names", [("A", "a "), ("A;B", "A B"), (";", "B")])
def test_columns_of_one_name_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="have one name, or none"):
        of_columns(dict.fromkeys(names, "1"))


def draw(folder: Path, count: int = 40) -> Path:
    """Stills with a white square, of some size, red edges or none; two of a subject."""
    rng = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = []
    folder.mkdir()
    for i in range(count):
        frame = draw_clip(i, 1, (60, 60, 60))[0]
        side, red = int(rng.integers(3, 19)), i % 4 < 2
        # the same in the mirror, as answers are means over both
        frame[20 - side : 20 + side, 24 - side : 24 + side] = 255
        if red:
            frame[:, :6] = frame[:, -6:] = (255, 0, 0)
        Image.fromarray(frame).save(folder / f"{i}.png")
        # of every ninth nobody knows
        rows.append(
            (f"{i}.png", f"p{i // 2}", side, int(side > 10), "" if i % 9 == 0 else int(red))
        )
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("Filename", "patient", "side", "large", "red"), *rows])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("drawn") / "data")


CALL: dict[str, Any] = {
    "subject_column": "patient",
    "size": 64,
    "resamples": 50,
    "workers": 1,
    "device": "cpu",
    "progress": False,
    "licence": "CC-BY-NC-SA-4.0",
    "tell": lambda text: None,
}
LABEL: dict[str, Any] = {"regression": "side", "multilabel": ("large", "red")}


@pytest.fixture(scope="module", params=["regression", "multilabel"])
def made(
    request: pytest.FixtureRequest, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a model of each task, a linear head."""
    folder: Path = tmp_path_factory.mktemp("made") / str(request.param)
    label = LABEL[request.param]
    finetune(
        table, folder, task=request.param, label_column=label, train="head", holdout=0.4, **CALL
    )
    return folder


def test_the_command_line_knows_the_tasks() -> None:
    from uscl_zoo.cli import adapt

    assert tuple(adapt.TASKS) == TASKS


def test_files_of_which_nothing_is_known_are_left_out(table: Path) -> None:
    found = collect(table, label_column="red", goal=GOALS["regression"])
    assert len(found.sources) == 35
    assert any("5 files left out by class (no label 5)" in note for note in found.notes)
    with pytest.raises(DataError, match=r"`label_column` was given 2 times.*multilabel"):
        collect(table, label_column=("large", "red"))
    with pytest.raises(DataError, match=r"table\.csv: 0\.png: 'p0' is no number"):
        collect(table, label_column="patient", goal=GOALS["regression"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": "segmenting"}, "`task` should be one of"),
        ({"task": "regression", "class_weights": True}, "`class_weights` has no meaning"),
        ({"task": "multilabel", "classes": ["a"]}, "`classes` has no meaning"),
        ({"folds": 1}, "`folds` should be"),
    ],
)
def test_what_has_no_meaning_is_refused(
    changes: dict[str, Any], told: str, table: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        finetune(table, tmp_path / "model", label_column="side", **CALL, **changes)
    assert not (tmp_path / "model").exists()


# -------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("goal", [Amounts(), Labelling()], ids=["number", "labels"])
def test_the_first_head_says_what_a_linear_head_would(goal: Goal) -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(3, 2, (60, 8)).astype(np.float32)
    subject = np.arange(60) // 2
    target: Any
    if goal.task == answers.NUMBER:
        target = (1000 + 50 * known[:, :1] + rng.normal(0, 1, (60, 1))).astype(np.float32)
    else:
        target = (known[:, :2] > 3).astype(np.float32)
        target[:5, 0] = np.nan
    balance = goal.balance(target, target.shape[1], Settings())
    fitted = goal.head(known, target, subject, target.shape[1], balance, 0)
    assert fitted is not None
    head = torch.nn.Linear(8, target.shape[1])
    with torch.no_grad():
        for mine, theirs in zip(head.parameters(), fitted, strict=True):
            mine.copy_(torch.from_numpy(theirs))
    goal.finish(head, balance)
    said = head(torch.from_numpy(known)).detach().numpy()
    other = goal.linear(known, target, subject, known, target.shape[1], 0)
    if goal.task == answers.NUMBER:
        np.testing.assert_allclose(said, other, rtol=1e-3)
        assert np.abs(said - target).mean() < 20
    else:
        assert ((said > 0) == (other > 0.5)).mean() > 0.95
        assert ((said > 0) == (target > 0))[5:].mean() > 0.9


def test_labels_that_nobody_knows_teach_nothing() -> None:
    goal, settings = Labelling(), Settings(label_smoothing=0.0)
    said = torch.zeros(2, 2, requires_grad=True)
    target = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")]])
    goal.loss(said, target, torch.ones(2), settings).backward()
    assert said.grad is not None
    assert said.grad.tolist() == [[-0.5, 0.0], [0.0, 0.0]]


# ------------------------------------------------------------------------- what is measured


def judged_by_chance(task: str) -> tuple[Judged, Bootstrap]:
    rng = np.random.default_rng(0)
    subject, every = np.repeat(np.arange(20), 2), np.ones(40, bool)
    outputs = ("a", "b") if task == "multilabel" else ("n",)
    target: Any
    if task == "multilabel":
        target = rng.integers(0, 2, (40, 2)).astype(np.float32)
        target[:3, 1] = np.nan
        said = rng.random((40, 2))
    else:
        target = rng.normal(5, 2, (40, 1))
        said = target + rng.normal(0, 1, (40, 1))
    rows = np.arange(40)
    names = tuple(map(str, range(20)))
    judged = Judged("clip", outputs, said, target, subject, every, ~every)
    zeros = np.zeros(40, np.int64)
    return judged, Bootstrap.draw(Task(outputs, rows, rows, zeros, zeros, subject, names), 100)


def test_errors_are_those_of_scikit_learn() -> None:
    judged, bootstrap = judged_by_chance("regression")
    figures = Amounts().measure(judged, bootstrap)
    truth, said = judged.target[:, 0], judged.probabilities[:, 0]
    assert figures["MAE"].value == pytest.approx(mean_absolute_error(truth, said))
    assert figures["R2"].value == pytest.approx(r2_score(truth, said))
    away = said - truth
    assert figures["bias"].value == pytest.approx(away.mean())
    limit = figures["upper limit of agreement"]
    assert limit.value == pytest.approx(away.mean() + 1.96 * away.std())
    assert limit.low < limit.value < limit.high


def test_figures_of_labels_are_those_of_scikit_learn() -> None:
    judged, bootstrap = judged_by_chance("multilabel")
    figures = Labelling().measure(judged, bootstrap)
    areas, f1s = [], []
    for place, label in enumerate(judged.classes):
        known = np.isfinite(judged.target[:, place])
        truth, said = judged.target[known, place], judged.probabilities[known, place]
        areas.append(roc_auc_score(truth, said))
        f1s.append(f1_score(truth, said >= 0.5))
        assert figures[f"AUROC of {label}"].value == pytest.approx(areas[-1])
        assert figures[f"F1 of {label}"].value == pytest.approx(f1s[-1])
    assert figures["mean AUROC"].value == pytest.approx(np.mean(areas))
    assert figures["mean F1"].value == pytest.approx(np.mean(f1s))


def test_an_interval_of_numbers_holds_nine_in_ten_of_new_subjects() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        said = rng.normal(0, 1, (40, 1)).astype(np.float32)
        weights = np.full(40, 1 / 40)
        wide = Amounts().calibration(said, np.zeros((40, 1)), weights, 40)["spread"]
        shares.append((np.abs(rng.normal(0, 1, 500)) <= wide).mean())
    assert np.mean(shares) == pytest.approx(0.9, abs=0.02)


def test_a_temperature_undoes_overconfidence_in_labels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3000, 2)).astype(np.float32)
    target = (rng.random((3000, 2)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    target[:100, 0] = np.nan
    weights = np.full(3000, 1 / 3000)
    found = Labelling().calibration(3 * logits, target, weights, 3000)
    assert found["temperature"] == pytest.approx(3, rel=0.1)


# ------------------------------------------------------------------------------ what is said


def test_a_model_answers_as_it_was_judged(made: Path, table: Path) -> None:
    card, told = answers.read_model(made)
    assert card.task == told.task == made.name
    with (made / "heldout.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["unit"] == "clip"]
    assert len({row["subject"] for row in rows}) == 8
    paths = [table.parent / row["source"] for row in rows]
    said = prediction.predict(made, paths, device="cpu", progress=False)
    for row, answer in zip(rows, said.clips, strict=True):
        for column, value in answer.said.items():
            assert value == pytest.approx(float(row[column]), rel=1e-3, abs=1e-3)
        assert (answer.answer or "") == row["answer"]
    head = (said.save(made.parent / "answers.csv")).read_text().splitlines()[0].split(",")
    own = ["side", "low", "high"] if told.task == answers.NUMBER else ["p_large", "p_red"]
    assert head[-len(own) :] == own


def test_it_learns_what_it_is_shown(made: Path) -> None:
    card, told = answers.read_model(made)
    values = {
        m.metric: m.value for m in card.metrics if m.compared_with is None and m.unit == "clip"
    }
    if told.task == answers.NUMBER:
        assert values["R2"] > 0.5 and values["MAE"] < 5
        assert values["share within the interval"] >= 0.6
        assert told.spread > 0
    else:
        assert values["mean AUROC"] > 0.9


def test_the_report_has_the_pictures_of_its_task(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    names = {path.name for path in made.glob("*.png")}
    assert ("agreement.png" in names) == (made.name == "regression")
    assert ("roc.png" in names) == (made.name == "multilabel")
    assert "confusion.png" not in names
    assert page.count("data:image/png;base64,") == len(names)
    said = {"regression": "a mean absolute error", "multilabel": "a mean AUROC of"}[made.name]
    assert said in page and page.find("<table") > page.find("<h2>Figures")


def test_a_rare_label_is_said_before_it_is_likelier_than_not() -> None:
    rng = np.random.default_rng(0)
    there = rng.random(4000) < 0.05
    chances = 1 / (1 + np.exp(-(rng.normal(0, 1, 4000) + 2 * there - 4)))
    weights = np.full(4000, 1 / 4000)
    cut = best_cut(chances, there, weights)
    assert cut < 0.3
    assert f1_score(there, chances >= cut) > f1_score(there, chances >= 0.5) + 0.05
    assert best_cut(chances, np.zeros(4000, bool), weights) == 0.5
    assert best_cut(np.array([0.2, 0.9]), np.array([False, True]), np.ones(2)) == pytest.approx(
        0.55
    )


def test_labels_are_told_one_by_one() -> None:
    told = answers.Answers(("A", "B"), 1.0, 0.7, 1.0, 0.99, 9, 3.0, "0" * 64, task=answers.LABELS)
    for said, best, sure in (
        ((0.9, 0.1), "A", True),
        ((0.9, 0.8), "A; B", True),
        ((0.1, 0.2), "none", True),
        ((0.9, 0.6), "A; B", False),
    ):
        assert told.best(np.array(said)) == best
        assert told.is_sure(np.array(said)) == sure
    # what is said though it is unlikely is a guess, and no answer
    early = dataclasses.replace(told, cuts=(0.2, 0.5))
    assert early.best(np.array((0.25, 0.1))) == "A"
    assert not early.is_sure(np.array((0.25, 0.1)))
    assert told.is_sure(np.array((0.25, 0.1)))
    assert early.unsure(np.array((0.25, 0.1))) == ["A"]
    # what the report says of it
    assert early.doubt == {"A": (0.2, 0.7), "B": (pytest.approx(0.3), 0.7)}
    late = dataclasses.replace(told, cuts=(0.9, 0.5))
    for one in (told, early, late):
        for chance in np.linspace(0.005, 0.995, 100):
            low, high = one.doubt["A"]
            assert (one.unsure(np.array((chance, 0.0))) == ["A"]) == (low <= chance < high)


def test_a_line_has_all_labels_and_which_are_said(made: Path, table: Path) -> None:
    (one,) = uscl_zoo.predict(made, table.parent / "3.png", device="cpu", progress=False).clips
    if made.name == "regression":
        assert not one.labels
        return
    chances = ", ".join(f"{label} {p:.2f}" for label, p in one.probabilities.items())
    for best in ("none", "red", "large; red"):
        sure = dataclasses.replace(one, best=best, answer=best, unlike=False)
        assert str(sure).endswith(f"3.png: {best} ({chances})")
        unsure = dataclasses.replace(sure, answer=None)
        assert str(unsure).endswith(f"3.png: cannot tell ({chances})")


def test_embed_explain_shortcut_and_timm_take_it(made: Path, table: Path) -> None:
    still = table.parent / "3.png"
    loaded = network.load(made, "cpu")
    assert loaded.run([np.asarray(Image.open(still))])[0].shape == (1, len(loaded.classes))
    shown = gradcam.explain(made, still, device="cpu", progress=False)
    assert np.isfinite(shown.heat).all() and len(shown) == 1
    if made.name == "regression":
        assert shown.title.startswith("side: ") and "what speaks for more" in shown.title
    found = shortcut(made, [still], device="cpu", progress=False)
    assert found.unit in ("change of the number", "largest change of a probability")
    assert uscl_zoo.Embedder(str(made), device="cpu")(still).shape[-1] == 512
    model = uscl_zoo.create_model(f"local-dir:{made}", pretrained=True)
    assert model.num_classes == len(loaded.classes)


def test_it_can_be_published(made: Path, tmp_path: Path) -> None:
    built = publish.build(str(made), tmp_path / "repository", "me/tuned")
    picture = {"regression": "agreement.png", "multilabel": "roc.png"}[made.name]
    assert (built / picture).is_file() and not (built / "cases.png").exists()
    text = (built / "README.md").read_text(encoding="utf-8")
    assert f"]({picture})" in text and "its classes are" not in text
    assert answers.read_model(built)[1] == answers.read_model(made)[1]


def test_a_card_of_another_task_is_refused(made: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(made, tmp_path / "copy")
    path = copied / "predict.json"
    path.write_text(path.read_text().replace(f'"{made.name}"', '"classification"'))
    with pytest.raises(CardError):
        answers.read_model(copied)


# ------------------------------------------------------------------------------------- folds


def test_of_folds_every_subject_is_judged_and_trains(
    table: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".uscl_zoo").mkdir(exist_ok=True)
    install_card(home / ".uscl_zoo")
    said: list[str] = []
    call: Callable[..., Any] = lambda **changes: finetune(  # noqa: E731
        table,
        tmp_path / "model",
        **{**CALL, "tell": said.append},
        label_column="large",
        model="resnet18_uscl.trial",
        **{"epochs": 1, "folds": 3, **changes},
    )
    step, steps = Tuner.step, []

    def stepping(tuner: Tuner, side: int | None = None) -> None:
        step(tuner, side)
        # those that only measure how long it will take are none of the run
        steps.append(side is None)
        if sum(steps) == 6 and side is None:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Tuner, "step", stepping)
    with pytest.raises(Interrupted, match="the same command continues it"):
        call()
    kept = tmp_path / "model" / "work" / "fold1.npz"
    before = kept.read_bytes()
    with pytest.raises(DataError, match="other data or settings"):
        call(folds=4)
    assert kept.read_bytes() == before
    done = call()
    with (tmp_path / "model" / "heldout.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["unit"] == "clip"]
    assert len({row["source"] for row in rows}) == len(rows) == 40
    (source,) = [s for s in done.card.training.sources if s.name == "table"]
    assert source.subjects == 20 and done.card.training.held_out_subjects == ()
    assert all("left-out" in metric.dataset for metric in done.card.metrics)
    assert "left-out subjects" in done.verdict
    assert any("3 folds of 1" in line for line in said)
    with pytest.raises(DataError, match=r"`folds=30` needs two classes of as many subjects"):
        call(folds=30, overwrite=True)
