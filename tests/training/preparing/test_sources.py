from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import draw_clip
from PIL import Image

from uscl_zoo.errors import CardError, DataError
from uscl_zoo.training.preparing.labels import Annotation, read_table
from uscl_zoo.training.preparing.sources import (
    CorpusPlan,
    Item,
    corpus_names,
    items_in,
    items_of,
    load_corpus,
)

Files = dict[str, Item]


def stills(folder: Path, *names: str, size: tuple[int, int] = (24, 20)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        frame = draw_clip(i + len(str(folder)), 1, (90, 90, 90))[0]
        Image.fromarray(frame).resize(size).save(folder / name)


def tabled(root: Path, *rows: str) -> Files:
    """The items of a folder, by a table in it."""
    (root / "table.csv").write_text("\n".join(["file,label,subject", *rows]) + "\n")
    items: Files = items_in([root], read_table(root / "table.csv", "file", "label", "subject"))
    return items


def labels_of(items: Files) -> dict[str, str | None]:
    return {name: item.annotation.label for name, item in items.items()}


# ------------------------------------------------------------------------------ rows and files


def test_a_still_with_a_row_is_an_item_of_its_own(tmp_path: Path) -> None:
    stills(tmp_path / "a", "1.png", "2.png", "3.png")
    # numbered stills of one size look like a clip
    assert list(items_in([tmp_path], lambda name: None)) == ["a"]
    items = tabled(tmp_path, "a/1.png,x,p", "a/2.png,y,q")
    assert labels_of(items) == {"a/1.png": "x", "a/2.png": "y", "a/3.png": None}
    assert [item.annotated for item in items.values()] == [True, True, False]


def test_a_folder_with_a_row_is_an_item(tmp_path: Path) -> None:
    stills(tmp_path / "clip", "1.png", "2.png")
    # of two sizes: by the looks of it no clip
    stills(tmp_path / "odd", "1.png")
    stills(tmp_path / "odd", "2.png", size=(30, 30))
    stills(tmp_path / "none", "1.png", "2.png")
    items = tabled(tmp_path, "clip,x,p", "odd,y,q")
    assert labels_of(items) == {"clip": "x", "none": None, "odd": "y"}
    assert items["odd"].path == tmp_path / "odd"


def test_a_table_outside_counts_paths_from_its_own_folder(tmp_path: Path) -> None:
    stills(tmp_path / "deep" / "a", "1.png", "2.png")
    (tmp_path / "t.csv").write_text("file,label\ndeep/a/2.png,x\n")
    items = items_in([tmp_path / "deep"], read_table(tmp_path / "t.csv", "file", "label"))
    assert labels_of(items) == {"a/1.png": None, "a/2.png": "x"}


@pytest.mark.parametrize("key", ["1.png", "1", "1.PNG"])
def test_a_bare_name_of_several_files_is_an_error(tmp_path: Path, key: str) -> None:
    stills(tmp_path / "a", "1.png", "x.png")
    stills(tmp_path / "b", "1.png", "y.png")
    told = f"1 rows name several files.*'{key}'.*a/1.png, .*b/1.png"
    with pytest.raises(DataError, match=told):
        tabled(tmp_path, f"{key},x,p")


@pytest.mark.parametrize(
    "rows",
    [
        ("a/x.png,x,p", "a/X.png,y,p"),
        ("x.png,x,p", "x.png,y,q"),
        ("x.png,x,p", "x,x,q"),
    ],
)
def test_two_rows_of_one_file_that_disagree(tmp_path: Path, rows: tuple[str, ...]) -> None:
    stills(tmp_path / "a", "x.png", "y.png")
    with pytest.raises(DataError, match=r"1 files have two rows that disagree.*a/x\.png"):
        tabled(tmp_path, *rows)


@pytest.mark.parametrize("size", [(24, 20), (30, 30)])
def test_a_row_of_a_folder_and_of_a_file_in_it(tmp_path: Path, size: tuple[int, int]) -> None:
    stills(tmp_path / "clip", "1.png")
    stills(tmp_path / "clip", "2.png", size=size)
    with pytest.raises(DataError, match=r"clip has a row, and so have 1 images in it.*2\.png"):
        tabled(tmp_path, "clip,x,p", "clip/2.png,y,p")


def test_names_that_no_row_has(tmp_path: Path) -> None:
    stills(tmp_path / "a", "x.png", "y.png", size=(30, 30))
    rows = "elsewhere/z.png,x,p", "a/y.png,x,q"
    assert labels_of(tabled(tmp_path, *rows)) == {"a/x.png": None, "a/y.png": "x"}


# ----------------------------------------------------------------------------------- the YAML


def write(folder: Path, **changes: Any) -> Path:
    """A corpus of two hospitals, each with a patient 15; one of them by names, one by a table."""
    stills(folder / "north", "1.png", "2.png", "3.png")
    (folder / "north" / "t.csv").write_text(
        "file,kind,who,terms,from\n"
        "1.png,Cyst,15,free for all,north\n"
        "2.png,tumor,16,CC BY 4.0,north\n"
        "3.png,odd,16,,north\n"
        "4.png,other,17,,elsewhere\n"
    )
    stills(folder / "south", "p15-a.png", "p15-b.png")
    plain: dict[str, Any] = {
        "name": "Two hospitals",
        "roots": {"here": "north", "there": "south"},
        "licences": {"CC BY 4.0": "CC-BY-4.0"},
        "sources": {
            "north": {
                "name": "North",
                "root": "here",
                "table": "t.csv",
                "file_column": "file",
                "label_column": "kind",
                "subject_column": "who",
                "licence_column": "terms",
                "where": {"from": "north"},
                "labels": {"cyst": "benign", "Tumor": "malignant", "odd": None},
                "licences": {"free for all": "CC0-1.0 AND CC-BY-4.0"},
            },
            "south": {
                "name": "South",
                "root": "there",
                "subject_pattern": r"p(\d+)",
                "licence": "MIT",
                "rate": 5,
            },
        },
    }
    for path, value in changes.items():
        *keys, last = path.split("__")
        at = plain
        for key in keys:
            at = at[key]
        at[last] = value
    (folder / "corpus.yaml").write_text(yaml.safe_dump(plain))
    return folder / "corpus.yaml"


def planned(folder: Path, **changes: Any) -> CorpusPlan:
    plan: CorpusPlan = load_corpus(str(write(folder, **changes)))
    return plan


def test_each_source_has_its_own_words(tmp_path: Path) -> None:
    items, left_out = items_of(planned(tmp_path))
    assert left_out == []
    assert {name: item.annotation for name, item in items.items()} == {
        "north/1.png": Annotation("north/15", "benign", "CC0-1.0 AND CC-BY-4.0"),
        "north/2.png": Annotation("north/16", "malignant", "CC-BY-4.0"),
        "north/3.png": Annotation("north/16", None, None),
        # numbered 15 as well, and somebody else
        "south/p15-a.png": Annotation("south/15", None, "MIT"),
        "south/p15-b.png": Annotation("south/15", None, "MIT"),
    }
    assert {item.origin: item.rate for item in items.values()} == {"north": None, "south": 5.0}


def test_a_cohort_is_shared(tmp_path: Path) -> None:
    items, _ = items_of(planned(tmp_path, sources__south__cohort="north"))
    assert items["south/p15-a.png"].annotation.subject == "north/15"
    assert items["south/p15-a.png"].origin == "south"


def test_a_label_without_a_meaning(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.png: label 'Cyst' is none of .* `labels` of north"):
        items_of(planned(tmp_path, sources__north__labels={"tumor": "malignant"}))


def test_roots_are_told_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, roots={"here": "nowhere", "there": "south"})
    with pytest.raises(DataError, match=r"nowhere: no such folder; .*`roots={'here': FOLDER}`"):
        load_corpus(str(path))
    plan = load_corpus(str(path), {"here": tmp_path / "north"})
    assert plan.roots == {"here": str(tmp_path / "north"), "there": str(tmp_path / "south")}
    with pytest.raises(DataError, match="no root 'hree', only here, there"):
        load_corpus(str(path), {"hree": tmp_path})


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("sources__north__root", "mars", "sources.north.root: should be one of here, there"),
        ("sources__north__licences", {"x": "CC BY"}, "sources.north.licences.x: 'CC BY' is no"),
        ("licences", {"x": "free"}, "licences.x: 'free' is no SPDX"),
        ("sources__south__licence", "free", "sources.south.licence: 'free' is no SPDX"),
        ("sources__south__label_column", "x", "sources.south.label_column: needs a table"),
        ("sources__south__where", {"a": "b"}, "sources.south.where: needs a table"),
        ("sources__north__label_scheme", "us4", "a table and a scheme exclude each other"),
        ("sources__south__label_scheme", "us5", "should be one of prefix, us4"),
        ("sources__north__subject_pattern", "x", "a subject column and a pattern exclude"),
        ("sources__north__licence", "MIT", "a licence and a licence column exclude"),
        ("sources__south__rate", 0, "sources.south.rate: should be above 0"),
        ("sources__south__cohort", "a/b", "a key is of letters"),
        ("sources__south__lisence", "MIT", "unknown key 'lisence'"),
        ("sources", {}, "sources: should name at least one"),
        ("sources__south__near_duplicates", "yes", "should be of type bool"),
    ],
)
def test_a_wrong_corpus_names_the_key(tmp_path: Path, key: str, value: Any, told: str) -> None:
    with pytest.raises(CardError, match=re.escape(told)):
        load_corpus(str(write(tmp_path, **{key: value})))


