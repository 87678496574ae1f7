"""Files of weights: where they are, whether they are right, where they come from and go to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsclError
from .commands import Heading
from .options import FILE, MODEL, NAME, channels, numbers
from .output import json_option, painted, say, say_json

if TYPE_CHECKING:
    from ..zoo.card import Card
    from ..zoo.places import Place

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
@json_option
def where(name: str | None, as_json: bool) -> None:
    """Show where weights are: all of them, or every place where those of NAME are looked for."""
    from ..zoo import weights_cache
    from ..zoo.catalogue import home, model_info, own_folder, ranked_cards

    if name is None:
        rows = [
            (card.name, *whereabouts(card, weights_cache.places(card))) for card in ranked_cards()
        ]
        if as_json:
            listed = [{"name": n, "where": w, "path": p and str(p)} for n, w, p in rows]
            say_json({"weights": listed, "home": str(home())})
            return
        for called, words, path in rows:
            line = f"{painted(f'{called:24}', 'name')}  {words:14}  {path or ''}"
            say(line.rstrip(), indent=26)
        say(f"{'your own go into':24}  {'':14}  {home()}", indent=26)
        return
    card = model_info(name)
    places = weights_cache.places(card, own_folder(name))
    hub = {"repo": card.weights.hub_repo, "revision": card.weights.revision}
    if as_json:
        listed = [asdict(place) | {"path": str(place.path)} for place in places]
        say_json({"name": card.name, "places": listed, "hub": hub if hub["repo"] else None})
        return
    for place in places:
        mark, trouble = painted("*", "right") if place.present else " ", ""
        if place.trouble:
            mark, trouble = painted("!", "wrong"), f": {place.trouble}"
        say(f"{mark} {place.source:12}  {place.path}{trouble}", indent=16)
    if hub["repo"]:
        say(f"  {'Hub':12}  {hub['repo']} at {hub['revision']}", indent=16)


@commands.command()
@click.argument("names", nargs=-1, type=MODEL)
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Check the weights in reach against their cards."""
    from ..zoo import weights_cache
    from ..zoo.catalogue import all_cards, model_info, own_folder

    asked = [(model_info(name), own_folder(name)) for name in names]
    cards = asked or [(card, None) for card in all_cards().values()]
    wrong, results = 0, []
    for card, folder in cards:
        (result,) = weights_cache.verify_all([card], folder)
        right, absent = result.located, isinstance(result.error, FileNotFoundError)
        wrong += right is None and (not absent or bool(names))
        words = "verified" if right else "absent" if absent else "WRONG"
        if as_json:
            plain: dict[str, Any] = {"name": result.name, "result": words.lower()}
            plain |= {"where": right and right.source, "path": right and str(right.path)}
            results.append(plain | {"error": result.error and str(result.error)})
        elif right:
            said = painted(words, "right")
            say(f"{result.name}: {said}, {right.source}, {right.path}", indent=2)
        else:
            said = words if absent else painted(words, "wrong")
            say(f"{result.name}: {said}: {result.error}", indent=2)
    if as_json:
        say_json(results)
    if wrong:
        raise UsclError(f"{wrong} of {len(cards)} not verified")


@commands.command()
@click.argument("names", nargs=-1, required=True, type=NAME)
@click.option("-o", "--output", type=FILE, help="Folder; by default your own.")
def fetch(names: tuple[str, ...], output: Path | None) -> None:
    """Copy verified weights and cards, for machines without a network."""
    from ..zoo import weights_cache
    from ..zoo.catalogue import home, model_info

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
    from ..zoo.authors import import_checkpoint
    from ..zoo.catalogue import home

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
