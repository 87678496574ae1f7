"""Answers that are the mean over a frame and its mirror image, in every command alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own import CLASSES, write_model
from PIL import Image

from uscl_zoo import network
from uscl_zoo.classifier import prediction
from uscl_zoo.classifier.gradcam import explain, heat_maps


@pytest.fixture(params=[True, False], ids=["flips", "as it is"])
def flips(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def both(tmp_path: Path) -> list[Path]:
    """A picture and its mirror image."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
    picture[:, :24] //= 4
    files = [tmp_path / "left.png", tmp_path / "right.png"]
    for file, array in zip(files, (picture, picture[:, ::-1]), strict=True):
        Image.fromarray(array).save(file)
    return files


def test_a_mirror_image_gets_the_same_answer(flips: bool, both: list[Path], tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", flips=flips, temperature=50.0)
    said = prediction.predict(model, both, device="cpu", progress=False).clips
    left, right = ([answer.probabilities[name] for name in CLASSES] for answer in said)
    assert (left == pytest.approx(right, abs=1e-5)) == flips


def test_explain_says_what_predict_says(flips: bool, both: list[Path], tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", flips=flips, temperature=50.0)
    said = prediction.predict(model, both[:1], device="cpu", progress=False).clips[0]
    explained = explain(str(model), both[0], said.best, device="cpu", progress=False)
    assert explained.scores[0] == pytest.approx(said.probabilities[said.best], abs=1e-5)


def test_heat_of_a_mirror_image_is_mirrored(flips: bool, both: list[Path], tmp_path: Path) -> None:
    loaded = network.load(write_model(tmp_path / "model", flips=flips, temperature=50.0), "cpu")
    frames = [loaded.transform.resize(np.asarray(Image.open(file))) for file in both]
    maps = [heat_maps(loaded, frames, place, progress=False) for place in range(len(CLASSES))]
    left, right = (np.stack([of[side] for of in maps]) for side in (0, 1))
    assert left.max() > 0
    assert np.allclose(left, right[:, :, ::-1], atol=1e-5 * left.max()) == flips
