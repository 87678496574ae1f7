"""What each switch of the loop brings on this machine.

    python -m tests.benchmarks.switches STORE [--recipe pocus_resnet18] [--repeats 5] [KEY=VALUE]...

One trainer a row, each a step in turn; medians and quartiles, and how much faster than the first
row, as a table in Markdown. The first step of a row is not measured: it compiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from uscl_zoo.training.learning.execution import Execution, device_named, settle
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import load_recipe, replace
from uscl_zoo.training.learning.runs import hardware
from uscl_zoo.training.pretraining.throughput import step_of
from uscl_zoo.training.pretraining.trainer import Trainer


def rows(device: torch.device, threads: int) -> dict[str, tuple[dict[str, Any], str, int]]:
    """Switches, precision and threads by the name of a row; each differs from the first in one."""
    plain: dict[str, Any] = {"compiled": False, "graphed": False}
    found = {
        "float32, channels last, eager, fused Adam": (plain, "float32", threads),
        "channels first": (plain | {"channels_last": False}, "float32", threads),
        "compiled": (plain | {"compiled": True}, "float32", threads),
        "Adam weight by weight": (plain | {"fused": False}, "float32", threads),
        "bf16": (plain, "bf16", threads),
        "bf16, compiled": (plain | {"compiled": True}, "bf16", threads),
    }
    if device.type == "cuda":
        found["bf16, compiled, one graph a step"] = (
            {"compiled": True, "graphed": True},
            "bf16",
            threads,
        )
    else:
        for count in {1, 2 * threads} - {threads}:
            found[f"{count} thread{'s' * (count > 1)}"] = (plain, "float32", count)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--recipe", default="pocus_resnet18")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device")
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    device, store = device_named(options.device), FrameStore(options.store)
    recipe = load_recipe(options.recipe, options.settings)
    settle(Execution(device))
    threads = torch.get_num_threads()

    def make(switches: dict[str, Any], precision: str, count: int) -> Callable[[], None]:
        trainer = Trainer(
            replace(recipe, precision=precision), store, Execution(device, **switches)
        )

        def step() -> None:
            torch.set_num_threads(count)
            step_of(trainer)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return step

    steps = {name: make(*row) for name, row in rows(device, threads).items()}
    for step in steps.values():
        # a graph is captured in the fourth
        for _ in range(5 if device.type == "cuda" else 1):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.repeats):
        for name in steps if turn % 2 else reversed(steps):
            clock = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - clock)
    print(
        f"{recipe.architecture}, 2 x {recipe.batch_size} views of {store.frames.shape[1]}², "
        f"{threads} threads; {hardware(device)}\n"
    )
    print("| | ms a step | quartiles | images/s | times the first |")
    print("| --- | --- | --- | --- | --- |")
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        low, middle, high = (1e3 * value for value in np.quantile(values, (0.25, 0.5, 0.75)))
        images = 2 * recipe.batch_size / middle * 1e3
        print(
            f"| {name} | {middle:.0f} | {low:.0f}-{high:.0f} | {images:.1f} | "
            f"{1e3 * first / middle:.2f} |"
        )


if __name__ == "__main__":
    main()
