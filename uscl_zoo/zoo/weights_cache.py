"""The weights cache: from a card to a file whose every byte is known.

A card's weights are looked for in one order, and the first that is there counts:

1. the named folder: the argument, else `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`;
2. the weights bundled with the package;
3. the Hugging Face Hub's cache, at the card's commit;
4. the Hub itself, at the card's commit.

What is guaranteed: wherever the file came from, its size and SHA-256 equalled the card's, or it is
not handed out. A wrong file in place 1 or 2 is an error, never a reason to look further. A wrong
file in the Hub's cache is removed and fetched once more if the Hub answers.

`places` compares a file with its card, `digests` remembers what it computed, and `hub` downloads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from ..errors import DataError, DigestError, UsclError, WeightsNotFoundError, reason
from ..files import WriteError, check_output, expanded, refuse_whole, written
from ..records import write_yaml
from . import hub
from .card import Card, read_card
from .catalogue import home, packaged_folder
from .digests import Fingerprint, sha256_of
from .places import BUNDLED, HUB_CACHE, NAMED_FOLDER, Located, Place, check, missing, require_digest

_BUNDLED = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Verification:
    """What `verify_all` reports of one card: a file that is right, or an error.

    Attributes:
        name: of the card.
        located: the file, if it is right.
        error: DigestError if there is a wrong file, WeightsNotFoundError if there is none.
    """

    name: str
    located: Located | None
    error: UsclError | None


def locate(
    card: Card,
    folder: str | Path | None = None,
    cache_dir: str | Path | None = None,
    download: bool = True,
) -> Located:
    """Find the weights of a card, or fetch them, and check them.

    Args:
        card: whose weights to find.
        folder: to look in first; `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`, when None.
        cache_dir: of the Hub; huggingface_hub's own (`HF_HUB_CACHE`, `HF_HOME`) when None.
        download: whether the Hub may be asked for a file that is not on this machine.

    Raises:
        WeightsNotFoundError: if the file is nowhere, or cannot be fetched or read.
        DigestError: if the file there is not the one the card describes.
    """
    return _locate(card, folder, cache_dir, download, remember=True)


def read_bytes(card: Card, folder: str | Path | None = None) -> bytes:
    """The weights of a card: the very bytes whose digest was compared.

    Args:
        card: whose weights to read.
        folder: where they are to be, without asking the Hub; otherwise as for `locate`.

    Raises:
        WeightsNotFoundError: if there are none.
        DigestError: if they are not the card's.
    """
    path = locate(card, folder, download=folder is None).path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise WeightsNotFoundError(f"{path}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != card.weights.sha256:
        raise DigestError(f"{path}: was changed while it was being loaded; try again")
    return content


def places(
    card: Card, folder: str | Path | None = None, cache_dir: str | Path | None = None
) -> tuple[Place, ...]:
    """Say where on this machine the weights of a card are looked for, in that order.

    Args:
        card: whose weights to look for.
        folder: as for `locate`.
        cache_dir: as for `locate`.
    """
    weights = card.weights
    bundled = _BUNDLED / weights.file
    listed = [_named(folder, weights.file), Place(BUNDLED, bundled, bundled.is_file())]
    if weights.hub_repo:
        path, present, trouble = hub.cache_folder(cache_dir), False, None
        try:
            cached = try_to_load_from_cache(
                weights.hub_repo, hub.HUB_FILE, cache_dir=cache_dir, revision=weights.revision
            )
            if isinstance(cached, str):
                path, present = Path(cached), True
            else:
                # to the client a cache that it cannot look into is an empty one
                trouble = _trouble(path)
        # what it makes of files in the place of folders, and of names that the Hub would refuse
        except (OSError, ValueError) as error:
            trouble = reason(error)
        listed.append(Place(HUB_CACHE, path, present, trouble))
    return tuple(listed)


def _named(folder: str | Path | None, file: str) -> Place:
    """The place in the user's folder, and why nothing is known of it."""
    try:
        path = (expanded(folder) if folder else home()) / file
    except DataError as error:
        return Place(NAMED_FOLDER, Path(folder or "~/.uscl_zoo") / file, False, str(error))
    try:
        # not stat: a dangling link in the user's folder is a mistake to report, not an absent file
        path.lstat()
    except FileNotFoundError:
        return Place(NAMED_FOLDER, path, False)
    except OSError as error:
        return Place(NAMED_FOLDER, path, False, reason(error))
    return Place(NAMED_FOLDER, path, True)


def _trouble(folder: Path) -> str | None:
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError:
        return None
    except OSError as error:
        return reason(error)
    return None


def verify(path: str | Path, card: Card) -> Fingerprint:
    """Read a file and make sure that it is the one a card describes.

    Returns:
        Device, inode, size, mtime (ns) and ctime (ns) of the file that was read.

    Raises:
        DigestError: if it is another file.
        WeightsNotFoundError: if it cannot be read, or the card has no digest to compare with.
    """
    return check(Path(path), card, "delete it and try again", remember=False)


