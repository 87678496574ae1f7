"""What a run tells the whole process before it computes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest
import torch

from uscl_zoo.training.learning.execution import LONG, Execution, keep_memory
from uscl_zoo.training.learning.recipe import Recipe, load_recipe
from uscl_zoo.training.pretraining.steps import views_of

FAULTS = """
import resource, sys, torch
from uscl_zoo.training.learning.execution import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def step():
    torch.empty(1 << 24).fill_(1.0)
# until there is a place that nothing small gets into
for _ in range(30):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_one_step_serves_the_next() -> None:
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # ten times 64 MiB, of pages of 4 KiB, or of 2 MiB where the kernel gives such unasked
    assert faults("keep") * 2 < faults("leave")


def test_without_glibc_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(ctypes, "CDLL")
    assert not keep_memory()


@pytest.mark.parametrize(
    ("device", "compiled", "views", "expected"),
    [
        ("cuda", None, LONG, True),
        ("cuda", None, LONG - 1, False),
        ("cpu", None, LONG, False),
        ("cuda", True, 1, True),
        ("cpu", True, 1, True),
        ("cuda", False, LONG, False),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    device: str, compiled: bool | None, views: int, expected: bool
) -> None:
    assert Execution(torch.device(device), compiled=compiled).compiles(views) is expected


def test_a_run_is_as_long_as_its_pixels() -> None:
    plain, shrunk = Recipe(epochs=3), Recipe(epochs=3, sizes=((112, 0.5), (224, 1.0)))
    assert views_of(plain, 224, 100) == 600
    assert views_of(plain, 448, 100) == 2400
    assert views_of(shrunk, 448, 100) == 600 * (0.5 / 4 + 0.5)


@pytest.mark.parametrize("recipe", ["us4_resnet18", "us4_resnet50", "open_resnet18"])
def test_the_shipped_recipes_are_too_short_for_compiling(recipe: str) -> None:
    """It takes a minute, as long as US-4's 841 training videos on a GPU."""
    assert views_of(load_recipe(recipe), 224, 841) < LONG / 5