def test_no_row_of_a_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no row with from 'east'"):
        items_of(planned(tmp_path, sources__north__where={"from": "east"}))


def test_sources_that_share_a_folder(tmp_path: Path) -> None:
    """Told apart by a column alone: no file is taken twice, and nobody's is named."""
    path = write(tmp_path)
    plain = yaml.safe_load(path.read_text())
    (tmp_path / "north" / "t.csv").write_text(
        "file,kind,who,terms,from\n1.png,Cyst,15,,north\n2.png,Cyst,15,,south\n"
    )
    plain["sources"]["south"] = deepcopy(plain["sources"]["north"]) | {"where": {"from": "south"}}
    path.write_text(yaml.safe_dump(plain))
    items, left_out = items_of(load_corpus(str(path)))
    assert list(items) == ["north/1.png", "south/2.png"]
    assert left_out == [
        ("north/3.png", "is in the folders of several sources, and no row says whose")
    ]
    plain["sources"]["south"]["where"] = {"from": "north"}
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(DataError, match=r"1 files are in two sources.*north/1.png = south/1.png"):
        items_of(load_corpus(str(path)))


def test_the_corpora_of_the_package(data: Path) -> None:
    assert "open" in corpus_names()
    for name in corpus_names():
        load_corpus(name, {"open": data / "open", "pocus": data / "pocus"})


@pytest.mark.slow
def test_the_open_collections_and_their_table(data: Path) -> None:
    root = data / "open"
    table = read_table(root / "table.csv", "file", "label", "subject", "licence")
    items = items_in([root], table)
    assert len(items) == 6725
    assert all(item.annotated for item in items.values())
    assert sum(item.path.is_dir() for item in items.values()) == 32
