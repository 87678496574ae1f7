"""What a command prints: wrapped and coloured on a terminal, whole and plain for a program.

Pipes and files get each line as it is, for grep and the like. `NO_COLOR` (no-color.org) and a
terminal that calls itself dumb are taken at their word.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import Any

import click

#: Options of `click.style` by what is meant.
_STYLES: dict[str, dict[str, Any]] = {
    "name": {"bold": True},
    "right": {"fg": "green"},
    "doubt": {"fg": "yellow"},
    "wrong": {"fg": "red", "bold": True},
    "faint": {"dim": True},
}
#: Narrower than this, words would be one below another.
_NARROWEST = 40

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def coloured() -> bool | None:
    """What click is to know of colours: False if none are wanted, None for those of a terminal."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def painted(text: str, style: str) -> str:
    """A text in the colours of what is meant by it; `say` leaves them out where none belong."""
    return click.style(text, **_STYLES[style])


def say(text: str, *, err: bool = False, indent: int = 0) -> None:
    """Print a line, on a terminal wrapped between words.

    Args:
        text: in the end with what `painted` gave.
        err: to standard error.
        indent: columns by which all but the first line are set in.
    """
    click.echo(wrapped(text, _width(err), indent), err=err, color=coloured())


def say_json(value: Any) -> None:
    """Print JSON, in UTF-8 whatever the console is."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def wrapped(text: str, width: int | None, indent: int = 0) -> str:
    """A text of one or more lines, none of which is wider, if words are not.

    Args:
        text: may be painted.
        width: in columns; None for any.
        indent: of what a line goes on with, beside its own.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        if len(click.unstyle(line)) <= width:
            lines.append(line)
            continue
        own = indent or len(line) - len(line.lstrip())
        # a path is copied whole, and so is never broken
        lines += textwrap.wrap(
            line,
            max(width, _NARROWEST),
            subsequent_indent=" " * own,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
            replace_whitespace=False,
        ) or [line]
    return "\n".join(lines)


def _width(err: bool) -> int | None:
    stream = sys.stderr if err else sys.stdout
    try:
        terminal = stream.isatty()
    except (AttributeError, ValueError):  # what stands in for one, or is closed
        return None
    return shutil.get_terminal_size().columns if terminal else None
