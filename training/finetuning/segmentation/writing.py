"""What makes a folder a model that outlines: weights that smp loads alone, and what it says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from uscl_zoo.answers import ANSWERS, CONFIG, STATISTICS, Statistics
from uscl_zoo.errors import CheckpointError, one_line
from uscl_zoo.files import written
from uscl_zoo.records import to_plain, write_text
from uscl_zoo.segmentation.model import Outliner
from uscl_zoo.segmentation.networks import config_of
from uscl_zoo.zoo.card import Input, Metric, Source, Training
from uscl_zoo.zoo.hub import HUB_FILE

from ...learning.runs import code_version, hardware
from ..gathering import Base
from ..judging import QUANTILE, pack
from ..writing import MANY, limits_of
from .apart import Calibration
from .figures import Figures
from .fit import LessonLearner
from .gather import Decoded
from .outlined import Outlined

#: The figures that the model has with it; the report has all.
_KEPT = ("Dice", "IoU", "mask AP50", "box AP50", "mask AP", "box AP")


def said_of(
    base: Base,
    outlined: Outlined,
    decoded: Decoded,
    learner: LessonLearner,
    calibration: Calibration,
    shape: Input,
    *,
    task: str,
    confidence: float,
    rate: float,
    licence: str | None,
) -> Outliner:
    """What a model says of itself, but for its figures and digests."""
    rows = decoded.train
    names = decoded.subjects(rows)
    own = Source(
        name=outlined.name,
        url=outlined.url,
        citation=outlined.citation,
        videos=len(rows),
        frames=len(rows),
        subjects=len(set(names)),
        classes={
            title: sum(label in decoded.present[row] for row in rows.tolist())
            for label, title in enumerate(outlined.classes)
        },
        licences={} if outlined.licence is None else {outlined.licence: len(rows)},
    )
    unit = "subjects" if outlined.subjects else "images"
    trained = f"{len(rows)} images of {own.subjects} {unit}"
    limits = limits_of(trained, base, None if outlined.subjects else "images")
    earlier = () if base.card is None else base.card.training.sources
    held = sorted(set(decoded.subjects(decoded.judged)))
    settings, progress = learner.settings, learner.progress
    what = ", ".join(outlined.classes)
    return Outliner(
        task=task,
        network=settings.network,
        encoder=base.architecture,
        classes=outlined.classes,
        input=shape,
        temperature=calibration.pixels.temperature,
        exponent=calibration.pixels.exponent,
        trust=calibration.trust,
        confidence=confidence,
        threshold=calibration.threshold,
        quantile=QUANTILE,
        validation_images=calibration.images,
        rate=rate,
        weights_sha256="0" * 64,
        statistics_sha256="0" * 64,
        flips=settings.flips,
        summary=one_line(f"{what} in {outlined.name}: {settings.network} from {base.name}"),
        licence=licence,
        intended_use=one_line(f"Research: outlining {what} in images like {outlined.name}."),
        limits=tuple(limits),
        training=Training(
            method=f"{task} ({settings.network}) from {base.name}",
            sources=(own, *earlier),
            start=base.origin,
            labels=outlined.classes,
            held_out_subjects=tuple(held) if outlined.subjects and len(held) <= MANY else (),
            recipe=to_plain(settings),
            epochs=progress.epoch,
            steps=progress.epoch * learner.steps,
            seed=settings.seed,
            code=code_version(),
            hardware=hardware(learner.device),
            hours=round(progress.seconds / 3600, 3),
        ),
    )


def with_figures(said: Outliner, figures: Figures, dataset: str) -> Outliner:
    """The same with what it is worth."""
    count = len(figures.bootstrap.task.subjects)
    metrics = [
        Metric(
            dataset=dataset,
            protocol=f"{said.task}, calibrated by cross-validation of training subjects",
            unit=unit,
            metric=name,
            value=round(score.value, 3),
            interval=(round(score.low, 3), round(score.high, 3)),
            interval_kind=f"95 %, bootstrap over {count} held-out subjects",
            compared_with=None,
            command=f"uscl finetune --task {said.task}",
            model=None,
        )
        for name, both in figures.rows.items()
        if name in _KEPT
        for unit, score in zip(("image", "subject"), both, strict=True)
        if score is not None and score.value == score.value
    ]
    return dataclasses.replace(said, metrics=tuple(metrics))


def write_model(
    output: Path, said: Outliner, network: nn.Module, statistics: Statistics
) -> Outliner:
    """Write what makes the folder a model; `predict.json`, which makes it one, last."""
    (output / ANSWERS).unlink(missing_ok=True)
    state = {}
    for name, tensor in network.state_dict().items():
        stored = tensor.detach().cpu().contiguous()
        if stored.is_floating_point() and not torch.isfinite(stored).all():
            raise CheckpointError(f"{name}: has values that are not finite; not written")
        state[name] = stored
    content, known = save(state, metadata={"format": "pt"}), pack(statistics)
    for name, data in ((HUB_FILE, content), (STATISTICS, known)):
        with written(output / name) as partial:
            partial.write_bytes(data)
    said = dataclasses.replace(
        said,
        weights_sha256=hashlib.sha256(content).hexdigest(),
        statistics_sha256=hashlib.sha256(known).hexdigest(),
    )
    if said.task == "segmentation":
        write_text(
            output / CONFIG,
            json.dumps(config_of(network, said.encoder, len(said.classes)), indent=2) + "\n",
        )
    else:
        # of an earlier model there: nothing builds a detector of one
        (output / CONFIG).unlink(missing_ok=True)
    write_text(output / ANSWERS, json.dumps(to_plain(said), indent=1, ensure_ascii=False))
    return said
