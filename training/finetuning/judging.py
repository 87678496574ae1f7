"""What a fine-tuned network is worth: answers of its logits, and a verdict on held-out subjects."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from scipy.stats import t as student  # type: ignore[import-untyped]
from tqdm import tqdm

from uscl_zoo.answers import Answers, Statistics
from uscl_zoo.classifier import prediction
from uscl_zoo.classifier.prediction import Answer
from uscl_zoo.inference import batched, both_ways, infer, logits_and_textures
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Input

from ..downstream.bootstrap import Bootstrap, Score, Task
from ..downstream.goal import Goal
from ..downstream.metrics import Judged
from ..downstream.sample import Rows, Sample
from ..learning.frames import FrameStore, Video
from ..learning.pairs import Purpose, stream
from .tuning import SURVEYED, Tuner

#: Of the distances of frames from the images that their network was trained on.
QUANTILE = 0.99


@dataclass(frozen=True)
class OutOfFold:
    """What networks say of frames of subjects that they were not trained on.

    Attributes:
        logits: float32 (N, classes).
        target: int64 (N,).
        subject: int64 (N,).
        distance: float64 (N,), from the images that the network was trained on.
        place: int64 (N,), among the frames to train on.
        fold: int64 (N,), whose network answered.
    """

    logits: npt.NDArray[np.float32]
    target: npt.NDArray[Any]
    subject: Rows
    distance: npt.NDArray[np.float64]
    place: Rows
    fold: Rows

    @classmethod
    def join(cls, parts: Sequence[OutOfFold]) -> OutOfFold:
        """The frames of all of them."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def take(self, chosen: npt.NDArray[Any]) -> OutOfFold:
        """Some of the frames."""
        return OutOfFold(*(getattr(self, f.name)[chosen] for f in dataclasses.fields(self)))

    def weights(self) -> npt.NDArray[np.float64]:
        """Weights (N,) that sum to 1 and count every subject the same, however many frames."""
        share = 1.0 / np.bincount(self.subject)[self.subject]
        return np.asarray(share / share.sum())


def calibrate(
    tuner: Tuner,
    apart: OutOfFold,
    classes: tuple[str, ...],
    shape: Input,
    confidence: float,
    rate: float,
) -> tuple[Answers, Statistics]:
    """Fit what makes answers of logits, on what was said of subjects while they were left out.

    Args:
        tuner: trained on all of them.
        apart: answers about them by networks that were trained without them.
        classes: in the order of the logits.
        shape: of the input.
        confidence: below which there is no answer.
        rate: frames a second that were sampled.
    """
    statistics = survey(tuner, shape)
    answers = Answers(
        classes=classes,
        confidence=confidence,
        threshold=threshold_of(apart.distance),
        quantile=QUANTILE,
        validation_frames=len(apart.target),
        rate=rate,
        statistics_sha256=hashlib.sha256(pack(statistics)).hexdigest(),
        flips=tuner.settings.flips,
        task=tuner.goal.task,
        temperature=1.0,
    )
    return dataclasses.replace(answers, **fitted(tuner.goal, apart)), statistics


def fitted(goal: Goal, apart: OutOfFold) -> dict[str, Any]:
    """What is fitted for answers on what was said of subjects while they were left out."""
    count = len(np.unique(apart.subject))
    return goal.calibration(apart.logits, apart.target, apart.weights(), count)


def for_fold(answers: Answers, goal: Goal, apart: OutOfFold, fold: int) -> Answers:
    """How logits of one fold become answers, by what the other folds' networks said."""
    others = apart.take(apart.fold != fold)
    fit = fitted(goal, others)
    return dataclasses.replace(answers, threshold=threshold_of(others.distance), **fit)


def survey(tuner: Tuner, shape: Input) -> Statistics:
    """The statistics of the images that a network was trained on, at most `SURVEYED` of them."""
    rng = stream(tuner.settings.seed, 0, Purpose.VIDEOS)
    rows = np.sort(rng.permutation(tuner.train.rows)[:SURVEYED])
    return Statistics.of(look(tuner, rows, shape)[1])


def threshold_of(distances: npt.NDArray[np.float64], quantile: float = QUANTILE) -> float:
    """The distance above which an image is of another kind than these.

    Of many frames the quantile, a figure of the data. The largest of N is passed by one in N + 1
    more; of few it is therefore at least what one more stays below with that probability, if
    logarithms of distances are normal (a prediction interval by Student's t).

    Args:
        distances: (N,), of frames that their network had not seen, N at least 1.
        quantile: below 1.
    """
    highest = float(np.quantile(distances, quantile, method="higher"))
    count = len(distances)
    if count < 2 or count * (1 - quantile) >= 1:
        return highest
    logs = np.log(np.maximum(distances, 1e-12))
    wide = float(student.ppf(quantile, count - 1)) * logs.std(ddof=1) * np.sqrt(1 + 1 / count)
    return max(highest, float(np.exp(logs.mean() + wide)))


