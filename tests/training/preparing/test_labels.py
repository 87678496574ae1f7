from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.preparing.labels import (
    LABEL_SCHEMES,
    US4_CLASSES,
    US4_SUBSETS,
    Annotation,
    from_name,
    hold_out,
    read_table,
    unify,
)

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


TABLE = """Filename,Label,Patient,Licence
Cov-1,COVID-19,p 1,CC BY -NC -SA 4.0
b.mp4,regular,,
deep/c.mov, regular ,p 2,
,ignored,,
"""


def test_spreadsheets_begin_with_a_mark(write: Write) -> None:
    table = read_table(write(b"\xef\xbb\xbfFilename,Label\na,x\n"), "Filename", "Label")
    assert table.rows == {"a": Annotation("a", "x")}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"Filename,Label\na,\xff\xfe\n", "is not a CSV in UTF-8"),
        (b'Filename,Label\n"a,x\n', "is not a CSV in UTF-8"),
        (b'Filename,Label\n"a"b,x\n', "is not a CSV in UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_an_unreadable_table(write: Write, content: bytes | None, told: str) -> None:
    path = write(content or b"")
    if content is None:
        path.unlink()
    with pytest.raises(UnreadableError, match=f"^{re.escape(str(path))}: {told}") as caught:
        read_table(path, "Filename", "Label")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["file", "label", "subject", "licence"])
def test_a_missing_column_is_named_with_those_there(write: Write, column: str) -> None:
    columns = {"file": "Filename", "label": "Label", "subject": "Patient", "licence": "Licence"}
    arguments: dict[str, Any] = {f"{name}_column": title for name, title in columns.items()}
    arguments[f"{column}_column"] = "Nonsense"
    path = write(TABLE)
    told = f"{path}: no column 'Nonsense'; it has 'Filename', 'Label', 'Patient', 'Licence'"
    with pytest.raises(DataError, match=re.escape(told)):
        read_table(path, **arguments)


def test_an_empty_table_has_no_column(write: Write) -> None:
    with pytest.raises(DataError, match="no column 'Filename'; it has none"):
        read_table(write(""), "Filename")


@pytest.mark.parametrize(
    ("name", "scheme", "label"),
    [
        ("Cov-Atlas-Day+1.gif", None, "Cov"),
        ("videos/convex/pneu-radiopaeda.mp4", None, "pneu"),
        ("Reg 1.mov", None, "Reg"),
        ("Rb2_x_mp4", None, "Rb2"),
        ("video.mp4", None, None),
        ("001-Cov.mp4", None, None),
        ("Cov-001_mp4", "us4", "diseased lung"),
        ("oth-001_mp4", "us4", "diseased lung"),
        ("Ali-7_mp4", "us4", "normal lung"),
        ("F3_patient_mp4", "us4", "F3"),
        ("rb5-x_mp4", "us4", "Rb5"),
    ],
)
def test_the_prefix_is_the_label(name: str, scheme: str | None, label: str | None) -> None:
    assert from_name(name, scheme) == Annotation(subject=name, label=label)


def test_us4_has_twelve_joint_classes() -> None:
    assert len(set(LABEL_SCHEMES["us4"].values())) == 12


@pytest.mark.parametrize("scheme", ["us4", "us4-clust"])
@pytest.mark.parametrize("name", ["Vir-1.mp4", "video.mp4", "F5_x_mp4"])
def test_a_prefix_that_the_scheme_does_not_know(name: str, scheme: str) -> None:
    told = f"^{re.escape(name)}: the prefix .* is none of {scheme}'s: Rb1"
    with pytest.raises(DataError, match=told):
        from_name(name, scheme)


def test_sub_datasets_part_the_prefixes_of_us4() -> None:
    assert sorted(sum(US4_SUBSETS.values(), ())) == sorted(US4_CLASSES)


@pytest.mark.parametrize(
    ("scheme", "labelled"),
    [
        ("us4-butterfly", ["Cov", "Reg"]),
        ("us4-clust", ["Rb1", "Rb5"]),
        ("us4-fibrosis", ["F0", "F4"]),
        ("us4-lusms", ["Ali", "Bli", "Oth", "Ple"]),
    ],
)
def test_a_sub_dataset_labels_its_own_videos_alone(scheme: str, labelled: list[str]) -> None:
    names = ["Cov-a_mp4", "reg-b_mp4", "Rb1-c_mp4", "Rb5-d_mp4", "F0_e_mp4", "F4_f_mp4"]
    names += ["Ali-g_mp4", "Bli-h_mp4", "Ple-i_mp4", "Oth-j_mp4"]
    found = [from_name(f"US-4/any/{name}", scheme).label for name in names]
    assert sorted(label for label in found if label) == labelled


