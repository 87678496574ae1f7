"""The plan of the house: imports run one way, types included."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Every module of the package by its name; those of `training` as they are installed."""
    paths = {}
    for folder, package in (("uscl_zoo", "uscl_zoo"), ("training", "uscl_zoo.training")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = modules()

#: Lines that a module may have without a reason.
MOST = 500
#: Modules that are longer, and why.
LONGER = {
    "uscl_zoo.training.pretraining.trainer": (
        "the step of pretraining and its state, which resume as one"
    ),
}


def imported(name: str) -> set[str]:
    """The modules of the package that one imports, at the top, within functions, or for types."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in MODULES else base)
    return (names & MODULES.keys()) - {name}


GRAPH = {name: imported(name) for name in MODULES}


def reach(start: str) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in GRAPH[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_the_graph_is_that_of_the_package() -> None:
    assert "uscl_zoo.zoo.weights_cache" in GRAPH["uscl_zoo.network"]
    assert "uscl_zoo.training.learning.pairs" in reach("uscl_zoo.training.pretraining.pretrain")
    assert "uscl_zoo.errors" in reach("uscl_zoo.training.evaluation.evaluate")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_is_imported_by_what_it_imports(name: str) -> None:
    back = sorted(other for other in GRAPH[name] if name in reach(other))
    assert not back, f"{name} imports {', '.join(back)}, which come back to it"


def room_of(name: str) -> str:
    """`uscl_zoo.ultrasound` of `uscl_zoo.ultrasound.dicom`; in the other wing a name deeper."""
    depth = 3 if name.startswith("uscl_zoo.training.") else 2
    return ".".join(name.split(".")[:depth])


def test_no_room_is_imported_by_what_it_imports() -> None:
    rooms: dict[str, set[str]] = {room_of(name): set() for name in MODULES}
    for name, others in GRAPH.items():
        rooms[room_of(name)] |= {room_of(other) for other in others} - {room_of(name)}
    seen: set[str] = set()
    while rooms:
        # the package's own first page and the command line know many rooms, and no room knows them
        lowest = {room for room, others in rooms.items() if others <= seen}
        assert lowest, f"these come back to themselves: {', '.join(sorted(rooms))}"
        seen |= lowest
        rooms = {room: others for room, others in rooms.items() if room not in lowest}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_zoo_does_not_know_how_it_was_trained(name: str) -> None:
    """Backbones are used without the wing that makes them; only the command line opens its door."""
    if name.startswith("uscl_zoo.training") or name == "uscl_zoo" or ".cli" in name:
        return
    assert not [other for other in GRAPH[name] if other.startswith("uscl_zoo.training")]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_is_long_without_a_reason(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST or LONGER.get(name), f"{name} has {lines} lines: cut it, or say why not"


def test_reasons_are_given_for_modules_that_there_are() -> None:
    assert LONGER.keys() <= MODULES.keys()


def messages(name: str) -> list[str]:
    """The texts of a module, without its docstrings and what it asks git."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    silent: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            silent.add(id(node.value))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "git":
            silent |= {id(argument) for argument in node.args}
        elif isinstance(node, ast.JoinedStr):
            silent |= {id(part) for part in node.values}
    texts = []
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (getattr(part, "value", None) for part in node.values)
            texts.append("".join(part if isinstance(part, str) else "x" for part in parts))
    return texts


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_library_speaks_of_arguments(name: str) -> None:
    """Of `overwrite=True`, where the command line says --overwrite; whole commands may stand."""
    if ".cli" in name:
        return
    # a command is advice that holds wherever it is read
    commands = re.compile(r"`uscl [^`]*`|^(?:uscl|hf) .*$", re.MULTILINE)
    texts = [commands.sub("", text) for text in messages(name)]
    assert not [text for text in texts if re.search(r"(?<![\w-])--[a-z]", text)]
