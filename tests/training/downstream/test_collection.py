"""Labelled folders and tables: divisions are no classes, and one meaning for all commands."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import timm
from PIL import Image

from uscl_zoo.cli import main
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.errors import DataError
from uscl_zoo.training.downstream.collection import Collection, collect, is_wanted, sides
from uscl_zoo.training.downstream.goal import Classes
from uscl_zoo.training.evaluation.audit import audit
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.labels import Annotation, unify


def draw(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # of a size each, so that none looks like the frame of a clip
        Image.effect_noise((30 + i, 30), 60).save(path)
    return folder


def labels(found: Collection) -> dict[str, str | None]:
    return {name: row.label for name, row in found.annotations.items()}


def subjects(found: Collection) -> dict[str, str]:
    return {name: row.subject for name, row in found.annotations.items()}


# ------------------------------------------------------------------------------ divisions


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Train", "TEST"),
        ("training", "validation"),
        ("train", "valid"),
        ("train_set", "test_set"),
        ("trainset", "testset"),
        ("train_images", "val_images"),
        ("trn", "tst"),
        ("trainval", "test1", "test2"),
        ("train", "held-out"),
        ("train", "dev", "eval"),
        ("fold1", "fold2", "fold3"),
        ("fold_0", "fold_1"),
        ("split 1", "split 2"),
        ("train",),
        ("train", "test", "more"),
        ("busi_train", "busi_test"),
        ("p1-images-training-set", "p1-images-test-set"),
        ("01_train", "02_test"),
        ("TrainDataset", "TestDataset"),
        ("train", "internal_test", "externalTest"),
        ("trainA", "testA", "testB"),
        ("Train (1)", "Test (1)"),
        ("80_train", "20_test"),
        ("train_labelled", "train_unlabelled", "test"),
        ("imagesTr", "imagesTs"),
        ("learning ", "validation "),
        ("train.v2", "validate.v2"),
        ("fold a", "fold b"),
    ],
)
def test_a_division_is_no_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = [f"{side}/{label}/{i}.png" for side in names for label in "ab" for i in range(2)]
    draw(tmp_path, *files)
    assert set(sides(tmp_path)) == set(names) - {"more"}
    with pytest.raises(DataError, match="divide the data and are no classes; give one of them, as"):
        collect(tmp_path)
    # as the line says
    assert set(labels(collect(tmp_path / names[0])).values()) == {"a", "b"}


@pytest.mark.parametrize(
    "names",
    [
        ("benign", "malignant"),
        ("test", "benign", "malignant"),
        ("fold", "no fold"),
        ("trains", "tests"),
        ("pretest", "posttest"),
        ("1", "2"),
        ("valve", "vessel"),
        ("breast_left", "breast_right"),
        ("stress test", "rest"),
        ("TR", "TS"),
        ("mild TR", "severe TS"),
        ("training effect", "none"),
    ],
)
def test_classes_are_no_division(tmp_path: Path, names: tuple[str, ...]) -> None:
    draw(tmp_path, *(f"{label}/p{i}/x.png" for label in names for i in range(2)))
    assert sides(tmp_path) == {}
    assert set(labels(collect(tmp_path)).values()) == set(names)


def test_what_is_told_of_folders_that_may_be_no_classes(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{site}/{label}/x.png" for site in ("s1", "s2") for label in ("aa", "bb")))
    draw(tmp_path, "loose.png")
    notes = " ".join(collect(tmp_path).notes)
    assert "each of s1, s2 has folders aa, bb; if those are the classes" in notes
    assert "1 file is in no class, and left out: loose.png" in notes


def test_numbered_folders_within_several_may_be_the_classes(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{site}/{kind}/x.png" for site in ("ge", "hp") for kind in ("k1", "k2")))
    draw(tmp_path, "hp/k3/x.png")
    (told,) = (note for note in collect(tmp_path).notes if "if they are the classes" in note)
    assert "folders k1, k2 are in several of ge, hp" in told
    # whoever says what is a subject knows
    found = collect(tmp_path, subject_pattern=r"/(k\d)/")
    assert not [note for note in found.notes if "if they are the classes" in note]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("site1", "site2"), True),
        (("Hospital A", "Hospital B"), True),
        (("P001", "P002"), True),
        (("patient_1", "patient_2"), True),
        (("0001", "0002"), True),
        (("2019-01-02", "2019-03-04"), True),
        (("New folder", "New folder (2)"), True),
        (("video1", "video2"), True),
        (("1", "2"), False),
        (("birads2", "birads3"), False),
        (("grade 1", "grade 2"), False),
        (("P1", "P2"), False),
        (("case", "control"), False),
        (("device", "no device"), False),
        (("k1", "k2"), False),
    ],
)
def test_folders_that_say_where_and_of_whom_are_said(
    tmp_path: Path, names: tuple[str, ...], told: bool
) -> None:
    draw(tmp_path, *(f"{name}/{i}.png" for name in names for i in range(2)))
    said = [n for n in collect(tmp_path).notes if "are taken for classes, and are named as" in n]
    assert bool(said) == told


@pytest.mark.parametrize("names", [[0, 1, 2], [1.5, 2, "who"], [("a", 1), ("a", 2), ("b", 1)]])
def test_columns_may_be_named_by_anything(tmp_path: Path, names: list[Any]) -> None:
    draw(tmp_path, *(f"{label}{i}.png" for label in "ab" for i in range(3)))
    rows = [(f"{label}{i}.png", label, f"S{i}") for label in "ab" for i in range(3)]
    frame = pandas.DataFrame(rows)
    frame.columns = pandas.Index(names)
    by_name = dict(zip(("file_column", "label_column", "subject_column"), names, strict=True))
    shown = {argument: str(name) for argument, name in by_name.items()}
    for columns in (by_name, shown) if not isinstance(names[0], tuple) else (shown,):
        found = collect(tmp_path, frame, **columns)
        assert set(labels(found).values()) == {"a", "b"}
        assert {row.subject for row in found.annotations.values()} == {"S0", "S1", "S2"}
    frame.columns = pandas.Index([0, "0", 1])
    with pytest.raises(DataError, match="has 2 columns '0'"):
        collect(tmp_path, frame, file_column=0, label_column=1)  # type: ignore[arg-type]


def test_one_word_stands_for_a_list_of_it(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{label}/{i}.png" for label in ("aa", "bb", "ab") for i in range(2)))
    assert set(labels(collect(tmp_path, exclude="1.png"))) == {"aa/0.png", "ab/0.png", "bb/0.png"}
    assert set(labels(collect(tmp_path, classes="a*")).values()) == {"aa", "ab"}


def test_a_division_within_classes_is_said(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{label}/{side}/x.png" for side in ("train", "test") for label in "ab"))
    found = collect(tmp_path)
    assert set(labels(found).values()) == {"a", "b"}
    assert any("the division within a, b is not kept" in note for note in found.notes)


def test_subjects_that_may_be_one_are_said(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{number}.png" for number in range(6)))
    table = tmp_path / "t.csv"
    cells = ["a,1", "b,1.0", "a,01", "b,P2", "a,p2\u200b", "b,"]
    table.write_text("f,y,s\n" + "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells)))
    found = collect(table, file_column="f", label_column="y", subject_column="s")
    whose = [row.subject for row in found.annotations.values()]
    assert whose == ["1", "1", "01", "P2", "p2", "5.png"]
    notes = [note for note in found.notes if "may be one" in note]
    assert notes == ["subjects that may be one count as several: '1', '01'; 'P2', 'p2'"]


def test_why_there_are_less_than_two_classes(tmp_path: Path) -> None:
    draw(tmp_path, "1.png")
    table = tmp_path / "t.csv"
    table.write_text("f,y\n1.png,a\nelsewhere/2.png,b\n")
    with pytest.raises(DataError, match=r"two classes \(a\).*1 rows of t.csv have no file"):
        collect(table, file_column="f", label_column="y")


def test_a_side_beside_the_classes(tmp_path: Path) -> None:
    draw(tmp_path, "benign/1.png", "malignant/2.png", "test/benign/3.png", "test/malignant/4.png")
    with pytest.raises(DataError, match="test divide the data"):
        collect(tmp_path)


def test_an_audit_looks_across_a_division(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{side}/{label}/{side}.png" for side in ("train", "test") for label in "ab"))
    draw(tmp_path, "train/a/1.png")
    (tmp_path / "test" / "a" / "2.png").write_bytes((tmp_path / "train/a/1.png").read_bytes())
    found = audit([str(tmp_path)], progress=False)
    (pair,) = found.findings
    assert {pair.first.name, pair.second.name} == {"train/a/1.png", "test/a/2.png"}
    assert {pair.first.split, pair.second.split} == {"train", "test"}
    assert pair.across == ("splits",)
    assert {source.label for source in found.data[0].sources} == {"a", "b"}


# ---------------------------------------------------------------------- words and spellings


def test_nobody_knows_a_class(tmp_path: Path) -> None:
    draw(tmp_path, "a/1.png", "b/2.png", "Unknown/3.png", "NA/4.png")
    found = collect(tmp_path)
    assert set(labels(found).values()) == {"a", "b"}
    assert any("2 files left out by class (no label 2)" in note for note in found.notes)


def test_accents_make_no_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Échographie") for form in ("NFC", "NFD"))
    draw(tmp_path, f"{composed}/1.png", f"{apart}/2.png", "b/3.png")
    found = collect(tmp_path)
    assert sorted(labels(found).values(), key=str) == ["b", composed, composed]
    given = {"1": Annotation("1", composed), "2": Annotation("2", apart)}
    for classes in (None, [composed], [apart]):
        assert len({row.label for row in unify(given, classes).values()}) == 1
    assert is_wanted(composed, [apart.upper()])


def test_unknown_subjects_are_not_one(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{i}.png" for i in range(6)))
    cells = ["NA", "nan", "", "unknown", "p1", "p1"]
    lines = [f"{i}.png,{'ab'[i % 2]},{whose}" for i, whose in enumerate(cells)]
    (tmp_path / "t.csv").write_text("\n".join(["Filename,label,who", *lines]) + "\n")
    found = collect(tmp_path / "t.csv", label_column="label", subject_column="who")
    assert list(subjects(found).values()) == ["0.png", "1.png", "2.png", "3.png", "p1", "p1"]
    pattern = collect(
        draw(tmp_path / "x", "a/unknown_1.png", "b/unknown_2.png", "b/p_3.png"),
        subject_pattern=r"/(\w+)_",
    )
    assert list(subjects(pattern).values()) == ["a/unknown_1.png", "p", "b/unknown_2.png"]


# --------------------------------------------------------------------------------- tables


def test_rows_without_a_file_are_listed(tmp_path: Path) -> None:
    draw(tmp_path, "s/a.png", "s/b.png", "s/c_mask.png")
    table = tmp_path / "t.csv"
    rows = ["a.png,x", "S\\B.png,y", "lost1.png,y", "lost2.png,x"]
    table.write_text("\n".join(["Filename,label", *rows]) + "\n")
    found = collect(table, label_column="label")
    assert labels(found) == {"s/a.png": "x", "s/b.png": "y"}
    told = " ".join(found.notes)
    assert "2 rows of t.csv have no file: lost1.png; lost2.png" in told
    assert "1 rows name their file in another case" in told
    assert "1 file is left out, being masks by name: s/c_mask.png" in told
    with pytest.raises(DataError, match=r"2 of 4 rows have no file: 'lost1\.png'; 'lost2\.png'"):
        collect(table, label_column="label", every_row=True)


def test_a_bare_name_of_several_files(tmp_path: Path) -> None:
    draw(tmp_path, "s/a.png", "t/a.png", "t/b.png")
    (tmp_path / "t.csv").write_text("Filename,label\na.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"1 rows name several files each.*s/a\.png, .*t/a\.png"):
        collect(tmp_path / "t.csv", label_column="label")


def test_files_of_a_table_may_lie_elsewhere(tmp_path: Path) -> None:
    draw(tmp_path / "pictures", "a.png", "b.png")
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "t.csv"
    table.write_text(f"Filename,label\n../pictures/a.png,x\n{tmp_path}/pictures/b.png,y\n")
    found = collect(table, label_column="label", subject_pattern=r"pictures/(\w)")
    assert labels(found) == {"../pictures/a.png": "x", "../pictures/b.png": "y"}
    assert list(subjects(found).values()) == ["a", "b"]
    assert list(found.sources.values()) == [
        tmp_path / "pictures" / name for name in ("a.png", "b.png")
    ]


def test_a_pattern_and_a_table(tmp_path: Path) -> None:
    draw(tmp_path, "p1/a.png", "p2/b.png")
    table = tmp_path / "t.csv"
    table.write_text("Filename,label,who\na.png,x,q\nb.png,y,q\n")
    found = collect(table, label_column="label", subject_pattern=r"^(p\d)/")
    assert subjects(found) == {"p1/a.png": "p1", "p2/b.png": "p2"}
    with pytest.raises(DataError, match="exclude each other"):
        collect(table, label_column="label", subject_column="who", subject_pattern="(p)")


# ------------------------------------------------------------------------------- commands


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Within the folder of another patient, two of two files each."""
    names = [f"{label}/P{i}_{part}.png" for label, i in (("a", 1), ("b", 2)) for part in "xy"]
    return draw(tmp_path / "P0_export", *names)


