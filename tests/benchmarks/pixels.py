r"""How sure one may be of pixels: rules fitted on training subjects left out, on BUSI.

    python -m tests.benchmarks.pixels BUSI FOLDER [--size 64] [--epochs 16]

A network is trained on 70 % of the subjects, and two, each without half of them, answer for that
half: once in half of its epochs, and once in as many. Rules fitted on these answers are judged on
the other 30 % by what the network says of each pixel. Checkpoints and answers stay in FOLDER.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

from uscl_zoo.segmentation.model import Pixels, Trust
from uscl_zoo.training.finetuning.crossing import FOLDS
from uscl_zoo.training.finetuning.gathering import backbone
from uscl_zoo.training.finetuning.loop import fit
from uscl_zoo.training.finetuning.segmentation.apart import calibrate
from uscl_zoo.training.finetuning.segmentation.figures import reliability
from uscl_zoo.training.finetuning.segmentation.fit import Rows
from uscl_zoo.training.finetuning.segmentation.gather import gather
from uscl_zoo.training.finetuning.segmentation.published import load
from uscl_zoo.training.finetuning.segmentation.settings import sensible
from uscl_zoo.training.finetuning.segmentation.teaching import Segmentation
from uscl_zoo.training.learning.execution import device_named, keep_memory
from uscl_zoo.ultrasound.transforms import FrameTransform


class Watching(Segmentation):
    """A segmentation that keeps what a rule is fitted on."""

    rule = Pixels()
    plain = Pixels()

    def settle(self, kept: Mapping[str, Any], rows: Rows) -> tuple[Pixels, Trust]:
        """As for `Segmentation`, with a temperature alone besides."""
        self.rule, trust = super().settle(kept, rows)
        parts = [self._pixels(one, row) for one, row in zip(kept["logits"], rows, strict=True)]
        logits, target = (np.stack(part) for part in zip(*parts, strict=True))
        subject = self._subjects(rows)
        weights = (1 / np.bincount(subject)[subject])[:, None]

        def loss(log: float) -> float:
            shares = Pixels(math.exp(log))(torch.from_numpy(np.moveaxis(logits, -1, 0))).numpy()
            right = np.take_along_axis(np.moveaxis(shares, 0, -1), target[:, :, None], 2)[:, :, 0]
            return float(-(weights * np.log(np.maximum(right, 1e-12))).sum())

        found = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
        self.plain = Pixels(math.exp(found.x))
        return self.rule, trust


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="BUSI")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--model", default="resnet18_uscl")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    keep_memory()
    base, outlined = backbone(given.model), load("busi", given.data)
    shape = dataclasses.replace(base.input, size=(3, given.size, given.size))
    transform = FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
    images = given.folder / "images"
    decoded = gather(outlined, images, transform, print, holdout=0.3, seed=given.seed)
    whole = sensible(len(decoded.train), "unet", epochs=given.epochs, seed=given.seed)
    half = dataclasses.replace(whole, epochs=math.ceil(given.epochs / 2))
    rules = {"none": Pixels()}
    for name, settings in (("half", half), ("whole", whole)):
        task = Watching(base, outlined, decoded, settings, shape, device_named(None))
        calibrate(task, given.folder / name, lambda cost, text: None)
        rules[f"temperature, {name}"] = task.plain
        rules[f"temperature by margin, {name}"] = task.rule
    learner = task.learner(decoded.train, whole)
    fit(learner, given.folder / "final")
    rows = decoded.judged
    logits = torch.from_numpy(np.stack([one for one, _ in task.ask(learner.network, rows)]))
    there = np.asarray(decoded.labels[rows]) == 1
    print(f"{FOLDS} folds of {len(decoded.train)} images; {len(rows)} held out, one seed")
    print("| rule, fitted on folds of so many epochs | ECE | of 0.05 to 0.95 | NLL |")
    print("| --- | --- | --- | --- |")
    for name, rule in rules.items():
        shares = rule(logits.movedim(1, 0))[1].numpy().astype(np.float64)
        likelihood = np.log(np.maximum(np.where(there, shares, 1 - shares), 1e-12)).mean()
        count, sums, hits = reliability(shares, there)
        gaps, inner = np.abs(sums - hits), slice(1, -1)
        print(
            f"| {name} ({rule.temperature:.2f}, {rule.exponent:.2f}) | "
            f"{gaps.sum() / count.sum():.4f} | {gaps[inner].sum() / count[inner].sum():.3f} | "
            f"{-likelihood:.4f} |"
        )


if __name__ == "__main__":
    main()
