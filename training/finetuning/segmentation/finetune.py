"""From images and outlines of one's own to a model that outlines."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from uscl_zoo.answers import ANSWERS, Statistics
from uscl_zoo.checks import seed_of
from uscl_zoo.errors import DataError
from uscl_zoo.files import check_folder, expanded, locked
from uscl_zoo.names import say
from uscl_zoo.records import to_plain
from uscl_zoo.segmentation.model import Outliner, chances, trusting
from uscl_zoo.segmentation.networks import check_name
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.catalogue import folder_of

from ...downstream.settings import check_given
from ...learning.execution import device_named
from ..crossing import FOLDS
from ..estimating import spoken
from ..gathering import backbone
from ..loop import fit
from ..work import go_on, is_work, put_away
from . import report
from .apart import calibrate, folds, survey
from .figures import Case, Figures, judge, measure, reliability
from .fit import LessonLearner
from .gather import Decoded, doubts, gather, opened
from .outlined import Outlined, find_outlined
from .published import load
from .settings import sensible
from .teaching import TEACHINGS, Segmentation, Teaching
from .writing import said_of, with_figures, write_model

WORK, STORE, FINAL = "work", "images", "final"
# What an interrupted call leaves.
_LEFT = re.compile(rf"{STORE}|{FINAL}|fold[1-9]\d*(\.npz)?")
#: Steps that are measured, after one that is not.
_STEPS = 2


@dataclass(frozen=True)
class Outlining:
    """What `finetune` did.

    Attributes:
        folder: of the model.
        said: by the model of itself.
        figures: of held-out subjects.
        notes: what the reader of the figures should know.
    """

    folder: Path
    said: Outliner
    figures: Figures
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.folder}: {', '.join(self.said.classes)}"]
        for name, (one, other) in self.figures.rows.items():
            line = f"  {name}: {one}" if one is not None else f"  {name}: -"
            lines.append(line + (f"; by subject {other}" if other is not None else ""))
        count = len(self.figures.bootstrap.task.subjects)
        lines.append(
            f"  (by image of {self.figures.images}; 95 %, bootstrap over {count} held-out subjects)"
        )
        return "\n".join(lines)


def finetune(
    data: str | Path,
    output: str | Path,
    *,
    task: str = "segmentation",
    network: str | None = None,
    model: str | Path = "resnet18_uscl",
    layout: str | None = None,
    file_column: str = "Filename",
    mask_column: str | Sequence[str] | None = None,
    subject_column: str | None = None,
    subject_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    rate: float = 3.0,
    size: int | None = None,
    holdout: float = 0.2,
    confidence: float = 0.5,
    effort: str = "normal",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    licence: str | None = None,
    name: str | None = None,
    resamples: int = 2000,
    overwrite: bool = False,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = say,
) -> Outlining:
    """Fine-tune a backbone to outline what masks show, and leave a model that does.

    Images and masks are decoded once, at the size of the network, into `output/work`; an
    interrupted call goes on when it is made again. The folder of a finished model holds
    `model.safetensors` and `config.json`, which smp loads; `predict.json` and
    `statistics.safetensors`, which `predict` needs besides; `report.html` and its pictures; and
    `heldout.csv`, from which the figures were computed.

    Args:
        data: a folder of images with masks, COCO's JSON, or a CSV; see `find_outlined`.
        output: folder of the model.
        task: `segmentation`: a class a pixel; `detection`: boxes, and masks in them.
        network: of smp, e.g. `unet`, `fpn` or `deeplabv3plus`; to detect, `maskrcnn` or
            `fasterrcnn`, which learns from boxes alone; None for the first.
        model: the encoder, as for `finetuning.finetune`.
        layout: of a public collection as it is published, one of `published.LAYOUTS`; None for
            images and masks of one's own.
        file_column: of a CSV: the images.
        mask_column: of a CSV: their masks.
        subject_column: of a CSV: whom they show.
        subject_pattern: whose group is the subject, in each path.
        classes: names of the classes, in the order of the values of the masks.
        exclude: patterns of file names to leave out.
        rate: frames a second at which the model will look at clips.
        size: height and width of the frames; None for what the backbone was trained on.
        holdout: share of the subjects to be judged on.
        confidence: probability below which the model will not say a region.
        effort: `quick`, `normal` or `best`.
        epochs: as in `Settings`, like the next two; None to choose.
        batch_size: images a step.
        learning_rate: of the encoder, at the start.
        seed: of the split, the new weights and every draw.
        licence: of the weights, as an SPDX identifier; that of the backbone binds it.
        name: of the collection.
        resamples: of the bootstrap over held-out subjects.
        overwrite: replace a model, or begin an interrupted run anew.
        workers: threads that decode; None for one a core.
        device: to compute on; None for CUDA where there is one.
        progress: show bars.
        tell: is given a line for whatever the user should know.

    Raises:
        DataError: if the data cannot serve, the folder holds a model, another run, an input or what
            is not ours, or another process writes to it.
        UnreadableError: if a mask cannot be read.
        UnknownModelError: if no model is of that name.
        MissingDependencyError: if smp is not installed.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with everything saved.
    """
    seed = seed_of(seed)
    rate, size, holdout, confidence, resamples, workers = check_given(
        rate=rate,
        size=size,
        holdout=holdout,
        confidence=confidence,
        resamples=resamples,
        workers=workers,
    ).values()
    epochs, batch_size, learning_rate = check_given(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    ).values()
    data, output = expanded(data), expanded(output)
    work, chosen = output / WORK, device_named(device)
    network = check_name(task, network)
    if size is not None and size % 32:
        raise DataError(f"`size` should be a multiple of 32, as the encoder halves it; not {size}")
    if (output / ANSWERS).exists() and not overwrite:
        raise DataError(f"{output}: holds a model already; add `overwrite=True` or choose another")
    if work.exists() and not is_work(work, _LEFT):
        raise DataError(f"{work}: is not of an interrupted call; move it, or choose another folder")
    home = folder_of(model)
    ours = (output / ANSWERS).is_file() or work.exists()
    check_folder(output, ours, [data, *([home] if home else [])])
    with locked(output):
        base = backbone(model)
        notes: list[str] = []

        def note(text: str) -> None:
            notes.append(text)
            tell(text)

        if base.doubt is not None:
            note(base.doubt)
        if layout is None:
            outlined = find_outlined(
                data,
                subject_pattern=subject_pattern,
                classes=classes,
                exclude=exclude,
                file_column=file_column,
                mask_column=mask_column,
                subject_column=subject_column,
            )
        elif subject_pattern or classes or exclude or mask_column or subject_column:
            raise DataError(
                "`layout` knows the masks, subjects and classes of its collection; leave out "
                "`mask_column`, `subject_column`, `subject_pattern`, `classes` and `exclude`"
            )
        else:
            outlined = load(layout, data)
        base.allows(licence, outlined.licence)
        if name is not None:
            outlined = dataclasses.replace(outlined, name=name)
        for text in outlined.notes:
            note(text)
        shape = base.input
        if size is not None:
            shape = dataclasses.replace(shape, size=(3, size, size))
        transform = FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
        resumed = work.exists()
        try:
            decoded = gather(
                outlined,
                work / STORE,
                transform,
                note,
                holdout=holdout,
                seed=seed,
                workers=workers,
                progress=progress,
            )
        except DataError:
            # of data that cannot serve nothing is left
            if not resumed:
                shutil.rmtree(work, ignore_errors=True)
            raise
        for text in doubts(outlined, decoded, base.card):
            note(text)
        settings = sensible(
            len(decoded.train),
            network,
            effort,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        about = {"settings": to_plain(settings), "model": str(model), "images": decoded.digest}
        go_on(work, {"task": task, **about}, overwrite, STORE)
        lesson = TEACHINGS[task](base, outlined, decoded, settings, shape, chosen)
        learner, said, statistics = _train(
            lesson,
            work,
            progress,
            tell,
            lambda learner, calibration: said_of(
                base,
                outlined,
                decoded,
                learner,
                calibration,
                shape,
                task=task,
                confidence=confidence,
                rate=rate,
                licence=licence,
            ),
        )
        cases = judged(lesson, learner, outlined, said, statistics)
        figures = measure(cases, outlined.classes, resamples, seed, lesson.masks)
        unit = "subjects" if outlined.subjects else "images"
        count = len(figures.bootstrap.task.subjects)
        said = with_figures(said, figures, f"{outlined.name}, {count} held-out {unit}")
        # without it the folder is no model, so that half of one and half of another never are
        (output / ANSWERS).unlink(missing_ok=True)
        report.write(
            output,
            said,
            cases,
            figures,
            learner.progress.history,
            lambda case: _opened(decoded, case),
            notes,
        )
        said = write_model(output, said, learner.network, statistics)
        put_away(work)
        return Outlining(output, said, figures, tuple(notes))


def _train(
    lesson: Teaching,
    work: Path,
    progress: bool,
    tell: Callable[[str], None],
    describe: Callable[..., Outliner],
) -> tuple[LessonLearner, Outliner, Statistics]:
    """The network that is trained on all subjects, what it says of itself, and its images."""
    decoded, settings = lesson.decoded, lesson.settings
    rows = decoded.train
    learner = lesson.learner(rows, settings)
    others = [lesson.learner(own, settings) for own, _ in folds(decoded, settings.seed)]
    total = sum(one.settings.epochs * one.steps for one in (learner, *others))
    del others
    seconds = total * _pace(lesson.learner(rows, settings))
    tell(
        f"{len(rows)} images to train on, {len(decoded.judged)} to be judged on; "
        f"{settings.network} on {lesson.base.architecture}, {settings.epochs} epochs, "
        f"{settings.batch_size} images a step, and {FOLDS} folds to calibrate by; about "
        f"{spoken(1.1 * seconds + 10)} on {lesson.device}"
    )
    form = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=total, disable=not progress or not total, bar_format=form) as bar:

        def tick(cost: float, text: str) -> None:
            bar.update(cost)
            bar.set_postfix_str(text, refresh=False)

        calibration = calibrate(lesson, work, tick)
        fit(learner, work / FINAL, tick)
    return learner, describe(learner, calibration), survey(lesson, learner.network, rows)


def _pace(learner: LessonLearner) -> float:
    """Seconds a step takes, by some that are thrown away with their network."""
    learner.step()
    began = time.perf_counter()
    for _ in range(_STEPS):
        learner.step()
    return (time.perf_counter() - began) / _STEPS


def judged(
    lesson: Teaching,
    learner: LessonLearner,
    outlined: Outlined,
    said: Outliner,
    statistics: Statistics,
) -> list[Case]:
    """Outline the held-out images, in their own pixels, and compare."""
    decoded = lesson.decoded
    rows = decoded.judged
    cases: list[Case] = []
    for row, (answer, textures) in zip(
        rows.tolist(), lesson.ask(learner.network, rows), strict=True
    ):
        item = decoded.items[row]
        image, _, there = opened(outlined, item)
        size = image.height, image.width
        regions = trusting(lesson.predicted(answer, size, said.pixels), said.trust, size)
        away = float(statistics.distance(textures[None])[0])
        pixels = None
        if isinstance(lesson, Segmentation):
            # at the size of the network
            shares = chances(answer, lesson.transform.size, said.pixels).numpy()[1:]
            own = np.arange(1, lesson.classes + 1)[:, None, None]
            pixels = reliability(shares, np.asarray(decoded.labels[row]) == own)
        cases.append(
            judge(
                row,
                item.name,
                item.subject,
                size,
                decoded.spacing[row],
                there,
                regions,
                said.confidence,
                lesson.classes,
                away,
                away > said.threshold,
                pixels,
            )
        )
    return cases


def _opened(decoded: Decoded, case: Case) -> Image.Image:
    source = decoded.items[case.row].source
    return next(reading.iterate(source, on_damage=lambda message: None)).image
