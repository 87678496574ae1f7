"""The places where weights may be, and what is known of a file there.

Between the check and the reading of a file by path somebody could still replace it. Whoever loads
it calls `Located.recheck` afterwards: if that returns, what was read is what was checked.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from ..errors import DigestError, WeightsNotFoundError
from .card import Card
from .digests import Fingerprint, digest_of, fingerprint_of, memorise, recall

#: The places, in the order they are looked in.
NAMED_FOLDER, BUNDLED, HUB_CACHE, HUB = "named folder", "bundled", "Hub cache", "Hub"


@dataclass(frozen=True)
class Place:
    """Where the weights of a card may be.

    Attributes:
        source: `named folder`, `bundled` or `Hub cache`.
        path: of the file, or of the Hub's cache where it holds no such file.
        present: whether anything of that name is there; nothing is said about its content.
        trouble: why that is not known, where it is not.
    """

    source: str
    path: Path
    present: bool
    trouble: str | None = None


@dataclass(frozen=True)
class Located:
    """A file that is, byte for byte, the one its card describes.

    Attributes:
        path: of the file.
        source: `named folder`, `bundled`, `Hub cache` or `Hub`.
        fingerprint: device, inode, size, mtime (ns) and ctime (ns) at the time it was checked.
    """

    path: Path
    source: str
    fingerprint: Fingerprint

    def recheck(self) -> None:
        """Make sure that the file has not changed since it was checked; call after reading it.

        Raises:
            DigestError: if it has, in which case what was read is to be thrown away.
        """
        try:
            unchanged = fingerprint_of(self.path.stat()) == self.fingerprint
        except OSError:
            unchanged = False
        if not unchanged:
            raise DigestError(f"{self.path}: was changed while it was being loaded; try again")


def require_digest(card: Card) -> None:
    """Refuse a card of weights that others publish.

    Raises:
        WeightsNotFoundError: saying where they are published.
    """
    if card.has_weights:
        return
    origin = card.weights.origin
    source = f"its authors publish them at {origin}" if origin else "its card says not where"
    raise WeightsNotFoundError(
        f"{card.name}: uscl-zoo does not distribute these weights, {source}; "
        f"download the file and run `uscl import FILE --as {card.name}`"
    )


def check(path: Path, card: Card, advice: str, remember: bool) -> Fingerprint:
    """Compare a file with its card, from memory where that is safe.

    Args:
        path: of the file.
        card: that describes it.
        advice: what to do about another file.
        remember: whether a remembered digest will do, and a new one is to be remembered.

    Raises:
        DigestError: if it is another file.
        WeightsNotFoundError: if it cannot be read, or the card has no digest to compare with.
    """
    require_digest(card)
    expected = (card.weights.bytes, card.weights.sha256)
    try:
        if not path.is_file():
            # a device or a pipe would be read for ever
            raise FileNotFoundError(errno.ENOENT, "no such file")
        fingerprint = fingerprint_of(path.stat())
        digest = recall(path, fingerprint) if remember else None
        if digest is None:
            digest, fingerprint = digest_of(path)
            if remember:
                memorise(path, fingerprint, digest)
    except OSError as error:
        raise WeightsNotFoundError(
            f"{path}: cannot be read ({error.strerror}); {advice}"
        ) from error
    if (fingerprint[2], digest) != expected:
        raise DigestError(
            f"{path}: is not the file that the card of {card.name} describes and was not loaded: "
            f"expected {expected[0]} bytes with SHA-256 {expected[1]}, "
            f"not {fingerprint[2]} with {digest}; {advice}"
        )
    return fingerprint


def missing(card: Card, looked: tuple[Place, ...], why: str, first: str) -> WeightsNotFoundError:
    """Say where was looked, why that was all, and the ways out of it."""
    where = ", ".join(
        f"{place.source} {place.path}" + (f" ({place.trouble})" if place.trouble else "")
        for place in looked
    )
    elsewhere = (
        f"or run `uscl fetch {card.name}` on another machine and copy its folder here, "
        if card.weights.hub_repo
        else ""
    )
    return WeightsNotFoundError(
        f"{card.name}: weights not found (looked in {where}) and {why}; {first}, {elsewhere}"
        f"or put {card.weights.file} into {looked[0].path.parent} "
        "(another folder with USCL_ZOO_WEIGHTS)"
    )
