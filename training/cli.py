"""The training commands of `uscl`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from uscl_zoo import licences
from uscl_zoo.card import Card, home, licences_of
from uscl_zoo.errors import DataError
from uscl_zoo.files import expanded

from . import labels
from .frames import DESCRIPTION, FrameStore

if TYPE_CHECKING:
    from .downstream.datasets import DataSet
    from .execution import Execution
    from .prepare import Report

_PATH = click.Path(path_type=Path)


@click.command(short_help="Turn raw videos into a FrameStore.")
@click.argument("videos", nargs=-1, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the store.")
@click.option("--corpus", "corpus_name", help="Instead of VIDEOS: name or YAML of many sources.")
@click.option("--root", "roots", multiple=True, metavar="KEY=FOLDER", help="Of --corpus; repeat.")
@click.option("--csv", "table", type=_PATH, help="Table of labels and subjects.")
@click.option("--file-column", default="Filename", show_default=True, help="Names or stems.")
@click.option("--label-column", help="Class of the video.")
@click.option("--subject-column", help="Patient; a subject is never split.")
@click.option("--licence-column", help="Licence of the video.")
@click.option(
    "--label-scheme",
    type=click.Choice(["prefix", *labels.LABEL_SCHEMES, "none"]),
    help="Without --csv: labels from the prefix of the name (default), the joint ones of US-4, "
    "those of one of its sub-datasets, or none.",
)
@click.option("--subject-pattern", help="Regex whose group is the subject.")
@click.option("--every-row", is_flag=True, help="Fail if a row has no file.")
@click.option("--class", "classes", multiple=True, help="A declared class; repeat. Default: all.")
@click.option("--unlabelled", multiple=True, help="A label to drop, keeping its videos; repeat.")
@click.option("--licence", "licences", multiple=True, metavar="SPDX", help="To keep; repeat.")
@click.option("--only-annotated", is_flag=True, help="Leave out files without a row.")
@click.option("--near-duplicates", is_flag=True, help="Subjects that share a picture are one.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option("--size", type=click.IntRange(32, 4096), default=224, show_default=True)
@click.option("--holdout", type=click.FloatRange(0, 0.9), default=0.2, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--clean", is_flag=True, help="Crop to the beam; blank and paint over the rest.")
@click.option("--grey", is_flag=True, help="Keep brightness alone; colour may give away a class.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
@click.option("--strict", is_flag=True, help="Fail if a source cannot be decoded.")
@click.option("--overwrite", is_flag=True, help="Replace a finished store.")
@click.option("--name", help="Of the collection, for the card.")
@click.option("--url", help="Of the collection, for the card.")
@click.option("--citation", help="Of the collection, for the card.")
def prepare(
    videos: tuple[Path, ...],
    output: Path,
    corpus_name: str | None,
    roots: tuple[str, ...],
    table: Path | None,
    file_column: str,
    label_column: str | None,
    subject_column: str | None,
    licence_column: str | None,
    label_scheme: str | None,
    subject_pattern: str | None,
    every_row: bool,
    classes: tuple[str, ...],
    unlabelled: tuple[str, ...],
    licences: tuple[str, ...],
    only_annotated: bool,
    near_duplicates: bool,
    rate: float,
    size: int,
    holdout: float,
    seed: int,
    clean: bool,
    grey: bool,
    workers: int | None,
    strict: bool,
    overwrite: bool,
    name: str | None,
    url: str | None,
    citation: str | None,
) -> None:
    """Turn raw VIDEOS, files or folders of them, into a FrameStore.

    Reads mp4, mov, avi, gif, mpeg and folders of frames; keeps a few frames a second. Labels and
    subjects come from a CSV, or from names such as Cov-001.mp4. A corpus of several sources is told
    by a YAML file, --corpus. Run it again after an interruption and it continues.
    """
    from .prepare import Sampling
    from .prepare import prepare as run

    told = {
        "VIDEOS": videos,
        "--csv": table,
        "--label-column": label_column,
        "--subject-column": subject_column,
        "--licence-column": licence_column,
        "--label-scheme": label_scheme,
        "--subject-pattern": subject_pattern,
        "--name": name,
        "--url": url,
        "--citation": citation,
    }
    whose = _of_corpus(corpus_name, roots, told) or _of_folders(
        file_column, told | {"--every-row": every_row}, only_annotated
    )
    report = run(
        **whose,
        output=output,
        sampling=Sampling(rate, size, clean, grey),
        classes=classes or None,
        unlabelled=unlabelled,
        licences=licences,
        only_annotated=only_annotated,
        near_duplicates=near_duplicates,
        holdout=holdout,
        seed=seed,
        strict=strict,
        subject_pattern=subject_pattern,
        every_row=every_row,
        overwrite=overwrite,
        workers=workers,
        tell=lambda text: click.echo(text, err=True),
    )
    _report(report, output, f"row in {table}" if table else "row")


def _of_corpus(
    name: str | None, roots: Sequence[str], told: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arguments of `prepare` that a corpus gives; None where there is none."""
    from .sources import load_corpus

    if name is None:
        if roots:
            raise DataError(f"--root {roots[0]}: needs --corpus")
        return None
    both = [option for option, value in told.items() if value]
    if both:
        raise DataError(f"--corpus and {both[0]} exclude each other")
    folders = {}
    for root in roots:
        key, equals, folder = root.partition("=")
        if not (key and equals and folder):
            raise DataError(f"--root {root}: is written KEY=FOLDER")
        folders[key] = Path(folder)
    return {"videos": load_corpus(name, folders)}


