"""A run becomes a checkpoint of the zoo: weights in timm's keys and the card about them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.files import check_output, expanded, locked, refuse_whole, written
from uscl_zoo.names import last_part, unplaced
from uscl_zoo.records import write_yaml
from uscl_zoo.zoo import licences
from uscl_zoo.zoo.card import (
    Card,
    Corpus,
    Input,
    Metric,
    Origin,
    Source,
    Training,
    Weights,
    licences_of,
    read_card,
)
from uscl_zoo.zoo.catalogue import home
from uscl_zoo.zoo.checkpoint import metadata_of, same_tensors, write_backbone
from uscl_zoo.zoo.digests import sha256_of

from ..learning.frames import FrameStore
from ..learning.pairs import draw_batches, draw_videos, without
from ..learning.recipe import METHODS, Recipe, settings_of
from ..learning.runs import load_run
from ..preparing.corpus import write_corpus
from .starts import begun_with, load_start

_ENCODER = "encoder."
_LIMITS = ("Not a medical device; not for diagnosis or treatment.",)
_USE = "Research: embedding ultrasound frames, and a start for fine-tuning on few labelled images."


def export(
    run: Path,
    name: str,
    output: Path | None = None,
    *,
    licence: str | None = None,
    licence_reason: str | None = None,
    summary: str | None = None,
    limits: Sequence[str] = (),
    start_share: float = 0.0,
    overwrite: bool = False,
) -> Card:
    """Write the backbone of a run as `NAME.safetensors` and its card as `NAME.yaml`.

    The weights are those of the last epoch, or between these and those that the run began with,
    which know more of what the run did not show (Wortsman et al., CVPR 2022). Heads stay behind:
    the zoo is one of backbones. Where the store of the run is still in its place,
    `NAME.corpus.safetensors` has its fingerprints.

    Args:
        run: a folder that `pretrain` left.
        name: `<architecture>_uscl.<tag>`.
        output: folder; None for the user's own, where `create_model` finds it.
        licence: of the weights, as an SPDX identifier; those of the videos, of the weights begun
            from and of the teachers bind it. The card states none when None.
        licence_reason: why it may be given although some of those are not known to the zoo; the
            card has it among its limits.
        summary: one line for tables.
        limits: known limits, besides that it is no medical device.
        start_share: of the weights that the run began with; the card has it among the settings.
        overwrite: replace weights of that name.

    Returns:
        The card, as read back from its file.

    Raises:
        DataError: if the run is unfinished, began with no weights of which there could be a share
            or its store has changed since, weights of that name are in the way, or the licence is
            looser than what binds it, or cannot be told from it; or another process exports it.
        CardError: if the name does not fit the architecture.
    """
    recipe, about, state = load_run(run)
    done = state["progress"]["epoch"]
    if done < recipe.epochs:
        raise DataError(
            f"{run}: has done {done} of {recipe.epochs} epochs; finish it with "
            f"`uscl pretrain -o {run} --resume`"
        )
    if not 0 <= start_share < 1:
        raise DataError(f"`start_share={start_share:g}`: should be at least 0 and below 1")
    if name.partition(".")[0] != f"{recipe.architecture}_uscl" or not name.partition(".")[2]:
        raise DataError(
            f"`name={name}`: should look like {recipe.architecture}_uscl.TAG, since the run "
            f"trained a {recipe.architecture}"
        )
    output = home() if output is None else expanded(output)
    refuse_whole(output)
    weights_file, card_file = output / f"{name}.safetensors", output / f"{name}.yaml"
    for path in (weights_file, card_file):
        check_output(path)
    if card_file.exists() and not overwrite:
        raise DataError(
            f"{card_file}: is there already; choose another name or add `overwrite=True`"
        )
    encoder = encoder_of(state)
    settings = settings_of(recipe) | {
        "precision": _precision(about),
        # the digests beside them say which file it was, wherever somebody had it
        "init": recipe.init and last_part(recipe.init),
        "teachers": [last_part(teacher) for teacher in recipe.teachers],
    }
    if start_share:
        encoder = _between(run, recipe, about, encoder, start_share)
        settings["start_share"] = start_share
    counts = about["training"]
    training = Training(
        method=recipe.method,
        sources=_sources(about),
        labels=tuple(about["classes"]) if recipe.class_weight else (),
        held_out_subjects=tuple(about["held_out_subjects"]),
        recipe=settings,
        epochs=done,
        steps=done * len(draw_batches(counts["videos"], recipe, 0)),
        seed=recipe.seed,
        code=about["code"],
        hardware=about["hardware"],
        hours=round(state["progress"]["seconds"] / 3600, 2),
        # runs of before there were any do not say
        start=_came_of(about["start"]) if about.get("start") else None,
        teachers=tuple(_came_of(teacher) for teacher in about.get("teachers", ())),
    )
    limits = (*limits, *_bound(licence, licence_reason, training))
    size = about.get("size", about["sampling"]["size"])
    says = {"name": name, **metadata_of(recipe.mean, recipe.std)}
    with locked(output, name):
        with written(weights_file) as partial:
            write_backbone(
                encoder,
                partial,
                recipe.architecture,
                metadata=says | ({"licence": licence} if licence else {}),
            )
            digest, count = sha256_of(partial), partial.stat().st_size
            if (
                weights_file.exists()
                and not overwrite
                # a call that was killed before it could write the card leaves these; of an earlier
                # release not the same to the byte, as the header was in any order
                and not same_tensors(weights_file, partial)
            ):
                raise DataError(
                    f"{weights_file}: is there already with other weights; choose another name or "
                    "add `overwrite=True`"
                )
            # from here to its end there is no card, rather than one of other weights
            card_file.unlink(missing_ok=True)
        card = Card(
            name=name,
            architecture=recipe.architecture,
            summary=summary
            or f"{METHODS[recipe.method]} on {counts['videos']} videos of {_origin(about)}",
            weights=Weights(file=weights_file.name, sha256=digest, bytes=count),
            input=Input(size=(3, size, size), mean=recipe.mean, std=recipe.std),
            training=training,
            licence=licence,
            intended_use=_USE,
            limits=(*_LIMITS, *limits),
            corpus=_corpus(output, name, about, recipe),
        )
        write_yaml(card_file, card)
    return read_card(card_file)


def _precision(about: dict[str, Any]) -> str:
    """In which a run computed; one after another, if it was moved."""
    before = [
        f"{entry['precision']} to epoch {entry['epochs']}"
        for entry in about.get("earlier_precisions", [])
    ]
    return ", then ".join([*before, about["precision"]])


def _came_of(said: dict[str, Any]) -> Origin:
    return Origin(last_part(said["reference"]), said["sha256"], said["licence"])


def _bound(licence: str | None, reason: str | None, training: Training) -> tuple[str, ...]:
    """Refuse a licence that what the weights came of does not allow; what the card has to add."""
    if licence is None:
        return ()
    bound = licences_of(training)
    wrong = licences.fault(licence, bound)
    if wrong is not None:
        raise DataError(f"`licence={licence}`: {wrong}")
    unknown = licences.unknown(bound)
    if not unknown:
        return ()
    if reason is None:
        raise DataError(
            f"`licence={licence}`: what it was made of is also licensed under "
            f"{', '.join(map(repr, unknown))}, which the zoo does not know; leave `licence` out, "
            "or say with `licence_reason` why you may give it, e.g. that the videos are your own"
        )
    return (f"Licensed {licence} although made also under {', '.join(unknown)}: {reason}",)


def encoder_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The backbone in the checkpoint of a run, under timm's keys: the average, if there is one."""
    return {
        key.removeprefix(_ENCODER): tensor
        for key, tensor in state.get("average", state["network"]).items()
        if key.startswith(_ENCODER)
    }


