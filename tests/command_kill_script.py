"""Run a command in children that are killed at seeded moments, for test_commands_killed.py.

    python tests/command_kill_script.py KILLS SEED WORK CHECK WORD...

In the words, OUT is where the child writes: a folder of its own each, so that every kill meets a
whole run. Moments are counted in operations on files below the folder, of which Python reports each
before it does it, and for every other kill some milliseconds later: by the clock a fast processor
would come to its end, and a slow one nowhere. After each, CHECK says what is there, and the same
call is made again and left alone. Prints a line a kill: what was there, and what at the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from uscl_zoo import demo
from uscl_zoo.answers import ANSWERS
from uscl_zoo.cli import main as command_line
from uscl_zoo.errors import DataError
from uscl_zoo.network import load
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.ultrasound.phantom import lung_clip
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import read_card

#: Milliseconds until a kill that is not at once.
LATEST = 30
# a page's picture of eight frames, not of sixty, which take a core six seconds
setattr(demo, "lung_clip", partial(lung_clip, rate=2.0))  # noqa: B010


def embedded(out: Path) -> str | None:
    if not (out / "o.npz").exists():
        return None
    with np.load(out / "o.npz", allow_pickle=False) as found:
        assert np.isfinite(found["features"]).all()
        return str(found["features"].shape)


def finetuned(out: Path) -> str | None:
    if not (out / "model" / ANSWERS).exists():
        return None
    found = load(out / "model", "cpu")
    assert found.verified
    return str(found.classes)


def exported(out: Path) -> str | None:
    cards = list(out.glob("*.yaml"))
    if not cards:
        return None
    (card,) = map(read_card, cards)
    weights_cache.locate(card, out, download=False)
    weights_cache.corpus_of(card, out)
    return str(card.weights.bytes)


def published(out: Path) -> str | None:
    folder = out / "repository"
    if not folder.exists():
        return None
    names = sorted(path.name for path in folder.iterdir())
    assert load(folder, "cpu").verified
    return " ".join(names)


def prepared(out: Path) -> str | None:
    try:
        found = FrameStore(out / "store")
    except DataError:
        return None
    return f"{found.digest} {int(found.frames[:].sum())}"


CHECKS: dict[str, Callable[[Path], str | None]] = {
    one.__name__: one for one in (embedded, finetuned, exported, published, prepared)
}
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir")


def child(words: list[str], out: Path, at: int | None, delay: float) -> tuple[int, int]:
    """Run the command in a fork; the status of the child, and the operations that it counted."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            count = 0
            below = os.fspath(out)

            def strike() -> None:
                time.sleep(delay)
                os.kill(os.getpid(), signal.SIGKILL)

            def hook(event: str, arguments: tuple[object, ...]) -> None:
                nonlocal count
                if event not in _EVENTS or below not in str(arguments[0]):
                    return
                count += 1
                if count == at:
                    if delay:
                        threading.Thread(target=strike, daemon=True).start()
                    else:
                        os.kill(os.getpid(), signal.SIGKILL)

            torch.set_num_threads(1)
            sys.addaudithook(hook)
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    command_line([word.replace("OUT", below) for word in words])
                    code = 0
                except SystemExit as ended:
                    code = int(ended.code or 0)
            if code:
                sys.stderr.write(said.getvalue())
            os.write(tell, str(count).encode())
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(tell)
    _, status = os.waitpid(pid, 0)
    counted = os.read(told, 20)
    os.close(told)
    return status, int(counted or 0)


def main(kills: str, seed: str, work: str, check: str, *words: str) -> None:
    """See above."""
    seen = CHECKS[check]
    if check == "finetuned":
        # seconds of a core, once instead of in every child
        import_module("uscl_zoo.training.finetuning.finetune")
    rng = np.random.default_rng(int(seed))
    whole = Path(work, "whole")
    whole.mkdir()
    status, total = child(list(words), whole, None, 0)
    expected = seen(whole)
    if status or expected is None:
        sys.exit(f"left alone, it ended with status {status} and left {expected}")
    print(f"whole after {total} operations", flush=True)
    for number in range(int(kills)):
        out = Path(work, f"killed{number}")
        out.mkdir()
        at = int(rng.integers(1, total + 1))
        delay = float(rng.uniform(0, LATEST / 1000)) if number % 2 else 0.0
        status, _ = child(list(words), out, at, delay)
        if os.WIFEXITED(status) and not delay:
            sys.exit(f"it ended before operation {at} of {total}, with status {status}")
        found = seen(out)
        if found not in (None, expected):
            sys.exit(f"killed at operation {at}, it left {found}, not {expected} or nothing")
        status, _ = child(list(words), out, None, 0)
        # of what is whole already, some say so
        if status and found is None:
            sys.exit(f"killed at operation {at}, the same call ended with status {status}")
        if (end := seen(out)) != expected:
            sys.exit(f"killed at operation {at}, the same call left {end}, not {expected}")
        left = [path for path in out.rglob("*") if path.name.endswith((".partial", ".parts"))]
        if left:
            sys.exit(f"killed at operation {at}, the same call left {left}")
        print("whole" if found else "absent", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
