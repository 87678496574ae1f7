"""What a model can be asked to say of a file: the one place where the tasks are told apart."""

from __future__ import annotations

from uscl_zoo.errors import DataError

from ..downstream.goal import Classes, Goal
from .amounts import Amounts
from .labelling import Labelling

#: By name; the first is the default.
GOALS: dict[str, Goal] = {goal.task: goal for goal in (Classes(), Amounts(), Labelling())}
TASKS = tuple(GOALS)


def goal_of(task: str) -> Goal:
    """What is said of a file.

    Raises:
        DataError: if there is no such task.
    """
    if task not in GOALS:
        raise DataError(f"`task` should be one of {', '.join(TASKS)}, not {task!r}")
    return GOALS[task]
