from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from uscl_zoo.data.annotations import Annotation, SubjectPattern, Table, read_table
from uscl_zoo.data.collection import collect
from uscl_zoo.data.rows import Matched, assign, own_subjects, survey
from uscl_zoo.errors import DataError
from uscl_zoo.training.preparing.sources import items_in
from uscl_zoo.ultrasound.sources import name_sources

HOME = Path("/study")


def table(*keys: str, spaced: Sequence[str] = ()) -> Table:
    rows = {key: Annotation(f"p{i}", f"l{i}") for i, key in enumerate(keys)}
    return Table(HOME / "t.csv", rows, spaced=frozenset(spaced))


def match(keys: Sequence[str], names: Sequence[str], every_row: bool = False) -> Matched:
    files = {HOME / name: [name, f"/study/{name}"] for name in names}
    return assign(table(*keys), files, every_row=every_row)


def found(keys: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The key of each file that has one."""
    return {path.relative_to(HOME).as_posix(): key for path, key in match(keys, names).keys.items()}


FILES = ["A/1.png", "B/1.png", "B/Müller 2.png", "c.d.mp4", "deep/er/x.gif"]


@pytest.mark.parametrize(
    ("key", "file", "bent"),
    [
        # as it is
        ("A/1.png", "A/1.png", ""),
        ("./A//1.png", "A/1.png", ""),
        ("../study/A/1.png", "A/1.png", ""),
        ("/study/A/1.png", "A/1.png", ""),
        ("A/1", "A/1.png", ""),
        ("c.d", "c.d.mp4", ""),
        ("er/x.gif", "deep/er/x.gif", ""),
        ("x", "deep/er/x.gif", ""),
        # bent, by one thing or by several
        ("A\\1.png", "A/1.png", "Windows"),
        (".\\A\\1.png", "A/1.png", "Windows"),
        ("C:\\data\\A\\1.png", "A/1.png", "Windows"),
        ("\\\\server\\share\\deep\\er\\x.gif", "deep/er/x.gif", "Windows"),
        ("/mnt/other/x.gif", "deep/er/x.gif", "another machine"),
        ("A / 1.png", "A/1.png", "spaces"),
        ("a/1.PNG", "A/1.png", "case"),
        ("A\\ 1.PNG", "A/1.png", "case"),
        (unicodedata.normalize("NFD", "B/Müller 2.png"), "B/Müller 2.png", "NFC"),
        (unicodedata.normalize("NFD", "b\\MÜLLER 2"), "B/Müller 2.png", "NFC"),
        # not at all
        ("C/1.png", None, ""),
        ("er/y.gif", None, ""),
        ("1.jpg", None, ""),
        ("", None, ""),
    ],
)
def test_how_a_row_may_name_a_file(key: str, file: str | None, bent: str) -> None:
    if file is None:
        with pytest.raises(DataError, match="none of its 1 rows names a file") as caught:
            match([key], FILES)
        assert repr(key)[1:-1] in str(caught.value)
        return
    assert found([key], FILES) == {file: key}
    notes = match([key], FILES).notes
    assert [bent in note for note in notes] == ([True] if bent else [])


def test_the_surest_way_wins() -> None:
    """What one row bends to is not taken from the row that names it."""
    names = ["a.png", "A.png", "sub/a.png"]
    assert found(["a.png", "A.png", "sub/a.png"], names) == {name: name for name in names}


@pytest.mark.parametrize("key", ["1.png", "1", "1.PNG", " 1.png", "x\\..\\1.png"])
def test_a_bare_name_of_several_files_is_an_error(key: str) -> None:
    told = r"1 rows name several files each.*A/1\.png, .*B/1\.png"
    with pytest.raises(DataError, match=told):
        match([key], FILES)


def test_paths_of_another_machine_count_from_the_folder_they_share() -> None:
    """Whose first folders are nobody's business; those below it are."""
    keys = ["D:\\us\\A\\1.png", "d:\\us\\B\\2.png"]
    assert found(keys, ["A/1.png", "B/1.png", "B/2.png"]) == {
        "A/1.png": keys[0],
        "B/2.png": keys[1],
    }
    keys = ["/mnt/us/A/1.png", "/mnt/us/B/3.png"]
    # not that of A, though there is no other 3.png
    assert found(keys, ["A/1.png", "A/3.png"]) == {"A/1.png": keys[0]}


def test_rows_without_a_file_are_counted_and_listed() -> None:
    keys = ["A/1.png", "B/7.png", "B/8.png"]
    assert match(keys, FILES).lost == ("B/7.png", "B/8.png")
    with pytest.raises(DataError, match=r"2 of 3 rows have no file: 'B/7\.png'; 'B/8\.png'"):
        match(keys, FILES, every_row=True)
    with pytest.raises(DataError, match=r"none of its 2 rows .* named like 'A/1\.png'"):
        match(keys[1:], FILES)
    assert match([], FILES).rows == {}


def test_many_are_not_all_listed() -> None:
    with pytest.raises(DataError, match=r"and 980 more$"):
        match([f"{i}.jpg" for i in range(1000)], FILES)


_NAMES = st.text(st.sampled_from("abAB1é ."), min_size=1, max_size=6).filter(
    lambda name: name.strip() == name and not name.startswith(".") and not name.endswith(".")
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".png")


def _alike(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


_TREES = st.lists(_PATHS, min_size=1, max_size=8, unique_by=_alike)
_BENDS: dict[str, Callable[[str], str]] = {
    "windows": lambda path: "E:\\scans\\" + path.replace("/", "\\"),
    "spaces": lambda path: " " + path.replace("/", " / "),
    "upper": str.upper,
    "lower": str.lower,
    "NFD": lambda path: unicodedata.normalize("NFD", path),
    "NFC": lambda path: unicodedata.normalize("NFC", path),
    "none": lambda path: path,
}


@given(_TREES)
def test_whole_paths_find_their_files(names: list[str]) -> None:
    assert found(names, names) == {name: name for name in names}


@given(_TREES, st.lists(st.sampled_from(sorted(_BENDS)), max_size=4, unique=True))
def test_bent_paths_find_their_files_or_say_why_not(names: list[str], bends: list[str]) -> None:
    keys = names
    for bend in sorted(bends, key=lambda bend: bend == "windows"):
        keys = [_BENDS[bend](key) for key in keys]
    try:
        owners = found(keys, names)
    except DataError as error:
        assert "several files" in str(error) or "two rows" in str(error)
        return
    # each has its own, and none that of another
    assert owners == dict(zip(names, keys, strict=True))


@given(_TREES, st.lists(_PATHS, max_size=4))
def test_no_file_has_a_row_of_another(names: list[str], others: list[str]) -> None:
    """Whatever else is in the table, a row by name fits the end of a path, or is lost."""
    try:
        result = match(others, names)
    except DataError:
        return
    for path, key in result.keys.items():
        own = _alike(path.relative_to(HOME).as_posix())
        assert own.endswith(_alike(key)) or own.rsplit(".", 1)[0].endswith(_alike(key))
    assert len(result.keys) + len(result.lost) >= len(set(others))


# ------------------------------------------------------------------------- files on disk


def stills(folder: Path, *names: str) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20 + i, 20), i).save(path)


