"""`uscl`: the zoo on the command line. Commands of the training wing are loaded when called."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import click

from .errors import DataError, UsclError, one_line
from .names import escape_unprintable

#: Commands that live elsewhere: name → module, attribute, help for the overview.
_LAZY = {
    "prepare": ("uscl_zoo.training.cli", "Turn raw videos into a FrameStore."),
    "pretrain": ("uscl_zoo.training.cli", "Pretrain a backbone on a FrameStore."),
    "throughput": ("uscl_zoo.training.cli", "Time pretraining on this machine."),
    "export": ("uscl_zoo.training.cli", "Turn a run into weights and a card."),
    "corpus": ("uscl_zoo.training.cli", "Put fingerprints of the training data on a card."),
    "audit": ("uscl_zoo.training.cli", "Find near-duplicates within and across data sets."),
    "probe": ("uscl_zoo.training.cli", "Judge frozen features on held-out subjects."),
    "evaluate": ("uscl_zoo.training.cli", "Compare models on a data set, subjects never shared."),
    "finetune": ("uscl_zoo.training.cli", "Fine-tune a backbone on classes of your own."),
}


class _Zoo(click.Group):
    """A group whose training commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _LAZY:
            return super().get_command(ctx, name)
        try:
            command = getattr(importlib.import_module(_LAZY[name][0]), name)
        except ModuleNotFoundError as error:
            raise click.UsageError(
                f"{name} needs {error.name}: pip install 'uscl-zoo[training]'"
            ) from error
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # the overview must work where the libraries of training are not installed
        rows = []
        for name in self.list_commands(ctx):
            own = self.commands.get(name)
            rows.append((name, own.get_short_help_str(80) if own else _LAZY[name][1]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Zoo, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="uscl-zoo")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Backbones pretrained on ultrasound video, and the way they are made."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: an error a user can mend is one line and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    escape_unprintable(sys.stdout, sys.stderr)
    try:
        # --debug is taken anywhere, since it is added after something has gone wrong
        status = cli.main(
            [word for word in given if word != "--debug"], "uscl", standalone_mode=False
        )
        # of a command that ended itself, as `audit --fail` does
        if isinstance(status, int) and status:
            sys.exit(status)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if debug:
            raise
        click.echo(_of_grammar(error), err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("uscl: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # `uscl list | head`: the reader has enough
        sys.stderr.close()
        sys.exit(0)
    except (UsclError, OSError) as error:
        if debug:
            raise
        click.echo(f"uscl: {_in_words(error)}", err=True)
        sys.exit(getattr(error, "exit_code", 2))


def _of_grammar(error: click.ClickException) -> str:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message()
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "uscl"
    return f"uscl: {message}; see `{path} --help`"


def _in_words(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, UsclError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split("\n"))


@cli.command("list")
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="Only checkpoints whose weights are known.")
@click.option("--markdown", is_flag=True, help="Print the table of the README.")
def list_(pattern: str, pretrained: bool, markdown: bool) -> None:
    """List checkpoints: where their weights are, who may use them, what they have seen."""
    import fnmatch

    from . import licences, store
    from .card import all_cards, packaged_cards, seen, standing, table

    if markdown:
        click.echo(table(packaged_cards().values()))
        return
    for name, card in sorted(all_cards().items()):
        if not fnmatch.fnmatch(name, pattern) or (pretrained and not card.has_weights):
            continue
        click.echo(f"{name:24}  {_whereabouts(store, card):14}  {card.summary}")
        click.echo(f"{'':24}  in a product: {licences.in_a_product(card.licence)}")
        click.echo(f"{'':24}  has seen: {seen(card)}")
        for line in standing(card, brief=True):
            click.echo(f"{'':24}  {line}")


def _whereabouts(store: Any, card: Any) -> str:
    if not card.has_weights:
        return "to be imported"
    here = next((place.source for place in store.places(card) if place.present), None)
    return here or ("on the Hub" if card.weights.hub_repo else "missing")


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def info(name: str, as_json: bool) -> None:
    """Show the card of a checkpoint."""
    from .card import describe
    from .records import to_plain
    from .registry import model_info

    card = model_info(name)
    click.echo(json.dumps(to_plain(card), indent=2) if as_json else describe(card))


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help=".npz, .csv or .parquet",
)
@click.option("--model", default="resnet18_uscl", show_default=True)
@click.option(
    "--pool", type=click.Choice(["frame", "clip", "subject"]), default="frame", show_default=True
)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Table of subjects.")
@click.option("--file-column", default="Filename", show_default=True, help="Names or stems.")
@click.option("--subject-column", help="Patient, of the table.")
@click.option("--subject-pattern", help="Without --csv: regex whose group is the subject.")
@click.option("--every-row", is_flag=True, help="Fail if a row has no file.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=3.0, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default one a core.")
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
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
    rate: float,
    batch_size: int,
    workers: int | None,
    device: str | None,
) -> None:
    """Embed images, DICOM and videos: one row a frame, a clip or a subject.

    Run it again after an interruption and it continues.
    """
    from . import embed as embedding
    from .annotations import read_table

    subjects: embedding.Subjects | None = subject_pattern
    if table is not None:
        if subject_pattern is not None:
            raise DataError("--csv and --subject-pattern exclude each other")
        if subject_column is None:
            raise DataError("--csv: needs --subject-column")
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


