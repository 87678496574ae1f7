"""Pretrain in children that are killed at random moments; a script for test_kills.py.

    python tests/training/kill_script.py STORE RECIPE RUN KILLS

Children are forked, so that each is training within milliseconds. Prints where each was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from uscl_zoo.training.execution import Execution
from uscl_zoo.training.frames import FrameStore
from uscl_zoo.training.pretrain import pretrain
from uscl_zoo.training.recipe import load_recipe
from uscl_zoo.training.runs import CHECKPOINT, RECIPE


def child(store: Path, recipe: str, run: Path) -> int:
    """Fork a process that goes on with the run."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        torch.set_num_threads(1)
        execution = Execution(torch.device("cpu"))
        resume = (run / RECIPE).exists()
        pretrain(
            load_recipe(recipe),
            FrameStore(store),
            run,
            resume=resume,
            execution=execution,
            progress=False,
        )
        code = 0
    finally:
        os._exit(code)


def main(store: str, recipe: str, run: str, kills: str) -> None:
    rng = np.random.default_rng(2026)
    done = 0
    while done < int(kills):
        pid = child(Path(store), recipe, Path(run))
        time.sleep(float(rng.uniform(0.05, 4)))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            sys.exit(f"the run ended after {done} kills with status {os.WEXITSTATUS(status)}")
        done += 1
        partial = (Path(run) / f"{CHECKPOINT}.partial").exists()
        print("while it wrote a checkpoint" if partial else "elsewhere", flush=True)
    _, status = os.waitpid(child(Path(store), recipe, Path(run)), 0)
    sys.exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(*sys.argv[1:])
