"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""

from importlib.metadata import version

from .card import Card
from .errors import UsclError
from .registry import create_model, list_models, model_info
from .ultrasound.transforms import create_transform

__version__ = version("uscl-zoo")

__all__ = ["Card", "UsclError", "create_model", "create_transform", "list_models", "model_info"]
