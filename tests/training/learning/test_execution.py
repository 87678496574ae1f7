"""What a run tells the whole process before it computes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from uscl_zoo.training.learning.execution import keep_memory

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
