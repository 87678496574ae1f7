"""Calls that people make who have not read the docs, and what these say should be called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import uscl_zoo
from uscl_zoo.data import Images
from uscl_zoo.errors import UsclError

Call = Callable[[Any, Path], Any]

#: The call, of the package and an image; and what has to be in the one line that it gives.
MISTAKES: dict[str, tuple[Call, str]] = {
    "a path to a transform": (
        lambda u, x: u.create_transform("resnet18_uscl")(str(x)),
        r"is the path of an image.*PIL\.Image\.open.*uscl_zoo\.Embedder\(model\)",
    ),
    "a tensor to a transform": (
        lambda u, x: u.create_transform("resnet18_uscl")(torch.zeros(3, 8, 8)),
        r"permute\(1, 2, 0\)",
    ),
    "several images to a transform": (
        lambda u, x: u.create_transform("resnet18_uscl")(np.zeros((2, 8, 8, 3), np.uint8)),
        r"`FrameTransform\.batch`",
    ),
    "a list to a transform": (
        lambda u, x: u.create_transform("resnet18_uscl")([1, 2]),
        r"an image should be \(H, W\)",
    ),
    "the transform of an image": (
        lambda u, x: u.create_transform(str(x)),
        r"is an image or clip: `uscl_zoo\.Embedder\(\)\('",
    ),
    "the transform of a picture": (
        lambda u, x: u.create_transform(Image.open(x)),
        r"`create_transform\(model\)\(image\)`",
    ),
    "a model of an image": (
        lambda u, x: u.create_model(str(x)),
        r"is an image or clip: `uscl_zoo\.Embedder\(\)\('",
    ),
    "a model of an array": (
        lambda u, x: u.create_model(np.zeros((8, 8))),
        r"by its name, as 'resnet18_uscl', not ndarray; `uscl_zoo\.Embedder\(model\)",
    ),
    "a model of nothing": (lambda u, x: u.create_model(None), "by its name.*NoneType"),
    "a model of a folder that is none": (lambda u, x: u.create_model(x.parent), "no model '"),
    "a model of a name near by": (
        lambda u, x: u.create_model("resnet18-uscl"),
        r"did you mean resnet18_uscl",
    ),
    "a model of timm's": (lambda u, x: u.create_model("resnet18"), r"did you mean resnet18_uscl"),
    "the card of an image": (lambda u, x: u.model_info(str(x)), "is an image or clip"),
    "images before the model": (
        lambda u, x: u.embed(str(x), "resnet18_uscl"),
        r"resnet18_uscl: is a model, and images are wanted here; the model comes first",
    ),
    "a picture before the model": (
        lambda u, x: u.embed(Image.open(x), x),
        r"a model is named, or is a network.*PngImageFile; the model comes before",
    ),
    "predict, images first": (
        lambda u, x: u.predict(str(x), "resnet18_uscl.open"),
        r"resnet18_uscl\.open: is a model, and images are wanted",
    ),
    "explain, image first": (
        lambda u, x: u.explain(str(x), "resnet18_uscl"),
        r"is an image or clip, and a model is wanted here",
    ),
    "an Embedder of an image": (
        lambda u, x: u.Embedder(str(x))(str(x)),
        r"is an image or clip, and a model is wanted here",
    ),
    "predict by a backbone": (
        lambda u, x: u.predict("resnet18_uscl", str(x)),
        r"is no model of `uscl finetune`.*`finetune` makes one of a backbone, and `embed` takes",
    ),
    "predict by a network": (
        lambda u, x: u.predict(timm.create_model("resnet18", num_classes=3), str(x)),
        r"is no model of `uscl finetune`",
    ),
    "a class that there is not": (
        lambda u, x: u.explain("resnet18_uscl", str(x), "benign"),
        r"has no class 'benign'; its classes are none: it has no classifier",
    ),
    "images of a model": (
        lambda u, x: Images("resnet18_uscl"),
        r"is a model, and images are wanted here",
    ),
    "one image to transform": (
        lambda u, x: u.Embedder().transform(str(x)),
        r"several images are wanted, a list for instance",
    ),
    "bytes": (lambda u, x: u.embed("resnet18_uscl", x.read_bytes()), "not bytes"),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mistakes") / "x.png"
    Image.new("L", (8, 8)).save(path)
    return path


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_what_to_call(name: str, image: Path) -> None:
    call, words = MISTAKES[name]
    with pytest.raises(UsclError, match=words) as raised:
        call(uscl_zoo, image)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_called_as_a_model_is_a_file(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet18_uscl").write_bytes(image.read_bytes())
    found = uscl_zoo.embed("resnet18_uscl", "resnet18_uscl", device="cpu", progress=False)
    assert len(found) == 1
