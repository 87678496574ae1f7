from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.downstream.datasets import DATASETS, load
from uscl_zoo.training.preparing.labels import read_table
from uscl_zoo.zoo.catalogue import packaged_cards


def table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def picture(path: Path, seed: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (side, side), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def bus_bra(tmp_path: Path) -> Path:
    """Four cases in the published layout: one of two views, one without an image."""
    data = tmp_path / "BUSBRA"
    names = ["bus_0001-l", "bus_0001-r", "bus_0002-l", "bus_0003-l", "bus_0004-s"]
    for i, name in enumerate(names[:4]):
        picture(data / "Images" / f"{name}.png", i)
        picture(data / "Masks" / f"{name.replace('bus', 'mask')}.png", i)
    head = ["ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Width", "Height", "Side"]
    pathology = ["benign", "benign", "malignant", "benign", "malignant"]
    rows = [
        [name, int(name[4:8]), "x", of, 2 + i, "Logiq 7", 64, 64, "left"]
        for i, (name, of) in enumerate(zip(names, pathology, strict=True))
    ]
    table(data / "bus_data.csv", [head, *rows])
    for folds in (5, 10):
        fold = [[r[0], r[3], r[4], 1 + (int(r[1]) - 1) % folds] for r in rows]  # type: ignore[call-overload]
        table(data / f"{folds}-fold-cv.csv", [["ID", "Pathology", "BIRADS", "kFold"], *fold])
    return data


@pytest.fixture
def covid_blues(tmp_path: Path) -> Path:
    """Three patients in the published layout; one was not scored, one not tested."""
    data = tmp_path / "COVID-BLUES"
    videos = data / "lus_videos"
    videos.mkdir(parents=True)
    for name in ("patient_1_L1", "patient_1_R3_2", "patient_2_L1", "patient_10_R2", "sample"):
        (videos / f"{name}.mp4").touch()
    table(
        data / "clinical_variables.csv",
        [["patient_id", "cov_test", "pat_age"], [10, 1, 70], [1, 0, 50], [2, "", 60]],
    )
    table(
        data / "severity.csv",
        [
            ["video_file", "Severity Score", "A-lines", "B-lines", "comments"],
            ["patient_1_L1", "2.0", "yes", "yes ", "broken pleura line, B-lines"],
            ["patient_1_R3_2", "0.0", "no", "no", ""],
            ["patient_10_R2", "3.0", "no", "yes", ""],
            ["patient_63_R2", "3.0", "no", "yes", ""],
        ],
    )
    return data


def labels(name: str, data: Path, target: str) -> dict[str, str | None]:
    collection = load(name, data, target=target).collection
    return {name: row.label for name, row in collection.annotations.items()}


# ------------------------------------------------------------------------------ data at hand


def test_pocus_has_the_labels_subjects_and_licences_of_its_store(data: Path) -> None:
    pocus = load("pocus", data / "pocus")
    table = read_table(
        data / "pocus" / "dataset_metadata.csv",
        "Filename",
        "Label",
        "Patient ID / Name",
        "License",
    )
    assert pocus.collection.annotations == {
        name: table.rows[Path(name).stem] for name in pocus.collection.sources
    }
    assert all((data / "pocus" / "videos" / name).is_file() for name in pocus.collection.sources)
    assert Counter(row.label for row in pocus.collection.annotations.values()) == {
        "COVID-19": 29,
        "Bacterial pneumonia": 37,
        "regular": 59,
    }
    notes = " ".join(pocus.collection.notes)
    assert "5 files of viral pneumonia" in notes
    assert "1 files whose label is uncertain" in notes
    assert pocus.folds is None


def test_pocus_is_named_as_the_cards_of_what_saw_it(data: Path) -> None:
    trained_on = {s.name for card in packaged_cards().values() for s in card.training.sources}
    assert load("pocus", data / "pocus").name in trained_on


def test_pocus_has_stills_when_asked(data: Path) -> None:
    stills = load("pocus", data / "pocus", stills=True).collection.sources
    videos = load("pocus", data / "pocus").collection.sources
    more = set(stills) - set(videos)
    assert set(videos) < set(stills)
    assert len(more) == 32
    assert all(name.startswith("images/") for name in more)


def test_busi_groups_what_shows_one_scene_and_lists_what_contradicts_itself(data: Path) -> None:
    busi = load("busi", data / "busi").collection
    whole = load("busi", data / "busi", grouped=False).collection
    assert len(whole.sources) == 780
    assert len({row.subject for row in whole.annotations.values()}) == 780
    assert not whole.subjects
    assert busi.subjects
    (note,) = [note for note in busi.notes if "two classes" in note]
    assert "benign/benign_433.jpg = malignant/malignant_145.jpg" in note
    assert "malignant/malignant_145.jpg" not in busi.sources
    assert set(whole.sources) - set(busi.sources) == {
        word.strip(" ;") for word in note.split(": ", 1)[1].replace(" = ", "; ").split("; ")
    }
    # three copies of one lesion
    of = busi.annotations
    assert of["benign/benign_099.jpg"].subject == of["benign/benign_157.jpg"].subject
    assert of["benign/benign_099.jpg"].subject != of["benign/benign_100.jpg"].subject
    for subject in {row.subject for row in of.values()}:
        assert len({row.label for row in of.values() if row.subject == subject}) == 1


# ------------------------------------------------------------------------------ made layouts


def test_bus_bra_is_told_by_case_with_its_official_folds(bus_bra: Path) -> None:
    read = load("bus-bra", bus_bra)
    rows = read.collection.annotations
    assert {name: (row.subject, row.label) for name, row in rows.items()} == {
        "bus_0001-l.png": ("1", "benign"),
        "bus_0001-r.png": ("1", "benign"),
        "bus_0002-l.png": ("2", "malignant"),
        "bus_0003-l.png": ("3", "benign"),
    }
    assert read.folds == {
        "bus_0001-l.png": 1,
        "bus_0001-r.png": 1,
        "bus_0002-l.png": 2,
        "bus_0003-l.png": 3,
    }
    assert {row.licence for row in rows.values()} == {"CC BY 4.0"}
    assert any("1 rows of bus_data.csv have no file" in note for note in read.collection.notes)
    assert labels("bus-bra", bus_bra, "birads")["bus_0002-l.png"] == "4"
    # an archive unpacks into a folder of its own
    assert load("bus-bra", bus_bra.parent).collection == read.collection
    third = load("bus-bra", bus_bra, folds=3)
    assert third.folds is None
    assert any("5 or 10" in note for note in third.collection.notes)


def test_spelling_of_columns_and_folders_is_forgiven(bus_bra: Path) -> None:
    expected = load("bus-bra", bus_bra, folds=10)
    (bus_bra / "Images").rename(bus_bra / "images")
    for path in (bus_bra / "bus_data.csv", bus_bra / "10-fold-cv.csv"):
        head, *rows = path.read_text().splitlines()
        path.write_text("\ufeff" + "\n".join([head.lower().replace("case", " CASE "), *rows]))
    again = load("bus-bra", bus_bra, folds=10)
    assert again.folds == expected.folds
    assert again.collection.annotations == expected.collection.annotations


def test_a_case_in_two_folds_is_refused(bus_bra: Path) -> None:
    path = bus_bra / "5-fold-cv.csv"
    path.write_text(path.read_text().replace("bus_0001-r,benign,3,1", "bus_0001-r,benign,3,4"))
    with pytest.raises(DataError, match=r"5-fold-cv.csv: 1 cases are in two folds, the first: 1"):
        load("bus-bra", bus_bra)


def test_covid_blues_has_four_targets_by_patient(covid_blues: Path) -> None:
    assert labels("covid-blues", covid_blues, "covid") == {
        "patient_1_L1.mp4": "no COVID-19",
        "patient_1_R3_2.mp4": "no COVID-19",
        "patient_10_R2.mp4": "COVID-19",
    }
    assert labels("covid-blues", covid_blues, "severity") == {
        "patient_1_L1.mp4": "2",
        "patient_1_R3_2.mp4": "0",
        "patient_10_R2.mp4": "3",
    }
    assert labels("covid-blues", covid_blues, "b-lines")["patient_1_L1.mp4"] == "B-lines"
    assert labels("covid-blues", covid_blues, "a-lines")["patient_10_R2.mp4"] == "no A-lines"
    read = load("covid-blues", covid_blues)
    assert {n: r.subject for n, r in read.collection.annotations.items()} == {
        "patient_1_L1.mp4": "1",
        "patient_1_R3_2.mp4": "1",
        "patient_10_R2.mp4": "10",
    }
    assert (read.target, read.licence) == ("covid", "CC BY-NC-ND 4.0")
    notes = " ".join(read.collection.notes)
    assert "1 videos not named by patient" in notes
    assert "1 files without a label in clinical_variables.csv" in notes
    scored = " ".join(load("covid-blues", covid_blues, target="severity").collection.notes)
    assert "1 files without a label in severity.csv" in scored
    assert "1 rows of severity.csv have no file, the first: patient_63_R2" in scored


def test_own_folders_and_tables_are_data_sets_too(tmp_path: Path) -> None:
    for i, name in enumerate(("a/s1_0.png", "a/s1_1.png", "b/s2_0.png")):
        picture(tmp_path / "mine" / name, i)
    mine = load("folder", tmp_path / "mine", subject_pattern=r"(s\d)_")
    assert mine.name == "mine"
    assert {row.subject for row in mine.collection.annotations.values()} == {"s1", "s2"}
    rows: list[list[object]] = [
        ["file", "class", "who"],
        ["a/s1_0.png", "x", 1],
        ["b/s2_0.png", "y", 2],
    ]
    table(tmp_path / "mine" / "table.csv", rows)
    columns: dict[str, Any] = {
        "file_column": "file",
        "label_column": "class",
        "subject_column": "who",
    }
    read = load("csv", tmp_path / "mine" / "table.csv", **columns)
    assert {n: r.label for n, r in read.collection.annotations.items()} == {
        "a/s1_0.png": "x",
        "b/s2_0.png": "y",
    }


# ------------------------------------------------------------------------------ what is missing


@pytest.mark.parametrize(
    ("name", "inside", "says"),
    [
        ("pocus", "", "has no dataset_metadata.csv; get POCUS lung ultrasound from https://github"),
        ("busi", "", "has no benign; get BUSI breast ultrasound from https://"),
        ("bus-bra", "", "has no bus_data.csv; get BUS-BRA breast ultrasound from https://doi.org"),
        ("covid-blues", "", "has no lus_videos; get COVID-BLUES lung ultrasound from https://"),
        ("covid-blues", "lus_videos", "has no clinical_variables.csv"),
    ],
)
def test_what_is_missing_is_named_with_where_to_get_it(
    name: str, inside: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        load(name, tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert says in str(caught.value)


def test_missing_columns_folds_and_folders_are_named(bus_bra: Path) -> None:
    with pytest.raises(
        DataError, match="bus-bra has no target 'histology', only pathology, birads"
    ):
        load("bus-bra", bus_bra, target="histology")
    with pytest.raises(DataError, match="bus-bra has no option 'stills'"):
        load("bus-bra", bus_bra, stills=True)
    with pytest.raises(DataError, match="no data set 'us-4'; known are pocus, busi"):
        load("us-4", bus_bra)
    with pytest.raises(UnreadableError, match="no such file or folder; get BUSI"):
        load("busi", bus_bra / "nowhere")
    (bus_bra / "10-fold-cv.csv").unlink()
    with pytest.raises(DataError, match=r"has no 10-fold-cv.csv; get BUS-BRA"):
        load("bus-bra", bus_bra, folds=10)
    path = bus_bra / "bus_data.csv"
    path.write_text(path.read_text().replace("BIRADS", "category"))
    with pytest.raises(DataError, match=r"bus_data.csv: no column 'BIRADS'"):
        load("bus-bra", bus_bra, target="birads")


def test_each_name_has_a_loader_that_says_no_to_an_empty_folder(tmp_path: Path) -> None:
    for name in DATASETS:
        with pytest.raises((DataError, UnreadableError)):
            load(name, tmp_path)
