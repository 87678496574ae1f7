"""Numbers given as arguments: whole or real, within bounds, and Python's own afterwards."""

from __future__ import annotations

import math
import operator

from .errors import DataError

#: The largest seed: scikit-learn counts as far.
_LARGEST = 2**32 - 1


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """A whole number, of any library.

    Args:
        name: of the argument.
        value: given for it.
        least: it may be.
        most: it may be; None for any.

    Raises:
        DataError: if it is no whole number, or beyond the bounds.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most) or isinstance(value, bool):
        bounds = f"from {least:,} to {most:,}" if most is not None else f"of at least {least:,}"
        raise DataError(f"`{name}` should be a whole number {bounds}, not {value!r}")
    return number


def real(name: str, value: object, above: float, below: float, *, ends: bool = False) -> float:
    """A number between two others, of any library.

    Args:
        name: of the argument.
        value: given for it.
        above: what.
        below: what.
        ends: whether it may be one of these.

    Raises:
        DataError: if it is no number, or not between them; NaN is not.
    """
    is_number = hasattr(value, "__float__") and not isinstance(value, (bool, complex))
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    if not (above < number < below or (ends and number in (above, below))):
        bounds = f"between {above:g} and {below:g}" if math.isfinite(below) else f"above {above:g}"
        raise DataError(f"`{name}` should be a number {bounds}, not {value!r}")
    return number


def seed_of(seed: object) -> int:
    """A seed. None is none: whatever is drawn would be another each time.

    Raises:
        DataError: if it is no whole number from 0 to 2³² - 1.
    """
    return whole("seed", seed, 0, _LARGEST)
