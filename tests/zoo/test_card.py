from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from conftest import make_card

from uscl_zoo.errors import CardError
from uscl_zoo.records import to_plain, write_yaml
from uscl_zoo.zoo import licences
from uscl_zoo.zoo.card import MODELS, Metric, Origin, Source, licences_of, read_card
from uscl_zoo.zoo.catalogue import packaged_folder

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
