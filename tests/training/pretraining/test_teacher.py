from __future__ import annotations

from collections.abc import Sequence

import pytest
import timm
import torch
from torch import Tensor

from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.pretraining.growing import grow
from uscl_zoo.training.pretraining.network import Outputs, TwoViews, build
from uscl_zoo.training.pretraining.starts import Start
from uscl_zoo.training.pretraining.teacher import (
    Lesson,
    Teachers,
    feature_term,
    similarity_term,
    stage_term,
    teacher_term,
)

RECIPE = Recipe()


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def given(h: Tensor, mapped: Sequence[Tensor] = (), streams: Sequence[Tensor] = ()) -> Outputs:
    """Outputs of which only what teachers read is there."""
    return Outputs((h, None), (h, None), h, tuple(mapped), tuple(streams))


def a_start(mean: float = 0.5, std: float = 0.25) -> Start:
    # timm would leave out the last convolution of every block, by a norm of zero
    network = timm.create_model("resnet18", num_classes=0, zero_init_last=False)
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
    total = teacher_term(given(h, mapped), [Lesson(t) for t in taught], recipe)
    if term == "features":
        alone = [feature_term(m, t) for m, t in zip(mapped, taught, strict=True)]
    else:
        alone = [similarity_term(h, t) for t in taught]
    assert total.item() == pytest.approx(sum(a.item() for a in alone), abs=1e-6)
    total.backward()
    assert h.grad is not None
    assert h.grad.abs().max() > 0


def test_no_teacher_no_term() -> None:
    assert teacher_term(given(rows(4, 3)), [], RECIPE).item() == 0


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
    assert torch.allclose(lesson.features, expected, atol=1e-4)


def test_teachers_are_frozen() -> None:
    start = a_start()
    before = {k: t.clone() for k, t in start.network.state_dict().items()}
    teachers = Teachers([start], RECIPE, torch.device("cpu"), torch.contiguous_format)
    (lesson,) = teachers(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64))
    assert not lesson.features.requires_grad
    for key, tensor in start.network.state_dict().items():
        assert torch.equal(tensor, before[key])


# -------------------------------------------------------------------------------- stage by stage


def maps(width: int, seed: int) -> Tensor:
    return torch.randn(3, width, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_the_stage_term_is_the_distance_as_a_share_of_the_variance() -> None:
    taught, own = maps(4, 0), maps(4, 1)
    features, h = rows(3, 4, 2), rows(3, 4, 3)
    spread = (taught - taught.mean((0, 2, 3), keepdim=True)).square().sum()
    first = (own - taught).square().sum() / spread
    second = (h - features).square().sum() / (features - features.mean(0)).square().sum()
    found = stage_term(given(h, streams=[own]), Lesson(features, (taught,)))
    assert found.item() == pytest.approx(float(first + second) / 2, rel=1e-5)
    assert stage_term(given(features, streams=[taught]), Lesson(features, (taught,))) == 0


def test_of_a_wide_stream_the_parts_that_carry_the_teachers_are_compared() -> None:
    """The first quarter; in the last stage and of h three of them."""
    taught, last, features = maps(4, 0), maps(4, 1), rows(3, 4, 2)
    lesson = Lesson(features, (taught, last))
    free = maps(4, 3)
    wide = torch.cat([taught, free, free, free], 1)
    repeated = torch.cat([last, free, last, last], 1)
    h = torch.cat([features, rows(3, 4, 4), features, features], 1)
    assert stage_term(given(h, streams=[wide, repeated]), lesson) == 0
    other = torch.cat([last, free, free, last], 1)
    assert stage_term(given(h, streams=[wide, other]), lesson) > 0


def test_stages_make_a_grown_network_compute_what_its_teacher_does() -> None:
    """Of a teacher it was grown from; the statistics of its norms stay."""
    start = a_start(0.5, 0.25)
    start.network.eval()
    views = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    recipe = replace(
        RECIPE,
        architecture="resnet50",
        init="x",
        teachers=("x",),
        teacher_term="stages",
        batch_statistics="frozen",
    )
    torch.manual_seed(0)
    grown = grow(start.network, "resnet50", views)
    two_views = TwoViews(build(recipe, 0, grown).train(), recipe)
    lessons = Teachers([start], recipe, torch.device("cpu"), torch.contiguous_format)
    optimizer = torch.optim.Adam(two_views.parameters(), lr=1e-5)
    found = []
    for _ in range(12):
        term = teacher_term(two_views(views[:4], views[4:]), lessons(views[:4], views[4:]), recipe)
        found.append(term.item())
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
    assert found[-1] < 0.8 * found[0]
    after = two_views.network.encoder.state_dict()
    norms = [key for key in after if "running" in key]
    assert norms
    assert all(torch.equal(after[key], grown[key]) for key in norms)
