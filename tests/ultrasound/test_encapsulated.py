"""Frames are found whatever the offset table and the number of frames say."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import generate_frames
from test_dicom import make, make_rle, noise, scene, write
from test_jpeg import decode, encode, encode_lossless

from uscl_zoo.errors import UnreadableError
from uscl_zoo.ultrasound.reading import iterate, read

Pixels = NDArray[Any]

LEVELS = (40, 90, 140, 190)


def item(data: bytes) -> bytes:
    data += bytes(len(data) % 2)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def encapsulate(fragments: Sequence[bytes], table: Sequence[int] = ()) -> bytes:
    """Items as they are, with any table."""
    offsets = struct.pack(f"<{len(table)}I", *table)
    return b"".join(map(item, (offsets, *fragments)))


def offsets(fragments: Sequence[bytes]) -> list[int]:
    """Where each item is, counted from the first."""
    sizes = [8 + len(data) + len(data) % 2 for data in fragments]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def jpegs(levels: Sequence[int] = LEVELS) -> list[bytes]:
    return [encode(np.full((48, 64), level, np.uint8)) for level in levels]


def coded(kind: str) -> tuple[list[bytes], uid.UID]:
    """Four frames of their levels, of a kind."""
    flat = [np.full((48, 64), level, np.uint8) for level in LEVELS]
    if kind == "RLE":
        data = make_rle(np.stack(flat)).PixelData
        return list(generate_frames(data, number_of_frames=4)), uid.RLELossless
    if kind == "JPEG-lossless":
        return [encode_lossless([each]) for each in flat], uid.JPEGLosslessSV1
    return jpegs(), uid.JPEGBaseline8Bit


def cut(data: bytes, pieces: int) -> list[bytes]:
    size = -(-len(data) // pieces)
    size += size % 2
    return [data[i : i + size] for i in range(0, len(data), size)]


def levels(
    path: Path, data: bytes, stated: Any = 4, syntax: uid.UID = uid.JPEGBaseline8Bit, **tags: Any
) -> tuple[list[int], list[str]]:
    """The level of each frame that is read, and what was told."""
    dataset = make(noise(1, 48, 64), "MONOCHROME2", syntax, PixelData=data, **tags)
    if stated is None:
        del dataset.NumberOfFrames
    else:
        dataset.NumberOfFrames = stated
    told: list[str] = []
    frames = iterate(write(path, dataset), on_damage=told.append)
    found = [round(float(np.asarray(image).mean())) for _, image in frames]
    return found, [line.removeprefix(f"{path}: ") for line in told]


KINDS = ("JPEG", "JPEG-lossless", "RLE")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("stated", [None, 0, 1, 2, 4, 7])
def test_any_table_and_any_number(
    tmp_path: Path, kind: str, pieces: int, stated: int | None
) -> None:
    frames, syntax = coded(kind)
    fragments = [piece for frame in frames for piece in cut(frame, pieces)]
    assert len(fragments) == pieces * 4
    every = offsets(fragments)
    right = every[::pieces]
    tables: dict[str, list[int]] = {
        "empty": [],
        "right": right,
        "zeros": [0] * 4,
        "short": right[:2],
        "shifted": [offset + 2 for offset in right],
        "shifted by a fragment": [*every[1::pieces], every[-1] + 1000][:4],
        "falling": right[::-1],
        "of random numbers": [7, 1 << 30, 12],
        "of the first": [0],
    }
    for name, table in tables.items():
        path = tmp_path / "a.dcm"
        found, told = levels(path, encapsulate(fragments, table), stated, syntax)
        assert found == list(LEVELS), (name, told)
        wrong = name not in ("empty", "right")
        assert any("offset table" in line for line in told) == wrong, (name, told)
        several = any(line.startswith("4 frames are there") for line in told)
        assert several == (stated in (None, 0, 1, 2)), (name, told)
        cut_short = any("breaks off after 4 frames (its header promises 7)" in t for t in told)
        assert cut_short == (stated == 7), (name, told)


@pytest.mark.parametrize("stated", ["", "four", "-3", "1\\2"])
def test_a_number_that_is_none(tmp_path: Path, stated: str) -> None:
    path = tmp_path / "a.dcm"
    dataset = make(
        noise(1, 48, 64), "MONOCHROME2", uid.JPEGBaseline8Bit, PixelData=encapsulate(jpegs())
    )
    dataset.NumberOfFrames = 9999
    data = write(path, dataset).read_bytes()
    path.write_bytes(data.replace(b"9999", stated.encode().ljust(4)))
    told: list[str] = []
    assert len(list(iterate(path, on_damage=told.append))) == 4
    assert told == [f"{path}: 4 frames are there, its header does not say how many"]


def test_extended_offset_table(tmp_path: Path) -> None:
    fragments = [piece for frame in jpegs() for piece in cut(frame, 2)]
    right = offsets(fragments)[::2]
    for table, wrong in ((right, False), ([0] * 4, True), ([o + 8 for o in right], True)):
        found, told = levels(
            tmp_path / "a.dcm",
            encapsulate(fragments),
            ExtendedOffsetTable=struct.pack("<4Q", *table),
            ExtendedOffsetTableLengths=struct.pack("<4Q", 1, 2, 3, 4),
        )
        assert found == list(LEVELS)
        assert bool(told) == wrong


@pytest.mark.parametrize("size", [100, 333, 1000])
def test_fragments_that_end_anywhere(tmp_path: Path, size: int) -> None:
    """A stream of all frames, cut every so many bytes, or not at all."""
    whole = b"".join(jpegs())
    size += size % 2
    fragments = [whole[i : i + size] for i in range(0, len(whole), size)]
    for pieces in (fragments, [whole]):
        for stated in (None, 1, 4):
            found, _ = levels(tmp_path / "a.dcm", encapsulate(pieces), stated)
            assert found == list(LEVELS)


def test_without_a_table_and_without_items(tmp_path: Path) -> None:
    frames = jpegs()
    found, _ = levels(tmp_path / "a.dcm", b"".join(map(item, frames)))
    assert found == list(LEVELS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_broken_frame_is_lost_and_no_other(tmp_path: Path, kind: str, place: int) -> None:
    frames, syntax = coded(kind)
    rest = [level for i, level in enumerate(LEVELS) if i != place]
    size = len(frames[place])
    broken = {
        "blank": bytes(size),
        "without its head": bytes(20) + frames[place][20:],
        "its head only": frames[place][:30],
        "empty": b"",
    }
    for name, data in broken.items():
        changed = [*frames[:place], data, *frames[place + 1 :]]
        for table in ([], offsets(changed)):
            found, told = levels(
                tmp_path / "a.dcm", encapsulate(changed, table), 4, syntax, FrameTime=40
            )
            assert found == rest, (name, bool(table), told)
            assert any(f"frame {place + 1} of 4 damaged" in line for line in told), (name, told)


def test_a_broken_length_loses_one_frame(tmp_path: Path) -> None:
    fragments = jpegs()
    data = bytearray(encapsulate(fragments))
    at = 8 + offsets(fragments)[1] + 4
    for length in (0x7FFFFFFF, len(data) * 2):
        data[at : at + 4] = struct.pack("<I", length)
        found, told = levels(tmp_path / "a.dcm", bytes(data))
        assert found == list(LEVELS), told


def test_a_lost_frame_takes_its_time(tmp_path: Path) -> None:
    frames = jpegs()
    frames[1] = bytes(len(frames[1]))
    dataset = make(noise(4, 48, 64), "MONOCHROME2", uid.JPEGBaseline8Bit, FrameTime=40)
    dataset.PixelData = encapsulate(frames)
    path = write(tmp_path / "a.dcm", dataset)
    times = [time for time, _ in iterate(path, on_damage=lambda line: None)]
    assert times == pytest.approx([0, 0.08, 0.12])


def test_native_frames_are_counted_by_their_length(tmp_path: Path) -> None:
    frames = noise(4, 48, 64)
    for stated in (None, 0, 1, 2, 4):
        found, told = levels(
            tmp_path / "a.dcm", frames.tobytes(), stated, uid.ExplicitVRLittleEndian
        )
        assert len(found) == 4
        assert bool(told) == (stated != 4)


def test_what_is_said_of_the_rate_counts_the_frames_found(tmp_path: Path) -> None:
    dataset = make(noise(4, 48, 64), FrameTime=40)
    del dataset.NumberOfFrames
    path = write(tmp_path / "a.dcm", dataset)
    with pytest.warns(UserWarning, match="4 frames are there"):
        assert read(path).facts.frame_rate == 25


def test_items_under_a_syntax_that_has_none(tmp_path: Path) -> None:
    declared = uid.ExplicitVRLittleEndian
    dataset = make(noise(4, 48, 64), "MONOCHROME2", uid.JPEGBaseline8Bit)
    dataset.PixelData = encapsulate(jpegs())
    path = write(tmp_path / "a.dcm", dataset)
    data = path.read_bytes()
    said, other = uid.JPEGBaseline8Bit.encode(), declared.encode()
    path.write_bytes(data.replace(said, other.ljust(len(said), b"\0")))
    told: list[str] = []
    assert len(list(iterate(path, on_damage=told.append))) == 4
    assert "its frames are JPEG, the transfer syntax says not compressed" in told[0]


@settings(deadline=None, max_examples=60)
@given(drawn=st.data())
def test_property(tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject) -> None:
    """However frames are cut and whatever a table holds, all whole frames are read, in order."""
    pieces = drawn.draw(st.lists(st.integers(1, 5), min_size=4, max_size=4))
    fragments = [part for frame, n in zip(jpegs(), pieces, strict=True) for part in cut(frame, n)]
    numbers = st.integers(0, 2**32 - 1) | st.sampled_from(offsets(fragments))
    table = drawn.draw(st.lists(numbers, max_size=8))
    stated = drawn.draw(st.none() | st.integers(0, 9))
    path = tmp_path_factory.mktemp("property") / "a.dcm"
    found, _ = levels(path, encapsulate(fragments, table), stated)
    assert found == list(LEVELS)


def test_nothing_there(tmp_path: Path) -> None:
    for data in (encapsulate([]), encapsulate([b"", b""])):
        with pytest.raises(UnreadableError, match="no frame can be decoded"):
            levels(tmp_path / "a.dcm", data)


def test_a_thumbnail_in_a_frame_is_no_frame(tmp_path: Path) -> None:
    """An APP segment may hold a whole JPEG."""
    small = encode(np.full((8, 8), 200, np.uint8))
    frames = [
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small + data[2:]
        for data in jpegs()
    ]
    for stated in (None, 4):
        found, _ = levels(tmp_path / "a.dcm", encapsulate(frames), stated)
        assert found == list(LEVELS)


def test_colour_is_that_of_each_frame(tmp_path: Path) -> None:
    data = encode(scene(3))
    dataset = make(noise(2, 48, 64, 3), "YBR_FULL_422", uid.JPEGBaseline8Bit)
    dataset.PixelData = encapsulate([data, encode(scene())])
    path = write(tmp_path / "a.dcm", dataset)
    told: list[str] = []
    first, second = (np.asarray(image) for _, image in iterate(path, on_damage=told.append))
    assert np.array_equal(first, decode(data))
    assert np.array_equal(second, decode(encode(scene())))
    assert len(told) == 1


def test_rle_under_another_syntax(tmp_path: Path) -> None:
    frames, _ = coded("RLE")
    found, told = levels(tmp_path / "a.dcm", encapsulate(frames), 4, uid.JPEG2000Lossless)
    assert found == list(LEVELS)
    assert told == ["its frames are RLE, the transfer syntax says JPEG 2000"]


def test_items_of_frames_that_are_not_compressed(tmp_path: Path) -> None:
    frames = [np.full((48, 64), level, np.uint8).tobytes() for level in LEVELS]
    syntax = uid.UID("1.2.840.10008.1.2.1.98")
    found, told = levels(tmp_path / "a.dcm", encapsulate(frames), 4, syntax)
    assert found == list(LEVELS)
    assert not told


def test_a_header_that_says_nothing_of_colours(tmp_path: Path) -> None:
    dataset = make(noise(1, 48, 64, 3), "RGB", uid.JPEGBaseline8Bit)
    del dataset.PhotometricInterpretation
    data = encode(scene(3))
    dataset.PixelData = encapsulate([data])
    path = write(tmp_path / "a.dcm", dataset)
    told: list[str] = []
    ((_, image),) = iterate(path, on_damage=told.append)
    assert np.array_equal(np.asarray(image), decode(data))
    assert told[0] == f"{path}: its header does not say what its samples are"