def _of_folders(file_column: str, told: Mapping[str, Any], only_annotated: bool) -> dict[str, Any]:
    """The arguments of `prepare` that folders and a table, or names, give."""
    if not told["VIDEOS"]:
        raise DataError("give VIDEOS, files or folders, or --corpus")
    columns = ("--label-column", "--subject-column", "--licence-column")
    scheme, pattern = told["--label-scheme"], told["--subject-pattern"]
    annotate: Callable[[str], labels.Annotation | None] | labels.Table
    if told["--csv"] is not None:
        if scheme is not None:
            raise DataError("--csv and --label-scheme exclude each other")
        if pattern is not None and told["--subject-column"] is not None:
            raise DataError("--subject-column and --subject-pattern exclude each other")
        annotate = labels.read_table(
            told["--csv"], file_column, *(told[column] for column in columns)
        )
    else:
        for column in columns:
            if told[column] is not None:
                raise DataError(f"{column} {told[column]}: needs --csv")
        if only_annotated:
            raise DataError("--only-annotated: needs --csv or --corpus")
        if told["--every-row"]:
            raise DataError("--every-row: needs --csv or --corpus")

        def annotate(video: str) -> labels.Annotation:
            known = scheme if scheme in labels.LABEL_SCHEMES else None
            found = labels.from_name(video, known)
            return labels.Annotation(found.subject) if scheme == "none" else found

    origin = {key: told[f"--{key}"] for key in ("name", "url", "citation")}
    return {"videos": told["VIDEOS"], "annotate": annotate, "origin": origin}


