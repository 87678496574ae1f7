"""What the package is asked for by name, and that asking for it is what costs."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import uscl_zoo

#: Says which modules of others it took to do what stands before.
OTHERS = """
import sys
known = set(sys.modules)
{code}
new = {{name: module for name, module in sys.modules.items() if name not in known}}
files = {{name: getattr(module, "__file__", None) or "" for name, module in new.items()}}
print({{name.split(".")[0] for name, file in files.items() if "site-packages" in file}} or "")
"""


def others(code: str) -> set[str]:
    """The packages of others that some code imports in a Python of its own."""
    command = [sys.executable, "-c", OTHERS.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: set[str] = ast.literal_eval(done.stdout.splitlines()[-1] or "set()")
    return found - {"uscl_zoo"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import uscl_zoo", set()),
        ("import uscl_zoo; dir(uscl_zoo), uscl_zoo.__version__", set()),
        ("from uscl_zoo import UsclError", set()),
        ("from uscl_zoo import Card, model_info; model_info('resnet18_uscl')", {"yaml"}),
    ],
)
def test_a_name_costs_what_it_needs(code: str, expected: set[str]) -> None:
    assert others(code) == expected


def test_it_shows_every_public_name() -> None:
    assert set(uscl_zoo.__all__) | {"__version__"} <= set(dir(uscl_zoo))
    assert set(uscl_zoo.__all__) == set(uscl_zoo._HOMES)


@pytest.mark.parametrize("name", uscl_zoo.__all__)
def test_a_name_is_what_its_module_has(name: str) -> None:
    home = import_module(f"uscl_zoo.{uscl_zoo._HOMES[name]}")
    assert getattr(uscl_zoo, name) is getattr(home, name)
    assert home.__name__ == getattr(home, name).__module__


def test_type_checkers_and_editors_are_shown_the_same() -> None:
    tree = ast.parse(Path(uscl_zoo.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    shown = {alias.name: node.module for node in imports for alias in node.names}
    assert shown == uscl_zoo._HOMES | dict.fromkeys(uscl_zoo._PARTS)


def test_parts_of_the_package_are_shown_and_found() -> None:
    for name in uscl_zoo._PARTS:
        assert name in dir(uscl_zoo)
        assert getattr(uscl_zoo, name) is import_module(f"uscl_zoo.{name}")


def test_it_says_where_else_a_name_is() -> None:
    for name, home in uscl_zoo._ELSEWHERE.items():
        with pytest.raises(AttributeError, match=rf"{name!r}; it is uscl_zoo\.{home}"):
            getattr(uscl_zoo, name)
        module, _, own = f"uscl_zoo.{home}".rpartition(".")
        assert hasattr(import_module(module), own)


def test_no_module_takes_the_place_of_a_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules(uscl_zoo.__path__)}
    assert modules.isdisjoint(uscl_zoo.__all__)


def test_other_names_are_none() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explian'") as raised:
        uscl_zoo.explian  # type: ignore[attr-defined] # noqa: B018
    # which is what Python's own `Did you mean: 'explain'?` goes by
    assert (raised.value.name, raised.value.obj) == ("explian", uscl_zoo)
