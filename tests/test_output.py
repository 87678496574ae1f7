"""Wrapped and coloured on a terminal, whole and plain for a program, JSON where it is asked for."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINTS, draw_clip
from own import NAME, run, write_model
from PIL import Image

from uscl_zoo.cli.output import painted, wrapped

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """What a command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm", "COLUMNS": "60", **variables}
    command = [sys.executable, "-c", "from uscl_zoo.cli import main; main()", *arguments]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        shown += part
    process.wait()
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_has_colours_and_lines_that_fit() -> None:
    shown = on_a_terminal("list")
    assert COLOUR.search(shown)
    lines = COLOUR.sub("", shown).splitlines()
    assert max(map(len, lines)) <= 60
    # what a line goes on with stands below its beginning
    assert all(line.startswith(("resnet", " " * 26)) for line in lines)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colours_has_none(variables: dict[str, str]) -> None:
    shown = on_a_terminal("verify", "resnet18_uscl.none", **variables)
    assert "no model" in shown and not COLOUR.search(shown)


def test_an_error_is_wrapped_in_colour() -> None:
    shown = on_a_terminal("info", "resnet18_uscl.none")
    assert shown.startswith("\x1b[31m\x1b[1muscl:\x1b[0m no model")
    assert max(map(len, COLOUR.sub("", shown).splitlines())) <= 60


def test_a_pipe_has_whole_lines_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert not COLOUR.search(shown)
    assert max(map(len, shown.splitlines())) > 150


def test_words_are_wrapped_and_paths_are_whole() -> None:
    path = "/a/very/long/path-with-hyphens/that/nobody/could/copy/if/it/were/in/two/lines.png"
    found = wrapped(f"written to {path} as you asked, and then some more words on it", 50, 4)
    first, second, *rest = found.splitlines()
    assert (first, second) == ("written to", f"    {path}")
    assert all(len(line) <= 50 and line.startswith("    ") for line in rest)
    assert wrapped("a b " * 50, None) == "a b " * 50
    assert wrapped(painted("short", "name"), 10) == painted("short", "name")


class TestJson:
    @pytest.fixture
    def said(self, capsys: pytest.CaptureFixture[str]) -> Any:
        def call(*arguments: object, status: int = 0) -> Any:
            capsys.readouterr()
            assert run(*arguments, "--json") == status
            return json.loads(capsys.readouterr().out)

        return call

    def test_list(self, said: Any) -> None:
        (card,) = said("list", "*imagenet*")
        assert card["name"] == "resnet18_imagenet.mit" and card["licence"] == "MIT"
        assert Path(card["path"]).is_file() and card["where"] == "bundled"

    def test_info(self, said: Any) -> None:
        assert said("info", "resnet18_uscl")["name"] == "resnet18_uscl.open"

    def test_where(self, said: Any) -> None:
        listed = said("where")
        assert "resnet18_uscl.open" in {one["name"] for one in listed["weights"]}
        places = said("where", "resnet18_uscl")["places"]
        assert [place["source"] for place in places if place["present"]] == ["bundled"]

    def test_verify(self, said: Any, tmp_path: Path) -> None:
        model = write_model(tmp_path / "model")
        (right,) = said("verify", model)
        assert (right["name"], right["result"], right["error"]) == (NAME, "verified", None)
        (model / "model.safetensors").write_bytes(b"x")
        (wrong,) = said("verify", model, status=2)
        assert wrong["result"] == "wrong" and "model.safetensors" in wrong["error"]

    def test_predict(self, said: Any, tmp_path: Path) -> None:
        model = write_model(tmp_path / "model")
        Image.fromarray(draw_clip(0, 1, TINTS["Cov"])[0]).save(tmp_path / "x.png")
        output = tmp_path / "x.json"
        found = said("predict", model, tmp_path / "x.png", "--device", "cpu")
        assert found["clips"][0]["source"] == str(tmp_path / "x.png")
        assert run("predict", model, tmp_path / "x.png", "-o", output, "--device", "cpu") == 0
        assert json.loads(output.read_text()) == found
