from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from uscl_zoo.training.corpus import add_corpus
from uscl_zoo.training.execution import Execution
from uscl_zoo.training.export import export
from uscl_zoo.training.frames import FrameStore
from uscl_zoo.training.prepare import Sampling, prepare
from uscl_zoo.training.pretrain import pretrain
from uscl_zoo.training.recipe import Recipe, replace
from uscl_zoo.training.runs import ABOUT, load_checkpoint
from uscl_zoo.training.sources import CorpusPlan, Source

from uscl_zoo.card import Card
from uscl_zoo.errors import DataError

CPU = Execution(torch.device("cpu"))
RECIPE = Recipe(epochs=1, batch_size=4, smallest_batch=2, projection_dim=16, seed=11)


def exported(store: FrameStore, folder: Path, **changes: Any) -> Card:
    """The card of a run with some settings changed."""
    pretrain(replace(RECIPE, **changes), store, folder / "run", execution=CPU, progress=False)
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
    assert card.summary.endswith(f"{clips.videos + few.videos} videos of Both")

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
