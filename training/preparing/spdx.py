"""Licences as SPDX expressions, and whether a list of them is enough."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from uscl_zoo.errors import DataError

#: How SPDX names a licence that is not on its list.
_OWN = "licenseref-"


def canonical(expression: str) -> str:
    """An SPDX expression in its own spelling: `cc-by-4.0 and mit` is `CC-BY-4.0 AND MIT`.

    Raises:
        DataError: if it is none.
    """
    return str(_parsed(expression))


def allows(allowed: Iterable[str], expression: str) -> bool:
    """Whether licences on a list are enough for an expression: `A AND B` needs both.

    Args:
        allowed: SPDX identifiers.
        expression: of what is to be used.

    Raises:
        DataError: if either is no SPDX.
    """
    return _is_met(_parsed(expression), frozenset(map(canonical, allowed)))


def _is_met(parsed: Any, allowed: frozenset[str]) -> bool:
    if str(parsed) in allowed:
        return True
    kind = type(parsed).__name__
    if kind == "AND":
        return all(_is_met(part, allowed) for part in parsed.args)
    if kind == "OR":
        return any(_is_met(part, allowed) for part in parsed.args)
    return False


@lru_cache(1024)
def _parsed(expression: str) -> Any:
    from license_expression import ExpressionError

    try:
        parsed = _spdx().parse(expression)
    except ExpressionError as error:
        raise DataError(f"{expression!r} is no SPDX expression ({error})") from error
    if parsed is None:
        raise DataError("an empty licence is no SPDX expression")
    unknown = [
        key for key in _spdx().unknown_license_keys(parsed) if not key.lower().startswith(_OWN)
    ]
    if unknown:
        raise DataError(
            f"{expression!r} is no SPDX expression: no licence {unknown[0]!r}; "
            "https://spdx.org/licenses has them all"
        )
    return parsed


@lru_cache(1)
def _spdx() -> Any:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()
