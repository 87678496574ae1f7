from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining.objective import labelled_term, nt_xent, uscl_loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(z1: NDArray[np.float64], z2: NDArray[np.float64], temperature: float) -> float:
    """The mean over anchors of −log(exp(s_ip/τ) / Σ_{j≠i} exp(s_ij/τ)), written out."""
    z = [row / np.sqrt(row @ row) for row in (*z1, *z2)]
    n, total = len(z1), 0.0
    for i in range(2 * n):
        positive = i + n if i < n else i - n
        terms = [np.exp(z[i] @ z[j] / temperature) for j in range(2 * n) if j != i]
        total -= np.log(np.exp(z[i] @ z[positive] / temperature) / sum(terms))
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_nt_xent_is_its_definition(count: int, temperature: float) -> None:
    z1, z2 = normal(count, 16), 5 * normal(count, 16, seed=1)
    expected = by_definition(z1.double().numpy(), z2.double().numpy(), temperature)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_nt_xent_of_views_that_agree_is_small_and_of_strangers_large() -> None:
    z = torch.eye(8)
    agreeing, strangers = nt_xent(z, z, 0.05), nt_xent(z, z.roll(1, 0), 0.05)
    assert agreeing.item() < 1e-6
    assert strangers.item() > 15


def test_nt_xent_knows_neither_order_nor_scale() -> None:
    z1, z2 = normal(6, 8), normal(6, 8, seed=1)
    loss = nt_xent(z1, z2, 0.5)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    for other in (
        nt_xent(z2, z1, 0.5),
        nt_xent(3 * z1, z2 / 7, 0.5),
        nt_xent(z1[order], z2[order], 0.5),
    ):
        assert torch.allclose(loss, other, rtol=1e-5)


def test_nt_xent_is_computed_in_single_precision() -> None:
    z1, z2 = normal(8, 16).bfloat16(), normal(8, 16, seed=1).bfloat16()
    loss = nt_xent(z1, z2, 0.5)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, nt_xent(z1.float(), z2.float(), 0.5))
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert torch.equal(loss, nt_xent(z1, z2, 0.5))


def test_nt_xent_has_a_gradient_at_a_batch_of_one() -> None:
    z1, z2 = normal(1, 4).requires_grad_(), normal(1, 4, seed=1)
    nt_xent(z1, z2, 0.5).backward()
    assert z1.grad is not None
    assert z1.grad.isfinite().all()


@pytest.mark.parametrize(
    "target", [[0, 1, 2, 1], [0, -1, 2, -1], [-1, -1, -1, 2]], ids=["all", "half", "one"]
)
def test_the_labelled_term_is_the_cross_entropy_of_the_labelled(target: list[int]) -> None:
    logits1, logits2 = normal(4, 3), normal(4, 3, seed=1)
    targets = torch.tensor(target)
    chosen = targets >= 0
    expected = sum(F.cross_entropy(x[chosen], targets[chosen]) for x in (logits1, logits2))
    assert torch.allclose(labelled_term(logits1, logits2, targets), torch.as_tensor(expected))


def test_the_labelled_term_of_none_is_zero_with_no_gradient() -> None:
    logits1, logits2 = normal(4, 3).requires_grad_(), normal(4, 3, seed=1).requires_grad_()
    term = labelled_term(logits1, logits2, torch.full((4,), -1))
    term.backward()
    assert term.item() == 0
    assert logits1.grad is not None
    assert logits2.grad is not None
    assert not logits1.grad.any()
    assert not logits2.grad.any()


def test_the_loss_is_the_sum_of_its_terms() -> None:
    z1, z2, logits1, logits2 = (
        normal(4, 8),
        normal(4, 8, seed=1),
        normal(4, 3),
        normal(4, 3, seed=2),
    )
    target = torch.tensor([0, 1, -1, 2])
    recipe = Recipe(class_weight=0.7, temperature=0.3)
    loss = uscl_loss((z1, logits1), (z2, logits2), target, recipe)
    assert torch.equal(loss.contrastive, nt_xent(z1, z2, 0.3))
    assert torch.equal(loss.labelled, labelled_term(logits1, logits2, target))
    assert torch.allclose(loss.total, loss.contrastive + 0.7 * loss.labelled)


@pytest.mark.parametrize("method", ["uscl", "simclr", "pair", "supervised"])
def test_which_terms_of_the_loss_count(method: str) -> None:
    """By their gradients, where the logits do not come from z."""
    z1, z2 = normal(4, 8).requires_grad_(), normal(4, 8, seed=1)
    logits1, logits2 = normal(4, 3).requires_grad_(), normal(4, 3, seed=2)
    recipe = Recipe(method=method, class_weight=0.7)
    loss = uscl_loss((z1, logits1), (z2, logits2), torch.tensor([0, 1, -1, 2]), recipe)
    contrastive = loss.contrastive if method != "supervised" else 0
    assert torch.allclose(loss.total, contrastive + 0.7 * loss.labelled)
    assert loss.contrastive > 0
    loss.total.backward()
    assert (z1.grad is not None) == (method != "supervised")
    assert logits1.grad is not None
    assert logits1.grad.any()


def test_without_a_classifier_the_loss_is_the_contrast() -> None:
    z1, z2 = normal(4, 8), normal(4, 8, seed=1)
    loss = uscl_loss((z1, None), (z2, None), torch.full((4,), -1), Recipe())
    assert torch.equal(loss.total, nt_xent(z1, z2, 0.5))
    assert loss.labelled.item() == 0
