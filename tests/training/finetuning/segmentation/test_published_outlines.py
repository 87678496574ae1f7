"""Public collections of lesions, on made-up trees of their published layout: none of them is here.

Names of folders, files and columns are those of the authors' descriptions; pixels are noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import outlined as made
import pytest
from PIL import Image

from uscl_zoo.errors import DataError
from uscl_zoo.training.finetuning.segmentation.published import load


def write(image: Path, mask: Path, seed: int, *, empty: bool = False) -> None:
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    picture, there = made.draw(seed, empty=empty)
    picture.save(image)
    Image.fromarray(there.astype(np.uint8) * 255).save(mask)


def test_busi_as_it_is_published(tmp_path: Path) -> None:
    for place, label in enumerate(("benign", "malignant", "normal")):
        for i in range(1, 4):
            stem = tmp_path / label / f"{label} ({i})"
            write(
                Path(f"{stem}.png"),
                Path(f"{stem}_mask.png"),
                10 * place + i,
                empty=label == "normal",
            )
    second = np.zeros((96, 120), np.uint8)
    second[90:95, 110:118] = 255
    Image.fromarray(second).save(tmp_path / "benign" / "benign (1)_mask_1.png")
    found = load("busi", tmp_path)
    assert len(found.items) == 9
    first = next(item for item in found.items if item.name == "benign/benign (1).png")
    assert [mask.name for mask in first.masks] == ["benign (1)_mask.png", "benign (1)_mask_1.png"]
    assert len(found.regions(first, (96, 120))) == 2
    normal = next(item for item in found.items if item.name.startswith("normal"))
    assert not found.regions(normal, (96, 120))
    assert found.classes == ("lesion",)


def test_bus_bra_as_it_is_published(tmp_path: Path) -> None:
    home = tmp_path / "BUSBRA"
    rows = ["ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"]
    folds = ["ID,Case,Pathology,kFold"]
    for case in range(1, 5):
        for side in "lr":
            name = f"{case:04}-{side}"
            write(
                home / "Images" / f"bus_{name}.png",
                home / "Masks" / f"mask_{name}.png",
                2 * case + (side == "l"),
            )
            label = "benign" if case % 2 else "malignant"
            rows.append(f"bus_{name},{case},x,{label},2,GE,120,96,{side},[]")
            folds.append(f"bus_{name},{case},{label},{case}")
    (home / "bus_data.csv").write_text("\n".join(rows))
    (home / "5-fold-cv.csv").write_text("\n".join(folds))
    (home / "Masks" / "mask_0004-r.png").unlink()
    found = load("bus-bra", tmp_path)
    assert len(found.items) == 7
    assert {item.subject for item in found.items} == {"1", "2", "3", "4"}
    assert all(m.stem[5:] == i.source.stem[4:] for i in found.items for m in i.masks)
    assert any("1 images without a mask left out" in note for note in found.notes)
    assert found.licence == "CC BY 4.0"


def test_udiat_as_it_is_published(tmp_path: Path) -> None:
    for i in range(1, 5):
        name = f"{i:06}.png"
        write(tmp_path / "BUS" / "original" / name, tmp_path / "BUS" / "GT" / name, i)
    found = load("udiat", tmp_path)
    assert [item.subject for item in found.items] == [f"{i:06}.png" for i in range(1, 5)]
    assert all(len(found.regions(item, (96, 120))) == 1 for item in found.items)


@pytest.mark.parametrize(
    ("layout", "told"), [("udiat", "has no original; get UDIAT"), ("x", "should be one of busi")]
)
def test_what_is_missing_is_said(tmp_path: Path, layout: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load(layout, tmp_path)


def test_near_duplicates_of_busi_are_one_subject(data: Path) -> None:
    found = load("busi", data / "busi")
    assert len(found.items) > 700
    subjects = {item.subject for item in found.items}
    assert len(subjects) < len(found.items)
    empty = [item for item in found.items if item.name.startswith("normal")]
    assert len(empty) > 100
