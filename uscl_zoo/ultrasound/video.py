"""Videos, by FFmpeg in PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import MissingDependencyError, UnreadableError, reason
from .clip import MAX_PIXELS, Facts, Frame, OnDamage, Wanted

if TYPE_CHECKING:
    from av.container import InputContainer

#: Suffixes, compared without case.
SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


def iterate(path: Path, threads: int, on_damage: OnDamage, wanted: Wanted) -> Iterator[Frame]:
    """Decode a video; see `reading.iterate`."""
    count, trouble = 0, None
    with _open(path) as container:
        import av
        from av.video.reformatter import VideoReformatter

        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise UnreadableError(f"{path}: holds no video")
        if stream.codec_context is None:
            raise UnreadableError(f"{path}: no decoder for its video")
        stream.codec_context.thread_count = threads
        # FFmpeg counts in the margins it pads with
        stream.codec_context.options = {"max_pixels": str(2 * MAX_PIXELS)}
        clock = _Clock(stream.average_rate)
        # kept: a new one for every frame takes longer than the conversion itself
        converter = VideoReformatter()
        try:
            for packet in container.demux(stream):
                # so says FFmpeg of one that ends with the file before it should
                cut = packet.is_corrupt
                if cut:
                    trouble = "a frame is cut off"
                    if not count:
                        continue
                try:
                    # instead of it, the frames that wait for their turn
                    decoded = stream.decode(None if cut else packet)
                except av.FFmpegError as error:
                    trouble = reason(error)
                    # what follows a damaged packet is predicted from it; before the first frame
                    # there is nothing to spoil
                    if count:
                        break
                    continue
                for frame in decoded:
                    if frame.width * frame.height > MAX_PIXELS:
                        raise ValueError(
                            f"an image of {frame.width} x {frame.height} pixels; "
                            f"up to {MAX_PIXELS:,} are read"
                        )
                    time = clock.read(frame.time)
                    if wanted(time):
                        rgb = converter.reformat(frame, format="rgb24", threads=threads)
                        image = Image.fromarray(rgb.to_ndarray())
                        yield Frame(time, _turn(image, frame.rotation))
                    count += 1
                if cut:
                    break
        except (av.FFmpegError, ValueError, MemoryError) as error:
            trouble = reason(error)
    if not count:
        raise UnreadableError(f"{path}: no frame can be decoded ({trouble or 'it is empty'})")
    if trouble:
        on_damage(f"{path}: breaks off after {count} frames ({trouble})")


def facts(path: Path) -> Facts:
    """The average frame rate the container states."""
    with _open(path) as container:
        stream = container.streams.best("video")
        rate: Any = getattr(stream, "average_rate", None)
    return Facts(frame_rate=float(rate) if rate and 0 < rate < math.inf else None)


def _open(path: Path) -> InputContainer:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading video needs PyAV; install it by: pip install 'uscl-zoo[video]'"
        ) from error

    try:
        # `file:` and the whitelist keep FFmpeg from reading names as URLs, and from following
        # playlists that point elsewhere; metadata need not be UTF-8
        return av.open(
            f"file:{path}",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file"},
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(f"{path}: cannot be read ({reason(error)})") from error


class _Clock:
    """Seconds since the first frame; the frame rate stands in where a frame has no time."""

    def __init__(self, rate: Any) -> None:
        self.step = float(1 / rate) if rate else 1 / 25
        self.start: float | None = None
        self.last = -self.step

    def read(self, time: float | None) -> float:
        if time is not None and self.start is None:
            self.start = time - (self.last + self.step)
        now = self.last + self.step if time is None else time - (self.start or 0.0)
        # time stamps that run backwards would stop the sampling
        self.last = now if now > self.last else self.last + self.step
        return self.last


def _turn(image: Image.Image, degrees: int) -> Image.Image:
    """Turn anticlockwise, by a multiple of a right angle."""
    turns = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_270,
    }
    turn = turns.get(degrees % 360)
    return image if turn is None else image.transpose(turn)
