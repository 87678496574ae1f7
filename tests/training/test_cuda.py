"""What a GPU would be asked to do, on tensors that have a device and a shape and no content.

Without a GPU nothing here computes. Torch still refuses operands of two devices, and whatever has
to look at a value before it can go on: on a GPU that is a wait, and no CUDA graph can hold it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from uscl_zoo.training.learning.augment import Draws
from uscl_zoo.training.learning.recipe import CONSISTENT, Recipe, load_recipe, replace
from uscl_zoo.training.pretraining.consistency import Ensemble, consistency_loss
from uscl_zoo.training.pretraining.monitor import alignment, uniformity
from uscl_zoo.training.pretraining.network import TwoViews, UsclNetwork
from uscl_zoo.training.pretraining.objective import uscl_loss
from uscl_zoo.training.pretraining.teacher import Lesson, teacher_term
from uscl_zoo.training.pretraining.views import make_views

CUDA = torch.device("cuda", 0)
RECIPE = Recipe(classes=("a", "b", "c"), projection_dim=16)
VIDEOS = 4


def on_gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=CUDA)


CHANGES: list[dict[str, Any]] = [
    {},
    {"mix": "before"},
    {"method": "supervised"},
    {"method": "pi"},
    {"method": "fixmatch"},
    {"method": "simclr", "classes": ()},
    {"batch_statistics": "fused"},
    {"classifier_on": "h"},
    {"teacher_term": "similarities", "classifier_hidden": 8},
    {"teacher_term": "stages", "teachers": ("x",)},
    load_recipe("open_resnet18", ["init=null", "teachers=[]", "classes=[a]"]).__dict__,
]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ", ".join(change)[:40])
def test_a_step_up_to_its_loss_stays_on_the_device(
    change: dict[str, Any], size: int, grey: bool
) -> None:
    recipe = replace(RECIPE, **change)
    frames = 3 * VIDEOS
    with FakeTensorMode():
        with CUDA:
            network = TwoViews(UsclNetwork(recipe, len(recipe.classes or ()), [24]), recipe)
        draws = Draws(
            box=on_gpu(frames, 4),
            flip=on_gpu(frames, dtype=torch.bool),
            factor=on_gpu(frames, 4),
            order=on_gpu(frames, 4, dtype=torch.int64),
            angle=on_gpu(frames),
            gamma=on_gpu(frames),
            speckle=on_gpu(frames),
            start=on_gpu(frames, dtype=torch.int64),
            blur=on_gpu(frames, dtype=torch.bool),
        )
        images, lam = on_gpu(frames, 64, 64, 3, dtype=torch.uint8), on_gpu(VIDEOS, 2)
        view1, view2 = make_views(images, lam, draws, recipe, size, on_gpu(9000), grey)
        assert view1.device == view2.device == CUDA
        assert view1.shape == view2.shape == (VIDEOS, 3, size, size)
        target = on_gpu(VIDEOS, dtype=torch.int64)
        outputs = network(view1, view2)
        lessons = [Lesson(on_gpu(2 * VIDEOS, 24))]
        if outputs.streams:
            streams = tuple(torch.zeros_like(stream) for stream in outputs.streams)
            lessons = [Lesson(torch.zeros_like(outputs.h), streams)]
        taught = teacher_term(outputs, lessons, recipe)
        if recipe.method in CONSISTENT:
            logits = outputs.first[1], outputs.second[1]
            loss = consistency_loss(*logits, target, on_gpu(), recipe)
        else:
            loss = uscl_loss(outputs.first, outputs.second, target, recipe, taught=taught)
        assert loss.total.device == loss.contrastive.device == loss.labelled.device == CUDA
        with pytest.raises(DataDependentOutputException):
            loss.total.item()  # so would any look on the way here


def test_an_ensemble_stays_on_the_device() -> None:
    with FakeTensorMode():
        with CUDA:
            ensemble = Ensemble(9, 3, 0.6)
        video = on_gpu(VIDEOS, dtype=torch.int64)
        ensemble.hear(video, on_gpu(VIDEOS, 3))
        targets, known = ensemble.targets(video)
        assert targets.device == known.device == CUDA


def test_measuring_waits_for_its_figures_alone() -> None:
    video = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    for measure in (alignment, uniformity):
        with FakeTensorMode(), pytest.raises(DataDependentOutputException, match="_local_scalar"):
            measure(on_gpu(8, 16), video)
