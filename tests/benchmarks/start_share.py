"""What a share of the starting weights in a backbone is worth: points on the line between both.

    python -m tests.benchmarks.start_share resnet18_uscl.open stores/busi224 stores/open \
        --shares 0 0.15 0.25 0.4 1

The line goes through what the recipe of the backbone (`open_` and its architecture) begins with,
grown if need be, and its weights as shipped, which are themselves a mean (`start_share` on the
card). Macro AUROC of frozen features by the protocols of `uscl evaluate`, without intervals: BUSI,
both halves of its groups by seed, and the subjects of the corpus that were held out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import uscl_zoo
from uscl_zoo.training.downstream.regression import features
from uscl_zoo.training.evaluation.protocols import quick_figures
from uscl_zoo.training.learning.frames import FrameStore, Video
from uscl_zoo.training.learning.recipe import load_recipe
from uscl_zoo.training.pretraining.starts import begun_with, settled
from uscl_zoo.zoo.catalogue import card_named

Rows = npt.NDArray[np.int64]


def judged(videos: list[Video]) -> tuple[Rows, Rows, Rows]:
    """First frame, class and subject of each video."""
    labels = sorted({video.label or "" for video in videos})
    people = sorted({video.subject for video in videos})
    return (
        np.array([video.first for video in videos]),
        np.array([labels.index(video.label or "") for video in videos]),
        np.array([people.index(video.subject) for video in videos]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("busi", type=Path, help="a store of BUSI")
    parser.add_argument("corpus", type=Path, help="the store that the backbone was trained on")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.15, 0.25, 0.4, 1])
    given = parser.parse_args()
    card = card_named(given.backbone)
    assert card.training.start is not None
    shipped = float(str(card.training.recipe.get("start_share", 0)))
    network = uscl_zoo.create_model(given.backbone, pretrained=True).eval()
    busi, corpus = FrameStore(given.busi), FrameStore(given.corpus)
    recipe, begun = settled(load_recipe(f"open_{card.architecture}"))
    assert begun is not None and begun.sha256 == card.training.start.sha256
    start = begun_with(begun, recipe, corpus, corpus.select("train"))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    rows, target, group = judged(list(busi.videos))
    groups = np.unique(group)
    chosen = np.random.default_rng(0).permutation(groups)[: len(groups) // 2]
    half = np.isin(group, chosen)
    every = np.ones(len(rows), dtype=bool)
    sides = {"BUSI": every, "half of its groups": half, "the other half": ~half}
    organs = {}
    for organ in ("liver", "breast"):
        seen = [v for v in corpus.select("heldout") if (v.label or "").startswith(f"{organ} ")]
        organs[organ] = judged(seen)
    print("| share of the start | images of | neighbours | linear | 10 % |\n" + "| --- " * 5 + "|")
    for share in given.shares:
        toward = (share - shipped) / (1 - shipped)
        network.load_state_dict(
            {
                name: torch.lerp(value, start[name].to(value), toward)
                if value.is_floating_point()
                else value
                for name, value in weights.items()
            }
        )
        known = features(network, busi, rows)
        figures = {
            side: quick_figures(known[which], target[which], group[which])
            for side, which in sides.items()
        }
        for organ, (own, classes, people) in organs.items():
            figures[f"held-out {organ}"] = quick_figures(
                features(network, corpus, own), classes, people
            )
        for name, row in figures.items():
            cells = " | ".join(f"{value:.3f}" for value in row.values())
            print(f"| {share:g} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
