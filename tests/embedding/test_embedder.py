"""Images of every kind to vectors, alone and in a pipeline of scikit-learn."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import torch
from conftest import draw_clip
from own import write_model
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

import uscl_zoo
from uscl_zoo import Embedder
from uscl_zoo.embedding.extraction import embed, embed_frames
from uscl_zoo.errors import DataError, UnreadableError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    frame = draw_clip(0, 1, (200, 80, 80))[0]
    return np.asarray(frame)


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return Embedder(model, device="cpu")


@pytest.mark.parametrize(
    "kind", ["path", "text", "image", "uint8", "uint16", "float", "tensor", "floats", "alpha"]
)
def test_one_image_in_any_form_is_one_vector(
    kind: str, embedder: Embedder, picture: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "still.png"
    Image.fromarray(picture).save(path)
    planes = torch.from_numpy(picture).permute(2, 0, 1)
    forms: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "image": Image.fromarray(picture),
        "uint8": picture,
        "uint16": picture.astype(np.uint16) * 257,
        "float": picture / 255,
        "tensor": planes,
        "floats": planes / 255,
        "alpha": np.dstack([picture, np.full(picture.shape[:2], 9, np.uint8)]),
    }
    (expected,) = embed_frames(embedder.model, [picture], device="cpu")
    found = embedder(forms[kind])
    assert found.shape == (512,)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-5)
    # and of several a row each
    assert embedder([forms[kind]] * 2) == pytest.approx(np.stack([expected] * 2), abs=1e-5)


def test_grey_ones(embedder: Embedder, picture: np.ndarray) -> None:
    grey = picture[:, :, 0]
    expected = embedder(np.dstack([grey] * 3))
    for form in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert embedder(form) == pytest.approx(expected, abs=1e-5)
    several = np.stack([grey, grey[::-1]])
    for forms in (several, several[:, :, :, None], torch.from_numpy(several)[:, None]):
        found = embedder(forms)
        assert found.shape == (2, 512)
        assert found[0] == pytest.approx(expected, abs=1e-5)


def test_a_clip_is_the_mean_over_its_frames(embedder: Embedder, clips: Path, model: Path) -> None:
    clip = sorted(clips.iterdir())[0]
    expected = embed(model, clip, pool="clip", device="cpu", progress=False).features[0]
    assert embedder(clip) == pytest.approx(expected, abs=1e-5)
    assert embedder([clip, clip]).shape == (2, 512)


@pytest.mark.parametrize("nothing", [[], np.empty((0, 8, 8, 3), np.uint8)], ids=["list", "array"])
def test_of_nothing_there_is_nothing(nothing: Any, embedder: Embedder) -> None:
    with pytest.raises(DataError, match="there are no images"):
        embedder(nothing)


@pytest.mark.parametrize("wrong", [3, None, {"a": 1}.get, np.zeros((4, 4, 5, 7))])
def test_what_is_no_image(wrong: Any, embedder: Embedder) -> None:
    with pytest.raises(DataError, match=r"an image|of images"):
        embedder(wrong)


def test_files_that_are_none(embedder: Embedder, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"none\.png"):
        embedder(tmp_path / "none.png")
    with pytest.raises(DataError, match="several images"):
        embedder.transform("still.png")


def test_a_step_of_a_pipeline(model: Path, picture: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    target = np.arange(24) % 2
    images = [
        np.clip(picture.astype(int) + 60 * label + rng.integers(0, 9), 0, 255).astype(np.uint8)
        for label in target
    ]
    step = Embedder(model, device="cpu")
    pipeline = make_pipeline(step, LogisticRegression(max_iter=1000))
    scores = cross_val_score(pipeline, images, target, groups=np.arange(24) // 4, cv=GroupKFold(3))
    assert scores.min() > 0.9
    fitted = pipeline.fit(images, target)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(images), fitted.predict(images))
    assert clone(step).get_params() == step.get_params()
    assert list(step.get_feature_names_out()[:2]) == ["e0", "e1"]
    assert len(step.get_feature_names_out()) == 512


def test_what_is_pickled_holds_no_weights(embedder: Embedder, picture: np.ndarray) -> None:
    embedder(picture)
    assert len(pickle.dumps(embedder)) < 1000


def test_another_model_is_another_network(model: Path, tmp_path: Path, picture: np.ndarray) -> None:
    other = write_model(tmp_path / "other", seed=1)
    step = Embedder(model, device="cpu")
    before = step(picture)
    step.set_params(model=other)
    assert not np.allclose(step(picture), before)


def test_it_works_without_scikit_learn(model: Path, tmp_path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(tmp_path / "still.png")
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import uscl_zoo\n"
        "embedder = uscl_zoo.Embedder(sys.argv[1], device='cpu')\n"
        "print(embedder(sys.argv[2]).shape)"
    )
    done = fresh.run(code, model, tmp_path / "still.png")
    assert done.stdout.strip() == "(512,)", done.stderr


def test_it_is_public() -> None:
    assert uscl_zoo.Embedder is Embedder
    assert repr(Embedder()) == "Embedder('resnet18_uscl')"
