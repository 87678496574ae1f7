"""What `--ray local` costs beside the plain command, for `uscl embed` and `uscl prepare`.

    taskset -c 0 python -m tests.benchmarks.spreading embed VIDEOS [--every 32 8] [--repeats 5]

The plain command with one worker, and Ray with one and with two, run in turn in fresh processes.
Processor seconds (user and system) are those of the command and of all that it started, Ray's own
processes too: they tell what was computed, and change little with what else the machine does. The
wall-clock seconds are what a person waits, on as many cores as are given. All write the same bytes,
or it fails.

Of `--every 32 8` every 32nd file is done and every 8th, and what is paid once is told from what
each file costs. `nothing` instead of a command hands jobs to one worker that does nothing, one at a
time: what handing out costs the process that does it, on which the workers wait in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from uscl_zoo.cluster import Outcome, Work, joined
from uscl_zoo.ultrasound.reading import find

WAYS = {
    "plain": ["--workers", "1"],
    "ray 1": ["--ray", "local", "--workers", "1"],
    "ray 2": ["--ray", "local", "--workers", "2"],
}
COMMANDS = {
    "embed": (["--pool", "clip"], "features.npz"),
    "prepare": (["--label-scheme", "none"], "store"),
}
# of prctl: what a child has started is ours to wait for, once that child has ended
_PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def counting() -> Iterator[list[float]]:
    """Processor seconds of all that is started meanwhile, in the end.

    Ray's workers are nobody's to wait for, and would be missing from `resource.RUSAGE_CHILDREN`: so
    each process is looked at twice a second. What it did after the last look is lost.
    """
    seconds: dict[psutil.Process, float] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    used = process.cpu_times()
                    seconds[process] = used.user + used.system

    total: list[float] = []
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield total
    finally:
        over.set()
        thread.join()
        total.append(sum(seconds.values()))


def run(command: str, way: str, files: Sequence[Path]) -> tuple[float, float, str]:
    """Processor and wall-clock seconds of a call, and the digest of what it wrote."""
    options, name = COMMANDS[command]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, name)
        words = [command, *map(str, files), "-o", str(output), *options, *WAYS[way]]
        start = time.perf_counter()
        with counting() as cpu:
            subprocess.run(
                [sys.executable, "-c", "from uscl_zoo.cli import main; main()", *words],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        wall = time.perf_counter() - start
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        paths = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
        content = hashlib.sha256()
        for path in sorted(paths):
            content.update(path.read_bytes())
        shutil.rmtree(output, ignore_errors=True)
    return cpu[0], wall, content.hexdigest()


def nothing(jobs: Sequence[tuple[int, int]]) -> Iterable[Outcome]:
    """What the worker does."""
    return [Outcome(*job) for job in jobs]


def make() -> Work:
    """What makes it."""
    return nothing


def hand_out(repeats: int) -> None:
    """Measure what a batch costs that takes no time."""
    few, many = 200, 1200
    costs = []
    with joined("local", 1) as cluster:
        for _ in range(repeats):
            cpus = []
            for count in (few, many):
                before = time.process_time()
                assert len(list(cluster.outcomes(make, range(count), together=1))) == count
                cpus.append(time.process_time() - before)
            costs.append((cpus[1] - cpus[0]) / (many - few) * 1000)
            print(f"  {costs[-1]:.1f} ms", flush=True)
    print(
        f"a batch costs the process that hands it out {statistics.median(costs):.1f} ms "
        f"[{min(costs):.1f}, {max(costs):.1f}] of processor"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=[*COMMANDS, "nothing"])
    parser.add_argument("videos", type=Path, nargs="?")
    parser.add_argument("--every", type=int, nargs="+", default=[32, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=sorted(WAYS))
    options = parser.parse_args(arguments)
    if options.command == "nothing":
        hand_out(options.repeats)
        return
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    found = find(options.videos)
    shares = {len(found[::every]): found[::every] for every in options.every}
    measured: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for turn in range(options.repeats):
        for count, files in shares.items():
            digests = set()
            # every other round the other way, so that none always runs after the same
            for way in sorted(options.ways, reverse=bool(turn % 2)):
                cpu, wall, digest = run(options.command, way, files)
                measured.setdefault((count, way), []).append((cpu, wall))
                digests.add(digest)
                load = os.getloadavg()[0]
                print(
                    f"  {count} {way}: {cpu:.1f} s, {wall:.1f} s waited; load {load:.1f}",
                    flush=True,
                )
            assert len(digests) == 1, "what was written differs"
    print(
        f"{options.command}, medians of {options.repeats} [least, most]; the same bytes each time"
    )
    for way in options.ways:
        points = []
        for count in shares:
            cpus, walls = zip(*measured[count, way], strict=True)
            points.append((count, statistics.median(cpus)))
            print(
                f"  {way}, {count} videos: {points[-1][1]:.1f} s of processor "
                f"[{min(cpus):.1f}, {max(cpus):.1f}], {statistics.median(walls):.1f} s waited"
            )
        if len(points) > 1:
            (few, less), (many, more) = points[0], points[-1]
            each = (more - less) / (many - few)
            print(f"  {way}: {less - few * each:.1f} s once, {each:.3f} s a video")


if __name__ == "__main__":
    main()
