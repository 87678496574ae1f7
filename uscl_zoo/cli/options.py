"""Types and options that commands of several headings take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

#: A file or folder, whether it is there or not.
FILE = click.Path(path_type=Path)

device_option = click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")


def rate_option(default: float | None) -> Callable[[Command], Command]:
    """`--rate`: how many frames a second are looked at; without a default, as the model has it."""
    return click.option(
        "--rate",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=default is not None,
        help="Frames a second."
        if default is not None
        else "Frames a second; by default those of the model, or 3.",
    )
