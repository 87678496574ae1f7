"""The models are in timm as soon as timm is imported, before `uscl_zoo` or after it.

timm takes seconds to import, and much of `uscl_zoo` does without it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register() -> None:
    from .entry_points import register_models

    register_models()


class _AfterTimm(MetaPathFinder):
    """Lets the other finders find timm, and has the models registered once it has been run.

    Every import of a part of timm imports timm first, whose lock is held until the models are in:
    whoever waits for timm in another thread has them, too.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find timm, and nothing else."""
        if fullname != "timm":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            _register_after(spec.loader)
        return spec


def _register_after(loader: Loader) -> None:
    run = loader.exec_module

    def run_and_register(module: ModuleType) -> None:
        run(module)
        # the loader of a zip file is that of its other modules as well
        if module.__name__ == "timm":
            _register()

    # not a loader of our own: `timm.__loader__` is to stay one that reads sources and resources
    loader.exec_module = run_and_register  # type: ignore[method-assign]


def register() -> None:
    """Register the models with timm: now where timm is imported already, else when it is."""
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        # stays there: taken out, it could make an import in another thread miss a finder
        sys.meta_path.insert(0, _AfterTimm())
