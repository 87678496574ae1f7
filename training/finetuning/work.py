"""The folder in which a long call keeps what it has done, until it is finished."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import io
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from uscl_zoo.errors import DataError, reason
from uscl_zoo.files import is_ours, written
from uscl_zoo.partials import sweep
from uscl_zoo.records import write_text

#: How NFS and FUSE name files that were deleted while somebody had them open.
_KEPT_OPEN = (".nfs", ".fuse_hidden")

#: What tells the call from another.
ABOUT = "run.json"


def is_work(folder: Path, own: re.Pattern[str]) -> bool:
    """Whether a folder is what an interrupted call left: many are named `work`.

    Args:
        folder: may be missing.
        own: the names of what such a call leaves.
    """
    return folder.is_dir() and all(
        path.name == ABOUT or own.fullmatch(path.name) or is_ours(path.name)
        for path in folder.iterdir()
    )


def go_on(work: Path, about: dict[str, Any], overwrite: bool, store: str) -> None:
    """Leave what an interrupted call of the same run did, and nothing of another's.

    Args:
        work: the folder, made if need be.
        about: what tells the run from another, of plain values.
        overwrite: begin anew.
        store: name of the frames within it, which stay.

    Raises:
        DataError: if it holds another run.
    """
    sweep(work)
    path = work / ABOUT
    if overwrite or not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        for old in work.iterdir():
            if old.name != store:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        write_text(path, json.dumps(about, indent=1))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != json.loads(json.dumps(about)):
        raise DataError(
            f"{work}: holds an interrupted run with other data or settings; make that call again, "
            "or add `overwrite=True`"
        )


def put_away(work: Path) -> None:
    """Take away what a finished call kept.

    Frames are mapped until nobody has them any more, and network file systems keep a file that is
    mapped, under another name; its folders then go when the process ends. Of what else stays there
    is a warning: the work is done, and the folder is only in the way.
    """
    try:
        shutil.rmtree(work)
        return
    except OSError as error:
        why = reason(error)
    shutil.rmtree(work, ignore_errors=True)
    left = (path for path in work.rglob("*") if not path.is_dir())
    if any(not path.name.startswith(_KEPT_OPEN) for path in left):
        warnings.warn(f"{work}: could not be taken away ({why}); delete it", stacklevel=2)
    elif work.exists():
        atexit.register(take_empty, work)


def take_empty(folder: Path) -> None:
    """Take away a folder and those in it, as far as nothing is in them."""
    inner = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
    for path in (*inner, folder):
        with contextlib.suppress(OSError):
            path.rmdir()


def identity(*parts: Any) -> str:
    """A digest of what tells one training of a call from another: its rows, settings and so on."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.dtype.str, part.shape)).encode() + part.tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def keep(path: Path, of: str, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Keep what a finished fold came to.

    Args:
        path: of the file.
        of: its identity: answers of another fold would be of images that it was trained on.
        arrays: by name.
    """
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, of=np.array(of), **arrays)
    with written(path) as partial:
        partial.write_bytes(content.getvalue())


def kept(path: Path, of: str) -> dict[str, npt.NDArray[Any]] | None:
    """What `keep` kept; None, to be made again, if it is not there, damaged, or of another."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
    except Exception:  # zip and NumPy raise whatever their parsers do
        return None
    return found if str(found.pop("of", "")) == of else None
