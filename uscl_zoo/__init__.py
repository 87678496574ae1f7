"""Backbones pretrained on ultrasound video. Importing this registers them in timm."""

from importlib.metadata import version

__version__ = version("uscl-zoo")
