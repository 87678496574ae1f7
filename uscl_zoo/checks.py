"""Numbers given as arguments: whole or real, within bounds, and Python's own afterwards."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

from .errors import DataError

#: The largest seed: scikit-learn counts as far.
_LARGEST = 2**32 - 1
# The largest standard deviation of intensities in 0-1: they have half of that, and some network was
# made for less contrast. Of 0 to 255 it is tens.
_WIDEST = 5


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


def beyond_white(mean: Iterable[float], std: Iterable[float]) -> str | None:
    """What is wrong with a mean and standard deviation of images that are not of 0 to 1.

    Those of 0 to 255 make of every frame nearly the same input, and nothing would say so.

    Returns:
        The fault, in words; None if they can be of intensities in 0-1.
    """
    for name, values, most in (("mean", tuple(mean), 1), ("std", tuple(std), _WIDEST)):
        if not all(0 <= value <= most for value in values):
            shown = ", ".join(f"{value:g}" for value in values)
            return (
                f"{name} should be of intensities in 0-1, not {shown}; if it is of 0 to 255, "
                "divide it by 255"
            )
    return None


def seed_of(seed: object) -> int:
    """A seed. None is none: whatever is drawn would be another each time.

    Raises:
        DataError: if it is no whole number from 0 to 2³² - 1.
    """
    return whole("seed", seed, 0, _LARGEST)
