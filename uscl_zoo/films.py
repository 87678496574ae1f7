"""Films: pictures one after another as MP4."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import MissingDependencyError
from .files import MADE


def can_film() -> bool:
    """Whether PyAV, which encodes them, is there."""
    return find_spec("av") is not None


def pyav(path: Path) -> Any:
    """PyAV.

    Raises:
        MissingDependencyError: if it is not installed, naming the film that it is for.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: MP4 needs PyAV; install it by: pip install 'uscl-zoo[explain]', "
            "or name a .gif"
        ) from error
    return av


def write_film(path: Path, images: Iterable[Image.Image], rate: float) -> None:
    """Write pictures of one size as MP4.

    Args:
        path: of the file; whoever calls makes sure that it is whole or not there.
        images: at least one, even in width and height.
        rate: a second.

    Raises:
        MissingDependencyError: without PyAV.
    """
    av = pyav(path)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = MADE.decode()
        stream = None
        for image in images:
            if stream is None:
                speed = Fraction(rate).limit_denominator(1000)
                stream = container.add_stream("libx264", rate=speed, options={"crf": "20"})
                stream.width, stream.height = image.size
                # what every player and browser shows
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        assert stream is not None
        container.mux(stream.encode())
