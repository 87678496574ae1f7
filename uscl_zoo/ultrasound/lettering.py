"""Lines of text in a picture, by a detector that was trained for it."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from ..errors import MissingDependencyError
from .morphology import Mask, Pixels, opencv

# Longest side in pixels that the detector is given; at 960 lines of 9 pixels are still detected.
_LONGEST = 960
# Shortest side of a picture that can hold text.
_SHORTEST = 32
# Height of a line, as a share of the picture's, above which it is no lettering: fans and shadows.
_TALLEST = 0.15


def lettering(frames: Pixels) -> Mask:
    """Find the lines of text that stand in the frames of a clip.

    The detector looks at the mean of the frames, in which tissue blurs and text does not.

    Args:
        frames: uint8 (T, H, W, 3), RGB.

    Returns:
        bool (H, W), the boxes around the lines.

    Raises:
        MissingDependencyError: if RapidOCR or its runtime is not installed.
    """
    cv2 = opencv()
    height, width = frames.shape[1:3]
    boxes = np.zeros((height, width), np.uint8)
    if min(height, width) < _SHORTEST:
        return boxes.astype(bool)
    mean = np.rint(frames.mean(axis=0, dtype=np.float32)).astype(np.uint8)
    with _LOCK:
        detected = _detector()(cv2.cvtColor(mean, cv2.COLOR_RGB2BGR), use_cls=False, use_rec=False)
    for box in () if detected.boxes is None else detected.boxes:
        if min(cv2.minAreaRect(box.astype(np.float32))[1]) <= _TALLEST * height:
            cv2.fillPoly(boxes, [np.rint(box).astype(np.int32)], 1)
    return boxes.astype(bool)


# The detector keeps what it was last asked for.
_LOCK = threading.Lock()
# By process: a fork has none of the threads that its parent's detector waits for.
_LOADED: dict[int, Any] = {}


def _detector() -> Any:
    """RapidOCR, which carries its weights and so needs no network; loaded once a process."""
    process = os.getpid()
    if process not in _LOADED:
        # it would tell its makers of every session; who wants that sets the variable to 0
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime  # noqa: F401, RapidOCR would log its absence and go on
            from rapidocr import RapidOCR
        except ImportError as error:
            raise MissingDependencyError(
                "finding text needs RapidOCR and ONNX Runtime: pip install 'uscl-zoo[clean]'"
            ) from error
        _LOADED[process] = RapidOCR(
            params={
                "Global.log_level": "error",
                # programs set that of OpenCV where every core has a process
                "EngineConfig.onnxruntime.intra_op_num_threads": opencv().getNumThreads(),
                "Det.limit_type": "max",
                "Det.limit_side_len": _LONGEST,
            }
        )
    return _LOADED[process]
