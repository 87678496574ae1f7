"""Types and options that commands of several headings take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..errors import DataError

#: Of red, green and blue, of intensities in 0-1.
Channels = tuple[float, float, float]
Command = TypeVar("Command", bound=Callable[..., Any])


class _File(click.Path):
    """A path as it is, or an address of object storage, of which a path would drop a slash."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..files import expanded, is_address

        return expanded(value) if is_address(value) else super().convert(value, param, ctx)


#: A file or folder, whether it is there or not.
FILE = _File(path_type=Path)


class _Name(click.types.StringParamType):
    """The name of a model or checkpoint, which a shell completes, and maybe a file instead."""

    def __init__(self, or_file: bool) -> None:
        self.or_file = or_file

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from ..zoo.catalogue import all_cards, list_models

        names = [name for name in (*list_models(), *all_cards()) if name.startswith(incomplete)]
        # before the names: at a file bash forgets what it was given until then
        files = [CompletionItem(incomplete, type="file")] if self.or_file else []
        return [*files, *map(CompletionItem, names)]


#: A name of the zoo.
NAME = _Name(or_file=False)
#: A name of the zoo, or a file or folder.
MODEL = _Name(or_file=True)


def numbers(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Numbers with commas between them."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise click.BadParameter(f"numbers with commas between them, not {value!r}") from error


def channels(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[Channels, Channels] | None:
    """`--mean` and `--std`: a number a channel, or one for all; None if neither is given."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise DataError("--mean and --std go together")
    return _three("--mean", mean), _three("--std", std)


def _three(name: str, values: tuple[float, ...]) -> Channels:
    if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values):
        raise DataError(f"{name}: one number or three between 0 and 1, as intensities are")
    red, green, blue = values if len(values) == 3 else values * 3
    return red, green, blue


device_option = click.option("--device", help="cpu, cuda:0, …; by default CUDA where there is one.")


clean_option = click.option(
    "--clean/--no-clean",
    default=None,
    help="Cut frames to the beam and clean them; by default as the model was made.",
)


# as far as scikit-learn counts them
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True
)


ray_option = click.option(
    "--ray",
    metavar="ADDRESS",
    help="Of a cluster that does the work, HOST:PORT or auto; local: worker processes here. "
    "--workers is then how many.",
)


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
