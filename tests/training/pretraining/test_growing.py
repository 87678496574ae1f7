"""A network that is grown computes what the one it was grown from does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import uscl_zoo
from uscl_zoo.training.pretraining.growing import can_grow, grow


def moved(network: nn.Module) -> nn.Module:
    """A network whose norms are those of no identity, as after training."""
    rng = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=rng)
            module.bias.data.uniform_(-0.5, 0.5, generator=rng)
            module.running_mean.normal_(0, 0.2, generator=rng)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=rng)  # type: ignore[union-attr]
    return network.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 4 - 2


@pytest.fixture(scope="module")
def both(images: Tensor) -> tuple[Any, Any]:
    torch.manual_seed(0)
    shallow = moved(timm.create_model("resnet18", num_classes=0, zero_init_last=False))
    deep = timm.create_model("resnet50", num_classes=0).eval()
    deep.load_state_dict(grow(shallow, "resnet50", images))
    return shallow, deep


@torch.no_grad()
def stages(network: Any, images: Tensor) -> list[Tensor]:
    stream = network.maxpool(network.act1(network.bn1(network.conv1(images))))
    found = [stream]
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        found.append(stream := stage(stream))
    return found


def test_stages_with_enough_bottlenecks_are_the_same(both: tuple[Any, Any], images: Tensor) -> None:
    shallow, deep = both
    # given the same stream: its first quarter is the shallow network's, the rest is not read
    for number, name in ((2, "layer2"), (3, "layer3")):
        plain = stages(shallow, images)
        wide = stages(deep, images)[number - 1].clone()
        width = plain[number - 1].shape[1]
        wide[:, :width] = plain[number - 1]
        with torch.no_grad():
            left = getattr(deep, name)(wide)[:, : plain[number].shape[1]]
        # but for a few values beyond those that the offsets were set by
        error = (left - plain[number]).square().mean() / plain[number].var()
        assert error < 1e-3, name


def test_the_whole_is_nearly_the_same_on_images_it_was_set_by(
    both: tuple[Any, Any], images: Tensor
) -> None:
    shallow, deep = both
    with torch.no_grad():
        plain, grown = shallow(images), deep(images)
    for copy in (0, 2, 3):
        own = grown[:, 512 * copy : 512 * (copy + 1)]
        assert nn.functional.cosine_similarity(own, plain).min() > 0.97


def test_training_moves_every_part_of_it(both: tuple[Any, Any], images: Tensor) -> None:
    _, deep = both
    deep.train()
    before = {name: p.detach().clone() for name, p in deep.named_parameters()}
    optimizer = torch.optim.SGD(deep.parameters(), lr=1e-3)
    try:
        for _ in range(3):
            optimizer.zero_grad()
            features = deep(images)
            (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
            optimizer.step()
    finally:
        deep.eval()
    still = [n for n, p in deep.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    deep.load_state_dict(before, strict=False)


def test_a_resnet50_knows_at_once_what_the_resnet18_does(data: Path) -> None:
    """Features of real frames of the bundled checkpoint; of random weights nothing is alike."""
    shallow = uscl_zoo.create_model("resnet18_uscl", pretrained=True, num_classes=0).eval()
    transform = uscl_zoo.create_transform(shallow)
    files = sorted((data / "busi").rglob("*.jpg"))[::7][:96]
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    images = nn.functional.interpolate(images, (128, 128), mode="bilinear", antialias=True)
    deep = timm.create_model("resnet50", num_classes=0).eval()
    deep.load_state_dict(grow(shallow, "resnet50", images[:64]))
    with torch.no_grad():
        plain, grown = shallow(images[64:]), deep(images[64:])[:, :512]
    centred = (values - values.mean(0) for values in (plain, grown))
    assert nn.functional.cosine_similarity(*centred).mean() > 0.85


def test_what_can_be_grown() -> None:
    assert can_grow("resnet18", "resnet50")
    assert not can_grow("resnet50", "resnet18")
    assert not can_grow("resnet18", "resnet18")
