"""Numbers and devices as arguments: one line before the work, and the same in every call."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import uscl_zoo
from uscl_zoo.checks import real, seed_of, whole
from uscl_zoo.data.annotations import Annotation
from uscl_zoo.data.splits import draw_folds, hold_out
from uscl_zoo.embedding.atlas import draw_map
from uscl_zoo.errors import DataError
from uscl_zoo.inference import device_named
from uscl_zoo.training.evaluation.evaluate import evaluate
from uscl_zoo.training.evaluation.probe import compare
from uscl_zoo.training.finetuning.finetune import finetune
from uscl_zoo.training.finetuning.segmentation.finetune import finetune as outline
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare

#: Neither whole, nor from 0 to 2³² - 1.
SEEDS = [-1, 2**32, 2**63, 2**128, 1.5, math.nan, "3", None, True]


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_no_seed_is_refused_before_the_work(
    seed: Any, tmp_path: Path, small_store: FrameStore
) -> None:
    absent = tmp_path / "absent"
    known = {"a": Annotation("a", "x")}
    calls: list[Callable[[], Any]] = [
        lambda: finetune(absent, tmp_path / "o", seed=seed),
        lambda: outline(absent, tmp_path / "o", seed=seed),
        lambda: prepare([absent], tmp_path / "o", seed=seed),
        lambda: evaluate([], None, tmp_path / "o", seed=seed),  # type: ignore[arg-type]
        lambda: compare("x", small_store, seed=seed),
        lambda: draw_map(absent, tmp_path / "o.html", seed=seed),
        lambda: hold_out(known, 0.2, seed),
        lambda: draw_folds(["a", "b"] * 5, list("abcdefghij"), 5, seed),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"^`seed` should be a whole number from 0 to 4,29"):
            call()
    assert not list(tmp_path.iterdir())


def test_numbers_of_any_library_are_pythons_afterwards() -> None:
    for seed in (0, 2**32 - 1, np.int64(7), np.uint32(7), np.array(7)):
        assert type(seed_of(seed)) is int
    assert type(real("rate", np.float32(3), 0, math.inf)) is float
    assert type(whole("size", np.int16(64), 32, 4096)) is int


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("holdout", [math.nan, -0.1, 0, 1, 1.5, "a", 1j, True]),
        ("folds", ["5", 2.5, -3, 1, True]),
        ("resamples", [0, -1, 1.5]),
        ("epochs", [-1, 1.5, "1"]),
        ("batch_size", [0, 1, -3, 2.5]),
        ("rate", [math.nan, math.inf, 0, -1, "3"]),
        # found by the card alone, which is written when all is done
        ("size", [0, 7, 31, 31.5, 4097, "64"]),
        ("confidence", [math.nan, -0.1, 2, "a"]),
        ("workers", [0, -1, 1.5]),
        ("learning_rate", [math.nan, 0, -1, math.inf]),
        ("label_smoothing", [math.nan, -1, 2]),
    ],
)
def test_no_training_begins_with_a_number_that_is_none(
    name: str, wrong: list[Any], tmp_path: Path
) -> None:
    for value in wrong:
        with pytest.raises(DataError, match=f"^`{name}` should be a (whole )?number .*, not "):
            finetune(tmp_path / "absent", tmp_path / "o", **{name: value})
        if name not in ("folds", "label_smoothing"):
            with pytest.raises(DataError, match=f"^`{name}` should be a (whole )?number .*, not "):
                outline(tmp_path / "absent", tmp_path / "o", **{name: value})


@pytest.mark.parametrize("size", [0, -1, 2.5, 10**7])
def test_no_store_of_frames_of_no_size(size: Any) -> None:
    with pytest.raises(DataError, match="`size` should be a whole number from 1 to 4,096"):
        Sampling(3, size)


@pytest.mark.parametrize(
    "device",
    [
        *("meta", "nonsense", "", "cpu ", "hpu", "privateuseone", "opengl", "lazy", "cuda:99"),
        *(-1, 3.5, True, ["cpu"], torch.device("meta")),
    ],
)
def test_no_device_is_one_line_in_every_call(device: Any, tmp_path: Path) -> None:
    module = timm.create_model("resnet18", num_classes=0)
    image = np.zeros((40, 48), np.uint8)
    calls: list[Callable[[], Any]] = [
        lambda: device_named(device),
        lambda: uscl_zoo.embed(module, image, device=device),
        lambda: uscl_zoo.predict("resnet18_uscl", image, device=device),
        lambda: uscl_zoo.Embedder("resnet18_uscl", device=device)(image),
        lambda: finetune(tmp_path, tmp_path / "o", device=device),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"^(device .* cannot be used|a device is)") as caught:
            call()
        assert len(str(caught.value)) < 250


def test_a_network_whose_weights_are_nowhere() -> None:
    with torch.device("meta"):
        module = timm.create_model("resnet18", num_classes=0)
    for device in (None, "cpu"):
        with pytest.raises(DataError, match="has weights without numbers"):
            uscl_zoo.embed(module, np.zeros((40, 48), np.uint8), device=device)
