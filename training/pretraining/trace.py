"""Where the time of a step goes: kernels by family, from torch's profiler, and a Chrome trace."""

from __future__ import annotations

import csv
import io
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from uscl_zoo.files import begins_with, check_folder, written
from uscl_zoo.records import write_text

CHROME, TABLE = "trace.json", "kernels.csv"
_HEAD = "family,ms a step,kernels a step,longest"

#: Families of kernels by what their names have in them, the first that fits. A replayed graph keeps
#: no other trace of where a kernel came from; names are those of ATen, cuDNN, oneDNN and Triton.
FAMILIES: dict[str, str] = {
    "batch norm": r"batch_?norm|bn_(fw|bw)|native_norm|cudnn.*bn",
    "optimiser": r"adam|multi_tensor_apply|_foreach|fused_lerp|\blerp_",
    "convolution": r"conv|xmma|implicit|wgrad|dgrad|fprop|winograd|nhwcToNchw|nchwToNhwc",
    "matrix products": r"gemm|addmm|\bmm\b|\bbmm\b|matmul|linear|cutlass|ampere_|sm\d\d_",
    "augmentation": r"grid_sampl|affine_grid|upsample|interpol|\bpow|gather|index|flip|lerp"
    r"|avg_pool2d\b.*3|where",
    "pooling and activation": r"pool|relu|threshold",
    "loss": r"softmax|nll|cross_entropy|norm|cosine|scatter",
    "copies": r"memcpy|memset|copy|\bto\b|contiguous|clone|\bcat|fill|zero",
}
OTHER, GAPS = "other", "gaps: nothing computes"
_PATTERNS = {family: re.compile(words, re.IGNORECASE) for family, words in FAMILIES.items()}


def family_of(name: str) -> str:
    """The family of a kernel or operation by its name."""
    return next((f for f, pattern in _PATTERNS.items() if pattern.search(name)), OTHER)


@dataclass(frozen=True)
class Family:
    """Time of the kernels of a family.

    Attributes:
        name: of the family.
        seconds: of a step.
        kernels: how many a step launches.
        longest: name of the one that takes the most.
    """

    name: str
    seconds: float
    kernels: float
    longest: str


def trace(
    step: Callable[[], Any], device: torch.device, folder: Path, steps: int = 10
) -> list[Family]:
    """Profile some steps, after one that warms the profiler up.

    Args:
        step: does the next one.
        device: it computes on.
        folder: gets `trace.json`, for chrome://tracing or Perfetto, and `kernels.csv`, in place of
            those of an earlier trace only.
        steps: how many.

    Returns:
        Families by their time, the longest first; the gaps between kernels are one. On a CPU the
        times are those of operations themselves, without what they call.
    """
    check_folder(folder, begins_with(folder / TABLE, _HEAD.encode()), names=(CHROME, TABLE))
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize(device)

    step()
    wait()
    with profile(activities=activities) as profiled:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        took = time.perf_counter() - began
    kernels = _kernels(profiled.events(), cuda)
    families = _families(kernels, took, steps)
    write_text(folder / TABLE, _table(families))
    with written(folder / CHROME) as partial:
        profiled.export_chrome_trace(str(partial))
    return families


def _kernels(events: Iterable[Any], cuda: bool) -> Iterable[tuple[str, float]]:
    """Name and seconds of every kernel; on a CPU of every operation, less what it calls."""
    for event in events:
        on_device = event.device_type.name == "CUDA"
        if cuda and on_device:
            yield event.name, event.device_time_total * 1e-6
        elif not cuda and event.name.startswith(("aten::", "autograd::", "mkldnn")):
            yield event.name, event.self_cpu_time_total * 1e-6


def _families(kernels: Iterable[tuple[str, float]], took: float, steps: int) -> list[Family]:
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    by_name: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, time_of in kernels:
        family = family_of(name)
        seconds[family] += time_of
        counts[family] += 1
        by_name[family][name] += time_of
    families = [
        Family(
            family,
            seconds[family] / steps,
            counts[family] / steps,
            max(by_name[family], key=lambda name: by_name[family][name]),
        )
        for family in seconds
    ]
    # kernels of several streams may overlap
    idle = max(took - sum(seconds.values()), 0.0) / steps
    return [*sorted(families, key=lambda f: -f.seconds), Family(GAPS, idle, 0, "")]


def _table(families: Iterable[Family]) -> str:
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(_HEAD.split(","))
    for one in families:
        rows.writerow([one.name, f"{1e3 * one.seconds:.4f}", f"{one.kernels:.1f}", one.longest])
    return table.getvalue()


def describe(families: Iterable[Family]) -> str:
    """The table as a person reads it, with the share of each family."""
    families = list(families)
    total = sum(one.seconds for one in families)
    return "\n".join(
        f"  {one.name:28} {1e3 * one.seconds:9.2f} ms  {one.seconds / total:6.1%}  "
        f"{one.kernels:7.1f} kernels" + (f"  most: {one.longest[:60]}" if one.longest else "")
        for one in families
    )
