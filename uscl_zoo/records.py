"""Frozen dataclasses from YAML, strictly: the one reader behind cards and recipes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import CardError

T = TypeVar("T")

#: Bytes; the largest card is a hundredth of this.
_LARGEST = 1 << 20


class _Loader(yaml.SafeLoader):
    """Plain values only, each written out: a few aliases of aliases can stand for terabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("has an alias; write the value out")
        return super().compose_node(parent, index)


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, at once or not at all: a pipe would be waited for, a device never ends.

    Raises:
        OSError: if it is neither a regular file nor a link to one, or cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")  # noqa: PTH123
    os.close(handle)
    raise OSError(errno.EINVAL, "neither a file nor a folder")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping, without aliases and at most a mebibyte.

    Raises:
        CardError: if the file is unreadable, is not YAML, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():
            # a device or a pipe would be read for ever
            raise CardError(f"{path}: is no file")
        with path.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise CardError(f"{path}: is larger than {_LARGEST} bytes, which no card or recipe is")
        data = yaml.load(content.decode(), _Loader)
    except CardError:
        raise
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CardError(f"{path}: is not valid YAML ({first})") from error
    if not isinstance(data, dict):
        raise CardError(f"{path}: should be a mapping of keys to values")
    return data


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; what a user shares should follow their umask
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


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
