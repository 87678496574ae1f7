"""The store: from a card to a file whose every byte is known.

A card's weights are looked for in one order, and the first file found is the one that counts:

1. the named folder: the argument, else `USCL_ZOO_WEIGHTS`, else `~/.uscl_zoo`;
2. the weights bundled with the package;
3. the Hugging Face Hub's cache, at the card's commit;
4. the Hub itself, at the card's commit.

What is guaranteed: wherever the file came from, its size and SHA-256 equalled the card's, or it is
not handed out. A wrong file in place 1 or 2 is an error, never a reason to look further. A wrong
file in the Hub's cache is removed and fetched once more if the Hub answers.

Hashing takes a sixth of the time a ResNet takes to load, so the digest of a file is remembered in
`~/.cache/uscl_zoo/verified.json` together with device, inode, size, mtime and ctime, and computed
anew once any of them differs. On POSIX no writer can set ctime back; Windows has no such clock, and
there a change that keeps size and mtime shows only in `verify_all`, which always reads the file.

Between the check and the reading of a file by path somebody could still replace it. Whoever loads
it calls `Located.recheck` afterwards: if that returns, what was read is what was checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from .card import Card, home, packaged_folder, read_card
from .errors import DataError, DigestError, UsclError, WeightsNotFoundError, reason
from .files import WriteError, check_output, expanded, written
from .records import write_text, write_yaml

T = TypeVar("T")

#: What a published weights file is called: the name timm and transformers look for.
HUB_FILE = "model.safetensors"

#: The places, in the order they are looked in.
NAMED_FOLDER, BUNDLED, HUB_CACHE, HUB = "named folder", "bundled", "Hub cache", "Hub"

#: Seconds the Hub has to answer at all, in sum; `HF_HUB_ETAG_TIMEOUT` overrules it.
ANSWER_WITHIN = 4.0

#: A file changed this recently (ns) could change again without its clocks showing it.
_UNSETTLED = 2_000_000_000

_BUNDLED = Path(__file__).parent / "weights"

Fingerprint = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Place:
    """Where the weights of a card may be.

    Attributes:
        source: `named folder`, `bundled` or `Hub cache`.
        path: of the file, or of the Hub's cache where it holds no such file.
        present: whether anything of that name is there; nothing is said about its content.
        trouble: why that cannot be told, if it cannot.
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
            unchanged = _fingerprint(self.path.stat()) == self.fingerprint
        except OSError:
            unchanged = False
        if not unchanged:
            raise DigestError(f"{self.path}: was changed while it was being loaded; try again")


@dataclass(frozen=True)
class Verification:
    """What `verify_all` found for one card: a file that is right, or an error.

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
        DigestError: if the file found is not the one the card describes.
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
    found = [_named(folder, weights.file), Place(BUNDLED, bundled, bundled.is_file())]
    if weights.hub_repo:
        path, present, trouble = _cache(cache_dir), False, None
        try:
            cached = try_to_load_from_cache(
                weights.hub_repo, HUB_FILE, cache_dir=cache_dir, revision=weights.revision
            )
            if isinstance(cached, str):
                path, present = Path(cached), True
            else:
                # to the client a cache that it cannot look into is an empty one
                trouble = _trouble(path)
        # what it makes of files in the place of folders, and of names that the Hub would refuse
        except (OSError, ValueError) as error:
            trouble = reason(error)
        found.append(Place(HUB_CACHE, path, present, trouble))
    return tuple(found)


def _named(folder: str | Path | None, file: str) -> Place:
    """The place in the user's folder, and why nothing can be told of it."""
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
    return _check(Path(path), card, "delete it and try again", remember=False)


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
        DataError: if the folder has a card of that name of other weights.
        OSError: if the fingerprints cannot be read.
    """
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
        found = sha256_of(path)
        if found != card.corpus.sha256:
            raise DigestError(
                f"{path}: is not the file that the card of {card.name} describes: expected SHA-256 "
                f"{card.corpus.sha256}, found {found}; delete it and try again"
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


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, as 64 lower-case hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.
        DigestError: if somebody writes to it meanwhile.
    """
    return _hash(Path(path))[0]


