from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from conftest import make_card

from uscl_zoo.card import (
    Card,
    Metric,
    Source,
    all_cards,
    describe,
    home,
    packaged_cards,
    packaged_folder,
    read_card,
    user_cards,
)
from uscl_zoo.errors import CardError
from uscl_zoo.records import to_plain, write_yaml

NAME = "resnet18_uscl.trial"


def write(folder: Path, changes: dict[str, Any], name: str = NAME) -> Path:
    """Write a card with some keys changed, `a.b` standing for b within a."""
    plain = to_plain(make_card())
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        part = plain
        for parent in parents:
            part = part[parent]
        part[key] = value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.mark.parametrize("path", sorted(packaged_folder().glob("*.yaml")), ids=lambda p: p.stem)
def test_packaged_cards_say_what_they_must(path: Path) -> None:
    card = read_card(path)
    assert timm.is_model(card.model)
    assert card.training.sources
    assert card.intended_use
    assert any("Not a medical device" in limit for limit in card.limits)
    for source in card.training.sources:
        assert sum(source.classes.values()) == source.videos
        assert sum(source.licences.values()) == source.videos
    if card.has_weights:
        # weights of ours: all that is needed to make them again
        assert None not in (card.training.seed, card.training.steps, card.training.code)
        assert card.training.recipe
        assert card.licence
    else:
        assert card.weights.origin


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"name": "ResNet18.trial"}, "name"),
        ({"name": "resnet18_uscl"}, "name"),
        ({"name": "resnet18_uscl.other"}, "name"),
        ({"architecture": "vgg16"}, "architecture"),
        ({"architecture": "resnet50"}, "name"),
        ({"weights.file": "../escape.safetensors"}, "weights.file"),
        ({"weights.file": "/etc/x.safetensors"}, "weights.file"),
        ({"weights.file": "weights.pth"}, "weights.file"),
        ({"weights.sha256": "a" * 63, "weights.bytes": 1}, "weights.sha256"),
        ({"weights.sha256": "A" * 64, "weights.bytes": 1}, "weights.sha256"),
        ({"weights.sha256": "a" * 64}, "weights.bytes"),
        ({"weights.bytes": 3}, "weights.bytes"),
        ({"weights.sha256": "a" * 64, "weights.bytes": 0}, "weights.bytes"),
        ({"weights.hub_repo": "someone/model"}, "weights.revision"),
        ({"weights.revision": "c" * 40}, "weights.revision"),
        ({"weights.hub_repo": "model", "weights.revision": "c" * 40}, "weights.hub_repo"),
        ({"weights.hub_repo": "someone/model", "weights.revision": "main"}, "weights.revision"),
        ({"input.size": [1, 224, 224]}, "input.size"),
        ({"input.size": [3, 224, 0]}, "input.size"),
        ({"input.std": [0.25, 0.0, 0.25]}, "input.std"),
        ({"input.mean": [0.5]}, "input: mean"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"training.sources": None}, "training: sources"),
    ],
)
def test_a_wrong_card_names_file_and_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    path = write(tmp_path, changes)
    with pytest.raises(CardError, match=f"^{re.escape(str(path))}: {re.escape(key)}") as caught:
        read_card(path)
    assert "\n" not in str(caught.value)


def test_a_card_survives_its_file(tmp_path: Path) -> None:
    source = Source("Lungs", "https://example.org", None, 3, 30, 2, {"Cov": 3}, {"MIT": 3})
    metric = Metric(
        "Lungs", "probe", "frame", "accuracy", 0.5, (0.4, 0.6), "95 %", None, "uscl x", None
    )
    card = make_card(metrics=(metric,), licence=None)
    training = replace(
        card.training,
        sources=(source,),
        recipe={"classes": None, "beta": 0.5, "nesterov": True, "std": [0.25]},
    )
    card = replace(card, training=training)
    write_yaml(tmp_path / f"{NAME}.yaml", card)
    assert read_card(tmp_path / f"{NAME}.yaml") == card


def test_model_and_tag_are_the_parts_of_the_name() -> None:
    card = make_card("resnet50_uscl.us4")
    assert (card.model, card.tag, card.has_weights) == ("resnet50_uscl", "us4", False)


def test_home_is_the_users_unless_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uscl_zoo import card

    assert card.home() == home / ".uscl_zoo"
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", "~/elsewhere")
    assert card.home() == home / "elsewhere"


def test_a_new_file_is_a_new_card(installed: Callable[..., Card]) -> None:
    before = all_cards()
    card = installed()
    assert all_cards() == before | {card.name: card}
    assert user_cards() == {card.name: card}


def test_a_users_card_stands_in_for_one_without_weights(installed: Callable[..., Card]) -> None:
    assert not packaged_cards()["resnet18_uscl.us4"].has_weights
    card = installed("resnet18_uscl.us4")
    assert all_cards()["resnet18_uscl.us4"] == card


def test_a_users_card_never_replaces_weights_of_the_zoo(
    installed: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = installed()
    weights = replace(theirs.weights, sha256="a" * 64)
    ours = replace(theirs, weights=weights)
    monkeypatch.setattr("uscl_zoo.card.packaged_cards", lambda: {ours.name: ours})
    assert all_cards()[ours.name] == ours


def test_no_folder_is_no_cards() -> None:
    assert not home().exists()
    assert user_cards() == {}


def test_a_card_as_people_read_it() -> None:
    source = Source("Lungs", None, None, 3, 30, 2, {"Cov": 3}, {"CC BY 4.0": 3})
    metric = Metric(
        "Lungs", "probe", "frame", "accuracy", 0.51, (0.4, 0.6), "95 %", None, "uscl x", None
    )
    card = make_card(metrics=(metric,))
    card = replace(
        card,
        limits=("Not for diagnosis.",),
        training=replace(card.training, sources=(source,), held_out_subjects=("a", "b")),
        weights=replace(card.weights, sha256="a" * 64, bytes=2_500_000),
    )
    told = describe(card)
    for fact in (
        "resnet18_uscl.trial",
        "3 videos, 30 frames, 2 subjects",
        "CC BY 4.0 3",
        "held out           2 subjects",
        "0.510 [0.400, 0.600]",
        "uscl x",
        "2.5 MB",
        "a" * 64,
        "Not for diagnosis.",
    ):
        assert fact in told


@pytest.mark.parametrize("card", packaged_cards().values(), ids=lambda card: card.name)
def test_every_packaged_card_can_be_read_by_people(card: Card) -> None:
    told = describe(card)
    assert card.summary in told
    assert (card.licence or "not stated by the authors") in told
