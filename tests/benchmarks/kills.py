"""Whether a run that is killed and resumed, on any device, ends as one that is not.

    python -m tests.benchmarks.kills STORE [--kills 5] [--device cuda] [--recipe ...] [KEY=VALUE]...

`tests/training/test_kills.py` asks it of a CPU, by forking; CUDA does not survive a fork, so
here each life is a command of its own. Runs with `--deterministic`; prints where each kill struck,
and ends with status 1 if a bit differs.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from uscl_zoo.training.learning.execution import device_named
from uscl_zoo.training.learning.runs import CHECKPOINT, RECIPE, hardware, load_checkpoint


def main() -> None:
    """Run once whole and once with kills, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--recipe", default="pocus_resnet18")
    parser.add_argument("--device")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    device = device_named(options.device)
    words = ["--recipe", options.recipe, "--data", options.store, *options.settings]
    words += ["--device", str(device), "--deterministic"]
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory(prefix="uscl-") as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        clock = time.perf_counter()
        if life(whole, words).wait():
            sys.exit(f"the whole run failed; to see why: uscl pretrain -o RUN {shlex.join(words)}")
        seconds = time.perf_counter() - clock
        print(f"{hardware(device)}: a whole run takes {seconds:.0f} s, starting included")
        for number in range(options.kills):
            before = saved(killed)
            lives = life(killed, words)
            # every life gets further than the one before, and none to the end
            while saved(killed) == before and lives.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.5) * seconds / options.kills)
            if lives.poll() is not None:
                sys.exit("a life came to its end: fewer kills, or a longer run, epochs=...")
            lives.kill()
            lives.wait()
            print(f"killed {number + 1}: {where(killed)}")
        life(killed, words).wait()
        differing = differences(whole, killed)
    print(f"{options.kills} kills: {', '.join(differing) or 'the same to the bit'}")
    sys.exit(1 if differing else 0)


def life(run: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it."""
    resume = ["--resume"] if (run / RECIPE).exists() else []
    command = [sys.executable, "-m", "uscl_zoo.training", "pretrain", "-o", str(run)]
    return subprocess.Popen([*command, *words, *resume], stderr=subprocess.DEVNULL)


def saved(run: Path) -> float:
    """When the newest checkpoint was written; 0 before the first."""
    path = run / CHECKPOINT
    return path.stat().st_mtime if path.exists() else 0.0


def where(run: Path) -> str:
    """What the newest checkpoint holds."""
    state = load_checkpoint(run)
    if state is None:
        return "before the first checkpoint"
    return f"the last checkpoint is of epoch {state['progress']['epoch']}"


def differences(one: Path, other: Path) -> list[str]:
    """Tensors of the last checkpoints that are not the same to the bit."""
    states = [load_checkpoint(run) for run in (one, other)]
    networks = [state["network"] if state else {} for state in states]
    if not all(networks):
        return ["a run without a checkpoint"]
    first, second = networks
    return [f"{name} differs" for name in first if not torch.equal(first[name], second[name])]


if __name__ == "__main__":
    main()
