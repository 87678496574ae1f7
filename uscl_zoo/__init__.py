"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""

from importlib import import_module
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

__all__ = [
    "Card",
    "UsclError",
    "create_model",
    "create_transform",
    "explain",
    "list_models",
    "model_info",
    "shortcut",
]

#: Imported when they are first asked for. No module of this package may have one of these names:
#: importing it would put it in the function's place.
_LAZY = {
    "explain": "uscl_zoo.gradcam",
    "shortcut": "uscl_zoo.shortcuts",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
