from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import files_of

from uscl_zoo.errors import CardError
from uscl_zoo.files import WriteError
from uscl_zoo.records import from_mapping, read_json, read_yaml, to_plain, write_text, write_yaml


@dataclass(frozen=True)
class Inner:
    name: str
    size: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    rate: float
    count: int = 1
    on: bool = False
    title: str | None = None
    words: tuple[str, ...] = ()
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    free: dict[str, object] = field(default_factory=dict)


FULL = Outer(
    rate=0.5,
    count=3,
    on=True,
    title="ultrasound: “µ”",
    words=("a", "b"),
    inner=Inner("x", (3, 4)),
    inners=(Inner("y"), Inner("z")),
    counts={"frames": 5},
    free={"flag": True, "nothing": None, "list": [1, 2.5]},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_yaml(tmp_path / "a.yaml", FULL)
    assert from_mapping(Outer, read_yaml(tmp_path / "a.yaml"), "a.yaml") == FULL


def test_defaults_fill_what_is_left_out() -> None:
    assert from_mapping(Outer, {"rate": 1}, "a.yaml") == Outer(rate=1.0)


@pytest.mark.parametrize("given", [3, 3.0, "3e0", "3"])
def test_numbers_become_floats(given: object) -> None:
    rate = from_mapping(Outer, {"rate": given}, "a.yaml").rate
    assert type(rate) is float
    assert rate == 3.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"speed": 1}, "a.yaml: unknown key 'speed'; known are rate, count"),
        ({3: 1}, "a.yaml: unknown key '3'"),
        ({"rate": "fast"}, "a.yaml: rate: should be of type float, not 'fast'"),
        ({"rate": True}, "a.yaml: rate: should be of type float, not True"),
        ({"rate": None}, "a.yaml: rate: should be of type float, not None"),
        ({"rate": float("nan")}, "a.yaml: rate: should be finite"),
        ({"rate": "inf"}, "a.yaml: rate: should be finite"),
        ({"rate": 10**400}, "a.yaml: rate: should be finite"),
        ({"count": 1.0}, "a.yaml: count: should be of type int, not 1.0"),
        ({"count": True}, "a.yaml: count: should be of type int, not True"),
        ({"on": 1}, "a.yaml: on: should be of type bool, not 1"),
        ({"title": 3}, "a.yaml: title: should be of type str, not 3"),
        ({"words": "ab"}, "a.yaml: words: should be a list, not 'ab'"),
        ({"words": ["a", 1]}, "a.yaml: words[1]: should be of type str, not 1"),
        ({"inner": {"name": "x", "size": [1]}}, "a.yaml: inner: size: should have 2 values, not 1"),
        ({"inner": {"size": [1, 2]}}, "a.yaml: inner: key 'name' is missing"),
        ({"inner": 3}, "a.yaml: inner: should be a mapping of keys to values, not 3"),
        ({"inners": [{"name": "x"}, {"nam": "y"}]}, "a.yaml: inners[1]: unknown key 'nam'"),
        ({"counts": [1]}, "a.yaml: counts: should be a mapping, not [1]"),
        ({"counts": {"frames": "x"}}, "a.yaml: counts.frames: should be of type int, not 'x'"),
    ],
)
def test_what_annotations_do_not_allow_is_named(change: dict[Any, Any], told: str) -> None:
    with pytest.raises(CardError, match=f"^{re.escape(told)}"):
        from_mapping(Outer, {"rate": 1.0} | change, "a.yaml")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(CardError, match=r"^a\.yaml: key 'rate' is missing$"):
        from_mapping(Outer, {"count": 1}, "a.yaml")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "should be a mapping"),
        (b"- a\n- b\n", "should be a mapping"),
        (b"a: [1, 2\n", "is not valid YAML"),
        (b"a: \xff\xfe\n", "is not valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        (b"a: 2026-13-45\n", "is not valid YAML"),
        (b"[" * 5000, "is not valid YAML"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_record(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "a.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CardError, match=f"^{re.escape(str(path))}: {told}") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_plain_data_holds_no_classes() -> None:
    plain = to_plain(FULL)
    assert plain["inners"] == [{"name": "y", "size": [1, 2]}, {"name": "z", "size": [1, 2]}]
    assert plain["words"] == ["a", "b"]


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with files_of(100), pytest.raises(WriteError):
        write_text(path, "half" * 100)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_utf8_is_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a name \udcff")
    assert (tmp_path / "a.txt").read_text() == "a name \\udcff"


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("")
    write_text(tmp_path / "a.txt", "")
    assert (tmp_path / "a.txt").stat().st_mode == other.stat().st_mode


# -------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: " + "[" * 60 + "]" * 60, "nested"),
        # what stops first, libyaml or we, depends on its version
        ("a: " + "[" * 200_000, "nested|flow level"),
        ("a: &x [1, 2]\nb: *x", "has an alias"),
        ("a: " + "1" * 1_000_000, "has a number of 1,000,000 characters"),
        # digits of base 60, each a product of the whole before it
        ("a: " + ":".join(["1"] * 200_000), "has a number of 399,999 characters"),
        ("a: 0x" + "f" * 5000, "has a number of 5,002 characters"),
        ("a: " + "x" * (1 << 22), "is larger than 4,194,304 bytes"),
    ],
    ids=["deep", "deeper", "alias", "digits", "sexagesimal", "hexadecimal", "large"],
)
def test_absurd_yaml_is_refused_before_anything_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    monkeypatch.setattr(yaml, "load", None)
    with pytest.raises(CardError, match=told) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_card_may_hold_out_fifty_thousand_subjects(tmp_path: Path) -> None:
    held = [f"hospital-of-somewhere/patient-{i:06}" for i in range(50_000)]
    write_yaml(tmp_path / "a.yaml", {"held": held})
    assert read_yaml(tmp_path / "a.yaml") == {"held": held}


def test_a_long_text_is_no_number(tmp_path: Path) -> None:
    write_yaml(tmp_path / "a.yaml", {"a": "words of a card " * 200, "b": "1 2 " * 900})
    assert read_yaml(tmp_path / "a.yaml")["b"] == "1 2 " * 900


@pytest.mark.parametrize(
    ("text", "told"),
    [("[" * 1_000_000, "nested too deep"), ("{", "not valid JSON"), (" " * 101, "larger than 100")],
    ids=["deep", "cut off", "large"],
)
def test_absurd_json_is_refused_at_once(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    most = 100 if told.startswith("larger") else 1 << 24
    with pytest.raises(CardError, match=told):
        read_json(path, most)