def rows_of(folder: Path, *lines: str) -> Table:
    path = folder / "t.csv"
    path.write_text("\n".join(["file,label,who", *lines]) + "\n", encoding="utf-8")
    return read_table(path, "file", "label", "who")


def test_rows_that_agree_are_one_and_said(tmp_path: Path) -> None:
    stills(tmp_path, "a/x.png", "a/y.png")
    agree = rows_of(tmp_path, "a/x.png,x,p", "x,x,p", "y,x,q", "y,x,q")
    result = survey(tmp_path, agree, on_damage=print)
    assert {path.name: row.subject for path, row in result.rows.items()} == {
        "x.png": "p",
        "y.png": "q",
    }
    assert any("2 files have several rows, which agree" in note for note in result.notes)


def test_spaces_around_names_are_said(tmp_path: Path) -> None:
    stills(tmp_path, "x.png", "y.png")
    result = survey(tmp_path, rows_of(tmp_path, " x.png,x,p", "y.png ,x,p"), on_damage=print)
    assert len(result.rows) == 2
    assert any("2 rows name their file with spaces" in note for note in result.notes)


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_of_another_system(
    tmp_path: Path, form: Literal["NFC", "NFD"], other: Literal["NFC", "NFD"]
) -> None:
    """As a Mac unpacks an archive, or the other way round."""
    stills(tmp_path, unicodedata.normalize(form, "Zoë/é.png"))
    key = unicodedata.normalize(other, "Zoë/é.png")
    result = survey(tmp_path, rows_of(tmp_path, f"{key},x,p"), on_damage=print)
    assert len(result.rows) == 1
    assert any("accents composed otherwise" in note for note in result.notes)


# ------------------------------------------------------------------------------- masks

MASKS = ["x_mask.png", "x_Mask.PNG", "x_mask_1.png", "x_GT.png", "x-mask.png", "mask_x.png"]
MASKS += ["x_masks.png", "x_mask (1).png", "x_ground_truth.png", "x_GroundTruth.png", "x mask.png"]
MASKS += ["x_seg.png", "x_segmentation.png", "x_Annotation.png", "x.mask.png", "x_mask_final.png"]
MASKS += ["imageMask.png", "p1Mask2.png", "scanGT.png"]
MASKS += ["masks/x.png", "Mask/x.png", "GT/x.png", "ground_truth/x.png", "x/masks/deep/er/1.png"]
MASKS += ["train_masks/x.png", "segmentation/x.png", "x_mask.bmp", "masks_v2/x.png"]
NO_MASKS = ["unmasked.png", "damask.png", "gt.png", "seg1.png", "maskell.png", "left_gtx.png"]
NO_MASKS += ["unMasked.png", "UNMASK.png", "LEGT.png"]
NO_MASKS += ["image.png", "P1_GTI.png", "patient/1.png"]


