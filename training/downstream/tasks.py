"""What a model can be asked to say of a file: the one place where the tasks are told apart."""

from __future__ import annotations

#: By name; the first is the default.
TASKS = ("classification",)
