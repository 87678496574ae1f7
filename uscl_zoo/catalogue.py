"""What is in the zoo, answered from the cards alone: neither torch nor timm is imported."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path

from .card import MODELS, Card, all_cards, home, packaged_cards, packaged_folder, read_card
from .errors import UnknownModelError


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


def model_info(name: str) -> Card:
    """The card of a checkpoint, or of a model's default checkpoint.

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
