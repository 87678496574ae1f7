from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from uscl_zoo.errors import DataError
from uscl_zoo.records import read_yaml, write_yaml
from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.learning.runs import ABOUT, load_checkpoint
from uscl_zoo.training.preparing.corpus import add_corpus
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.training.preparing.sources import CorpusPlan, Source
from uscl_zoo.training.pretraining.export import add_metrics, export
from uscl_zoo.training.pretraining.pretrain import pretrain
from uscl_zoo.zoo.card import Card, Metric, Origin
from uscl_zoo.zoo.checkpoint import statistics_in

CPU = Execution(torch.device("cpu"))
RECIPE = Recipe(epochs=1, batch_size=4, smallest_batch=2, projection_dim=16, seed=11)


def exported(store: FrameStore, folder: Path, **changes: Any) -> Card:
    """The card of a run with some settings changed."""
    recipe, run = replace(RECIPE, **changes), folder / "run"
    pretrain(recipe, store, run, execution=CPU, progress=False, pictures=False)
    card: Card = export(folder / "run", "resnet18_uscl.trial", folder / "zoo")
    return card


@pytest.mark.parametrize(
    ("change", "summary", "labels"),
    [
        ({}, "USCL on", ("Cov", "Pneu", "Reg")),
        ({"class_weight": 0.0}, "USCL on", ()),
        ({"method": "simclr", "classes": ()}, "SimCLR on", ()),
        ({"method": "pair", "classes": ()}, "Contrast of two frames on", ()),
        ({"method": "supervised", "classes": ("Reg", "Cov")}, "Cross-entropy", ("Reg", "Cov")),
    ],
    ids=str,
)
def test_the_card_names_the_method_and_the_labels_it_saw(
    small_store: FrameStore,
    tmp_path: Path,
    change: dict[str, Any],
    summary: str,
    labels: tuple[str, ...],
) -> None:
    card = exported(small_store, tmp_path, **change)
    assert card.training.method == change.get("method", "uscl")
    assert card.training.recipe["method"] == card.training.method
    assert card.training.labels == labels
    assert card.summary.startswith(summary)
    assert card.summary.endswith("12 videos of Clips")


def test_the_card_counts_the_videos_that_were_used(small_store: FrameStore, tmp_path: Path) -> None:
    card = exported(small_store, tmp_path, data_rate=0.5, epochs=2)
    (source,) = card.training.sources
    everything = small_store.summary(small_store.select("train"))
    assert source.videos == 6 == everything["videos"] / 2
    assert source.frames is not None
    assert 6 <= source.frames < everything["frames"]
    assert sum(source.classes.values()) == sum(source.licences.values()) == 6
    # 4 videos and 2, twice
    assert card.training.steps == 4
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    assert int(state["optimizer"]["state"][0]["step"]) == 4
    assert list(card.training.held_out_subjects) == small_store.description["held_out_subjects"]
    assert card.training.recipe["data_rate"] == 0.5


