"""A run becomes a checkpoint of the zoo: weights in timm's keys and the card about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from uscl_zoo import store
from uscl_zoo.card import Card, Corpus, Input, Metric, Source, Training, Weights, home, read_card
from uscl_zoo.checkpoint import write_backbone
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.records import write_yaml

from .corpus import write_corpus
from .frames import FrameStore
from .pairs import draw_batches, draw_videos
from .recipe import METHODS, Recipe, settings_of
from .runs import load_run

_ENCODER = "encoder."
_LIMITS = ("Not a medical device; not for diagnosis or treatment.",)
_USE = "Research: embedding ultrasound frames, and a start for fine-tuning on few labelled images."


def export(
    run: Path,
    name: str,
    output: Path | None = None,
    *,
    licence: str | None = None,
    summary: str | None = None,
    limits: Sequence[str] = (),
    overwrite: bool = False,
) -> Card:
    """Write the backbone of a run as `NAME.safetensors` and its card as `NAME.yaml`.

    The weights are those of the last epoch. Heads stay behind: the zoo is one of backbones. Where
    the store of the run is still in its place, `NAME.corpus.safetensors` tells what it was.

    Args:
        run: a folder that `pretrain` left.
        name: `<architecture>_uscl.<tag>`.
        output: folder; None for the user's own, where `create_model` finds it.
        licence: of the weights, as an SPDX identifier; the videos' licences bind it.
        summary: one line for tables.
        limits: known limits, besides that it is no medical device.
        overwrite: replace weights of that name.

    Returns:
        The card, as read back from its file.

    Raises:
        DataError: if the run is unfinished, or weights of that name are in the way.
        CardError: if the name does not fit the architecture.
    """
    recipe, about, state = load_run(run)
    done = state["progress"]["epoch"]
    if done < recipe.epochs:
        raise DataError(
            f"{run}: has done {done} of {recipe.epochs} epochs; finish it with "
            f"`uscl pretrain -o {run} --resume`"
        )
    if name.partition(".")[0] != f"{recipe.architecture}_uscl" or not name.partition(".")[2]:
        raise DataError(
            f"--name {name}: should look like {recipe.architecture}_uscl.TAG, since the run "
            f"trained a {recipe.architecture}"
        )
    output = output or home()
    weights_file, card_file = output / f"{name}.safetensors", output / f"{name}.yaml"
    if card_file.exists() and not overwrite:
        raise DataError(f"{card_file}: is there already; choose another name or add --overwrite")
    write_backbone(encoder_of(state), weights_file, recipe.architecture)
    counts = about["training"]
    card = Card(
        name=name,
        architecture=recipe.architecture,
        summary=summary
        or f"{METHODS[recipe.method]} on {counts['videos']} videos of {_origin(about)}",
        weights=Weights(
            file=weights_file.name,
            sha256=store.sha256_of(weights_file),
            bytes=weights_file.stat().st_size,
        ),
        input=Input(
            size=(3, about["sampling"]["size"], about["sampling"]["size"]),
            mean=recipe.mean,
            std=recipe.std,
        ),
        training=Training(
            method=recipe.method,
            sources=_sources(about),
            labels=tuple(about["classes"]) if recipe.class_weight else (),
            held_out_subjects=tuple(about["held_out_subjects"]),
            recipe=settings_of(recipe) | {"precision": about["precision"]},
            epochs=done,
            steps=done * len(draw_batches(counts["videos"], recipe, 0)),
            seed=recipe.seed,
            code=about["code"],
            hardware=about["hardware"],
            hours=round(state["progress"]["seconds"] / 3600, 2),
        ),
        licence=licence,
        intended_use=_USE,
        limits=(*_LIMITS, *limits),
        corpus=_corpus(output, name, about, recipe),
    )
    write_yaml(card_file, card)
    return read_card(card_file)


def encoder_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The backbone in the checkpoint of a run, under timm's keys."""
    return {
        key.removeprefix(_ENCODER): tensor
        for key, tensor in state["network"].items()
        if key.startswith(_ENCODER)
    }


def _corpus(output: Path, name: str, about: dict[str, Any], recipe: Recipe) -> Corpus | None:
    try:
        store = FrameStore(about["store"])
    except (DataError, UnreadableError):
        return None
    if store.digest != about["store_digest"]:
        return None
    return write_corpus(output, name, store, draw_videos(store.select("train"), recipe))


def _sources(about: dict[str, Any]) -> tuple[Source, ...]:
    """A run that began before stores had sources knows one, with the counts of all."""
    origin = about["origin"]
    one = {"name": _origin(about), "url": origin.get("url"), "citation": origin.get("citation")}
    return tuple(Source(**told) for told in about.get("sources", [one | about["training"]]))


def _origin(about: dict[str, Any]) -> str:
    return str(about["origin"].get("name") or Path(about["store"]).name)


def add_metrics(path: Path, metrics: Sequence[Metric]) -> Card:
    """Put measured figures on a card, in place of earlier ones measured the same way.

    Args:
        path: of the card.
        metrics: to add.

    Returns:
        The card, as read back from its file.
    """
    card = read_card(path)

    def key(metric: Metric) -> tuple[str | None, ...]:
        measured = metric.dataset, metric.protocol, metric.unit, metric.metric
        return *measured, metric.model, metric.compared_with

    new = {key(metric) for metric in metrics}
    kept = [metric for metric in card.metrics if key(metric) not in new]
    write_yaml(path, replace(card, metrics=(*kept, *metrics)))
    return read_card(path)