def verify_all(
    cards: Iterable[Card],
    folder: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> list[Verification]:
    """Read and check the weights of many cards, without the network and without the memory.

    Args:
        cards: whose weights to check; for each, the file that `locate` would use.
        folder: as for `locate`.
        cache_dir: as for `locate`.

    Returns:
        One result a card, in order. Nothing that is wrong with a file raises.
    """
    results = []
    for card in cards:
        try:
            located = _locate(card, folder, cache_dir, download=False, remember=False)
            results.append(Verification(card.name, located, None))
        except UsclError as error:
            results.append(Verification(card.name, None, error))
    return results


def fetch(card: Card, folder: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Put the weights of a card and the card itself into a folder, to carry to another machine.

    Args:
        card: whose weights to copy; they are downloaded if they are not on this machine.
        folder: to write to; made if need be. A right file already there is left as it is.
        cache_dir: as for `locate`.

    Returns:
        The copy of the weights, named as the card says, with `<name>.yaml` beside it, the text of
        its licence and the fingerprints of the training data where there are any.

    Raises:
        WeightsNotFoundError: if there are no weights, the text of their licence is not there, or
            the folder cannot be written to.
        DigestError: if the weights, or a file of that name in the folder, are not the card's.
        DataError: if the folder has a card of that name of other weights, or is a model or a store.
        OSError: if the fingerprints cannot be read.
    """
    refuse_whole(expanded(folder), [card.weights.file])
    target = expanded(folder) / card.weights.file
    card_file = target.with_name(f"{card.name}.yaml")
    try:
        check_output(card_file)
    except WriteError as error:
        raise WeightsNotFoundError(
            f"{target.parent}: cannot be written to ({error.strerror}); name another folder"
        ) from error
    _refuse_other_card(card_file, card)
    # before anything is copied: weights must not go without their licence
    along = [path for path in (licence_of(card), corpus_of(card)) if path is not None]
    if os.path.lexists(target):
        verify(target, card)
    else:
        located = locate(card, cache_dir=cache_dir)
        try:
            _copy(located.path, target, card)
        except OSError as error:
            if not isinstance(error, WriteError) and isinstance(error, UsclError):
                raise
            raise WeightsNotFoundError(
                f"{target}: cannot be written ({error.strerror}); make room or name another folder"
            ) from error
    try:
        for beside in along:
            if not (target.parent / beside.name).exists():
                with written(target.parent / beside.name) as partial:
                    shutil.copyfile(beside, partial)
        # after the weights: a card must not promise a file that is not there yet
        write_yaml(card_file, card)
    except OSError as error:
        raise WeightsNotFoundError(
            f"{target.parent}: the card cannot be written ({error.strerror}); name another folder"
        ) from error
    return target


def _refuse_other_card(path: Path, card: Card) -> None:
    """Let a card be brought up to date, and nothing else be replaced by it."""
    if not path.exists():
        return
    try:
        there = read_card(path).weights.sha256
    except UsclError as error:
        raise DataError(f"{error}; move it, or name another folder") from error
    if there != card.weights.sha256:
        raise DataError(f"{path}: describes other weights; move it, or name another folder")


def corpus_of(card: Card, folder: str | Path | None = None) -> Path | None:
    """Find the fingerprints of what the weights of a card were trained on, and check them.

    Args:
        card: whose training data is asked about.
        folder: to look in first; `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`, when None.

    Returns:
        The file; None if the card names none, or it is neither there nor bundled.

    Raises:
        DigestError: if the file is not the one the card describes.
        OSError: if it cannot be read.
    """
    if card.corpus is None:
        return None
    for place in (expanded(folder) if folder else home(), packaged_folder()):
        path = place / card.corpus.file
        if not path.is_file():
            continue
        digest = sha256_of(path)
        if digest != card.corpus.sha256:
            raise DigestError(
                f"{path}: is not the file that the card of {card.name} describes: expected SHA-256 "
                f"{card.corpus.sha256}, not {digest}; delete it and try again"
            )
        return path
    return None


def licence_of(card: Card, folder: str | Path | None = None) -> Path | None:
    """Find the text of the licence that has to travel with the weights of a card.

    Args:
        card: whose licence is asked for.
        folder: to look in first; `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`, when None.

    Returns:
        The file; None if the card names none.

    Raises:
        WeightsNotFoundError: if the card names one that is neither there nor bundled.
    """
    name = card.weights.licence_file
    if name is None:
        return None
    looked = (expanded(folder) if folder else home(), _BUNDLED)
    for place in looked:
        if (place / name).is_file():
            return place / name
    raise WeightsNotFoundError(
        f"{card.name}: {name}, the licence that has to travel with its weights, is in none of "
        f"{', '.join(map(str, looked))}; put it there"
    )


def _locate(
    card: Card,
    folder: str | Path | None,
    cache_dir: str | Path | None,
    download: bool,
    remember: bool,
) -> Located:
    require_digest(card)
    looked = places(card, folder, cache_dir)
    for place in looked:
        if not place.present:
            continue
        advice = {
            NAMED_FOLDER: "delete it, or put the right file there",
            BUNDLED: "reinstall uscl-zoo",
            HUB_CACHE: "delete it and try again with a connection to the Hub",
        }[place.source]
        try:
            return Located(place.path, place.source, check(place.path, card, advice, remember))
        except DigestError as wrong:
            if place.source != HUB_CACHE or not download:
                raise
            try:
                return hub.download(card, looked, cache_dir, wrong=place.path)
            except WeightsNotFoundError as error:
                raise DigestError(f"{wrong}; the Hub cannot replace it now ({error})") from error
    if not card.weights.hub_repo:
        raise missing(
            card,
            looked,
            "its card names no Hub repository",
            f"make it again: {card.weights.again}"
            if card.weights.again
            else "get the file from the card's author",
        )
    if not download:
        raise missing(card, looked, "the Hub was not asked", "allow the download")
    return hub.download(card, looked, cache_dir)


def _copy(source: Path, target: Path, card: Card) -> None:
    """Copy whole or not at all, and only bytes that are the card's."""
    with written(target) as partial:
        shutil.copyfile(source, partial)
        verify(partial, card)
