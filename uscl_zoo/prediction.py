"""What a fine-tuned model says of frames, clips and subjects, and when it says nothing."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from .annotations import SubjectPattern, known
from .answers import Answers, Floats
from .errors import DataError, UnreadableError, one_line
from .files import check_output, expanded, written
from .names import cell
from .network import Network, load
from .records import from_mapping, to_plain
from .ultrasound.clip import DamageWarning
from .ultrasound.sources import Named, files_of, name_sources

SUFFIXES = (".csv", ".json")
#: How these files begin.
BEGINS = {".csv": b"unit,source,", ".json": b'{\n "model": '}


@dataclass(frozen=True)
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
        probabilities: calibrated, a class each. Of a clip the mean over its frames, of a subject
            the mean over its clips.
        agreement: share of the frames whose most probable class is this one's.
        distance: from the training images, of several frames the median.
        unlike: whether the image is of another kind: the distance is above the model's threshold.
        best: the most probable class.
        answer: that class; None for "cannot tell", which is said below the confidence and of images
            of another kind.
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

    def __str__(self) -> str:
        name = self.subject if self.source is None else self.source
        share = f"{self.best} {self.probabilities[self.best]:.2f}"
        if self.unlike:
            said = "cannot tell: unlike the training images"
        else:
            said = share if self.answer else f"cannot tell ({share})"
        many = f"; {self.frames} frames, agreement {self.agreement:.2f}" if self.frames > 1 else ""
        return one_line(f"{name}: {said}{many}")


@dataclass(frozen=True)
class Predictions:
    """What a model says of some files.

    Attributes:
        model: the folder of the model.
        answers: how logits became answers.
        frames: an answer a sampled frame.
        clips: an answer a file.
        subjects: an answer a subject, none where subjects are not known.
        skipped: files that could not be read, and why.
    """

    model: Path
    answers: Answers
    frames: list[Answer]
    clips: list[Answer]
    subjects: list[Answer]
    skipped: list[tuple[Path, str]] = field(default_factory=list)

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

    def _write_json(self, path: Path) -> None:
        def plain(answer: Answer) -> dict[str, Any]:
            row: dict[str, Any] = to_plain(answer)
            row["source"] = None if answer.source is None else one_line(str(answer.source))
            row["subject"] = None if answer.subject is None else one_line(answer.subject)
            # NaN is no JSON
            row["time"] = None if answer.time is None or np.isnan(answer.time) else answer.time
            return row

        content = {
            "model": one_line(str(self.model)),
            "how": to_plain(self.answers),
            "subjects": [plain(answer) for answer in self.subjects],
            "clips": [plain(answer) for answer in self.clips],
            "frames": [plain(answer) for answer in self.frames],
            "skipped": [
                {"source": one_line(str(source)), "reason": one_line(reason)}
                for source, reason in self.skipped
            ],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as stream:
            write_rows(stream, self.answers.classes, self.frames, self.clips, self.subjects)


def write_rows(
    stream: Any,
    classes: Sequence[str],
    *tables: Sequence[Answer],
    truth: Callable[[Answer], str] | None = None,
) -> None:
    """Write answers as CSV to an open stream, a row each; with a column `label` if it is known."""
    writer = csv.writer(stream, lineterminator="\n")
    names = (f"p_{label}" for label in classes)
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
                cell(answer.answer),
                cell(answer.best),
                f"{answer.agreement:.4g}",
                f"{answer.distance:.4g}",
                int(answer.unlike),
                *(f"{answer.probabilities[label]:.6g}" for label in classes),
                *([] if truth is None else [cell(truth(answer))]),
            ]
        )


def predict(
    model: str | Path | Network,
    paths: str | Path | Iterable[str | Path],
    *,
    subjects: str | Mapping[str, str] | Callable[[Path], str | None] | None = None,
    confidence: float | None = None,
    rate: float | None = None,
    clean: bool | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Predictions:
    """Classify images, videos, DICOM files and folders of them.

    Args:
        model: a folder that `uscl finetune` wrote, or one that is loaded.
        paths: files and folders, as for `ultrasound.reading.find`.
        subjects: whom a file shows: a pattern, see `annotations.SubjectPattern`, a mapping by path
            or file name, or a function of the path.
        confidence: probability below which the answer is "cannot tell"; the model's own if None.
        rate: frames a second to sample from videos; the model's own if None.
        clean: whether frames are cut to the beam, and cleaned of what is drawn in it; as in the
            model's training if None.
        batch_size: frames at a time.
        device: to compute on, see `network.load`.
        progress: show a bar.

    Raises:
        DataError: if nothing can be read, the folder holds no model, or an argument is out of
            range.
        UnreadableError: if a path does not exist.
        DigestError: if a file of the model is not the one it was written with.
    """
    if confidence is not None and not 0 <= confidence <= 1:
        raise DataError(f"confidence should be a probability, not {confidence}")
    whose = _subjects(subjects)
    found = [source for source, _ in name_sources(paths)]
    if not found:
        raise DataError("there is nothing to classify: name a file or folder")
    sources = [source.path for source in found]
    # a wrong pattern should not cost an hour of work
    told = [known(whose(source)) for source in found]
    network = model if isinstance(model, Network) else load(model, device)
    answers = network.answers
    if answers is None:
        raise DataError(
            f"{network.name}: is no model of `uscl finetune`, which alone says when it cannot tell"
        )
    if confidence is not None:
        answers = from_mapping(Answers, to_plain(answers) | {"confidence": confidence}, "")
    look = network.look(rate, clean)
    origins: list[tuple[int, int, float]] = []
    skipped: list[tuple[Path, str]] = []

    def frames() -> Iterator[Image.Image]:
        for index, source in enumerate(tqdm(sources, unit="file", disable=not progress)):
            try:
                for number, (time, image) in enumerate(look.at(source)):
                    origins.append((index, number, time))
                    yield image
            except (UnreadableError, DataError) as error:
                if origins and origins[-1][0] == index:
                    warnings.warn(str(error), DamageWarning, stacklevel=2)
                else:
                    skipped.append((source, str(error).removeprefix(f"{source}: ")))

    probabilities, distances = network.run(frames(), batch_size)
    if not origins:
        raise DataError(
            f"none of {len(sources)} files can be read; {skipped[0][0]}: {skipped[0][1]}"
        )
    owner, number, time = (np.array(column) for column in zip(*origins, strict=True))
    tables = answer(
        answers,
        probabilities,
        distances,
        owner=owner,
        number=number,
        time=time,
        sources=sources,
        subjects=told,
    )
    return Predictions(network.folder or Path(), answers, *tables, skipped)


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
        probabilities: of N frames, (N, classes).
        distances: of N frames.
        owner: the source of each frame, an index.
        number: of each frame within its source.
        time: of each frame, seconds.
        sources: files.
        subjects: of each source.
    """
    top = probabilities.argmax(axis=1)

    def make(unit: str, rows: NDArray[np.int64], mean: Floats, **of: Any) -> Answer:
        best = int(mean.argmax())
        distance = float(np.median(distances[rows]))
        unlike = distance > answers.threshold
        sure = bool(mean[best] >= answers.confidence) and not unlike
        return Answer(
            unit=unit,
            frames=len(rows),
            probabilities={c: float(p) for c, p in zip(answers.classes, mean, strict=True)},
            agreement=float((top[rows] == best).mean()),
            distance=distance,
            unlike=unlike,
            best=answers.classes[best],
            answer=answers.classes[best] if sure else None,
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


def _subjects(
    given: str | Mapping[str, str] | Callable[[Path], str | None] | None,
) -> Callable[[Named], str | None]:
    if given is None:
        return lambda source: None
    if isinstance(given, str):
        pattern = SubjectPattern(given)
        return lambda source: pattern(source.within)
    if isinstance(given, Mapping):
        return lambda source: given.get(str(source.path), given.get(source.path.name))
    return lambda source: given(source.path)


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that `Predictions.save` can write to a path.

    Raises:
        DataError: naming the suffixes it can.
    """
    path = expanded(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: the name should end in {' or '.join(SUFFIXES)}")
    return path
