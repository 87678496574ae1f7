"""Words of the command line that are empty, and numbers that are none, in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from own import run

from uscl_zoo.cli import cli
from uscl_zoo.errors import DataError
from uscl_zoo.files import expanded
from uscl_zoo.network import load

COMMANDS: dict[str, click.Command] = {
    name: command for source in cli.sources for name, command in source.commands.items()
}


def words(command: click.Command) -> list[list[str]]:
    """What is wrong once each: every option and argument empty, and numbers not finite."""
    given: list[list[str]] = []
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            given.append([""])
        elif isinstance(parameter, click.Option) and not parameter.is_flag:
            option = max(parameter.opts, key=len)
            given += [[option, ""], [f"{option}="]]
            if parameter.name == "seed":
                given.append([option, str(2**40)])
            if isinstance(parameter.type, click.FloatRange):
                given += [[option, "nan"], [option, "inf"], [option, "-inf"]]
    return given


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_empty_word_is_not_the_folder_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As `uscl publish "$MODEL"`, where no such variable is set, in the folder of a model."""
    monkeypatch.chdir(tmp_path)
    command = COMMANDS[name]
    # with all that it asks for
    needed = [
        word
        for parameter in command.params
        if parameter.required
        for word in (
            [max(parameter.opts, key=len), "1"] if isinstance(parameter, click.Option) else ["x"]
        )
    ]
    for wrong in words(command):
        assert run(name, *needed, *wrong) == 2
        said = capsys.readouterr().err
        assert any(words in said for words in ("an empty word", "finite", "not in the range")), (
            wrong
        )
        assert list(tmp_path.iterdir()) == []


def test_an_empty_path_in_python() -> None:
    with pytest.raises(DataError, match="a path is empty"):
        expanded("")
    with pytest.raises(DataError, match="a path is empty"):
        load("")
