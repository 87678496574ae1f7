"""What `uscl prepare` costs on top of decoding, and what a second core brings.

    python -m tests.benchmarks.prepare VIDEOS... [--repeats 5] [--every 1]

Four sides run interleaved in one sitting, each in a fresh process: decoding alone in one and in two
processes (every frame, in the codec's own format: nothing is converted, resized or kept), and
`prepare` with one and two workers, to a finished store. The processor seconds (user and system, of
the process and its children) tell what was computed and change little with what else the machine
does; the wall-clock seconds are what a person waits, and mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from uscl_zoo.ultrasound import reading

from .loading import interleave, report

# Imports are not timed: they are the interpreter's, and the same for all sides.
_TIMED = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import av
from PIL import Image, ImageSequence
from uscl_zoo.training.preparing.labels import Annotation
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.ultrasound.video import SUFFIXES

def decode(source):
    if Path(source).suffix.lower() in SUFFIXES:
        with av.open(source) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                pass
    else:
        with Image.open(source) as image:
            for page in ImageSequence.Iterator(image):
                page.load()

what, workers, output, *videos = sys.argv[1:]
start = time.perf_counter(), os.times()
if what == "prepare":
    prepare([Path(v) for v in videos], Path(output), lambda name: Annotation(name),
        workers=int(workers), progress=False)
elif workers == "1":
    for video in videos:
        decode(video)
else:
    with ProcessPoolExecutor(int(workers), mp_context=get_context("fork")) as pool:
        list(pool.map(decode, sorted(videos, key=lambda v: -os.path.getsize(v))))
wall, spent = time.perf_counter() - start[0], os.times()
print(wall, sum(spent[:4]) - sum(start[1][:4]))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="take every n-th video")
    options = parser.parse_args()
    videos = [str(source) for source in reading.find(options.videos)][:: options.every]
    sides = [(what, workers) for what in ("decode", "prepare") for workers in (1, 2)]
    processor: dict[tuple[str, int], list[float]] = {side: [] for side in sides}

    def run(what: str, workers: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [what, str(workers), f"{folder}/store", *videos]
            told = subprocess.check_output([sys.executable, "-c", _TIMED, *arguments], text=True)
        wall, spent = map(float, told.split())
        processor[what, workers].append(spent)
        return wall

    walls = interleave([partial(run, *side) for side in sides], options.repeats)
    print(f"{len(videos)} videos, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    names = [f"{what}, workers {workers}" for what, workers in sides]
    decode1, decode2 = report("wall", "s", 1, dict(zip(names[:2], walls[:2], strict=True)))
    prepare1, prepare2 = report("wall", "s", 1, dict(zip(names[2:], walls[2:], strict=True)))
    # the first of each was the unmeasured one
    spent = {names[i]: processor[sides[i]][1:] for i in (0, 2)}
    alone, whole = report("processor", "s", 1, spent)
    print(f"two workers by one: {prepare1 / prepare2:.2f} times the speed, goal 1.7")
    print(f"(decoding alone: {decode1 / decode2:.2f})")
    print(f"speed by that of decoding, wall: {decode1 / prepare1:.2f} with one worker, goal 0.8")
    print(f"{'':32}{decode2 / prepare2:.2f} with two")
    print(f"speed by that of decoding, processor: {alone / whole:.2f} with one worker")


if __name__ == "__main__":
    main()
