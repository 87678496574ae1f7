"""Pretrain in children that are killed at random moments; a script for test_kills.py.

    python tests/training/kill_script.py STORE RECIPE KILLED WHOLE KILLS

Children are forked, so that each is training within milliseconds. Prints where each was killed. In
the folder WHOLE, the same run is made by one child that is left alone. The network is narrow unless
USCL_ZOO_FULL is 1: checkpoints of full width take longer to write.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.utils.tensorboard  # slow, and so before the children are forked

from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import load_recipe
from uscl_zoo.training.learning.runs import CHECKPOINT, RECIPE
from uscl_zoo.training.pretraining import network
from uscl_zoo.training.pretraining.pretrain import pretrain
from uscl_zoo.training.pretraining.trainer import Trainer

#: A life ends within the step, or the checkpoint, after so many steps at most.
MOST = 6


def child(store: str, recipe: str, run: Path) -> tuple[int, int]:
    """Fork a process that goes on with the run; its number, and a pipe with a byte a step."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, told
    code = 1
    try:
        os.close(told)
        step = Trainer.step

        def telling(trainer: Trainer) -> int:
            images = step(trainer)
            os.write(tell, b".")
            return images

        Trainer.step = telling  # type: ignore[method-assign, assignment]
        torch.set_num_threads(1)
        pretrain(
            load_recipe(recipe),
            FrameStore(Path(store)),
            run,
            resume=(run / RECIPE).exists(),
            execution=Execution(torch.device("cpu")),
            progress=False,
            pictures=False,
        )
        code = 0
    finally:
        os._exit(code)


def watch(told: int, steps: int) -> float:
    """Wait for so many steps; seconds that the last of them took."""
    began = time.perf_counter()
    took = 0.5
    for _ in range(steps):
        if not os.read(told, 1):
            break
        now = time.perf_counter()
        began, took = now, now - began
    return took


def main(store: str, recipe: str, killed: str, whole: str, kills: str) -> None:
    if os.environ.get("USCL_ZOO_FULL") != "1":
        sys.path.append(str(Path(__file__).parents[1]))
        from narrow import TIMM

        vars(network)["timm"] = TIMM
    rng = np.random.default_rng(2026)
    for done in range(int(kills)):
        pid, told = child(store, recipe, Path(killed))
        # counted in steps: by the clock, a fast processor would come to the end, a slow one nowhere
        took = watch(told, int(rng.integers(MOST + 1)))
        time.sleep(float(rng.uniform(0, 1.5 * took)))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(told)
        if os.WIFEXITED(status):
            sys.exit(f"the run ended after {done} kills with status {os.WEXITSTATUS(status)}")
        partial = list(Path(killed).glob(f".{CHECKPOINT}.*.partial*"))
        print("while it wrote a checkpoint" if partial else "elsewhere", flush=True)
    for run in (killed, whole):
        _, status = os.waitpid(child(store, recipe, Path(run))[0], 0)
        if status:
            sys.exit(f"{run}: the run that was left alone ended with status {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
