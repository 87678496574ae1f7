from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uscl_zoo.data.annotations import SubjectPattern, fold, known, read_table
from uscl_zoo.errors import DataError

UNKNOWN = ["NA", "na", "N/A", "n.a.", "NaN", "nan", "<NA>", "#N/A", "", " ", "?", "-", "null"]
UNKNOWN += ["missing", "Not available", "--", "n.d.", "#REF!", "#VALUE!", "not recorded"]
UNKNOWN += ["unknown", "Unknown", "UNKNOWN ", "unk", "\tNA\n"]


@pytest.mark.parametrize("word", [*UNKNOWN, None, math.nan])
def test_nobody_knows(word: object) -> None:
    assert known(word) is None


@pytest.mark.parametrize("word", ["none", "0", "Nancy", "NA1", "not unknown", "--x", "nano"])
def test_what_only_looks_unknown(word: str) -> None:
    assert known(word) == word


@given(st.text())
def test_words_are_one_line_and_one_of_their_spellings(word: str) -> None:
    once = known(word)
    if once is None:
        return
    assert once.isprintable()
    assert known(once) == once
    for form in ("NFC", "NFD"):
        assert known(unicodedata.normalize(form, word)) == once
        assert fold(unicodedata.normalize(form, word)) == fold(word)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("f,label,label\na,x,y\n", "has 2 columns 'label'"),
        ("f,label\na,x,y\n", "line 2 has more cells than the head"),
        ("f,label\na,x\nb,left, upper\n", "line 3 has more cells than the head"),
        ("PK\3\4" + "x" * 500, "as of a spreadsheet: save it as CSV"),
    ],
)
def test_tables_whose_cells_may_be_others(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_table(path, "f", "label")
    assert len(str(caught.value)) < 300 + len(str(path))
    # another column twice, and empty cells at the end, do no harm
    path.write_text("f,label,note,note\na,x,1,2,,\n")
    assert read_table(path, "f", "label").rows["a"].label == "x"


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_unknown_cells(tmp_path: Path, unknown: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f'file,label,who\na.png,"{unknown}","{unknown}"\nb.png,x,"{unknown}"\n')
    rows = read_table(path, "file", "label", "who").rows
    assert [row.label for row in rows.values()] == [None, "x"]
    # each its own, and not one subject that nobody knows
    assert [row.subject for row in rows.values()] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("separator", "named"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")]
)
def test_a_table_parted_by_something_else(tmp_path: Path, separator: str, named: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(separator.join(["file", "label"]) + "\n" + separator.join("ab") + "\n")
    with pytest.raises(DataError, match=f"no column 'file'; .* parted by {named}: save it as CSV"):
        read_table(path, "file", "label")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("(", "is no regular expression"), ("x", "has no group"), ("(y)", "finds no group in it")],
)
def test_patterns_that_find_nobody(pattern: str, told: str) -> None:
    with pytest.raises(DataError, match=f"{re.escape(repr(pattern))} {told}"):
        SubjectPattern(pattern)("a/x.png")


def test_a_pattern_that_finds_nobody_known() -> None:
    pattern = SubjectPattern("^([^/]+)/")
    assert [pattern(name) for name in ("p1/x.png", "Unknown/x.png")] == ["p1", None]
