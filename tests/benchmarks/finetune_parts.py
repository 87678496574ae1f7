r"""What each part of fine-tuning is worth: one setting changed at a time, on one split.

    python -m tests.benchmarks.finetune_parts STORE FOLDER linear usual probe=False \
        'sizes=0.57:0.8,1:1' ... [--weights resnet18_uscl.open] [--subjects 200] [--merge 3]
    python -m tests.benchmarks.finetune_parts STORE FOLDER --compare usual

A variant is `usual`, what `uscl finetune` does by itself but for the cross-validation; `linear`, a
regression on frozen features; or settings of `Settings` with `;` between them. `--merge` trains
that many seeds of each and judges the mean of their weights as well. Answers stay in FOLDER;
`--compare` prints figures and paired differences, by a bootstrap over subjects. `--table` writes
what is trained on and judged, for `tests.benchmarks.finetune_plain` with `--answers FOLDER`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from uscl_zoo.answers import softmax
from uscl_zoo.training.downstream.folds import some_subjects
from uscl_zoo.training.downstream.metrics import auroc
from uscl_zoo.training.downstream.regression import linear
from uscl_zoo.training.downstream.sample import Sample
from uscl_zoo.training.downstream.settings import Settings, sensible
from uscl_zoo.training.finetuning.gathering import backbone
from uscl_zoo.training.finetuning.judging import look
from uscl_zoo.training.finetuning.loop import fit
from uscl_zoo.training.finetuning.tuning import Tuner, merge
from uscl_zoo.training.learning.frames import FrameStore


def figures(target: Any, chances: Any, weights: Any) -> dict[str, Any]:
    """Every figure under several weightings (R, N) of the images, each (R,)."""
    classes = np.arange(chances.shape[1])
    said, true = chances.argmax(1)[:, None] == classes, target[:, None] == classes
    hits, told, there = weights @ (said & true), weights @ said, weights @ true
    f1 = 2 * hits / np.maximum(told + there, 1)
    sides = classes[1:] if len(classes) == 2 else classes
    areas = [auroc(chances[:, i].astype(np.float64), true[:, i], weights) for i in sides]
    return {
        "accuracy": hits.sum(1) / there.sum(1),
        "balanced": (hits / there).mean(1),
        "weighted F1": (f1 * there).sum(1) / there.sum(1),
        "macro AUROC": np.mean(areas, axis=0),
    }


def changed(settings: Settings, text: str) -> Settings:
    """Settings with those of a variant."""
    for part in text.split(";"):
        name, _, value = part.partition("=")
        parsed: Any = (
            tuple(tuple(float(n) for n in pair.split(":")) for pair in value.split(","))
            if name == "sizes"
            else ast.literal_eval(value)
        )
        settings = dataclasses.replace(settings, **{name: parsed})
    return settings


def compare(folder: Path, first: str, resamples: int = 1000) -> None:
    """Figures of every variant, means over its seeds; differences to one, 95 % intervals."""
    kept: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.npz")):
        kept.setdefault(re.sub(r", seed \d+$", "", path.stem), []).append(np.load(path))
    base = kept[first][0]
    target = base["target"]
    if any((run["target"] != target).any() for runs in kept.values() for run in runs):
        raise SystemExit(f"{folder}: not all were judged on the same images")
    subjects, whose = np.unique(base["subject"], return_inverse=True)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(subjects), size=(resamples, len(subjects)))
    counts = np.stack([np.bincount(draw, minlength=len(subjects)) for draw in drawn])
    # all images once, and then the resamples
    weights = np.concatenate([np.ones((1, len(target))), counts[:, whose]])
    each = {
        name: [figures(target, run["chances"], weights) for run in runs]
        for name, runs in kept.items()
    }
    columns = list(each[first][0])
    print(f"| variant | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}")
    for name, runs in each.items():
        cells = []
        for figure in columns:
            values = np.mean([run[figure] for run in runs], axis=0)
            cell = f"{values[0]:.3f}"
            if len(runs) > 1:
                cell += f" ({', '.join(f'{run[figure][0]:.3f}' for run in runs)})"
            if name != first:
                away = values - np.mean([run[figure] for run in each[first]], axis=0)
                low, high = np.percentile(away[1:], [2.5, 97.5])
                cell += f"; {away[0]:+.3f} [{low:.3f}, {high:.3f}]"
            cells.append(cell)
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--weights", default="resnet18_uscl.open")
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", type=int, default=1)
    parser.add_argument("--compare")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.compare:
        compare(given.folder, given.compare)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    store, base, device = FrameStore(given.store), backbone(given.weights), torch.device("cpu")
    shape = dataclasses.replace(base.input, size=(3, *store.frames.shape[1:3]))
    train, test = (
        Sample.of([video for video in store.videos if video.split == split], store.labels)
        for split in ("train", "heldout")
    )
    at = {video.first + i: video for video in store.videos for i in range(video.count)}
    everyone = len(np.unique(train.subject))
    if given.subjects < everyone:
        share = given.subjects / everyone
        some = some_subjects(train.target, train.subject, share, (0,))
        train = train.take(np.flatnonzero(np.isin(train.subject, some)))
    if given.table is not None:
        with given.table.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["Filename", "label", "subject", "split"])
            for side, sample in (("train", train), ("test", test)):
                for row in sample.rows:
                    video = at[row]
                    source = Path(video.source).resolve()
                    writer.writerow([source, video.label, video.subject, side])
    print(f"{len(train)} frames to train on, {len(test)} to be judged on", flush=True)

    def tuner_of(settings: Settings) -> Tuner:
        network = copy.deepcopy(base.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(given.seed)
            network.reset_classifier(len(store.labels))
        return Tuner(network, store.frames, train, settings, device, shape.mean, shape.std)

    def keep(name: str, chances: npt.NDArray[np.float64], seconds: float = 0.0) -> None:
        arrays = {"chances": chances, "target": test.target, "subject": test.subject}
        np.savez(given.folder / f"{name}.npz", allow_pickle=False, **arrays)
        once = figures(test.target, chances, np.ones((1, len(test.target))))
        shown = {key: round(float(value[0]), 3) for key, value in once.items()}
        print(name, shown, f"{seconds:.0f} s", flush=True)

    for variant in given.variants:
        if variant == "linear":
            frozen = tuner_of(Settings("head", epochs=0))
            known, asked = (frozen._forward(side.rows, pooled=True) for side in (train, test))
            keep(variant, linear(known, train.target, train.subject, asked, len(store.labels))[0])
            continue
        settings = sensible(len(np.unique(train.clip)))
        settings = settings if variant == "usual" else changed(settings, variant)
        tuners = []
        for seed in range(given.seed, given.seed + given.merge):
            began = time.perf_counter()
            tuners.append(tuner_of(dataclasses.replace(settings, seed=seed)))
            fit(tuners[-1])
            seconds = time.perf_counter() - began
            name = f"{variant}, seed {seed}" if given.merge > 1 or seed else variant
            keep(name, softmax(look(tuners[-1], test.rows, shape)[0], 1), seconds)
        if len(tuners) > 1:
            merged = softmax(look(merge(tuners), test.rows, shape)[0], 1)
            keep(f"{variant}, mean of {len(tuners)}", merged)


if __name__ == "__main__":
    main()
