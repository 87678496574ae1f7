"""What is missing of a video: packets that are damaged, and frames that a decoder lost or hides."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

# Of whose packets each is a picture by itself.
_ALONE = frozenset(
    {"mjpeg", "mjpegb", "png", "rawvideo", "huffyuv", "gif", "bmp", "jpeg2000", "tiff", "dvvideo"}
)
# Of whose packets each holds one frame, and those among them whose frames are evenly spaced but for
# those that are shown half a frame longer.
_EVEN = frozenset({"mpeg1video", "mpeg2video"})
_COUNTED = _EVEN | {"hevc"}
_WIDE, _RARELY = 1.9, 0.05

# Gaps that are listed one by one.
_TOLD = 5

# Behind each slice of FFV1: its size in three bytes, whether it was whole, its sum in four.
_TRAILER = 8
# Bits in the other order, in which FFV1 has its sums and zlib has not.
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# What sums begin with, and come to: of most streams, and of the latest.
_REMAINDERS = (0, 0x5E31029E)

# A frame that is predicted from one before and one behind it, and that others seldom are from.
_BOTH_WAYS = 3


class Gaps:
    """Where packets are damaged: from there to the next that is predicted from no other.

    Attributes:
        open: seconds of the last frame before the gap that has not ended yet.
        times: of those that have ended.
        waits: whether packets are left out until then.
    """

    def __init__(self, codec: str) -> None:
        self.alone = codec in _ALONE
        self.open: float | None = None
        self.times: list[float] = []
        self.waits = False
        self._spoilt = False

    @property
    def left_out(self) -> str:
        """The gaps that have ended, in words."""
        return in_words(self.times)

    def begin(self, time: float) -> None:
        """A packet is damaged, behind the frame of a time."""
        if self.open is None:
            self.open = time
        self.waits = not self.alone

    def skip(self, packet: Packet[VideoStream]) -> bool:
        """Whether a packet has to be left out, as it is predicted from one that was."""
        if self.waits and packet.is_keyframe and not packet.is_corrupt:
            self.waits = False
        return self.waits and packet.size > 0

    def hides(self, frame: VideoFrame, time: float) -> bool:
        """Whether a frame has damage that the decoder painted over, or is predicted from such.

        Args:
            frame: as decoded.
            time: of the frame before it.
        """
        if frame.is_corrupt:
            # of what nothing is predicted from, nothing else is spoilt
            self._spoilt = not (self.alone or int(frame.pict_type) == _BOTH_WAYS)
            if self.open is None:
                self.open = time
            return True
        self._spoilt = self._spoilt and not frame.key_frame
        return self._spoilt

    def end(self) -> None:
        """A frame could be decoded."""
        if self.open is not None and not self.waits:
            self.times.append(self.open)
            self.open = None


class Ledger:
    """Which frames should have come, by their packets and their times.

    FFmpeg loses pictures of some codecs without an error: those without slices, those that are
    predicted from what is not there, and those that no packet holds any more.
    """

    def __init__(self, codec: str) -> None:
        self.counts, self.even = codec in _COUNTED, codec in _EVEN
        self.times: list[float] = []
        self.due: dict[int, float] = {}
        self.lost: list[float] = []
        self.first: int | None = None

    def send(self, packet: Packet[VideoStream], skips: bool) -> None:
        """A packet is decoded; of some the decoder may leave the frame out."""
        if not self.counts or not packet.size or packet.pts is None:
            return
        time = float(packet.pts * packet.time_base)
        self.times.append(time)
        if not skips:
            self.due[packet.pts] = time

    def receive(self, frame: VideoFrame) -> None:
        """A frame was decoded."""
        if frame.pts is not None:
            self.due.pop(frame.pts, None)
            self.first = frame.pts if self.first is None else min(self.first, frame.pts)

    def forget(self) -> None:
        """What is due does not come, and why is known."""
        self.due.clear()

    def missing(self) -> list[float]:
        """Seconds from the first packet on, behind which frames are missing."""
        times = sorted(set(self.times))
        if len(times) < 3:
            return []
        steps = np.diff(times)
        step = float(np.median(steps))
        # what is shown before the first that can be decoded nobody misses
        lost = [t - step for pts, t in self.due.items() if self.first is None or pts > self.first]
        wide = np.flatnonzero(steps > _WIDE * step)
        if self.even and len(wide) <= _RARELY * len(times):
            lost += [times[place] for place in wide]
        return sorted(max(0.0, time - times[0]) for time in lost)


class Sums:
    """Whether packets of FFV1 are as they were written: each slice ends with a sum of itself.

    FFmpeg fills a slice whose sum is another from the frame before, and says so in its log alone.
    Streams of the first versions have no sums, and others may leave them out.
    """

    def __init__(self, codec: str) -> None:
        self.asked = codec == "ffv1"
        self.remainder: int | None = None

    def are_wrong(self, packet: Packet[VideoStream]) -> bool:
        """Whether a packet is another than was written."""
        if not self.asked or not packet.size:
            return False
        slices = _slices(bytes(packet))
        if self.remainder is None:
            # none has its sum by chance
            fit = (each for each in _REMAINDERS if any(_are_whole(slices, each)))
            self.remainder = next(fit, None)
        return self.remainder is not None and not (
            slices and all(_are_whole(slices, self.remainder))
        )


def _are_whole(slices: list[bytes], remainder: int) -> list[bool]:
    start = remainder ^ 0xFFFFFFFF
    return [zlib.crc32(each.translate(_MIRRORED), start) == start for each in slices]


def _slices(data: bytes) -> list[bytes]:
    """Each with what is behind it; none where they do not fill the packet."""
    slices = []
    end = len(data)
    while end >= _TRAILER:
        size = int.from_bytes(data[end - _TRAILER : end - 5], "big") + _TRAILER
        if size > end:
            return []
        slices.append(data[end - size : end])
        end -= size
    return [] if end else slices


def in_words(times: list[float]) -> str:
    """Some seconds, the first of them one by one."""
    some = ", ".join(f"{time:.1f} s" for time in times[:_TOLD])
    more = len(times) - _TOLD
    return f"{some} and {more} more times" if more > 0 else some
