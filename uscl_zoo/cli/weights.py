"""Files of weights: where they are, whether they are right, where they come from and go to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import UsclError
from .commands import Heading
from .options import FILE, MODEL, NAME, channels, numbers

if TYPE_CHECKING:
    from ..card import Card
    from ..places import Place

commands = Heading(help="Keep weights, and pass them on")


def whereabouts(card: Card, places: Sequence[Place]) -> tuple[str, Path | None]:
    """Where the weights of a card are, in words, and their file if it is on this machine."""
    if not card.has_weights:
        return "to be imported", None
    here = next((place for place in places if place.present), None)
    if here is not None:
        return here.source, here.path
    return ("on the Hub" if card.weights.hub_repo else "missing"), None


@commands.command()
@click.argument("name", required=False, type=MODEL)
def where(name: str | None) -> None:
    """Show where weights are: all of them, or every place where those of NAME are looked for."""
    from .. import weights_cache
    from ..catalogue import home, model_info, own_folder, ranked_cards

    if name is None:
        for card in ranked_cards():
            words, path = whereabouts(card, weights_cache.places(card))
            click.echo(f"{card.name:24}  {words:14}  {path or ''}".rstrip())
        click.echo(f"{'your own go into':24}  {'':14}  {home()}")
        return
    card = model_info(name)
    for place in weights_cache.places(card, own_folder(name)):
        mark, trouble = "*" if place.present else " ", ""
        if place.trouble:
            mark, trouble = "!", f": {place.trouble}"
        click.echo(f"{mark} {place.source:12}  {place.path}{trouble}")
    if card.weights.hub_repo:
        click.echo(f"  {'Hub':12}  {card.weights.hub_repo} at {card.weights.revision}")


@commands.command()
@click.argument("names", nargs=-1, type=MODEL)
def verify(names: tuple[str, ...]) -> None:
    """Check the weights in reach against their cards."""
    from .. import weights_cache
    from ..catalogue import all_cards, model_info, own_folder

    asked = [(model_info(name), own_folder(name)) for name in names]
    cards = asked or [(card, None) for card in all_cards().values()]
    wrong = 0
    for result in (weights_cache.verify_all([card], folder)[0] for card, folder in cards):
        if result.located is not None:
            click.echo(f"{result.name}: verified, {result.located.source}, {result.located.path}")
            continue
        absent = isinstance(result.error, FileNotFoundError)
        wrong += not absent or bool(names)
        click.echo(f"{result.name}: {'absent' if absent else 'WRONG'}: {result.error}")
    if wrong:
        raise UsclError(f"{wrong} of {len(cards)} not verified")


@commands.command()
@click.argument("names", nargs=-1, required=True, type=NAME)
@click.option("-o", "--output", type=FILE, help="Folder; by default your own.")
def fetch(names: tuple[str, ...], output: Path | None) -> None:
    """Copy verified weights and cards, for machines without a network."""
    from .. import weights_cache
    from ..catalogue import home, model_info

    for card in [model_info(name) for name in names]:
        click.echo(weights_cache.fetch(card, output or home()))


@commands.command("import", also={"statistics": "--mean and --std"})
@click.argument("file", type=FILE)
@click.option("--as", "name", required=True, help="E.g. resnet18_uscl.us4.")
@click.option("--licence", help="Of the weights, as an SPDX identifier.")
@click.option("--summary", help="One line for tables.")
@click.option("--origin", help="Where the file was published.")
@click.option("--mean", callback=numbers, help="Of files that do not show theirs: .5 or .5,.5,.5")
@click.option("--std", callback=numbers, help="As --mean.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call left there.")
def import_(
    file: Path,
    name: str,
    licence: str | None,
    summary: str | None,
    origin: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    overwrite: bool,
) -> None:
    """Bring in a checkpoint of USCL, HiCo, torchvision or timm."""
    from ..authors import import_checkpoint
    from ..catalogue import home

    card = import_checkpoint(
        file,
        name,
        overwrite=overwrite,
        licence=licence,
        summary=summary,
        origin=origin,
        statistics=channels(mean, std),
    )
    click.echo(f"{card.name}: imported into {home()}, sha256 {card.weights.sha256}")
    click.echo(f"its frames are normalised by mean {card.input.mean}, std {card.input.std}")
    click.echo(f'next: uscl_zoo.create_model("{card.name}", pretrained=True)')


@commands.command()
@click.argument("name", type=MODEL)
@click.option("--to", "namespace", required=True, help="User or organisation on the Hub.")
@click.option("--dry-run", is_flag=True, help="Write the repository to a folder only.")
@click.option("--licence", help="Of the weights, as an SPDX identifier, if the card states none.")
@click.option("-o", "--output", type=FILE, help="Folder to keep it in.")
def publish(
    name: str, namespace: str, dry_run: bool, licence: str | None, output: Path | None
) -> None:
    """Push a checkpoint, or the folder of a fine-tuned model, to the Hub; print the commit."""
    from ..publish import publish as push

    click.echo(str(push(name, namespace, dry_run=dry_run, folder=output, licence=licence)))
