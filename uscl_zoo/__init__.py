"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""

from importlib.metadata import PackageNotFoundError, version

from .card import Card
from .errors import UsclError
from .registry import create_model, list_models, model_info
from .ultrasound.transforms import create_transform

try:
    __version__ = version("uscl-zoo")
except PackageNotFoundError:  # a checkout that is not installed, as torch.hub makes
    __version__ = "0+checkout"

__all__ = ["Card", "UsclError", "create_model", "create_transform", "list_models", "model_info"]
