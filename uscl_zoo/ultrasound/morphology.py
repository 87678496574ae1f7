"""OpenCV where it is needed: the morphology that detects the beam and what is drawn over it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependencyError

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


def disc(size: int) -> Pixels:
    """A round kernel, uint8 (size, size)."""
    cv2 = opencv()
    disc: Pixels = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return disc


def brightest(picture: Pixels) -> Pixels:
    """The brightest channel of each pixel; NumPy's own maximum is 20 times slower."""
    cv2 = opencv()
    red, green, blue = cv2.split(picture)
    brightest: Pixels = cv2.max(cv2.max(red, green), blue)
    return brightest


def opencv(what: str = "detecting the beam", extra: str = "clean") -> Any:
    """OpenCV, imported when it is needed.

    Args:
        what: needs it, in the words of the error.
        extra: that brings it.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs OpenCV: pip install 'uscl-zoo[{extra}]'"
        ) from error
    return cv2