@cli.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=click.Path(path_type=Path),
    help=".png, .mp4 or .gif; repeat. By default FILE_explained.png, and for clips .mp4.",
)
@click.option("--class", "label", help="To explain; by default the most probable.")
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True
)
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
def explain(
    model: str,
    file: Path,
    outputs: tuple[Path, ...],
    label: str | None,
    rate: float,
    device: str | None,
) -> None:
    """Draw where in FILE the evidence for MODEL's answer is.

    MODEL is a checkpoint of the zoo or a folder that `uscl finetune` wrote.
    """
    from . import gradcam

    for output in outputs:
        gradcam.check_suffix(output)
    result = gradcam.explain(model, file, label, rate, device)
    if not outputs:
        stem = f"{file.stem if file.suffix else file.resolve().name}_explained"
        outputs = (Path(f"{stem}.png"), *([Path(f"{stem}.mp4")] if len(result) > 1 else []))
    click.echo(one_line(f"{result.title}; {result.subtitle}"))
    for output in outputs:
        click.echo(f"{result.save(output)}: written")


@cli.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help=".html")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
def shortcut(
    model: str, data: tuple[Path, ...], output: Path, rate: float, device: str | None
) -> None:
    """Measure how far MODEL's answers move when what is not ultrasound is blanked.

    Writes a report with the worst cases, and a table beside it. Run it again after an interruption
    and it continues.
    """
    from . import shortcuts

    result = shortcuts.shortcut(model, data, output, rate, device)
    for source, reason in result.skipped:
        click.echo(one_line(f"skipped {source}: {reason}"), err=True)
    for name, value in result.summary():
        click.echo(f"{value:>8}  {name}")
    click.echo(f"{output}: written, and {output.with_suffix('.csv').name}")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help=".csv or .json")
@click.option("--subject-pattern", help="Regex whose group is the subject.")
@click.option("--confidence", type=click.FloatRange(0, 1), help="Below it: cannot tell.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Frames a second.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")
def predict(
    model: Path,
    files: tuple[Path, ...],
    output: Path | None,
    subject_pattern: str | None,
    confidence: float | None,
    rate: float | None,
    batch_size: int,
    device: str | None,
) -> None:
    """Classify images, videos and DICOM files with a MODEL that `uscl finetune` wrote."""
    from . import prediction

    if output is not None:
        prediction.check_suffix(output)  # before an hour of work, not after
    result = prediction.predict(
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
        for answer in (*result.clips, *result.subjects):
            click.echo(one_line(str(answer)))
        return
    result.save(output)
    told = sum(answer.answer is not None for answer in result.clips)
    unlike = sum(answer.unlike for answer in result.clips)
    click.echo(
        f"{output}: {len(result.clips)} files, {told} answered, {unlike} unlike the training "
        f"images; {len(result.skipped)} skipped"
    )


@cli.command()
@click.argument("clip", required=False, type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="resnet18_uscl", show_default=True)
@click.option(
    "-o", "--output", default="uscl_demo.png", show_default=True, type=click.Path(path_type=Path)
)
def demo(clip: Path | None, model: str, output: Path) -> None:
    """Draw what the network sees in a clip, yours or a synthetic one."""
    from . import demo as showing

    showing.run(model, clip, output)


@cli.command()
@click.argument("names", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder; by default your own."
)
def fetch(names: tuple[str, ...], output: Path | None) -> None:
    """Copy verified weights and cards, for machines without a network."""
    from . import store
    from .card import home
    from .registry import model_info

    for card in [model_info(name) for name in names]:
        click.echo(store.fetch(card, output or home()))


@cli.command()
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Check the weights in reach against their cards."""
    from . import store
    from .card import all_cards
    from .registry import model_info

    cards = [model_info(name) for name in names] or list(all_cards().values())
    wrong = 0
    for result in store.verify_all(cards):
        if result.located is not None:
            click.echo(f"{result.name}: verified, {result.located.source}, {result.located.path}")
            continue
        absent = isinstance(result.error, FileNotFoundError)
        wrong += not absent or bool(names)
        click.echo(f"{result.name}: {'absent' if absent else 'WRONG'}: {result.error}")
    if wrong:
        raise UsclError(f"{wrong} of {len(cards)} not verified")


@cli.command()
@click.argument("name")
def where(name: str) -> None:
    """Show where weights are looked for, and where they are."""
    from . import store
    from .registry import model_info

    card = model_info(name)
    for place in store.places(card):
        click.echo(f"{'*' if place.present else ' '} {place.source:12}  {place.path}")
    if card.weights.hub_repo:
        click.echo(f"  {'Hub':12}  {card.weights.hub_repo} at {card.weights.revision}")


@cli.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", required=True, help="E.g. resnet18_uscl.us4.")
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--summary", help="One line for tables.")
@click.option("--origin", help="Where the file was published.")
@click.option("--overwrite", is_flag=True, help="Replace other weights of that name.")
def import_(
    file: Path,
    name: str,
    licence: str | None,
    summary: str | None,
    origin: str | None,
    overwrite: bool,
) -> None:
    """Bring in a checkpoint of USCL, HiCo, torchvision or timm."""
    from .authors import import_checkpoint
    from .card import home

    card = import_checkpoint(
        file, name, overwrite=overwrite, licence=licence, summary=summary, origin=origin
    )
    click.echo(f"{card.name}: imported into {home()}, sha256 {card.weights.sha256}")
    click.echo(f'next: uscl_zoo.create_model("{card.name}", pretrained=True)')


@cli.command()
@click.argument("name")
@click.option("--to", "namespace", required=True, help="User or organisation on the Hub.")
@click.option("--dry-run", is_flag=True, help="Write the repository to a folder only.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to keep it in.")
def publish(name: str, namespace: str, dry_run: bool, output: Path | None) -> None:
    """Push a checkpoint, or the folder of a fine-tuned model, to the Hub; print the commit."""
    from .publish import publish as push

    click.echo(str(push(name, namespace, dry_run=dry_run, folder=output)))
