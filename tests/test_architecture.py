"""The plan of the house: imports run one way, types included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules() -> dict[str, Path]:
    """Every module of the package by its name; those of `training` as they are installed."""
    found = {}
    for folder, package in (("uscl_zoo", "uscl_zoo"), ("training", "uscl_zoo.training")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of the package that one imports, at the top, within functions, or for types."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return (found & MODULES.keys()) - {name}


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
    assert "uscl_zoo.store" in GRAPH["uscl_zoo.network"]
    assert "uscl_zoo.training.pairs" in reach("uscl_zoo.training.pretrain")
    assert "uscl_zoo.errors" in reach("uscl_zoo.training.downstream.evaluate")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_is_imported_by_what_it_imports(name: str) -> None:
    back = sorted(other for other in GRAPH[name] if name in reach(other))
    assert not back, f"{name} imports {', '.join(back)}, which come back to it"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_zoo_does_not_know_how_it_was_trained(name: str) -> None:
    """Backbones are used without the wing that makes them; only the command line opens its door."""
    if name.startswith("uscl_zoo.training") or name == "uscl_zoo" or ".cli" in name:
        return
    assert not [other for other in GRAPH[name] if other.startswith("uscl_zoo.training")]
