"""Fine-tuning on classes of one's own: from a folder or table to a model that answers.

Subjects are split three ways. The *training* ones give the gradient; the *validation* ones stop it,
fit the temperature and set the threshold for other kinds of image; the *held-out* ones are looked
at once, at the end, and every figure is theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from uscl_zoo import checkpoint, publish, store
from uscl_zoo.answers import ANSWERS, STATISTICS, Answers, Statistics
from uscl_zoo.card import (
    ARCHITECTURES,
    MODELS,
    Card,
    Input,
    Metric,
    Source,
    Training,
    Weights,
    read_card,
)
from uscl_zoo.catalogue import model_info
from uscl_zoo.checkpoint import folder_of
from uscl_zoo.errors import CardError, DataError, one_line
from uscl_zoo.files import check_folder, expanded, is_ours, locked, sweep, written
from uscl_zoo.names import say
from uscl_zoo.records import to_plain, write_text, write_yaml
from uscl_zoo.registry import create_model
from uscl_zoo.ultrasound.transforms import create_transform

from ..execution import device_named
from ..frames import DESCRIPTION, FrameStore
from ..prepare import Sampling, prepare
from ..runs import (
    CHECKPOINT,
    PREVIOUS,
    code_version,
    hardware,
    load_checkpoint,
)
from . import report
from .collection import Split, collect, split
from .judging import Verdict, calibrate, judge, pack
from .seen import Material, seen_by
from .tuning import MANY, Sample, Tuner, fit, sensible

WORK, STORE, ABOUT = "work", "store", "run.json"


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    Attributes:
        folder: of the model.
        card: of the model, with every figure.
        notes: what the reader of the figures should know.
    """

    folder: Path
    card: Card
    notes: tuple[str, ...]

    def __str__(self) -> str:
        figures = [
            f"  {metric.metric}, by {metric.unit}: {metric.value:.3f} "
            f"[{metric.interval[0]:.3f}, {metric.interval[1]:.3f}]"
            for metric in self.card.metrics
            if metric.interval is not None
        ]
        kind = f"  ({self.card.metrics[0].interval_kind})" if self.card.metrics else ""
        return "\n".join([f"{self.folder}: {', '.join(self.card.classes)}", *figures, kind])


