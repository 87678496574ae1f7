"""Two thousand seeded mutations of real files, and hostile ones: each a clip or one clear error.

They are read in processes of their own that may take 2 GB more than they start with, and are ended
after 10 s of a core, so that a crash or a hang is counted and not suffered.

    USCL_ZOO_FULL=1 python -m pytest tests/ultrasound/test_fuzz.py -q -s

makes them all; without the variable it is a tenth of the mutations.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import select
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import av
import numpy as np
import pytest
from conftest import some
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from pydicom import Dataset, uid
from test_dicom import encode, make, make_encoded, make_rle, write

from uscl_zoo.errors import one_line
from uscl_zoo.ultrasound import images
from uscl_zoo.ultrasound.clip import MAX_PIXELS

SECONDS = 10
BYTES = 2 * 2**30
#: Of the largest square that is read.
SIDE = math.isqrt(MAX_PIXELS)
READER = Path(__file__).with_name("reader.py")


def _core_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


class Reader:
    """A process that reads files, started again when it does not answer."""

    process: subprocess.Popen[str] | None = None

    def ask(self, path: Path) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, str(READER), str(BYTES)]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            assert self.process.stdout is not None
            assert json.loads(self.process.stdout.readline()) == "ready"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(str(path)) + "\n")
        self.process.stdin.flush()
        spent, waited = _core_seconds(self.process.pid), 0
        while not select.select([self.process.stdout], [], [], 1)[0]:
            # tests beside this one may have the cores
            waited += 1
            if _core_seconds(self.process.pid) - spent > SECONDS or waited > 6 * SECONDS:
                self.close()
                return {"outcome": "hung", "told": "", "seconds": SECONDS, "bytes": 0}
        line = self.process.stdout.readline()
        if not line:
            told = f"exit status {self.process.wait()}"
            self.close()
            return {"outcome": "crashed", "told": told, "seconds": 0, "bytes": 0}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def readers() -> Iterator[SimpleQueue[Reader]]:
    """Two, for two cores."""
    readers = [Reader(), Reader()]
    free: SimpleQueue[Reader] = SimpleQueue()
    for reader in readers:
        free.put(reader)
    yield free
    for reader in readers:
        reader.close()


# ------------------------------------------------------------------------------------- real files


def _first_packets(source: Path, path: Path, count: int = 10) -> Path:
    """The beginning of a video as it is, not encoded again."""
    # the index first, where changes of the header find it
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(source)) as whole, av.open(str(path), "w", options=options) as start:
        stream = whole.streams.video[0]
        copy = start.add_stream_from_template(stream)
        for packet in islice(whole.demux(stream), count):
            packet.stream = copy
            start.mux(packet)
    return path


def _lossless_jpeg(frame: NDArray[np.uint8]) -> bytes:
    codec = av.CodecContext.create("ljpeg", "w")
    assert isinstance(codec, av.VideoCodecContext)
    codec.height, codec.width = frame.shape[:2]
    codec.pix_fmt, codec.options = "bgr24", {"strict": "-1"}
    codec.framerate = 1  # type: ignore[assignment]
    packets = [
        *codec.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr24")),
        *codec.encode(None),
    ]
    return b"".join(map(bytes, packets))


@pytest.fixture(scope="module")
def seeds(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Real files, small or cut down, and their pixels in what else is read."""
    folder, pocus = tmp_path_factory.mktemp("seeds"), data / "pocus"
    convex = pocus / "videos/convex"
    still = Image.open(pocus / "images/convex/Pneu_northumbria_0409_set6_img6.jpg").convert("RGB")
    grey = still.convert("L").resize((120, 100))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    stills = [
        pocus / "images/convex/Pneu_northumbria_0409_set6_img6.jpg",
        pocus / "images/convex/Pneu_emdocs_1.png",
        *sorted((data / "busi/malignant").glob("*[0-9].png"))[:2],
        *sorted((data / "busi/malignant").glob("*.jpg"))[:2],
    ]
    for name, image in [
        ("grey.bmp", grey),
        ("colour.bmp", still.resize((120, 100))),
        ("grey.tif", grey),
        ("deep.tif", deep),
        ("deep.png", deep),
        ("alpha.png", still.convert("RGBA").resize((120, 100))),
        ("colour.webp", still.resize((120, 100))),
    ]:
        image.save(folder / name)
        stills.append(folder / name)
    for name, options in [
        ("lzw.tif", "tiff_lzw"),
        ("jpeg.tif", "jpeg"),
        ("zip.tif", "tiff_adobe_deflate"),
    ]:
        still.resize((120, 100)).save(folder / name, compression=options)
        stills.append(folder / name)

    gif = Image.open(convex / "Cov-Atlas+(45).gif")
    first, *rest = (page.convert("RGB") for page in islice(ImageSequence.Iterator(gif), 5))
    animations = []
    for name in ("clip.gif", "clip.webp", "clip.png", "stack.tif"):
        first.save(folder / name, save_all=True, append_images=rest, duration=100)
        animations.append(folder / name)

    videos = [
        _first_packets(convex / source, folder / name)
        for source, name in [
            ("Reg_liftl_pneucase3_clip1.mp4", "h264.mp4"),
            ("Pneu_Avi_Video_004.mp4", "yuv444p.mp4"),
            ("Reg_northumbria_0409_set3_vid2.avi", "mpeg4.avi"),
            ("Reg_recommendations_alines_mov1.mov", "h264.mov"),
            ("Reg_pat1Image_133410.mpeg", "mpeg2.mpeg"),
            ("Reg_liftl_pneucase3_clip1.mp4", "h264.mkv"),
        ]
    ]
    mp4_inside = _first_packets(convex / "Reg_northumbria_1009_vid6.avi", folder / "inside.mp4")
    videos.append(mp4_inside.rename(folder / "mp4 inside.avi"))

    frames = np.stack([np.asarray(page.resize((96, 96))) for page in (first, *rest)][:3])
    rows = frames[..., 0].copy()
    jpegs = encode(frames, "JPEG", quality=90, subsampling=1)
    waves = encode(frames, "JPEG2000", irreversible=False, mct=1, no_jp2=True)
    lossless = [_lossless_jpeg(frame) for frame in frames]
    made = {
        "plain": make(rows, FrameTime=40),
        "implicit": make(frames, "RGB", uid.ImplicitVRLittleEndian),
        "big endian": make(rows.astype(np.uint16), syntax=uid.ExplicitVRBigEndian),
        "rle": make_rle(frames, "RGB"),
        "jpeg": make_encoded(frames, jpegs, "YBR_FULL_422", uid.JPEGBaseline8Bit),
        "jpeg lossless": make_encoded(frames, lossless, "RGB", uid.JPEGLosslessSV1),
        "jpeg 2000": make_encoded(frames, waves, "YBR_RCT", uid.JPEG2000Lossless),
    }
    dicom = [write(folder / f"{name}.dcm", dataset) for name, dataset in made.items()]
    names = ("color-pl", "OBXXXX1A_rle", "OBXXXX1A_rle_2frame", "OBXXXX1A_expb", "US1_J2KR")
    dicom += [data / "dicom" / f"{name}.dcm" for name in names]
    return {"still": stills, "animation": animations, "video": videos, "DICOM": dicom}


