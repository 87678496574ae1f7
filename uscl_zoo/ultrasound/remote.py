"""Files in object storage, by fsspec: `s3://`, `gs://` and whatever else it knows.

Nothing is mounted and nothing kept: a file is fetched when it is its turn to be decoded, and
deleted when its frames have been taken.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError, MissingDependencyError, UnreadableError, one_line
from ..files import Address

#: What brings each kind of storage, beside fsspec.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}


def files_under(address: Address, tell: Callable[[str], None]) -> list[Address]:
    """The file of an address, or all that are below it, whatever they are.

    Args:
        address: of a file or folder.
        tell: is given a line about names that no path has, as those with two slashes in a row.

    Raises:
        UnreadableError: if there is none, or the storage cannot be reached.
        MissingDependencyError: if a library is not installed.
    """
    system, path = _opened(address)
    with _in_words(address):
        if system.isfile(path):
            return [address]
        # with what tells whether a file has changed, so that it need not be asked for again
        listed: dict[str, Any] = system.find(path, detail=True)
    root = path.rstrip("/")
    files, lost = [], list[str]()
    for name in listed:
        below = name.removeprefix(f"{root}/")
        if below == name:
            continue
        whole = f"{str(address).rstrip('/')}/{below}"
        file = Address(whole)
        # what a path drops would be another file, and here perhaps
        if str(file) == whole and not {".", ".."} & set(file.parts):
            files.append((file, listed[name]))
        elif not below.endswith("/"):
            lost.append(below)
    if lost:
        tell(
            one_line(
                f"{address}: {len(lost):,} names that no path has, as with two slashes in a row, "
                f"are left out: {', '.join(lost[:5])}"
            )
        )
    if not files and not lost:
        raise UnreadableError(f"{address}: no such file or folder")
    for file, about in files:
        _STATES[str(file)] = _state(about)
    return [file for file, _ in files]


def is_folder(address: Address) -> bool:
    """Whether an address is not that of a file.

    Raises:
        UnreadableError: if the storage cannot be reached.
        MissingDependencyError: if a library is not installed.
    """
    if str(address) in _STATES:
        return False
    system, path = _opened(address)
    with _in_words(address):
        return not system.isfile(path)


#: Sizes and versions of files, as listings gave them.
_STATES: dict[str, list[Any]] = {}


def state_of(address: Address) -> list[Any]:
    """Name, size and version of a file: whether it has changed since.

    Raises:
        UnreadableError: if the storage cannot be reached.
    """
    if str(address) not in _STATES:
        system, path = _opened(address)
        with _in_words(address):
            _STATES[str(address)] = _state(system.info(path))
    return [address.name, *_STATES[str(address)]]


def _state(about: dict[str, Any]) -> list[Any]:
    keys = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "updated", "created")
    version = next((about[key] for key in keys if about.get(key)), None)
    return [about.get("size"), None if version is None else str(version)]


@contextmanager
def fetched(address: Address) -> Iterator[Path]:
    """A copy of a file on this machine, for a while.

    Raises:
        UnreadableError: if it cannot be fetched.
        MissingDependencyError: if a library is not installed.
    """
    system, path = _opened(address)
    # the name as it is: what reads the file goes by its suffix
    with tempfile.TemporaryDirectory(prefix="uscl-") as folder:
        local = Path(folder, re.sub(r"[^\w.-]", "_", address.name)[-100:])
        with _in_words(address):
            system.get_file(path, str(local))
        try:
            yield local
        except (UnreadableError, DataError) as error:
            # nobody has named the copy
            if str(local) not in str(error):
                raise
            raise type(error)(str(error).replace(str(local), str(address))) from error


def _opened(address: Address) -> tuple[Any, str]:
    """The storage, and the path in it."""
    scheme = str(address).partition(":")[0]
    extra = _EXTRAS.get(scheme, "s3")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise _missing(address, extra) from error
    options: dict[str, Any] = {}
    if os.getpid() != _HOME:
        # a forked worker has none of the threads that a connection of its parent lives by
        options["skip_instance_cache"] = True
    try:
        system, path = url_to_fs(str(address), use_listings_cache=False, **options)
    except ImportError as error:
        raise _missing(address, extra) from error
    except (ValueError, OSError) as error:
        raise UnreadableError(f"{address}: {_reason(error)}") from error
    return system, str(path)


#: The process that imported this.
_HOME = os.getpid()


def _missing(address: Address, extra: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{address}: needs another library; install it by: pip install 'uscl-zoo[{extra}]'"
    )


@contextmanager
def _in_words(address: Address) -> Iterator[None]:
    """Say of whatever a storage or its client raises what it is about."""
    try:
        yield
    except (KeyboardInterrupt, MissingDependencyError):
        raise
    except FileNotFoundError as error:
        raise UnreadableError(f"{address}: no such file or folder") from error
    # each client has errors of its own, of a dozen libraries
    except Exception as error:
        raise UnreadableError(f"{address}: cannot be reached ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return one_line(text[0] if text else type(error).__name__).rstrip(".")
