"""From videos to a backbone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError
from ..training.preparing import labels
from .commands import Heading
from .options import FILE, device_option, rate_option, ray_option, seed_option

if TYPE_CHECKING:
    from ..training.learning.execution import Execution
    from ..training.preparing.prepare import Report
    from ..zoo.card import Card

commands = Heading(help="Pretrain a backbone")


def execution_options(command: Callable[..., None]) -> Callable[..., None]:
    """The switches of `Execution`, as options."""
    options = (
        device_option,
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

    from ..training.learning.execution import Execution, device_named

    if threads is not None:
        torch.set_num_threads(threads)
    return Execution(device_named(device), **switches)


@commands.command(short_help="Turn raw videos into a FrameStore.")
@click.argument("videos", nargs=-1, type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="Folder of the store.")
@click.option("--corpus", "corpus_name", help="Instead of VIDEOS: name or YAML of many sources.")
@click.option("--root", "roots", multiple=True, metavar="KEY=FOLDER", help="Of --corpus; repeat.")
@click.option("--csv", "table", type=FILE, help="Table of labels and subjects.")
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
@rate_option(3.0)
@click.option("--size", type=click.IntRange(32, 4096), default=224, show_default=True)
@click.option("--holdout", type=click.FloatRange(0, 0.9), default=0.2, show_default=True)
@seed_option
@click.option("--clean", is_flag=True, help="Crop to the beam; blank and paint over the rest.")
@click.option("--grey", is_flag=True, help="Keep brightness alone; colour may give away a class.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default one a core.")
@ray_option
@click.option("--strict", is_flag=True, help="Fail if a source cannot be decoded.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call left there.")
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
    ray: str | None,
    strict: bool,
    overwrite: bool,
    name: str | None,
    url: str | None,
    citation: str | None,
) -> None:
    """Turn raw VIDEOS, files or folders of them, into a FrameStore.

    Reads mp4, mov, avi, gif, mpeg and folders of frames; keeps a few frames a second. Labels and
    subjects come from a CSV, or from names such as Cov-001.mp4. A YAML file, --corpus, describes
    several sources. Run it again after an interruption and it continues.
    """
    from ..training.preparing.parts import Sampling
    from ..training.preparing.prepare import prepare as run

    given = {
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
    whose = _of_corpus(corpus_name, roots, given) or _of_folders(
        file_column, given | {"--every-row": every_row}, only_annotated
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
        ray=ray,
        tell=lambda text: click.echo(text, err=True),
    )
    _report(report, output, f"row in {table}" if table else "row")


def _of_corpus(
    name: str | None, roots: Sequence[str], given: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arguments of `prepare` that a corpus gives; None where there is none."""
    from ..training.preparing.sources import load_corpus

    if name is None:
        if roots:
            raise DataError(f"--root {roots[0]}: needs --corpus")
        return None
    both = [option for option, value in given.items() if value]
    if both:
        raise DataError(f"--corpus and {both[0]} exclude each other")
    folders = {}
    for root in roots:
        key, equals, folder = root.partition("=")
        if not (key and equals and folder):
            raise DataError(f"--root {root}: is written KEY=FOLDER")
        folders[key] = Path(folder)
    return {"videos": load_corpus(name, folders)}


def _of_folders(file_column: str, given: Mapping[str, Any], only_annotated: bool) -> dict[str, Any]:
    """The arguments of `prepare` that folders and a table, or names, give."""
    if not given["VIDEOS"]:
        raise DataError("give VIDEOS, files or folders, or --corpus")
    columns = ("--label-column", "--subject-column", "--licence-column")
    scheme, pattern = given["--label-scheme"], given["--subject-pattern"]
    annotate: Callable[[str], labels.Annotation | None] | labels.Table
    if given["--csv"] is not None:
        if scheme is not None:
            raise DataError("--csv and --label-scheme exclude each other")
        if pattern is not None and given["--subject-column"] is not None:
            raise DataError("--subject-column and --subject-pattern exclude each other")
        annotate = labels.read_table(
            given["--csv"], file_column, *(given[column] for column in columns)
        )
    else:
        for column in columns:
            if given[column] is not None:
                raise DataError(f"{column} {given[column]}: needs --csv")
        if only_annotated:
            raise DataError("--only-annotated: needs --csv or --corpus")
        if given["--every-row"]:
            raise DataError("--every-row: needs --csv or --corpus")

        def annotate(video: str) -> labels.Annotation:
            known = scheme if scheme in labels.LABEL_SCHEMES else None
            row = labels.from_name(video, known)
            return labels.Annotation(row.subject) if scheme == "none" else row

    origin = {key: given[f"--{key}"] for key in ("name", "url", "citation")}
    return {"videos": given["VIDEOS"], "annotate": annotate, "origin": origin}


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
            f"{len(report.unclean)} videos could not be cleaned, as no beam was detected in them; "
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


