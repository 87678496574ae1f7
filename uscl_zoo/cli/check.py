"""How good a model is, and what to distrust in it and in the data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, one_line
from ..files import expanded
from .commands import Heading
from .options import (
    FILE,
    MODEL,
    channels,
    clean_option,
    device_option,
    numbers,
    rate_option,
    seed_option,
)

if TYPE_CHECKING:
    from ..training.downstream.datasets import DataSet

commands = Heading(help="Check a model, or data")


@commands.command(
    short_help="Compare models on a data set, subjects never shared.",
    also={"statistics": "--mean and --std"},
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", type=MODEL)
@click.option(
    "--dataset",
    required=True,
    metavar="NAME|STORE",
    help="pocus, busi, bus-bra, covid-blues; folder or csv for your own; or a store.",
)
@click.option("--data", type=FILE, help="Where it is; a store is its own place.")
@click.option("-o", "--output", required=True, type=FILE, help="Folder of the report.")
@click.option("--target", help="Of a data set with several: what to tell apart.")
@click.option(
    "--class",
    "classes",
    multiple=True,
    help="Of a folder, CSV or store: one of the only classes, or several as 'breast *'; repeat.",
)
@click.option(
    "--all-subjects", "everyone", is_flag=True, help="Of a store: not the held-out ones alone."
)
@click.option("--mean", callback=numbers, help="Of files that do not say theirs: .5 or .5,.5,.5")
@click.option("--std", callback=numbers, help="As --mean.")
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
    callback=numbers,
    help="Linear with these percents of the training subjects, as 5,10,25,100.",
)
@click.option("--label-efficiency", is_flag=True, help="As --shares 1,5,10,25,50,100.")
@click.option(
    "--against",
    metavar="MODEL",
    help="Compare the others with it alone; by default every two, and at shares with the first.",
)
@click.option(
    "--card",
    type=FILE,
    help="Write the figures of its model on this card, beside those of --against.",
)
@rate_option(3.0)
@clean_option
@click.option("--file-column", help="Of --dataset csv, like the next two.")
@click.option("--label-column")
@click.option("--subject-column")
@click.option("--subject-pattern", help="Of folder and csv: regex whose group is the subject.")
@click.option("--every-row", is_flag=True, default=None, help="Of csv: fail if a row has no file.")
@click.option("--resamples", type=click.IntRange(min=100), default=2000, show_default=True)
@seed_option
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
@device_option
def evaluate(
    models: tuple[str, ...],
    dataset: str,
    data: Path | None,
    output: Path,
    target: str | None,
    classes: tuple[str, ...],
    everyone: bool,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    protocols: tuple[str, ...],
    setting: str,
    folds: int,
    seeds: int,
    shares: tuple[float, ...] | None,
    label_efficiency: bool,
    against: str | None,
    card: Path | None,
    rate: float,
    clean: bool | None,
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

    from ..training.evaluation import results
    from ..training.evaluation.evaluate import SHARES
    from ..training.evaluation.evaluate import evaluate as run
    from ..zoo.card import read_card

    given: dict[str, Any] = {key: value for key, value in columns.items() if value is not None}
    if classes:
        given["classes"] = classes
    if shares is not None and label_efficiency:
        raise DataError("--shares and --label-efficiency exclude each other")
    channels(mean, std)
    percent = shares if shares is not None else [100 * s for s in SHARES if label_efficiency]
    # a card that cannot be read is said before the work, not after it
    named = None if card is None else read_card(card).name
    results.check_report(output, [data] if data else [Path(dataset)])
    evaluation = run(
        models,
        _dataset(dataset, data, target, folds, everyone, given),
        output,
        protocols=protocols or ("linear",),
        setting=setting,
        folds=folds,
        seeds=seeds,
        shares=[share / 100 for share in percent],
        against=against,
        statistics=channels(mean, std),
        rate=rate,
        clean=clean,
        resamples=resamples,
        seed=seed,
        workers=workers,
        device=device,
        tell=lambda line: click.echo(line, err=True),
    )
    results.write(evaluation, output, shlex.join(["uscl", *sys.argv[1:]]))
    click.echo(results.markdown(evaluation, shlex.join(["uscl", *sys.argv[1:]])))
    click.echo(f"{output / results.PAGE}: the report, with pictures")
    if card is not None and named is not None:
        from ..training.pretraining.export import add_metrics

        add_metrics(
            card, results.metrics(evaluation, named, shlex.join(["uscl", *_without_card()]))
        )
        click.echo(f"{card}: figures written")


def _without_card() -> list[str]:
    """The words of the command line but for `--card`: what measures the figures again."""
    import sys

    words = iter(sys.argv[1:])
    kept = []
    for word in words:
        if word == "--card":
            next(words)
        elif not word.startswith("--card="):
            kept.append(word)
    return kept


def _dataset(
    name: str,
    data: Path | None,
    target: str | None,
    folds: int,
    everyone: bool,
    columns: dict[str, Any],
) -> DataSet:
    from ..training.downstream.datasets import DATASETS, load, load_store
    from ..training.learning.frames import DESCRIPTION

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


@commands.command(short_help="Judge frozen features on held-out subjects.")
@click.argument("model", type=MODEL)
@click.option("--data", required=True, type=FILE, help="A store with held-out subjects.")
@click.option(
    "--random-seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Randomly initialised networks to compare with, averaged.",
)
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True)
@seed_option
@click.option("--card", type=FILE, help="Card to put the figures on.")
@click.option("--penalties", is_flag=True, help="Show what the penalty does instead.")
@clean_option
def probe(
    model: str,
    data: Path,
    random_seeds: int,
    resamples: int,
    seed: int,
    card: Path | None,
    penalties: bool,
    clean: bool | None,
) -> None:
    """Fit a logistic regression on the training subjects' frozen features, judge it on the others'.

    Prints the balanced accuracy over held-out frames of MODEL, of random initialisation, and their
    difference, with 95 % intervals from a bootstrap over held-out subjects.
    """
    import shlex

    from ..training.evaluation.probe import compare, penalty_table
    from ..training.learning.frames import FrameStore

    if penalties:
        click.echo(penalty_table(model, FrameStore(data), seed, clean))
        return
    report = compare(
        model,
        FrameStore(data),
        random_seeds=random_seeds,
        resamples=resamples,
        seed=seed,
        clean=clean,
    )
    click.echo(str(report))
    if card is not None:
        from ..training.pretraining.export import add_metrics

        add_metrics(card, report.metrics(f"uscl probe {shlex.quote(model)} --data STORE"))
        click.echo(f"{card}: figures written")


@commands.command(short_help="Find near-duplicates within and across data sets.")
@click.argument("data", nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, help="Folder of the report: pairs.csv, report.html.")
@click.option("--fail", is_flag=True, help="Exit with status 1 if anything leaks.")
@rate_option(1.0)
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
    from ..training.evaluation.audit import audit as run
    from ..training.evaluation.findings import PAGE, check_report

    options["exclude"] = options["exclude"] or None
    for threshold in ("distance", "correlation"):
        if options[threshold] is None:
            del options[threshold]
    if output is not None:
        check_report(output, [argument.rpartition(":")[2] for argument in data])
    result = run(data, **options)
    click.echo(str(result))
    if output is not None:
        result.save(output, progress=True)
        click.echo(f"report: {output / PAGE}")
    if fail and result.leaks:
        raise click.exceptions.Exit(1)


@commands.command()
@click.argument("model", type=MODEL)
@click.argument("data", nargs=-1, required=True, type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help=".html")
@rate_option(None)
@clean_option
@device_option
def shortcut(
    model: str,
    data: tuple[Path, ...],
    output: Path,
    rate: float | None,
    clean: bool | None,
    device: str | None,
) -> None:
    """Measure how far MODEL's answers move when what is not ultrasound is blanked.

    Writes a report with the worst cases, and a table beside it. Run it again after an interruption
    and it continues.
    """
    from ..classifier import shortcuts

    result = shortcuts.shortcut(model, data, output, rate, device, clean=clean)
    for source, reason in result.skipped:
        click.echo(one_line(f"skipped {source}: {reason}"), err=True)
    for name, value in result.summary():
        click.echo(f"{value:>8}  {name}")
    click.echo(f"{output}: written, and {output.with_suffix('.csv').name}")
