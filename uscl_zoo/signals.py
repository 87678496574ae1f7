"""Being told to end: a run saves itself, any other command tidies up as after Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from .errors import UsclError

#: What a person, a scheduler, a shutdown or a closed terminal sends; Windows has no SIGHUP.
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


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let signals that would end this process at once interrupt it, as Ctrl-C does.

    Yields:
        The numbers of those that came.
    """
    came: list[int] = []
    owner = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # of a worker that was forked from this process
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        came.append(number)
        raise KeyboardInterrupt

    listened = []
    for number in set(ENDING) - {signal.SIGINT}:
        # under `nohup` nobody wants to hear of it
        if signal.getsignal(number) is signal.SIG_DFL:
            with suppress(ValueError):  # not in the main thread
                signal.signal(number, interrupt)
                listened.append(number)
    try:
        yield came
    finally:
        for number in listened:
            signal.signal(number, signal.SIG_DFL)
