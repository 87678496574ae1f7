"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .card import Card
from .errors import UsclError
from .registry import create_model, list_models, model_info
from .ultrasound.transforms import create_transform

try:
    __version__ = version("uscl-zoo")
except PackageNotFoundError:  # a checkout that is not installed, as torch.hub makes
    __version__ = "0+checkout"

#: Functions imported when they are first asked for: name → module. No module is named as one of
#: them, or importing it would put the module in the function's place.
_LAZY = {
    "explain": "gradcam",
    "shortcut": "shortcuts",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = ["Card", "UsclError", "create_model", "create_transform", "list_models", "model_info"]
