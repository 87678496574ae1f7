"""Images and masks by a CSV, which has them wherever they are."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import outlined as made
import pytest
from PIL import Image

from uscl_zoo.errors import DataError
from uscl_zoo.training.finetuning.segmentation.outlined import find_outlined


def write(folder: Path, rows: Sequence[Sequence[str]]) -> Path:
    """Images in `scans`, what is outlined in `drawn`, each under a name of its own; and a CSV."""
    for kind in ("scans", "drawn"):
        (folder / kind).mkdir(parents=True)
    for i in range(6):
        image, there = made.draw(i, empty=i == 0)
        image.save(folder / "scans" / f"im{i}.png")
        Image.fromarray(there).save(folder / "drawn" / f"q{i}.png")
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "mask", "patient"], *rows])
    return folder / "table.csv"


COLUMNS = {"file_column": "image", "mask_column": "mask", "subject_column": "patient"}
ROWS = [[f"scans/im{i}.png", f"drawn/q{i}.png", f"P{i // 2}"] for i in range(6)]


def test_each_image_has_the_masks_and_the_subject_of_its_rows(tmp_path: Path) -> None:
    # the second mask of an image is another row; a name alone is found, and an image may have none
    rows = [*ROWS[:4], ["im4", "drawn/q4.png", "P2"], ["im4", "q5.png", "P2"]]
    rows += [["scans/im5.png", "", "P2"], ["scans/im9.png", "drawn/q9.png", "P9"]]
    found = find_outlined(write(tmp_path, rows), **COLUMNS)
    own = {item.name: (item.subject, [mask.name for mask in item.masks]) for item in found.items}
    assert own == {
        "scans/im0.png": ("P0", ["q0.png"]),
        "scans/im1.png": ("P0", ["q1.png"]),
        "scans/im2.png": ("P1", ["q2.png"]),
        "scans/im3.png": ("P1", ["q3.png"]),
        "scans/im4.png": ("P2", ["q4.png", "q5.png"]),
    }
    assert found.subjects
    told = "\n".join(found.notes)
    assert "1 images without a mask left out, the first: scans/im5.png" in told
    assert "im9.png" in told
    assert "several rows" not in told
    item = found.items[4]
    both = np.asarray(made.draw(4)[1] | made.draw(5)[1])
    assert (found.labels(item, both.shape) == both).all()


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        (ROWS, {"file_column": "image"}, "`mask_column` is missing"),
        (ROWS, COLUMNS | {"mask_column": "masks"}, "no column 'masks'; it has 'image', 'mask'"),
        (ROWS, COLUMNS | {"subject_pattern": "(.)"}, "exclude each other"),
        ([[*row[:1], "", "P"] for row in ROWS], COLUMNS, "no row has a mask in the column"),
        ([[f"{i}x", *r[1:]] for i, r in enumerate(ROWS)], COLUMNS, "none of its 6 rows names a"),
        (
            [*ROWS, ["scans/im0.png", *ROWS[1][1:]]],
            COLUMNS,
            r"q1.png is the mask of 2 images \(scans/im1.png, scans/im0.png\), and outlines",
        ),
        ([*ROWS, [*ROWS[0][:2], "P7"]], COLUMNS, "two rows that disagree"),
    ],
)
def test_what_a_table_cannot_say(
    tmp_path: Path, rows: list[list[str]], columns: dict[str, str], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        find_outlined(write(tmp_path, rows), **columns)


@pytest.mark.parametrize("size", [(120, 96), (7, 33)])
def test_one_empty_mask_is_of_all_that_show_nothing(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = [row if i % 2 else [row[0], "drawn/none.png", row[2]] for i, row in enumerate(ROWS)]
    table = write(tmp_path, rows)
    Image.new("1", size).save(tmp_path / "drawn" / "none.png")
    found = find_outlined(table, **COLUMNS)
    assert [[m.stem for m in i.masks] for i in found.items] == [[], ["q1"], [], ["q3"], [], ["q5"]]
    assert [len(found.regions(item, (96, 120))) for item in found.items] == [0, 1, 0, 1, 0, 1]


def test_columns_are_of_a_table(tmp_path: Path) -> None:
    folder = made.write(tmp_path / "data", 2)
    with pytest.raises(DataError, match="`mask_column` is of a CSV, and this is none"):
        find_outlined(folder, mask_column="mask")
