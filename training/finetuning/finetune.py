"""Fine-tuning on classes, labels or numbers of one's own: from a table to a model that answers.

Subjects are split two ways. The *training* ones give the gradient, and in a cross-validation among
them the temperature and the threshold for other kinds of image; the *held-out* ones are looked at
once, at the end, and every figure is theirs. Or none is held out, and the figures are those of a
cross-validation over all of them.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from uscl_zoo.answers import ANSWERS, Answers, Statistics
from uscl_zoo.checks import seed_of
from uscl_zoo.errors import DataError
from uscl_zoo.files import check_folder, expanded, locked
from uscl_zoo.names import say
from uscl_zoo.network import Network
from uscl_zoo.records import to_plain
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Card
from uscl_zoo.zoo.catalogue import folder_of

from ..downstream.sample import Sample
from ..downstream.settings import MEMBERS, Settings, check_given, sensible
from ..learning.execution import device_named
from . import report
from .concluding import BLANKED, Conclusion, conclude
from .crossing import Plan, answer_apart, folds_of
from .estimating import estimate, spoken
from .gathering import Base, Gathered, backbone, gather
from .judging import Looked, OutOfFold, Verdict, calibrate, for_fold, judge, look
from .loop import fit
from .rivals import compare, frames_of, heads
from .tasks import TASKS, goal_of
from .tuning import Tuner, cost_of, merge
from .work import go_on, is_work, put_away
from .writing import card_of, write_model

WORK, STORE, FINAL = "work", "store", "final"
# What an interrupted call leaves.
_LEFT = re.compile(rf"{STORE}|{FINAL}[1-{MEMBERS}]|fold[1-9]\d*(\.npz)?")


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    Attributes:
        folder: of the model.
        card: of the model, with every figure.
        notes: what the reader of the figures should know.
        verdict: a sentence: how good it is, against what, and for whom not.
    """

    folder: Path
    card: Card
    notes: tuple[str, ...]
    verdict: str

    def __str__(self) -> str:
        figures = [
            f"  {metric.metric}, by {metric.unit}: {metric.value:.3f}"
            + (" [{:.3f}, {:.3f}]".format(*metric.interval) if metric.interval else "")
            for metric in self.card.metrics
            if metric.compared_with is None
        ]
        kinds = (metric.interval_kind for metric in self.card.metrics)
        kind = next((f"  ({kind})" for kind in kinds if kind), None)
        named = f"{self.folder}: {', '.join(self.card.classes)}"
        return "\n".join(filter(None, [self.verdict, named, *figures, kind]))


