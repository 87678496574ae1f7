"""Two thousand seeded mutations of real files, and hostile ones: each a clip or one clear error.

They are read in processes of their own that may take 2 GB more than they start with, and are ended
after 10 s, so that a crash or a hang is counted and not suffered.

    python -m pytest tests/ultrasound/test_fuzz.py -q -s
"""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
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
from numpy.typing import NDArray
from PIL import Image, ImageSequence
from pydicom import uid
from test_dicom import encode, make, make_encoded, make_rle, write

SECONDS = 10
BYTES = 2 * 2**30
READER = Path(__file__).with_name("reader.py")


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
        if not select.select([self.process.stdout], [], [], SECONDS)[0]:
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
    with av.open(str(source)) as whole, av.open(str(path), "w") as start:
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
        answer["of"], answer["path"] = seed.name, str(path)
        return answer

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, range(COUNTS[what])))
    outcomes = Counter(answer["outcome"] for answer in answers)
    columns = [outcomes[name] for name in ("clip", "damaged", "refused", "hung", "crashed")]
    longest = max(answer["seconds"] for answer in answers)
    most = max(answer["bytes"] for answer in answers) / 2**20
    cells = " | ".join(map(str, (what, kind, len(answers), *columns)))
    tally.append(f"| {cells} | {longest:.1f} s | {most:.0f} MB |")
    for answer in answers:
        check(answer)


def check(answer: dict[str, Any]) -> None:
    """A clip or one clear error."""
    assert answer["outcome"] in ("clip", "damaged", "refused"), answer
    assert not answer["stray"], answer
    if answer["outcome"] != "clip":
        assert answer["told"].startswith(answer["path"]), answer
        assert len(answer["told"].splitlines()) == 1, answer
        assert "MemoryError" not in answer["told"], answer
