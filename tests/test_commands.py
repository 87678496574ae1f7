from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from uscl_zoo.cli.commands import Heading, in_options
from uscl_zoo.errors import DataError, UsclError
from uscl_zoo.files import WriteError

commands = Heading()


@commands.command(also={"statistics": "--mean and --std"})
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.argument("data", required=False)
@click.option("-o", "--output")
@click.option("--class", "classes", multiple=True)
@click.option("--root", "roots", multiple=True)
@click.option("--overwrite", is_flag=True)
@click.option("--compile/--no-compile", "compiled", default=None)
@click.pass_obj
def refuse(error: UsclError, /, **options: Any) -> None:
    raise error


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ("x: is there; add `overwrite=True`", "x: is there; add --overwrite"),
        (
            "`compiled=False` is slower than `compiled=True`",
            "--no-compile is slower than --compile",
        ),
        ("`output=a b`: is none; leave `output` out", "--output a b: is none; leave --output out"),
        ("add `classes=['Pneu']`", "add --class 'Pneu'"),
        ("say where, `roots={'us4': FOLDER}`", "say where, --root us4=FOLDER"),
        ("`models` and `data`", "MODEL and DATA"),
        ("`statistics` are of files", "--mean and --std are of files"),
        # no arguments of this command
        (
            "`uscl import FILE --as x`, `size=3`, `csv`",
            "`uscl import FILE --as x`, `size=3`, `csv`",
        ),
    ],
)
def test_arguments_are_read_as_options(message: str, read: str) -> None:
    for error in (DataError(message), UsclError(message)):
        with pytest.raises(type(error)) as caught:
            commands.main(["refuse"], standalone_mode=False, obj=error)
        assert str(caught.value) == read


def test_other_errors_pass_as_they_are() -> None:
    for error in (WriteError(Path("a"), "No space left on device"), DataError(), DataError(3)):
        before = str(error)
        with pytest.raises(type(error)) as caught:
            commands.main(["refuse"], standalone_mode=False, obj=error)
        assert caught.value is error
        assert str(error) == before


def test_what_is_said_without_a_command_stays() -> None:
    assert in_options("add `overwrite=True`", []) == "add `overwrite=True`"