def finetune(
    data: str | Path,
    output: str | Path,
    *,
    model: str = "resnet18_uscl",
    train: str | None = None,
    file_column: str = "Filename",
    label_column: str | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    every_row: bool = False,
    rate: float = 3.0,
    size: int | None = None,
    holdout: float = 0.2,
    validation: float = 0.2,
    confidence: float = 0.7,
    epochs: int | None = None,
    patience: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    label_smoothing: float | None = None,
    class_weights: bool | None = None,
    seed: int = 0,
    licence: str | None = None,
    name: str | None = None,
    resamples: int = 2000,
    overwrite: bool = False,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = say,
) -> Finetuned:
    """Fine-tune a backbone on one's own classes and leave a model that answers.

    Frames are decoded once, into a uint8 memory map under `output/work`, and read from there; an
    interrupted call goes on when it is made again. The folder of a finished model holds
    `model.safetensors` and `config.json`, which timm loads; a card; `predict.json` and
    `statistics.safetensors`, which `predict` needs besides; `report.html` and its pictures; and
    `heldout.csv`, every answer the figures were computed from.

    Args:
        data: a folder with a folder per class, a CSV, or a store of `uscl prepare`, whose held-out
            subjects stay held out.
        output: folder of the model.
        model: to begin with: a checkpoint of the zoo, or timm's `local-dir:` or `hf-hub:`.
        train: `head`, `last` or `all`, see `Settings`; None to choose by the number of subjects.
        file_column: as for `collect`, like the next six.
        label_column: of a CSV.
        subject_column: of a CSV.
        subject_pattern: of a folder or CSV.
        classes: the only ones to take.
        exclude: patterns of file names to leave out.
        every_row: whether a row of a CSV without a file is an error.
        rate: frames a second to take from videos.
        size: height and width of the frames; None for what the backbone was trained on.
        holdout: share of the subjects of each class to be judged on.
        validation: share of the others to stop on.
        confidence: probability below which the model will say "cannot tell".
        epochs: as in `Settings`, like the next five; None to choose.
        patience: epochs without progress.
        batch_size: frames a step.
        learning_rate: at the start.
        label_smoothing: share of the target.
        class_weights: weigh the classes.
        seed: of the split, the new classifier and every draw.
        licence: of the weights, as an SPDX identifier; that of the backbone binds it.
        name: of the collection, for the card.
        resamples: of the bootstrap over held-out subjects.
        overwrite: replace a model, or begin an interrupted run anew.
        workers: processes that decode; None for one a core.
        device: to compute on; None for CUDA where there is one.
        progress: show bars.
        tell: is given a line for whatever the user should know.

    Raises:
        DataError: if the data cannot serve, the folder holds a model, another run, an input or what
            is not ours, or another process writes to it.
        UnreadableError: if nothing can be decoded.
        UnknownModelError: if no model is of that name.
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    data, output = expanded(data), expanded(output)
    work, chosen = output / WORK, device_named(device)
    if not 0 <= confidence <= 1:
        raise DataError(f"confidence should be a probability, not {confidence}")
    if (output / ANSWERS).exists() and not overwrite:
        raise DataError(f"{output}: holds a model already; add --overwrite or choose another")
    home = folder_of(model)
    if work.exists() and not _is_work(work):
        raise DataError(f"{work}: is not of an interrupted call; move it, or choose another folder")
    ours = (output / ANSWERS).is_file() or work.exists()
    check_folder(output, ours, [data, *([home] if home else [])])
    with locked(output):
        base = _backbone(model)
        shape = (
            base.input if size is None else dataclasses.replace(base.input, size=(3, size, size))
        )
        notes: list[str] = []

        def note(text: str) -> None:
            notes.append(text)
            tell(text)

        if (data / DESCRIPTION).is_file():
            given = {
                "--label-column": label_column,
                "--subject-column": subject_column,
                "--subject-pattern": subject_pattern,
                "--class": classes,
                "--exclude": exclude,
                "--every-row": every_row,
            }
            if wrong := [option for option, value in given.items() if value]:
                raise DataError(
                    f"{data}: is a store, whose labels and subjects are told; {wrong[0]} "
                    "is of a folder or CSV"
                )
            frames, subjects = FrameStore(data), True
            rate = float(frames.description["sampling"]["rate"])
            shape = dataclasses.replace(shape, size=(3, *frames.frames.shape[1:3]))
        else:
            collection = collect(
                data,
                file_column=file_column,
                label_column=label_column,
                subject_column=subject_column,
                subject_pattern=subject_pattern,
                classes=classes,
                exclude=exclude,
                every_row=every_row,
            )
            for text in collection.notes:
                note(text)
            prepared = prepare(
                collection.sources,
                work / STORE,
                collection.annotations.get,
                sampling=Sampling(rate, shape.size[1]),
                holdout=holdout,
                seed=seed,
                overwrite=overwrite,
                workers=workers,
                origin={
                    "name": name or one_line(data.resolve().stem),
                    "url": None,
                    "citation": None,
                },
                progress=progress,
            )
            frames, subjects = prepared.store, collection.subjects
            for _, reason in prepared.skipped[:5]:
                note(f"skipped: {reason}")
            if len(prepared.skipped) > 5:
                note(f"skipped: {len(prepared.skipped) - 5} more")
        name = name or one_line(frames.description["origin"].get("name") or data.resolve().stem)
        parts, labels = split(frames, validation, seed), frames.labels
        for text in _warnings(parts, frames, base, name):
            note(text)
        settings = sensible(
            len({video.subject for video in parts.train}),
            len(parts.train),
            train,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            learning_rate=learning_rate,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            seed=seed,
        )
        tell(
            f"{len(parts.train)} files to train on, {len(parts.validation)} to stop on, "
            f"{len(parts.held_out)} to be judged on; trains {settings.train}, "
            + (
                f"at most {settings.epochs} epochs, {settings.batch_size} frames a step"
                if settings.epochs
                else "by regression alone"
            )
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base.network.reset_classifier(len(labels))
        tuner = Tuner(
            base.network,
            frames.frames,
            Sample.of(parts.train, labels),
            Sample.of(parts.validation, labels),
            settings,
            chosen,
            shape.mean,
            shape.std,
        )
        about = {"settings": to_plain(settings), "model": model, "store": frames.digest}
        sweep(work)
        _resume(tuner, work, about, overwrite)
        fit(tuner, work, progress)
        answers, statistics = calibrate(tuner, parts.validation, labels, shape, confidence, rate)
        answers = answers.made_for(frames.description["sampling"])
        verdict = judge(
            tuner, frames, parts.held_out, answers, statistics, shape, subjects, resamples
        )
        # without it the folder is no model, so that half of one and half of another never are
        (output / ANSWERS).unlink(missing_ok=True)
        card = _card(
            output, base, shape, labels, parts, frames, tuner, verdict, name, subjects, licence
        )
        report.write(output, card, verdict, tuner.progress.history, answers, frames.frames, notes)
        card = _write_model(output, card, tuner.network, answers, statistics)
        shutil.rmtree(work)
        return Finetuned(output, card, tuple(notes))


def _is_work(folder: Path) -> bool:
    """Whether a folder is what an interrupted call left: many are named `work`."""
    own = {STORE, ABOUT, CHECKPOINT, PREVIOUS, f"{CHECKPOINT}.partial"}
    return folder.is_dir() and all(
        path.name in own or is_ours(path.name) for path in folder.iterdir()
    )


@dataclass(frozen=True)
class _Base:
    """The backbone to begin with."""

    name: str
    network: Any
    model: str
    architecture: str
    input: Input
    card: Card | None


def _backbone(name: str) -> _Base:
    network: Any = create_model(name, pretrained=True, num_classes=0)
    model = network.pretrained_cfg["architecture"]
    architecture = MODELS.get(model, model)
    if architecture not in ARCHITECTURES:
        raise DataError(f"{name}: is a {architecture}; should be one of {', '.join(ARCHITECTURES)}")
    wanted = create_transform(network)
    shape = Input(size=(3, *wanted.size), mean=wanted.mean, std=wanted.std)  # type: ignore[arg-type]
    model = model if model in MODELS else f"{architecture}_uscl"
    card = None if ":" in name else model_info(name)
    return _Base(name, network, model, architecture, shape, card)


def _warnings(parts: Split, frames: FrameStore, base: _Base, name: str) -> list[str]:
    """What makes the figures say less than they seem to."""
    told = []
    for label in frames.labels:
        absent = [
            words
            for words, videos in (
                ("stop on", parts.validation),
                ("be judged on", parts.held_out),
            )
            if label not in {video.label for video in videos}
        ]
        if absent:
            told.append(f"{label}: too few subjects to {' or '.join(absent)}")
    content = frames.description["sources_sha256"]
    side_of: dict[str, set[tuple[str, str | None]]] = {}
    for side in dataclasses.fields(parts):
        for video in getattr(parts, side.name):
            side_of.setdefault(content[video.name], set()).add((side.name, video.label))
    twins = sum(len(places) > 1 for places in side_of.values())
    if twins:
        told.append(f"{twins} files are there twice, on two sides of the split or in two classes")
    if base.card is not None:
        kept = set(base.card.training.held_out_subjects)
        sources = frames.sources(frames.videos)
        names = (name, *(str(source["name"]) for source in sources))
        texts = tuple(s[key] for s in sources for key in ("url", "citation") if s[key])
        for words, videos in (("stopped", parts.validation), ("judged", parts.held_out)):
            seen = seen_by(base.card, Material(names, texts, frames, tuple(videos)))
            if seen.leaks:
                subjects = {video.subject for video in videos}
                told.append(
                    f"{seen}: {base.name} was pretrained on it, and of the {len(subjects)} "
                    f"subjects it is {words} on, its card names {len(subjects & kept)} as held out"
                )
    return told


def _resume(tuner: Tuner, work: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Go on from a checkpoint, if there is one of the same run."""
    path = work / ABOUT
    if overwrite or not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINT, PREVIOUS):
            (work / name).unlink(missing_ok=True)
        write_text(path, json.dumps(about, indent=1))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != about:
        raise DataError(
            f"{work}: holds an interrupted run with other data or settings; make that call again, "
            "or add --overwrite"
        )
    state = load_checkpoint(work)
    if state is not None:
        tuner.restore(state)


