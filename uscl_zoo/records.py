"""Frozen dataclasses from YAML, strictly: the one reader behind cards and recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import CardError
from .files import open_file, written

T = TypeVar("T")

#: Bytes of YAML. A card names every subject that was held out: 50,000 take two mebibytes, which
#: libyaml reads in half a second.
_LARGEST = 1 << 22
#: Keys and values, which take a second.
_MOST = 100_000
#: Mappings and lists within each other; cards have five.
_DEEPEST = 50
#: Characters of a number, whose digits take the square of their time.
_LONGEST = 1000
_NUMBER = re.compile(r"[-+0-9._:eExXa-fA-F]+")
#: Bytes of JSON, which is read ten times faster.
_LARGEST_JSON = 1 << 24

#: libyaml's where PyYAML was built with it, as the wheels of all usual machines are; else the same
#: in Python, a dozen times slower.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_yaml(text: str) -> None:
    """Refuse what would take long or fill memory, by the events of the parser alone."""
    depth = values = 0
    for event in yaml.parse(text, _Loader):
        values += isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent))
        if values > _MOST:
            raise yaml.YAMLError(f"has more than {_MOST:,} values")
        if isinstance(event, yaml.AliasEvent):
            # a few aliases of aliases can stand for terabytes
            raise yaml.YAMLError("has an alias; write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif (
            isinstance(event, yaml.ScalarEvent)
            and len(event.value) > _LONGEST
            and _NUMBER.fullmatch(event.value)
        ):
            raise yaml.YAMLError(f"has a number of {len(event.value):,} characters")
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"is nested more than {_DEEPEST} deep")


def read_small(path: Path, most: int, kind: str) -> str:
    """Read a text file that should be small, whatever it turns out to be.

    Args:
        path: of the file.
        most: bytes it may have.
        kind: of text it should be, for the message.

    Raises:
        CardError: if it is larger, no regular file, not UTF-8, or cannot be opened.
    """
    try:
        with open_file(path) as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise CardError(
                f"{path}: is larger than {most:,} bytes, which no {kind} here should be"
            )
        return content.decode()
    except UnicodeDecodeError as error:
        raise CardError(f"{path}: is not valid {kind} ({error.reason})") from error
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_json(path: Path, most: int = _LARGEST_JSON) -> Any:
    """Read a JSON file of bounded size and nesting.

    Raises:
        CardError: if the file is unreadable, too large, nested too deep, or not JSON.
    """
    text = read_small(path, most, "JSON")
    try:
        return json.loads(text)
    except RecursionError:
        raise CardError(f"{path}: is not valid JSON (nested too deep)") from None
    except ValueError as error:
        raise CardError(f"{path}: is not valid JSON ({error})") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping, without aliases, small and not deep.

    Raises:
        CardError: if the file is unreadable, is not YAML, or holds something else.
    """
    text = read_small(path, _LARGEST, "YAML")
    try:
        _check_yaml(text)
        data = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CardError(f"{path}: is not valid YAML ({first})") from error
    if not isinstance(data, dict):
        raise CardError(f"{path}: should be a mapping of keys to values")
    return data


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a reader never meets half of it.

    What is no UTF-8, as in a path, is escaped: no finished work is lost to a name.

    Raises:
        WriteError: if it cannot be written.
        DataError: if a link, a folder, a pipe or a device has that name.
    """
    with written(path) as partial:
        # as it is: of tables, the ends of lines are the writer's
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_yaml(path: Path, record: Any) -> None:
    """Write a dataclass as YAML, keys in the order of its fields."""
    text = yaml.safe_dump(to_plain(record), sort_keys=False, allow_unicode=True, width=100)
    write_text(path, text)


def to_plain(value: Any) -> Any:
    """Turn dataclasses and tuples into the dicts and lists that YAML and JSON know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_mapping(cls: type[T], data: Any, where: str) -> T:
    """Build a dataclass from plain data, refusing what its annotations do not allow.

    Args:
        cls: a dataclass of str, int, float, bool, tuples, dicts, Optionals and other dataclasses.
        data: what YAML gave.
        where: file and key so far, for the message.

    Raises:
        CardError: naming file and key, for missing, unknown or wrongly typed values.
    """
    if not isinstance(data, Mapping):
        raise CardError(f"{where}: should be a mapping of keys to values, not {data!r}")
    hints = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [str(key) for key in data if key not in fields]
    if unknown:
        raise CardError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(fields)}")
    required = (
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    missing = [name for name in required if name not in data]
    if missing:
        raise CardError(f"{where}: key '{missing[0]}' is missing")
    values = {key: _convert(hints[key], item, f"{where}: {key}") for key, item in data.items()}
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_mapping(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise CardError(f"{where}: should be a list, not {value!r}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise CardError(f"{where}: should have {len(args)} values, not {len(value)}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        items = zip(kinds, value, strict=True)
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(items))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise CardError(f"{where}: should be a mapping, not {value!r}")
        return {
            _convert(args[0], key, where): _convert(args[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-4, without a dot, as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        # so put, it also refuses NaN, and integers that no float can hold
        if not abs(value) <= sys.float_info.max:
            raise CardError(f"{where}: should be finite, not {value!r}")
        return float(value)
    # bool is a subclass of int, but `epochs: true` is a mistake
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise CardError(f"{where}: should be of type {hint.__name__}, not {value!r}")
