"""Being asked to stop: a run saves itself instead of dying."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from uscl_zoo.errors import UsclError


class Interrupted(UsclError):
    """The run was asked to stop and has saved itself."""

    exit_code = 130  # what shells expect of a command ended by Ctrl-C


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one is obeyed at once."""
    asked: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread, where signals do not arrive
            break
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
