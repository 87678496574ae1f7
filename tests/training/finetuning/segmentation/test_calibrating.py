"""Probabilities of pixels, fitted on logits whose truth is drawn by a rule that is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uscl_zoo.segmentation.model import Pixels
from uscl_zoo.training.finetuning.segmentation.calibrating import fit_pixels
from uscl_zoo.training.finetuning.segmentation.figures import BINS, reliability


def drawn(rule: Pixels, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (images, pixels, classes), and what is there if a rule is right."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (40, 500, classes))
    shares = rule(torch.from_numpy(np.moveaxis(logits, -1, 0))).numpy()
    edges = np.cumsum(shares, axis=0)
    return logits, (rng.random((40, 500)) > edges).sum(axis=0).clip(max=classes - 1)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("rule", [Pixels(1.0, 1.0), Pixels(2.5, 1.0), Pixels(5.0, 1.8)])
def test_the_rule_is_found_again(rule: Pixels, classes: int) -> None:
    logits, target = drawn(rule, classes)
    found = fit_pixels(logits, target, np.arange(40))
    assert found.temperature == pytest.approx(rule.temperature, rel=0.12)
    assert found.exponent == pytest.approx(rule.exponent, abs=0.1)


def test_subjects_count_alike_whatever_they_have() -> None:
    sharp, flat = (drawn(rule, 2) for rule in (Pixels(1.0), Pixels(3.0)))
    logits, target = (np.concatenate(pair) for pair in zip(sharp, flat, strict=True))
    # forty of one subject, and forty of as many others
    whose = np.array([0] * 40 + list(range(1, 41)))
    others = fit_pixels(logits, target, whose)
    assert others.temperature > fit_pixels(logits, target, np.arange(80)).temperature


def test_what_is_likeliest_stays_so_and_nothing_overflows() -> None:
    logits = torch.tensor([[0.0, 3.0, -200.0, 1.0], [0.0, -2.0, 200.0, 1.0 + 1e-7]])
    for rule in (Pixels(), Pixels(5.0, 1.8), Pixels(0.5, 0.6)):
        shares = rule(logits)
        assert torch.isfinite(shares).all()
        assert torch.allclose(shares.sum(dim=0), torch.ones(4))
        assert (shares.argmax(dim=0)[1:3] == torch.tensor([0, 1])).all()
        assert shares[0, 0] == 0.5


def test_a_network_that_is_never_wrong_has_bounds() -> None:
    target = np.arange(200).reshape(4, 50) % 2
    logits = np.stack([5.0 - 10 * target, 10.0 * target - 5], axis=2)
    found = fit_pixels(logits, target, np.arange(4))
    assert 0 < found.temperature < 100
    assert 0.4 < found.exponent < 3.1


def test_pixels_are_counted_by_their_probability() -> None:
    shares = np.array([[[0.02, 0.02], [0.52, 1.0]]])
    count, total, hits = reliability(shares, np.array([[[False, True], [True, True]]]))
    assert count[[0, 10, BINS - 1]].tolist() == [2, 1, 1]
    assert total[[0, 10, BINS - 1]].tolist() == pytest.approx([0.04, 0.52, 1])
    assert hits[[0, 10, BINS - 1]].tolist() == [1, 1, 1]
    assert count.sum() == 4
