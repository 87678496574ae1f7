"""What is in the zoo, from the cards alone: neither torch nor timm is imported."""

from __future__ import annotations

import difflib
import fnmatch
import mimetypes
import os
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ..errors import CardError, DataError, UnknownModelError, reason
from ..files import expanded, is_address
from .card import MODELS, Card, read_card


def home() -> Path:
    """The user's own folder of cards and weights: `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`.

    Raises:
        DataError: if they have no home folder.
    """
    return expanded(os.environ.get("USCL_ZOO_WEIGHTS") or "~/.uscl_zoo")


def packaged_folder() -> Path:
    """The folder of the cards that come with uscl-zoo."""
    return Path(__file__).parents[1] / "cards"


@lru_cache(maxsize=1)
def _packaged() -> tuple[dict[str, Card], tuple[str, ...]]:
    return _cards_in(packaged_folder())


def _cards_in(folder: Path) -> tuple[dict[str, Card], tuple[str, ...]]:
    """The cards in a folder that can be read, by name, and what is wrong with the others."""
    cards, faults = {}, []
    try:
        # not glob, to which a folder that cannot be read is an empty one
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".yaml")
    except FileNotFoundError:
        return {}, ()
    except OSError as error:
        return {}, (f"{folder}: cannot be read ({reason(error)})",)
    for path in paths:
        try:
            cards[path.stem] = read_card(path)
        except CardError as error:
            faults.append(str(error))
    return cards, tuple(faults)


def packaged_cards() -> dict[str, Card]:
    """The cards that come with uscl-zoo, by name."""
    return _packaged()[0]


def user_cards(folder: Path | None = None) -> dict[str, Card]:
    """The cards in the user's folder, by name; read anew at each call.

    One damaged file should not cost the user the zoo: it is left out with a warning.
    """
    cards, faults = _of_user(folder)
    _warn(faults)
    return cards


def _of_user(folder: Path | None) -> tuple[dict[str, Card], tuple[str, ...]]:
    try:
        return _cards_in(folder or home())
    except DataError as error:
        return {}, (str(error),)


def _warn(faults: Iterable[str]) -> None:
    for fault in faults:
        warnings.warn(f"left out of the zoo: {fault}", stacklevel=3)


def all_cards() -> dict[str, Card]:
    """Every card in reach. A user's card stands in for a packaged one that has no weights.

    What cannot be read is left out with a warning.
    """
    cards, faults = survey()
    _warn(faults)
    return cards


def survey() -> tuple[dict[str, Card], tuple[str, ...]]:
    """Every card in reach, and why others, or the whole folder of the user, cannot be read."""
    packaged, damaged = _packaged()
    own, unreadable = _of_user(None)
    cards = dict(packaged)
    for name, card in own.items():
        if name not in cards or not cards[name].has_weights:
            cards[name] = card
    return cards, (*damaged, *unreadable)


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """List the models of the zoo.

    Args:
        filter: a pattern with wildcards, e.g. `*50*`.
        pretrained: list the checkpoints whose weights are known instead, as `model.tag`.
    """
    cards = all_cards()
    if pretrained:
        names = {name for name, card in cards.items() if card.has_weights}
    else:
        names = {card.model for card in cards.values()}
    return sorted(fnmatch.filter(names, filter))


def ranked_cards() -> list[Card]:
    """All cards, those of the zoo before those of the user's folder, each by name.

    The first card of a model that has weights is the model's default, for timm too.
    """
    packaged = packaged_cards()
    return sorted(all_cards().values(), key=lambda card: (card.name not in packaged, card.name))


def model_info(name: str | Path) -> Card:
    """The card of a checkpoint, of a model's default checkpoint, or of a model's folder.

    Args:
        name: of a model or checkpoint, or the path of a folder that `uscl finetune` wrote.

    Raises:
        UnknownModelError: naming the nearest models.
        CardError: if the card is damaged, or a folder has none, or several.
    """
    folder = own_folder(name)
    return card_named(str(name)) if folder is None else card_in(folder)


def own_folder(reference: str | Path) -> Path | None:
    """The folder of a model of one's own; None for what is a name of the zoo, or neither."""
    name = str(reference)
    return None if name in MODELS or name in all_cards() else folder_of(name)


def folder_of(reference: str | Path) -> Path | None:
    """The folder that a reference to a model names, as `uscl finetune` and timm write them."""
    if not str(reference):
        # no path and no name, as which it is refused
        return None
    folder = expanded(str(reference).removeprefix("local-dir:"))
    try:
        held = any((folder / name).is_file() for name in ("config.json", "predict.json"))
    except OSError:
        return None
    return folder if held else None


def card_in(folder: Path) -> Card:
    """The card of a model's folder.

    Raises:
        CardError: if there is none, or several, or it is damaged.
    """
    cards = sorted(folder.glob("*.yaml"))
    if len(cards) != 1:
        raise CardError(f"{folder}: should hold one card, NAME.yaml, not {len(cards)}")
    return read_card(cards[0])


def card_named(name: str) -> Card:
    """The card of a checkpoint of the zoo, or of a model's default checkpoint.

    Raises:
        UnknownModelError: naming the nearest models.
        CardError: if the card is damaged.
    """
    cards = {card.name: card for card in ranked_cards()}
    if name in cards:
        return cards[name]
    own = [card for card in cards.values() if card.model == name]
    if own:
        return next((card for card in own if card.has_weights), own[0])
    # a path is no name
    for folder in (home(), packaged_folder()) if Path(name).name == name else ():
        damaged = folder / f"{name}.yaml"
        if damaged.is_file():
            # says what is wrong with it: a good one would be among the cards
            return read_card(damaged)
    raise UnknownModelError(f"no model {name!r} in the zoo; {_advice(name, list(cards.values()))}")


def _advice(name: str, cards: list[Card]) -> str:
    """What somebody may have meant who asked for a name that there is not."""
    if is_picture(name):
        return f"it is an image or clip: `uscl_zoo.Embedder()({name!r})` makes a vector of it"
    model, _, tag = name.partition(".")
    tags = {card.tag: card for card in cards if card.model == model}
    near: list[str]
    if tags:
        # of a model that there is, in the spelling of the tag alone: all of its names look alike
        near = [tags[one].name for one in difflib.get_close_matches(tag, tags, n=3)]
        if not near:
            return f"{model} has {', '.join(card.name for card in tags.values())}"
    else:
        names = [card.name for card in cards]
        near = difflib.get_close_matches(name, [*names, *MODELS], n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else "`uscl list` shows all"


def is_picture(name: str) -> bool:
    """Whether a name is that of an image or clip, and so of no model."""
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith(("image/", "video/")) or Path(name).suffix.lower() in (".dcm", ".dicom")


def refuse_model(path: str | Path) -> None:
    """Tell whoever names a model where files are wanted, if there is no such file.

    Raises:
        DataError: if it is one.
    """
    if is_address(path):
        return
    if not os.path.lexists(expanded(path)) and (str(path) in all_cards() or str(path) in MODELS):
        raise DataError(
            f"{path}: is a model, and images are wanted here; the model comes first, as in "
            f"`embed({str(path)!r}, images)`"
        )
