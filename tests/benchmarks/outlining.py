r"""What an encoder is worth when lesions are outlined: BUSI, by subject, paired.

    python -m tests.benchmarks.outlining BUSI FOLDER --shares 0.1
    python -m tests.benchmarks.outlining BUSI FOLDER --task detection --shares 0.1 --folds 0
    python -m tests.benchmarks.outlining BUSI FOLDER --table

Near-duplicates are one subject (`--layout busi`). Three folds and the share of the training
subjects are drawn by class, the same for every encoder; the networks are those of `uscl finetune`,
taught by its own loop, without the two that calibrate: said is what is likelier than the
background. An encoder, fold and share are a cell, whose answers stay in FOLDER, which a call that
was interrupted continues and several calls, one after the other, may fill. `--table` prints it,
with differences to the first encoder that is there; intervals are 95 %, by a bootstrap over
subjects.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uscl_zoo.data.splits import draw_folds
from uscl_zoo.errors import UsclError
from uscl_zoo.files import written
from uscl_zoo.segmentation.model import Pixels
from uscl_zoo.segmentation.networks import check_name
from uscl_zoo.training.downstream.bootstrap import Bootstrap, Task
from uscl_zoo.training.downstream.contenders import random_like
from uscl_zoo.training.downstream.datasets import load as load_labelled
from uscl_zoo.training.downstream.folds import some_subjects
from uscl_zoo.training.downstream.metrics import interval
from uscl_zoo.training.finetuning.gathering import Base, backbone
from uscl_zoo.training.finetuning.loop import fit
from uscl_zoo.training.finetuning.segmentation.figures import Case, judge
from uscl_zoo.training.finetuning.segmentation.fit import Rows
from uscl_zoo.training.finetuning.segmentation.gather import Decoded, gather, opened
from uscl_zoo.training.finetuning.segmentation.outlined import Outlined
from uscl_zoo.training.finetuning.segmentation.precision import Matched, Precision, Scene, measure
from uscl_zoo.training.finetuning.segmentation.published import load
from uscl_zoo.training.finetuning.segmentation.settings import sensible
from uscl_zoo.training.finetuning.segmentation.teaching import TEACHINGS, Teaching
from uscl_zoo.training.learning.execution import device_named, keep_memory
from uscl_zoo.ultrasound.transforms import FrameTransform

#: In the order of the table, which compares with the first.
ENCODERS = ("resnet18_imagenet", "resnet18_uscl", "random", "resnet50_uscl")
FOLDS = 3
RESAMPLES = 2000
#: A region that is less sure is not said.
CONFIDENCE = 0.5
KINDS = {"segm": "mask", "bbox": "box"}
Floats = npt.NDArray[np.float64]


def base_of(encoder: str, seed: int) -> Base:
    """What an encoder begins with."""
    if encoder != "random":
        return backbone(encoder)
    base = backbone(ENCODERS[0])
    return dataclasses.replace(base, network=random_like(base.network, seed), card=None)


def taught(
    base: Base,
    outlined: Outlined,
    decoded: Decoded,
    train: Rows,
    given: argparse.Namespace,
    work: Path,
) -> tuple[Teaching, Any]:
    """The task, and a network that was taught some rows."""
    network = check_name(given.task, None)
    settings = sensible(len(train), network, epochs=given.epochs, seed=given.seed)
    shape = dataclasses.replace(base.input, size=(3, given.size, given.size))
    device = device_named(None)
    lesson = TEACHINGS[given.task](base, outlined, decoded, settings, shape, device)
    learner = lesson.learner(train, settings)
    fit(learner, work)
    return lesson, learner.network


def cases_of(lesson: Teaching, network: Any, rows: Rows) -> list[Case]:
    """What a network says of rows, judged in the pixels of each image."""
    decoded, cases = lesson.decoded, []
    for row, (answer, _) in zip(rows.tolist(), lesson.ask(network, rows), strict=True):
        item = decoded.items[row]
        image, _, there = opened(lesson.outlined, item)
        size = image.height, image.width
        predicted = sorted(
            lesson.predicted(answer, size, Pixels()), key=lambda region: -region.score
        )
        cases.append(
            judge(
                row,
                item.name,
                item.subject,
                size,
                decoded.spacing[row],
                there,
                predicted,
                CONFIDENCE,
                lesson.classes,
                0.0,
                False,
            )
        )
    return cases


def kept(cases: Sequence[Case], labels: Sequence[str], seconds: float) -> dict[str, Any]:
    """A cell as arrays: an entry an image, and what the average precision is made of."""
    some = np.array([bool(case.there) for case in cases])
    arrays: dict[str, Any] = {
        "name": np.array([case.name for case in cases]),
        "subject": np.array([case.subject for case in cases]),
        "label": np.array(labels),
        "dice": np.where(some, [case.dice[0] for case in cases], np.nan),
        "iou": np.where(some, [case.iou[0] for case in cases], np.nan),
        "silent": np.where(some, np.nan, [float(not case.said) for case in cases]),
        "seconds": np.array(seconds),
    }
    scenes = [Scene(case.size, case.there, case.predicted) for case in cases]
    for kind in KINDS:
        found = measure(scenes, 1, kind)
        for key, value in dataclasses.asdict(found.matched[0]).items():
            arrays[f"{kind}_{key}"] = value
        arrays[f"{kind}_thresholds"] = found.thresholds
    return arrays


def fill(given: argparse.Namespace) -> None:
    """Teach and judge the cells that are asked for and not there."""
    keep_memory()
    outlined = load("busi", given.data)
    said = load_labelled("busi", given.data).collection.annotations
    labels = [said[item.name].label or "" for item in outlined.items]
    fold = draw_folds(labels, [item.subject for item in outlined.items], FOLDS, given.seed)
    first = {item.subject for item, own in zip(outlined.items, fold, strict=True) if own == 0}
    shape = base_of(ENCODERS[0], 0).input
    decoded = gather(
        outlined,
        given.folder / f"images{given.size}",
        FrameTransform((given.size, given.size), shape.mean, shape.std, shape.interpolation),
        print,
        holdout=1 / FOLDS,
        seed=given.seed,
        held_out=sorted(first),
    )
    place = {item.name: number for number, item in enumerate(outlined.items)}
    rows = np.array([place[item.name] for item in decoded.items])
    fold, label = fold[rows], np.array(labels)[rows]
    subject = np.array([item.subject for item in decoded.items])
    for share in given.shares:
        for held in given.folds:
            out = fold == held
            chosen = some_subjects(label[~out], subject[~out], share, (given.seed, held))
            train = np.flatnonzero(~out & np.isin(subject, chosen))
            judged = np.flatnonzero(out)
            part = dataclasses.replace(decoded, held_out=out)
            for encoder in given.encoders:
                name = f"{given.task}, {share:g}, fold {held}, {encoder}"
                path = given.folder / f"{name}.npz"
                if path.is_file():
                    continue
                began = time.perf_counter()
                work = given.folder / f"{name}.work"
                base = base_of(encoder, given.seed)
                lesson, network = taught(base, outlined, part, train, given, work)
                cases = cases_of(lesson, network, judged)
                seconds = time.perf_counter() - began
                content = io.BytesIO()
                arrays = kept(cases, label[judged].tolist(), seconds)
                np.savez_compressed(content, allow_pickle=False, **arrays)
                with written(path) as partial:
                    partial.write_bytes(content.getvalue())
                shutil.rmtree(work)
                people = len(np.unique(subject[train]))
                print(
                    f"{name}: {len(train)} images of {people} subjects, {len(judged)} judged; "
                    f"Dice {np.nanmean(arrays['dice']):.3f} by image, {seconds:.0f} s",
                    flush=True,
                )


class Cells:
    """The folds of an encoder that are there, and its figures over resampled subjects."""

    def __init__(self, parts: Sequence[dict[str, Any]]) -> None:
        self.parts = parts
        whole = {key: np.concatenate([p[key] for p in parts]) for key in ("subject", "label")}
        self.subjects, self.whose = np.unique(whole["subject"], return_inverse=True)
        classes, target = np.unique(whole["label"], return_inverse=True)
        none, every = np.empty(0, np.int64), np.arange(len(target))
        task = Task(
            tuple(classes), none, every, none, target, self.whose, tuple(self.subjects.tolist())
        )
        self.counts = Bootstrap.draw(task, RESAMPLES).counts

    def mean(self, key: str) -> Floats:
        """Mean over the subjects that have a value, each of its images; (resamples + 1,)."""
        values = np.concatenate([part[key] for part in self.parts])
        known = np.isfinite(values)
        total, count = (np.zeros(len(self.subjects)) for _ in range(2))
        np.add.at(total, self.whose[known], values[known])
        np.add.at(count, self.whose[known], 1)
        own = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        with np.errstate(invalid="ignore"):
            return np.asarray((self.counts @ own) / (self.counts @ (count > 0)))

    def precision(self, kind: str) -> tuple[Floats, Floats]:
        """AP and AP50, means over the folds; (resamples + 1,)."""
        values, start = [], 0
        for part in self.parts:
            whose = self.whose[start : start + len(part["subject"])]
            start += len(whose)
            names = [field.name for field in dataclasses.fields(Matched)]
            matched = Matched(**{name: part[f"{kind}_{name}"] for name in names})
            nan = float("nan")
            found = Precision((matched,), part[f"{kind}_thresholds"], (nan, nan, nan))
            weights = self.counts[:501, whose].astype(np.float64)
            values.append(found.resampled(weights)[:2])
        return tuple(np.mean(values, axis=0))

    def figures(self, task: str) -> dict[str, Floats]:
        """By name."""
        rows = {
            "Dice": self.mean("dice"),
            "IoU": self.mean("iou"),
            "none where nothing is": self.mean("silent"),
        }
        if task == "detection":
            for kind, title in KINDS.items():
                rows[f"{title} AP"], rows[f"{title} AP50"] = self.precision(kind)
        return rows


def table(folder: Path, task: str) -> None:
    """Print what the cells of a task say, by share; of encoders the folds that all of them have."""
    found: dict[float, dict[str, dict[int, dict[str, Any]]]] = {}
    for path in sorted(folder.glob(f"{task}, *.npz")):
        _, part, fold, encoder = path.stem.split(", ")
        with np.load(path) as arrays:
            cell = dict(arrays)
        found.setdefault(float(part), {}).setdefault(encoder, {})[int(fold.split()[1])] = cell
    header = True
    for share, by_encoder in sorted(found.items()):
        order = [name for name in ENCODERS if name in by_encoder]
        first = by_encoder[order[0]]
        for encoder in order:
            both = sorted(set(first) & set(by_encoder[encoder]))
            if not both:
                continue
            own, other = (Cells([cells[i] for i in both]) for cells in (by_encoder[encoder], first))
            if own.subjects.tolist() != other.subjects.tolist():
                raise SystemExit(f"{folder}: {encoder} was judged on other subjects")
            figures, against = own.figures(task), other.figures(task)
            if header:
                names = " | ".join(figures)
                print(f"| subjects taught | encoder | folds, judged | {names} |")
                print("| --- " * (3 + len(figures)) + "|")
                header = False
            texts = []
            for name, values in figures.items():
                text = str(interval(values))
                if encoder != order[0]:
                    text += f"; {interval(values - against[name]):+.3f}"
                texts.append(text)
            print(
                f"| {share:.0%} | {encoder} | {len(both)}, {len(own.subjects)} | "
                f"{' | '.join(texts)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="BUSI")
    parser.add_argument("folder", type=Path, help="of the answers")
    parser.add_argument("--task", choices=sorted(TEACHINGS), default="segmentation")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 1])
    parser.add_argument("--folds", nargs="+", type=int, default=range(FOLDS))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print what is there")
    given = parser.parse_args()
    if given.table:
        table(given.folder, given.task)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    about = {"size": given.size, "epochs": given.epochs, "seed": given.seed}
    path = given.folder / "about.json"
    if path.is_file() and json.loads(path.read_text()) != about:
        raise SystemExit(f"{path}: other settings; choose another folder")
    path.write_text(json.dumps(about))
    try:
        fill(given)
    except (UsclError, KeyboardInterrupt) as error:
        raise SystemExit(str(error) or "interrupted; the same command goes on") from None


if __name__ == "__main__":
    main()
