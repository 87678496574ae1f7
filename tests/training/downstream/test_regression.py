from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from tasks import Ints, guessed, make_task

from uscl_zoo.training.downstream import regression
from uscl_zoo.training.downstream.bootstrap import Task
from uscl_zoo.training.learning.frames import FrameStore


@pytest.fixture
def random_task() -> tuple[Task, Ints]:
    return guessed()


def small_model(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    overlay = {"input_size": (3, 32, 32), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model: torch.nn.Module = timm.create_model(
        "resnet18", pretrained_cfg_overlay=overlay, **{"num_classes": 0, **changes}
    )
    return model


def test_features_are_those_of_normalised_frames(small_store: FrameStore) -> None:
    model = small_model()
    rows = np.array([5, 0, 3])
    found = regression.features(model, small_store, rows)
    frames = torch.from_numpy(small_store.frames[rows]).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    with torch.no_grad():
        expected = model.eval()((frames - mean[:, None, None]) / std[:, None, None])
    assert found.shape == (3, 512)
    assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_features_do_not_depend_on_batches_classifier_or_mode(small_store: FrameStore) -> None:
    rows = np.arange(len(small_store.frames))
    assert len(rows) > 64  # more than one batch
    whole = regression.features(small_model(), small_store, rows)
    alone = regression.features(small_model(), small_store, rows[-1:])
    classified = small_model(num_classes=7).train()
    classified.load_state_dict(small_model().state_dict(), strict=False)
    assert np.allclose(whole[-1:], alone, atol=1e-4)
    assert np.allclose(whole[:2], regression.features(classified, small_store, rows[:2]), atol=1e-4)


def test_the_network_is_frozen(small_store: FrameStore) -> None:
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    regression.features(model, small_store, np.arange(8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_probe_separates_what_is_separable() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], [90, 10])  # weighted equally all the same
    train = rng.normal(size=(100, 5)).astype(np.float32)
    # in units that only standardising makes comparable
    train[:, 2] = 1e-4 * (train[:, 2] + 4 * target)
    assert (regression.fit_predict(train, target, train, 1.0) == target).mean() > 0.9


def test_penalties_grow_weaker() -> None:
    assert list(regression.PENALTIES) == sorted(regression.PENALTIES)


def test_no_subject_chooses_its_own_penalty() -> None:
    """Each subject's frames are predicted by what is best for the others."""
    task = make_task([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5])
    truth = task.test_target
    # the first is right of all but subjects 0 and 1, the second of none but them
    first = np.where(task.test_subject < 2, 1 - truth, truth)
    second = 1 - first
    assert np.array_equal(regression.cross_fit(task, [first, second]), first)
    assert np.array_equal(regression.cross_fit(task, [second, first]), first)


def test_a_subjects_own_frames_do_not_count() -> None:
    task = make_task([0, 0, 0, 1, 1], [0, 0, 0, 1, 2])
    truth = task.test_target
    # best over all frames, and only by those of subject 0
    own = np.where(task.test_subject == 0, truth, 1 - truth)
    chosen = regression.cross_fit(task, [own, 1 - own])
    assert np.array_equal(chosen[:3], (1 - own)[:3])


def test_of_equal_penalties_the_stronger_is_taken(random_task: tuple[Task, Ints]) -> None:
    task, predicted = random_task
    # wrong throughout and as wrong as each other
    first, second = (task.test_target + 1) % 3, (task.test_target + 2) % 3
    assert np.array_equal(regression.cross_fit(task, [first, second]), first)
    assert np.array_equal(regression.cross_fit(task, [predicted]), predicted)
