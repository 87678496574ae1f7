"""What the zoo costs on top of timm: import, creation, memory.

    python -m tests.benchmarks.loading [--repeats 15]

Both sides run interleaved in one sitting; medians with their quartiles are printed, and the ratio
of the medians beside its goal.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

NAME = "resnet18_uscl"

_IMPORT = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"
_MEMORY = """
import resource, timm, uscl_zoo
from uscl_zoo.zoo import weights_cache
path = weights_cache.locate(uscl_zoo.model_info({name!r})).path
{create}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
_OURS = "model = uscl_zoo.create_model({name!r}, pretrained=True)"
_TIMMS = (
    "model = timm.create_model('resnet18', pretrained=True, num_classes=0, "
    "pretrained_cfg_overlay=dict(file=str(path), num_classes=0))"
)


def fresh(code: str) -> float:
    """Run code in a fresh interpreter and read the number that it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def interleave(sides: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Measure the sides in turn, first once unmeasured to fill the file cache."""
    for side in sides:
        side()
    measured: list[list[float]] = [[] for _ in sides]
    for i in range(repeats):
        # every other round the other way, so that neither always runs after the other
        for j in range(len(sides)) if i % 2 else reversed(range(len(sides))):
            measured[j].append(sides[j]())
    return measured


def report(
    what: str, unit: str, scale: float, sides: dict[str, list[float]]
) -> tuple[float, float]:
    """Print medians and quartiles of both sides; returns the medians."""
    medians = []
    for name, values in sides.items():
        low, middle, high = (scale * value for value in statistics.quantiles(values, n=4))
        medians.append(middle)
        print(f"{what:12} {name:22} {middle:9.1f} {unit}  [{low:.1f}, {high:.1f}]")
    return medians[0], medians[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats

    ours, theirs = interleave(
        [lambda: fresh(_IMPORT.format("uscl_zoo")), lambda: fresh(_IMPORT.format("timm"))], repeats
    )
    a, b = report("import", "ms", 1e3, {"uscl_zoo": ours, "timm": theirs})
    print(f"{'':12} ratio {a / b:.3f}, goal 1.05\n")

    import timm

    import uscl_zoo
    from uscl_zoo.zoo import weights_cache

    path = str(weights_cache.locate(uscl_zoo.model_info(NAME)).path)
    overlay = {"file": path, "num_classes": 0}

    def timed(create: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            start = time.perf_counter()
            create()
            return time.perf_counter() - start

        return run

    ours, theirs = interleave(
        [
            timed(lambda: uscl_zoo.create_model(NAME, pretrained=True)),
            timed(
                lambda: timm.create_model(
                    "resnet18", pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
                )
            ),
        ],
        3 * repeats,
    )
    a, b = report("create", "ms", 1e3, {"uscl_zoo": ours, "timm, local file": theirs})
    print(f"{'':12} ratio {a / b:.3f}, goal 1.3\n")

    ours, theirs = interleave(
        [
            lambda: fresh(_MEMORY.format(name=NAME, create=_OURS.format(name=NAME))),
            lambda: fresh(_MEMORY.format(name=NAME, create=_TIMMS)),
        ],
        max(repeats // 3, 3),
    )
    a, b = report("peak memory", "MB", 1, {"uscl_zoo": ours, "timm, local file": theirs})
    print(f"{'':12} difference {a - b:+.1f} MB, goal +10")


if __name__ == "__main__":
    main()
