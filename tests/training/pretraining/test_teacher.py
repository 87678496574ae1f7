from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.pretraining.starts import Start
from uscl_zoo.training.pretraining.teacher import (
    Teachers,
    feature_term,
    similarity_term,
    teacher_term,
)

RECIPE = Recipe()


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def a_start(mean: float = 0.5, std: float = 0.25) -> Start:
    network = timm.create_model("resnet18", num_classes=0)
    return Start("x", network, "resnet18", (mean,) * 3, (std,) * 3, "0" * 64, None)


def test_the_feature_term_is_one_less_the_cosine_of_centred_rows() -> None:
    mapped, taught = rows(6, 5), rows(6, 5, 1)
    own, other = mapped - mapped.mean(0), taught - taught.mean(0)
    cosines = [(a @ b) / (a.norm() * b.norm()) for a, b in zip(own, other, strict=True)]
    expected = 1 - sum(cosines) / 6
    assert feature_term(mapped, taught).item() == pytest.approx(float(expected), abs=1e-6)


def test_features_moved_and_stretched_are_the_same_features() -> None:
    taught = rows(6, 5)
    assert feature_term(3 * taught + rows(1, 5, 2), taught).item() == pytest.approx(0, abs=1e-6)
    assert feature_term(-taught, taught).item() == pytest.approx(2, abs=1e-6)


def test_the_similarity_term_is_one_less_the_correlation_of_cosines() -> None:
    h, taught = rows(5, 4), rows(5, 9, 1)
    cosines = []
    for features in (h, taught):
        unit = features - features.mean(0)
        unit = unit / unit.norm(dim=1, keepdim=True)
        pairs = [float(unit[i] @ unit[j]) for i in range(5) for j in range(5) if i != j]
        cosines.append(torch.tensor(pairs))
    correlation = torch.corrcoef(torch.stack(cosines))[0, 1]
    assert similarity_term(h, taught).item() == pytest.approx(1 - correlation.item(), abs=1e-5)


def test_similarities_do_not_change_under_a_rotation() -> None:
    h = rows(8, 6)
    turned = h @ torch.linalg.qr(rows(6, 6, 3)).Q
    assert similarity_term(turned, h).item() == pytest.approx(0, abs=1e-5)
    assert similarity_term(rows(8, 6, 4), h).item() > 0.5


@pytest.mark.parametrize("term", ["features", "similarities"])
def test_terms_of_several_teachers_add_up_and_reach_the_features(term: str) -> None:
    recipe = replace(RECIPE, teacher_term=term)
    h = rows(6, 5).requires_grad_()
    mapped = [h @ rows(5, width, width) for width in (4, 7)] if term == "features" else []
    taught = [rows(6, width, 20 + width) for width in (4, 7)]
    total = teacher_term(h, mapped, taught, recipe)
    if term == "features":
        alone = [feature_term(m, t) for m, t in zip(mapped, taught, strict=True)]
    else:
        alone = [similarity_term(h, t) for t in taught]
    assert total.item() == pytest.approx(sum(a.item() for a in alone), abs=1e-6)
    total.backward()
    assert h.grad is not None
    assert h.grad.abs().max() > 0


def test_no_teacher_no_term() -> None:
    assert teacher_term(rows(4, 3), [], [], RECIPE).item() == 0


@torch.no_grad()
@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.25), (0.4, 0.2)])
def test_a_teacher_sees_the_views_as_it_was_made_to(mean: float, std: float) -> None:
    start = a_start(mean, std)
    teachers = Teachers([start], RECIPE, torch.device("cpu"), torch.channels_last)
    assert teachers.features == [512]
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    views = (pixels - 0.5) / 0.25
    (lesson,) = teachers(views[:2], views[2:])
    expected = start.network((pixels - mean) / std)
    assert torch.allclose(lesson, expected, atol=1e-4)


def test_teachers_are_frozen() -> None:
    start = a_start()
    before = {k: t.clone() for k, t in start.network.state_dict().items()}
    teachers = Teachers([start], RECIPE, torch.device("cpu"), torch.contiguous_format)
    (lesson,) = teachers(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64))
    assert not lesson.requires_grad
    for key, tensor in start.network.state_dict().items():
        assert torch.equal(tensor, before[key])
