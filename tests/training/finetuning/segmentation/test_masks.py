"""Which image a mask is of, and what its values mean."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.finetuning.segmentation.masks import (
    Found,
    legend_of,
    pair,
    survey,
    values_of,
)
from uscl_zoo.training.finetuning.segmentation.outlined import find_outlined
from uscl_zoo.ultrasound import reading


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a/x.png", "a/x_mask.png"),
        ("a/x.jpg", "a/x_mask_1.png"),
        ("images/x.png", "masks/x.png"),
        ("original/000001.png", "GT/000001.png"),
        ("train/images/x.png", "train/masks/x.png"),
        ("Images/bus_0001-l.png", "Masks/mask_0001-l.png"),
        ("x_HC.png", "x_HC_Annotation.png"),
        ("benign (1).png", "benign (1)_mask.png"),
    ],
)
def test_names_that_people_give_masks(image: str, mask: str) -> None:
    root = Path("/data")
    others = [root / "val/images/x.png", root / "y.png"]
    found, lost = pair([root / image, *others], [root / mask], root)
    assert found == {root / image: [root / mask]}
    assert not lost


def test_a_mask_of_two_images_is_an_error_and_one_of_none_is_told() -> None:
    root = Path("/data")
    with pytest.raises(DataError, match="may be of"):
        pair([root / "a/x.png", root / "b/x.png"], [root / "masks/x.png"], root)
    assert pair([root / "x.png"], [root / "z_mask.png"], root) == ({}, [root / "z_mask.png"])


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_levels_palettes_and_colours_are_classes(tmp_path: Path) -> None:
    indices = np.zeros((8, 8), np.uint8)
    indices[:4], indices[4:, :4] = 1, 2
    palette = Image.fromarray(indices)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    path = saved(tmp_path / "p.png", palette)
    assert (values_of(path) == indices).all()
    colours = saved(tmp_path / "c.png", palette.convert("RGB"))
    legend, _ = legend_of(survey([[colours]]), None)
    assert legend.classes == ("#00ff00", "#ff0000")
    assert (legend.read([colours]) == np.array([0, 2, 1])[indices]).all()
    legend, notes = legend_of(survey([[path]]), ["kidney", "cyst"])
    assert notes == ["in the masks 0 is background, 1 is kidney, 2 is cyst"]
    deep = saved(tmp_path / "d.png", Image.fromarray(indices.astype(np.uint16) * 300))
    assert sorted(set(values_of(deep).ravel().tolist())) == [0, 300, 600]
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:, :, :3] = 255
    clear[2:4, 2:4, 3] = 255
    through = values_of(saved(tmp_path / "a.png", Image.fromarray(clear)))
    assert (through == 255).sum() == 4
    assert (through == 0).sum() == 60


def test_blurred_edges_are_no_classes(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[13:45, 18:50] = 255
    path = tmp_path / "x_mask.jpg"
    Image.fromarray(mask).save(path, quality=80)
    legend, notes = legend_of(survey([[path]]), None)
    assert legend.above == 127
    assert "blurred edges" in notes[-1]
    assert abs(int(legend.read([path]).sum()) - 32 * 32) < 40
    with pytest.raises(DataError, match="name one class"):
        legend_of(survey([[path]]), ["a", "b"])


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    with pytest.raises(DataError, match="are they the images"):
        legend_of(survey([[saved(tmp_path / "n.png", Image.fromarray(noise))]]), None)
    with pytest.raises(DataError, match="every mask is empty"):
        legend_of(Found(Counter({0: 100})), None)
    with pytest.raises(DataError, match="every mask is of one value, 255"):
        legend_of(Found(Counter({255: 100})), None)
    with pytest.raises(DataError, match="2 names of classes for 1 values"):
        legend_of(Found(Counter({0: 100, 255: 5})), ["a", "b"])


THERE = np.zeros((12, 16), np.uint8)
THERE[2:6, 3:9] = 1


@pytest.mark.parametrize(
    "levels",
    [
        THERE.astype(np.float32) * 0.5,
        np.where(THERE, np.nan, 0).astype(np.float32),
        THERE.astype(np.int32) * -3,
        THERE.astype(np.int32) << 24,
    ],
)
def test_values_that_are_no_classes_are_refused(tmp_path: Path, levels: Any) -> None:
    path = saved(tmp_path / "m.tiff", Image.fromarray(levels))
    with pytest.raises(UnreadableError, match="values that are not whole, negative or above"):
        values_of(path)


def test_whole_floats_are_levels_and_pages_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "m.tiff", Image.fromarray(THERE.astype(np.float32) * 2))
    assert (values_of(whole) == THERE * 2).all()
    Image.fromarray(THERE).save(whole, save_all=True, append_images=[Image.fromarray(THERE)])
    with pytest.raises(UnreadableError, match="has several pages"):
        values_of(whole)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_its_image_is(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    for name in ("x.png", "x_mask.png"):
        Image.fromarray(THERE * 255).save(tmp_path / name, exif=exif)
    (frame,) = (frame.image for frame in reading.iterate(tmp_path / "x.png"))
    assert (values_of(tmp_path / "x_mask.png") == np.asarray(frame)[..., 0]).all()


def test_outlines_of_an_image_of_another_size_are_refused(tmp_path: Path) -> None:
    """As of images that were made smaller after they had been annotated."""
    Image.fromarray(THERE).save(tmp_path / "x.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}
    said = {
        "images": [{"id": 1, "file_name": "x.png", "width": 32, "height": 24}],
        "annotations": [{**box, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
        "categories": [{"id": 1, "name": "cyst"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(said))
    outlined = find_outlined(tmp_path / "coco.json")
    with pytest.raises(DataError, match="is of 16 x 12 pixels, and in COCO's JSON of 32 x 24"):
        outlined.labels(outlined.items[0], THERE.shape)


def test_without_black_the_commonest_is_background() -> None:
    legend, notes = legend_of(Found(Counter({1: 5, 2: 90})), None)
    assert (legend.values, legend.classes) == ((1,), ("lesion",))
    assert "no mask has black" in notes[0]


def test_several_masks_of_an_image_are_one(tmp_path: Path) -> None:
    first, second = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    first[0], second[7] = True, True
    paths = [
        saved(tmp_path / f"x_mask{end}.png", Image.fromarray(mask))
        for end, mask in (("", first), ("_1", second))
    ]
    legend, _ = legend_of(survey([paths]), None)
    assert (legend.read(paths) == (first | second)).all()


def scaled(folder: Path, *scales: Sequence[int] | str) -> list[list[Path]]:
    """Masks of two discs, a mask each: their values, or how they are written."""
    rows, columns = np.ogrid[:40, :60]
    discs = [np.hypot(rows - 20, columns - x) < 9 for x in (15, 42)]
    either = discs[0] | discs[1]
    made = []
    for number, scale in enumerate(scales):
        mask = np.zeros((40, 60), np.uint8)
        path = folder / f"x{number}_mask.png"
        if isinstance(scale, str):
            how: dict[str, Image.Image] = {
                "one bit": Image.fromarray(either),
                "16 bits": Image.fromarray(either.astype(np.uint16) * 65535),
                "red": Image.fromarray(either[..., None] * np.array([255, 0, 0], np.uint8)),
                "palette": Image.fromarray(either.astype(np.uint8)),
                "blurred": Image.fromarray(either.astype(np.uint8) * 255),
                "black": Image.fromarray((~either).astype(np.uint8) * 255),
            }
            if scale == "palette":
                how[scale].putpalette([0, 0, 0, 255, 0, 0])
            if scale == "blurred":
                path = path.with_suffix(".jpg")
            how[scale].save(path)
        else:
            for disc, value in zip(discs, scale, strict=False):
                mask[disc] = value
            Image.fromarray(mask).save(path)
        made.append([path])
    return made


@pytest.mark.parametrize(
    "scales",
    [
        ([1, 1], [255, 255]),
        ("one bit", [255], [0]),
        ([254], [255], [1]),
        ("16 bits", [255, 255]),
        ("16 bits", "one bit"),
    ],
)
def test_yes_is_written_in_several_ways(tmp_path: Path, scales: tuple[Any, ...]) -> None:
    masks = scaled(tmp_path, *scales)
    legend, notes = legend_of(survey(masks), None)
    assert legend.classes == ("lesion",)
    assert "taken for the same" in notes[0]
    for own in masks:
        assert (legend.read(own) == (values_of(own[0]) > 0)).all()
    assert legend_of(survey(masks), ["cyst"])[0].classes == ("cyst",)
    count = len(survey(masks).counts) - 1
    # whoever names as many means as many
    assert len(legend_of(survey(masks), list("abc")[:count])[0].classes) == count


@pytest.mark.parametrize(
    "scales",
    [
        ([1, 2], [127, 254]),
        ([1, 2], [255]),
        ([1], [2], [255]),
        ("red", "palette"),
        ("blurred", [1]),
        ("blurred", "one bit"),
    ],
)
def test_numbers_beside_levels_are_refused(tmp_path: Path, scales: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match="may mean the same; save all in one way"):
        legend_of(survey(scaled(tmp_path, *scales)), None)


@pytest.mark.parametrize(
    ("scales", "classes"),
    [
        (([1], [2]), ("1", "2")),
        (([1, 2], [1]), ("1", "2")),
        (([128], [255]), ("128", "255")),
        (([1, 255], [1]), ("1", "255")),
        (([85], [170], [255, 85]), ("85", "170", "255")),
    ],
)
def test_classes_may_be_alone_in_their_masks(
    tmp_path: Path, scales: tuple[Any, ...], classes: tuple[str, ...]
) -> None:
    assert legend_of(survey(scaled(tmp_path, *scales)), None)[0].classes == classes


def test_what_may_be_inverted_is_said(tmp_path: Path) -> None:
    _, notes = legend_of(survey(scaled(tmp_path, "black", [255], "black")), None)
    assert notes[-1].startswith("in 2 of 3 masks all four corners are outlined")
