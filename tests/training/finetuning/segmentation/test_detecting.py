"""Detection: what a detector is taught, boxes alone, COCO's JSON, and a model that detects."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import outlined as made
import pytest
import timm
import torch

from uscl_zoo.errors import DataError
from uscl_zoo.segmentation.detectors import begin_detector, body_of, build_detector, detect
from uscl_zoo.segmentation.model import read_outliner
from uscl_zoo.segmentation.prediction import outline
from uscl_zoo.segmentation.regions import polygons, region_of
from uscl_zoo.training.finetuning.segmentation.augmentation import changed_regions, transform_of
from uscl_zoo.training.finetuning.segmentation.finetune import finetune
from uscl_zoo.training.finetuning.segmentation.outlined import find_outlined
from uscl_zoo.training.finetuning.segmentation.settings import Settings, sensible
from uscl_zoo.zoo.card import Input

SHAPE = Input(size=(3, 64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)


def coco(folder: Path, *, boxes: bool = False, count: int = 12) -> Path:
    """COCO's JSON of made-up images."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        image, there = made.draw(i, empty=i % 6 == 0)
        name = f"P{i // 2:02}_{i}.png"
        image.save(folder / "images" / name)
        images.append({"id": i + 1, "file_name": name, "height": 96, "width": 120})
        region = region_of(there, 0)
        if region is not None:
            left, top, right, bottom = region.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i + 1,
                    "category_id": 7,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": [] if boxes else polygons(there)[0],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 3, "name": "everything"}, {"id": 7, "name": "cyst"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def test_coco_gives_the_masks_that_it_was_made_of(tmp_path: Path) -> None:
    found = find_outlined(coco(tmp_path / "data"), subject_pattern=r"(P\d+)_")
    assert found.classes == ("cyst",)
    assert len(found.items) == 12
    for i, item in enumerate(found.items):
        _, there = made.draw(i, empty=i % 6 == 0)
        assert (found.labels(item, (96, 120)) == there).all()
        assert len(found.regions(item, (96, 120))) == int(i % 6 > 0)


def test_of_several_categories_some_may_be_taken(tmp_path: Path) -> None:
    data = coco(tmp_path / "data")
    assert find_outlined(data, classes=["cyst"]).classes == ("cyst",)
    with pytest.raises(DataError, match="has no category 'tumour', only everything, cyst"):
        find_outlined(data, classes=["tumour"])
    (data / "other.json").write_text((data / "annotations.json").read_text())
    with pytest.raises(DataError, match="holds 2 files of COCO"):
        find_outlined(data)


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_taught_changes_with_its_image(masks: bool) -> None:
    settings = Settings("maskrcnn", crop=0.3)
    transform = transform_of(settings, (64, 64))
    frame = np.zeros((64, 64, 3), np.uint8)
    there = np.zeros((64, 64), bool)
    there[20:40, 30:50] = True
    frame[there] = 250
    region = region_of(there, 0)
    assert region is not None
    if not masks:
        region = dataclasses.replace(region, mask=None)
    gone = 0
    for seed in range(30):
        image, target = changed_regions(transform, frame, [region], seed, masks)
        again, _ = changed_regions(transform, frame, [region], seed, masks)
        assert torch.equal(image, again)
        if not len(target["labels"]):
            gone += 1
            continue
        bright = (image[0] > 100).nonzero()
        (top, left), (bottom, right) = bright.amin(dim=0), bright.amax(dim=0) + 1
        box = target["boxes"][0]
        # a box that is rotated grows; one of a mask does not
        outer = torch.tensor([left, top, right, bottom]).float()
        slack = 2.0 if masks else 30.0
        assert (box - outer).abs().max() <= slack
        if masks:
            assert ((target["masks"][0] > 0) == (image[0] > 100)).float().mean() > 0.97
    assert gone < 15


def test_the_encoder_of_a_detector_begins_as_the_backbone() -> None:
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", num_classes=0)
    network = build_detector("fasterrcnn", "resnet18", 1, SHAPE)
    begin_detector(network, backbone.state_dict())
    own = body_of(network).state_dict()
    assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items())
    (found,) = detect(network, [np.zeros((64, 64, 3), np.uint8)])
    assert found.masks is None
    assert found.textures.shape == (192,)


def test_detectors_are_trained_more_carefully() -> None:
    assert sensible(100, "maskrcnn").learning_rate < sensible(100, "unet").learning_rate
    assert not sensible(100, "maskrcnn").flips


def test_boxes_alone_make_a_model_of_boxes(tmp_path: Path) -> None:
    data = coco(tmp_path / "data", boxes=True)
    common: dict[str, Any] = {
        "task": "detection",
        "size": 64,
        "epochs": 2,
        "batch_size": 4,
        "subject_pattern": r"(P\d+)_",
        "resamples": 20,
        "holdout": 0.3,
        "progress": False,
        "tell": lambda text: None,
        "device": "cpu",
    }
    with pytest.raises(DataError, match="has boxes without outlines"):
        finetune(data, tmp_path / "m", **common)
    done = finetune(data, tmp_path / "model", network="fasterrcnn", **common)
    assert "box AP50" in done.figures.rows
    assert "Dice" not in done.figures.rows
    said = read_outliner(tmp_path / "model")
    assert (said.task, said.network, said.classes) == ("detection", "fasterrcnn", ("cyst",))
    found = outline(tmp_path / "model", data / "images", progress=False, device="cpu")
    assert len(found.frames) == 12
    written = json.loads((found.save(tmp_path / "out") / "outlines.json").read_text())
    assert all(one["segmentation"] == [] for one in written["annotations"])
