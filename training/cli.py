"""The training commands of `uscl`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from uscl_zoo.card import home
from uscl_zoo.errors import DataError

from . import labels
from .frames import FrameStore

_PATH = click.Path(path_type=Path)


@click.command(short_help="Turn raw videos into a FrameStore.")
@click.argument("videos", nargs=-1, required=True, type=_PATH)
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the store.")
@click.option("--csv", "table", type=_PATH, help="Table of labels and subjects.")
@click.option("--file-column", default="Filename", show_default=True, help="Names or stems.")
@click.option("--label-column", help="Class of the video.")
@click.option("--subject-column", help="Patient; a subject is never split.")
@click.option("--licence-column", help="Licence of the video.")
@click.option(
    "--label-scheme",
    type=click.Choice(["prefix", *labels.LABEL_SCHEMES, "none"]),
    help="Without --csv: labels from the prefix of the name (default), folded as US-4's, or none.",
)
@click.option("--subject-pattern", help="Without --csv: regex whose group is the subject.")
@click.option("--class", "classes", multiple=True, help="A declared class; repeat. Default: all.")
@click.option("--unlabelled", multiple=True, help="A label to drop, keeping its videos; repeat.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option("--size", type=click.IntRange(32, 4096), default=224, show_default=True)
@click.option("--holdout", type=click.FloatRange(0, 0.9), default=0.2, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--clean", is_flag=True, help="Crop to the beam; blank and paint over the rest.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
@click.option("--strict", is_flag=True, help="Fail if a source cannot be decoded.")
@click.option("--overwrite", is_flag=True, help="Replace a finished store.")
@click.option("--name", help="Of the collection, for the card.")
@click.option("--url", help="Of the collection, for the card.")
@click.option("--citation", help="Of the collection, for the card.")
def prepare(
    videos: tuple[Path, ...],
    output: Path,
    table: Path | None,
    file_column: str,
    label_column: str | None,
    subject_column: str | None,
    licence_column: str | None,
    label_scheme: str | None,
    subject_pattern: str | None,
    classes: tuple[str, ...],
    unlabelled: tuple[str, ...],
    rate: float,
    size: int,
    holdout: float,
    seed: int,
    clean: bool,
    workers: int | None,
    strict: bool,
    overwrite: bool,
    name: str | None,
    url: str | None,
    citation: str | None,
) -> None:
    """Turn raw VIDEOS, files or folders of them, into a FrameStore.

    Reads mp4, mov, avi, gif, mpeg and folders of frames; keeps a few frames a second. Labels and
    subjects come from a CSV, or from names such as Cov-001.mp4. Run it again after an interruption
    and it continues.
    """
    from .prepare import Sampling
    from .prepare import prepare as run

    annotate: Callable[[str], labels.Annotation | None]
    if table is not None:
        if label_scheme is not None or subject_pattern is not None:
            raise DataError("--csv and --label-scheme or --subject-pattern exclude each other")
        annotate = labels.read_table(
            table, file_column, label_column, subject_column, licence_column
        ).find
    else:
        for option, column in (
            ("--label-column", label_column),
            ("--subject-column", subject_column),
            ("--licence-column", licence_column),
        ):
            if column is not None:
                raise DataError(f"{option} {column}: needs --csv")

        def by_name(video: str) -> labels.Annotation:
            scheme = label_scheme if label_scheme in labels.LABEL_SCHEMES else None
            found = labels.from_name(video, scheme, subject_pattern)
            return labels.Annotation(found.subject) if label_scheme == "none" else found

        annotate = by_name

    report = run(
        videos,
        output,
        annotate,
        sampling=Sampling(rate, size, clean),
        classes=classes or None,
        unlabelled=unlabelled,
        holdout=holdout,
        seed=seed,
        strict=strict,
        overwrite=overwrite,
        workers=workers,
        origin={"name": name, "url": url, "citation": citation},
    )
    store = report.store
    if report.unannotated:
        click.echo(
            f"{len(report.unannotated)} videos have no row in {table} and stay unlabelled, each "
            f"its own subject; the first: {report.unannotated[0]}",
            err=True,
        )
    if report.unclean:
        click.echo(
            f"{len(report.unclean)} videos could not be cleaned, as their beam could not be told; "
            f"their frames are whole, with all that is drawn in them: {', '.join(report.unclean)}",
            err=True,
        )
    for split in ("train", "heldout"):
        counts = store.summary(store.select(split))
        named = ", ".join(f"{label} {count}" for label, count in counts["classes"].items())
        click.echo(
            f"{split:8} {counts['videos']} videos, {counts['frames']} frames, "
            f"{counts['subjects']} subjects: {named}"
        )
    click.echo(
        f"{output}: {len(store.videos)} videos, {len(store.frames)} frames; "
        f"{len(report.skipped)} skipped" + (" (skipped.csv says why)" if report.skipped else "")
    )


@click.command(short_help="Pretrain a backbone on a FrameStore.")
@click.option("--recipe", "recipe_name", help="Name or YAML file; a resumed run knows its own.")
@click.option("--data", required=True, type=_PATH, help="A store of `uscl prepare`.")
@click.option("-o", "--output", required=True, type=_PATH, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in it.")
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
def pretrain(
    recipe_name: str | None,
    data: Path,
    output: Path,
    resume: bool,
    device: str | None,
    settings: tuple[str, ...],
) -> None:
    """Pretrain a backbone by USCL: contrast between frames of videos, and labels where there are.

    A recipe's settings are overridden by KEY=VALUE, e.g. epochs=20.
    """
    from .pretrain import RECIPE
    from .pretrain import pretrain as run
    from .recipe import load_recipe, recipe_names

    if recipe_name is None:
        if not resume:
            raise DataError(f"--recipe is missing: {', '.join(recipe_names())}, or a YAML file")
        if not (output / RECIPE).is_file():
            raise DataError(f"{output}: holds no run to resume")
        recipe_name = str(output / RECIPE)
    recipe = load_recipe(recipe_name, settings)
    checkpoint = run(recipe, FrameStore(data), output, resume=resume, device=device)
    click.echo(f"{checkpoint}: done; curves in {output / 'curves.png'}")
    click.echo(f"next: uscl export {output} --name {recipe.architecture}_uscl.TAG")


@click.command(short_help="Turn a run into weights and a card.")
@click.argument("run", type=_PATH)
@click.option("--name", required=True, help="E.g. resnet18_uscl.myhospital.")
@click.option("-o", "--output", type=_PATH, help="Folder; by default your own, ~/.uscl_zoo.")
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--summary", help="One line for tables.")
@click.option("--limit", "limits", multiple=True, help="A known limit; repeat.")
@click.option("--overwrite", is_flag=True, help="Replace weights of that name.")
def export(
    run: Path,
    name: str,
    output: Path | None,
    licence: str | None,
    summary: str | None,
    limits: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Turn a finished RUN into weights of the zoo and their card."""
    from .export import export as write

    card = write(
        run, name, output, licence=licence, summary=summary, limits=limits, overwrite=overwrite
    )
    folder = output or home()
    click.echo(
        f"{card.weights.file}: {card.weights.bytes} bytes, sha256 {card.weights.sha256}, with its "
        f"card in {folder}"
    )
    if output is None:
        click.echo(f'next: uscl_zoo.create_model("{card.name}", pretrained=True)')


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