#: Only beside `x.png`: alone they may be anything.
BESIDE = ["x_roi.png", "gt_x.png", "xSegmentation.png", "x_labelIds.png", "x_manual1.png"]
BESIDE += ["x_GT - Copy.png", "x_seg_final.png", "X_ANNOT.PNG", "x_contour(2).bmp", "xmask.png"]
BESIDE += ["segmentation_x.png", "x_truth.png", "x_overlay.png", "x_GT_left.png", "x_lesion.png"]
NOT_BESIDE = ["x_left.png", "x2.png", "x_annular.png", "x_segment_2.png", "y_roi.png", "gt_y.png"]
#: Folders beside `images`.
FOLDERS = ["labelsTr", "SegmentationClass", "annots", "images_gt", "train_labels", "label_mha"]


@pytest.mark.parametrize("mask", BESIDE)
def test_what_is_a_mask_beside_its_image_is_none_alone(tmp_path: Path, mask: str) -> None:
    stills(tmp_path, mask, "other.png")
    assert len(name_sources(tmp_path, on_damage=pytest.fail)) == 2
    stills(tmp_path, "x.png")
    told: list[str] = []
    sources = {source.name for source, _ in name_sources(tmp_path, on_damage=told.append)}
    assert sources == {"x.png", "other.png"}
    assert told == [f"{tmp_path}: 1 file is left out, being masks by name: {mask}"]


def test_the_table_is_not_said_to_be_left_out(tmp_path: Path) -> None:
    """It is read: who gave it would believe the opposite. What else lies beside it is said."""
    stills(tmp_path / "images", "x.png", "y.png")
    rows = "Filename,Class\nimages/x.png,a\nimages/y.png,b\n"
    for name in ("t.csv", "notes.csv"):
        (tmp_path / name).write_text(rows)
    (tmp_path / "link.csv").symlink_to("t.csv")
    told: list[str] = []
    table = read_table(tmp_path / "link.csv", "Filename", "Class", None)
    assert len(survey(tmp_path, table, on_damage=told.append).sources) == 2
    assert told == [
        f"{tmp_path}: 1 file is left out, being neither image nor video nor DICOM: notes.csv"
    ]


@pytest.mark.parametrize("name", NOT_BESIDE)
def test_what_is_no_mask_beside_an_image(tmp_path: Path, name: str) -> None:
    stills(tmp_path, "x.png", name)
    assert len(name_sources(tmp_path, on_damage=pytest.fail)) == 2


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_of_masks_have_the_names_of_the_images(tmp_path: Path, folder: str) -> None:
    stills(tmp_path, "images/a_0000.png", "images/b.png", f"{folder}/a.png", f"{folder}/b.png")
    told: list[str] = []
    sources = [source.name for source, _ in name_sources(tmp_path, on_damage=told.append)]
    assert sources == ["images/a_0000.png", "images/b.png"]
    assert f"{folder}/a.png" in told[0]


def test_classes_that_are_called_as_masks_are(tmp_path: Path) -> None:
    stills(tmp_path, *(f"label_{k}/{name}.png" for k in range(2) for name in "ab"))
    assert len(name_sources(tmp_path, on_damage=pytest.fail)) == 4


@pytest.mark.parametrize("mask", MASKS)
def test_masks_beside_images_are_left_out_and_said(tmp_path: Path, mask: str) -> None:
    stills(tmp_path, "x.png", "y.png", mask)
    told: list[str] = []
    sources = [source.name for source, _ in name_sources(tmp_path, on_damage=told.append)]
    assert sources == ["x.png", "y.png"]
    assert told == [f"{tmp_path}: 1 file is left out, being masks by name: {mask}"]
    # and taken where they are asked for
    named = tmp_path / mask
    assert [source.path for source, _ in name_sources(named)] == [named]
    rows = rows_of(tmp_path, f"{mask},x,p", "x.png,y,q")
    with_rows = survey(tmp_path, rows, on_damage=print)
    assert {source.name for source in with_rows.sources} == {"x.png", "y.png", mask}


@pytest.mark.parametrize("name", NO_MASKS)
def test_names_that_are_no_masks(tmp_path: Path, name: str) -> None:
    stills(tmp_path, "x.png", name)
    told: list[str] = []
    assert len(name_sources(tmp_path, on_damage=told.append)) == 2
    assert told == []


