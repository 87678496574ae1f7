"""What a file or folder is that somebody asks about: a model, a card, a store, a run, or none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uscl_zoo.answers import (
    ANSWERS,
    CONFIG,
    OUTLINING,
    STATISTICS,
    read_model,
    read_statistics,
    task_of,
)
from uscl_zoo.errors import CardError, DataError, DigestError, UnreadableError, one_line, reason
from uscl_zoo.records import read_json, to_plain
from uscl_zoo.ultrasound import reading
from uscl_zoo.zoo.card import Card, read_card
from uscl_zoo.zoo.descriptions import describe
from uscl_zoo.zoo.digests import sha256_of
from uscl_zoo.zoo.hub import HUB_FILE
from uscl_zoo.zoo.weights_cache import verify

from .learning.frames import DESCRIPTION, FrameStore
from .learning.runs import ABOUT, CHECKPOINT, RECIPE

# Files that hold weights.
_WEIGHTS = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar"})


class Description(NamedTuple):
    """What something is.

    Attributes:
        text: for people.
        plain: the same as JSON takes it.
    """

    text: str
    plain: Any


def look(path: Path) -> Description:
    """Say what a file or folder is.

    Args:
        path: a model of `uscl finetune`, a card with or without its weights, a folder of timm's, a
            store of `uscl prepare`, or a run of `uscl pretrain`.

    Raises:
        DataError: if it is none of these; the message says what it is.
        UnreadableError: if it cannot be read.
        CardError: if it is one that is malformed.
        DigestError: if the weights of a model are not those of its card.
    """
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        if isinstance(error, UnreadableError):
            raise
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error


def _of_file(path: Path) -> Description:
    if path.suffix.lower() in (".yaml", ".yml"):
        return _of_cards([read_card(path)])
    if path.suffix.lower() in _WEIGHTS:
        beside = path.with_suffix(".yaml")
        if beside.is_file():
            return _of_cards([read_card(beside)])
        raise DataError(
            f"{path}: is a file of weights without a card beside it; `uscl import` makes one"
        )
    if path.suffix.lower() == ".npy" and (path.parent / DESCRIPTION).is_file():
        return _of_store(path.parent)
    raise DataError(f"{path}: is no card, and no folder of a model, a store or a run")


def _of_folder(folder: Path) -> Description:
    if (folder / ANSWERS).exists():
        return _of_model(folder)
    if (folder / DESCRIPTION).exists() or (folder / "parts").is_dir():
        return _of_store(folder)
    if (folder / RECIPE).exists() or (folder / CHECKPOINT).exists():
        return _of_run(folder)
    cards = []
    for file in sorted(folder.glob("*.yaml")):
        try:
            cards.append(read_card(file))
        except CardError:
            # of other programs there are many, and one that should be a card has its weights beside
            if file.with_suffix(".safetensors").exists():
                raise
    if cards:
        return _of_cards(cards)
    if (folder / CONFIG).is_file():
        return _of_timm(folder)
    raise DataError(
        f"{folder}: holds no model, card, store or run of uscl-zoo, and nothing of timm; "
        f"{_content(folder)}"
    )


def _content(folder: Path) -> str:
    """What is in a folder of something else, and what could be done with it."""
    own = reading.entries(folder)
    if not own:
        return "it is empty"
    some = ", ".join(one_line(entry.name) for entry in own[:3])
    listed = f"in it are {some}" + (f" and {len(own) - 3} more" if len(own) > 3 else "")
    try:
        sources = reading.find([folder], on_damage=lambda _: None)
    except DataError:
        return listed
    return f"{listed}: `uscl embed` and `uscl prepare` read its {len(sources)} images or videos"


def _of_cards(cards: Iterable[Card]) -> Description:
    cards = list(cards)
    plain = [to_plain(card) for card in cards]
    return Description("\n\n".join(map(describe, cards)), plain[0] if len(plain) == 1 else plain)


def _of_outliner(folder: Path) -> Description:
    from uscl_zoo.segmentation.model import read_outliner

    said = read_outliner(folder)
    weights = folder / HUB_FILE
    if sha256_of(weights) != said.weights_sha256:
        raise DigestError(
            f"{weights}: is not the file that {ANSWERS} names; copy the model's folder again"
        )
    rows = {
        "network": f"{said.network} on {said.encoder}, frames {said.input.size}",
        "outlines": ", ".join(said.classes),
        "says nothing": f"below a probability of {said.confidence:g}",
        "licence": said.licence or "not stated",
        "intended use": said.intended_use,
        "limits": "; ".join(said.limits),
        "weights on disk": f"those that {ANSWERS} names, by their SHA-256",
    }
    head = f"{folder}: a model of `uscl finetune`, for {said.task}: {said.summary}"
    return Description(f"{head}\n\n{_rows(rows)}", to_plain(said))


def _of_model(folder: Path) -> Description:
    if task_of(folder) in OUTLINING:
        return _of_outliner(folder)
    card, answers = read_model(folder)
    read_statistics(folder / STATISTICS, answers)
    verify(folder / card.weights.file, card)
    shown = [name for name in ("clean", "grey") if getattr(answers, name)]
    rows = {
        "frames": f"{answers.rate:g} a second"
        + (f", {' and '.join(shown)}" if shown else ", whole and in colour"),
        "answers": f"probabilities of {', '.join(answers.classes)}, temperature "
        f"{answers.temperature:.3g}" + (", mean over a frame and its mirror image"
        if answers.flips else ""),
        "cannot tell": f"below a probability of {answers.confidence:g}",
        "unlike": f"beyond a distance of {answers.threshold:.3g} from the training images, as "
        f"{1 - answers.quantile:.3g} of {answers.validation_frames} like them are",
        "weights on disk": "those of the card, by their SHA-256",
    }  # fmt: skip
    head = f"{folder}: a model of `uscl finetune`"
    return Description(
        f"{head}\n\n{describe(card)}\n\n{_rows(rows)}",
        {"card": to_plain(card), "answers": to_plain(answers)},
    )


def _of_store(folder: Path) -> Description:
    store = FrameStore(folder)
    recorded = store.description
    # what may be absent is not asked for by name: stores of any release are described
    sampling = recorded.get("sampling", {})
    origin = recorded.get("origin") or {}
    sides = {split: store.summary(store.select(split)) for split in ("train", "heldout")}
    height, width = store.frames.shape[1:3]
    kinds = [name for name in ("clean", "grey") if sampling.get(name)]
    rows: dict[str, object] = {
        "made of": "; ".join(
            one_line(str(source["name"])) for source in store.sources(store.videos)
        ),
        "frames": f"{len(store.frames)} of {height} x {width}, {sampling.get('rate')} a second"
        + "".join(f", {kind}" for kind in kinds),
        "size": f"{store.frames.nbytes / 1e6:,.1f} MB",
    }
    for split, words in (("train", "to train on"), ("heldout", "held out")):
        side = sides[split]
        classes = ", ".join(f"{one_line(k)} {count}" for k, count in side["classes"].items())
        rows[words] = (
            f"{side['videos']} videos, {side['frames']} frames, {side['subjects']} subjects"
            + (f"; {classes}" if classes else "")
        )
    licences = store.summary(store.videos)["licences"]
    rows["licences"] = ", ".join(f"{one_line(name)} {count}" for name, count in licences.items())
    if origin.get("url"):
        rows["published at"] = one_line(str(origin["url"]))
    rows["skipped"] = len(recorded.get("skipped", ()))
    rows["digest"] = store.digest
    plain = {key: value for key, value in recorded.items() if not key.endswith("_sha256")}
    return Description(
        f"{folder}: a store of `uscl prepare`\n\n{_rows(rows)}", plain | {"sides": sides}
    )


def _of_run(folder: Path) -> Description:
    about = read_json(folder / ABOUT)
    if not isinstance(about, dict):
        raise CardError(f"{folder / ABOUT}: does not describe a run")
    done = (folder / CHECKPOINT).exists()
    trained = about.get("training") or {}
    rows = {
        "store": about.get("store"),
        "trained on": ", ".join(
            f"{trained[key]} {key}" for key in ("videos", "frames", "subjects") if key in trained
        ),
        "precision": about.get("precision"),
        "hardware": about.get("hardware"),
        "code": about.get("code"),
        "checkpoint": "there; `uscl export` makes weights of it" if done
        else "none yet; `uscl pretrain --resume` goes on",
    }  # fmt: skip
    rows = {key: one_line(str(value)) for key, value in rows.items() if value}
    return Description(f"{folder}: a run of `uscl pretrain`\n\n{_rows(rows)}", about)


def _of_timm(folder: Path) -> Description:
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise DataError(
            f"{folder}: its {CONFIG} names no architecture, as those of timm's folders do"
        )
    inner: Any = config.get("pretrained_cfg") or {}
    rows = {
        "architecture": config["architecture"],
        "classes": config.get("num_classes"),
        **{key: inner.get(key) for key in ("input_size", "mean", "std", "license")},
    }
    rows = {
        key.replace("_", " "): one_line(json.dumps(value)) if isinstance(value, list) else value
        for key, value in rows.items()
        if value is not None
    }
    head = f"{folder}: a folder of timm, whose weights nobody vouches for"
    return Description(f"{head}\n\n{_rows(rows)}", config)


def _rows(rows: Mapping[str, object]) -> str:
    return "\n".join(f"  {key:18} {value}" for key, value in rows.items())
