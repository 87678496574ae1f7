from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from noise import images, theirs_jitter

from uscl_zoo.training.learning import augment, jitter


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_jitter_is_torchvisions_in_every_order(strength: str) -> None:
    orders = list(permutations(range(4)))
    frames = augment.to_float(torch.from_numpy(images(len(orders), side=32)))
    rng = np.random.default_rng(1)
    spread = np.array([0.1, 0.1, 0.1, 0.02] if strength == "weak" else [0.8, 0.8, 0.8, 0.2])
    factor = np.array([1, 1, 1, 0]) + spread * rng.uniform(-1, 1, (len(orders), 4))
    ours = jitter.jitter(frames, torch.from_numpy(factor).float(), torch.tensor(orders))
    for one, frame, f, order in zip(ours, frames, factor.tolist(), orders, strict=True):
        assert torch.allclose(one, theirs_jitter(frame, f, order), atol=2e-5), order


def test_jitter_leaves_its_input_alone() -> None:
    frames = augment.to_float(torch.from_numpy(images(2)))
    before = frames.clone()
    jitter.jitter(frames, torch.full((2, 4), 0.3), torch.arange(4).expand(2, 4))
    assert torch.equal(frames, before)
