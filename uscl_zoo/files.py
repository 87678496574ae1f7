"""Where files are."""

from __future__ import annotations

from pathlib import Path

from .errors import DataError


def expanded(path: str | Path) -> Path:
    """A path with the home of `~` or `~user` in its place.

    Raises:
        DataError: if there is none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path}: there is no such home folder; set HOME, or name the folder in full"
        ) from error