def _locate(
    card: Card,
    folder: str | Path | None,
    cache_dir: str | Path | None,
    download: bool,
    remember: bool,
) -> Located:
    _require_digest(card)
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
            return Located(place.path, place.source, _check(place.path, card, advice, remember))
        except DigestError as wrong:
            if place.source != HUB_CACHE or not download:
                raise
            try:
                return _download(card, looked, cache_dir, wrong=place.path)
            except WeightsNotFoundError as error:
                raise DigestError(f"{wrong}; the Hub cannot replace it now ({error})") from error
    if not card.weights.hub_repo:
        raise _missing(
            card,
            looked,
            "its card names no Hub repository",
            f"make it again: {card.weights.again}"
            if card.weights.again
            else "get the file from the card's author",
        )
    if not download:
        raise _missing(card, looked, "the Hub was not asked", "allow the download")
    return _download(card, looked, cache_dir)


def _require_digest(card: Card) -> None:
    if card.has_weights:
        return
    origin = card.weights.origin
    source = f"its authors publish them at {origin}" if origin else "its card says not where"
    raise WeightsNotFoundError(
        f"{card.name}: uscl-zoo does not distribute these weights, {source}; "
        f"download the file and run `uscl import FILE --as {card.name}`"
    )


# ---------------------------------------------------------------------------------- the Hub


def _download(
    card: Card,
    looked: tuple[Place, ...],
    cache_dir: str | Path | None,
    wrong: Path | None = None,
) -> Located:
    """Fetch the file at the card's commit; at the second failure give up and say why.

    Args:
        card: with a Hub repository.
        looked: the places that do not have it, for the message.
        cache_dir: of the Hub.
        wrong: a cached file that is not the card's, to be replaced.
    """
    _await_answer(card, looked)
    lock = _cache(cache_dir) / ".locks" / f"uscl_zoo.{card.weights.sha256}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        # or one process would take away what another has just put right
        with WeakFileLock(lock):
            again = wrong is not None and _discard(wrong, card)
            try:
                return _pull(card, cache_dir, again)
            except Exception as error:
                if not _may_pass(error):
                    raise
            return _pull(card, cache_dir, again=True)
    except UsclError:
        raise
    # The client's transport was requests, then httpx, then httpx2, each with errors of its own;
    # whatever comes out of it is a download that failed.
    except Exception as error:
        raise _undownloadable(card, looked, cache_dir, error) from error


def _pull(card: Card, cache_dir: str | Path | None, again: bool) -> Located:
    """Have the client download, and leave nothing in its cache that is not the card's."""
    assert card.weights.hub_repo is not None
    path = Path(
        hf_hub_download(
            card.weights.hub_repo,
            HUB_FILE,
            revision=card.weights.revision,
            cache_dir=cache_dir,
            # also replaces a blob that the client shares between repositories
            force_download=again,
        )
    )
    advice = "the Hub sent it twice, and it was removed: try again later or tell the author"
    try:
        # the file is read back from the disk: what counts is what a reader will find there
        return Located(path, HUB, _check(path, card, advice, remember=True))
    except DigestError:
        _discard(path, card)
        raise


def _await_answer(card: Card, looked: tuple[Place, ...]) -> None:
    """Ask the Hub for the file's headers, once, so that no network shows in seconds.

    `hf_hub_download` retries for up to two minutes when the Hub cannot be reached. A server that
    answers, even with an error it may get over, is left to the client and its retries.
    """
    overruled = "HF_HUB_ETAG_TIMEOUT" in os.environ
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if overruled else ANSWER_WITHIN
    assert card.weights.hub_repo is not None
    url = hf_hub_url(card.weights.hub_repo, HUB_FILE, revision=card.weights.revision)
    try:
        _within(seconds, lambda: get_hf_file_metadata(url, timeout=seconds))
    except HfHubHTTPError as error:
        if _is_refusal(error):
            raise _undownloadable(card, looked, None, error) from error
    except Exception as error:  # of whichever transport, as in _download
        raise _missing(
            card,
            looked,
            f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})",
            "connect and try again",
        ) from error


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Call, and wait no longer: the transport's timeouts cover neither look-up nor redirects."""
    answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:g} s; HF_HUB_ETAG_TIMEOUT sets more") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _may_pass(error: Exception) -> bool:
    """Whether a second download may do better."""
    if isinstance(error, DigestError):
        return True
    # of these two the client has already tried for long
    tried = isinstance(error, (LocalEntryNotFoundError, ValueError))
    return not (tried or _is_refusal(error) or _of_disk(error))


def _is_refusal(error: BaseException) -> bool:
    """Whether the Hub knows no such file, or not for this user."""
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return False
    status: int = error.response.status_code
    return 400 <= status < 500 and status not in (408, 429)


def _of_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EIO,
    )


