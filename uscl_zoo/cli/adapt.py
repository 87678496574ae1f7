"""Fine-tuning, and what one does with the model."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import click

from ..errors import DataError, one_line
from .commands import Heading
from .options import FILE, MODEL, clean_option, device_option, rate_option, seed_option
from .output import json_option, painted, say, say_json

commands = Heading(help="Adapt one to classes of your own")

#: Those of `training.downstream.tasks`, which takes as long to import as torch.
TASKS = ["classification", "regression", "multilabel"]
#: Those that outline, whose `finetune` is in `training.finetuning.segmentation` and has defaults of
#: its own; options that mean nothing there are refused by name.
OUTLINED = ["segmentation", "detection"]


@commands.command(short_help="Fine-tune a backbone on classes, labels or numbers of your own.")
@click.option(
    "--data", required=True, type=FILE, help="Folder per class, CSV, or store; images with masks."
)
@click.option("-o", "--output", required=True, type=FILE, help="Folder of the model.")
@click.option("--network", help="That outlines: unet, fpn, deeplabv3plus, …; maskrcnn, fasterrcnn.")
@click.option(
    "--model", type=MODEL, default="resnet18_uscl", show_default=True, help="To begin with."
)
@click.option(
    "--task",
    type=click.Choice([*TASKS, *OUTLINED]),
    default=TASKS[0],
    show_default=True,
    help="What is said of a file: one of several classes, a number, any of several labels; or "
    "outlines and boxes, from masks.",
)
@click.option(
    "--train",
    type=click.Choice(["head", "last", "all"]),
    help="What is not frozen; by default all, of a quick look the last block.",
)
@click.option("--file-column", default="Filename", show_default=True, help="Names, stems or paths.")
@click.option(
    "--label-column",
    multiple=True,
    help="Class or number of the file; of several labels repeat it, or one of lists (A;B).",
)
@click.option("--mask-column", multiple=True, help="Of a CSV: masks of the file; repeat.")
@click.option("--subject-column", help="Patient; a subject is never split.")
@click.option("--subject-pattern", help="Regex whose group is the subject.")
@click.option("--every-row", is_flag=True, help="Of a CSV: fail if a row has no file.")
@click.option("--class", "classes", multiple=True, help="One of the only classes; repeat.")
@click.option(
    "--layout",
    type=click.Choice(["busi", "bus-bra", "udiat"]),
    help="DATA is that collection of lesions, as it is published.",
)
@click.option("--exclude", multiple=True, help="File names; repeat. Masks are left out anyway.")
@rate_option(3.0)
@click.option("--size", type=click.IntRange(32, 4096), help="By default the backbone's.")
@click.option("--holdout", type=click.FloatRange(0.01, 0.8), default=0.2, show_default=True)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    help="Judge by a cross-validation over all subjects, and train the model on all.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Below it the model will say that it cannot tell.",
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "normal", "best"]),
    default="normal",
    show_default=True,
    help="A first look, or what a day is worth.",
)
@click.option("--epochs", type=click.IntRange(min=1))
@click.option("--batch-size", type=click.IntRange(min=2))
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True))
@click.option("--label-smoothing", type=click.FloatRange(0, 0.5))
@click.option("--class-weights/--no-class-weights", default=None, help="Default: weights.")
@seed_option
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--name", help="Of the collection, for the card.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call left there.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
# of commands that people wrote down before 0.2
@click.option("--validation", type=float, hidden=True)
@click.option("--patience", type=int, hidden=True)
@device_option
@click.pass_context
def finetune(
    context: click.Context, /, task: str, data: Path, output: Path, **options: Any
) -> None:
    """Fine-tune a backbone on images and videos of your own: on classes, labels or numbers.

    Writes a model that `uscl predict`, `uscl publish` and timm take, with a report. Subjects are
    split into those to train on and those to be judged on. Run it again after an interruption and
    it continues.
    """
    room = "segmentation.finetune" if task in OUTLINED else "finetune"
    run = import_module(f"..training.finetuning.{room}", __package__).finetune
    for name in ("validation", "patience"):
        if options.pop(name) is not None:
            click.echo(
                f"--{name}: has no meaning any more; temperature and thresholds come from a "
                "cross-validation, and every subject that is not held out is trained on",
                err=True,
            )
    options["classes"] = options["classes"] or None
    options["label_column"] = options["label_column"] or None
    options["mask_column"] = options["mask_column"] or None
    options["task"] = task
    if task in OUTLINED:
        options = _of_task(context, task, run, options)
    else:
        for name in ("network", "layout", "mask_column"):
            if options.pop(name) is not None:
                raise DataError(f"`{name}` is of what outlines (`task=segmentation`); leave it out")
    done = run(data, output, tell=lambda text: click.echo(text, err=True), **options)
    click.echo(str(done))
    click.echo(f"report: {output / 'report.html'}")
    click.echo(f"next: uscl predict {output} FILES...")


def _of_task(
    context: click.Context, task: str, run: Callable[..., Any], options: dict[str, Any]
) -> dict[str, Any]:
    """What was given of the options, for a task that has its own defaults, and not all of them."""
    source = click.core.ParameterSource.DEFAULT
    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not source
    }
    known = signature(run).parameters
    for name in given:
        if name not in known:
            raise DataError(f"`{name}` has no meaning with `task={task}`; leave it out")
    return {**given, "task": task}


@commands.command()
@click.argument("model", type=FILE)
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option(
    "-o", "--output", type=FILE, help=".csv or .json; of a segmentation a folder of masks."
)
@click.option("--subject-pattern", help="Regex whose group is the subject.")
@click.option("--confidence", type=click.FloatRange(0, 1), help="Below it: cannot tell.")
@rate_option(None)
@clean_option
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default one a core.")
@device_option
@json_option
def predict(
    model: Path,
    files: tuple[Path, ...],
    output: Path | None,
    subject_pattern: str | None,
    confidence: float | None,
    rate: float | None,
    clean: bool | None,
    batch_size: int,
    workers: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Classify images, videos and DICOM files, or outline what is in them.

    MODEL is a folder that `uscl finetune` wrote. Of a classifier, run it again after an
    interruption and, with an output, it continues.
    """
    from ..classifier import prediction
    from ..data.inputs import report_clips
    from ..segmentation.model import outlines

    if outlines(model):
        if clean is not None:
            raise DataError("`clean` has no meaning for a model that outlines; leave it out")
        if workers is not None:
            raise DataError("`workers` has no meaning for a model that outlines; leave it out")
        _outline(model, files, output, subject_pattern, confidence, rate, batch_size, device)
        return
    result = prediction.predict(
        model,
        files,
        subjects=subject_pattern,
        confidence=confidence,
        rate=rate,
        clean=clean,
        batch_size=batch_size,
        device=device,
        workers=workers,
        output=output,
    )
    for source, reason in result.skipped:
        click.echo(one_line(f"skipped {source}: {reason}"), err=True)
    for note in report_clips(files, (answer.source for answer in result.clips)):
        click.echo(note, err=True)
    if as_json:
        say_json(result.plain())
        return
    if output is None:
        for answer in (*result.clips, *result.subjects):
            line = one_line(str(answer))
            say(line if answer.answer else painted(line, "doubt"), indent=2)
        return
    answered = sum(answer.answer is not None for answer in result.clips)
    unlike = sum(answer.unlike for answer in result.clips)
    click.echo(
        f"{output}: {len(result.clips)} files, {answered} answered, {unlike} unlike the training "
        f"images; {len(result.skipped)} skipped"
    )


