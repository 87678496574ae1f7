"""How busy `uscl embed` keeps the cores, and how fast it is.

    python -m tests.benchmarks.embedding DATA... [--repeats 5] [--pool clip]

Two ways run in turn, each in a fresh interpreter and after a warm-up: `ahead`, as `embed` works
now, with threads that decode ahead of a network that computes on every core; and `in turn`, as it
worked until 0.1, decoding and computing one after the other in one thread. Three figures each:

- CPU time of the process / (wall time x cores): what it got. On a machine that does other work as
  well it cannot reach 1.
- threads that would run / cores, at most 1, by looking every 10 ms: what it asked for. Other work
  does not lower it.
- frames a second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_CODE = """
import contextlib, resource, sys, time, warnings
import torch
from uscl_zoo import create_model, create_transform
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.inference import batched, infer
from uscl_zoo.ultrasound.reading import find, sample
from uscl_zoo.errors import UsclError
way, pool, device, batch, *data = sys.argv[1:]
warnings.simplefilter("ignore")
torch.manual_seed(0)
model = create_model("resnet18_uscl").to(device)
sources = find(data)
def in_turn():
    transform = create_transform(model)
    def frames():
        for source in sources:
            with contextlib.suppress(UsclError):
                for _, image in sample(source, 3.0):
                    yield transform.resize(image)
    # on one thread, batch by batch
    return sum(map(len, infer(model, transform.normalise, batched(frames(), int(batch)))))
def ahead():
    result = embed(model, data, pool=pool, batch_size=int(batch), progress=False)
    return int(result.counts.sum())
embed(model, sources[0], progress=False)
print("ready", flush=True)
sys.stdin.readline()
before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
count = ahead() if way == "ahead" else in_turn()
wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(wall, cpu, count, after.ru_maxrss / 1024, flush=True)
"""


def running(process: int) -> int:
    """Threads of a process that run or wait for nothing but a core."""
    count = 0
    for stat in Path(f"/proc/{process}/task").glob("*/stat"):
        try:
            # the name of the thread, in brackets, may hold anything
            count += stat.read_text().rpartition(")")[2].split()[0] == "R"
        except OSError:
            continue
    return count


def measure(way: str, options: argparse.Namespace) -> tuple[float, float, float, float]:
    """CPU share, share asked for, frames a second, peak memory in MB."""
    threads = 1 if way == "in turn" else CORES
    settings = [way, options.pool, options.device, str(options.batch_size), *options.data]
    with subprocess.Popen(
        [sys.executable, "-c", _CODE, *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        os.set_blocking(child.stdout.fileno(), False)
        child.stdin.write("\n")
        child.stdin.flush()
        asked = []
        while not (line := child.stdout.readline()):
            asked.append(min(running(child.pid), CORES) / CORES)
            time.sleep(0.01)
        wall, cpu, count, memory = map(float, line.split())
    return cpu / (wall * CORES), statistics.mean(asked), count / wall, memory


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pool", default="clip")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    measured: dict[str, list[tuple[float, ...]]] = {"ahead": [], "in turn": []}
    for i in range(options.repeats):
        # every other round the other way, so that neither always runs after the other
        for way in sorted(measured, reverse=bool(i % 2)):
            measured[way].append(measure(way, options))
            got, asked, speed, _ = measured[way][-1]
            print(
                f"  {way:8} got {got:.2f}, asked for {asked:.2f}; {speed:.1f} frames a second; "
                f"load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    print(f"medians; {CORES} cores, torch {torch.__version__}")
    for way, rows in measured.items():
        got, asked, speed, memory = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        print(
            f"  {way:8} got {got:.2f}, asked for {asked:.2f} of the cores; "
            f"{speed:.1f} frames a second, peak {memory:.0f} MB"
        )


if __name__ == "__main__":
    main()
