from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uscl_zoo.data.annotations import (
    SubjectPattern,
    fold,
    known,
    known_subject,
    nearly_alike,
    read_frame,
    read_table,
)
from uscl_zoo.errors import DataError, UsclError

UNKNOWN = ["NA", "na", "N/A", "n.a.", "NaN", "nan", "<NA>", "#N/A", "", " ", "?", "-", "null"]
UNKNOWN += ["missing", "Not available", "--", "n.d.", "#REF!", "#VALUE!", "not recorded"]
UNKNOWN += ["unknown", "Unknown", "UNKNOWN ", "unk", "\tNA\n", "(unknown)", "<unknown>", "unknown."]
UNKNOWN += ["not_specified", "undefined", "unlabelled", "TBD", "NaT", "1.#IND", "#N/A N/A", "#NV"]
UNKNOWN += [
    "N / A",
    "(null)",
    "\u2014",
    "...",
    "[]",
    "\u200b",
    "\ufeff",
    "NA\u200b",
    "\uff2e\uff21",
    "\u00a0",
]
UNKNOWN += ["anonymous", "ANON", "Anonymized", "(blank)", "unbekannt"]


@pytest.mark.parametrize("word", [*UNKNOWN, None, math.nan])
def test_nobody_knows(word: object) -> None:
    assert known(word) is None


@pytest.mark.parametrize(
    "word",
    [
        *("none", "0", "Nancy", "NA1", "not unknown", "--x", "nano", "+", "value", "name", "blank"),
        *("-1", "1.5", "01", "1.0.0", "indeterminate", "anonymous vein"),
    ],
)
def test_what_only_looks_unknown(word: str) -> None:
    assert known(word) == word


@pytest.mark.parametrize("word", ["none", "None", "-1", "-999", "nobody", *UNKNOWN])
def test_nobody_is_called_so(word: str) -> None:
    assert known_subject(word) is None


@pytest.mark.parametrize(
    ("word", "spelt"),
    [
        ("1.0", "1"),
        ("-2.000", "-2"),
        ("007.0", "007"),
        ("be\u00adnign", "benign"),
        ("\u200ebenign\u200b \ufeff", "benign"),
        ("be\u00a0 nign", "be nign"),
        ("e\u200b\u0301", "\u00e9"),
    ],
)
def test_what_is_written_otherwise_is_one_word(word: str, spelt: str) -> None:
    assert known(word) == spelt
    assert fold(word) == fold(spelt)


def test_words_that_may_be_one() -> None:
    words = ["p7", "P7", "p 07", "P_7", "p70", "1", "01", "10", "\uff50\uff17", "a-1", "a_01", "b"]
    assert nearly_alike(words) == [
        ["p7", "P7", "\uff50\uff17"],
        ["p 07", "P_7"],
        ["1", "01"],
        ["a-1", "a_01"],
    ]


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("f,label\na,x\n".encode("utf-16"), "save it so, as `CSV UTF-8`"),
        ("f,label\na,x\n".encode("utf-16-le"), "seems to be in UTF-16"),
        ("f,label\na,\u00e9\n".encode("latin-1"), "save it so, as `CSV UTF-8`"),
        (b"f,label\na,x\0\n", "line 2 has a null byte in it"),
    ],
)
def test_tables_of_other_encodings(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UsclError, match=said):
        read_table(path, "f", "label")


def test_rows_that_name_no_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("f,label\na,x\n,y\n  ,y\n,\n\nb,z\n")
    assert read_table(path, "f", "label").nameless == 2
    frame = pandas.DataFrame({"f": ["a", None, math.nan, "b"], "label": list("xyyz")})
    assert read_frame(frame, path, "f", "label").nameless == 2


class TestDataFrames:
    def frame(self, labels: list[Any]) -> list[str | None]:
        files = [f"{number}.png" for number in range(len(labels))]
        frame = pandas.DataFrame({"f": files, "label": pandas.Series(labels, dtype=object)})
        return [row.label for row in read_frame(frame, Path("t"), "f", "label").rows.values()]

    def test_numbers_of_any_kind_are_one_word(self) -> None:
        assert set(self.frame([1, 1.0, "1", "1.0", np.float32(1), np.int8(1)])) == {"1"}

    def test_what_nobody_knows(self) -> None:
        values = [None, math.nan, pandas.NA, pandas.NaT, np.float32("nan"), "NA"]
        assert set(self.frame(values)) == {None}

    def test_lists_are_as_a_csv_has_them(self) -> None:
        assert self.frame([["a", "b"], ("c",), {"d"}, []]) == ["a;b", "c", "d", None]

    @pytest.mark.parametrize(
        ("frame", "said"),
        [
            (pandas.DataFrame([["a", "x", "y"]], columns=["f", "label", "label"]), "has 2 columns"),
            (pandas.DataFrame([["a", "b", "y"]], columns=["f", "f", "label"]), "has 2 columns"),
            (polars.DataFrame({"f": ["a"], "label": ["x"]}).lazy(), "not LazyFrame"),
            (pandas.Series(["a"]), "not Series"),
        ],
    )
    def test_frames_that_are_none(self, frame: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            read_frame(frame, Path("t"), "f", "label")

    @pytest.mark.parametrize(
        "numbers",
        [
            [1234567890123456788.0, 1.0],
            np.array([123456789, 1], np.float32),
            np.array([4097, 1], np.float16),
        ],
    )
    def test_subjects_that_have_lost_digits(self, numbers: Any) -> None:
        frame = pandas.DataFrame({"f": ["a", "b"], "y": ["u", "v"], "s": numbers})
        with pytest.raises(DataError, match=r"column 's' has fractions .* read it as text"):
            read_frame(frame, Path("t"), "f", "y", "s")
        # as long as they were read, they are who they are; and of labels nobody is made one
        whole = frame.assign(s=[1234567890123456788, 1234567890123456789])
        rows = read_frame(whole, Path("t"), "f", "y", "s").rows
        assert [row.subject for row in rows.values()] == [str(number) for number in whole["s"]]
        assert len(read_frame(frame, Path("t"), "f", "s").rows) == 2


@pytest.mark.parametrize("cell", ["1.23457E+11", "1.23457e+15", '"1,23457E+11"', "1E+12"])
def test_subjects_that_a_spreadsheet_has_shortened(cell: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"f,y,s\na,x,{cell}\nb,z,P1\n")
    with pytest.raises(DataError, match=r"in column 's' is what a spreadsheet makes .* as text"):
        read_table(table, "f", "y", "s")
    # a number to be learned may be written so
    assert len(read_table(table, "f", "s").rows) == 2
    table.write_text("f,y,s\na,x,1E12\nb,z,2E+P\n")
    assert [row.subject for row in read_table(table, "f", "y", "s").rows.values()] == [
        "1E12",
        "2E+P",
    ]


def test_letters_of_other_alphabets_that_look_the_same() -> None:
    words = ["Cov", "C\u043ev", "\u0421ov", "P1", "\u03a11", "норма", "hopma1", "b"]
    assert nearly_alike(words) == [["Cov", "C\u043ev", "\u0421ov"], ["P1", "\u03a11"]]


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
