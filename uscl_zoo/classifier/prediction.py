"""What a fine-tuned model says of frames, clips and subjects, and when it says nothing."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from ..answers import LABELS, NUMBER, Answers, Floats
from ..checks import real
from ..data.inputs import Gathered, Inputs, find, on_disk, whose
from ..data.tables import Tabular
from ..embedding.parts import NAMES, Parts, Row
from ..embedding.running import complete, digest, run
from ..errors import DataError, one_line
from ..files import check_output, expanded, parts_of, written
from ..names import cell
from ..network import Network, load
from ..records import from_mapping, to_plain
from ..release import release
from ..ultrasound.sources import files_of, inputs_of, path_of

SUFFIXES = (".csv", ".json")
#: How these files begin.
BEGINS = {".csv": b"unit,source,", ".json": b'{\n "model": '}


@dataclass(frozen=True, repr=False)
class Answer:
    """What a model says of one frame, clip or subject.

    Attributes:
        unit: `frame`, `clip` or `subject`.
        source: the file or folder; of a subject None.
        subject: whom it shows; None where nobody said.
        frame: number of the frame among those sampled; None but for a frame.
        time: seconds since the source's first frame, NaN where it does not say; None but for a
            frame.
        frames: how many there are.
        probabilities: calibrated, a class or label each; of a regression the number. Of a clip the
            mean over its frames, of a subject the mean over its clips.
        agreement: share of the frames that say the same: whose most probable class is this one's;
            whose labels are; or whose number is within the model's `spread` of this one.
        distance: from the training images, of several frames the median.
        unlike: whether the image is of another kind: the distance is above the model's threshold.
        best: the most probable class; the labels that are likelier than not, with `; ` between, or
            `none`; or the number.
        answer: that; None for "cannot tell", which is said below the confidence (of any label) and
            of images of another kind.
        interval: of a regression, where nine in ten of such subjects lie; None otherwise.
        labels: whether any of them, or none, may be so, and not one of several classes.
    """

    unit: str
    source: Path | None
    subject: str | None
    frame: int | None
    time: float | None
    frames: int
    probabilities: dict[str, float]
    agreement: float
    distance: float
    unlike: bool
    best: str
    answer: str | None
    interval: tuple[float, float] | None = None
    labels: bool = False

    @property
    def said(self) -> dict[str, float]:
        """What the CSV has in columns of their own: `p_` and a class or label, or the number."""
        if self.interval is None:
            return {f"p_{label}": share for label, share in self.probabilities.items()}
        low, high = self.interval
        return {**self.probabilities, "low": low, "high": high}

    def __str__(self) -> str:
        name = self.subject if self.source is None else self.source
        if self.interval is not None:
            share = "{} [{:.4g}, {:.4g}]".format(self.best, *self.interval)
        elif self.labels:
            share = ", ".join(f"{label} {p:.2f}" for label, p in self.probabilities.items())
        else:
            share = f"{self.best} {self.probabilities[self.best]:.2f}"
        if self.unlike:
            said = "cannot tell: unlike the training images"
        elif not self.answer:
            said = f"cannot tell ({share})"
        else:
            said = f"{self.answer} ({share})" if self.labels else share
        many = f"; {self.frames} frames, agreement {self.agreement:.2f}" if self.frames > 1 else ""
        return one_line(f"{name}: {said}{many}")

    def __repr__(self) -> str:
        return f"<{self}>"


class AnswerTable(Tabular, Sequence[Answer]):
    """Answers of one unit: a sequence, and a table for pandas, Polars and Arrow."""

    def __init__(self, rows: Iterable[Answer]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, place: int) -> Answer: ...

    @overload
    def __getitem__(self, place: slice) -> AnswerTable: ...

    def __getitem__(self, place: int | slice) -> Answer | AnswerTable:
        rows = self._rows[place]
        return AnswerTable(rows) if isinstance(rows, tuple) else rows

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"AnswerTable({len(self)} answers)"

    def columns(self) -> dict[str, Any]:
        """The columns of the CSV that say something of this unit; `answer` is None if none."""

        def texts(names: Iterable[Path | str | None]) -> list[str | None]:
            return [None if name is None else one_line(str(name)) for name in names]

        columns: dict[str, Any] = {}
        if any(answer.source is not None for answer in self):
            columns["source"] = texts(answer.source for answer in self)
        if any(answer.subject is not None for answer in self):
            columns["subject"] = texts(answer.subject for answer in self)
        if any(answer.frame is not None for answer in self):
            columns["frame"] = np.array([answer.frame for answer in self], np.int64)
            columns["time_s"] = np.array([answer.time for answer in self], np.float64)
        columns["frames"] = np.array([answer.frames for answer in self], np.int64)
        columns["answer"] = texts(answer.answer for answer in self)
        columns["best"] = texts(answer.best for answer in self)
        columns["agreement"] = np.array([answer.agreement for answer in self], np.float64)
        columns["distance"] = np.array([answer.distance for answer in self], np.float64)
        columns["unlike_training"] = np.array([answer.unlike for answer in self], np.bool_)
        for name in self[0].said if self else ():
            columns[one_line(name)] = np.array([answer.said[name] for answer in self], np.float64)
        return columns


@dataclass(frozen=True, repr=False)
class Predictions(Tabular):
    """What a model says of some files; as a table, a row a file, or a clip in memory.

    Attributes:
        model: the folder of the model.
        answers: how logits became answers.
        frames: an answer a sampled frame; a table too.
        clips: an answer a file; a table too.
        subjects: an answer a subject, none where subjects are not known; a table too.
        skipped: files that could not be read, and why.
    """

    model: Path
    answers: Answers
    frames: AnswerTable
    clips: AnswerTable
    subjects: AnswerTable
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.clips)

    def __getitem__(self, number: int) -> Answer:
        return self.clips[number]

    def __repr__(self) -> str:
        answered = sum(answer.answer is not None for answer in self.clips)
        unlike = sum(answer.unlike for answer in self.clips)
        left = f", {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"Predictions({len(self.clips)} files: {answered} answered, {unlike} unlike the "
            f"training images{left})"
        )

    def columns(self) -> dict[str, Any]:
        """Those of `clips`."""
        return self.clips.columns()

    def save(self, path: str | Path) -> Path:
        """Write every answer, whole or not at all.

        `.csv` has a row a frame, clip and subject; the column `unit` says which, and the column
        `answer` is empty for "cannot tell". `.json` has the same under `frames`, `clips` and
        `subjects`, and how they came about.

        Raises:
            DataError: if the suffix is another, or the file cannot be written, is a source, or lies
                in the folder of the model.
        """
        path = check_suffix(path)
        check_output(path, self._inputs(), [self.model], BEGINS[path.suffix.lower()])
        with written(path) as partial:
            (self._write_json if path.suffix.lower() == ".json" else self._write_csv)(partial)
        return path

    def _inputs(self) -> Iterator[Path]:
        for answer in self.clips:
            if answer.source is not None:
                yield from files_of(answer.source)

    def plain(self) -> dict[str, Any]:
        """What JSON holds: every answer, and how they came about."""

        def row_of(answer: Answer) -> dict[str, Any]:
            row: dict[str, Any] = to_plain(answer)
            row["source"] = None if answer.source is None else one_line(str(answer.source))
            row["subject"] = None if answer.subject is None else one_line(answer.subject)
            # NaN is no JSON
            row["time"] = None if answer.time is None or np.isnan(answer.time) else answer.time
            return row

        return {
            "model": one_line(str(self.model)),
            "how": to_plain(self.answers),
            "subjects": [row_of(answer) for answer in self.subjects],
            "clips": [row_of(answer) for answer in self.clips],
            "frames": [row_of(answer) for answer in self.frames],
            "skipped": [
                {"source": one_line(str(source)), "reason": one_line(reason)}
                for source, reason in self.skipped
            ],
        }

    def _write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.plain(), indent=1, ensure_ascii=False), encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            write_rows(stream, self.frames, self.clips, self.subjects)


def write_rows(
    stream: Any,
    *tables: Sequence[Answer],
    truth: Callable[[Answer], str] | None = None,
) -> None:
    """Write answers as CSV to an open stream, a row each; with a column `label` if it is known."""
    writer = csv.writer(stream, lineterminator="\n")
    names = next(([*map(cell, answer.said)] for table in tables for answer in table), [])
    head = ["unit", "source", "subject", "frame", "time_s", "frames", "answer", "best"]
    head += ["agreement", "distance", "unlike_training", *names]
    writer.writerow(head if truth is None else [*head, "label"])
    for answer in (answer for table in tables for answer in table):
        untimed = answer.time is None or np.isnan(answer.time)
        writer.writerow(
            [
                answer.unit,
                cell(answer.source),
                cell(answer.subject),
                answer.frame if answer.frame is not None else "",
                "" if untimed else f"{answer.time:.6g}",
                answer.frames,
                *(_answered(text, answer) for text in (answer.answer, answer.best)),
                f"{answer.agreement:.4g}",
                f"{answer.distance:.4g}",
                int(answer.unlike),
                *(f"{value:.6g}" for value in answer.said.values()),
                *([] if truth is None else [cell(truth(answer))]),
            ]
        )


def _answered(text: str | None, answer: Answer) -> str:
    """A cell: a number is one, though it may begin with a minus."""
    return text or "" if answer.interval is not None else cell(text)


def predict(
    model: str | Path | Network,
    images: Inputs,
    *,
    subjects: str
    | Mapping[str, str]
    | Callable[[Path], str | None]
    | Sequence[str | None]
    | None = None,
    confidence: float | None = None,
    rate: float | None = None,
    clean: bool | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
    workers: int | None = None,
    output: str | Path | None = None,
) -> Predictions:
    """Classify files and folders of images, DICOM and videos, or images and clips in memory.

    Args:
        model: a folder that `uscl finetune` wrote, or one that is loaded.
        images: as for `embed`.
        subjects: whom a file shows: a pattern, see `annotations.SubjectPattern`, a mapping by path
            or file name, a function of the path, or a list, whom each of `images` shows.
        confidence: probability below which the answer is "cannot tell"; the model's own if None.
        rate: frames a second to sample from videos; the model's own if None.
        clean: whether frames are cut to the beam, and cleaned of what is drawn in it; as in the
            model's training if None.
        batch_size: frames at a time.
        device: to compute on, see `network.load`.
        progress: show a bar.
        workers: threads that decode; None for one a core.
        output: write the answers there, see `Predictions.save`. An interrupted call to the same
            output continues where it was; what is done lies in `OUTPUT.parts` meanwhile.

    Raises:
        DataError: if nothing can be read, the folder holds no model, an argument is out of range,
            or the output cannot be written.
        UnreadableError: if a path does not exist.
        DigestError: if a file of the model is not the one it was written with.
    """
    if confidence is not None:
        confidence = real("confidence", confidence, 0, 1, ends=True)
    if output is not None:  # before an hour of work, not after
        output = check_suffix(output)
        closed = [] if isinstance(model, Network) else [model]
        check_output(output, inputs_of(on_disk(images)), closed, BEGINS[output.suffix.lower()])
    gathered = find(images)
    if not gathered.sources:
        raise DataError("there is nothing to classify: name a file or folder, or give an image")
    # a wrong pattern should not cost an hour of work
    reported = whose(subjects, gathered, lambda name: name.path)
    how: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    skipped: list[tuple[Path, str]] = []
    if output is None:
        network, answers = _classifier(model, device, confidence)
        look = network.look(rate, clean)
        rows = run(network, gathered.sources, look, skipped, answer=network.wanted, **how)
        with contextlib.closing(rows):
            return _predictions(network, answers, gathered, reported, list(rows), skipped)
    with parts_of(output, NAMES) as folder:
        network, answers = _classifier(model, device, confidence)
        look = network.look(rate, clean)
        key = [release(), digest(network.module), repr(network.transform), look, network.flips]
        parts = Parts(folder, json.dumps(["answers", *key]))
        sources = [path_of(source) for source in gathered.sources]
        skipped = complete(parts, network, sources, look, network.wanted, **how)
        result = _predictions(network, answers, gathered, reported, [*parts.rows(sources)], skipped)
        result.save(output)
        parts.remove()
    return result


def _classifier(
    model: str | Path | Network, device: str | torch.device | None, confidence: float | None
) -> tuple[Network, Answers]:
    network = load(model, device)
    answers = network.answers
    if answers is None:
        raise DataError(
            f"{network.name}: is no model of `uscl finetune`, which alone says when it cannot "
            f"tell; `finetune` makes one of a backbone, and `embed` takes vectors of it"
        )
    if confidence is not None:
        answers = from_mapping(Answers, to_plain(answers) | {"confidence": confidence}, "")
    return network, answers


def _predictions(
    network: Network,
    answers: Answers,
    gathered: Gathered,
    subjects: Sequence[str | None],
    rows: Sequence[Row],
    skipped: list[tuple[Path, str]],
) -> Predictions:
    if not rows:
        raise DataError(
            f"none of {len(gathered.sources)} files can be read; {skipped[0][0]}: {skipped[0][1]}"
        )
    probabilities, distances = network.said(np.concatenate([row.features for row in rows]))
    sizes = [len(row.features) for row in rows]
    frames, clips, people = answer(
        answers,
        probabilities,
        distances,
        owner=np.repeat([row.source for row in rows], sizes),
        number=np.concatenate([np.arange(size) for size in sizes]),
        time=np.concatenate([row.times for row in rows]),
        sources=[path_of(source) for source in gathered.sources],
        subjects=subjects,
    )
    return Predictions(
        network.folder or Path(),
        answers,
        AnswerTable(frames),
        AnswerTable(clips),
        AnswerTable(people),
        skipped,
    )


def answer(
    answers: Answers,
    probabilities: Floats,
    distances: Floats,
    *,
    owner: NDArray[np.int64],
    number: NDArray[np.int64],
    time: Floats,
    sources: Sequence[Path],
    subjects: Sequence[str | None],
) -> tuple[list[Answer], list[Answer], list[Answer]]:
    """Answers by frame, by clip and by subject.

    Args:
        answers: how.
        probabilities: of N frames, (N, classes), as `Answers.of` gives them.
        distances: of N frames.
        owner: the source of each frame, an index.
        number: of each frame within its source.
        time: of each frame, seconds.
        sources: files.
        subjects: of each source.
    """

    def make(unit: str, rows: NDArray[np.int64], mean: Floats, **of: Any) -> Answer:
        best = answers.best(mean)
        distance = float(np.median(distances[rows]))
        unlike = distance > answers.threshold
        sure = answers.is_sure(mean) and not unlike
        around = float(mean[0] - answers.spread), float(mean[0] + answers.spread)
        return Answer(
            unit=unit,
            frames=len(rows),
            probabilities={c: float(p) for c, p in zip(answers.classes, mean, strict=True)},
            agreement=float(answers.agree(probabilities[rows], mean).mean()),
            distance=distance,
            unlike=unlike,
            best=best,
            answer=best if sure else None,
            interval=around if answers.task == NUMBER else None,
            labels=answers.task == LABELS,
            **({"source": None, "frame": None, "time": None} | of),
        )

    frames = [
        make(
            "frame",
            np.array([row]),
            probabilities[row],
            source=sources[index],
            subject=subjects[index],
            frame=int(number[row]),
            time=float(time[row]),
        )
        for row, index in enumerate(owner)
    ]
    # the frames of a source are neighbours
    read, first = np.unique(owner, return_index=True)
    rows_of = dict(zip(read, np.split(np.arange(len(owner)), first[1:]), strict=True))
    means = {index: probabilities[rows].mean(axis=0) for index, rows in rows_of.items()}
    clips = [
        make("clip", rows, means[index], source=sources[index], subject=subjects[index])
        for index, rows in rows_of.items()
    ]
    members: dict[str, list[int]] = {}
    for index in read:
        if (subject := subjects[index]) is not None:
            members.setdefault(subject, []).append(int(index))
    people = [
        make(
            "subject",
            np.concatenate([rows_of[index] for index in own]),
            np.mean([means[index] for index in own], axis=0),
            subject=subject,
        )
        for subject, own in members.items()
    ]
    return frames, clips, people


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that `Predictions.save` can write to a path.

    Raises:
        DataError: naming the suffixes it can.
    """
    path = expanded(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: the name should end in {' or '.join(SUFFIXES)}")
    return path
