"""What is being written lies hidden beside its final name; what a killed process left of it goes.

Whoever writes holds it by `flock`, which ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

#: Half-written files and folders, in the way `beside` names them.
_PARTIAL = re.compile(r"\.(.*)\.[0-9a-f]{12}\.partial", re.DOTALL)
#: Bytes of a name that half-written files repeat: names may have 255.
_LONGEST = 200


def beside(path: Path) -> Path:
    """Where a file or folder is written before it is moved to its place."""
    # not of its suffix, or who looks for cards, parts or pictures would find it
    return path.with_name(f".{_cut(path.name)}.{secrets.token_hex(6)}.partial")


def is_partial(name: str) -> bool:
    """Whether a name is one that `beside` gives."""
    return _PARTIAL.fullmatch(name) is not None


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Show other processes that a file or folder is being written, where there are locks."""
    handle = _lock(path)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def sweep(folder: Path, name: str = "", alone: bool = True) -> None:
    """Take away what a killed process left half-written.

    Args:
        folder: where it is.
        name: of the file that was written, or of several with suffixes; none for all.
        alone: nobody else writes there; if somebody may, what is held stays, and all of it on file
            systems without locks.
    """
    name = _cut(name)
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            half = _PARTIAL.fullmatch(entry.name)
            if half is None or not f"{half[1]}.".lstrip(".").startswith(f"{name}." if name else ""):
                continue
            path = Path(entry.path)
            handle = None
            if not alone and (handle := _lock(path)) is None:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
            if handle is not None:
                os.close(handle)


def _cut(name: str) -> str:
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return name


def _lock(path: Path) -> int | None:
    """Lock a file or folder for as long as its handle is open; None if that cannot be."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