def embedded(data: Path, whole: bool) -> list[str]:
    paths = [data] if whole else sorted(data.rglob("*.png"))
    network = timm.create_model("resnet18", num_classes=0)
    done = embed(network, paths, "clip", progress=False, subjects=PATTERN)
    return done.subjects or []


def prepared(data: Path, whole: bool) -> list[str]:
    paths = [data] if whole else sorted(data.rglob("*.png"))
    given = ["prepare", *map(str, paths), "-o", str(data.parent / "store"), "--workers", "1"]
    main([*given, "--holdout", "0", "--label-scheme", "none", "--subject-pattern", PATTERN])
    return [video.subject for video in FrameStore(data.parent / "store").videos]


def tabled(data: Path, whole: bool) -> list[str]:
    files = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
    lines = ["Filename,label", *(f"{file},{file[0]}" for file in files)]
    (data / "t.csv").write_text("\n".join(lines) + "\n")
    given = ["prepare", str(data), "-o", str(data.parent / "of table"), "--workers", "1"]
    given += ["--csv", str(data / "t.csv"), "--label-column", "label"]
    main([*given, "--holdout", "0", "--subject-pattern", PATTERN])
    return [video.subject for video in FrameStore(data.parent / "of table").videos]


def collected(data: Path, whole: bool) -> list[str]:
    return list(subjects(collect(data, subject_pattern=PATTERN)).values())