def _outline(
    model: Path,
    files: tuple[Path, ...],
    output: Path | None,
    subject_pattern: str | None,
    confidence: float | None,
    rate: float | None,
    batch_size: int,
    device: str | None,
) -> None:
    """`uscl predict` of a model that outlines."""
    from ..segmentation import prediction
    from ..ultrasound.sources import inputs_of

    if output is not None:  # before an hour of work, not after
        prediction.check_output(output, [*inputs_of(files), model])
    result = prediction.outline(
        model,
        files,
        subjects=subject_pattern,
        confidence=confidence,
        rate=rate,
        batch_size=batch_size,
        device=device,
    )
    for source, reason in result.skipped:
        click.echo(one_line(f"skipped {source}: {reason}"), err=True)
    if output is None:
        for line in result.lines():
            click.echo(line)
        return
    result.save(output)
    click.echo(f"{output}: {result}; {len(result.skipped)} skipped")


@commands.command()
@click.argument("model", type=MODEL)
@click.argument("file", type=FILE)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=FILE,
    help=".png, .mp4 or .gif; repeat. By default FILE_explained.png, and for clips .mp4.",
)
@click.option("--class", "label", help="To explain; by default the most probable.")
@rate_option(None)
@clean_option
@device_option
def explain(
    model: str,
    file: Path,
    outputs: tuple[Path, ...],
    label: str | None,
    rate: float | None,
    clean: bool | None,
    device: str | None,
) -> None:
    """Draw where in FILE the evidence for MODEL's answer is.

    MODEL is a checkpoint of the zoo or a folder that `uscl finetune` wrote.
    """
    from ..classifier import gradcam
    from ..files import check_output
    from ..ultrasound.sources import inputs_of
    from ..zoo.catalogue import folder_of

    home = folder_of(model)
    stem = f"{file.stem if file.suffix else file.resolve().name}_explained"
    usual = Path(f"{stem}.png"), Path(f"{stem}.mp4")
    for output in outputs:
        gradcam.check_suffix(output)
    for output in outputs or usual:
        check_output(output, inputs_of([file]), [home] if home else [], picture=True)
    result = gradcam.explain(model, file, label, rate, device, clean=clean)
    outputs = outputs or usual[: 2 if len(result) > 1 else 1]
    click.echo(one_line(f"{result.title}; {result.subtitle}"))
    for output in outputs:
        click.echo(f"{result.save(output)}: written")
