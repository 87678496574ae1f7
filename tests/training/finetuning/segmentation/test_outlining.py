"""From images and masks to a model that outlines, and what it says of files."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import outlined as made
import pydicom
import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import make_card
from PIL import Image
from safetensors.torch import load_file, save

import uscl_zoo
from uscl_zoo.answers import UnguardedWarning, task_of
from uscl_zoo.cli import main
from uscl_zoo.errors import (
    CardError,
    CheckpointError,
    DataError,
    DigestError,
    UnreadableError,
)
from uscl_zoo.segmentation import model as models
from uscl_zoo.segmentation.prediction import outline
from uscl_zoo.segmentation.regions import region_of
from uscl_zoo.signals import Interrupted
from uscl_zoo.training.finetuning.segmentation import finetune as house
from uscl_zoo.training.finetuning.segmentation.figures import judge
from uscl_zoo.training.finetuning.segmentation.fit import LessonLearner
from uscl_zoo.training.finetuning.segmentation.gather import Decoded, doubts, gather
from uscl_zoo.training.finetuning.segmentation.outlined import find_outlined
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.clip import Facts
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Card, Source, Training

QUIET: dict[str, Any] = {"progress": False, "tell": lambda text: None, "device": "cpu"}
SMALL: dict[str, Any] = {
    "size": 64,
    "epochs": 6,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "subject_pattern": r"(P\d+)_",
    "resamples": 50,
    **QUIET,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("outlined") / "data")


@pytest.fixture(scope="module")
def outliner(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliner") / "model"
    house.finetune(images, folder, **SMALL)
    return folder


def test_it_learned_to_outline(outliner: Path) -> None:
    said = models.read_outliner(outliner)
    dice = next(m for m in said.metrics if (m.metric, m.unit) == ("Dice", "image"))
    assert dice.value > 0.5
    assert said.classes == ("lesion",)
    assert said.training.held_out_subjects
    assert not (outliner / "work").exists()


def test_figures_can_be_computed_again_from_what_is_left(outliner: Path) -> None:
    with (outliner / "heldout.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    own = [float(row["dice"]) for row in rows if int(row["there"])]
    said = models.read_outliner(outliner)
    dice = next(m for m in said.metrics if (m.metric, m.unit) == ("Dice", "image"))
    assert dice.value == pytest.approx(np.mean(own), abs=1e-3)
    assert {row["subject"] for row in rows} == set(said.training.held_out_subjects)


def test_it_loads_without_the_package(outliner: Path, images: Path) -> None:
    network = smp.from_pretrained(outliner)
    config = json.loads((outliner / "config.json").read_text())
    assert config["encoder_name"] == "tu-resnet18"
    own = models.load_outliner(outliner, "cpu")
    one = own.transform(Image.open(images / "P00_1.png"))[None]
    with torch.inference_mode():
        assert torch.equal(network.eval()(one), own.module(one))


def test_masks_and_tables_are_written(outliner: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    main(["predict", str(outliner), str(images), "-o", str(folder), "--device", "cpu"])
    with (folder / "outlines.csv").open() as stream:
        rows = {Path(row["source"]).name: row for row in csv.DictReader(stream)}
    assert len(rows) == 24
    coco = json.loads((folder / "outlines.json").read_text())
    for image in coco["images"]:
        name = Path(image["file_name"])
        mask = np.asarray(Image.open(folder / f"{name.stem}_mask.png"))
        assert mask.shape == (image["height"], image["width"])
        own = [a for a in coco["annotations"] if a["image_id"] == image["id"] and a["said"]]
        assert (mask > 0).sum() == sum(a["area"] for a in own)
        row = rows[name.name]
        assert row["found"] == ("lesion" if own else "none")
        assert int(row["area_px"]) == (mask > 0).sum()
        assert row["area_mm2"] == ""
        assert Image.open(folder / f"{name.stem}_overlay.png").mode == "RGB"
    assert any(row["found"] == "none" for row in rows.values())
    # again, over its own; not over what is another's
    main(["predict", str(outliner), str(images), "-o", str(folder), "--device", "cpu"])
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        outline(outliner, images, progress=False, device="cpu").save(folder)


def test_a_clip_has_a_mask_a_frame(outliner: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    for i in range(4):
        made.draw(i, empty=i == 2)[0].save(clip / f"f{i}.png")
    found = outline(outliner, clip, progress=False, device="cpu", confidence=0.1)
    assert [frame.frame for frame in found.frames] == [0, 1, 2, 3]
    folder = found.save(tmp_path / "out")
    with Image.open(folder / "clip_mask.gif") as film:
        assert getattr(film, "n_frames", 1) == 4
        for place, frame in enumerate(found.frames):
            film.seek(place)
            shown = np.asarray(film.convert("RGB")).any(axis=2)
            assert (shown == (frame.labels > 0)).all()
    assert (folder / "clip_overlay.mp4").stat().st_size > 1000
    (line,) = found.lines()
    assert "of 4 frames" in line or "none" in line


def test_areas_are_in_mm_where_the_file_says_how_large_a_pixel_is(
    outliner: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    from uscl_zoo.segmentation import prediction

    real = reading.read

    def scaled(path: Path) -> Any:
        clip = real(path)
        return type(clip)(clip.decode, clip.source, Facts(spacing=(0.5, 0.25)))

    monkeypatch.setattr(prediction, "read", scaled)
    found = outline(outliner, images / "P00_1.png", progress=False, device="cpu", confidence=0.0)
    (region, *_) = found.coco()["annotations"]
    assert region["area_mm2"] == pytest.approx(region["area"] * 0.125, abs=0.001)
    assert "mm²" in next(found.lines())


def test_dicom_with_regions_is_measured_in_mm(outliner: Path, data: Path, tmp_path: Path) -> None:
    """Of a real scan, whose calibrated region says 0.26 mm a pixel."""
    scan = data / "dicom" / "OBXXXX1A.dcm"
    region = pydicom.dcmread(scan).SequenceOfUltrasoundRegions[0]
    assert region.PhysicalUnitsXDirection == 3  # cm
    side = 10 * region.PhysicalDeltaX
    clip = data / "dicom" / "OBXXXX1A_2frame.dcm"
    found = outline(outliner, [scan, clip], progress=False, device="cpu", confidence=0.0)
    assert [frame.spacing for frame in found.frames] == [pytest.approx((side, side))] * 3
    for one in found.coco()["annotations"]:
        assert one["area_mm2"] == pytest.approx(one["area"] * side**2, rel=1e-4)
    # and so is what is judged: a square that is said 10 pixels to the right of where it is
    images = tmp_path / "scans"
    images.mkdir()
    there = np.zeros((600, 800), np.uint8)
    there[300:340, 400:440] = 255
    for number in range(3):
        shutil.copy(scan, images / f"P{number}_a.dcm")
        Image.fromarray(there).save(images / f"P{number}_a_mask.png")
    mine = find_outlined(images, subject_pattern=r"(P\d+)_")
    shape = FrameTransform((64, 64), (0.5,) * 3, (0.25,) * 3)
    ready = gather(
        mine, tmp_path / "s", shape, lambda text: None, holdout=0.3, seed=0, progress=False
    )
    assert ready.spacing[0] == pytest.approx((side, side))
    said = [region_of(np.roll(there > 0, 10, axis=1), 0)]
    regions = mine.regions(mine.items[0], (600, 800))
    case = judge(
        *(0, "", "", (600, 800), ready.spacing[0], regions, said, 0.5, 1, 0.0, False)  # type: ignore[arg-type]
    )
    assert case.distance_mm[0] == pytest.approx(10 * side)


def test_a_confidence_of_one_finds_nothing(outliner: Path, images: Path) -> None:
    found = outline(outliner, images / "P00_1.png", progress=False, device="cpu", confidence=1.0)
    assert not found.frames[0].labels.any()
    assert found.frames[0].unsure
    assert ": none (lesion" in next(found.lines())


def test_a_damaged_model_is_refused(outliner: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(outliner, tmp_path / "model"))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DigestError, match="is not the file"):
        models.load_outliner(folder, "cpu")


def say(folder: Path, **changes: Any) -> None:
    """Change what a model says of itself."""
    path = folder / "predict.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"trust": {}}, "trust: lacks score, area, offset, regions"),
        ({"trust": {"score": 1.0, "offset": 0.0}}, "trust: lacks area, regions"),
        ({"temperature": 1e308}, "temperature: should be from 0.01 to 100"),
        ({"encoder": "x"}, "encoder: 'x' is none of which a unet can be built"),
    ],
)
def test_a_model_that_says_what_cannot_be_is_refused(
    outliner: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    folder = Path(shutil.copytree(outliner, tmp_path / "model"))
    say(folder, **changes)
    with pytest.raises(CardError, match=match):
        models.load_outliner(folder, "cpu")


def test_weights_that_are_no_numbers_and_statistics_of_another_width(
    outliner: Path, images: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(outliner, tmp_path / "model"))
    content = save({"mean": torch.zeros(5).double(), "precision": torch.eye(5).double()})
    (folder / "statistics.safetensors").write_bytes(content)
    say(folder, statistics_sha256=sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match="statistics of 5 numbers"):
        outline(folder, images, device="cpu", progress=False)
    state = load_file(folder / "model.safetensors")
    content = save(
        {
            key: one * float("nan") if one.dtype.is_floating_point else one
            for key, one in state.items()
        }
    )
    (folder / "model.safetensors").write_bytes(content)
    say(folder, weights_sha256=sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match="not finite"):
        models.load_outliner(folder, "cpu")


def test_a_guard_that_lets_all_pass_is_said(outliner: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(outliner, tmp_path / "model"))
    say(folder, threshold=1e308)
    with pytest.warns(UnguardedWarning, match="lets every image pass"):
        models.load_outliner(folder, "cpu")


def test_what_tells_classes_refuses_a_model_that_outlines(outliner: Path, images: Path) -> None:
    assert task_of(outliner) == "segmentation"
    with pytest.raises(DataError, match="outlines"):
        uscl_zoo.predict(outliner, images)


def test_an_interrupted_run_ends_with_the_same_weights(
    images: Path, outliner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LessonLearner.step
    count = 0

    def interrupted(self: Any) -> None:
        nonlocal count
        step(self)
        count += 1
        if count == 12:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LessonLearner, "step", interrupted)
    with pytest.raises(Interrupted, match="continues it"):
        house.finetune(images, tmp_path / "model", **SMALL)
    assert not (tmp_path / "model" / "predict.json").exists()
    with pytest.raises(DataError, match="other data or settings"):
        house.finetune(images, tmp_path / "model", **SMALL | {"epochs": 5})
    house.finetune(images, tmp_path / "model", **SMALL)
    one, other = (load_file(f / "model.safetensors") for f in (outliner, tmp_path / "model"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_encoder_begins_as_the_backbone(images: Path, installed: Callable[[], Card]) -> None:
    from uscl_zoo.segmentation.networks import begin_with, build_segmenter

    installed()
    backbone = uscl_zoo.create_model("resnet18_uscl.trial", pretrained=True)
    for name in ("unet", "fpn", "deeplabv3plus"):
        network: Any = build_segmenter(name, "resnet18", 2)
        begin_with(network, backbone.state_dict())
        own = network.encoder.model.state_dict()
        assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items())


def test_a_licence_looser_than_the_backbones_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`licence=CC0-1.0`: CC0-1\.0 is looser than"):
        house.finetune(images, tmp_path / "model", licence="CC0-1.0", tell=print)


def test_options_of_other_tasks_are_refused(images: Path, tmp_path: Path, capsys: Any) -> None:
    common = ["finetune", "--data", str(images), "-o", str(tmp_path / "m"), "--task"]
    for options, told in (
        (["segmentation", "--label-smoothing", "0.1"], "--label-smoothing has no meaning with"),
        (["segmentation", "--network", "ynet"], "--network should be one of unet"),
        (["segmentation", "--size", "100"], "--size should be a multiple of 32"),
        (
            ["classification", "--network", "unet"],
            "--network is of what outlines",
        ),
    ):
        with pytest.raises(SystemExit):
            main([*common, *options])
        assert told in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_images_without_a_mask_are_left_out_and_said(tmp_path: Path) -> None:
    data = made.write(tmp_path / "data", 4)
    made.draw(9)[0].save(data / "P09_9.png")
    found = find_outlined(data)
    assert len(found.items) == 4
    assert any("1 images without a mask left out" in note for note in found.notes)
    assert any("each image counts as its own" in note for note in found.notes)
    with pytest.raises(DataError, match="has no masks"):
        find_outlined(data / "P09_9.png")


@pytest.mark.parametrize("name", ["images_and_masks", "masks", "GT"])
def test_data_may_be_called_as_masks_are(tmp_path: Path, name: str) -> None:
    assert len(find_outlined(made.write(tmp_path / name, 4)).items) == 4


def test_a_mask_of_another_shape_is_skipped_and_said(tmp_path: Path) -> None:
    data = made.write(tmp_path / "data", 12)
    Image.new("1", (10, 10)).save(data / "P00_1_mask.png")
    notes: list[str] = []
    shape = FrameTransform((64, 64), (0.5,) * 3, (0.25,) * 3)
    found = find_outlined(data, subject_pattern=r"(P\d+)_")
    ready = gather(found, tmp_path / "s", shape, notes.append, holdout=0.3, seed=0, progress=False)
    assert len(ready.items) == 11
    assert any("is of 10 x 10 pixels, and its image of 120 x 96" in note for note in notes)
    sides = [set(ready.subjects(rows)) for rows in (ready.train, ready.judged)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert ready.labels.max() == 1
    assert ready.frames.shape == (12, 64, 64, 3)


def test_a_damaged_mask_costs_its_image_and_all_of_them_the_run(tmp_path: Path) -> None:
    data = made.write(tmp_path / "data", 12)
    masks = sorted(data.glob("*_mask.png"))
    masks[1].write_bytes(b"no image")
    notes: list[str] = []
    shape = FrameTransform((64, 64), (0.5,) * 3, (0.25,) * 3)
    found = find_outlined(data, subject_pattern=r"(P\d+)_")
    ready = gather(found, tmp_path / "s", shape, notes.append, holdout=0.3, seed=0, progress=False)
    assert len(ready.items) == 11
    assert any(f"{masks[1].name}: cannot be read as a mask" in note for note in notes)
    for mask in masks:
        mask.write_bytes(b"no image")
    with pytest.raises(UnreadableError, match="cannot be read as a mask"):
        find_outlined(data)


@pytest.mark.parametrize(
    ("size", "pattern", "told"),
    [
        ((120, 96), r"(P\d+)_", "data: every mask is empty"),
        ((50, 33), r"(P\d+)_", "none of 8 images can be read and has something outlined"),
        (None, "(P)", "at least three subjects"),
    ],
)
def test_of_data_that_cannot_serve_nothing_is_left(
    tmp_path: Path, size: tuple[int, int] | None, pattern: str, told: str
) -> None:
    data = made.write(tmp_path / "data", 8)
    for number, mask in enumerate(sorted(data.glob("*_mask.png"))):
        if size is None:
            break
        # of another shape some show something, or there would be nothing to be skipped
        Image.new("1", size, number % 2 if size != (120, 96) else 0).save(mask)
    with pytest.raises(DataError, match=told):
        house.finetune(data, tmp_path / "m", **SMALL | {"subject_pattern": pattern})
    assert not (tmp_path / "m").exists()


def test_what_the_backbone_has_seen_is_said(tmp_path: Path) -> None:
    data = made.write(tmp_path / "collection of ours", 12)
    shape = FrameTransform((64, 64), (0.5,) * 3, (0.25,) * 3)
    found = find_outlined(data, subject_pattern=r"(P\d+)_")

    def decoded() -> Decoded:
        held_out = ["P00", "P05"]
        return gather(
            found,
            tmp_path / "store",
            shape,
            lambda text: None,
            holdout=0.3,
            seed=0,
            held_out=held_out,
            progress=False,
        )

    source = Source(found.name, None, None, 12, 12, 6, {}, {})
    card = make_card(training=Training("uscl", (source,), held_out_subjects=("P05",)))
    (told,) = doubts(found, decoded(), card)
    assert told.startswith("in corpus (by name): ")
    assert "of the 2 subjects it is judged on, its card names 1 as held out" in told
    assert doubts(found, decoded(), make_card()) == []
    shutil.copy(data / "P00_1.png", data / "P03_7.png")
    assert doubts(found, decoded(), None) == ["1 images are there twice, on two sides of the split"]
