"""Looking at what there is, and taking features from it."""

from __future__ import annotations

import fnmatch
import os
from pathlib import Path
from typing import Any, Literal

import click

from ..errors import DataError, UnknownModelError, one_line
from ..files import expanded
from .commands import Heading, in_options
from .options import FILE, MODEL, clean_option, device_option, rate_option, ray_option, seed_option
from .output import json_option, painted, say, say_json
from .weights import whereabouts

commands = Heading(help="Use a backbone as it is")

#: Columns of a name, and the gap behind it.
_INDENT = 26


@commands.command("list")
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="Only checkpoints whose weights are known.")
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
@json_option
def list_(pattern: str, pretrained: bool, markdown: bool, as_json: bool) -> None:
    """List checkpoints: where their weights are, who may use them, what they have seen."""
    from ..zoo import licences, weights_cache
    from ..zoo.catalogue import packaged_cards, survey
    from ..zoo.descriptions import seen, standing, table

    if markdown:
        click.echo(table(packaged_cards().values()))
        return
    cards, faults = survey()
    troubles: dict[str, str] = {}
    listed = []
    for name, card in sorted(cards.items()):
        if not fnmatch.fnmatch(name, pattern) or (pretrained and not card.has_weights):
            continue
        places = weights_cache.places(card)
        for place in places:
            if place.trouble:
                # once each, not for every card
                troubles.setdefault(place.source, f"{place.source} {place.path}: {place.trouble}")
        words, path = whereabouts(card, places)
        product = licences.in_a_product(card.licence)
        if as_json:
            plain: dict[str, Any] = {"name": name, "where": words, "path": path and str(path)}
            plain |= {"summary": card.summary, "licence": card.licence, "in_a_product": product}
            plain |= {"has_seen": seen(card), "how_good": standing(card)}
            listed.append(plain)
            continue
        say(f"{painted(f'{name:24}', 'name')}  {words:14}  {card.summary}", indent=_INDENT)
        for line in (
            f"in a product: {product}",
            f"has seen: {seen(card)}",
            *standing(card, brief=True),
        ):
            say(" " * _INDENT + line, indent=_INDENT + 2)
    if as_json:
        say_json(listed)
    for trouble in (*(f"left out: {fault}" for fault in faults), *troubles.values()):
        say(f"uscl: {trouble}", err=True)


@commands.command()
@click.argument("name", type=MODEL)
@json_option
def info(name: str, as_json: bool) -> None:
    """Show the card of a checkpoint, or what a folder or file is.

    NAME is of the zoo, or a model of `uscl finetune`, a store, a run, a card, a folder of timm's.
    """
    from ..records import to_plain
    from ..zoo.catalogue import card_named
    from ..zoo.descriptions import describe

    try:
        card = card_named(name)
        text, plain = describe(card), to_plain(card)
    except UnknownModelError:
        path = expanded(name.removeprefix("local-dir:"))
        if not os.path.lexists(path):
            raise
        from ..training.inventory import look

        text, plain = look(path)
    if as_json:
        say_json(plain)
        return
    first, _, rest = text.partition("\n")
    # what a row says stands behind its key
    say(f"{painted(first, 'name')}\n{rest}", indent=21)


@commands.command()
@click.argument("clip", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--model", type=MODEL, default="resnet18_uscl", show_default=True)
@click.option("-o", "--output", default="uscl_demo.png", show_default=True, type=FILE)
def demo(clip: Path | None, model: str, output: Path) -> None:
    """Draw what the network sees in a clip, yours or a synthetic one."""
    from .. import demo as showing

    showing.run(model, clip, output)


@commands.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help=".npz, .csv or .parquet",
)
@click.option("--model", type=MODEL, default="resnet18_uscl", show_default=True)
@click.option(
    "--pool", type=click.Choice(["frame", "clip", "subject"]), default="frame", show_default=True
)
@click.option("--csv", "table", type=FILE, help="Table of subjects.")
@click.option("--file-column", default="Filename", show_default=True, help="Names or stems.")
@click.option("--subject-column", help="Patient, of the table.")
@click.option("--subject-pattern", help="Without --csv: regex whose group is the subject.")
@click.option("--every-row", is_flag=True, help="Fail if a row has no file.")
@rate_option(None)
@clean_option
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default one a core.")
@ray_option
@device_option
def embed(
    files: tuple[Path, ...],
    output: Path,
    model: str,
    pool: Literal["frame", "clip", "subject"],
    table: Path | None,
    file_column: str,
    subject_column: str | None,
    subject_pattern: str | None,
    every_row: bool,
    rate: float | None,
    clean: bool | None,
    batch_size: int,
    workers: int | None,
    ray: str | None,
    device: str | None,
) -> None:
    """Embed images, DICOM and videos: one row a frame, a clip or a subject.

    Run it again after an interruption and it continues, with --ray or without.
    """
    from ..data.annotations import read_table
    from ..embedding import extraction as embedding
    from ..files import check_output

    subjects: embedding.Subjects | None = subject_pattern
    if table is not None:
        if subject_pattern is not None:
            raise DataError("--csv and --subject-pattern exclude each other")
        if subject_column is None:
            raise DataError("--csv: needs --subject-column")
        check_output(output, [table])
        subjects = read_table(table, file_column, subject_column=subject_column)
    elif subject_column is not None:
        raise DataError(f"--subject-column {subject_column}: needs --csv")
    elif every_row:
        raise DataError("--every-row: needs --csv")
    elif subjects is None and pool == "subject":
        raise DataError("--pool subject: needs --csv with --subject-column, or --subject-pattern")

    done = embedding.embed_to(
        output,
        model,
        files,
        pool,
        rate,
        batch_size,
        device,
        subjects=subjects,
        workers=workers,
        every_row=every_row,
        clean=clean,
        ray=ray,
    )
    for source, reason in done.skipped:
        click.echo(one_line(f"skipped {source}: {reason}"), err=True)
    for note in done.notes:
        click.echo(note, err=True)
    earlier = f", {done.resumed} of them done before the interruption" if done.resumed else ""
    click.echo(
        f"{done.path}: {done.rows} {pool}s of {done.sources} files{earlier}, "
        f"{done.width} numbers each; {len(done.skipped)} skipped"
    )


