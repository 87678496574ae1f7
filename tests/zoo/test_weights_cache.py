from __future__ import annotations

import os
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from small_weights import FILE, NAME, age, cached_file, card_of, put, tensors

from uscl_zoo.errors import DigestError, WeightsNotFoundError
from uscl_zoo.zoo import digests, weights_cache
from uscl_zoo.zoo.card import read_card
from uscl_zoo.zoo.places import Located, Place

pytestmark = pytest.mark.usefixtures("own_home")

COMMIT = "c" * 40


@pytest.fixture
def everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The same weights in each of the places on this machine."""
    data = tensors()
    monkeypatch.setattr(weights_cache, "_BUNDLED", tmp_path / "bundled")
    return {
        "named folder": put(tmp_path / "named" / FILE, data),
        "bundled": put(tmp_path / "bundled" / FILE, data),
        "Hub cache": cached_file(tmp_path / "cache", "someone/model", COMMIT, data),
    }


def look(tmp_path: Path) -> Located:
    card = card_of(tensors(), "someone/model", COMMIT)
    return weights_cache.locate(
        card, tmp_path / "named", cache_dir=tmp_path / "cache", download=False
    )


def test_places_are_taken_in_order(everywhere: dict[str, Path], tmp_path: Path) -> None:
    for source, path in everywhere.items():
        located = look(tmp_path)
        assert (located.source, located.path) == (source, path)
        path.unlink()
    with pytest.raises(WeightsNotFoundError) as refusal:
        look(tmp_path)
    for part in (tmp_path / "named", tmp_path / "bundled", tmp_path / "cache", f"fetch {NAME}"):
        assert str(part) in str(refusal.value)


@pytest.mark.parametrize("source", ["named folder", "bundled", "Hub cache"])
@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty"])
def test_a_wrong_file_is_refused_wherever_it_is(
    everywhere: dict[str, Path], tmp_path: Path, source: str, damage: str
) -> None:
    for before in list(everywhere)[: list(everywhere).index(source)]:
        everywhere[before].unlink()
    data = tensors()
    wrong = {
        "flipped": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "short": data[:-1],
        "long": data + b"\0",
        "empty": b"",
    }[damage]
    everywhere[source].write_bytes(wrong)
    with pytest.raises(DigestError) as refusal:
        look(tmp_path)
    message = str(refusal.value)
    assert str(everywhere[source]) in message
    assert sha256(data).hexdigest() in message
    assert sha256(wrong).hexdigest() in message
    assert "\n" not in message


def test_folder_argument_then_variable_then_home(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(tensors())
    by_home = put(own_home / ".uscl_zoo" / FILE, tensors())
    assert weights_cache.locate(card).path == by_home
    by_variable = put(tmp_path / "variable" / FILE, tensors())
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(tmp_path / "variable"))
    assert weights_cache.locate(card).path == by_variable
    by_argument = put(tmp_path / "argument" / FILE, tensors())
    assert weights_cache.locate(card, folder=tmp_path / "argument").path == by_argument


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / FILE
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(WeightsNotFoundError, match=re.escape(f"{path}: cannot be read")):
        weights_cache.locate(card_of(tensors()), folder=tmp_path)


def test_weights_that_others_publish_are_imported() -> None:
    card = card_of(None)
    card = replace(card, weights=replace(card.weights, origin="https://example.org/paper"))
    with pytest.raises(WeightsNotFoundError) as refusal:
        weights_cache.locate(card)
    assert "https://example.org/paper" in str(refusal.value)
    assert f"uscl import FILE --as {NAME}" in str(refusal.value)


def test_a_card_without_repository_says_where_it_looked(own_home: Path) -> None:
    with pytest.raises(WeightsNotFoundError) as refusal:
        weights_cache.locate(card_of(tensors()))
    assert str(own_home / ".uscl_zoo") in str(refusal.value)
    assert "uscl fetch" not in str(refusal.value)


def test_places_say_what_is_there(everywhere: dict[str, Path], tmp_path: Path) -> None:
    card = card_of(tensors(), "someone/model", COMMIT)
    everywhere["bundled"].unlink()
    found = weights_cache.places(card, tmp_path / "named", tmp_path / "cache")
    assert [(place.source, place.present) for place in found] == [
        ("named folder", True),
        ("bundled", False),
        ("Hub cache", True),
    ]
    everywhere["Hub cache"].unlink()
    assert weights_cache.places(card, tmp_path / "named", tmp_path / "cache")[2] == Place(
        "Hub cache", tmp_path / "cache", False
    )


def test_recheck_notices_what_happened_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_UNSETTLED", 50_000_000)
    path = put(tmp_path / FILE, tensors())
    located = weights_cache.locate(card_of(tensors()), folder=tmp_path)
    located.recheck()
    age(path)
    path.write_bytes(tensors())
    with pytest.raises(DigestError, match="changed while"):
        located.recheck()
    path.unlink()
    with pytest.raises(DigestError, match="changed while"):
        located.recheck()


def test_fetch_makes_a_folder_for_another_machine(
    tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(tensors())
    put(own_home / ".uscl_zoo" / FILE, tensors())
    carried = tmp_path / "stick" / "uscl"
    assert weights_cache.fetch(card, carried) == carried / FILE
    assert sorted(path.name for path in carried.iterdir()) == [FILE, f"{NAME}.yaml"]
    assert read_card(carried / f"{NAME}.yaml") == card
    (own_home / ".uscl_zoo" / FILE).unlink()
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(carried))
    assert weights_cache.locate(card).path == carried / FILE
    # again: what is right is left alone
    before = (carried / FILE).stat()
    weights_cache.fetch(card, carried)
    assert (carried / FILE).stat().st_ino == before.st_ino


def test_fetch_overwrites_nothing_and_leaves_no_half(tmp_path: Path, own_home: Path) -> None:
    card = card_of(tensors())
    source = put(own_home / ".uscl_zoo" / FILE, tensors())
    theirs = put(tmp_path / "stick" / FILE, b"mine")
    with pytest.raises(DigestError, match=re.escape(str(theirs))):
        weights_cache.fetch(card, theirs.parent)
    assert theirs.read_bytes() == b"mine"
    blocked = put(tmp_path / "file", b"") / "folder"
    with pytest.raises(WeightsNotFoundError, match=re.escape(str(blocked))):
        weights_cache.fetch(card, blocked)
    source.unlink()
    with pytest.raises(WeightsNotFoundError):
        weights_cache.fetch(card, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_fetch_carries_the_licence_along(tmp_path: Path, own_home: Path) -> None:
    card = card_of(tensors())
    card = replace(card, weights=replace(card.weights, licence_file="LICENSE.theirs"))
    put(own_home / ".uscl_zoo" / FILE, tensors())
    with pytest.raises(
        WeightsNotFoundError, match=r"LICENSE\.theirs, the licence that has to travel"
    ):
        weights_cache.fetch(card, tmp_path / "stick")
    put(own_home / ".uscl_zoo" / "LICENSE.theirs", b"as you like")
    weights_cache.fetch(card, tmp_path / "stick")
    assert (tmp_path / "stick" / "LICENSE.theirs").read_bytes() == b"as you like"
