"""What makes a folder a model: its card, its weights, and how its logits become answers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from uscl_zoo.answers import (
    ANSWERS,
    CLASSES,
    CONFIG,
    LABELS,
    NUMBER,
    STATISTICS,
    Answers,
    Statistics,
)
from uscl_zoo.errors import CardError
from uscl_zoo.files import written
from uscl_zoo.modelcard import config
from uscl_zoo.records import to_plain, write_text, write_yaml
from uscl_zoo.zoo import checkpoint
from uscl_zoo.zoo.card import Card, Metric, Source, Training, Weights, read_card
from uscl_zoo.zoo.digests import sha256_of
from uscl_zoo.zoo.hub import HUB_FILE

from ..downstream.bootstrap import Score
from ..downstream.goal import Goal
from ..learning.runs import code_version, hardware
from .gathering import Base, Gathered
from .judging import Verdict, pack
from .rivals import OWN, Standing
from .tuning import Tuner

#: Held-out subjects at most that a card names: a hundred thousand of anything are not for one.
MANY = 1000
# Characters of a folder's name that the name of its model takes; a file's name ends at 255.
_TAG = 60
_PURPOSE = {
    CLASSES: "telling {} apart",
    LABELS: "finding {}",
    NUMBER: "estimating {}",
}


def card_of(
    output: Path,
    base: Base,
    given: Gathered,
    tuner: Tuner,
    verdict: Verdict,
    standing: Standing,
    folds: int | None,
    licence: str | None,
) -> Card:
    """The card, but for the weights' digest."""
    tag = re.sub(r"[^a-z0-9]+", "_", output.resolve().name.lower())[:_TAG].strip("_") or "model"
    frames, parts, subjects, name = given.store, given.parts, given.subjects, given.name
    goal, classes = given.goal, given.outputs
    held = {video.subject for video in parts.held_out}
    unit = "subjects" if subjects else "files"
    count = len(verdict.bootstrap.task.subjects)
    origin = frames.description["origin"]
    own = Source(
        name=name,
        url=origin.get("url"),
        citation=origin.get("citation"),
        **(frames.summary(parts.train) | {"classes": _counted(given)}),
    )
    settings, progress = tuner.settings, tuner.progress
    members = f", {settings.members} networks averaged" if settings.members > 1 else ""
    what = f"{own.frames} frames of {own.subjects} {unit}"
    limits = limits_of(what, base, None if subjects else "files")
    earlier = () if base.card is None else base.card.training.sources
    which = "left-out" if folds else "held-out"
    dataset = f"{name}, {count} {which} {unit}"
    within = " within classes" if goal.task == CLASSES else ""
    resampling = f"95 %, bootstrap over {count} {which} {unit}{within}"
    trained = len({video.subject for video in parts.train})
    how = f"calibrated by cross-validation of {trained} training {unit}"
    if folds:
        how = (
            f"by cross-validation of {folds} folds, each calibrated by the others; the weights are "
            "of a network trained on all"
        )

    def interval(score: Score) -> dict[str, Any]:
        bounds = None
        if score.bounded:
            bounds = _rounded(score.low, goal), _rounded(score.high, goal)
        return {"interval": bounds, "interval_kind": resampling if bounds else None}

    figures = [
        Metric(
            dataset=dataset,
            protocol=f"fine-tuning ({settings.train}{members}), {how}",
            unit=judged.unit,
            metric=metric,
            value=_rounded(score.value, goal),
            compared_with=None,
            command="uscl finetune",
            model=None,
            **interval(score),
        )
        for judged in verdict.units
        for metric, score in verdict.figures[judged.unit].items()
        if metric in goal.on_card and np.isfinite(score.value)
    ]
    figures += [
        Metric(
            dataset=dataset,
            protocol="fine-tuning and a logistic regression on frozen features of the same "
            "training subjects",
            unit=standing.judged.unit,
            metric=metric,
            value=_rounded(rival.gap[metric].value, goal),
            compared_with=f"a linear head on {base.name if rival.name == OWN else rival.name}",
            command="uscl finetune",
            model=None,
            **interval(rival.gap[metric]),
        )
        for rival in standing.rivals
        for metric in goal.on_card
        # of an error a difference below zero would be read as behind
        if metric in rival.gap and metric != "MAE" and np.isfinite(rival.gap[metric].value)
    ]
    return Card(
        name=f"{base.model}.{tag}",
        architecture=base.architecture,
        summary=f"{base.name} fine-tuned on {name}",
        weights=Weights(file=HUB_FILE),
        input=given.shape,
        training=Training(
            method=f"fine-tuning of {base.name}",
            sources=(own, *earlier),
            start=base.origin,
            labels=classes if goal.task != NUMBER else (),
            # names of files are not for a card
            held_out_subjects=tuple(sorted(held)) if subjects and len(held) <= MANY else (),
            recipe=to_plain(settings),
            epochs=progress.epoch,
            steps=progress.epoch * tuner.steps,
            seed=settings.seed,
            code=code_version(),
            hardware=hardware(tuner.device),
            hours=round(progress.seconds / 3600, 3),
        ),
        licence=licence,
        intended_use=f"Research: {_PURPOSE[goal.task].format(', '.join(classes))} in images like "
        f"{name}.",
        limits=tuple(limits),
        metrics=tuple(figures),
        classes=classes,
        task=None if goal.task == CLASSES else goal.task,
    )


def _rounded(value: float, goal: Goal) -> float:
    # a number may be of any size
    return float(f"{value:.4g}") if goal.task == NUMBER else round(value, 3)


def limits_of(what: str, base: Base, several: str | None) -> list[str]:
    """What any fine-tuned model says of its limits.

    Args:
        what: it was trained on.
        base: what it began from.
        several: what one subject may have several of, where subjects were not known.
    """
    limits = [
        "Not a medical device; not for diagnosis or treatment.",
        f"Fine-tuned on {what}; other probes, vendors and populations are untested.",
        f"Begun from {base.name}, whose licence ({base.licence or 'not stated'}) binds these "
        "weights.",
    ]
    if several is not None:
        limits.append(
            f"Subjects were not known: {several} of one may be on both sides of the split."
        )
    return limits


def _counted(given: Gathered) -> dict[str, int]:
    """Training files by class, or with a label; of numbers nothing is to be counted."""
    texts = [video.label or "" for video in given.parts.train]
    if given.goal.task == NUMBER:
        return {}
    if given.goal.task == CLASSES:
        return dict(sorted(Counter(texts).items()))
    target = given.goal.targets(texts, given.outputs)
    return {name: int((target[:, i] == 1).sum()) for i, name in enumerate(given.outputs)}


def write_model(
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
    digest = sha256_of(weights)
    known = Weights(file=weights.name, sha256=digest, bytes=weights.stat().st_size)
    card = dataclasses.replace(card, weights=known)
    with written(output / STATISTICS) as partial:
        partial.write_bytes(pack(statistics))
    write_text(output / CONFIG, json.dumps(config(card), indent=2) + "\n")
    write_yaml(output / f"{card.name}.yaml", card)
    write_text(output / ANSWERS, json.dumps(to_plain(answers), indent=1, ensure_ascii=False))
    return read_card(output / f"{card.name}.yaml")