def look(
    tuner: Tuner, rows: Rows, shape: Input, progress: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Logits and textures of frames, by the way that `uscl predict` goes."""
    transform = FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
    bar = tqdm(rows, "judges", unit="frame", leave=False, disable=not progress)
    batches = batched(transform.resize(tuner.frames[row]) for row in bar)
    answer = both_ways(logits_and_textures) if tuner.settings.flips else logits_and_textures
    outputs = np.concatenate(list(infer(tuner.network, transform.normalise, batches, answer)))
    classes = int(tuner.network.num_classes)  # type: ignore[arg-type]
    return outputs[:, :classes], outputs[:, classes:]


def pack(statistics: Statistics) -> bytes:
    """The statistics as a safetensors file."""
    tensors = {"mean": statistics.mean, "precision": statistics.precision}
    return save({name: torch.from_numpy(array) for name, array in tensors.items()})


@dataclass(frozen=True)
class Verdict:
    """Held-out subjects, judged.

    Attributes:
        frames: an answer each.
        clips: an answer each.
        subjects: an answer each; none where subjects are not known.
        rows: of the store, of each frame.
        units: what figures are computed from: frames where they are not clips as well, clips, and
            subjects where they are known and each is of one class.
        bootstrap: resampled held-out subjects.
        figures: by unit and name.
        labels: by source, and by subject for those of one class.
        goal: what is said.
    """

    frames: list[Answer]
    clips: list[Answer]
    subjects: list[Answer]
    rows: Rows
    units: list[Judged]
    bootstrap: Bootstrap
    figures: dict[str, dict[str, Score]]
    labels: dict[str, str]
    goal: Goal

    def label(self, answer: Answer) -> str:
        """The true class; empty for a subject of several."""
        return self.labels.get(str(answer.source or answer.subject), "")


@dataclass(frozen=True)
class Looked:
    """What a network makes of videos that it was not trained on.

    Attributes:
        videos: of a store.
        logits: float32 (N, outputs), of their frames.
        distance: float64 (N,), of each from the training images.
        answers: how logits become answers.
    """

    videos: Sequence[Video]
    logits: npt.NDArray[np.float32]
    distance: npt.NDArray[np.float64]
    answers: Answers


def judge(
    looked: Sequence[Looked],
    goal: Goal,
    frames: FrameStore,
    trained: Rows,
    subjects: bool = True,
    resamples: int = 2000,
    seed: int = 0,
) -> Verdict:
    """Answer for videos of which the truth is known, and measure.

    Args:
        looked: what was made of them; a part a fold of a cross-validation.
        goal: what is said.
        frames: the store.
        trained: rows that were trained on.
        subjects: whether subjects are known.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    outputs = looked[0].answers.classes
    videos = [video for part in looked for video in part.videos]
    texts = {video.name: video.label or "" for video in videos}
    sample = Sample.of(videos, outputs, goal.targets(list(texts.values()), outputs))
    tables: list[list[Answer]] = [[], [], []]
    for part in looked:
        rows = Sample.of(part.videos, (), np.zeros(len(part.videos)))
        answered = prediction.answer(
            part.answers,
            part.answers.of(part.logits),
            part.distance,
            owner=rows.clip,
            number=np.concatenate([np.arange(video.count) for video in part.videos]),
            time=frames.times[rows.rows],
            sources=[Path(video.name) for video in part.videos],
            subjects=[video.subject if subjects else None for video in part.videos],
        )
        for table, more in zip(tables, answered, strict=True):
            table += more
    pictures, clips, people = tables
    names = tuple(sorted({video.subject for video in videos}))
    labels = dict(texts)
    of_subject: dict[str, set[str]] = {}
    for video in videos:
        of_subject.setdefault(video.subject, set()).add(video.label or "")
    if subjects:
        labels |= {who: min(own) for who, own in of_subject.items() if len(own) == 1}
    owner = {video.name: video.subject for video in videos}
    within = goal.within(sample.target)
    bootstrap = Bootstrap.draw(
        Task(
            classes=outputs,
            train=trained,
            test=sample.rows,
            train_target=np.zeros(len(trained), np.int64),
            test_target=within,
            test_subject=sample.subject,
            subjects=names,
        ),
        resamples,
        seed,
    )
    units = []
    for table in (pictures if len(pictures) > len(clips) else [], clips, people):
        known = [a for a in table if str(a.source or a.subject) in labels]
        if known:
            whose = [a.subject or owner[str(a.source)] for a in known]
            truth = [labels[str(a.source or a.subject)] for a in known]
            target = goal.targets(truth, outputs)
            units.append(
                Judged(
                    unit=known[0].unit,
                    classes=outputs,
                    probabilities=np.array([list(a.probabilities.values()) for a in known]),
                    target=target,
                    subject=np.array([names.index(who) for who in whose]),
                    answered=np.array(
                        [goal.holds(a, t) for a, t in zip(known, target, strict=True)]
                    ),
                    unlike=np.array([a.unlike for a in known]),
                    said=goal.decided(known, outputs),
                )
            )
    return Verdict(
        frames=pictures,
        clips=clips,
        subjects=people,
        rows=sample.rows,
        units=units,
        bootstrap=bootstrap,
        figures={unit.unit: goal.measure(unit, bootstrap) for unit in units},
        labels=labels,
        goal=goal,
    )
