"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .card import Card
from .errors import MissingDependencyError, UsclError
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
    "finetune",
    "list_models",
    "model_info",
    "predict",
    "shortcut",
]

#: Imported when they are first asked for. No module of this package may have one of these names:
#: importing it would put it in the function's place.
_LAZY = {
    "explain": "uscl_zoo.gradcam",
    "finetune": "uscl_zoo.training.downstream.finetune",
    "predict": "uscl_zoo.prediction",
    "shortcut": "uscl_zoo.shortcuts",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{name} needs {error.name}: pip install 'uscl-zoo[training]'"
        ) from error
