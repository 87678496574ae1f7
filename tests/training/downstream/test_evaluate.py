"""`uscl evaluate` from data to report: its figures, what is kept, and what is said."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from conftest import draw_classes
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from timm.models import save_for_hf
from uscl_zoo.training.corpus import read_corpus
from uscl_zoo.training.downstream import contenders, datasets, infold, protocols, results
from uscl_zoo.training.downstream import evaluate as module
from uscl_zoo.training.downstream.contenders import contender
from uscl_zoo.training.downstream.evaluate import Evaluation, evaluate
from uscl_zoo.training.downstream.infold import Setting

from uscl_zoo import cli, store
from uscl_zoo.errors import DataError, UnknownModelError
from uscl_zoo.registry import model_info

TINY = Setting(32, 1, "float32")
METHOD = "method:pocus_resnet18+classes=null+batch_size=4+smallest_batch=2"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained here is trained briefly."""
    monkeypatch.setitem(infold.SETTINGS, "reduced", TINY)
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


@pytest.mark.slow
def test_figures_are_those_of_the_answers(classes: Path, tmp_path: Path) -> None:
    found = run(classes, tmp_path, "random", METHOD, protocols=("knn", "linear"))
    results.write(found, tmp_path, "uscl evaluate")
    told = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "answers.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 2 * 27
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
        ("knn", "random", METHOD),
        ("linear", "random", METHOD),
    }


@pytest.mark.slow
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
    whole = found.efficiency["random"][-1][1].scores["balanced accuracy"]
    same = found.outcomes[0].figures["clip"].scores["balanced accuracy"]
    assert whole.value == pytest.approx(same.value)


@pytest.mark.slow
def test_nothing_is_computed_twice(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: Any = {"protocols": ("knn", "linear", "finetune-last")}
    first = run(classes, tmp_path, "random", METHOD, **chosen)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("computed again")

    for name in ("features", "knn", "finetuned"):
        monkeypatch.setattr(module, name, never)
    again = run(classes, tmp_path, "random", METHOD, **chosen)
    for one, other in zip(first.outcomes, again.outcomes, strict=True):
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
    name = model_info("resnet18_uscl.pocus").training.sources[0].name
    data = datasets.load("folder", classes)
    object.__setattr__(data, "name", name)
    monkeypatch.setattr(datasets, "load", lambda *a, **k: data)
    found = run(classes, tmp_path, "resnet18_uscl.pocus", "random")
    assert [outcome.note for outcome in found.outcomes] == ["in corpus", ""]
    for text in (results.markdown(found, ""), results.page(found, "", [])):
        assert "in corpus" in text
    # one size for what is trained here, and its own for what is not
    assert [outcome.size for outcome in found.outcomes] == [224, 32]


def test_files_that_were_trained_on_are_known_under_any_name() -> None:
    one = contender("resnet18_uscl.pocus", TINY)
    path = store.corpus_of(model_info("resnet18_uscl.pocus"))
    assert path is not None
    known = read_corpus(path).digests
    assert one.has_seen("Mine", [*known[:3], "0" * 64]) == "in corpus (3 of 4 files)"
    assert one.has_seen("Mine", ["0" * 64]) == ""
    assert contender("random", TINY).has_seen("Mine", known) == ""


def test_subjects_of_a_smaller_share_are_among_those_of_a_larger(
    classes: Path, tmp_path: Path
) -> None:
    bench = make_bench(classes, tmp_path)
    for fold in range(3):
        some = [set(bench._some(fold, share, 0)) for share in (0.01, 0.25, 0.5, 1.0)]
        assert all(small <= large for small, large in itertools.pairwise(some))
        assert len(some[0]) == 3  # one a class
        assert not some[-1] & set(bench.sample.subject[bench.fold == fold])


def make_bench(data: Path, work: Path) -> Any:
    run(data, work, "random")
    frames = module.FrameStore(work / "work" / "store-32")
    folds = module.draw_folds(frames, 3, 0)
    device = module.device_named("cpu")
    return module._Bench({32: frames}, folds, work / "work", "reduced", 2, 1, device, False)


def test_a_checkpoint_file_is_a_model() -> None:
    bundled = store.locate(model_info("resnet18_uscl.pocus")).path
    one = contender(str(bundled), TINY)
    assert (one.kind, one.identity) == ("file", store.sha256_of(bundled))
    assert one.build(0, None).num_features == 512


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
    with pytest.raises(DataError, match=r"no network that timm can load .*config\.json"):
        contender(f"local-dir:{tmp_path}", TINY)


def test_random_networks_differ_by_seed() -> None:
    one = contenders.contender("random:resnet50", TINY)
    first, again, other = (one.build(seed, None).state_dict()["conv1.weight"] for seed in (0, 0, 1))
    assert first.equal(again) and not first.equal(other)
    assert one.varies


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("resnet18_usc", "no file, no model of timm"),
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
