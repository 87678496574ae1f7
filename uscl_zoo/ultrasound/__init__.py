"""Ultrasound as files give it: reading and transforms."""

from .clip import Clip, Facts, Frame, Region
from .reading import read

__all__ = ["Clip", "Facts", "Frame", "Region", "read"]
