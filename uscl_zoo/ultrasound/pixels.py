"""Frames of DICOM as they are stored, decoded to samples: by pydicom, Pillow and FFmpeg."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import jpeg
from .clip import MAX_PIXELS
from .encapsulated import begins
from .jpeg import Misfit, Stream

if TYPE_CHECKING:
    from pydicom.uid import UID


#: Frames that are not compressed, in items all the same; pydicom 3.0 does not know it.
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"


class NoDecoderError(Exception):
    """Nothing that is installed decodes such a stream; the message says what would."""


@dataclass(frozen=True)
class Stated:
    """What the header says of every frame.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        samples: a pixel.
        photometric: interpretation, in capitals.
        allocated: bits a sample takes.
        stored: bits of it that count.
        high_bit: the uppermost of them.
        signed: whether samples are.
        planar: whether each colour has a plane of its own.
    """

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    planar: bool

    @property
    def length(self) -> int:
        """Bytes of a frame that is not compressed."""
        return self.rows * self.columns * self.samples * self.allocated // 8


class Picture(NamedTuple):
    """A decoded frame.

    Attributes:
        samples: integers, (h, w) or (h, w, 3).
        colours: `grey`, `RGB` or `YBR`.
        bits: that count of each sample; None where samples fill what the header allocates, and
            which of its bits count is still to be determined.
        signed: whether samples below zero have come out as such.
        note: one line if the frame is not what the header says.
    """

    samples: NDArray[Any]
    colours: str
    bits: int | None
    signed: bool = False
    note: str | None = None


def of_native(data: bytes, stated: Stated, big_endian: bool, halved: bool) -> Picture:
    """A frame that is not compressed.

    Args:
        data: its bytes.
        stated: what the header says of it.
        big_endian: the order of bytes in samples of 16 bits.
        halved: whether two neighbours share their colour (4:2:2).
    """
    from pydicom.pixels.utils import expand_ybr422

    if halved:
        data = expand_ybr422(data, stated.allocated)
    if len(data) < stated.length:
        raise Misfit("it is cut off")
    order = ">" if big_endian else "<"
    flat = np.frombuffer(
        data, f"{order}u{stated.allocated // 8}", stated.length * 8 // stated.allocated
    )
    samples = _arrange(flat, stated, stated.planar and not halved)
    return Picture(samples, _by_header(stated), None)


def of_stream(data: bytes, stated: Stated, syntax: UID) -> Picture:
    """A frame that is compressed, by whatever its stream is, or else by the transfer syntax.

    Raises:
        Misfit: if it is not what the header says.
        NoDecoderError: if nothing installed decodes it.
    """
    from pydicom import uid

    if data.startswith(jpeg.STARTS):
        return _of_jpeg(data, stated, syntax)
    if syntax == uid.RLELossless:
        return _of_rle(data, stated)
    if begins(data[:64]):
        name = _kind(syntax) or "otherwise"
        note = f"its frames are RLE, the transfer syntax says {name}"
        return _of_rle(data, stated)._replace(note=note)
    if not _is_native(syntax):
        raise Misfit("its stream is of no kind that is known")
    return of_native(data, stated, big_endian=False, halved=False)


def _is_native(syntax: UID) -> bool:
    return not syntax.is_encapsulated or syntax == ENCAPSULATED_UNCOMPRESSED


def _by_header(stated: Stated) -> str:
    if stated.samples == 1:
        return "grey"
    return "YBR" if stated.photometric in ("YBR_FULL", "YBR_FULL_422") else "RGB"


def _arrange(flat: NDArray[Any], stated: Stated, planar: bool) -> NDArray[Any]:
    if stated.samples == 1:
        return flat.reshape(stated.rows, stated.columns)
    if planar:
        return flat.reshape(3, stated.rows, stated.columns).transpose(1, 2, 0)
    return flat.reshape(stated.rows, stated.columns, 3)


def _of_rle(data: bytes, stated: Stated) -> Picture:
    from pydicom import uid

    # at its worst, of one column, it takes twice as much, and its table 64 bytes
    if len(data) > 2 * stated.length + 128:
        raise Misfit("it holds more than the header says")
    if int.from_bytes(data[:4], "little") != stated.samples * stated.allocated // 8:
        raise Misfit("its stream is not what the header says")
    samples = _by_pydicom(
        data, uid.RLELossless, "pydicom", stated.allocated, stated.samples, stated
    )
    return Picture(samples, _by_header(stated), None)


def _by_pydicom(
    data: bytes,
    syntax: UID,
    plugin: str,
    bits: int,
    samples: int,
    stated: Stated,
    signed: bool = False,
) -> NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    # its options are annotated as one mapping
    decoder: Any = get_decoder(syntax)
    decoded, _ = decoder.as_array(
        encapsulate([data]),
        raw=True,
        decoding_plugin=plugin,
        rows=stated.rows,
        columns=stated.columns,
        samples_per_pixel=samples,
        # as it is stored: what colours are is decided elsewhere
        photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
        planar_configuration=0,
        bits_allocated=8 if bits <= 8 else 16,
        bits_stored=bits,
        pixel_representation=int(signed),
        number_of_frames=1,
        pixel_keyword="PixelData",
    )
    return np.asarray(decoded)


def _of_jpeg(data: bytes, stated: Stated, syntax: UID) -> Picture:
    stream = jpeg.describe(data)
    if (stream.height, stream.width) != (stated.rows, stated.columns):
        raise Misfit(
            f"its stream has {stream.width} x {stream.height} pixels, "
            f"the header {stated.columns} x {stated.rows}"
        )
    if stream.components not in (1, 3):
        raise Misfit(f"its stream has {stream.components} components")
    jpeg.check_work(stream)
    notes = []
    if (wanted := _kind(syntax)) and wanted != stream.kind:
        notes.append(f"its frames are {stream.kind}, the transfer syntax says {wanted}")
    if stream.components != stated.samples:
        notes.append(
            f"its frames are {'grey' if stream.components == 1 else 'in colour'}, "
            f"the header says {stated.samples} samples a pixel"
        )
    colours = "grey"
    if stream.components == 3:
        colours, other = jpeg.colours(stream, stated.photometric)
        if other:
            name = "YCbCr" if colours == "YBR" else "RGB"
            notes.append(f"its frames are {name}, whatever the photometric interpretation says")
    if stream.bits < stated.stored:
        notes.append(f"its frames have {stream.bits} bits, the header says {stated.stored}")
    samples, colours = _decode(data, stream, colours, stated)
    return Picture(
        samples,
        colours,
        # a stream of all that is allocated may hold bits that do not count
        None if stream.bits == stated.allocated > stated.stored else stream.bits,
        stream.signed,
        "; ".join(notes) or None,
    )


def _kind(syntax: UID) -> str | None:
    from pydicom import uid

    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        return "JPEG-lossless"
    if syntax in uid.JPEGLSTransferSyntaxes:
        return "JPEG-LS"
    if syntax in (*uid.JPEG2000TransferSyntaxes, *_high_throughput()):
        return "JPEG 2000"
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit):
        return "JPEG"
    if syntax == uid.RLELossless:
        return "RLE"
    return "not compressed" if _is_native(syntax) else None


def _high_throughput() -> tuple[UID, ...]:
    from pydicom import uid

    return (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)


def _decode(data: bytes, stream: Stream, colours: str, stated: Stated) -> tuple[NDArray[Any], str]:
    """Samples, and what their colours are then: some decoders convert them."""
    if stream.kind == "JPEG 2000":
        return _decode_jpeg_2000(data, stream, colours, stated)
    if stream.kind == "JPEG-lossless":
        return _decode_lossless(data, stream, stated), colours
    if stream.kind == "JPEG-LS":
        return _decode_jpeg_ls(data, stream, stated), colours
    if stream.bits != 8:
        return _by_plugin(data, "JPEGExtended12Bit", stream, stated), colours
    if colours != "grey":
        data, colours = jpeg.mark(data, colours), "RGB"
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image), colours


def _decode_jpeg_2000(
    data: bytes, stream: Stream, colours: str, stated: Stated
) -> tuple[NDArray[Any], str]:
    from pydicom import uid

    if stream.wide or (stream.components == 3 and stream.bits > 8):
        return _by_plugin(data, "HTJ2K" if stream.wide else "JPEG2000", stream, stated), colours
    if stream.subsampled or stream.luma_chroma:
        # Pillow converts these by itself
        with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as image:
            return np.asarray(image.convert("RGB")), "RGB"
    samples = _by_pydicom(
        data, uid.JPEG2000, "pillow", stream.bits, stream.components, stated, stream.signed
    )
    return samples, colours


def _decode_lossless(data: bytes, stream: Stream, stated: Stated) -> NDArray[Any]:
    # of 16 bits FFmpeg misreads differences of 32,768
    if not (stream.wide and stream.bits == 16) and importlib.util.find_spec("av"):
        return _by_ffmpeg(data, "mjpeg", stream)
    return _by_plugin(data, "JPEGLossless", stream, stated)


def _decode_jpeg_ls(data: bytes, stream: Stream, stated: Stated) -> NDArray[Any]:
    try:
        return _by_plugin(data, "JPEGLSLossless", stream, stated)
    except NoDecoderError:
        if not importlib.util.find_spec("av"):
            raise
        import av

        try:
            return _by_ffmpeg(data, "jpegls", stream)
        except av.PatchWelcomeError:
            pass  # in colour it knows some ways of coding only
        raise


def _by_ffmpeg(data: bytes, codec: str, stream: Stream) -> NDArray[Any]:
    import av

    context: Any = av.CodecContext.create(codec, "r")
    context.options = {"err_detect": "explode", "max_pixels": str(2 * MAX_PIXELS)}
    frames: list[Any] = list(context.decode(av.Packet(data)))
    frames += context.decode(None)
    (frame,) = frames
    shape = (stream.height, stream.width, *([3] if stream.components == 3 else []))
    if stream.subsampled:
        pixels: NDArray[Any] = frame.reformat(format="yuvj444p").to_ndarray().transpose(1, 2, 0)
    else:
        pixels = frame.to_ndarray()
    if pixels.shape != shape:
        raise Misfit("its stream is damaged")
    if frame.format.name in ("gray", "gray16le", "gray16be"):
        # FFmpeg moves fewer bits up
        moved: NDArray[Any] = pixels >> (pixels.dtype.itemsize * 8 - stream.bits)
        return moved
    # of JPEG-lossless it calls three samples blue, green and red, whatever they are
    return pixels[..., ::-1] if frame.format.name.startswith("bgr") else pixels


def _by_plugin(data: bytes, syntax: str, stream: Stream, stated: Stated) -> NDArray[Any]:
    """By a plug-in of pydicom that does not come with the extra.

    Not GDCM, though pydicom would: it ends the interpreter on some damaged JPEGs.
    """
    from pydicom import uid
    from pydicom.pixels.decoders.base import get_decoder

    own: UID = getattr(uid, syntax)
    plugin = next(
        (p for p in ("pylibjpeg", "pyjpegls") if p in get_decoder(own).available_plugins), None
    )
    if plugin is None:
        wanted = {
            "JPEGLSLossless": "pyjpegls",
            "JPEG2000": "pylibjpeg pylibjpeg-openjpeg",
            "HTJ2K": "pylibjpeg pylibjpeg-openjpeg",
        }.get(syntax, "pylibjpeg pylibjpeg-libjpeg")
        if syntax == "JPEGLossless" and not (stream.wide and stream.bits == 16):
            wanted = "'uscl-zoo[dicom]'"
        name = f"{stream.kind} of {stream.bits} bits"
        raise NoDecoderError(
            f"no decoder for its pixels ({name}); install one by: pip install {wanted}"
        )
    return _by_pydicom(data, own, plugin, stream.bits, stream.components, stated, stream.signed)