@commands.command(short_help="Pretrain a backbone on a FrameStore.")
@click.option("--recipe", "recipe_name", help="Name or YAML file; a resumed run knows its own.")
@click.option("--data", required=True, type=FILE, help="A store of `uscl prepare`.")
@click.option("-o", "--output", required=True, type=FILE, help="Folder of the run.")
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
    from ..training.learning.frames import FrameStore
    from ..training.learning.ranks import join
    from ..training.learning.recipe import load_recipe, recipe_names
    from ..training.learning.runs import RECIPE
    from ..training.pretraining.pretrain import pretrain as run

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


@commands.command(short_help="Time pretraining on this machine.")
@click.option("--recipe", "recipe_name", default="us4_resnet18", show_default=True)
@click.option("--data", type=FILE, help="A store; or --synthetic makes one.")
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
@click.option("--trace", "traced", type=FILE, help="Folder for a Chrome trace and its kernels.")
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

    from ..training.learning.frames import FrameStore
    from ..training.learning.recipe import load_recipe
    from ..training.preparing.synthetic import us4_shaped
    from ..training.pretraining.throughput import measure

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


@commands.command(short_help="Turn a run into weights and a card.")
@click.argument("run", type=FILE)
@click.option("--name", required=True, help="E.g. resnet18_uscl.myhospital.")
@click.option("-o", "--output", type=FILE, help="Folder; by default your own, ~/.uscl_zoo.")
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--licence-reason", help="Why, where the zoo does not know a licence of the data.")
@click.option("--summary", help="One line for tables.")
@click.option("--limit", "limits", multiple=True, help="A known limit; repeat.")
@click.option(
    "--start-share",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Of the weights that the run began with.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call left there.")
def export(
    run: Path,
    name: str,
    output: Path | None,
    licence: str | None,
    licence_reason: str | None,
    summary: str | None,
    limits: tuple[str, ...],
    start_share: float,
    overwrite: bool,
) -> None:
    """Turn a finished RUN into weights of the zoo and their card."""
    from ..training.pretraining.export import export as write
    from ..zoo.catalogue import home

    card = write(
        run,
        name,
        output,
        licence=licence,
        licence_reason=licence_reason,
        summary=summary,
        limits=limits,
        start_share=start_share,
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
    from ..zoo import licences
    from ..zoo.card import licences_of

    bound = licences_of(card.training)
    unknown = licences.unknown(bound)
    if unknown:
        return f"the zoo cannot tell which it may state: {', '.join(unknown)} is not known to it"
    loosest = licences.loosest(bound)
    if loosest is None:
        return "none can be stated, since what it was made of lets nothing be made of it"
    return f"the loosest that may be stated: --licence {loosest}"


@commands.command(short_help="Put fingerprints of the training data on a card.")
@click.argument("card", type=FILE)
@click.option("--data", required=True, type=FILE, help="The store that was trained on.")
def corpus(card: Path, data: Path) -> None:
    """Put fingerprints of the training videos on a CARD that was exported without them.

    `uscl audit` compares data with them. `uscl export` writes them by itself.
    """
    from ..training.learning.frames import FrameStore
    from ..training.preparing.corpus import add_corpus

    written = add_corpus(card, FrameStore(data)).corpus
    assert written is not None
    click.echo(f"{card.parent / written.file}: {written.bytes} bytes, sha256 {written.sha256}")
