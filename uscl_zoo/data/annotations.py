"""Who is in a video and what it shows: tables, and what their words mean."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..errors import DataError, UnreadableError, one_line
from ..files import open_file

#: What stands where nobody knows, without what `_bare` takes away.
_UNKNOWN = frozenset(
    {
        *("", "-nan", "\\n", "n.a", "n.d", "n/a", "n/k", "na", "nan", "nat", "null", "undefined"),
        *("unknown", "unk", "missing", "no data", "nodata", "not available", "not applicable"),
        *("not determined", "not known", "not provided", "not recorded", "not specified"),
        *("not stated", "tbd", "tba", "to be determined", "unassigned", "unlabeled", "unlabelled"),
        *("unspecified", "unbekannt", "inconnu", "inconnue", "desconocido", "desconocida"),
        # of who takes names away
        *("anon", "anonymised", "anonymized", "anonymous", "deidentified", "redacted", "withheld"),
        # numbers that are none
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    }
)
#: What a spreadsheet writes where it could not compute, in some languages.
_UNCOMPUTED = re.compile(
    r"#(?:n/?a(?: n/a)?|nv|div/0!|(?:name|getting_data)\??|"
    r"(?:null|num|ref|value|spill|calc|wert|zahl|bezug)!)|\(blank\)",
    re.IGNORECASE,
)
#: Words that are a finding, and no person.
_NOBODY = frozenset({"none", "nobody", "no", "-1", "-9", "-99", "-999", "-9999"})
# Characters that are not seen: marks of direction and order, spaces of no width, soft hyphens. The
# joiners of Arabic and Indic scripts are spelling, but at the end of a word.
_UNSEEN = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]|^[\u200c\u200d]+|[\u200c\u200d]+$"
)
# A whole number as a column has it in which others are missing.
_WHOLE = re.compile(r"([+-]?\d+)\.0+", re.ASCII)
# What a spreadsheet makes of a number with many digits, of which it drops most.
_SHORTENED = re.compile(r"\d(?:[.,]\d+)?e\+\d{2,3}", re.IGNORECASE)
# Cyrillic and Greek letters that look like Latin ones, capitals first.
_LOOKALIKE = str.maketrans(
    "АВЕКМНОРСТУХІЈЅавекмнорстухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧαβεικνορτυχ",
    "ABEKMHOPCTYXIJSabekmhopctyxijsABEZHIKMNOPTYXabeikvoptux",
)
# Letters of a column, and columns, that a message names.
_LONG, _MANY = 40, 30
#: What may stand between the cells of a table that is no CSV.
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


#: Makes one label of the cells of several columns.
Join = Callable[[Mapping[str, str | None]], str | None]


@dataclass(frozen=True)
class Annotation:
    """What is known of one video besides its pixels."""

    subject: str
    label: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Table:
    """Annotations by file, read from a CSV; `rows.assign` finds the files.

    Attributes:
        path: of the CSV, for messages.
        rows: annotations by file stem, file name or path, as the file column has them.
        contradictory: keys with rows that disagree; an error only if they have a file.
        repeated: keys with several rows, whether they disagree or not.
        spaced: keys that had spaces around them.
        nameless: how many rows say something, and name no file.
        unowned: keys of rows of which the column of subjects says nobody.
    """

    path: Path
    rows: Mapping[str, Annotation]
    contradictory: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()
    spaced: frozenset[str] = frozenset()
    nameless: int = 0
    unowned: frozenset[str] = frozenset()


def known(word: object) -> str | None:
    """A label as it is written: one line, composed (NFC), without spaces around it or the unseen.

    A whole number with a fraction of zeros is written without: `1.0` is `1`, as of a column in
    which others are missing.

    Returns:
        None for `NA`, `NaN`, `unknown` and the like, in any case: nobody knows.
    """
    if word is None:
        return None
    text = one_line(_spelt(str(word)))
    return None if _is_unknown(text) else text


def known_subject(word: object) -> str | None:
    """A subject, as `known` has labels; nobody is called `none` or -1."""
    text = known(word)
    return None if text is None or text.casefold() in _NOBODY else text


def _spelt(word: str) -> str:
    """One of the spellings of a word."""
    seen = word
    # what is within others may be at an end when they are gone
    while (less := _UNSEEN.sub("", seen).strip()) != seen:
        seen = less
    text = " ".join(unicodedata.normalize("NFC", seen).split())
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _is_unknown(text: str) -> bool:
    # of dots, dashes and brackets alone; signs such as + are none of these
    if all(unicodedata.category(char)[0] in "PZ" for char in text):
        return True
    if _UNCOMPUTED.fullmatch(text):
        return True
    bare = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    bare = re.sub(r"\s*/\s*", "/", bare)
    return bare.strip(" .<>()[]{}\"'") in _UNKNOWN


def fold(word: str) -> str:
    """What two spellings of one word have in common, whatever their case, spaces and accents."""
    return unicodedata.normalize("NFC", _spelt(word).casefold())


def nearly_alike(words: Iterable[str]) -> list[list[str]]:
    """Words that differ in no more than case, zeros before numbers, width or what parts them.

    Or in letters of other alphabets that look the same. They may well be one, as `7`, `07` and
    `P 7`, `p_7` are, and count as several.
    """
    alike: dict[str, list[str]] = {}
    for word in dict.fromkeys(words):
        text = unicodedata.normalize("NFKC", word).translate(_LOOKALIKE).casefold()
        parted = re.sub(r"[\W_]+", " ", text).strip()
        alike.setdefault(re.sub(r"\b0+(?=\d)|(?<=\D)0+(?=\d)", "", parted), []).append(word)
    return [group for group in alike.values() if len(group) > 1]


def words_of(given: Any) -> list[str]:
    """Names of columns, classes or the like, of which one may stand alone; none of None.

    A column of a data frame may be named by a number, or anything else; here it is as it is shown.
    """
    if given is None:
        return []
    one = isinstance(given, str) or not isinstance(given, Iterable)
    return [str(word) for word in ([given] if one else given)]


def read_table(
    path: Path,
    file_column: str,
    label_column: str | Sequence[str] | None = None,
    subject_column: str | None = None,
    licence_column: str | None = None,
    *,
    where: Mapping[str, str] | None = None,
    join: Join | None = None,
) -> Table:
    """Read annotations from a CSV with a header.

    Args:
        path: of the CSV.
        file_column: paths, names or stems of files.
        label_column: class of the file; `NA`, `unknown` and the like are none, see `known`. Several
            columns are joined.
        subject_column: whom it shows; without one, and where it is unknown, each row its own.
        licence_column: licence of the file.
        where: values by column that a row must have to be read.
        join: makes one label of the cells of several columns, by their names.

    Raises:
        UnreadableError: if the file is no readable CSV.
        DataError: if a named column is missing, or no row is as `where` asks.
    """
    labels = words_of(label_column)
    named_columns = (file_column, *labels, subject_column, licence_column, *(where or ()))
    try:
        # utf-8-sig: tables exported from spreadsheets begin with a byte-order mark
        # at once or not at all: a pipe in its place would be waited for
        with io.TextIOWrapper(open_file(path), newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = reader.fieldnames or []
            for column in named_columns:
                if column is not None and column not in columns:
                    named = ", ".join(repr(c[:_LONG]) for c in columns[:_MANY] if c)
                    hint = _hint(columns)
                    raise DataError(f"{path}: no column {column!r}; it has {named or 'none'}{hint}")
                if column is not None and columns.count(column) > 1:
                    raise DataError(f"{path}: has {columns.count(column)} columns {column!r}")
            lines = []
            for line in reader:
                if any("\0" in cell for cell in line.values() if isinstance(cell, str)):
                    raise DataError(f"{path}: line {reader.line_num} has a null byte in it")
                # of cells without a name in the head nobody knows which of the others they moved
                if any(cell.strip() for cell in line.get(None) or ()):
                    raise DataError(
                        f"{path}: line {reader.line_num} has more cells than the head; a cell with "
                        "a comma in it stands between quotes"
                    )
                lines.append(line)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UnreadableError(
            f"{path}: is not a CSV in UTF-8 ({error}); save it so, as `CSV UTF-8`"
        ) from error

    return _table(path, lines, file_column, labels, subject_column, licence_column, where, join)


def read_frame(
    frame: Any,
    path: Path,
    file_column: str,
    label_column: str | Sequence[str] | None = None,
    subject_column: str | None = None,
    licence_column: str | None = None,
    *,
    join: Join | None = None,
) -> Table:
    """Take annotations from a data frame, as `read_table` does from a CSV.

    Args:
        frame: of pandas or Polars.
        path: to name it by in messages; rows may count from its folder.
        file_column: as for `read_table`, and so all that follow.
        label_column: see there.
        subject_column: see there.
        licence_column: see there.
        join: see there.

    Raises:
        DataError: if it is none, or a named column is missing.
    """
    # a lazy one of Polars has columns, and no cells yet
    held = hasattr(frame, "iloc") or hasattr(frame, "to_pandas")
    columns = getattr(frame, "columns", None) if held else None
    if columns is None:
        raise DataError(
            f"{path}: a table is the path of a CSV or a data frame of pandas or Polars, not "
            f"{type(frame).__name__}"
        )
    labels = words_of(label_column)
    wanted = [file_column, *labels, subject_column, licence_column]
    # of pandas they may be numbers, and anything else
    columns = words_of(columns)
    for column in wanted:
        if column is None:
            continue
        if column not in columns:
            named = ", ".join(repr(str(one)[:_LONG]) for one in columns[:_MANY])
            raise DataError(f"{path}: no column {column!r}; it has {named or 'none'}")
        if columns.count(column) > 1:
            raise DataError(f"{path}: has {columns.count(column)} columns {column!r}")
    by_place = frame.iloc if hasattr(frame, "iloc") else frame
    cells = {
        column: [_text(value) for value in by_place[:, columns.index(column)]]
        for column in wanted
        if column is not None
    }
    if subject_column is not None:
        whose = by_place[:, columns.index(subject_column)]
        if _are_rounded(whose):
            raise DataError(
                f"{path}: column {subject_column!r} has fractions (float64 or less) for numbers "
                "that are too long for them, and two subjects may have become one; read it as text"
            )
    lines = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return _table(path, lines, file_column, labels, subject_column, licence_column, join=join)


def _are_rounded(column: Any) -> bool:
    """Whether numbers have more digits than their type keeps: they are others than were written."""
    import numpy as np  # which comes with data frames; `uscl --help` wants none

    array = np.asarray(column)
    if array.dtype.kind != "f":
        array = np.array([value for value in array if isinstance(value, float)], np.float64)
    found = np.abs(array[np.isfinite(array)]).max(initial=0)
    return bool(found >= 2.0 ** (int(np.finfo(array.dtype).nmant) + 1))


def _text(value: Any) -> str:
    """A value of a data frame as a CSV would have it."""
    if isinstance(value, Real) and not isinstance(value, Integral) and float(value).is_integer():
        # 12 is made 12.0 by a column in which others are missing
        return str(int(float(value)))
    if isinstance(value, (list, tuple, set, frozenset)):
        # several labels, as a CSV has them
        return ";".join(map(_text, sorted(value) if isinstance(value, (set, frozenset)) else value))
    # NaN, NaT and NA are no names of files, and say nothing of whom they show
    text = "" if value is None else str(value)
    return text if isinstance(value, str) or text.casefold() not in {"nan", "nat", "<na>"} else ""


def _table(
    path: Path,
    lines: Sequence[Mapping[str, str | None]],
    file_column: str,
    labels: Sequence[str],
    subject_column: str | None,
    licence_column: str | None,
    where: Mapping[str, str] | None = None,
    join: Join | None = None,
) -> Table:
    def cell(line: Mapping[str, str | None], column: str | None) -> str | None:
        return ((line[column] or "").strip() or None) if column is not None else None

    def label(line: Mapping[str, str | None]) -> str | None:
        if join is not None:
            return join({column: cell(line, column) for column in labels})
        return known(cell(line, labels[0])) if labels else None

    if where:
        lines = [line for line in lines if all(cell(line, c) == v for c, v in where.items())]
        if not lines:
            asked = ", ".join(f"{column} {value!r}" for column, value in where.items())
            raise DataError(f"{path}: has no row with {asked}")
    rows: dict[str, Annotation] = {}
    contradictory: set[str] = set()
    repeated: set[str] = set()
    spaced: set[str] = set()
    unowned: set[str] = set()
    nameless = 0
    for line in lines:
        key = cell(line, file_column)
        if key is None:
            # an empty line is no row
            nameless += any(cell(line, column) for column in line if column is not None)
            continue
        if key != line[file_column]:
            spaced.add(key)
        licence = cell(line, licence_column)
        whose = cell(line, subject_column)
        if whose is not None and _SHORTENED.fullmatch(whose):
            raise DataError(
                f"{path}: {whose!r} in column {subject_column!r} is what a spreadsheet makes of a "
                "long number, and two subjects may have become one; save that column as text"
            )
        subject = known_subject(whose)
        if subject is None and subject_column is not None:
            unowned.add(key)
        row = Annotation(
            subject=subject or one_line(key),
            label=label(line),
            # "CC BY-NC -SA 4.0" and "CC BY-NC-SA 4.0" are one licence
            licence=re.sub(r"\s*-\s*", "-", licence) if licence else None,
        )
        if key in rows:
            repeated.add(key)
        if rows.setdefault(key, row) != row:
            contradictory.add(key)
    return Table(
        path=path,
        rows=rows,
        contradictory=frozenset(contradictory),
        repeated=frozenset(repeated),
        spaced=frozenset(spaced),
        nameless=nameless,
        unowned=frozenset(unowned),
    )


def _hint(columns: Iterable[str]) -> str:
    """What to do about a table whose cells are parted by something else; empty if they are not."""
    head = "".join(columns)
    if head.startswith("PK\3\4"):
        return "; it is an archive, as of a spreadsheet: save it as CSV"
    if "\0" in head:
        return "; it seems to be in UTF-16: save it in UTF-8"
    for separator, name in _SEPARATORS.items():
        if separator in head:
            return f"; its cells seem to be parted by {name}: save it as CSV with commas"
    return ""


class SubjectPattern:
    """A regular expression whose first group is the subject.

    It is searched in the path of a source within the folder given, or in a file's path as given
    where a file was given.
    """

    def __init__(self, pattern: str) -> None:
        """Compile a pattern.

        Raises:
            DataError: if it is no regular expression, or has no group.
        """
        self.pattern = pattern
        try:
            self._compiled = re.compile(pattern)
        except re.error as error:
            raise DataError(
                f"the subject pattern {pattern!r} is no regular expression ({error})"
            ) from error
        if self._compiled.groups < 1:
            raise DataError(
                f"the subject pattern {pattern!r} has no group, as in '(P[0-9]+)_': it finds nobody"
            )

    def __call__(self, within: str) -> str | None:
        """The subject of a source; None where the group says that nobody knows.

        Raises:
            DataError: for a path without the pattern.
        """
        match = self._compiled.search(within)
        if not match or not match.group(1):
            raise DataError(f"{within}: the subject pattern {self.pattern!r} finds no group in it")
        return known_subject(match.group(1))


def unify(
    annotations: Mapping[str, Annotation],
    classes: Sequence[str] | None = None,
    unlabelled: Sequence[str] = (),
) -> dict[str, Annotation]:
    """Give every label one spelling, see `fold`, and check it against the declared classes.

    Args:
        annotations: by video.
        classes: the declared classes; None declares every label that occurs.
        unlabelled: labels to drop, leaving their videos unlabelled.

    Raises:
        DataError: for a label that nobody declared.
    """
    dropped = {fold(label) for label in unlabelled}
    if classes is None:
        counts = Counter(a.label for a in annotations.values() if a.label is not None)
        # of `regular` and `Regular`, the more frequent spelling wins
        spelling: dict[str, str] = {}
        for spelt, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            spelling.setdefault(fold(spelt), spelt)
    else:
        spelling = {fold(label): label for label in classes}
    unified = {}
    for name, row in annotations.items():
        label = row.label
        if label is not None and fold(label) in dropped:
            label = None
        elif label is not None:
            if fold(label) not in spelling:
                raise DataError(
                    f"{name}: label {label!r} is not among the declared classes "
                    f"({', '.join(classes or ())}); declare it or add `unlabelled=[{label!r}]`"
                )
            label = spelling[fold(label)]
        unified[name] = Annotation(row.subject, label, row.licence)
    return unified
