from __future__ import annotations

import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from small_weights import FILE, age, card_of, put, tensors

from uscl_zoo.errors import DigestError, WeightsNotFoundError
from uscl_zoo.zoo import digests, places, weights_cache
from uscl_zoo.zoo.digests import Fingerprint, digest_of

pytestmark = pytest.mark.usefixtures("own_home")


def memory(home: Path) -> Path:
    return home / ".cache" / "uscl_zoo" / "verified.json"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files settle in a twentieth of a second, for two: longer than a clock's tick all the same."""
    monkeypatch.setattr(digests, "_UNSETTLED", 50_000_000)


@pytest.fixture
def settled(tmp_path: Path, soon: None) -> Path:
    path = put(tmp_path / "named" / FILE, tensors())
    age(path)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read through, in order."""
    done: list[Path] = []
    real = digest_of

    def counting(path: Path) -> tuple[str, Fingerprint]:
        done.append(path)
        return real(path)

    monkeypatch.setattr(places, "digest_of", counting)
    return done


def test_a_digest_is_computed_once(settled: Path, reads: list[Path]) -> None:
    for _ in range(3):
        weights_cache.locate(card_of(tensors()), folder=settled.parent)
    assert reads == [settled]


def test_a_fresh_file_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = put(tmp_path / FILE, tensors())
    for _ in range(2):
        weights_cache.locate(card_of(tensors()), folder=tmp_path)
    assert reads == [path, path]


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_change_with_restored_mtime_is_caught(settled: Path, how: str) -> None:
    card = card_of(tensors())
    weights_cache.locate(card, folder=settled.parent)
    before = settled.stat()
    wrong = bytearray(tensors())
    wrong[-1] ^= 1
    if how == "in place":
        with settled.open("r+b") as stream:
            stream.write(wrong)
    else:
        put(settled.with_suffix(".new"), bytes(wrong)).replace(settled)
    os.utime(settled, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert settled.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(DigestError):
        weights_cache.locate(card, folder=settled.parent)


@pytest.mark.usefixtures("soon")
def test_a_remembered_wrong_file_stays_wrong(tmp_path: Path, reads: list[Path]) -> None:
    path = put(tmp_path / FILE, tensors(seed=1))
    age(path)
    for _ in range(2):
        with pytest.raises(DigestError, match=sha256(tensors(seed=1)).hexdigest()):
            weights_cache.locate(card_of(tensors()), folder=tmp_path)
    # the same file is right for the card it belongs to
    assert weights_cache.locate(card_of(tensors(seed=1)), folder=tmp_path).path == path
    assert reads == [path]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "[" * 5000, '{"%s": 3}', '{"%s": {"sha256": 1}}', "\udcff"]
)
def test_a_damaged_memory_is_forgotten(
    settled: Path, own_home: Path, reads: list[Path], content: str
) -> None:
    content = content.replace("%s", str(settled))
    put(memory(own_home), content.encode("utf-8", "surrogateescape"))
    for _ in range(2):
        weights_cache.locate(card_of(tensors()), folder=settled.parent)
    assert reads == [settled]
    assert str(settled) in json.loads(memory(own_home).read_text())


def test_a_memory_that_cannot_be_kept_costs_nothing_else(settled: Path, own_home: Path) -> None:
    put(own_home / ".cache", b"a file where the folder should be")
    for _ in range(2):
        assert weights_cache.locate(card_of(tensors()), folder=settled.parent).path == settled


def test_verify_all_reads_every_file(
    settled: Path, reads: list[Path], own_home: Path, tmp_path: Path
) -> None:
    card = card_of(tensors())
    weights_cache.locate(card, folder=settled.parent)
    other = replace(card, weights=replace(card.weights, file="other.safetensors"))
    missing = replace(card, weights=replace(card.weights, file="missing.safetensors"))
    put(settled.with_name("other.safetensors"), b"other")
    right, wrong, none = weights_cache.verify_all([card, other, missing], folder=settled.parent)
    assert right.located is not None
    assert right.located.path == settled
    assert right.error is None
    assert isinstance(wrong.error, DigestError)
    assert isinstance(none.error, WeightsNotFoundError)
    assert wrong.located is none.located is None
    assert reads.count(settled) == 2
