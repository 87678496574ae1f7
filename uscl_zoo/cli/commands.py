"""Commands that say in words of options what the library says of arguments.

A message of the library names an argument between backticks, as `overwrite` or `overwrite=True`.
Whoever is at the command line knows it as --overwrite, and reads that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..errors import UsclError

_ARGUMENT = re.compile(r"`(\w+)(?:=([^`]*))?`")


class Command(click.Command):
    """A command whose library knows its options as arguments.

    Attributes:
        also: how to say what the library has one argument for, and the command line more than one
            option.
    """

    def __init__(self, *args: Any, also: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.also = also or {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the words of the command line; an empty one would be the folder it is called in."""
        if any(not word or re.fullmatch(r"--[^=]+=", word) for word in args):
            raise click.UsageError(
                "an empty word, as of a variable that is not set; `.` is the folder here", ctx
            )
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            # no range holds what cannot be compared
            if isinstance(value, float) and not math.isfinite(value):
                raise click.BadParameter(f"{value} is no finite number", ctx, parameter)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; of an error of the library, the same with the message translated."""
        try:
            return super().invoke(ctx)
        except UsclError as error:
            if error.args and isinstance(error.args[0], str):
                error.args = (in_options(error.args[0], self.params, self.also), *error.args[1:])
            raise


class Heading(click.Group):
    """The commands of a heading."""

    command_class = Command


def in_options(
    message: str, parameters: Sequence[click.Parameter], also: Mapping[str, str] | None = None
) -> str:
    """A message of the library for a person at the command line.

    Args:
        message: with arguments between backticks.
        parameters: of the command. What is none of them stays as it is.
        also: what else arguments are called.
    """
    known = {parameter.name: parameter for parameter in parameters}

    def translated(match: re.Match[str]) -> str:
        name, value = match.groups()
        if also and name in also:
            return also[name]
        parameter = known.get(name)
        if parameter is None:
            return match[0]
        if not isinstance(parameter, click.Option):
            return parameter.human_readable_name.rstrip(".")
        negative = value == "False" and parameter.secondary_opts
        option = max(parameter.secondary_opts if negative else parameter.opts, key=len)
        if value is None or parameter.is_flag:
            return option
        # an option that is repeated takes one value of a list, and of a mapping KEY=VALUE
        value = re.sub(r"^\{'(.*)': (.*)\}$", r"\1=\2", value)
        return f"{option} {value.strip('[]')}"

    return _ARGUMENT.sub(translated, message)
