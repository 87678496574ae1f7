"""What a header of DICOM may make the reader do, and what it says in the newer places."""

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_dicom import make, scene, write

from uscl_zoo.errors import UnreadableError
from uscl_zoo.ultrasound import read
from uscl_zoo.ultrasound.headers import expand_segments
from uscl_zoo.ultrasound.jpeg import Misfit
from uscl_zoo.ultrasound.reading import iterate


def shown(path: Path) -> tuple[np.ndarray[Any, Any], list[str]]:
    told: list[str] = []
    frames = [np.asarray(image) for _, image in iterate(path, on_damage=told.append)]
    return np.stack(frames), told


def with_element(path: Path, element: bytes) -> Path:
    """A file with one more element in front of group 28."""
    data = write(path, make(scene()[None])).read_bytes()
    at = data.index(b"\x28\0\x02\0")
    path.write_bytes(data[:at] + element + data[at:])
    return path


EMPTY, END = b"\xfe\xff\x00\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("what", ["open", "private", "many"])
def test_small_to_send_and_long_to_read(tmp_path: Path, what: str) -> None:
    element = {
        "open": b"\x18\0\x11\x60SQ\0\0\xff\xff\xff\xff" + EMPTY * 10**6 + END,
        "private": b"\x19\0\x10\0UN\0\0\xff\xff\xff\xff" + EMPTY * 10**6 + END,
        "many": b"".join(struct.pack("<HH", 0x19, 0x1000 + i) + b"LO\0\0" for i in range(60000)),
    }[what]
    begun = time.process_time()
    with pytest.raises(UnreadableError, match="more parts than any that is known"):
        list(iterate(with_element(tmp_path / "a.dcm", element)))
    # of a core, and not the minute that a million items take
    assert time.process_time() - begun < 10


def test_a_sequence_that_is_only_asked_about_is_passed_over(tmp_path: Path) -> None:
    sequence = EMPTY * 10**6
    begun = time.process_time()
    for tag in (b"\x18\0\x11\x60", b"\x18\0\x12\x60"):
        head = tag + b"SQ\0\0" + struct.pack("<I", len(sequence))
        path = with_element(tmp_path / "a.dcm", head + sequence)
        assert shown(path)[0].shape == (1, 48, 64, 3)
        assert read(path).facts.regions == ()
    assert time.process_time() - begun < 10


def palette(words: list[int], wide: bool) -> dict[str, Any]:
    tags: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTable"
        tags[f"{keyword}Descriptor"] = [256, 0, 16 if wide else 8]
        data = np.array(words, "<u2").tobytes() if wide else bytes(words)
        tags[f"Segmented{keyword}Data"] = data
    return tags


@pytest.mark.parametrize("wide", [False, True])
def test_palettes_in_segments(tmp_path: Path, wide: bool) -> None:
    top = 65535 if wide else 255
    dataset = make(scene()[None], "PALETTE COLOR", **palette([0, 1, 0, 1, 255, top], wide))
    frames, _ = shown(write(tmp_path / "a.dcm", dataset))
    assert np.array_equal(frames[0, ..., 1], scene())


def test_copies_of_segments() -> None:
    # the second segment again, from where the table is: places are in bytes
    assert expand_segments([0, 2, 5, 6, 1, 2, 10, 2, 1, 8, 0, 0], True) == [5, 6, 8, 10, 10, 10]
    assert expand_segments([0, 1, 5, 2, 1, 0, 0, 0, 0], False) == [5, 5]
    assert expand_segments([0, 1, 5, 2, 1, 0, 0, 0], True) == [5, 5]