def _report(report: Report, output: Path, row: str) -> None:
    store = report.store
    if report.unannotated:
        click.echo(
            f"{len(report.unannotated)} videos have no {row} and stay unlabelled, each "
            f"its own subject; the first: {report.unannotated[0]}",
            err=True,
        )
    if report.unclean:
        click.echo(
            f"{len(report.unclean)} videos could not be cleaned, as their beam could not be told; "
            f"their frames are whole, with all that is drawn in them: {', '.join(report.unclean)}",
            err=True,
        )
    if report.left_out:
        click.echo(f"{len(report.left_out)} items left out (left_out.csv names them):", err=True)
        for reason, count in Counter(reason for _, reason in report.left_out).most_common():
            click.echo(f"  {count} {reason}", err=True)
    for key, scene in store.description.get("scenes", {}).items():
        click.echo(
            f"{key or 'near-duplicates'}: {scene['videos']} videos of {scene['subjects']} subjects "
            f"show {scene['scenes']} scenes, each of which is one subject"
        )
    for split in ("train", "heldout"):
        counts = store.summary(store.select(split))
        named = ", ".join(f"{label} {count}" for label, count in counts["classes"].items())
        click.echo(
            f"{split:8} {counts['videos']} videos, {counts['frames']} frames, "
            f"{counts['subjects']} subjects: {named}"
        )
        for source in store.sources(store.select(split)) if "sources" in store.description else ():
            click.echo(
                f"  {source['name']}: {source['videos']} videos, {source['frames']} frames, "
                f"{source['subjects']} subjects"
            )
    click.echo(
        f"{output}: {len(store.videos)} videos, {len(store.frames)} frames; "
        f"{len(report.skipped)} skipped" + (" (skipped.csv says why)" if report.skipped else "")
    )


