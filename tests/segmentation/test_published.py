"""A model that outlines, published: what others get, and that it answers the same there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import outlined as made
import pytest
import torch
import trial
from hub import Hub
from huggingface_hub import ModelCard

from uscl_zoo import publish as publishing
from uscl_zoo.errors import CardError, DataError, DigestError
from uscl_zoo.segmentation import model as models
from uscl_zoo.segmentation.prediction import outline
from uscl_zoo.training.finetuning.segmentation.finetune import finetune

REPO = "me/lesions"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("images") / "data", 16)


def trained(images: Path, folder: Path, **more: Any) -> Path:
    finetune(
        images,
        folder,
        size=64,
        epochs=1,
        subject_pattern=r"(P\d+)_",
        licence="CC-BY-NC-4.0",
        resamples=20,
        confidence=0,
        device="cpu",
        progress=False,
        tell=lambda text: None,
        **more,
    )
    return folder


@pytest.fixture(scope="module")
def outliner(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(images, tmp_path_factory.mktemp("own") / "lesions")


@pytest.fixture(scope="module")
def built(outliner: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publishing.build(str(outliner), tmp_path_factory.mktemp("repository") / "lesions", REPO)


def test_whose_the_images_are_stays_at_home(outliner: Path, built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "predict.json"),
        *("reliability.png", "statistics.safetensors"),
    }
    own, said = models.read_outliner(outliner), models.read_outliner(built)
    assert own.training.held_out_subjects
    assert said.training.held_out_subjects == ()
    assert said.weights_sha256 == own.weights_sha256
    for name in ("README.md", "predict.json", "config.json"):
        text = (built / name).read_text(encoding="utf-8")
        assert not re.search(r"(?<!A)P\d\d\b", text)


def test_the_page_says_what_it_is_and_how_it_is_loaded(built: Path) -> None:
    card = ModelCard.load(built / "README.md")
    assert card.data.get("license") == "cc-by-nc-4.0"
    assert card.data.get("library_name") == "segmentation-models-pytorch"
    assert card.data.get("pipeline_tag") == "image-segmentation"
    for told in (
        f'smp.from_pretrained("{REPO}")',
        f"uscl predict hf-hub:{REPO} FILES",
        "gives each pixel a class: lesion, or none",
        "](reliability.png)",
        "never trained on: the frames of ",
        "| Dice |",
        models.read_outliner(built).weights_sha256,
        "into a product? No",
    ):
        assert told in card.content, told


def test_a_licence_is_asked_for_and_damage_refused(outliner: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(outliner, tmp_path / "bare"))
    said = json.loads((bare / "predict.json").read_text())
    (bare / "predict.json").write_text(json.dumps(said | {"licence": None}))
    with pytest.raises(CardError, match="states no licence"):
        publishing.build(str(bare), tmp_path / "out")
    with pytest.raises(CardError, match=r"states CC-BY-NC-4\.0, not MIT"):
        publishing.build(str(outliner), tmp_path / "out", licence="MIT")
    (bare / "model.safetensors").unlink()
    with pytest.raises(DataError, match="is not there"):
        publishing.build(str(bare), tmp_path / "out", licence="MIT")
    (bare / "model.safetensors").symlink_to(outliner / "model.safetensors")
    with pytest.raises(DataError, match="is a link"):
        publishing.build(str(bare), tmp_path / "out", licence="MIT")
    (bare / "model.safetensors").unlink()
    content = bytearray((outliner / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (bare / "model.safetensors").write_bytes(content)
    with pytest.raises(DigestError):
        publishing.build(str(bare), tmp_path / "out", licence="MIT")
    assert not (tmp_path / "out").exists()


PUBLISH = """
import sys
from uscl_zoo import publish
print(publish.publish(sys.argv[1], "me"))
"""
#: The answers of what `hf-hub:` names, and of the last the line of the command.
ASK = """
import json, sys
import uscl_zoo
from uscl_zoo.cli import main
image, *names = sys.argv[1:]
for name in names:
    try:
        found = uscl_zoo.outline(name, image, progress=False, device="cpu")
        print(json.dumps(found.coco()["annotations"]))
    except uscl_zoo.errors.HubError as error:
        print(error)
main(["predict", names[-1], image, "--device", "cpu"])
"""


def test_the_hub_gives_what_was_published(outliner: Path, images: Path, tmp_path: Path) -> None:
    one = images / "P00_1.png"
    own = outline(f"local-dir:{outliner}", one, progress=False, device="cpu")
    expected = json.loads(json.dumps(own.coco()["annotations"]))
    assert expected
    with Hub() as hub:
        settings: dict[str, object] = {**hub.environment(), "HOME": tmp_path}
        settings["HF_HOME"] = tmp_path / "hf"
        told = trial.python("-c", PUBLISH, str(outliner), environment=settings)
        commit = hub.repos[REPO].refs["main"]
        assert f"uscl predict hf-hub:{REPO}@{commit} FILES..." in told
        settings["HF_HOME"] = tmp_path / "empty"
        names = ("hf-hub:me/none", f"hf-hub:{REPO}", f"hf-hub:{REPO}@{commit}")
        absent, *answers, line = trial.python(
            "-c", ASK, str(one), *names, environment=settings
        ).splitlines()
        assert absent.startswith("me/none: ")
        assert [json.loads(answer) for answer in answers] == [expected] * 2
        assert line == next(own.lines())
        # with smp and timm alone, in a process that cannot import this package
        frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        torch.save(frames, tmp_path / "frames.pt")
        (tmp_path / "seen").mkdir()
        trial.python(
            str(ROOT / "tests" / "plain.py"),
            *(REPO, str(outliner), str(tmp_path / "frames.pt"), str(tmp_path / "seen")),
            *("smp_hub", "smp_folder"),
            environment=settings,
        )
        with torch.inference_mode():
            right = models.load_outliner(outliner, "cpu").module(frames)
        for row in ("smp_hub", "smp_folder"):
            failed = tmp_path / "seen" / f"{row}.txt"
            assert not failed.exists(), failed.read_text()
            assert torch.equal(torch.load(tmp_path / "seen" / f"{row}.pt"), right)
    # the server is gone, and what was downloaded is there
    again, _ = trial.python("-c", ASK, str(one), names[1], environment=settings).splitlines()
    assert json.loads(again) == expected