@pytest.mark.parametrize(
    "words",
    [
        [0, 1, 0] + [1, 65535, 65535] * 2,
        [0, 1, 0, 1, 60000, 9] + [2, 2, 0, 0] * 300,
        [0, 1, 0, 2, 1, 6, 0],
        [0, 0, 0] * 10**6,
    ],
)
def test_palettes_without_end(tmp_path: Path, words: list[int]) -> None:
    with pytest.raises(Misfit):
        expand_segments(words, True)
    if len(words) < 2**13:
        dataset = make(scene()[None], "PALETTE COLOR", **palette(words, True))
        with pytest.raises(UnreadableError):
            list(iterate(write(tmp_path / "a.dcm", dataset)))


def group(window: tuple[float, float], slope: float = 1) -> Dataset:
    window_of, scale_of, whole = Dataset(), Dataset(), Dataset()
    window_of.WindowCenter, window_of.WindowWidth = window
    scale_of.RescaleSlope, scale_of.RescaleIntercept = slope, 0
    whole.FrameVOILUTSequence = Sequence([window_of])
    whole.PixelValueTransformationSequence = Sequence([scale_of])
    return whole


@pytest.mark.parametrize("place", ["Shared", "PerFrame"])
def test_windows_of_functional_groups(tmp_path: Path, place: str) -> None:
    frames = np.stack([scene(), scene()[::-1]]).astype(np.uint16) * 32
    dataset = make(frames)
    groups = [group((4096, 8192))] * (1 if place == "Shared" else 2)
    setattr(dataset, f"{place}FunctionalGroupsSequence", Sequence(groups))
    found, told = shown(write(tmp_path / "a.dcm", dataset))
    assert np.abs(found[..., 0].astype(int) - frames // 32).max() <= 1
    assert told == []


def test_scales_of_each_frame_are_said(tmp_path: Path) -> None:
    dataset = make(np.stack([scene(), scene()]).astype(np.uint16) * 256)
    groups = [group((32768, 65536), slope) for slope in (1, 2)]
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    _, (told,) = shown(write(tmp_path / "a.dcm", dataset))
    assert "its frames have scales of their own; all are shown by the first" in told


def test_a_slope_of_nothing(tmp_path: Path) -> None:
    dataset = make(scene()[None], RescaleSlope=0, RescaleIntercept=0)
    found, (told,) = shown(write(tmp_path / "a.dcm", dataset))
    assert np.array_equal(found[0, ..., 0], scene())
    assert "its RescaleSlope is 0" in told


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_planes_that_are_none(tmp_path: Path, planar: int, photometric: str) -> None:
    """Colours a plane each under a header that says a pixel each, and the reverse."""
    grey = scene()
    colour = np.stack([grey] * 3, 2)
    colour[10:20, 30:50, 2] = 20
    right = make(colour[None], photometric)
    expected, told = shown(write(tmp_path / "a.dcm", right))
    assert not told
    planes = colour if planar else np.moveaxis(colour, 2, 0)
    wrong = make(colour[None], photometric, PixelData=planes.tobytes(), PlanarConfiguration=planar)
    found, (note,) = shown(write(tmp_path / "b.dcm", wrong))
    assert np.array_equal(found, expected)
    assert "whatever the planar configuration says" in note


def test_the_syntax_of_ge_has_its_pixels_the_other_way_round(tmp_path: Path) -> None:
    frames = scene().astype(np.uint16)[None] * 256 + 3
    dataset = make(frames, PixelData=frames.astype(">u2").tobytes())
    path = write(tmp_path / "a.dcm", dataset)
    data = path.read_bytes()
    assert data.count(b"1.2.840.10008.1.2.1\0") == 1
    # no name that is shorter: implicit as it says
    implicit = make(frames, PixelData=frames.astype(">u2").tobytes())
    from pydicom.uid import ImplicitVRLittleEndian

    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit["PixelData"].VR = "OW"
    data = write(path, implicit).read_bytes()
    path.write_bytes(data.replace(b"1.2.840.10008.1.2\0", b"1.2.840.113619.5.2"))
    found, _ = shown(path)
    assert np.abs(found[0, ..., 0].astype(int) - scene()).max() <= 1
