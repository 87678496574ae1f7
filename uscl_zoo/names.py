"""Names as they are written and printed: of files, subjects and classes, which may hold anything.

`errors.one_line` escapes what is no UTF-8, breaks lines or steers a terminal; here is what tables
and consoles want besides.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PureWindowsPath
from typing import TextIO

from .errors import one_line

#: What a spreadsheet takes for a formula, behind the quotes that say it is none.
_FORMULA = re.compile(r"'*[=+\-@]")


def cell(text: str | Path | None) -> str:
    """A name as a cell of a CSV: on one line, and no formula to a spreadsheet; `plain` undoes that.

    Not for numbers, which may be negative.
    """
    line = one_line(str(text)) if text is not None else ""
    return f"'{line}" if _FORMULA.match(line) else line


def plain(cell: str) -> str:
    """The name in a cell that `cell` wrote."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def unplaced(word: str) -> str:
    """A word of a command without the folders above what it names, if that is there.

    Cards are published, and whose home and which patient's folder it was is nobody's business.
    """
    head, path = re.fullmatch(r"(--[\w-]+=|local-dir:)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
    parts = Path(path).parts
    is_private = path.startswith(("/", "~", "\\")) or ".." in parts or Path(path).is_absolute()
    if not is_private or not os.path.lexists(os.path.expanduser(path)):  # noqa: PTH111
        return word
    return f"{head}{Path(path).resolve().name if parts[-1] == '..' else parts[-1]}"


def last_part(reference: str) -> str:
    """What names weights, without the folders above a file; a name of a library stays as it is."""
    if reference.startswith(("timm:", "hf-hub:")):
        return reference
    # of Windows there are both kinds of slashes
    return PureWindowsPath(reference).name or reference


def escape_unprintable(*streams: TextIO) -> None:
    """Let consoles escape what they cannot print: no work should be lost for the name of a file."""
    for stream in streams:
        # not of what takes their place in notebooks
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line, with what the console cannot print escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
