from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from uscl_zoo.training.execution import Execution
from uscl_zoo.training.export import export
from uscl_zoo.training.frames import FrameStore
from uscl_zoo.training.pretrain import pretrain
from uscl_zoo.training.recipe import Recipe, replace
from uscl_zoo.training.runs import load_checkpoint

from uscl_zoo.card import Card

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
    assert 6 <= source.frames < everything["frames"]
    assert sum(source.classes.values()) == sum(source.licences.values()) == 6
    # 4 videos and 2, twice
    assert card.training.steps == 4
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    assert int(state["optimizer"]["state"][0]["step"]) == 4
    assert list(card.training.held_out_subjects) == small_store.description["held_out_subjects"]
    assert card.training.recipe["data_rate"] == 0.5