def _between(
    run: Path, recipe: Recipe, about: dict[str, Any], encoder: dict[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Weights between those that a run began with and those that it ended with."""
    if recipe.init is None:
        raise DataError(
            f"`start_share={share:g}`: {run} began with random weights, of which a share is noise"
        )
    store = FrameStore(about["store"])
    if store.digest != about["store_digest"]:
        raise DataError(f"{store.folder}: is not what {run} was trained on; prepare it again")
    start = load_start(recipe.init)
    if start.sha256 != about["start"]["sha256"]:
        raise DataError(f"{recipe.init}: is not what {run} began with; its digest is another")
    videos = draw_videos(without(store.select("train"), recipe), recipe)
    began = begun_with(start, recipe, store, videos)
    return {
        key: torch.lerp(tensor, began[key].to(tensor), share)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in encoder.items()
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
    return tuple(Source(**entry) for entry in about.get("sources", [one | about["training"]]))


def _origin(about: dict[str, Any]) -> str:
    return str(about["origin"].get("name") or Path(about["store"]).name)


def add_metrics(path: Path, metrics: Sequence[Metric]) -> Card:
    """Put measured figures on a card, in place of earlier ones measured the same way.

    Or by the same command: in an earlier release its protocol may have been another.

    Args:
        path: of the card.
        metrics: to add; paths in them lose the folders that they are in.

    Returns:
        The card, as read back from its file.
    """
    card = read_card(path)

    def key(metric: Metric) -> tuple[str | None, ...]:
        measured = metric.dataset, metric.protocol, metric.unit, metric.metric
        return *measured, metric.model, metric.compared_with

    # as typed they may be of somebody's disk
    metrics = [
        replace(
            metric,
            command=shlex.join(map(unplaced, shlex.split(metric.command))),
            model=None if metric.model is None else unplaced(metric.model),
            compared_with=None if metric.compared_with is None else unplaced(metric.compared_with),
        )
        for metric in metrics
    ]
    new, again = {key(metric) for metric in metrics}, {metric.command for metric in metrics}
    kept = [
        metric for metric in card.metrics if key(metric) not in new and metric.command not in again
    ]
    write_yaml(path, replace(card, metrics=(*kept, *metrics)))
    return read_card(path)
