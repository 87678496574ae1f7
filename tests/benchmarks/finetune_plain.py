"""What `uscl finetune` has to match: everything trained by a short loop of torch and timm alone.

    python -m tests.benchmarks.finetune_plain TABLE.csv --weights NAME|FILE [--size 224]
        [--seeds 3] [--without crops] [--with adam] ...

TABLE.csv has columns Filename, label and split; rows of split `test` are judged, all others trained
on. With `--split-of MODEL` the test is what a model of `uscl finetune` held out, so that both are
judged on one split. `--busi FOLDER` writes the table first, of the images that `load("busi")`
takes, with their groups of near-duplicates as subjects; `--subjects` of them train, the others
judge. `--without` and `--with` change one thing at a time: what each is worth. `--answers FOLDER`
keeps every answer, for paired differences.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import uscl_zoo
from uscl_zoo.training.downstream.datasets import load
from uscl_zoo.training.preparing.labels import hold_out

#: What can be left out, each named in the table of docs/finetune.md.
PARTS = ("crops", "rotation", "light", "smoothing", "weights", "statistics", "flips", "warmup")
#: What can be put in place of its own.
OTHERS = ("adam", "rate-1e-4", "small-crops", "last-block", "count-weights", "average")


def read(table: Path, size: int) -> dict[str, tuple[Tensor, npt.NDArray[np.int64], list[str]]]:
    """Images uint8 (N, 3, size, size), classes and subjects of both sides; squashed."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = sorted({row["label"] for row in rows})
    sides = {}
    for side in ("train", "test"):
        own = [row for row in rows if (row["split"] == "test") == (side == "test")]
        images = [
            Image.open(table.parent / row["Filename"]).convert("RGB").resize((size, size))
            for row in own
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        target = np.array([labels.index(row["label"]) for row in own])
        whose = [row.get("subject") or row["Filename"] for row in own]
        sides[side] = pixels.permute(0, 3, 1, 2), target, whose
    return sides


def write_busi(folder: Path, table: Path, subjects: int, seed: int = 0) -> None:
    """A table of BUSI: so many subjects of it to train on, as many of a class as its share says."""
    collection = load("busi", folder).collection
    notes = collection.annotations
    share = 1 - subjects / len({note.subject for note in notes.values()})
    held = hold_out(notes, share, seed)
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Filename", "label", "subject", "split"])
        for name, path in collection.sources.items():
            note = notes[name]
            side = "test" if note.subject in held else "train"
            writer.writerow([path.resolve(), note.label, note.subject, side])


def network_of(weights: str, classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network with a new classifier, and the mean and std of its input."""
    if Path(weights).is_file():
        with safe_open(weights, "pt") as stream:
            said = stream.metadata()
        network = timm.create_model(said["architecture"], num_classes=classes)
        network.load_state_dict(load_file(weights), strict=False)
        mean, std = (tuple(float(v) for v in said[key].split()) for key in ("mean", "std"))
    else:
        network = uscl_zoo.create_model(weights, pretrained=True, num_classes=classes)
        shape = uscl_zoo.create_transform(network)
        mean, std = shape.mean, shape.std
    return network, torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)


def augment(images: Tensor, without: set[str], others: set[str], rng: torch.Generator) -> Tensor:
    """Crop, turn, flip, and change the light of floats (B, 3, H, W) in 0-1."""
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=rng) * (high - low) + low

    least = 1.0 if "crops" in without else 0.8 if "small-crops" in others else 0.4
    area, ratio = uniform(least, 1.0), torch.exp(uniform(-math.log(4 / 3), math.log(4 / 3)))
    if least == 1.0:
        ratio = torch.ones(count)
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    right, down = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
    angle = uniform(-0.25, 0.25) * ("rotation" not in without)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [torch.stack([flip * wide * cos, -high * sin, right], 1),
         torch.stack([flip * wide * sin, high * cos, down], 1)], 1
    )  # fmt: skip
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    if "light" not in without:
        column = (count, 1, 1, 1)
        images = images * uniform(0.7, 1.3).view(column)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * uniform(0.7, 1.3).view(column) + mean
        images = images.clamp(1e-4, 1) ** torch.exp(uniform(-0.3, 0.3)).view(column)
    return images


def run(
    sides: dict[str, tuple[Tensor, npt.NDArray[np.int64], list[str]]],
    given: argparse.Namespace,
    seed: int,
) -> dict[str, float]:
    """Train with one seed and judge."""
    without, others = set(given.without), set(getattr(given, "with"))
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    images, target, _ = sides["train"]
    classes = int(target.max()) + 1
    network, mean, std = network_of(given.weights, classes)
    network = network.to(memory_format=torch.channels_last)
    if "last-block" in others:
        network.requires_grad_(False)
        for part in (network.layer4[-1], network.get_classifier()):  # type: ignore[operator, index]
            part.requires_grad_(True)
    rate = 1e-4 if "rate-1e-4" in others else 4e-4
    head = {id(p) for p in network.get_classifier().parameters()}  # type: ignore[operator]
    learned = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if id(p) not in head], "lr": rate, "rate": rate},
        {"params": [p for p in learned if id(p) in head], "lr": 3 * rate, "rate": 3 * rate},
    ]
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(groups, weight_decay=1e-4)
        if "adam" in others
        else torch.optim.AdamW(groups, weight_decay=0.05)
    )
    count = np.bincount(target, minlength=classes)
    power = 0.0 if "weights" in without else 1.0 if "count-weights" in others else 0.5
    share = count**-power
    weight = torch.tensor(share / (share * count).sum() * count.sum(), dtype=torch.float32)
    smoothing = 0.0 if "smoothing" in without else 0.1
    batches = max(1, len(target) // 32)
    steps, warm = given.epochs * batches, 0.0 if "warmup" in without else 0.1
    average = torch.optim.swa_utils.AveragedModel(
        network, avg_fn=lambda kept, new, _: 0.98 * kept + 0.02 * new, use_buffers=True
    )
    step, began = 0, time.perf_counter()
    for _ in range(given.epochs):
        order = torch.randperm(len(target), generator=rng)
        for places in torch.split(order[: 32 * batches], 32):
            done = step / steps
            scale = (
                done / warm
                if done < warm
                else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
            )
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * max(scale, 1e-3)
            network.train()
            if "statistics" in without or "last-block" in others:
                network.eval()
            batch = augment(images[places].float() / 255, without, others, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=given.bf16):
                logits = network(
                    ((batch - mean) / std).contiguous(memory_format=torch.channels_last)
                )
            loss = F.cross_entropy(
                logits.float(), torch.from_numpy(target)[places], weight, label_smoothing=smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(network)
            step += 1
    seconds = time.perf_counter() - began
    judged = average if "average" in others else network
    chances = answers(judged, sides["test"][0], mean, std, "flips" not in without)
    if given.answers is not None:
        given.answers.mkdir(parents=True, exist_ok=True)
        changed = [f"no-{part}" for part in sorted(without)] + sorted(others)
        name = ", ".join(["plain", *changed, f"seed {seed}"])
        _, asked, whose = sides["test"]
        subject = np.unique(whose, return_inverse=True)[1]
        np.savez(given.answers / f"{name}.npz", chances=chances, target=asked, subject=subject)
    return measure(chances, sides["test"][1]) | {"seconds": seconds}


@torch.inference_mode()
def answers(
    network: nn.Module, images: Tensor, mean: Tensor, std: Tensor, flips: bool
) -> npt.NDArray[np.float32]:
    """Probabilities (N, classes) of the images as they are."""
    network.eval()
    parts = []
    for batch in torch.split(images, 64):
        given = (batch.float() / 255 - mean) / std
        chances = network(given).softmax(1)
        if flips:
            chances = (chances + network(given.flip(3)).softmax(1)) / 2
        parts.append(chances)
    return torch.cat(parts).numpy()


def measure(chances: npt.NDArray[np.float32], target: npt.NDArray[np.int64]) -> dict[str, float]:
    """Figures by image."""
    said = chances.argmax(1)
    scores = chances[:, 1] if chances.shape[1] == 2 else chances
    return {
        "accuracy": accuracy_score(target, said),
        "balanced accuracy": balanced_accuracy_score(target, said),
        "weighted F1": f1_score(target, said, average="weighted"),
        "macro F1": f1_score(target, said, average="macro"),
        "macro AUROC": roc_auc_score(target, scores, multi_class="ovr"),
    }


def write_split(model: Path, table: Path, output: Path) -> None:
    """A table with the split of a model of `uscl finetune`: its held-out files are the test."""
    with (model / "heldout.csv").open(newline="") as stream:
        held = {row["source"] for row in csv.DictReader(stream) if row["unit"] == "clip"}
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))

    def is_held(name: str) -> bool:
        # the model names files by their path within the folder of the table
        return name in held or Path(name).name in held

    found = sum(is_held(row["Filename"]) for row in rows)
    if found != len(held):
        raise SystemExit(f"{table}: has {found} of the {len(held)} files that {model} held out")
    with output.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Filename", "label", "split"])
        for row in rows:
            side = "test" if is_held(row["Filename"]) else "train"
            writer.writerow([row["Filename"], row["label"], side])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--weights", default="resnet18_uscl")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0, help="to go on after an interruption")
    parser.add_argument("--bf16", action="store_true", help="where the processor has it")
    parser.add_argument("--without", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--with", nargs="*", choices=OTHERS, default=[])
    parser.add_argument("--busi", type=Path, help="write TABLE first, of this folder")
    parser.add_argument("--subjects", type=int, default=200, help="of BUSI, to train on")
    parser.add_argument("--answers", type=Path, help="folder for every answer")
    parser.add_argument("--split-of", type=Path, help="write TABLE.split.csv first, of this model")
    given = parser.parse_args()
    table = given.table
    if given.busi is not None:
        write_busi(given.busi, table, given.subjects)
    if given.split_of is not None:
        write_split(given.split_of, table, table := table.with_suffix(".split.csv"))
    sides = read(table, given.size)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        row = run(sides, given, seed)
        asked = [f"-{part}" for part in given.without] + [f"+{o}" for o in getattr(given, "with")]
        shown = {key: round(value, 4) for key, value in row.items()}
        print(json.dumps({"seed": seed, "changed": " ".join(asked)} | shown), flush=True)


if __name__ == "__main__":
    main()
