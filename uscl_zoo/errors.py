"""What can go wrong, in words for the person who has to put it right.

Every message is one line that says what happened, where, and what to do. The command line prints
it and exits with status 2; in Python each class is also the built-in error a caller would expect.
"""

import re
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def one_line(text: str) -> str:
    """A text with its line breaks and control characters escaped; file names may hold any."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def reason(error: BaseException) -> str:
    """The first line of an error, without the path, which the message already has."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = re.sub(r"'?cannot identify image file .*", "not an image", str(text).splitlines()[0])
    return text.rstrip(".")


def quietly(call: Callable[[], T]) -> T:
    """Call a library without its warnings, which quote values of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


class UsclError(Exception):
    """Any error that a user of uscl-zoo can cause and mend."""

    def __str__(self) -> str:
        # KeyError would print its message quoted
        return one_line(str(self.args[0])) if self.args else ""


class UnknownModelError(UsclError, KeyError):
    """No checkpoint or architecture of that name is in the zoo."""


class WeightsNotFoundError(UsclError, FileNotFoundError):
    """The weights of a card are in none of the places they are looked for."""


class DigestError(UsclError, ValueError):
    """A file is not the one its card describes; it was not loaded."""


class CheckpointError(UsclError, ValueError):
    """A weights file does not hold the tensors it should."""


class CardError(UsclError, ValueError):
    """A card or recipe has a missing, unknown or wrong key."""


class UnreadableError(UsclError, ValueError):
    """An image, video or table cannot be decoded."""


class DataError(UsclError, ValueError):
    """The data is readable, but cannot serve for what was asked."""


class HubError(UsclError, ConnectionError):
    """The Hugging Face Hub cannot be reached, or refuses what was asked of it."""


class MissingDependencyError(UsclError, ImportError):
    """An optional library is needed and not installed."""
