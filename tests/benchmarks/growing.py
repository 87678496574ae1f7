"""How near a grown ResNet-50 is to the ResNet-18 it was grown from, before any training and after.

    python -m tests.benchmarks.growing STORE [--weights resnet18_uscl.open] [--frames 32 96 256] \
        [--trained resnet50_uscl.open]

Frames of the store's training videos set its norms, frames of the held-out ones are compared: the
cosine of the centred features, of an image alone and in batch statistics, and by stage the error of
the stream as a share of its variance.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from uscl_zoo.training.learning import augment
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.pretraining.growing import grow
from uscl_zoo.training.pretraining.starts import load_start

SIZE, COMPARED = 128, 96


def frames_of(store: FrameStore, split: str, count: int, recipe: Recipe) -> Tensor:
    """Middle frames of videos, evenly over a split."""
    videos = store.select(split)
    chosen = [videos[i] for i in np.linspace(0, len(videos) - 1, count).astype(int)]
    frames = np.stack([store.frames[video.first + video.count // 2] for video in chosen])
    images = augment.shrink(augment.to_float(torch.from_numpy(frames)), SIZE)
    return augment.normalise(images, recipe)


def cosine(one: Tensor, other: Tensor) -> float:
    """Mean over images, of features centred over them."""
    return float(F.cosine_similarity(one - one.mean(0), other - other.mean(0)).mean())


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--weights", default="resnet18_uscl.open")
    parser.add_argument("--frames", type=int, nargs="*", default=[32, 96, 256])
    parser.add_argument("--trained", help="a checkpoint that began so")
    given = parser.parse_args()
    store, start = FrameStore(given.store), load_start(given.weights)
    recipe = replace(Recipe(), mean=start.mean, std=start.std)
    shown = frames_of(store, "heldout", COMPARED, recipe)
    shallow: Any = start.network
    plain = shallow(shown)
    print("| frames | cosine | in batch statistics | error by stage |\n| --- | --- | --- | --- |")
    networks: list[tuple[str, Any]] = []
    for count in given.frames:
        torch.manual_seed(0)
        deep: Any = timm.create_model("resnet50", num_classes=0).eval()
        deep.load_state_dict(grow(shallow, "resnet50", frames_of(store, "train", count, recipe)))
        networks.append((str(count), deep))
    if given.trained:
        networks.append((given.trained, load_start(given.trained).network))
    for name, deep in networks:
        grown = deep(shown)[:, : plain.shape[1]]
        batch = copy.deepcopy(deep).train()(shown)[:, : plain.shape[1]]
        of_batch = copy.deepcopy(shallow).train()(shown)
        errors = []
        streams = [net.maxpool(net.act1(net.bn1(net.conv1(shown)))) for net in (shallow, deep)]
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            streams = [
                getattr(net, stage)(stream)
                for net, stream in zip((shallow, deep), streams, strict=True)
            ]
            own = streams[1][:, : streams[0].shape[1]]
            errors.append(float((own - streams[0]).square().mean() / streams[0].var()))
        print(
            f"| {name} | {cosine(plain, grown):.3f} | {cosine(of_batch, batch):.3f} | "
            + ", ".join(f"{error:.2f}" for error in errors)
            + " |"
        )


if __name__ == "__main__":
    main()
