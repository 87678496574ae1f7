"""Made-up tasks of a probe."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uscl_zoo.training.downstream.bootstrap import Task

Ints = NDArray[np.int64]


def make_task(test_target: list[int], test_subject: list[int]) -> Task:
    subjects = tuple(f"s{i}" for i in range(max(test_subject) + 1))
    none = np.zeros(0, np.int64)
    return Task(
        classes=("a", "b", "c")[: max(test_target) + 1],
        train=none,
        test=np.arange(len(test_target)),
        train_target=none,
        test_target=np.array(test_target),
        test_subject=np.array(test_subject),
        subjects=subjects,
    )


def guessed() -> tuple[Task, Ints]:
    """Nine subjects of three classes with 4 to 12 frames, and guesses."""
    rng = np.random.default_rng(0)
    counts = rng.integers(4, 13, 9)
    subject = np.repeat(np.arange(9), counts)
    task = make_task((subject % 3).tolist(), subject.tolist())
    right = rng.random(len(subject)) < 0.6
    return task, np.where(right, task.test_target, rng.integers(0, 3, len(subject)))