def test_a_folder_of_masks_that_is_named_is_wanted(tmp_path: Path) -> None:
    stills(tmp_path, "masks/x.png", "masks/y_mask.png", "other/x_mask.png")
    assert len(name_sources(tmp_path / "masks")) == 2
    with pytest.raises(DataError, match=r"nothing but masks \(x_mask\.png\); who wants them names"):
        name_sources(tmp_path / "other")


def test_images_with_masks_are_no_clip(tmp_path: Path) -> None:
    for i in range(3):
        stills(tmp_path, f"p{i}.png", f"p{i}_mask.png")
        Image.new("L", (20, 20), i).save(tmp_path / f"p{i}.png")
    names = [source.name for source, _ in name_sources(tmp_path, on_damage=print)]
    assert names == ["p0.png", "p1.png", "p2.png"]


def test_images_with_masks_in_the_next_folder_are_no_clip(tmp_path: Path) -> None:
    for i in range(3):
        for name in (f"images/p{i}.png", f"masks/p{i}.png", f"clips/a/f{i}.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 20), i).save(tmp_path / name)
    names = [source.name for source, _ in name_sources(tmp_path, on_damage=print)]
    assert names == ["clips/a", "images/p0.png", "images/p1.png", "images/p2.png"]


# ---------------------------------------------------------------------------- subjects


def test_the_path_that_patterns_are_searched_in(tmp_path: Path) -> None:
    stills(tmp_path / "P0" / "data", "P1/x.png")
    folder, file = tmp_path / "P0" / "data", tmp_path / "P0" / "data" / "P1" / "x.png"
    (source, _), *rest = name_sources(folder)
    assert (source.name, source.within, rest) == ("P1/x.png", "P1/x.png", [])
    (source, _), *rest = name_sources(file)
    assert (source.name, source.within, rest) == ("x.png", file.as_posix(), [])


def test_files_of_one_name_are_not_one_subject(tmp_path: Path) -> None:
    stills(tmp_path, "a/1.png", "b/1.png", "c/2.png")
    sources = [s for s, _ in name_sources([tmp_path / "a", tmp_path / "b", tmp_path / "c"])]
    assert len(set(own_subjects(sources, [None] * 3))) == 3
    assert len(set(own_subjects(sources, ["NaN"] * 3))) == 3
    # nor one with whoever is called so
    whose = {"1.png": "2.png"}
    told = own_subjects(sources, [whose.get(source.name) for source in sources])
    assert told[:2] == ["2.png", "2.png"]
    assert told[2] not in ("2.png", None)


# ------------------------------------------------------------------------------ who is not known


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)


@pytest.mark.parametrize("rows", [["a,1", "b,", "a,NA", "b"], ["a,", "b,", "a,?", "b"]])
def test_files_without_a_subject_are_counted(rows: list[str], tmp_path: Path) -> None:
    """Or a patient is on both sides in silence; a row that is cut off is one of them."""
    draw(tmp_path, *(f"{number}.png" for number in range(4)))
    lines = [f"{number}.png,{row}" for number, row in enumerate(rows)]
    (tmp_path / "t.csv").write_text("\n".join(["f,y,s", *lines]) + "\n")
    read = partial(collect, tmp_path / "t.csv", file_column="f", label_column="y")
    (said,) = [note for note in read(subject_column="s").notes if "no subject" in note]
    lost = sum(not row.endswith(",1") for row in rows)
    assert said.startswith(f"{lost} of 4 files have no subject in t.csv, and each counts as its")
    # without the column another line says so
    (said,) = [note for note in read().notes if "subject" in note]
    assert said.startswith("no subjects are known")


def test_classes_and_subjects_of_names_that_may_be_one_are_said(tmp_path: Path) -> None:
    """Of folders and patterns as of tables, in fine-tuning and in prepare."""
    for label in ("Cov", "C\u043ev", "Reg"):
        draw(tmp_path, *(f"{label}/{who}-{label}.png" for who in ("p1", "P01", "p2")))
    found = collect(tmp_path, subject_pattern=r"/(.*)-")
    wanted = [
        "subjects that may be one count as several: 'p1', 'P01'",
        "labels that may be one count as several: 'Cov', 'C\u043ev'",
    ]
    told = [note for note in found.notes if "may be one" in note]
    assert sorted(told) == sorted([wanted[0].replace("'p1', 'P01'", "'P01', 'p1'"), wanted[1]])
    said: list[str] = []
    items_in(
        [tmp_path],
        lambda name: Annotation(name, name.partition("/")[0]),
        pattern=SubjectPattern(r"/(.*)-"),
        tell=said.append,
    )
    assert sorted(line for line in said if "may be one" in line) == sorted(told)
