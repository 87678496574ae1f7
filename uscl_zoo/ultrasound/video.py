"""Videos, by FFmpeg in PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError, UnreadableError, reason
from ..files import open_file
from . import jpeg
from .clip import MAX_PIXELS, Facts, Frame, OnDamage, Wanted
from .gaps import Gaps, Ledger, Sums, in_words

if TYPE_CHECKING:
    from av import Packet, VideoCodecContext, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.plane import VideoPlane

#: Suffixes, compared without case.
SUFFIXES = frozenset(
    {
        *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpe"),
        *(".mpeg", ".mpg", ".ogv", ".vob", ".webm", ".wmv"),
    }
)

# What a file may be, whatever its name: containers that hold their video. FFmpeg would also follow
# playlists and lists of other files (HLS, DASH, ffconcat, IMF, SDP), and make pictures of text.
_CONTAINERS = ("mov", "matroska", "avi", "asf", "flv", "ogg", "mpeg", "mpegts", "mpegvideo")
_STREAMS = ("h264", "hevc", "m4v")

# Those that FFmpeg tells in part by the name, which may be any.
_BY_HEAD = {b"\0\0\1\xba": "mpeg", b"\0\0\1\xb3": "mpegvideo"}

# FFmpeg can tell of a packet of these whether any other frame is predicted from it. So it can of
# HEVC, but there only of others in the same layer.
_TELLING = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4"})

# Whose pictures are JPEGs.
_OF_JPEG = frozenset({"mjpeg", "mjpegb"})
_PROGRESSIVE = b"\xff\xc2"

# Brightness in a plane of its own, colour in others, of one byte each.
_PLANAR = frozenset({"gray", *(f"{y}{n}p" for y in ("yuv", "yuvj") for n in (420, 422, 444))})


def iterate(
    path: Path, threads: int, on_damage: OnDamage, wanted: Wanted, grey: bool = False
) -> Iterator[Frame]:
    """Decode a video; see `reading.iterate`."""
    count, trouble = 0, None
    with _open(path) as container:
        import av

        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream):
            raise UnreadableError(f"{path}: holds no video")
        if stream.codec_context is None:
            raise UnreadableError(f"{path}: no decoder for its video")
        stream.codec_context.thread_count = threads
        # FFmpeg counts in its margins, and without the flag it cuts nothing off on the left
        most = str(2 * MAX_PIXELS)
        stream.codec_context.options = {"max_pixels": most, "flags": "+unaligned"}
        clock = _Clock(stream.average_rate)
        convert = _Converter(threads, grey)
        matrix = _Matrix()
        thrift = _Thrift(stream.codec_context, clock, wanted)
        gaps = Gaps(stream.codec_context.name)
        ledger, sums = Ledger(stream.codec_context.name), Sums(stream.codec_context.name)
        try:
            for packet in container.demux(stream):
                if gaps.skip(packet):
                    continue
                # so says FFmpeg of one that ends with the file before it should
                broken = packet.is_corrupt
                if broken:
                    trouble = "a frame is cut off"
                elif sums.are_wrong(packet):
                    trouble, broken = "a slice that is not as it was written", True
                if broken and not count:
                    continue
                thrift.consider(packet)
                ledger.send(packet, thrift.skips)
                decoded: list[VideoFrame] = []
                try:
                    if not broken:
                        _check_work(stream.codec_context.name, packet)
                        decoded = stream.decode(packet)
                except (av.FFmpegError, jpeg.Misfit) as error:
                    trouble, broken = reason(error), True
                    # before the first frame there is nothing to spoil
                    if not count:
                        continue
                if broken:
                    # what follows is predicted from it, up to where nothing is
                    gaps.begin(clock.last)
                    decoded = _waiting(stream)
                    ledger.forget()
                for frame in decoded:
                    ledger.receive(frame)
                    if gaps.hides(frame, max(0.0, clock.last)):
                        trouble = trouble or "damage in a frame"
                        continue
                    if frame.width * frame.height > MAX_PIXELS:
                        raise ValueError(
                            f"an image of {frame.width} x {frame.height} pixels; "
                            f"up to {MAX_PIXELS:,} are read"
                        )
                    time = clock.read(frame.time)
                    if wanted(time):
                        yield Frame(time, _turn(convert(frame), matrix(frame)))
                    count += 1
                    if not broken:
                        gaps.end()
        except (av.FFmpegError, ValueError, MemoryError) as error:
            trouble = reason(error)
    if not count:
        raise UnreadableError(f"{path}: no frame can be decoded ({trouble or 'it is empty'})")
    if matrix.slanted:
        on_damage(f"{path}: asks to be turned by no right angle; shown by the nearest one")
    if missing := ledger.missing():
        on_damage(f"{path}: frames are missing behind {in_words(missing)}")
    if gaps.left_out:
        on_damage(f"{path}: frames behind {gaps.left_out} are left out ({trouble})")
    if trouble and (gaps.open is not None or not gaps.times):
        # where frames are left out, their count tells nobody where
        where = f"{clock.last:.1f} s" if thrift.able else f"{count} frames"
        on_damage(f"{path}: breaks off after {where} ({trouble})")


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
        # a pipe would be waited for
        with open_file(path) as stream:
            head = stream.read(4)
        # `file:` and the whitelists keep FFmpeg from reading names as URLs, and from following
        # lists that point elsewhere; metadata need not be UTF-8
        return av.open(
            f"file:{path}",
            format=_BY_HEAD.get(head),
            metadata_errors="replace",
            container_options={
                "protocol_whitelist": "file",
                "format_whitelist": ",".join((*_CONTAINERS, *_STREAMS)),
            },
        )
    except av.ArgumentError as error:
        raise UnreadableError(
            f"{path}: cannot be read (not a video; read are {', '.join(_CONTAINERS)})"
        ) from error
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(f"{path}: cannot be read ({reason(error)})") from error


def _check_work(codec: str, packet: Packet[VideoStream]) -> None:
    """Refuse a JPEG that is small to send and long to decode.

    Raises:
        Misfit: if it is one.
    """
    if codec not in _OF_JPEG:
        return
    data = bytes(packet)
    # of the others there is one scan a component at most, and markers take time to read
    if _PROGRESSIVE in data and data.startswith(jpeg.STARTS[0]):
        with suppress(jpeg.UnknownError):  # FFmpeg says what is wrong with it
            jpeg.check_work(jpeg.describe(data))


def _waiting(stream: VideoStream) -> list[VideoFrame]:
    """The frames that wait in a decoder for their turn; it can begin anew then."""
    import av

    try:
        return stream.decode(None)
    except av.FFmpegError:
        return []
    finally:
        stream.codec_context.flush_buffers()


class _Thrift:
    """Lets the decoder leave out frames that nobody wants and no other is predicted from.

    Packets come in the order of decoding. A frame is not wanted if one that is shown before it has
    reached the same tick, and left out only if that one is known already.
    """

    def __init__(self, codec: VideoCodecContext, clock: _Clock, wanted: Wanted) -> None:
        self.codec, self.clock, self.wanted = codec, clock, wanted
        self.able = wanted.rate is not None and codec.name in _TELLING
        self.skips = False
        self.earliest: dict[int, float] = {}

    def consider(self, packet: Packet[VideoStream]) -> None:
        """Tell the decoder, ahead of a packet, whether its frame is needed."""
        if not self.able:
            return
        skip = False
        if self.clock.start is not None and packet.pts is not None:
            time = float(packet.pts * packet.time_base) - self.clock.start
            tick = self.wanted.tick(time)
            skip = self.clock.steady and self.earliest.get(tick, math.inf) < time
            self.earliest[tick] = min(self.earliest.get(tick, math.inf), time)
            if len(self.earliest) > 64:
                del self.earliest[next(iter(self.earliest))]
        if skip != self.skips:
            self.codec.skip_frame = "NONREF" if skip else "DEFAULT"
            self.skips = skip


class _Converter:
    """Makes images of decoded frames: RGB, or `L` of those without colour if these are wanted."""

    def __init__(self, threads: int, grey: bool) -> None:
        from av.video.reformatter import VideoReformatter

        self.threads, self.grey = threads, grey
        # kept: a new one for every frame takes longer than the conversion itself
        self.reformatter = VideoReformatter()
        self.levels: dict[tuple[object, ...], list[int] | None] = {}

    def __call__(self, frame: VideoFrame) -> Image.Image:
        size = frame.width, frame.height
        if self.grey and _is_grey(frame):
            key = (*size, frame.format.name, frame.color_range, frame.colorspace)
            if key not in self.levels:
                self.levels[key] = self._ask(frame)
            levels = self.levels[key]
            if levels is not None:
                return _image("L", size, frame.planes[0]).point(levels)
        return _image("RGB", size, self._rgb(frame).planes[0])

    def _rgb(self, frame: VideoFrame) -> VideoFrame:
        return self.reformatter.reformat(frame, format="rgb24", threads=self.threads)

    def _ask(self, like: VideoFrame) -> list[int] | None:
        """What the conversion makes of each of the 256 levels; None if that depends on where.

        FFmpeg rounds otherwise in pictures of an odd height, so it is asked in one like this.
        """
        import av

        height = min(like.height, 16 + like.height % 2)
        ramp = av.VideoFrame(like.width, height, like.format.name)
        ramp.color_range, ramp.colorspace = like.color_range, like.colorspace
        for plane in ramp.planes:
            plane.update(bytes([128]) * plane.buffer_size)
        shown = np.resize(np.arange(256, dtype=np.uint8), (height, like.width))
        first = ramp.planes[0]
        rows = np.zeros((height, first.line_size), np.uint8)
        rows[:, : like.width] = shown
        first.update(rows.tobytes())
        rgb = self._rgb(ramp).to_ndarray()
        levels = np.zeros(256, np.uint8)
        levels[shown] = rgb[..., 0]
        # too small a picture has not shown all
        even = shown.size >= 256 and (levels[shown][..., None] == rgb).all()
        return levels.tolist() if even else None


def _is_grey(frame: VideoFrame) -> bool:
    return (
        frame.format.name in _PLANAR
        and frame.planes[0].line_size > 0
        and all((_pixels(plane) == 128).all() for plane in frame.planes[1:])
    )


def _image(mode: str, size: tuple[int, int], plane: VideoPlane) -> Image.Image:
    # a plane is a buffer, which PyAV's stubs do not say
    pixels = cast("bytes", plane)
    return Image.frombuffer(mode, size, pixels, "raw", mode, plane.line_size, 1)


def _pixels(plane: VideoPlane) -> NDArray[np.uint8]:
    """Of a plane, uint8 (h, w), without the margin that its lines are padded with."""
    pixels = np.frombuffer(cast("bytes", plane), np.uint8, plane.height * plane.line_size)
    return pixels.reshape(plane.height, plane.line_size)[:, : plane.width]


class _Clock:
    """Seconds since the first frame; the frame rate stands in where a frame has no time."""

    def __init__(self, rate: Any) -> None:
        self.step = float(1 / rate) if rate else 1 / 25
        self.start: float | None = None
        self.last = -self.step
        self.steady = True

    def read(self, time: float | None) -> float:
        if time is not None and self.start is None:
            self.start = time - (self.last + self.step)
        now = self.last + self.step if time is None else time - (self.start or 0.0)
        # time stamps that run backwards would stop the sampling
        self.steady &= time is not None and now > self.last
        self.last = now if now > self.last else self.last + self.step
        return self.last


class _Matrix:
    """Where the display matrix has a step to the right go, across and down, and one downwards.

    It is the stream's, and read anew where the angle of a frame is another: a frame that has been
    asked for its side data refers to itself, and stays in memory until garbage is collected.

    Attributes:
        slanted: whether one of them turned by no right angle.
    """

    def __init__(self) -> None:
        self.angle: int | None = None
        self.matrix = (1, 0, 0, 1)
        self.slanted = False

    def __call__(self, frame: VideoFrame) -> tuple[int, int, int, int]:
        if frame.rotation != self.angle:
            self.angle, self.matrix = frame.rotation, self._read(frame)
        return self.matrix

    def _read(self, frame: VideoFrame) -> tuple[int, int, int, int]:
        data: Any = _side_data(frame).get("DISPLAYMATRIX")
        if data is None or data.buffer_size < 36:
            return (1, 0, 0, 1)
        a, b, _, c, d = np.frombuffer(data, np.int32, 5).tolist()
        self.slanted = min(abs(a) + abs(d), abs(b) + abs(c)) > 0
        return (a, b, c, d)


def _side_data(frame: VideoFrame) -> Any:
    """What comes with a frame, by name.

    FFmpeg knows more kinds than PyAV, which would raise an error at one that it has no name for, as
    the EXIF of a JPEG, and give none of them.
    """
    from av.sidedata.sidedata import Type

    def nameless(cls: Any, value: object) -> Any:
        kind = object.__new__(cls)
        kind._name_, kind._value_ = f"OTHER_{value}", value
        return kind

    with suppress(ValueError):
        return frame.side_data
    Type._missing_ = classmethod(nameless)  # type: ignore[assignment]
    return frame.side_data


def _turn(image: Image.Image, matrix: tuple[int, int, int, int]) -> Image.Image:
    """Show an image as its matrix asks: turned by right angles, mirrored, or both.

    Of what is turned by another angle, the nearest right one is taken.
    """
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):
        turns = {
            (True, False): Image.Transpose.FLIP_LEFT_RIGHT,
            (False, True): Image.Transpose.FLIP_TOP_BOTTOM,
            (True, True): Image.Transpose.ROTATE_180,
        }
        turn = turns.get((a < 0, d < 0))
    else:
        turn = {
            (False, False): Image.Transpose.TRANSPOSE,
            (True, True): Image.Transpose.TRANSVERSE,
            # to the right becomes down, and down becomes to the left: clockwise
            (False, True): Image.Transpose.ROTATE_270,
            (True, False): Image.Transpose.ROTATE_90,
        }[b < 0, c < 0]
    return image if turn is None else image.transpose(turn)