#: The figures that go on the card; the report has all.
_TOLD = (
    "balanced accuracy",
    "macro AUROC",
    "expected calibration error",
    "share flagged as unlike",
)


def _card(
    output: Path,
    base: _Base,
    shape: Input,
    classes: tuple[str, ...],
    parts: Split,
    frames: FrameStore,
    tuner: Tuner,
    verdict: Verdict,
    name: str,
    subjects: bool,
    licence: str | None,
) -> Card:
    """The card, but for the weights' digest."""
    tag = re.sub(r"[^a-z0-9]+", "_", output.resolve().name.lower()).strip("_") or "model"
    held = {video.subject for video in (*parts.validation, *parts.held_out)}
    unit = "subjects" if subjects else "files"
    count = len(verdict.bootstrap.task.subjects)
    origin = frames.description["origin"]
    own = Source(
        name=name,
        url=origin.get("url"),
        citation=origin.get("citation"),
        **frames.summary(parts.train),
    )
    settings, progress = tuner.settings, tuner.progress
    limits = ["Not a medical device; not for diagnosis or treatment."]
    limits.append(
        f"Fine-tuned on {own.frames} frames of {own.subjects} {unit}; other probes, vendors and "
        "populations are untested."
    )
    earlier: tuple[Source, ...] = ()
    if base.card is not None:
        earlier = base.card.training.sources
        limits.append(
            f"Begun from {base.name}, whose licence ({base.card.licence or 'not stated'}) binds "
            "these weights."
        )
    if not subjects:
        limits.append("Subjects were not known: files of one may be on both sides of the split.")
    return Card(
        name=f"{base.model}.{tag}",
        architecture=base.architecture,
        summary=f"{base.name} fine-tuned on {name}",
        weights=Weights(file=store.HUB_FILE),
        input=shape,
        training=Training(
            method=f"fine-tuning of {base.name}",
            sources=(own, *earlier),
            labels=classes,
            # names of files are not for a card, nor are a hundred thousand of anything
            held_out_subjects=tuple(sorted(held)) if subjects and len(held) <= MANY else (),
            recipe=to_plain(settings),
            epochs=progress.best,
            steps=progress.best * tuner.steps,
            seed=settings.seed,
            code=code_version(),
            hardware=hardware(tuner.device),
            hours=round(progress.seconds / 3600, 3),
        ),
        licence=licence,
        intended_use=f"Research: telling {', '.join(classes)} apart in images like {name}.",
        limits=tuple(limits),
        metrics=tuple(
            Metric(
                dataset=f"{name}, {count} held-out {unit}",
                protocol=f"fine-tuning ({settings.train}), stopped and calibrated on "
                f"{len({v.subject for v in parts.validation})} validation {unit}",
                unit=judged.unit,
                metric=metric,
                value=round(score.value, 3),
                interval=(round(score.low, 3), round(score.high, 3)),
                interval_kind=f"95 %, bootstrap over {count} held-out {unit} within classes",
                compared_with=None,
                command="uscl finetune",
                model=None,
            )
            for judged in verdict.units
            for metric, score in verdict.figures[judged.unit].items()
            if metric in _TOLD and np.isfinite(score.value)
        ),
        classes=classes,
    )


def _write_model(
    output: Path, card: Card, network: nn.Module, answers: Answers, statistics: Statistics
) -> Card:
    """Write what makes the folder a model; `predict.json`, which makes it one, last."""
    for old in output.glob("*.yaml"):
        # a model has one card; what is none stays
        with contextlib.suppress(CardError):
            read_card(old)
            old.unlink()
    weights = output / card.weights.file
    state = network.state_dict()
    checkpoint.write_backbone(state, weights, card.architecture, False, len(card.classes))
    digest = store.sha256_of(weights)
    known = Weights(file=weights.name, sha256=digest, bytes=weights.stat().st_size)
    card = dataclasses.replace(card, weights=known)
    with written(output / STATISTICS) as partial:
        partial.write_bytes(pack(statistics))
    write_text(output / publish.CONFIG, json.dumps(publish.config(card), indent=2) + "\n")
    write_yaml(output / f"{card.name}.yaml", card)
    write_text(output / ANSWERS, json.dumps(to_plain(answers), indent=1, ensure_ascii=False))
    return read_card(output / f"{card.name}.yaml")