def execution_options(command: Callable[..., None]) -> Callable[..., None]:
    """The switches of `Execution`, as options."""
    options = (
        click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one."),
        click.option("--frames", "place", metavar="device|host|disk", help="Where frames live."),
        click.option("--channels-last/--channels-first", default=True, help="Layout in memory."),
        click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile."),
        click.option("--graphs/--no-graphs", "graphed", default=None, help="CUDA graphs."),
        click.option("--fused/--no-fused", default=True, help="One kernel for all of Adam."),
        click.option("--deterministic", is_flag=True, help="On CUDA: the same bits each time."),
        click.option("--threads", type=click.IntRange(min=1), help="Of a CPU; default all cores."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _execution(device: str | None, threads: int | None, switches: dict[str, Any]) -> Execution:
    import torch

    from .execution import Execution, device_named

    if threads is not None:
        torch.set_num_threads(threads)
    return Execution(device_named(device), **switches)


@click.command(short_help="Pretrain a backbone on a FrameStore.")
@click.option("--recipe", "recipe_name", help="Name or YAML file; a resumed run knows its own.")
@click.option("--data", required=True, type=_PATH, help="A store of `uscl prepare`.")
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in it.")
@execution_options
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def pretrain(
    recipe_name: str | None,
    data: Path,
    output: Path,
    resume: bool,
    device: str | None,
    threads: int | None,
    settings: tuple[str, ...],
    **switches: Any,
) -> None:
    """Pretrain a backbone by USCL: contrast between frames of videos, and labels where there are.

    A recipe's settings are overridden by KEY=VALUE, e.g. epochs=20. Started by torchrun, as
    `torchrun --nproc-per-node 4 -m uscl_zoo.training pretrain …`, all processes train together.
    """
    from .pretrain import pretrain as run
    from .ranks import join
    from .recipe import load_recipe, recipe_names
    from .runs import RECIPE

    if recipe_name is None:
        if not resume:
            raise DataError(f"--recipe is missing: {', '.join(recipe_names())}, or a YAML file")
        if not (output / RECIPE).is_file():
            raise DataError(f"{output}: holds no run to resume")
        recipe_name = str(output / RECIPE)
    recipe = load_recipe(recipe_name, settings)
    with join(device) as (ranks, own):
        execution = _execution(own, threads, switches)
        checkpoint = run(
            recipe, FrameStore(data), output, resume=resume, execution=execution, ranks=ranks
        )
    if ranks.rank == 0:
        click.echo(f"{checkpoint}: done; curves in {output / 'curves.png'}")
        click.echo(f"next: uscl export {output} --name {recipe.architecture}_uscl.TAG")


@click.command(short_help="Time pretraining on this machine.")
@click.option("--recipe", "recipe_name", default="us4_resnet18", show_default=True)
@click.option("--data", type=_PATH, help="A store; or --synthetic makes one.")
@click.option(
    "--synthetic",
    type=click.Choice(["us4", "us4-grey"]),
    help="Noise in the shape of US-4, of each channel or, as ultrasound mostly is, of all alike.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Of its videos to make.",
)
@click.option(
    "--loader",
    type=click.Choice(["batch", "images"]),
    default="batch",
    show_default=True,
    help="images: the per-image path through Pillow as well, in turns.",
)
@click.option("--workers", type=click.IntRange(min=0), help="Of --loader images; default cores.")
@click.option("--repeats", type=click.IntRange(min=2), default=10, show_default=True)
@click.option("--trace", "traced", type=_PATH, help="Folder for a Chrome trace and its kernels.")
@execution_options
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def throughput(
    recipe_name: str,
    data: Path | None,
    synthetic: str | None,
    share: float,
    loader: str,
    workers: int | None,
    repeats: int,
    traced: Path | None,
    device: str | None,
    threads: int | None,
    settings: tuple[str, ...],
    **switches: Any,
) -> None:
    """Time the real loop: images a second, the stages of a step, memory, share of the roofline.

    A recipe's settings are overridden by KEY=VALUE, e.g. batch_size=256.
    """
    import tempfile

    from .recipe import load_recipe
    from .synthetic import us4_shaped
    from .throughput import measure

    if (data is None) == (synthetic is None):
        raise DataError("give either --data STORE or --synthetic us4")
    recipe = load_recipe(recipe_name, settings)
    execution = _execution(device, threads, switches)
    with tempfile.TemporaryDirectory(prefix="uscl-") as folder:
        if data is None:
            store = us4_shaped(Path(folder), share=share, grey=synthetic == "us4-grey")
        else:
            store = FrameStore(data)
        report = measure(
            recipe,
            store,
            execution,
            repeats=repeats,
            per_image=loader == "images",
            workers=workers,
            traced=traced,
        )
    click.echo(str(report))


@click.command(short_help="Turn a run into weights and a card.")
@click.argument("run", type=_PATH)
@click.option("--name", required=True, help="E.g. resnet18_uscl.myhospital.")
@click.option("-o", "--output", type=_PATH, help="Folder; by default your own, ~/.uscl_zoo.")
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--licence-reason", help="Why, where the zoo does not know a licence of the data.")
@click.option("--summary", help="One line for tables.")
@click.option("--limit", "limits", multiple=True, help="A known limit; repeat.")
@click.option("--overwrite", is_flag=True, help="Replace weights of that name.")
def export(
    run: Path,
    name: str,
    output: Path | None,
    licence: str | None,
    licence_reason: str | None,
    summary: str | None,
    limits: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Turn a finished RUN into weights of the zoo and their card."""
    from .export import export as write

    card = write(
        run,
        name,
        output,
        licence=licence,
        licence_reason=licence_reason,
        summary=summary,
        limits=limits,
        overwrite=overwrite,
    )
    folder = output or home()
    click.echo(
        f"{card.weights.file}: {card.weights.bytes} bytes, sha256 {card.weights.sha256}, with its "
        f"card in {folder}"
    )
    if card.licence is None:
        click.echo(
            f"the card states no licence, so others may not use it; {_advice(card)}", err=True
        )
    if card.corpus is None:
        click.echo(
            "the run's store is not where it was, so the card has no fingerprints of it; add them "
            f"with `uscl corpus {folder / card.name}.yaml --data STORE`",
            err=True,
        )
    if output is None:
        click.echo(f'next: uscl_zoo.create_model("{card.name}", pretrained=True)')


def _advice(card: Card) -> str:
    bound = licences_of(card.training)
    unknown = licences.unknown(bound)
    if unknown:
        return f"the zoo cannot tell which it may state: {', '.join(unknown)} is not known to it"
    loosest = licences.loosest(bound)
    if loosest is None:
        return "none can be stated, since what it was made of lets nothing be made of it"
    return f"the loosest that may be stated: --licence {loosest}"


@click.command(short_help="Put fingerprints of the training data on a card.")
@click.argument("card", type=_PATH)
@click.option("--data", required=True, type=_PATH, help="The store that was trained on.")
def corpus(card: Path, data: Path) -> None:
    """Put fingerprints of the training videos on a CARD that was exported without them.

    `uscl audit` compares data with them. `uscl export` writes them by itself.
    """
    from .corpus import add_corpus

    written = add_corpus(card, FrameStore(data)).corpus
    assert written is not None
    click.echo(f"{card.parent / written.file}: {written.bytes} bytes, sha256 {written.sha256}")


@click.command(short_help="Judge frozen features on held-out subjects.")
@click.argument("model")
@click.option("--data", required=True, type=_PATH, help="A store with held-out subjects.")
@click.option(
    "--random-seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Randomly initialised networks to compare with, averaged.",
)
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--card", type=_PATH, help="Card to put the figures on.")
@click.option("--penalties", is_flag=True, help="Show what the penalty does instead.")
def probe(
    model: str,
    data: Path,
    random_seeds: int,
    resamples: int,
    seed: int,
    card: Path | None,
    penalties: bool,
) -> None:
    """Fit a logistic regression on the training subjects' frozen features, judge it on the others'.

    Prints the balanced accuracy over held-out frames of MODEL, of random initialisation, and their
    difference, with 95 % intervals from a bootstrap over held-out subjects.
    """
    from .downstream.probe import compare, penalty_table

    if penalties:
        click.echo(penalty_table(model, FrameStore(data), seed))
        return
    report = compare(
        model, FrameStore(data), random_seeds=random_seeds, resamples=resamples, seed=seed
    )
    click.echo(str(report))
    if card is not None:
        from .export import add_metrics

        add_metrics(card, report.metrics(f"uscl probe {model} --data STORE"))
        click.echo(f"{card}: figures written")


@click.command(short_help="Fine-tune a backbone on classes of your own.")
@click.option("--data", required=True, type=_PATH, help="Folder per class, CSV, or store.")
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the model.")
@click.option("--model", default="resnet18_uscl", show_default=True, help="To begin with.")
@click.option(
    "--train",
    type=click.Choice(["head", "last", "all"]),
    help="What is not frozen; by default the last block, or all from 1,000 training subjects.",
)
@click.option("--file-column", default="Filename", show_default=True, help="Names, stems or paths.")
@click.option("--label-column", help="Class of the file.")
@click.option("--subject-column", help="Patient; a subject is never split.")
@click.option("--subject-pattern", help="Regex whose group is the subject.")
@click.option("--every-row", is_flag=True, help="Of a CSV: fail if a row has no file.")
@click.option("--class", "classes", multiple=True, help="One of the only classes; repeat.")
@click.option("--exclude", multiple=True, help="File names; repeat. Masks are left out anyway.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option("--size", type=click.IntRange(32, 4096), help="By default the backbone's.")
@click.option("--holdout", type=click.FloatRange(0.01, 0.8), default=0.2, show_default=True)
@click.option("--validation", type=click.FloatRange(0.01, 0.8), default=0.2, show_default=True)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Below it the model will say that it cannot tell.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="At most.")
@click.option("--patience", type=click.IntRange(min=0), help="Epochs; 0 takes the last epoch.")
@click.option("--batch-size", type=click.IntRange(min=2))
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True))
@click.option("--label-smoothing", type=click.FloatRange(0, 0.5))
@click.option("--class-weights/--no-class-weights", default=None, help="Default: weights.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--name", help="Of the collection, for the card.")
@click.option("--overwrite", is_flag=True, help="Replace a model or an interrupted run.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
def finetune(data: Path, output: Path, **options: Any) -> None:
    """Fine-tune a backbone on images and videos of classes of your own.

    Writes a model that `uscl predict`, `uscl publish` and timm take, with a report. Subjects are
    split into those to train on, to stop on and to be judged on. Run it again after an interruption
    and it continues.
    """
    from .downstream.finetune import finetune as run

    options["classes"] = options["classes"] or None
    done = run(data, output, tell=lambda text: click.echo(text, err=True), **options)
    click.echo(str(done))
    click.echo(f"report: {output / 'report.html'}")
    click.echo(f"next: uscl predict {output} FILES...")


def _numbers(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Numbers with commas between them."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"numbers with commas between them, not {value!r}") from error


def _channels(name: str, values: tuple[float, ...] | None) -> tuple[float, float, float] | None:
    """A number a channel, or one for all."""
    if values is None:
        return None
    if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values):
        raise DataError(f"{name}: one number or three between 0 and 1, as intensities are")
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue


@click.command(short_help="Compare models on a data set, subjects never shared.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--dataset",
    required=True,
    metavar="NAME|STORE",
    help="pocus, busi, bus-bra, covid-blues; folder or csv for your own; or a store.",
)
@click.option("--data", type=_PATH, help="Where it is; a store is its own place.")
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the report.")
@click.option("--target", help="Of a data set with several: what to tell apart.")
@click.option(
    "--class",
    "classes",
    multiple=True,
    help="Of a folder, CSV or store: one of the only classes, or several as 'breast *'; repeat.",
)
@click.option("--all-subjects", is_flag=True, help="Of a store: not the held-out ones alone.")
@click.option("--mean", callback=_numbers, help="Of files that do not say theirs: .5 or .5,.5,.5")
@click.option("--std", callback=_numbers, help="As --mean.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    type=click.Choice(["knn", "linear", "finetune", "finetune-last"]),
    help="Repeat for several; default linear.",
)
@click.option(
    "--setting",
    type=click.Choice(["reduced", "full"]),
    default="reduced",
    show_default=True,
    help="Size and epochs of what is trained here; full is the paper's.",
)
@click.option("--folds", type=click.IntRange(2, 100), default=5, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--shares",
    callback=_numbers,
    help="Linear with these percents of the training subjects, as 5,10,25,100.",
)
@click.option("--label-efficiency", is_flag=True, help="As --shares 1,5,10,25,50,100.")
@click.option(
    "--against",
    metavar="MODEL",
    help="Compare the others with it alone; by default every two, and at shares with the first.",
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option("--file-column", help="Of --dataset csv, like the next two.")
@click.option("--label-column")
@click.option("--subject-column")
@click.option("--subject-pattern", help="Of folder and csv: regex whose group is the subject.")
@click.option("--every-row", is_flag=True, default=None, help="Of csv: fail if a row has no file.")
@click.option("--resamples", type=click.IntRange(min=100), default=2000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
def evaluate(
    models: tuple[str, ...],
    dataset: str,
    data: Path | None,
    output: Path,
    target: str | None,
    classes: tuple[str, ...],
    all_subjects: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    protocols: tuple[str, ...],
    setting: str,
    folds: int,
    seeds: int,
    shares: tuple[float, ...] | None,
    label_efficiency: bool,
    against: str | None,
    rate: float,
    resamples: int,
    seed: int,
    workers: int | None,
    device: str | None,
    **columns: Any,
) -> None:
    """Compare MODELs on a data set: the same folds and code, and intervals over subjects.

    A MODEL is a name of the zoo or of timm, a checkpoint file, `local-dir:` and a folder of timm's,
    `random`, or a method to pretrain within each fold, as `method:pocus_resnet18` or
    `method:pocus_resnet18+label_rate=0.2`. Of a store of `uscl prepare`, the held-out subjects are
    judged, by folds within them. Run it again after an interruption and it continues.
    """
    import shlex
    import sys

    from .downstream import results
    from .downstream.evaluate import SHARES
    from .downstream.evaluate import evaluate as run

    given: dict[str, Any] = {key: value for key, value in columns.items() if value is not None}
    if classes:
        given["classes"] = classes
    if shares is not None and label_efficiency:
        raise DataError("--shares and --label-efficiency exclude each other")
    if (mean is None) != (std is None):
        raise DataError("--mean and --std go together")
    of_file = _channels("--mean", mean), _channels("--std", std)
    percent = shares if shares is not None else [100 * s for s in SHARES if label_efficiency]
    found = run(
        models,
        _dataset(dataset, data, target, folds, all_subjects, given),
        output,
        protocols=protocols or ("linear",),
        setting=setting,
        folds=folds,
        seeds=seeds,
        shares=[share / 100 for share in percent],
        against=against,
        statistics=None if of_file[0] is None or of_file[1] is None else (of_file[0], of_file[1]),
        rate=rate,
        resamples=resamples,
        seed=seed,
        workers=workers,
        device=device,
        tell=lambda line: click.echo(line, err=True),
    )
    results.write(found, output, shlex.join(["uscl", *sys.argv[1:]]))
    click.echo(results.markdown(found, shlex.join(["uscl", *sys.argv[1:]])))
    click.echo(f"{output / results.PAGE}: the report, with pictures")


def _dataset(
    name: str,
    data: Path | None,
    target: str | None,
    folds: int,
    everyone: bool,
    columns: dict[str, Any],
) -> DataSet:
    from .downstream.datasets import DATASETS, load, load_store

    if name in DATASETS:
        if data is None:
            raise DataError(f"--data is missing: where is {name}?")
        if everyone:
            raise DataError(f"--all-subjects: is of a store, and all of {name} are judged anyway")
        return load(name, data, target=target, folds=folds, **columns)
    if not (expanded(name) / DESCRIPTION).is_file():
        raise DataError(
            f"--dataset {name}: is no store of `uscl prepare`, and none of {', '.join(DATASETS)}"
        )
    classes = columns.pop("classes", None)
    given = {"data": data, "target": target} | columns
    for option, value in given.items():
        if value is not None:
            raise DataError(f"--{option.replace('_', '-')} {value}: is not of a store")
    return load_store(expanded(name), classes=classes, everyone=everyone)


@click.command(short_help="Find near-duplicates within and across data sets.")
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", type=_PATH, help="Folder of the report: pairs.csv, report.html.")
@click.option("--fail", is_flag=True, help="Exit with status 1 if anything leaks.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--distance", type=click.IntRange(0, 127), help="Of hashes, in bits; default 76.")
@click.option("--correlation", type=click.FloatRange(0, 1), help="Of textures; default 0.55.")
@click.option("--file-column", help="Of a CSV: names, stems or paths; default Filename.")
@click.option("--label-column", help="Of a CSV: class of the file.")
@click.option("--subject-column", help="Of a CSV: patient.")
@click.option("--subject-pattern", help="Regex whose group is the subject.")
@click.option(
    "--every-row", is_flag=True, default=None, help="Of a CSV: fail if a row has no file."
)
@click.option("--exclude", multiple=True, help="File names; repeat. Masks are left out anyway.")
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default one a core.")
def audit(data: tuple[str, ...], output: Path | None, fail: bool, **options: Any) -> None:
    """Find what is in DATA twice: near-duplicates within and across data sets, splits and classes.

    Each argument is a data set as NAME:DIR (pocus, busi, bus-bra, covid-blues, folder, csv), a
    folder, a CSV, a store of `uscl prepare`, or a card such as resnet18_uscl.pocus, whose training
    data the others are compared with.
    """
    from .downstream.audit import PAGE
    from .downstream.audit import audit as run

    options["exclude"] = options["exclude"] or None
    for threshold in ("distance", "correlation"):
        if options[threshold] is None:
            del options[threshold]
    found = run(data, **options)
    click.echo(str(found))
    if output is not None:
        found.save(output, progress=True)
        click.echo(f"report: {output / PAGE}")
    if fail and found.leaks:
        raise click.exceptions.Exit(1)
