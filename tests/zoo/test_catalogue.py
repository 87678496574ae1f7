from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from uscl_zoo.zoo import catalogue
from uscl_zoo.zoo.card import Card
from uscl_zoo.zoo.catalogue import all_cards, home, packaged_cards, user_cards


def test_home_is_the_users_unless_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalogue.home() == home / ".uscl_zoo"
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", "~/elsewhere")
    assert catalogue.home() == home / "elsewhere"


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
    monkeypatch.setattr("uscl_zoo.zoo.catalogue._packaged", lambda: ({ours.name: ours}, ()))
    assert all_cards()[ours.name] == ours


def test_no_folder_is_no_cards() -> None:
    assert not home().exists()
    assert user_cards() == {}
