"""What keeping the memory of a step for the next brings on a CPU: with and without, in turn.

python -m tests.benchmarks.memory [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import numpy as np

STEP = """
import json, resource, sys, time
import timm, torch
from uscl_zoo.training.learning.execution import autocast, keep_memory, precision_on
keep, threads = sys.argv[1] == "keep", int(sys.argv[2])
if keep:
    keep_memory()
torch.set_num_threads(threads)
cpu = torch.device("cpu")
precision = precision_on(cpu, "auto")
network = timm.create_model("resnet18", num_classes=0).to(memory_format=torch.channels_last)
images = torch.randn(128, 3, 128, 128).to(memory_format=torch.channels_last)
seconds = []
for _ in range(7):
    began = time.perf_counter()
    with autocast(cpu, precision):
        loss = network(images).float().square().mean()
    loss.backward()
    seconds.append(time.perf_counter() - began)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({
    "milliseconds": 1000 * sorted(seconds[1:])[3], "faults": used.ru_minflt,
    "gigabytes": used.ru_maxrss / 2**20, "precision": precision}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"leave": [], "keep": []}
    for _ in range(given.repeats):
        for how, rows in found.items():
            command = [sys.executable, "-c", STEP, how, str(given.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
    print(f"ResNet-18, 128 images of 128², forward and backward, {found['keep'][0]['precision']}")
    for how, rows in found.items():
        low, middle, high = np.percentile([row["milliseconds"] for row in rows], [25, 50, 75])
        print(
            f"{how:6} {middle:7.0f} ms [{low:.0f}, {high:.0f}]  {rows[0]['faults']:,} page faults, "
            f"{rows[0]['gigabytes']:.2f} GB at most"
        )


if __name__ == "__main__":
    main()