@pytest.mark.parametrize(
    ("name", "pattern", "subject"),
    [
        ("a/Cov-pat4-1.mp4", r"pat(\d+)", "4"),
        ("site2/Cov-pat4-1.mp4", r"(site\d+/Cov-pat\d+)", "site2/Cov-pat4"),
    ],
)
def test_the_subject_is_the_group_of_a_pattern(name: str, pattern: str, subject: str) -> None:
    assert from_name(name, subject_pattern=pattern).subject == subject


@pytest.mark.parametrize("pattern", [r"patient(\d+)", r"Cov", r"(x?)Cov", r"(\d+"])
def test_a_pattern_that_gives_no_subject(pattern: str) -> None:
    with pytest.raises(DataError, match=re.escape(repr(pattern))):
        from_name("Cov-1.mp4", subject_pattern=pattern)


# --------------------------------------------------------------------------------- one spelling


def labelled(**labels: str | None) -> dict[str, Annotation]:
    return {name: Annotation(name, label) for name, label in labels.items()}


def labels_of(annotations: dict[str, Annotation]) -> list[str | None]:
    return [row.label for row in annotations.values()]


def test_the_most_frequent_spelling_wins() -> None:
    given = labelled(a="Regular", b="regular", c="regular", d="COVID", e=None)
    assert labels_of(unify(given)) == ["regular", "regular", "regular", "COVID", None]


def test_declared_classes_set_the_spelling() -> None:
    assert labels_of(unify(labelled(a="REG", b="cov"), ["Reg", "Cov"])) == ["Reg", "Cov"]


def test_labels_are_dropped_and_their_videos_kept() -> None:
    given = labelled(a="Vir", b="Cov")
    assert labels_of(unify(given, ["Cov"], unlabelled=["vir"])) == [None, "Cov"]


def test_a_label_that_nobody_declared() -> None:
    told = r"^b: label 'Vir' is not among .* \(Cov, Reg\); .*'Vir'\]`$"
    with pytest.raises(DataError, match=told):
        unify(labelled(a="Cov", b="Vir"), ["Cov", "Reg"])


def test_the_rest_of_an_annotation_is_kept() -> None:
    given = {"a": Annotation("p", "x", "MIT")}
    assert unify(given) == given


# ---------------------------------------------------------------------------------- holding out


def cohort(**subjects: int) -> dict[str, Annotation]:
    """Two videos of each subject, so many subjects a class."""
    return {
        f"{label}{s}-{v}": Annotation(f"{label}{s}", label)
        for label, count in subjects.items()
        for s in range(count)
        for v in range(2)
    }


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_a_share_of_each_class_is_held_out(share: float) -> None:
    held = hold_out(cohort(Cov=20, Reg=10, Vir=2), share, seed=0)
    counts = {c: sum(s.startswith(c) for s in held) for c in ("Cov", "Reg", "Vir")}
    # of two, one each way
    assert counts == {"Cov": round(20 * share), "Reg": round(10 * share), "Vir": 1}


def test_the_only_subject_of_a_class_is_trained_on() -> None:
    assert not any(s.startswith("Vir") for s in hold_out(cohort(Cov=5, Vir=1), 0.5, seed=0))


def test_nothing_is_held_out_of_a_share_of_zero() -> None:
    assert hold_out(cohort(Cov=5, Reg=5), 0.0, seed=0) == set()


def test_the_seed_decides_and_the_order_does_not() -> None:
    annotations = cohort(Cov=20, Reg=20)
    backwards = dict(reversed(annotations.items()))
    assert hold_out(annotations, 0.2, 1) == hold_out(backwards, 0.2, 1)
    assert hold_out(annotations, 0.2, 1) != hold_out(annotations, 0.2, 2)


def test_a_subject_counts_for_its_most_frequent_label() -> None:
    rows = [*["Cov"] * 3, "Reg"]
    mixed = {f"m{i}": Annotation("mixed", label) for i, label in enumerate(rows)}
    others = {f"r{i}": Annotation(f"r{i}", "Reg") for i in range(2)}
    for seed in range(10):
        # alone among Cov, so never held out; among Reg it would be one of three
        assert "mixed" not in hold_out(mixed | others, 0.5, seed)


def test_subjects_without_a_label_are_a_class_of_their_own() -> None:
    given = {f"v{i}": Annotation(f"s{i}") for i in range(10)}
    assert len(hold_out(given, 0.2, seed=0)) == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_no_table(tmp_path: Path, kind: str) -> None:
    """A pipe would be waited for, a device never ends."""
    path = tmp_path / "t.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UnreadableError, match=f"^{path}: cannot be read"):
        read_table(path, "Filename")
