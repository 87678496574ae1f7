"""The Hugging Face Hub: download the weights of a card, or a model, or say why that cannot be."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

from ..errors import DigestError, HubError, UsclError, WeightsNotFoundError
from .card import Card
from .digests import sha256_of
from .places import HUB, Located, Place, check, missing

T = TypeVar("T")

#: What a published weights file is called: the name timm and transformers look for.
HUB_FILE = "model.safetensors"

#: Seconds the Hub has to answer at all, in sum; `HF_HUB_ETAG_TIMEOUT` overrules it.
ANSWER_WITHIN = 4.0


def download(
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
    lock = cache_folder(cache_dir) / ".locks" / f"uscl_zoo.{card.weights.sha256}.lock"
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
        return Located(path, HUB, check(path, card, advice, remember=True))
    except DigestError:
        _discard(path, card)
        raise


def _await_answer(card: Card, looked: tuple[Place, ...]) -> None:
    """Ask the Hub for the file's headers, once, so that no network shows in seconds.

    `hf_hub_download` retries for up to two minutes when the Hub cannot be reached. A server that
    answers, even with an error it may get over, is left to the client and its retries.
    """
    assert card.weights.hub_repo is not None
    try:
        _ask(card.weights.hub_repo, HUB_FILE, card.weights.revision)
    except HfHubHTTPError as error:
        if _is_refusal(error):
            raise _undownloadable(card, looked, None, error) from error
    except Exception as error:  # of whichever transport, as in download
        raise missing(
            card,
            looked,
            f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})",
            "connect and try again",
        ) from error


def _ask(repo: str, file: str, revision: str | None) -> None:
    """Ask for the headers of a file, and raise what the client raises where there are none."""
    overruled = "HF_HUB_ETAG_TIMEOUT" in os.environ
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if overruled else ANSWER_WITHIN
    url = hf_hub_url(repo, file, revision=revision)
    _within(seconds, lambda: get_hf_file_metadata(url, timeout=seconds))


def snapshot(name: str, files: Sequence[str]) -> Path:
    """The folder in the Hub's cache with some files of a repository, downloaded where need be.

    Without a network what was downloaded before is used.

    Args:
        name: `namespace/name`, or with `@` and a branch, tag or commit behind it.
        files: of it.

    Raises:
        HubError: if one cannot be had.
    """
    repo, _, revision = name.partition("@")
    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        if not offline:
            try:
                _ask(repo, files[0], revision or None)
            except HfHubHTTPError as error:
                if _is_refusal(error):
                    raise
            except Exception:  # of whichever transport, as in download
                offline = True
        paths = [
            Path(hf_hub_download(repo, file, revision=revision or None, local_files_only=offline))
            for file in files
        ]
    except HfHubHTTPError as error:
        raise HubError(
            f"{name}: {constants.ENDPOINT} has no {files[0]} there, or not for you "
            f"({_first_line(error)}); set HF_TOKEN if the repository is private"
        ) from error
    except Exception as error:
        why = "cannot be reached" if offline else "does not give it"
        raise HubError(
            f"{name}: {constants.ENDPOINT} {why}, and it was not downloaded before "
            f"({_first_line(error)})"
        ) from error
    return paths[0].parent


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
            f"{card.name}: the Hub's cache {cache_folder(cache_dir)} cannot be written to "
            f"({error.strerror}); make room there, or name another with HF_HOME or cache_dir"
        )
    # what the client says after its retries is less than what it got
    while isinstance(error, (LocalEntryNotFoundError, ValueError)) and error.__cause__ is not None:
        error = error.__cause__
    weights = card.weights
    where = f"{weights.hub_repo} at {constants.ENDPOINT}, commit {weights.revision}"
    if _is_refusal(error):
        why = f"{where}, does not exist or is not yours to see ({_first_line(error)})"
        return missing(card, looked, why, "set HF_TOKEN if the repository is private")
    why = f"{where}, could not be downloaded ({_first_line(error)})"
    return missing(card, looked, why, "try again")


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


def cache_folder(cache_dir: str | Path | None) -> Path:
    """The Hub's cache: the one named, else that of huggingface_hub."""
    return Path(cache_dir or constants.HF_HUB_CACHE)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