def _undownloadable(
    card: Card, looked: tuple[Place, ...], cache_dir: str | Path | None, error: BaseException
) -> WeightsNotFoundError:
    if _of_disk(error):
        assert isinstance(error, OSError)
        return WeightsNotFoundError(
            f"{card.name}: the Hub's cache {_cache(cache_dir)} cannot be written to "
            f"({error.strerror}); make room there, or name another with HF_HOME or cache_dir"
        )
    # what the client says after its retries tells less than what it got
    while isinstance(error, (LocalEntryNotFoundError, ValueError)) and error.__cause__ is not None:
        error = error.__cause__
    weights = card.weights
    where = f"{weights.hub_repo} at {constants.ENDPOINT}, commit {weights.revision}"
    if _is_refusal(error):
        why = f"{where}, does not exist or is not yours to see ({_first_line(error)})"
        return _missing(card, looked, why, "set HF_TOKEN if the repository is private")
    why = f"{where}, could not be downloaded ({_first_line(error)})"
    return _missing(card, looked, why, "try again")


def _missing(card: Card, looked: tuple[Place, ...], why: str, first: str) -> WeightsNotFoundError:
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


def _discard(path: Path, card: Card) -> bool:
    """Take a wrong file out of the Hub's cache: the snapshot's link and the blob behind it.

    Returns:
        Whether it was wrong: another process may have mended it since.
    """
    # what cannot be removed is overwritten by the client, or refused by the next check
    with contextlib.suppress(OSError, DigestError):
        if sha256_of(path) == card.weights.sha256:
            return False
        # one step only: the client may share what is behind the blob between repositories
        blob = path.parent / path.readlink() if path.is_symlink() else path
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
    return True


def _cache(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir or constants.HF_HUB_CACHE)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


# ------------------------------------------------------------------------------ the digest


def _check(path: Path, card: Card, advice: str, remember: bool) -> Fingerprint:
    """Compare a file with its card, from memory where that is safe."""
    _require_digest(card)
    expected = (card.weights.bytes, card.weights.sha256)
    try:
        if not path.is_file():
            # a device or a pipe would be read for ever
            raise FileNotFoundError(errno.ENOENT, "no such file")
        found = _fingerprint(path.stat())
        digest = _recall(path, found) if remember else None
        if digest is None:
            digest, found = _hash(path)
            if remember:
                _memorise(path, found, digest)
    except OSError as error:
        raise WeightsNotFoundError(
            f"{path}: cannot be read ({error.strerror}); {advice}"
        ) from error
    if (found[2], digest) != expected:
        raise DigestError(
            f"{path}: is not the file that the card of {card.name} describes and was not loaded: "
            f"expected {expected[0]} bytes with SHA-256 {expected[1]}, "
            f"found {found[2]} with {digest}; {advice}"
        )
    return found


def _hash(path: Path) -> tuple[str, Fingerprint]:
    """Digest and fingerprint of one and the same file: both are taken from the open handle."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as stream:
        before = _fingerprint(os.fstat(stream.fileno()))
        while count := stream.readinto(block):
            digest.update(block[:count])
        after = _fingerprint(os.fstat(stream.fileno()))
    if before != after:
        raise DigestError(f"{path}: was written to while it was being read; try again")
    return digest.hexdigest(), after


def _copy(source: Path, target: Path, card: Card) -> None:
    """Copy whole or not at all, and only bytes that are the card's."""
    with written(target) as partial:
        shutil.copyfile(source, partial)
        verify(partial, card)


def _fingerprint(stat: os.stat_result) -> Fingerprint:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _memory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(cache) / "uscl_zoo" / "verified.json"


def _recollections() -> dict[str, object]:
    """What is remembered, by real path; nothing, where the file is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError, RuntimeError):
        content = json.loads(_memory().read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _recall(path: Path, found: Fingerprint) -> str | None:
    entry = _recollections().get(os.path.realpath(path))
    if isinstance(entry, dict) and entry.get("fingerprint") == list(found):
        digest = entry.get("sha256")
        return digest if isinstance(digest, str) else None
    return None


def _memorise(path: Path, found: Fingerprint, digest: str) -> None:
    """Remember a digest, if it is safe to; a lost or impossible write costs one more hashing."""
    if found[4] > time.time_ns() - _UNSETTLED:
        return
    with contextlib.suppress(OSError, RuntimeError, UsclError):
        kept = {key: value for key, value in _recollections().items() if Path(key).exists()}
        kept[os.path.realpath(path)] = {"fingerprint": list(found), "sha256": digest}
        write_text(_memory(), json.dumps(kept, indent=1))