@commands.command()
@click.argument("model", type=MODEL, default="resnet18_uscl")
@click.option("--collection", type=FILE, help="Of `uscl embed`: show the nearest of it.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 lets everybody in.")
@click.option("--port", type=click.IntRange(1, 65535), help="By default the first from 7860 on.")
@click.option("--space", type=FILE, help="Write a Hugging Face Space of it, and serve nothing.")
@device_option
def app(
    model: str,
    collection: Path | None,
    host: str,
    port: int | None,
    space: Path | None,
    device: str | None,
) -> None:
    """Serve a page to drop an image, a clip or a DICOM file into.

    It shows what MODEL sees and says: frames, beam, probabilities, evidence, nearest images. Files
    stay on this machine, and are deleted when the tab is closed.
    """
    if space is not None:
        from ..app.space import write_space

        if collection is not None:
            raise DataError("--collection: names files of yours, and --space is for others to see")
        write_space(model, space)
        click.echo(f"{space}: written; `python {space}/app.py` tries it here")
        return
    from ..app.page import serve

    serve(model, collection, host=host, port=port, device=device, tell=click.echo)


@commands.command(short_help="Find the nearest images of an embedded collection.")
@click.argument("features", type=FILE)
@click.argument("file", type=FILE)
@click.option("--model", type=MODEL, default="resnet18_uscl", show_default=True)
@click.option("-n", "--count", type=click.IntRange(min=1), default=10, show_default=True)
@click.option("-o", "--output", type=FILE, help="Picture of them, .png.")
@rate_option(None)
@clean_option
@device_option
@json_option
def neighbours(
    features: Path,
    file: Path,
    model: str,
    count: int,
    output: Path | None,
    rate: float | None,
    clean: bool | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Find what of an embedded collection, FEATURES of `uscl embed`, is nearest to FILE.

    By the cosine of the embeddings, each file of the collection once, FILE itself left out. MODEL
    has to be the one that FEATURES are of, which is tried on one of its files.
    """
    from ..embedding import neighbours as nearness

    answer = nearness.neighbours(
        features,
        file,
        model,
        count=count,
        output=output,
        rate=rate,
        clean=clean,
        device=device,
    )
    if not answer.checked:
        message = "none of its files is in reach, so nobody can tell whether they are of"
        say(f"uscl: {features}: {message} {model}", err=True)
    if as_json:
        say_json([one.plain() for one in answer.nearest])
        return
    for one in answer.nearest:
        whose = f", {one.subject}" if one.subject else ""
        say(one_line(f"{one.cosine:6.3f}  {one.source}{whose}"), indent=8)
    if output is not None:
        say(f"{output}: written")


@commands.command("map", short_help="Draw an embedded collection as a page, like beside like.")
@click.argument("features", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help=".html")
@click.option("--csv", "table", type=FILE, help="Table of labels, to colour by.")
@click.option("--file-column", default="Filename", show_default=True, help="Names or stems.")
@click.option("--label-column", help="Of the table.")
@click.option("--most", type=click.IntRange(min=3), default=3000, show_default=True)
@seed_option
@rate_option(3.0)
def map_(
    features: Path,
    output: Path,
    table: Path | None,
    file_column: str,
    label_column: str | None,
    most: int,
    seed: int,
    rate: float,
) -> None:
    """Draw FEATURES of `uscl embed` as one HTML page: like beside like, each image on hover.

    Coloured by the labels of a table; without one by folder, or by subject.
    """
    from ..data.annotations import read_table
    from ..embedding.atlas import draw_map

    if (table is None) != (label_column is None):
        raise DataError("--csv and --label-column go together")
    groups = None if table is None else read_table(table, file_column, label_column)
    options = click.get_current_context().command.params
    written = draw_map(
        features,
        output,
        groups=groups,
        rate=rate,
        most=most,
        seed=seed,
        tell=lambda line: say(in_options(line, options), err=True),
    )
    say(f"{written}: written")
