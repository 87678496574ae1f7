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

from uscl_zoo import licences
from uscl_zoo.card import (
    MODELS,
    Card,
    Metric,
    Origin,
    Source,
    all_cards,
    describe,
    home,
    licences_of,
    packaged_cards,
    packaged_folder,
    read_card,
    seen,
    standing,
    table,
    user_cards,
)
from uscl_zoo.errors import CardError
from uscl_zoo.records import to_plain, write_yaml

NAME = "resnet18_uscl.trial"


ORIGIN = {"name": "resnet18_imagenet.mit", "sha256": "a" * 64, "licence": "MIT"}


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
        for counted in (source.classes, source.licences):
            assert sum(counted.values()) == (source.videos or 0)
    if card.licence:
        assert licences.fault(card.licence, licences_of(card.training)) is None
    if not card.is_uscl:
        # weights of others, which we may give on
        assert card.has_weights
        assert card.weights.converted_from is not None
        assert (path.parents[1] / "weights" / str(card.weights.licence_file)).is_file()
        assert card.licence
    elif card.has_weights:
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
        ({"name": "resnet18_mine.trial"}, "name"),
        ({"weights.licence_file": "../LICENSE"}, "weights.licence_file"),
        ({"weights.converted_from": {**ORIGIN, "sha256": "a"}}, "weights.converted_from.sha256"),
        ({"training.start": {**ORIGIN, "sha256": "a"}}, "training.start.sha256"),
        ({"training.teachers": [ORIGIN, {**ORIGIN, "sha256": "a"}]}, "training.teachers[1].sha256"),
        ({"training.start": {"name": "in18"}}, "training: start: key 'sha256'"),
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
        start=Origin("timm:resnet18", None, None),
        teachers=(Origin("resnet18_imagenet.mit", "a" * 64, "MIT"),),
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
    monkeypatch.setattr("uscl_zoo.card._packaged", lambda: ({ours.name: ours}, ()))
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


@pytest.mark.parametrize(("model", "architecture"), MODELS.items())
def test_a_card_names_model_and_architecture_apart(
    tmp_path: Path, model: str, architecture: str
) -> None:
    name = f"{model}.trial"
    path = write(tmp_path, {"name": name, "architecture": architecture}, name)
    card = read_card(path)
    assert (card.model, card.architecture) == (model, architecture)
    other = "resnet50" if architecture == "resnet18" else "resnet18"
    with pytest.raises(CardError, match=f"name: {model} is a {architecture}"):
        read_card(write(tmp_path, {"name": name, "architecture": other}, name))


def test_what_binds_weights_is_all_they_came_of() -> None:
    card = make_card()
    source = Source("Lungs", None, None, 3, 30, 2, {}, {"CC BY 4.0": 2, "MIT": 1})
    nobody = replace(source, licences={})
    training = replace(card.training, sources=(source, source))
    assert licences_of(training) == ("CC BY 4.0", "MIT")
    start, teacher = Origin("a", None, None), Origin("b", None, "CC-BY-NC-4.0")
    training = replace(training, sources=(source,), start=start, teachers=(teacher,))
    assert licences_of(training) == ("CC BY 4.0", "MIT", None, "CC-BY-NC-4.0")
    assert licences_of(replace(card.training, sources=(nobody,))) == (None,)


def test_what_it_has_seen() -> None:
    card = make_card()
    assert seen(card) == "nothing is known of it"
    clips = Source("Lungs", None, None, 1200, 30000, 2, {}, {}, ("lung",))
    stills = Source("BUS-BRA", None, None, 1875, 1875, None, {}, {}, ("breast",))
    photographs = Source("ImageNet-1k", None, None, None, None, None, {}, {})
    card = replace(card, training=replace(card.training, sources=(clips, stills, photographs)))
    assert seen(card) == (
        "Lungs (lung; 1,200 videos, 30,000 frames, 2 subjects), "
        "BUS-BRA (breast; 1,875 images), ImageNet-1k"
    )
    assert "| Lungs: 1,200 videos; BUS-BRA: 1,875 images; ImageNet-1k |" in table([card])


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.01, 0.03), "ahead of in18: +0.020 [+0.010, +0.030] AUROC, by subject; BUSI"),
        ((-0.01, 0.03), "level with in18: +0.020 [-0.010, +0.030]"),
        ((0.0, 0.03), "level with in18"),
        ((-0.03, -0.01), "behind in18"),
        (None, "beside in18: +0.020 AUROC"),
    ],
)
def test_where_it_stands(interval: tuple[float, float] | None, expected: str) -> None:
    metric = Metric(
        "BUSI",
        "neighbours, 20 of them; frozen",
        "subject",
        "AUROC",
        0.02,
        interval,
        "95 %",
        "in18",
        "uscl x",
        None,
    )
    alone = replace(metric, compared_with=None)
    card = make_card(metrics=(metric, alone))
    first, last = standing(card)
    assert first.startswith(expected)
    assert first.endswith("; neighbours, 20 of them; frozen")
    assert last == "beside ImageNet: no figure on this card"
    # of how it was measured the first clause
    assert standing(card, brief=True)[0] == first.removesuffix(", 20 of them; frozen")
    assert first in describe(card)
    named = replace(metric, compared_with="ImageNet (resnet18_imagenet.mit)")
    assert len(standing(replace(card, metrics=(named, alone)))) == 1


@pytest.mark.parametrize("card", packaged_cards().values(), ids=lambda card: card.name)
def test_every_packaged_card_says_who_may_use_it(card: Card) -> None:
    told = describe(card)
    assert f"in a product       {licences.in_a_product(card.licence)}" in told
    assert f"has seen           {seen(card)}" in told