def finetune(
    data: str | Path,
    output: str | Path,
    *,
    model: str | Path = "resnet18_uscl",
    task: str = TASKS[0],
    train: str | None = None,
    file_column: str = "Filename",
    label_column: str | Sequence[str] | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    every_row: bool = False,
    rate: float = 3.0,
    size: int | None = None,
    holdout: float = 0.2,
    folds: int | None = None,
    confidence: float = 0.7,
    effort: str = "normal",
    epochs: int | None = None,
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
        task: one of `TASKS`.
        train: `head`, `last` or `all`, see `Settings`; None for `all`, or `last` of a quick look.
        file_column: as for `collect`, like the next six.
        label_column: of a CSV; of several labels a column each, or one with lists.
        subject_column: of a CSV.
        subject_pattern: of a folder or CSV.
        classes: the only ones to take.
        exclude: patterns of file names to leave out.
        every_row: whether a row of a CSV without a file is an error.
        rate: frames a second to take from videos.
        size: height and width of the frames; None for what the backbone was trained on.
        holdout: share of the subjects of each class to be judged on.
        folds: of a cross-validation over all subjects, which the figures are from; the model that
            is kept is trained on all of them. None to hold some out.
        confidence: probability below which the model will say "cannot tell"; of a number it has
            no meaning.
        effort: `quick`, `normal` or `best`, see docs/finetune.md.
        epochs: as in `Settings`, like the next three; None to choose.
        batch_size: frames a step.
        learning_rate: at the start.
        label_smoothing: share of the target.
        class_weights: weigh the classes by one over the root of their frames; the default.
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
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with everything saved.
    """
    goal = goal_of(task)
    given_: dict[str, object] = {"classes": classes, "label_smoothing": label_smoothing}
    for argument, value in {**given_, "class_weights": class_weights}.items():
        if value is not None and argument in goal.unfit:
            raise DataError(f"`{argument}` has no meaning with `task={task}`; leave it out")
    seed = seed_of(seed)
    rate, size, holdout, folds, confidence, resamples, workers = check_given(
        rate=rate,
        size=size,
        holdout=holdout,
        folds=folds,
        confidence=confidence,
        resamples=resamples,
        workers=workers,
    ).values()
    epochs, batch_size, learning_rate, label_smoothing = check_given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        label_smoothing=label_smoothing,
    ).values()
    plan = Plan() if folds is None else Plan(folds, whole=True)
    data, output = expanded(data), expanded(output)
    work, chosen = output / WORK, device_named(device)
    if (output / ANSWERS).exists() and not overwrite:
        raise DataError(f"{output}: holds a model already; add `overwrite=True` or choose another")
    home = folder_of(model)
    if work.exists() and not is_work(work, _LEFT):
        raise DataError(f"{work}: is not of an interrupted call; move it, or choose another folder")
    ours = (output / ANSWERS).is_file() or work.exists()
    check_folder(output, ours, [data, *([home] if home else [])])
    with locked(output):
        base = backbone(model)
        base.allows(licence)
        notes: list[str] = []

        def note(text: str) -> None:
            notes.append(text)
            tell(text)

        if base.doubt is not None:
            note(base.doubt)
        given = gather(
            data,
            work / STORE,
            base,
            note,
            goal=goal,
            folds=folds,
            columns={
                "file_column": file_column,
                "label_column": label_column,
                "subject_column": subject_column,
                "subject_pattern": subject_pattern,
                "classes": classes,
                "exclude": exclude,
                "every_row": every_row,
            },
            rate=rate,
            size=size,
            holdout=holdout,
            seed=seed,
            name=name,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
        )
        settings = sensible(
            len(given.parts.train),
            effort,
            train,
            goal.own,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            label_smoothing=label_smoothing,
            class_power=None if class_weights is None else 0.5 * class_weights,
            seed=seed,
        )
        about = {"settings": to_plain(settings), "model": str(model), "store": given.store.digest}
        about |= {"task": task, "folds": folds}
        go_on(work, about, overwrite, STORE)
        tuners, apart = _train(base, given, settings, plan, chosen, work, progress, tell)

        def measured(tuner: Tuner) -> tuple[Answers, Statistics, list[Looked], Verdict]:
            answers, statistics = calibrate(
                tuner, apart, given.outputs, given.shape, confidence, given.rate
            )
            answers = answers.made_for(given.store.description["sampling"])
            looked = _look(tuner, given, apart, answers, statistics, progress)
            rows, known = tuner.train.rows, given.subjects
            verdict = judge(looked, goal, given.store, rows, known, resamples, seed)
            return answers, statistics, looked, verdict

        # of a cross-validation the figures are of its own networks, a single one a fold
        alone = measured(tuners[0])[-1] if len(tuners) > 1 and not plan.whole else None
        tuner = merge(tuners)
        answers, statistics, looked, verdict = measured(tuner)
        if alone is not None:
            note(gained(len(tuners), alone, verdict))
        tell("compares it with linear heads on frozen features")
        pairs = _pairs(given, apart, looked)
        conclusion = _conclude(
            base, given, tuner, answers, statistics, pairs, verdict, output.name, progress
        )
        # without it the folder is no model, so that half of one and half of another never are
        (output / ANSWERS).unlink(missing_ok=True)
        card = card_of(output, base, given, tuner, verdict, conclusion.standing, folds, licence)
        history, frames = tuner.progress.history, given.store.frames
        report.write(output, card, verdict, conclusion, history, answers, frames, notes)
        card = write_model(output, card, tuner.network, answers, statistics)
        put_away(work)
        return Finetuned(output, card, tuple(notes), conclusion.verdict)


def _train(
    base: Base,
    given: Gathered,
    settings: Settings,
    plan: Plan,
    device: torch.device,
    work: Path,
    progress: bool,
    tell: Callable[[str], None],
) -> tuple[list[Tuner], OutOfFold]:
    """The networks that are trained on all subjects, and answers of the cross-validation."""
    outputs, shape, frames = given.outputs, given.shape, given.store.frames
    sample = given.sample(given.parts.train)

    def build() -> Any:
        network = copy.deepcopy(base.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network.reset_classifier(len(outputs))
        return network

    briefly = plan.settings(settings)
    folds = folds_of(sample, settings.seed, plan.folds, given.goal)
    runs = [(sample.take(own), briefly) for own, _ in folds]
    runs += [(sample, settings)] * settings.members
    judged = sum(video.count for video in (*given.parts.held_out, *given.parts.train))
    pairs = [(sample.take(own), sample.take(other)) for own, other in folds]
    if not plan.whole:
        pairs = [(sample, given.sample(given.parts.held_out))]
    names = heads(base.name, base.architecture, bool(settings.epochs))
    embedded = len(names) * len(frames_of(pairs)[1])
    blanked = min(BLANKED, len(given.parts.held_out or given.parts.train))
    seconds = estimate(build(), frames, runs, judged, embedded, blanked, device, shape, given.goal)
    tell(
        f"{len(given.parts.train)} files to train on, "
        + ("each judged by" if plan.whole else f"{len(given.parts.held_out)} to be judged on;")
        + (" the fold it is left out of;" if plan.whole else "")
        + f" trains {settings.train}, "
        + (
            f"{settings.epochs} epochs, {settings.batch_size} frames a step"
            if settings.epochs
            else "by regression alone"
        )
        + (f", {settings.members} networks" if settings.members > 1 else "")
        + f", and {plan.folds} folds of {briefly.epochs}; about {spoken(seconds)} on {device}"
    )
    total = sum(cost_of(*run, int(frames.shape[1])) for run in runs)
    form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=total, disable=not progress or not total, bar_format=form) as bar:

        def tick(cost: float, text: str) -> None:
            bar.update(cost)
            bar.set_postfix_str(text, refresh=False)

        apart = answer_apart(
            build, frames, sample, settings, device, shape, work, tick, plan, given.goal
        )
        tuners = []
        for member in range(settings.members):
            own = dataclasses.replace(settings, seed=settings.seed + member)
            tuner = Tuner(build(), frames, sample, own, device, shape.mean, shape.std, given.goal)
            fit(tuner, work / f"{FINAL}{member + 1}", tick)
            tuners.append(tuner)
    return tuners, apart


def _look(
    tuner: Tuner,
    given: Gathered,
    apart: OutOfFold,
    answers: Answers,
    statistics: Statistics,
    progress: bool,
) -> list[Looked]:
    """What is made of the files that are judged, by the network or those of a cross-validation."""
    if given.parts.held_out:
        rows = given.sample(given.parts.held_out).rows
        logits, textures = look(tuner, rows, given.shape, progress)
        return [Looked(given.parts.held_out, logits, statistics.distance(textures), answers)]
    clip = tuner.train.clip
    looked = []
    for fold in np.unique(apart.fold):
        own = apart.take(apart.fold == fold)
        videos = [given.parts.train[i] for i in np.unique(clip[own.place])]
        fitted = for_fold(answers, given.goal, apart, int(fold))
        looked.append(Looked(videos, own.logits, own.distance, fitted))
    return looked


def _pairs(
    given: Gathered, apart: OutOfFold, looked: Sequence[Looked]
) -> list[tuple[Sample, Sample]]:
    """Frames that linear heads are fitted on and judged by, as the network was."""
    sample = given.sample(given.parts.train)
    if given.parts.held_out:
        return [(sample, given.sample(given.parts.held_out))]
    judged = given.sample([video for part in looked for video in part.videos])
    starts = np.cumsum([0, *(len(part.videos) for part in looked)])
    pairs = []
    for fold, (first, last) in enumerate(itertools.pairwise(starts)):
        train = sample.take(np.sort(apart.place[apart.fold != fold]))
        test = judged.take(np.flatnonzero((judged.clip >= first) & (judged.clip < last)))
        pairs.append((train, test))
    return pairs


def _conclude(
    base: Base,
    given: Gathered,
    tuner: Tuner,
    answers: Answers,
    statistics: Statistics,
    pairs: list[tuple[Sample, Sample]],
    verdict: Verdict,
    name: str,
    progress: bool,
) -> Conclusion:
    """What it comes to, beside linear heads on the same subjects."""
    shape, settings = given.shape, tuner.settings
    standing = compare(
        heads(base.name, base.architecture, bool(settings.epochs)),
        base.network,
        given.goal,
        given.store.frames,
        pairs,
        next(unit for unit in verdict.units if unit.unit == "clip"),
        verdict.bootstrap,
        shape,
        tuner.device,
        tuner.precision,
        settings.seed,
        progress,
    )
    network = Network(
        reference=name,
        kind="module",
        name=name,
        module=tuner.network,
        transform=FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation),
        classes=given.outputs,
        answers=answers,
        statistics=statistics,
    )
    return conclude(
        standing,
        given.store,
        given.parts.train,
        given.parts.held_out or given.parts.train,
        network,
        fitted=round(float(np.mean([len(np.unique(train.subject)) for train, _ in pairs]))),
        known=given.subjects,
        seed=settings.seed,
    )


def gained(members: int, alone: Verdict, verdict: Verdict) -> str:
    """What the mean of several networks is worth beside the first of them, in words."""
    names = [name for name in verdict.goal.on_card if name in verdict.figures["clip"]][:2]
    figures = "; ".join(
        f"{name} {verdict.figures['clip'][name].value:.4g}, of the first alone "
        f"{alone.figures['clip'][name].value:.4g}"
        for name in names
    )
    return f"the weights of {members} networks are averaged; by held-out clips {figures}"
