"""Names in plots, as they are: to matplotlib some are markup, and some are not to be shown."""

from __future__ import annotations

from contextlib import AbstractContextManager

import matplotlib


def literal() -> AbstractContextManager[None]:
    """While figures are drawn and written: `$` is a character, and begins no formula."""
    return matplotlib.rc_context({"text.parse_math": False})


def in_legend(name: str) -> str:
    """A name that legends show; they leave out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name
