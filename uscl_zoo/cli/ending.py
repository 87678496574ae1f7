"""A command that is told to end: as by Ctrl-C, with everything tidied up, and one line."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

#: What a scheduler, a shutdown or a terminal that is closed sends.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
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
    for number in _ENDING:
        # under `nohup` nobody wants to hear of it
        if signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, interrupt)
                listened.append(number)
    try:
        yield came
    finally:
        for number in listened:
            signal.signal(number, signal.SIG_DFL)