def audited(data: Path, whole: bool) -> list[str]:
    (one,) = audit([str(data)], subject_pattern=PATTERN, progress=False).data
    return [str(source.subject) for source in one.sources]


PATTERN = r"(P\d)_"


@pytest.mark.parametrize("command", [embedded, prepared, tabled, collected, audited])
def test_patterns_are_searched_within_the_folder(
    patients: Path, command: Callable[[Path, bool], list[str]]
) -> None:
    assert command(patients, True) == ["P1", "P1", "P2", "P2"]


@pytest.mark.parametrize("command", [embedded, prepared])
def test_patterns_are_searched_in_a_path_as_given(
    patients: Path, command: Callable[[Path, bool], list[str]]
) -> None:
    assert command(patients, False) == ["P0"] * 4


@pytest.mark.parametrize("command", ["embed", "prepare", "finetune", "evaluate", "audit"])
def test_every_row_is_asked_for_in_every_command(
    patients: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = patients / "t.csv"
    table.write_text("Filename,label,who\nP1_x.png,a,1\nP2_x.png,b,2\nP9_x.png,b,2\n")
    of_table = ["--label-column", "label", "--subject-column", "who"]
    output = ["-o", str(patients / "out.csv")]
    given = {
        "embed": [str(patients), "--csv", str(table), *of_table[2:], *output],
        "prepare": [str(patients), "--csv", str(table), *of_table, *output],
        "finetune": ["--data", str(table), *of_table, *output],
        "evaluate": ["random", "--dataset", "csv", "--data", str(table), *of_table, *output],
        "audit": [str(table), *of_table],
    }
    named = [] if command in ("embed", "prepare") else ["--file-column", "Filename"]
    with pytest.raises(SystemExit) as ended:
        main([command, *given[command], *named, "--every-row"])
    assert ended.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].endswith("1 of 3 rows have no file: 'P9_x.png'")
    assert not (patients / "out.csv").exists()


def test_options_of_a_table_are_not_of_a_folder(
    patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (["prepare", str(patients)], ["embed", str(patients)]):
        with pytest.raises(SystemExit):
            main([*given, "-o", str(patients / "out.csv"), "--every-row"])
        assert "--every-row: needs --csv" in capsys.readouterr().err
    for option in ({"every_row": True}, {"label_column": "x"}, {"subject_column": "x"}):
        with pytest.raises(DataError, match="is of a CSV, and this is a folder"):
            collect(patients, **option)


def test_a_column_of_notes_is_no_class() -> None:
    """A finished training was lost to a card that could not hold its classes."""
    with pytest.raises(DataError, match=r"label of 5,000 characters.*is that the column"):
        Classes().texts({"1.png": "x" * 5000, "2.png": "y"}, "t.csv")