@pytest.fixture(scope="module")
def trained(small_store: FrameStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("trained") / "run"
    changes = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    pretrain(replace(RECIPE, **changes), small_store, folder, execution=CPU, progress=False)
    return folder


@pytest.fixture
def said(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the run, with some of what its `run.json` says changed."""

    def change(licences: dict[str, int] | None = None, **about: Any) -> Path:
        run = tmp_path / "run"
        shutil.copytree(trained, run)
        plain = json.loads((run / "run.json").read_text())
        if licences is not None:
            for told in (plain["training"], *plain["sources"]):
                told["licences"] = licences
        (run / "run.json").write_text(json.dumps(plain | about))
        return run

    return change


def start(licence: str | None) -> dict[str, Any]:
    return {"reference": "resnet18_imagenet.mit", "sha256": "a" * 64, "licence": licence}


def write(run: Path, tmp_path: Path, **options: Any) -> Card:
    card: Card = export(run, "resnet18_uscl.trial", tmp_path / "zoo", **options)
    return card


def test_start_teachers_and_size_are_those_of_the_run(
    said: Callable[..., Path], tmp_path: Path
) -> None:
    run = said(start=start("MIT"), teachers=[start("MIT"), start(None)], size=224)
    card = write(run, tmp_path)
    assert card.training.start == Origin("resnet18_imagenet.mit", "a" * 64, "MIT")
    assert [teacher.licence for teacher in card.training.teachers] == ["MIT", None]
    assert card.input.size == (3, 224, 224)


def test_a_run_of_before_has_neither(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    about = json.loads((run / "run.json").read_text())
    kept = {key: about[key] for key in about if key not in ("start", "teachers", "size")}
    (run / "run.json").write_text(json.dumps(kept))
    card = write(run, tmp_path)
    assert (card.training.start, card.training.teachers) == (None, ())
    assert card.input.size == (3, 32, 32)


def test_the_file_says_what_it_is_normalised_by(said: Callable[..., Path], tmp_path: Path) -> None:
    card = write(said({"CC BY 4.0": 12}), tmp_path, licence="CC-BY-4.0")
    path = tmp_path / "zoo" / card.weights.file
    assert statistics_in(path) == (card.input.mean, card.input.std)
    assert statistics_in(path) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["name"], metadata["licence"]) == ("resnet18_uscl.trial", "CC-BY-4.0")


@pytest.mark.parametrize(
    ("licences", "about", "licence", "told"),
    [
        ({"CC BY-NC 4.0": 1, "CC BY 4.0": 11}, {}, "CC-BY-4.0", "given is CC-BY-NC-4.0"),
        ({"MIT": 12}, {"start": start("CC-BY-SA-4.0")}, "MIT", "given is CC-BY-SA-4.0"),
        ({"MIT": 12}, {"teachers": [start("CC BY-NC-SA 4.0")]}, "MIT", "given is CC-BY-NC-SA-4.0"),
        ({"CC BY-ND 4.0": 12}, {}, "CC-BY-NC-SA-4.0", "train without it"),
        ({"MIT": 12}, {}, "my own", "give an SPDX identifier"),
        ({"COVID-19 emergency license": 12}, {}, "CC-BY-NC-SA-4.0", "`licence_reason`"),
        ({"not stated": 12}, {}, "CC-BY-NC-SA-4.0", "`licence_reason`"),
        ({"MIT": 12}, {"start": start(None)}, "MIT", "'not stated'.*`licence_reason`"),
    ],
)
def test_no_licence_is_looser_than_what_binds_it(
    said: Callable[..., Path],
    tmp_path: Path,
    licences: dict[str, int],
    about: dict[str, Any],
    licence: str,
    told: str,
) -> None:
    run = said(licences, **about)
    with pytest.raises(DataError, match=told):
        write(run, tmp_path, licence=licence)
    # refused before anything is written; without a licence nothing is promised
    assert not (tmp_path / "zoo").exists()
    assert write(run, tmp_path).licence is None


def test_the_licence_that_was_advised_is_taken(said: Callable[..., Path], tmp_path: Path) -> None:
    run = said({"MIT": 6, "CC BY-NC 4.0": 6}, start=start("CC BY-SA 4.0"))
    card = write(run, tmp_path, licence="CC-BY-NC-SA-4.0")
    assert card.licence == "CC-BY-NC-SA-4.0"
    assert not any("although" in limit for limit in card.limits)


def test_a_reason_is_a_limit_and_overrules_no_known_licence(
    said: Callable[..., Path], tmp_path: Path
) -> None:
    run = said({"COVID-19 emergency license": 1, "CC BY-NC 4.0": 11})
    why = "the owner wrote that it is"
    with pytest.raises(DataError, match=r"looser than CC BY-NC 4\.0"):
        write(run, tmp_path, licence="MIT", licence_reason=why)
    card = write(run, tmp_path, licence="CC-BY-NC-4.0", licence_reason=why)
    assert any(why in limit and "COVID-19 emergency license" in limit for limit in card.limits)


@pytest.fixture(scope="module")
def of_two(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """A store of two sources: the clips once more, and a few of them."""
    folder = tmp_path_factory.mktemp("of two")
    for clip in sorted(clips.iterdir())[::3]:
        shutil.copytree(clip, folder / clip.name)
    plain: dict[str, Any] = {"label_scheme": "prefix", "subject_pattern": r"-s(\d+)"}
    all_clips = Source("Clips", root="all", url="https://clips", licence="MIT", **plain)
    a_few = Source("A few", root="few", citation="Few, 2026", licence="CC0-1.0", **plain)
    plan = CorpusPlan(
        "Both", {"all": str(clips), "few": str(folder)}, {"clips": all_clips, "few": a_few}
    )
    return prepare(
        plan, folder / "store", sampling=Sampling(size=32), holdout=0.3, workers=1, progress=False
    ).store


def test_the_card_keeps_each_source_apart(of_two: FrameStore, tmp_path: Path) -> None:
    card = exported(of_two, tmp_path)
    clips, few = card.training.sources
    assert (clips.name, clips.url, clips.citation) == ("Clips", "https://clips", None)
    assert (few.name, few.url, few.citation) == ("A few", None, "Few, 2026")
    for source, key, licence in ((clips, "clips", "MIT"), (few, "few", "CC0-1.0")):
        own = [v for v in of_two.select("train") if v.origin == key]
        assert source.videos == len(own) > 0
        assert source.frames == sum(v.count for v in own)
        assert source.subjects == len({v.subject for v in own})
        assert source.licences == {licence: len(own)}
    # both number their subjects from 00
    assert {s.partition("/")[0] for s in card.training.held_out_subjects} == {"clips", "few"}
    assert card.summary.endswith(f"{len(of_two.select('train'))} videos of Both")

    path = tmp_path / "zoo" / "resnet18_uscl.trial.yaml"
    assert add_corpus(path, of_two).corpus == card.corpus
    other = of_two.holding_out(card.training.held_out_subjects[:1])
    with pytest.raises(DataError, match="are not those on the card"):
        add_corpus(path, other)


def test_a_run_from_before_there_were_sources(small_store: FrameStore, tmp_path: Path) -> None:
    card = exported(small_store, tmp_path)
    about = json.loads((tmp_path / "run" / ABOUT).read_text())
    assert about.pop("sources")
    (tmp_path / "run" / ABOUT).write_text(json.dumps(about))
    old = export(tmp_path / "run", "resnet18_uscl.trial", tmp_path / "zoo", overwrite=True)
    assert old.training.sources == card.training.sources


def test_weights_without_a_card(small_store: FrameStore, tmp_path: Path) -> None:
    """A call that was killed before the card finishes when made again; others' weights stay."""
    card = exported(small_store, tmp_path)
    weights, card_file = (tmp_path / "zoo" / f"{card.name}.{s}" for s in ("safetensors", "yaml"))
    card_file.unlink()
    for _ in range(3):  # the header is not the same each time
        again = export(tmp_path / "run", card.name, tmp_path / "zoo")
        assert again.weights.sha256 == sha256(weights.read_bytes()).hexdigest()
        card_file.unlink()
    weights.write_bytes(b"theirs")
    with pytest.raises(DataError, match=re.escape(f"{weights}: is there already with other")):
        export(tmp_path / "run", card.name, tmp_path / "zoo")
    assert weights.read_bytes() == b"theirs"
    assert not card_file.exists()
    export(tmp_path / "run", card.name, tmp_path / "zoo", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == [
        f"{card.name}.corpus.safetensors",
        f"{card.name}.safetensors",
        f"{card.name}.yaml",
    ]


def test_no_path_of_a_start_or_teacher_is_on_the_card(
    said: Callable[..., Path], tmp_path: Path
) -> None:
    at = tmp_path / "Jane Roe"
    whom = {"reference": f"{at}/a.safetensors", "sha256": "a" * 64, "licence": "MIT"}
    hub = {"reference": "timm:resnet18.a1_in1k", "sha256": "b" * 64, "licence": "apache-2.0"}
    other = {"reference": r"C:\Users\roe\model", "sha256": "c" * 64, "licence": None}
    run = said(start=whom, teachers=[hub, other])
    recipe = read_yaml(run / "recipe.yaml")
    names = {"init": whom["reference"], "teachers": [hub["reference"], other["reference"]]}
    write_yaml(run / "recipe.yaml", recipe | names)
    card = write(run, tmp_path)
    assert [origin.name for origin in (card.training.start, *card.training.teachers) if origin] == [
        "a.safetensors",
        "timm:resnet18.a1_in1k",
        "model",
    ]
    assert card.training.recipe["init"] == "a.safetensors"
    assert card.training.recipe["teachers"] == ["timm:resnet18.a1_in1k", "model"]
    text = (tmp_path / "zoo" / f"{card.name}.yaml").read_text()
    assert not re.search(r"roe\b|tmp", text, re.IGNORECASE)


def test_figures_on_a_card_do_not_say_where_anything_was(
    said: Callable[..., Path], tmp_path: Path
) -> None:
    card = write(said({"MIT": 12}), tmp_path, licence="MIT")
    private = tmp_path / "Jane Roe"
    private.mkdir()
    own = private / "best model.pth"
    own.touch()
    metric = Metric(
        dataset="x, 9 subjects",
        protocol="linear",
        unit="file",
        metric="AUROC",
        value=0.5,
        interval=None,
        interval_kind=None,
        compared_with=f"local-dir:{private}",
        command=f"uscl evaluate '{own}' '--data={private}' --class 'a b' /absent/x",
        model=str(own),
    )
    (written,) = add_metrics(tmp_path / "zoo" / f"{card.name}.yaml", [metric]).metrics
    assert written.command == (
        "uscl evaluate 'best model.pth' '--data=Jane Roe' --class 'a b' /absent/x"
    )
    assert (written.model, written.compared_with) == ("best model.pth", "local-dir:Jane Roe")


def test_figures_of_the_same_command_are_replaced(
    said: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever its protocol was called before; those of other commands stay."""
    card = write(said({"MIT": 12}), tmp_path, licence="MIT")
    path = tmp_path / "zoo" / f"{card.name}.yaml"
    old = Metric("x", "linear", "clip", "AUROC", 0.5, None, None, None, "uscl evaluate a", None)
    other = dataclasses.replace(old, command="uscl evaluate b", dataset="y")
    add_metrics(path, [old, other])
    new = dataclasses.replace(old, protocol="linear, another penalty", value=0.6)
    assert add_metrics(path, [new]).metrics == (other, new)