# -------------------------------------------------------------------------------------- mutations

Mutation = Callable[[bytearray, random.Random, bytes], None]


def flip_bits(data: bytearray, rng: random.Random, other: bytes) -> None:
    for _ in range(rng.choice((1, 4, 16, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def change_the_header(data: bytearray, rng: random.Random, other: bytes) -> None:
    for _ in range(rng.choice((1, 3, 9))):
        data[rng.randrange(min(len(data), 1500))] = rng.randrange(256)


def write_extremes(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Numbers that lengths, counts and offsets should not be."""
    for _ in range(rng.choice((1, 2, 4))):
        width = rng.choice((2, 4))
        number = rng.choice(
            (0, 1, 2 ** (8 * width - 1) - 1, 2 ** (8 * width - 1), 2 ** (8 * width) - 1)
        )
        at = rng.randrange(min(len(data), 4000) - width)
        data[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))


def blank_a_piece(data: bytearray, rng: random.Random, other: bytes) -> None:
    begin, length = _piece(data, rng)
    data[begin : begin + length] = bytes([rng.choice((0, 255))]) * length


def lose_a_piece(data: bytearray, rng: random.Random, other: bytes) -> None:
    begin, length = _piece(data, rng)
    del data[begin : begin + length]


def repeat_a_piece(data: bytearray, rng: random.Random, other: bytes) -> None:
    begin, length = _piece(data, rng)
    data[begin:begin] = data[begin : begin + length] * rng.choice((1, 2, 5))


def truncate(data: bytearray, rng: random.Random, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    """The beginning of one file and the end of another."""
    share = rng.random()
    data[int(share * len(data)) :] = other[int(share * len(other)) :]


def _piece(data: bytearray, rng: random.Random) -> tuple[int, int]:
    return rng.randrange(len(data)), int(len(data) ** rng.uniform(0.2, 0.9))


MUTATIONS: dict[str, Mutation] = {
    "bits flipped": flip_bits,
    "header changed": change_the_header,
    "extreme numbers": write_extremes,
    "piece blanked": blank_a_piece,
    "piece lost": lose_a_piece,
    "piece repeated": repeat_a_piece,
    "truncated": truncate,
    "two spliced": splice,
}
#: How many of each mutation.
COUNTS = {"still": 65, "animation": 35, "video": 75, "DICOM": 75}


def mutate(path: Path, others: list[Path], kind: str, index: int) -> bytes:
    rng = random.Random(f"{path.name}, {kind}, {index}")
    data = bytearray(path.read_bytes())
    MUTATIONS[kind](data, rng, rng.choice(others).read_bytes())
    return bytes(data)


@pytest.fixture(scope="module")
def tally() -> Iterator[list[str]]:
    """The table of docs/reliability.md, printed when all is done."""
    rows: list[str] = []
    yield rows
    print(
        "\n\n| what | mutation | made | clip | clip, damage told | refused | hung | crashed |",
        end="",
    )
    print(" longest | most memory |\n" + "| --- " * 10 + "|")
    print("\n".join(rows))


@pytest.fixture(scope="module")
def hostile() -> Iterator[list[str]]:
    """The other table there."""
    rows: list[str] = []
    yield rows
    print("\n\n| what | came to | seconds | memory |\n" + "| --- " * 4 + "|")
    print("\n".join(rows))


def test_two_thousand() -> None:
    assert sum(COUNTS.values()) * len(MUTATIONS) == 2000


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATIONS)
@pytest.mark.parametrize("what", COUNTS)
def test_mutations(
    what: str,
    kind: str,
    seeds: dict[str, list[Path]],
    readers: SimpleQueue[Reader],
    tally: list[str],
    tmp_path: Path,
) -> None:
    def ask(index: int) -> dict[str, Any]:
        seed = seeds[what][index % len(seeds[what])]
        path = tmp_path / f"{index:03}{seed.suffix}"
        path.write_bytes(mutate(seed, seeds[what], kind, index))
        reader = readers.get()
        try:
            answer = reader.ask(path)
        finally:
            readers.put(reader)
        return {**answer, "of": seed.name, "path": path}

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, some(COUNTS[what], list(MUTATIONS).index(kind))))
    outcomes = Counter(answer["outcome"] for answer in answers)
    columns = [outcomes[name] for name in ("clip", "damaged", "refused", "hung", "crashed")]
    longest = max(answer["seconds"] for answer in answers)
    most = max(answer["bytes"] for answer in answers) / 2**20
    cells = " | ".join(map(str, (what, kind, len(answers), *columns)))
    tally.append(f"| {cells} | {longest:.1f} s | {most:.0f} MB |")
    for answer in answers:
        check(answer, answer["path"])


def check(answer: dict[str, Any], path: Path) -> None:
    """A clip or one clear error."""
    assert answer["outcome"] in ("clip", "damaged", "refused"), answer
    assert not answer["stray"], answer
    if answer["outcome"] != "clip":
        assert answer["told"].startswith(f"{one_line(str(path))}: "), answer
        assert len(answer["told"].splitlines()) == 1, answer
        assert "MemoryError" not in answer["told"], answer


# ---------------------------------------------------------------------------------------- hostile


def _save(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("L", size).save(path)
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + name + data + checksum


def _png(path: Path, side: int, channels: int = 1, bits: int = 8, comment: bytes = b"") -> Path:
    """Black, written row by row."""
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = 2 * side.to_bytes(4, "big") + bytes([bits, colour, 0, 0, 0])
    pixels = _packed(bytes(1 + (side * channels * bits + 7) // 8), side)
    with path.open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header))
        if comment:
            stream.write(_chunk(b"zTXt", b"Comment\0\0" + comment))
        stream.write(_chunk(b"IDAT", pixels) + _chunk(b"IEND", b""))
    return path


def _packed(data: bytes, times: int) -> bytes:
    packer = zlib.compressobj()
    return b"".join(packer.compress(data) for _ in range(times)) + packer.flush()


def _tiff(path: Path, side: int) -> Path:
    """A picture of 8 x 8 that states more."""
    data = bytearray(_save(path).read_bytes())
    for tag in (256, 257):
        entry = data.index(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0\x08")
        data[entry + 8 : entry + 12] = side.to_bytes(4, "little")
    path.write_bytes(data)
    return path


def _webp(path: Path) -> Path:
    """A picture of 8 x 8 that states all that WebP can."""
    Image.new("RGB", (8, 8)).save(path, lossless=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = (0x0FFFFFFF | data[at + 3] >> 4 << 28).to_bytes(4, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("settings", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0"}])
def test_a_webp_states_its_canvas_before_it_is_decoded(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = tmp_path / "a.webp"
    Image.new("RGB", (321, 65)).save(path, **settings)
    assert images._canvas_of_webp(path.read_bytes()[:30]) == (321, 65)


def _gif(path: Path, size: tuple[int, int], frames: int) -> Path:
    """Frames of one pixel each on a canvas, to be shown over and over without end."""
    width, height = (side.to_bytes(2, "little") for side in size)
    head = b"GIF89a" + width + height + b"\x80\0\0\0\0\0\xff\xff\xff"
    forever = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    pixel = b"!\xf9\x04\0\x04\0\0\0," + bytes(4) + b"\1\0\1\0" + b"\0\x02\x02\x44\x01\0"
    path.write_bytes(head + forever + pixel * frames + b";")
    return path


def _avi(path: Path, count: int, **stated: int) -> Path:
    """Uncompressed video whose header states something else: `frames`, or a `side`."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = 64
        stream.pix_fmt = "bgr24"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), "bgr24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    if "frames" in stated:
        for at in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
            data[at : at + 4] = stated["frames"].to_bytes(4, "little")
    if "side" in stated:
        for at in (data.index(b"avih") + 8 + 32, data.index(b"strf") + 8 + 4):
            data[at : at + 8] = 2 * stated["side"].to_bytes(4, "little")
    path.write_bytes(data)
    return path


def _large(path: Path, side: int) -> Path:
    """A video of one frame."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = side
        stream.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((side, side), np.uint8), "gray")
        output.mux([*stream.encode(frame.reformat(format="yuvj420p")), *stream.encode(None)])
    return path


def _no_frames(path: Path) -> Path:
    """A film whose index names none."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        output.start_encoding()
    return path


def _dicom(path: Path, count: int = 1, side: int = 8, **tags: Any) -> Path:
    return write(path, make(np.zeros((count, side, side), np.uint8), **tags))


def _nan_spacing(path: Path) -> Path:
    region = Dataset()
    region.RegionSpatialFormat = region.RegionDataType = 1
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 7
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = math.nan
    dataset = make(np.zeros((1, 8, 8), np.uint8), SequenceOfUltrasoundRegions=[region])
    dataset.PixelSpacing = ["1.5555", "1.5555"]
    write(path, dataset)
    path.write_bytes(path.read_bytes().replace(b"1.5555", b"   NaN"))
    return path


def _dicom_jpeg_2000(path: Path) -> Path:
    """A header of 8 x 8 pixels, and a codestream that states 13,000 x 13,000."""
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    codestream = bytearray(encode(frames, "JPEG2000", no_jp2=True)[0])
    size = codestream.index(b"\xff\x51") + 6  # the picture, and in 16 bytes its tiles
    for at in (size, size + 16):
        codestream[at : at + 8] = 2 * (13_000).to_bytes(4, "big")
    return write(path, make_encoded(frames, [bytes(codestream)], "RGB", uid.JPEG2000Lossless))


def _dicom_rle(path: Path) -> Path:
    """Runs of zeros that unpack to more than is asked for."""
    runs = b"\x81\0" * 2**20
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    frames = np.zeros((1, 8, 8), np.uint8)
    return write(path, make_encoded(frames, [header + runs], "MONOCHROME2", uid.RLELossless))


def _deflated(path: Path) -> Path:
    return _dicom(path, syntax=uid.DeflatedExplicitVRLittleEndian, TextValue="0" * 2**20)


def _text(path: Path, head: bytes = b"") -> Path:
    path.write_bytes(head + b"Dear Sir, the pictures you asked for are on the disk.\n" * 20)
    return path


def _touch(path: Path) -> Path:
    path.touch()
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def _ring(path: Path) -> Path:
    path.symlink_to(path)
    return path


#: What it is: the file's name, what makes it, and what must come of it: frames or an error.
HOSTILE: dict[str, tuple[str, Callable[[Path], Path], int | str]] = {
    "PNG of 1 x 1": ("a.png", lambda path: _save(path, (1, 1)), 1),
    "JPEG of 1 x 1": ("a.jpg", lambda path: _save(path, (1, 1)), 1),
    "GIF of 1 x 1": ("a.gif", lambda path: _gif(path, (1, 1), 1), 1),
    "DICOM of 1 x 1": ("a.dcm", lambda path: _dicom(path, side=1), 1),
    "PNG of 20,000 x 20,000": (
        "a.png",
        lambda path: _png(path, 20_000, bits=1),
        "many more pixels",
    ),
    "TIFF of 20,000 x 20,000": ("a.tif", lambda path: _tiff(path, 20_000), "many more pixels"),
    "GIF of 20,000 x 20,000": (
        "a.gif",
        lambda path: _gif(path, (20_000,) * 2, 2),
        "more pixels than a file of its size",
    ),
    "AVI of 20,000 x 20,000": ("a.avi", lambda path: _avi(path, 3, side=20_000), "no frame"),
    "DICOM of 20,000 x 20,000": (
        "a.dcm",
        lambda path: _dicom(path, Rows=20_000, Columns=20_000),
        "20000 x 20000",
    ),
    "GIF of 0 frames": ("a.gif", lambda path: _gif(path, (8, 8), 0), "cannot be read"),
    "MP4 of 0 frames": ("a.mp4", _no_frames, "no frame|holds no video|cannot be read"),
    "DICOM of 0 frames": (
        "a.dcm",
        lambda path: _dicom(path, NumberOfFrames=0, PixelData=b""),
        "no frame can be decoded",
    ),
    "empty file": ("a.avi", _touch, "cannot be read"),
    "empty folder": ("a", _empty, "holds no images"),
    "AVI of 1 frame": ("a.avi", lambda path: _avi(path, 1), 1),
    "DICOM of 1 frame": ("a.dcm", _dicom, 1),
    "spacing that is NaN": ("a.dcm", _nan_spacing, 1),
    "AVI of 3 frames that states 10,000": ("a.avi", lambda path: _avi(path, 3, frames=10_000), 3),
    "DICOM of 3 frames that states 10,000": (
        "a.dcm",
        lambda path: _dicom(path, 3, NumberOfFrames=10_000, FrameTime=40),
        3,
    ),
    "bomb: PNG, 169 million pixels": ("a.png", lambda path: _png(path, 13_000), "13000 x 13000"),
    "bomb: PNG, as large as is read": ("a.png", lambda path: _png(path, SIDE, 4), 1),
    "bomb: PNG of 16 bits, as large as is read": ("a.png", lambda path: _png(path, SIDE, 1, 16), 1),
    "bomb: DICOM in colour, as large as is read": (
        "a.dcm",
        lambda path: write(path, make(np.zeros((1, SIDE, SIDE, 3), np.uint8), "YBR_FULL")),
        1,
    ),
    "bomb: DICOM of 16 bits, as large as is read": (
        "a.dcm",
        lambda path: write(path, make(np.zeros((1, SIDE, SIDE), np.uint16))),
        1,
    ),
    "bomb: AVI, as large as is read": ("a.avi", lambda path: _large(path, SIDE), 1),
    "bomb: AVI, larger": ("a.avi", lambda path: _large(path, SIDE + 8), "5800 x 5800"),
    "bomb: PNG with a gigabyte of text": (
        "a.png",
        lambda path: _png(path, 8, comment=_packed(bytes(2**20), 1024)),
        "cannot be read",
    ),
    "bomb: WebP, 268 million pixels": ("a.webp", _webp, "many more pixels"),
    "bomb: DICOM, JPEG 2000 of 169 million pixels": ("a.dcm", _dicom_jpeg_2000, "damaged"),
    "bomb: DICOM, RLE without end": ("a.dcm", _dicom_rle, "damaged"),
    "bomb: DICOM, deflated": ("a.dcm", _deflated, "deflated"),
    "endless GIF: shown over and over": ("a.gif", lambda path: _gif(path, (64, 64), 10), 10),
    "endless GIF: a million frames of a pixel": (
        "a.gif",
        lambda path: _gif(path, (640, 480), 10**6),
        "more pixels than a file of its size",
    ),
    "endless GIF: a million frames of 1 x 1": (
        "a.gif",
        lambda path: _gif(path, (1, 1), 10**6),
        "more pixels than a file of its size",
    ),
    "text named .dcm": ("a.dcm", _text, "not a DICOM file by its content"),
    "text named .dcm, DICM in its place": (
        "a.dcm",
        lambda path: _text(path, bytes(128) + b"DICM"),
        "header is damaged",
    ),
    "text named .mp4": ("a.mp4", _text, "cannot be read"),
    "text named .png": ("a.png", _text, "not an image"),
    "path with a newline, a still": ("a\nb.png", _save, 1),
    "path with a newline, a video": ("a\nb.avi", lambda path: _avi(path, 3), 3),
    "path with a newline, DICOM": ("a\nb.dcm", _dicom, 1),
    "path with a newline, nothing there": ("a\nb.dcm", lambda path: path, "no such file"),
    "path with a newline, text": ("a\nb.mp4", _text, "cannot be read"),
    "path too long": ("a" * 300 + ".png", lambda path: path, "cannot be read"),
    "path with a null": ("a\0.png", lambda path: path, "cannot be read"),
    "pipe": ("a.mp4", _pipe, "neither a file nor a folder"),
    "folder named .mp4": ("a.mp4", _empty, "holds no images"),
    "link to itself": ("a.mp4", _ring, "cannot be read|no such file"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(
    what: str, readers: SimpleQueue[Reader], hostile: list[str], tmp_path: Path
) -> None:
    name, build, expected = HOSTILE[what]
    path = build(tmp_path / name)
    reader = readers.get()
    try:
        answer = reader.ask(path)
    finally:
        readers.put(reader)
    said = answer["told"].removeprefix(f"{one_line(str(path))}: ")
    frames = answer.get("frames")
    outcome = f"clip of {frames:,}" if frames else answer["outcome"]
    told = f"{outcome}: {said}" if said else outcome
    memory = answer["bytes"] / 2**20
    hostile.append(f"| {what} | {told} | {answer['seconds']:.1f} s | {memory:.0f} MB |")
    check(answer, path)
    if isinstance(expected, int):
        assert answer["frames"] == expected, answer
        assert "nan" not in answer["facts"], answer
    else:
        assert answer["outcome"] == "refused", answer
        assert re.search(expected, answer["told"]), answer
