from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uscl_zoo.errors import MissingDependencyError
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining.moco import Moco
from uscl_zoo.training.pretraining.network import UsclNetwork, build

RECIPE = Recipe(
    method="moco", classes=(), projection_dim=8, temperature=0.2, momentum=0.9, queue=10, seed=3
)


@pytest.fixture
def network() -> UsclNetwork:
    made: UsclNetwork = build(RECIPE, 0)
    return made


def queue(moco: Moco) -> Tensor:
    kept: Tensor = moco.state_dict()["queue"]
    return kept.clone()


def draw(seed: int, count: int = 4) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_info_nce_against_the_queue(network: UsclNetwork) -> None:
    moco = Moco(RECIPE, network)
    z, keys, negatives = draw(0), draw(1), queue(moco)
    total = torch.zeros(())
    for query, key in zip(F.normalize(z), F.normalize(keys), strict=True):
        positive = ((query @ key) / 0.2).exp()
        total -= (positive / (positive + ((negatives @ query) / 0.2).exp().sum())).log()
    assert torch.allclose(moco.loss(z, keys), total / len(z), rtol=1e-5)


def test_the_loss_is_computed_in_float32(network: UsclNetwork) -> None:
    z, keys = draw(0).bfloat16(), draw(1).bfloat16()
    plain = Moco(RECIPE, network).loss(z.float(), keys.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = Moco(RECIPE, network).loss(z, keys)
    assert torch.equal(loss, plain)
    assert loss.dtype == torch.float32


def test_keys_take_the_place_of_the_oldest(network: UsclNetwork) -> None:
    moco = Moco(RECIPE, network)
    expected = queue(moco)
    # the third batch does not fit and is cut, then the queue begins anew
    for seed, place in ((1, slice(0, 4)), (2, slice(4, 8)), (3, slice(8, 10)), (4, slice(0, 4))):
        keys = draw(seed)
        moco.loss(draw(9).requires_grad_(), keys)
        expected[place] = F.normalize(keys)[: place.stop - place.start]
        assert torch.equal(queue(moco), expected)
    # measuring leaves it alone
    moco.loss(draw(9), draw(5))
    assert torch.equal(queue(moco), expected)


def test_the_encoder_follows_and_is_not_trained(network: UsclNetwork) -> None:
    moco = Moco(RECIPE, network)
    before = {name: p.clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    moco.update(network)
    for name, parameter in moco.network.named_parameters():
        assert torch.allclose(parameter, before[name] + 0.1, atol=1e-6)
        assert not parameter.requires_grad
    assert not moco.keys(torch.randn(2, 3, 32, 32)).requires_grad


def test_the_copy_is_of_its_own(network: UsclNetwork) -> None:
    moco = Moco(RECIPE, network)
    before = network.get_buffer("encoder.bn1.running_mean").clone()
    view = torch.randn(2, 3, 32, 32)
    keys = moco.keys(view)
    # its statistics are those of the batch, and move its own averages alone
    assert torch.equal(network.get_buffer("encoder.bn1.running_mean"), before)
    assert not torch.equal(moco.network.get_buffer("encoder.bn1.running_mean"), before)
    assert torch.allclose(network.train()(view)[0], keys, atol=1e-5)


def test_a_state_is_taken_up_again(network: UsclNetwork) -> None:
    moco = Moco(RECIPE, network)

    def go_on(moco: Moco) -> list[Tensor]:
        return [moco.loss(draw(s).requires_grad_(), draw(s + 50)) for s in range(10, 14)]

    for seed in range(3):
        moco.loss(draw(seed).requires_grad_(), draw(seed + 50))
        moco.keys(torch.randn(2, 3, 32, 32))
    state: dict[str, Any] = {
        key: value.clone()
        if isinstance(value, Tensor)
        else {k: v.clone() for k, v in value.items()}
        for key, value in moco.state_dict().items()
    }
    again = Moco(RECIPE, network)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(go_on(moco), go_on(again), strict=True))
    assert torch.equal(queue(moco), queue(again))
    for name, value in moco.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


def test_the_queue_begins_by_the_seed_and_leaves_the_global_state(network: UsclNetwork) -> None:
    before = torch.get_rng_state()
    first, second = (queue(Moco(RECIPE, network)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.allclose(first.norm(dim=1), torch.ones(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_lightly_is_asked_for(network: UsclNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'uscl-zoo\[moco\]'"):
        Moco(RECIPE, network)
