"""Labelled ultrasound for training loops of one's own: datasets whose splits share no subject."""

from .images import Images

__all__ = ["Images"]
