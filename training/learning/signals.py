"""Being asked to stop: a run saves itself instead of dying."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from uscl_zoo.errors import UsclError

#: What tells a run to stop; Windows has no terminal that hangs up.
ENDING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if name in signal.Signals.__members__
)


class Interrupted(UsclError):
    """The run was asked to stop and has saved itself."""

    exit_code = 130  # what shells expect of a command ended by Ctrl-C


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect SIGINT, SIGTERM and SIGHUP instead of dying of them; a second one is obeyed at once.

    So is the first in the end, if nothing was raised for it: it may have come after the last look.
    A SIGHUP that is ignored, as under `nohup`, stays so.
    """
    asked: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in ENDING:
        if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
            continue
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread, where signals do not arrive
            break
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(signal.Signals[asked[0]])
