"""DICOM: `ultrasound.reading` against pydicom's own decoding of whole files, and against pixels
known because the test wrote them."""

import base64
import gc
import io
import math
import pickle
import shutil
import sys
import traceback
import types
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import datadict, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.pixels.utils import compress, expand_ybr422

from uscl_zoo.embedding.extraction import embed
from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError
from uscl_zoo.ultrasound import Facts, Region
from uscl_zoo.ultrasound import read as open_clip
from uscl_zoo.ultrasound.reading import DamageWarning, find, iterate, sample
from uscl_zoo.zoo.card import Card

Pixels = NDArray[Any]

#: Of nobody: what must not come out again.
PERSON = {
    "PatientName": "Quorndon^Zephyrine",
    "PatientID": "PID-4711-X",
    "PatientBirthDate": "19330417",
    "OtherPatientNames": "Brackenbury",
    "InstitutionName": "Hospital of Nowhere",
}
SECRETS = ("Quorndon", "Zephyrine", "4711", "19330417", "Brackenbury", "Nowhere")


def noise(*shape: int, high: int = 256, dtype: Any = np.uint8) -> Pixels:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def scene(*shape: int) -> Pixels:
    """Smooth, so that lossy codecs keep it."""
    y, x = np.mgrid[0:48, 0:64]
    grey = 120 + 60 * np.sin(x / 12) + 50 * np.cos(y / 9)
    return np.broadcast_to(
        grey.astype(np.uint8).reshape(48, 64, *[1] * len(shape)), (48, 64, *shape)
    )


def make(
    frames: Pixels,
    photometric: str = "MONOCHROME2",
    syntax: uid.UID = uid.ExplicitVRLittleEndian,
    **tags: Any,
) -> Dataset:
    """A dataset of uncompressed frames (T, H, W) or (T, H, W, 3); `tags` add to it and override."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID("1.2.826.0.1.47")
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    colour = frames.ndim == 4
    bits = 8 * frames.dtype.itemsize
    signed = int(frames.dtype.kind == "i")
    order: Literal["<", ">"] = "<" if syntax.is_little_endian else ">"
    values: dict[str, Any] = {
        "NumberOfFrames": len(frames),
        "Rows": frames.shape[1],
        "Columns": frames.shape[2],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": photometric,
        "PixelRepresentation": signed,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelData": frames.astype(frames.dtype.newbyteorder(order)).tobytes(),
    }
    if colour:
        values["PlanarConfiguration"] = 0
    for keyword, value in (PERSON | values | tags).items():
        setattr(dataset, keyword, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset["PixelData"].VR = "OB" if bits == 8 or syntax.is_encapsulated else "OW"
    return dataset


def write(path: Path, dataset: Dataset) -> Path:
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def encode(frames: Pixels, kind: str, **options: Any) -> list[bytes]:
    encoded = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, kind, **options)
        encoded.append(stream.getvalue())
    return encoded


def make_encoded(
    frames: Pixels, encoded: list[bytes], photometric: str, syntax: uid.UID, **tags: Any
) -> Dataset:
    has_bot = tags.pop("has_bot", True)
    data = encapsulate(encoded, has_bot=has_bot)
    return make(frames, photometric, syntax, PixelData=data, **tags)


def make_rle(frames: Pixels, photometric: str = "MONOCHROME2", **tags: Any) -> Dataset:
    dataset = make(frames, photometric)
    compress(dataset, uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def pattern(*shape: int) -> Pixels:
    return (np.arange(math.prod(shape)) * 7919 % 256).reshape(shape).astype(np.uint8)


#: JPEG-lossless (process 14, first-order prediction) as GDCM 3.2.6 encodes `pattern`.
LOSSLESS = {
    "grey": (
        "/9j/wwALCAAEAAYBAREA/8QAFgABAQEAAAAAAAAAAAAAAAAABQgH/9oACAEBAAEAAJ/u84446mjjjjjs"
        "ZOOOu86mjjjjjv/Z"
    ),
    "RGB": (
        "/9j/7gAOQWRvYmUAZAAAAAAA/8MAEQgABAAGA1IRAEcRAEIRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAYI"
        "B//aAAwDUgBHAEIAAQAAn/b9es0YMGDBgwYMGDBgyzbNs4aNGDBgwYMGDBgyzbNs0YMGjRowYMGDBgyz"
        "bNs0YMGDBg0aNGDBgyzbNs0YMGDBgwYM/9k="
    ),
    "YBR_FULL": (
        "/9j/wwARCAAEAAYDAREAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAABgj/xAAWAQEBAQAAAAAAAAAA"
        "AAAAAAAGCAf/2gAMAwEAAhEDEQEAAJ/2/XrNGDBgwYMGDBgwYMs2zbOGjRgwYMGDBgwYMs2zbNGDBo0a"
        "MGDBgwYMs2zbNGDBgwYNGjRgwYMs2zbNGDBgwYMGDP/ZAA=="
    ),
}


def lossless(kind: str) -> tuple[Pixels, Dataset]:
    """The pixels before, and a dataset of two frames of them."""
    shape = (1, 4, 6, 3) if kind in ("RGB", "YBR_FULL") else (1, 4, 6)
    frames = np.concatenate([pattern(*shape)] * 2)
    photometric = kind if len(shape) == 4 else "MONOCHROME2"
    encoded = [base64.b64decode(LOSSLESS[kind])] * 2
    dataset = make_encoded(frames, encoded, photometric, uid.JPEGLosslessSV1)
    return frames, dataset


def read(path: Path) -> Pixels:
    """(T, H, W, 3), and not a warning on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.stack([np.asarray(image) for _, image in iterate(path)])


def as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=-1)


def reference(path: Path, dataset: Dataset | None = None) -> Pixels:
    """What pydicom decodes at once, as RGB of 8 bits."""
    dataset = dataset or pydicom.dcmread(path)
    pixels = dataset.pixel_array
    if dataset.get("NumberOfFrames", 1) == 1:
        pixels = pixels[None]
    if dataset.PhotometricInterpretation != "PALETTE COLOR":
        return pixels if pixels.ndim == 4 else as_rgb(pixels)
    order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
    tables = [
        np.frombuffer(dataset[f"{colour}PaletteColorLookupTableData"].value, f"{order}u2") >> 8
        for colour in ("Red", "Green", "Blue")
    ]
    return np.stack([table[pixels] for table in tables], axis=-1)


class TestSharedData:
    def test_pixel_by_pixel(self, data: Path) -> None:
        paths = find(data / "dicom")
        assert len(paths) == 11
        for path in paths:
            ours, theirs = read(path), reference(path)
            assert ours.shape == theirs.shape
            assert np.array_equal(ours, theirs), path

    @pytest.mark.parametrize(
        "names",
        [
            ["OBXXXX1A.dcm", "OBXXXX1A_expb.dcm", "OBXXXX1A_rle.dcm"],
            ["OBXXXX1A_2frame.dcm", "OBXXXX1A_expb_2frame.dcm", "OBXXXX1A_rle_2frame.dcm"],
            ["US1_UNCR.dcm", "US1_J2KR.dcm"],
            ["color-px.dcm", "color-pl.dcm"],
        ],
    )
    def test_one_picture_in_several_encodings(self, data: Path, names: list[str]) -> None:
        first, *others = (read(data / "dicom" / name) for name in names)
        assert first.std() > 10
        for other in others:
            assert np.array_equal(first, other)


class TestEncodings:
    @pytest.mark.parametrize(
        "syntax",
        [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian],
    )
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
    def test_uncompressed_grey(self, tmp_path: Path, syntax: uid.UID, dtype: Any) -> None:
        frames = noise(3, 9, 7, high=256 ** np.dtype(dtype).itemsize, dtype=dtype)
        low = np.iinfo(dtype).min
        path = write(tmp_path / "a.dcm", make(frames, syntax=syntax))
        span = np.iinfo(dtype).max - low
        expected = np.rint((frames.astype(float) - low) / span * 255)
        assert np.array_equal(read(path), as_rgb(expected))

    @pytest.mark.parametrize("bits", [5, 10, 12])
    def test_by_the_bits_stored(self, tmp_path: Path, bits: int) -> None:
        frames = noise(2, 8, 8, high=2**bits, dtype=np.uint16)
        path = write(tmp_path / "a.dcm", make(frames, BitsStored=bits))
        expected = np.rint(frames.astype(float) / (2**bits - 1) * 255)
        assert np.array_equal(read(path), as_rgb(expected))

    @pytest.mark.parametrize("planar", [0, 1])
    @pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
    def test_uncompressed_rgb(self, tmp_path: Path, planar: int, syntax: uid.UID) -> None:
        frames = noise(3, 8, 6, 3)
        stored = frames.transpose(0, 3, 1, 2) if planar else frames
        dataset = make(
            frames, "RGB", syntax, PlanarConfiguration=planar, PixelData=stored.tobytes()
        )
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), frames)

    def test_ybr_full(self, tmp_path: Path) -> None:
        frames = noise(2, 8, 6, 3)
        path = write(tmp_path / "a.dcm", make(frames, "YBR_FULL"))
        assert np.array_equal(read(path), convert_color_space(frames, "YBR_FULL", "RGB"))
        # and against another library: both round
        theirs = Image.fromarray(frames[1], "YCbCr").convert("RGB")
        assert np.abs(read(path)[1].astype(int) - np.asarray(theirs)).max() <= 2

    def test_ybr_full_422(self, tmp_path: Path) -> None:
        # two luminances, then the colour they share
        stored = noise(5, 8, 3, 4)
        dataset = make(noise(5, 8, 6, 3), "YBR_FULL_422", PixelData=stored.tobytes())
        full = np.frombuffer(expand_ybr422(stored.tobytes(), 8), np.uint8).reshape(5, 8, 6, 3)
        assert np.array_equal(full[1, 0, :2, 0], stored[1, 0, 0, :2])
        expected = convert_color_space(full, "YBR_FULL", "RGB")
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), expected)

    @pytest.mark.parametrize("depth", [8, 16])
    @pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
    def test_palette(self, tmp_path: Path, depth: int, syntax: uid.UID) -> None:
        frames = noise(2, 8, 6)
        colours = noise(200, 3)
        tags: dict[str, Any] = {}
        for index, colour in enumerate(("Red", "Green", "Blue")):
            name = f"{colour}PaletteColorLookupTable"
            entries = colours[:, index].copy()
            words = entries.view("<u2") if depth == 8 else entries.astype(np.uint16) * 257
            order = "<" if syntax.is_little_endian else ">"
            tags[f"{name}Descriptor"] = [200, 20, depth]
            tags[f"{name}Data"] = words.astype(f"{order}u2").tobytes()
        dataset = make(frames, "PALETTE COLOR", syntax, **tags)
        for colour in ("Red", "Green", "Blue"):
            dataset[f"{colour}PaletteColorLookupTableData"].VR = "OW"
        # from value 20 on, and the ends beyond
        expected = colours[np.clip(frames.astype(int) - 20, 0, 199)]
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), expected)

    def test_a_long_palette_of_bytes(self, tmp_path: Path) -> None:
        frames = noise(2, 8, 6, high=1000, dtype=np.uint16)
        colours = noise(1000, 3)
        tags: dict[str, Any] = {}
        for index, colour in enumerate(("Red", "Green", "Blue")):
            tags[f"{colour}PaletteColorLookupTableDescriptor"] = [1000, 0, 8]
            tags[f"{colour}PaletteColorLookupTableData"] = colours[:, index].tobytes()
        path = write(tmp_path / "a.dcm", make(frames, "PALETTE COLOR", **tags))
        assert np.array_equal(read(path), colours[frames])

    @pytest.mark.parametrize("colour", [False, True])
    def test_rle(self, tmp_path: Path, colour: bool) -> None:
        frames = noise(3, 8, 6, 3) if colour else noise(3, 8, 6)
        dataset = make_rle(frames, "RGB" if colour else "MONOCHROME2")
        expected = frames if colour else as_rgb(frames)
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), expected)

    @pytest.mark.parametrize("has_bot", [True, False])
    def test_jpeg_2000(self, tmp_path: Path, has_bot: bool) -> None:
        frames = noise(3, 40, 32, 3)
        encoded = encode(frames, "JPEG2000", irreversible=False, mct=1, no_jp2=True)
        dataset = make_encoded(frames, encoded, "YBR_RCT", uid.JPEG2000Lossless, has_bot=has_bot)
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), frames)

    def test_jpeg_2000_lossy(self, tmp_path: Path) -> None:
        frames = scene(3)[None]
        encoded = encode(frames, "JPEG2000", irreversible=True, mct=1, no_jp2=True)
        dataset = make_encoded(frames, encoded, "YBR_ICT", uid.JPEG2000)
        ours = read(write(tmp_path / "a.dcm", dataset))
        assert np.abs(ours.astype(int) - frames).max() <= 3

    def test_jpeg_2000_deep(self, tmp_path: Path) -> None:
        frames = noise(2, 40, 32, high=2**16, dtype=np.uint16)
        encoded = encode(frames, "JPEG2000", irreversible=False, no_jp2=True)
        dataset = make_encoded(frames, encoded, "MONOCHROME2", uid.JPEG2000Lossless)
        expected = np.rint(frames.astype(float) / 65535 * 255)
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), as_rgb(expected))

    def test_jpeg_grey(self, tmp_path: Path) -> None:
        frames = np.stack([scene(), 255 - scene()])
        encoded = encode(frames, "JPEG", quality=90)
        dataset = make_encoded(frames, encoded, "MONOCHROME2", uid.JPEGBaseline8Bit)
        expected = np.stack([np.asarray(Image.open(io.BytesIO(part))) for part in encoded])
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), as_rgb(expected))

    def test_jpeg_colour(self, tmp_path: Path) -> None:
        frames = np.stack([scene(3), 255 - scene(3)]).copy()
        frames[..., 0] //= 2
        encoded = encode(frames, "JPEG", quality=95, subsampling=1)
        dataset = make_encoded(frames, encoded, "YBR_FULL_422", uid.JPEGBaseline8Bit)
        ours = read(write(tmp_path / "a.dcm", dataset)).astype(int)
        theirs = np.stack([np.asarray(Image.open(io.BytesIO(part))) for part in encoded])
        assert np.abs(ours - theirs).max() <= 2
        assert np.abs(ours - frames).mean() < 3

    @pytest.mark.parametrize("kind", LOSSLESS)
    def test_jpeg_lossless(self, tmp_path: Path, kind: str) -> None:
        frames, dataset = lossless(kind)
        path = write(tmp_path / "a.dcm", dataset)
        if kind == "YBR_FULL":
            frames = convert_color_space(frames, "YBR_FULL", "RGB")
        assert np.array_equal(read(path), frames if frames.ndim == 4 else as_rgb(frames))

    def test_more_than_the_bits_stored(self, tmp_path: Path) -> None:
        frames, dataset = lossless("grey")
        dataset.BitsStored, dataset.HighBit = 7, 6
        path, told = write(tmp_path / "a.dcm", dataset), list[str]()
        pixels = [np.asarray(image) for _, image in iterate(path, on_damage=told.append)]
        assert np.array_equal(pixels, as_rgb(frames))
        assert told == [f"{path}: its samples have 8 bits, the header says 7"]

    def test_jpeg_lossless_damaged(self, tmp_path: Path) -> None:
        encoded = base64.b64decode(LOSSLESS["RGB"])
        damaged = encoded[: encoded.index(b"\xff\xda") + 24]
        frames = np.zeros((2, 4, 6, 3), np.uint8)
        dataset = make_encoded(frames, [encoded, damaged], "RGB", uid.JPEGLosslessSV1)
        path = write(tmp_path / "a.dcm", dataset)
        with pytest.warns(DamageWarning, match=r"after 1 frames \(frame 2 of 2 is damaged\)"):
            assert len(list(iterate(path))) == 1

    def test_jpeg_lossless_signed(self, tmp_path: Path) -> None:
        frames, dataset = lossless("grey")
        dataset.PixelRepresentation = 1
        expected = frames.view(np.int8).astype(int) + 128
        assert np.array_equal(read(write(tmp_path / "a.dcm", dataset)), as_rgb(expected))


def lut(values: Pixels, first: int, depth: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, depth]
    item.LUTData = values.tolist()
    item["LUTData"].VR = "US"
    return [item]


class TestGreyValues:
    def test_monochrome1_is_inverted(self, tmp_path: Path) -> None:
        frames = noise(2, 8, 6)
        path = write(tmp_path / "a.dcm", make(frames, "MONOCHROME1"))
        assert np.array_equal(read(path), as_rgb(255 - frames))

    def test_window_by_hand(self, tmp_path: Path) -> None:
        frames = np.array([[[0, 899, 900, 1000, 1100, 1101, 4095]]], np.uint16)
        tags: dict[str, Any] = {
            "BitsStored": 12,
            "WindowCenter": [1000, 7],
            "WindowWidth": [200, 9],
        }
        path = write(tmp_path / "a.dcm", make(frames, **tags))
        # PS3.3 C.11.2.1.2: black to centre - 0.5 - 99.5, white from centre - 0.5 + 99.5
        shares = (frames[0, 0].astype(float) - 999.5) / 199 + 0.5
        expected = np.rint(np.clip(shares, 0, 1) * 255)
        assert expected.tolist() == [0, 0, 0, 128, 255, 255, 255]
        assert read(path)[0, 0, :, 1].tolist() == expected.tolist()

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
    @pytest.mark.parametrize(
        ("tags", "low", "high"),
        [
            ({"WindowCenter": 100, "WindowWidth": 90}, None, None),
            ({"WindowCenter": 100, "WindowWidth": 9, "VOILUTFunction": "SIGMOID"}, None, None),
            (
                {"WindowCenter": 80, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
                None,
                None,
            ),
            ({"RescaleSlope": 2, "RescaleIntercept": -20}, None, None),
            (
                {
                    "RescaleSlope": 0.5,
                    "RescaleIntercept": 7,
                    "WindowCenter": 50,
                    "WindowWidth": 60,
                },
                None,
                None,
            ),
            ({"VOILUTSequence": lut(np.arange(1000, 0, -4), 3, 10)}, 0, 1023),
            ({"ModalityLUTSequence": lut(np.arange(90, 290), 0, 16)}, 0, 65535),
            (
                {
                    "ModalityLUTSequence": lut(np.arange(90, 290), 0, 16),
                    "WindowCenter": 200,
                    "WindowWidth": 50,
                },
                0,
                65535,
            ),
        ],
        ids=["window", "sigmoid", "exact", "rescale", "both", "voi", "modality", "windowed"],
    )
    def test_as_pydicom_shows_it(
        self,
        tmp_path: Path,
        tags: dict[str, Any],
        low: float | None,
        high: float | None,
        dtype: Any,
        photometric: str,
    ) -> None:
        frames = noise(2, 30, 20, dtype=dtype)
        if frames.itemsize == 2 and not {"WindowWidth", "VOILUTSequence"} & {*tags}:
            # else it is shown by the range it uses
            frames[:, 0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
        path = write(tmp_path / "a.dcm", make(frames, photometric, **tags))
        dataset = pydicom.dcmread(path)
        # signed, so that pydicom can subtract from it
        shown = apply_voi_lut(apply_modality_lut(frames.astype(np.int32), dataset), dataset)
        if low is None or high is None:
            slope, offset = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", 0)
            info = np.iinfo(dtype)
            low, high = info.min * slope + offset, info.max * slope + offset
        shares = (shown.astype(float) - low) / (high - low)
        expected = np.rint(shares.clip(0, 1) * 255)
        if photometric == "MONOCHROME1":
            expected = 255 - expected
        assert np.array_equal(read(path), as_rgb(expected))

    def test_a_falling_rescale_inverts(self, tmp_path: Path) -> None:
        frames = noise(1, 8, 8)
        dataset = make(frames, RescaleSlope=-3, RescaleIntercept=1000)
        path = write(tmp_path / "a.dcm", dataset)
        assert np.array_equal(read(path), as_rgb(255 - frames))

    @pytest.mark.parametrize("width", [0, -5, None])
    def test_a_window_that_is_none(self, tmp_path: Path, width: int | None) -> None:
        frames = noise(1, 8, 8)
        path = write(tmp_path / "a.dcm", make(frames, WindowCenter=0, WindowWidth=width))
        assert np.array_equal(read(path), as_rgb(frames))

    def test_colour_has_no_window(self, tmp_path: Path) -> None:
        frames = noise(2, 8, 6, 3)
        path = write(tmp_path / "a.dcm", make(frames, "RGB", WindowCenter=10, WindowWidth=5))
        assert np.array_equal(read(path), frames)


class TestReference:
    """Against the handlers pydicom had before 3.0, which share no code with those used here."""

    @pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL"])
    def test_uncompressed(self, tmp_path: Path, photometric: str, syntax: uid.UID) -> None:
        frames = noise(3, 8, 6, 3) if photometric in ("RGB", "YBR_FULL") else noise(3, 8, 6)
        self.compare(write(tmp_path / "a.dcm", make(frames, photometric, syntax)))

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL"])
    def test_rle(self, tmp_path: Path, photometric: str) -> None:
        frames = noise(3, 8, 6, 3) if photometric in ("RGB", "YBR_FULL") else noise(3, 8, 6)
        self.compare(write(tmp_path / "a.dcm", make_rle(frames, photometric)))

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_RCT"])
    def test_jpeg_2000(self, tmp_path: Path, photometric: str) -> None:
        colour = photometric in ("RGB", "YBR_RCT")
        frames = noise(3, 40, 32, 3) if colour else noise(3, 40, 32)
        mct = int(photometric == "YBR_RCT")
        encoded = encode(frames, "JPEG2000", irreversible=False, mct=mct, no_jp2=True)
        dataset = make_encoded(frames, encoded, photometric, uid.JPEG2000Lossless)
        self.compare(write(tmp_path / "a.dcm", dataset))

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "YBR_ICT"])
    def test_jpeg_2000_lossy(self, tmp_path: Path, photometric: str) -> None:
        frames = np.stack([scene(3) if photometric == "YBR_ICT" else scene()] * 2)
        mct = int(photometric == "YBR_ICT")
        encoded = encode(frames, "JPEG2000", irreversible=True, mct=mct, no_jp2=True)
        dataset = make_encoded(frames, encoded, photometric, uid.JPEG2000)
        self.compare(write(tmp_path / "a.dcm", dataset))

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_jpeg(self, tmp_path: Path, photometric: str) -> None:
        frames = np.stack([scene(), 255 - scene()])
        encoded = encode(frames, "JPEG", quality=80)
        dataset = make_encoded(frames, encoded, photometric, uid.JPEGBaseline8Bit)
        self.compare(write(tmp_path / "a.dcm", dataset))

    @pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
    def test_jpeg_colour(self, tmp_path: Path, photometric: str) -> None:
        frames = np.stack([scene(3), 255 - scene(3)]).copy()
        frames[..., 0] //= 2
        # 4:4:4 and 4:2:2
        encoded = encode(frames, "JPEG", quality=80, subsampling=int(photometric[-3:] == "422"))
        dataset = make_encoded(frames, encoded, photometric, uid.JPEGBaseline8Bit)
        # the conversion to RGB is libjpeg's there and pydicom's here: both round
        self.compare(write(tmp_path / "a.dcm", dataset), tolerance=2)

    def test_real_files(self, data: Path) -> None:
        for path in find(data / "dicom"):
            self.compare(path)

    @staticmethod
    def compare(path: Path, tolerance: int = 0) -> None:
        dataset = pydicom.dcmread(path)
        dataset.pixel_array_options(use_v2_backend=True)
        theirs = reference(path, dataset)
        if dataset.PhotometricInterpretation == "YBR_FULL" and not tolerance:
            theirs = convert_color_space(theirs, "YBR_FULL", "RGB")
        elif tolerance:
            stream = io.BytesIO(dataset.PixelData)
            parts = generate_frames(stream, number_of_frames=dataset.NumberOfFrames)
            theirs = np.stack(
                [np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts]
            )
        elif dataset.PhotometricInterpretation == "MONOCHROME1":
            theirs = 255 - theirs
        ours = read(path)
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= tolerance


class TestTimes:
    @pytest.mark.parametrize(
        ("tags", "expected"),
        [
            ({"FrameTimeVector": [0, 40, 50, 60]}, [0, 0.04, 0.09, 0.15]),
            ({"FrameTimeVector": [0, 40, 50, 60], "FrameTime": 9}, [0, 0.04, 0.09, 0.15]),
            ({"FrameTimeVector": [0, 40], "FrameTime": 20}, [0, 0.02, 0.04, 0.06]),
            ({"FrameTimeVector": [0, 40, 0, -60], "CineRate": 10}, [0, 0.1, 0.2, 0.3]),
            ({"FrameTime": 33.5, "CineRate": 10}, [0, 0.0335, 0.067, 0.1005]),
            ({"FrameTime": 0, "CineRate": 25}, [0, 0.04, 0.08, 0.12]),
            ({"FrameTime": None, "RecommendedDisplayFrameRate": 20}, [0, 0.05, 0.1, 0.15]),
            ({"CineRate": 25, "RecommendedDisplayFrameRate": 20}, [0, 0.04, 0.08, 0.12]),
            ({"CineRate": 0}, [math.nan] * 4),
            ({}, [math.nan] * 4),
        ],
    )
    def test_from_the_header(
        self, tmp_path: Path, tags: dict[str, Any], expected: list[float]
    ) -> None:
        path = write(tmp_path / "a.dcm", make(noise(4, 8, 6), **tags))
        times = [time for time, _ in iterate(path)]
        assert times == pytest.approx(expected, nan_ok=True)

    def test_a_rate_for_what_states_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.dcm", make(noise(3, 8, 6)))
        assert [time for time, _ in iterate(path, frame_rate=4)] == [0, 0.25, 0.5]
        stated = write(tmp_path / "b.dcm", make(noise(3, 8, 6), FrameTime=100))
        assert [time for time, _ in iterate(stated, frame_rate=4)] == pytest.approx([0, 0.1, 0.2])

    def test_a_still(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.dcm", make(noise(1, 8, 6)))
        assert [time for time, _ in iterate(path)] == [0]

    def test_sampled(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.dcm", make(noise(60, 8, 6), FrameTime=1000 / 30))
        assert [round(30 * time) for time, _ in sample(path, 3)] == [0, 10, 20, 30, 40, 50]
        unknown = write(tmp_path / "b.dcm", make(noise(6, 8, 6)))
        assert len(list(sample(unknown, 3))) == 6


def region(box: tuple[int, int, int, int] = (2, 1, 5, 6), **tags: Any) -> Dataset:
    """Tissue, a centimetre in 40 rows and 50 columns; left, top, and the last pixel inside."""
    item = Dataset()
    corners = zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), box, strict=True)
    values: dict[str, Any] = {f"RegionLocation{corner}": value for corner, value in corners}
    values |= {"RegionSpatialFormat": 1, "RegionDataType": 1}
    values |= {"PhysicalUnitsXDirection": 3, "PhysicalUnitsYDirection": 3}
    values |= {"PhysicalDeltaX": 1 / 50, "PhysicalDeltaY": 1 / 40}
    for keyword, value in (values | tags).items():
        setattr(item, keyword, value)
    return item


class TestFacts:
    @staticmethod
    def facts(folder: Path, count: int = 1, **tags: Any) -> Facts:
        return open_clip(write(folder / "a.dcm", make(noise(count, 8, 10), **tags))).facts

    def test_of_a_real_file(self, data: Path) -> None:
        facts = open_clip(data / "dicom/OBXXXX1A_rle_2frame.dcm").facts
        # PhysicalDelta of 0.0262288 cm; the scanner takes the right and lower edge as outside
        spacing = pytest.approx((0.2622878766, 0.2622878766))
        tissue, trace = facts.regions
        assert (tissue.box, tissue.kind) == ((120, 60, 800, 519), "2D")
        assert tissue.spacing == spacing
        assert trace == Region((176, 522, 744, 577), "other")
        assert facts.spacing == spacing
        assert facts.transducer == "CURVED LINEAR"
        assert facts.frame_rate is None
        assert open_clip(data / "dicom/color-px.dcm").facts == Facts()

    @pytest.mark.parametrize(
        ("layout", "content", "kind"),
        [
            (1, 1, "2D"),
            (1, 2, "colour"),
            (1, 15, "2D"),
            (1, 14, "other"),
            (2, 1, "M-mode"),
            (2, 2, "M-mode"),
            (3, 3, "spectral"),
            (3, 4, "spectral"),
            (4, 10, "other"),
            (5, 13, "other"),
            (0, 0, "other"),
        ],
    )
    def test_kinds(self, tmp_path: Path, layout: int, content: int, kind: str) -> None:
        item = region(RegionSpatialFormat=layout, RegionDataType=content)
        (found,) = self.facts(tmp_path, SequenceOfUltrasoundRegions=[item]).regions
        assert found == Region((2, 1, 6, 7), kind, (0.25, 0.2))

    @pytest.mark.parametrize(
        ("box", "expected"),
        [
            ((0, 0, 9, 7), (0, 0, 10, 8)),
            ((0, 0, 10, 8), (0, 0, 10, 8)),
            ((3, 2, 99, 99), (3, 2, 10, 8)),
            ((3, 2, 3, 2), (3, 2, 4, 3)),
            ((3, 2, 2, 5), None),
            ((20, 2, 30, 5), None),
        ],
    )
    def test_boxes_keep_to_the_picture(
        self, tmp_path: Path, box: tuple[int, int, int, int], expected: tuple[int, ...] | None
    ) -> None:
        regions = self.facts(tmp_path, SequenceOfUltrasoundRegions=[region(box)]).regions
        assert [found.box for found in regions] == ([expected] if expected else [])

    @pytest.mark.parametrize(
        "tags",
        [
            {"PhysicalUnitsXDirection": 4},
            {"PhysicalUnitsYDirection": 7},
            {"PhysicalDeltaX": 0.0},
            {"PhysicalDeltaY": math.nan},
            {"PhysicalDeltaY": math.inf},
            {"PhysicalDeltaX": None},
        ],
    )
    def test_what_is_no_length(self, tmp_path: Path, tags: dict[str, Any]) -> None:
        facts = self.facts(tmp_path, SequenceOfUltrasoundRegions=[region(**tags)])
        assert facts.regions[0].spacing is None
        assert facts.spacing is None

    @pytest.mark.parametrize(
        ("tags", "shown"),
        [
            # centimetres that are taken for metres, millimetres for centimetres, and so on
            ({"PixelSpacing": [0.0003, 0.0004]}, r"0\.004"),
            ({"PixelSpacing": [300.0, 400.0]}, r"4e\+03"),
            ({"PixelSpacing": [0.3, 400.0]}, r"4e\+03"),
            ({"SequenceOfUltrasoundRegions": [region(PhysicalDeltaX=20.0)]}, r"2e\+03"),
            (
                {"SequenceOfUltrasoundRegions": [region(PhysicalDeltaX=1e-4, PhysicalDeltaY=1e-4)]},
                r"0\.01",
            ),
        ],
    )
    def test_lengths_that_no_probe_sees(
        self, tmp_path: Path, tags: dict[str, Any], shown: str
    ) -> None:
        with pytest.warns(DamageWarning, match=rf"shows {shown} mm: no lengths are taken"):
            clip = open_clip(write(tmp_path / "a.dcm", make(noise(1, 8, 10), **tags)))
            list(clip)
        assert clip.facts.spacing is None
        assert all(region.spacing is None for region in clip.facts.regions)

    def test_spacing(self, tmp_path: Path) -> None:
        upward = region(PhysicalDeltaY=-1 / 40)
        doppler = region(RegionSpatialFormat=3, RegionDataType=3, PhysicalUnitsXDirection=4)
        zoomed = region(PhysicalDeltaX=1 / 100, PhysicalDeltaY=1 / 80)
        assert self.facts(tmp_path, PixelSpacing=[0.3, 0.4]).spacing == (0.3, 0.4)
        for items, spacing in [
            ([region()], (0.25, 0.2)),
            ([upward, doppler], (0.25, 0.2)),
            ([region(), region()], (0.25, 0.2)),
            ([region(), zoomed], None),
            ([doppler], (0.3, 0.4)),
        ]:
            tags: dict[str, Any] = {
                "SequenceOfUltrasoundRegions": items,
                "PixelSpacing": [0.3, 0.4],
            }
            assert self.facts(tmp_path, **tags).spacing == spacing

    @pytest.mark.parametrize(
        ("tags", "rate"),
        [
            ({"FrameTime": 40}, 25),
            ({"FrameTimeVector": [0, 40, 50, 60]}, 20),
            ({"CineRate": 30}, 30),
            ({"FrameTime": 0, "RecommendedDisplayFrameRate": 20}, 20),
            ({"FrameTime": 1e-320}, None),
            ({}, None),
        ],
    )
    def test_frame_rate(self, tmp_path: Path, tags: dict[str, Any], rate: float | None) -> None:
        assert self.facts(tmp_path, 4, **tags).frame_rate == pytest.approx(rate)
        assert self.facts(tmp_path, 1, **tags).frame_rate is None

    @pytest.mark.parametrize(
        ("stated", "kept"),
        [
            ("CURVED LINEAR", "CURVED LINEAR"),
            ("SECTOR_PHASED", "SECTOR PHASED"),
            ("LINEAR", "LINEAR"),
            ("QUORNDON", None),
            ("", None),
            (["LINEAR", "QUORNDON"], None),
        ],
    )
    def test_transducer(self, tmp_path: Path, stated: str, kept: str | None) -> None:
        assert self.facts(tmp_path, TransducerType=stated).transducer == kept

    def test_damage_costs_no_frames(self, tmp_path: Path) -> None:
        item = region(RegionLocationMaxX1=None, RegionDataType=None)
        tags: dict[str, Any] = {"SequenceOfUltrasoundRegions": [item, region()], "PixelSpacing": 1}
        facts = self.facts(tmp_path, **tags)
        assert [found.box for found in facts.regions] == [(2, 1, 6, 7)]


def split_jpeg(frames: Pixels) -> list[bytes]:
    return encode(frames, "JPEG", quality=90)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "plain": lambda frames, **tags: make(frames, **tags),
    "big endian": lambda frames, **tags: make(frames, syntax=uid.ExplicitVRBigEndian, **tags),
    "rle": make_rle,
    "jpeg": lambda frames, **tags: make_encoded(
        frames, split_jpeg(frames), "MONOCHROME2", uid.JPEGBaseline8Bit, **tags
    ),
    "lossless jpeg": lambda frames, **tags: make_encoded(
        np.zeros((len(frames), 4, 6), np.uint8),
        [base64.b64decode(LOSSLESS["grey"])] * len(frames),
        "MONOCHROME2",
        uid.JPEGLosslessSV1,
        **tags,
    ),
    "jpeg without table": lambda frames, **tags: make_encoded(
        frames, split_jpeg(frames), "MONOCHROME2", uid.JPEGBaseline8Bit, has_bot=False, **tags
    ),
}


class TestDamage:
    @pytest.mark.parametrize("kind", DATASETS)
    @pytest.mark.parametrize("promised", [6, 10_000, 2**31 - 1])
    def test_more_frames_promised_than_there(
        self, tmp_path: Path, kind: str, promised: int
    ) -> None:
        frames = noise(5, 24, 32)
        whole = read(write(tmp_path / "whole.dcm", DATASETS[kind](frames)))
        assert len(whole) == 5
        dataset = DATASETS[kind](frames, NumberOfFrames=promised)
        # what follows the pixels must not be taken for more of them
        dataset.add_new((0xFFFC, 0xFFFC), "OB", bytes(24 * 32 * 3))
        path = write(tmp_path / "a.dcm", dataset)
        with pytest.warns(
            DamageWarning,
            match=rf"a\.dcm: breaks off after 5 frames \(its header promises {promised}\)",
        ):
            read_frames = [np.asarray(image) for _, image in iterate(path)]
        assert np.array_equal(read_frames, whole)

    @pytest.mark.parametrize("kind", DATASETS)
    def test_truncated(self, tmp_path: Path, kind: str) -> None:
        dataset = DATASETS[kind](noise(8, 24, 32))
        path = write(tmp_path / "a.dcm", dataset)
        whole = read(path)
        path.write_bytes(path.read_bytes()[: -int(len(dataset.PixelData) * 0.4)])
        messages: list[str] = []
        frames = [np.asarray(image) for _, image in iterate(path, on_damage=messages.append)]
        assert 4 <= len(frames) <= 6
        assert np.array_equal(frames[:4], whole[:4])
        assert len(messages) == 1
        assert messages[0].startswith(f"{path}: breaks off after {len(frames)} frames (")

    def test_one_frame_damaged(self, tmp_path: Path) -> None:
        frames = np.stack([scene()] * 4)
        encoded = split_jpeg(frames)
        encoded[2] = encoded[2][:20] + bytes(len(encoded[2]) - 20)
        dataset = make_encoded(frames, encoded, "MONOCHROME2", uid.JPEGBaseline8Bit)
        path = write(tmp_path / "a.dcm", dataset)
        with pytest.warns(DamageWarning, match=r"a\.dcm: frame 3 of 4 damaged, and left out"):
            assert [time for time, _ in iterate(path, frame_rate=10)] == [
                0,
                0.1,
                pytest.approx(0.3),
            ]

    @pytest.mark.parametrize(
        ("dataset", "reason"),
        [
            (make(noise(2, 8, 6), PixelData=b""), "no frame can be decoded"),
            (make(noise(2, 8, 6), PixelData=b"12345678"), "no frame can be decoded"),
            (make(noise(1, 8, 6), Rows=65535, Columns=65535), "image of 65535 x 65535 pixels"),
            (make(noise(1, 8, 6), Rows=0), "image of 6 x 0 pixels"),
            (make(noise(1, 8, 6), Rows=None), "header is damaged or incomplete"),
            (make(noise(1, 8, 6), "HSV"), "known are MONOCHROME1, "),
            (make(noise(1, 8, 6), "RGB"), "known are MONOCHROME1, "),
            (make(noise(1, 8, 6), BitsAllocated=32), "8 bits in 32 a sample"),
            (make(noise(1, 8, 6), BitsAllocated=[8, 8]), "header is damaged or incomplete"),
            (make(noise(1, 8, 6), BitsStored=9), "9 bits in 8 a sample"),
            (make(noise(1, 8, 6), "PALETTE COLOR"), "header is damaged or incomplete"),
            (make(noise(1, 8, 6), syntax=uid.DeflatedExplicitVRLittleEndian), "deflated"),
            (
                make_encoded(noise(1, 8, 6), [b"rubbish!"], "MONOCHROME2", uid.JPEG2000),
                r"no frame can be decoded \(frame 1 of 1 is damaged: its stream is of no kind",
            ),
            (
                make_encoded(noise(1, 8, 6), [b"x"], "MONOCHROME2", uid.MPEG4HP41),
                r"no decoder for its pixels \(MPEG-4",
            ),
        ],
    )
    def test_said_in_one_line(self, tmp_path: Path, dataset: Dataset, reason: str) -> None:
        path = write(tmp_path / "a.dcm", dataset)
        with pytest.raises(UnreadableError, match=reason) as caught:
            list(iterate(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert_discreet(caught.value)

    def test_without_pixels(self, tmp_path: Path) -> None:
        dataset = make(noise(1, 8, 6))
        del dataset.PixelData
        with pytest.raises(UnreadableError, match="holds no pixels"):
            list(iterate(write(tmp_path / "a.dcm", dataset)))

    @pytest.mark.parametrize(
        "content", [b"", b"text\n" * 50, bytes(128) + b"DICM", bytes(128) + b"DICM\2\0\0\0UL"]
    )
    def test_rubbish(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "a.dcm"
        path.write_bytes(content)
        with pytest.raises(UnreadableError) as caught:
            list(iterate(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value).splitlines()) == 1

    @pytest.mark.parametrize("kind", DATASETS)
    def test_mutations_end_in_frames_or_one_line(self, tmp_path: Path, kind: str) -> None:
        path = write(tmp_path / "a.dcm", DATASETS[kind](noise(3, 24, 32), FrameTime=40))
        data = path.read_bytes()
        rng = np.random.default_rng(7)
        outcomes = set()
        for _ in range(60):
            changed = bytearray(data)
            # most of them in the header
            for at in rng.integers(128, 800 if rng.random() < 0.7 else len(data), 3):
                changed[at] = rng.integers(256)
            if rng.random() < 0.2:
                del changed[rng.integers(len(data)) :]
            path.write_bytes(changed)
            messages: list[str] = []
            try:
                for _, image in iterate(path, on_damage=messages.append):
                    assert image.mode == "RGB"
                outcomes.add("frames")
            except UnreadableError as error:
                assert_discreet(error)
                outcomes.add("error")
            assert not any(secret in message for message in messages for secret in SECRETS)
        assert outcomes == {"frames", "error"}


def start_of_frame(marker: int, bits: int) -> bytes:
    """A JPEG of 6 x 8 up to its first scan, with a table in which differences may be 32,768."""
    table = b"\xff\xc4\0\x14\0\1" + bytes(15) + b"\x10"
    return (
        b"\xff\xd8"
        + table
        + b"\xff"
        + bytes([marker, 0, 11, bits, 0, 8, 0, 6, 1, 1, 17, 0])
        + (b"\xff\xda\0\x08\1\1\0\1\0\0" + bytes(20) + b"\xff\xd9")
    )


def without_plugins(syntax: uid.UID, request: pytest.FixtureRequest) -> None:
    """Whatever this machine has besides what the extra brings."""
    decoder = get_decoder(syntax)
    for name in ("pylibjpeg", "pyjpegls"):
        if name in decoder.available_plugins:
            module, function = f"pydicom.pixels.decoders.{name}", "_decode_frame"
            request.addfinalizer(partial(decoder.add_plugin, name, (module, function)))
            decoder.remove_plugin(name)


class TestPlugins:
    def test_without_pydicom(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.dcm", make(noise(1, 8, 6)))
        for name in ("pydicom", "pydicom.pixels"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingDependencyError, match=r"pip install 'uscl-zoo\[dicom\]'"):
            list(iterate(path))

    def test_without_pyav(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.dcm", lossless("grey")[1])
        assert len(list(iterate(path))) == 2
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(
            UnreadableError, match=r"JPEG-lossless of 8 bits.*pip install 'uscl-zoo\[dicom\]'"
        ):
            list(iterate(path))

    @pytest.mark.parametrize(
        ("stream", "wanted"),
        [
            # frames of 12 and 16 bits, as their headers describe them
            (start_of_frame(0xC1, 12), "JPEG of 12 bits.*pip install pylibjpeg pylibjpeg-libjpeg"),
            (start_of_frame(0xC3, 16), "lossless of 16 .*pip install pylibjpeg pylibjpeg-libjpeg"),
            (start_of_frame(0xF7, 8), "JPEG-LS of 8 bits.*pip install pyjpegls"),
        ],
    )
    def test_what_the_extra_does_not_bring(
        self,
        tmp_path: Path,
        request: pytest.FixtureRequest,
        monkeypatch: pytest.MonkeyPatch,
        stream: bytes,
        wanted: str,
    ) -> None:
        for syntax in (uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLSLossless):
            without_plugins(syntax, request)
        if "pyjpegls" in wanted:
            monkeypatch.setitem(sys.modules, "av", None)
        frames = noise(1, 8, 6, dtype=np.uint16)
        dataset = make_encoded(
            frames, [stream], "MONOCHROME2", uid.JPEGExtended12Bit, BitsStored=12
        )
        with pytest.raises(UnreadableError, match=wanted):
            list(iterate(write(tmp_path / "a.dcm", dataset)))


#: What could hold a name, by the kind of value, and the name; of codes those that are upper case.
HIDING: dict[str, Any] = {
    **dict.fromkeys(("PN", "LO", "SH", "ST", "LT", "UT", "UC"), "Quorndon"),
    **dict.fromkeys(("DA", "DT"), "19330417"),
    "AE": "Quorndon",
}
#: The same in tags that are read.
HIDDEN: dict[str, Any] = {
    "TransducerType": "QUORNDON",
    "TransducerData": "Quorndon",
    "ImageComments": "Quorndon",
}


def reachable(start: Any) -> list[Any]:
    """All objects that can be reached from one, but for code."""
    code = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    seen, waiting = {}, [start]
    while waiting:
        part = waiting.pop()
        if id(part) not in seen and not isinstance(part, code):
            seen[id(part)] = part
            waiting += gc.get_referents(part)
            waiting += [getattr(part, name, None) for name in ("__dict__", "info")]
    return list(seen.values())


def assert_discreet(error: BaseException) -> None:
    """One line, and no person in it nor in the traceback that Python would print."""
    assert len(str(error).splitlines()) == 1
    printed = "".join(traceback.format_exception(error))
    for text in (str(error), repr(error), printed):
        assert not [secret for secret in SECRETS if secret in text]


class TestDiscretion:
    def test_names_are_never_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a.dcm", make(noise(2, 8, 6), FrameTime=40))
        original = pydicom.dcmread
        headers: list[Dataset] = []

        def spy(*args: Any, **kwargs: Any) -> Dataset:
            headers.append(original(*args, **kwargs))
            return headers[-1]

        monkeypatch.setattr(pydicom, "dcmread", spy)
        frames = list(iterate(path))
        assert len(headers) == 1
        assert headers[0].FrameTime == 40
        assert not {*PERSON, "SOPInstanceUID"} & set(headers[0].dir())
        for text in (str(headers[0]), repr(frames), repr([image.info for _, image in frames])):
            assert not [secret for secret in SECRETS if secret in text]

    def test_nothing_of_a_person_is_in_the_clip(self, tmp_path: Path) -> None:
        item = region(**HIDDEN)
        item.private_block(0x0019, "Quorndon", create=True).add_new(1, "LO", "Quorndon")
        tags: dict[str, Any] = HIDDEN | {"FrameTime": 40, "SequenceOfUltrasoundRegions": [item]}
        # wherever the standard has room for text
        for tag, (kind, _, _, _, keyword) in datadict.DicomDictionary.items():  # type: ignore[attr-defined]
            if kind in HIDING and keyword and tag >> 16 >= 0x0008:
                tags.setdefault(keyword, HIDING[kind])
        dataset = make(noise(2, 8, 10), **tags)
        assert len(dataset) > 800
        dataset.private_block(0x0019, "Quorndon", create=True).add_new(1, "PN", "Quorndon")
        inner = Dataset()
        inner.PatientName, inner.SequenceOfUltrasoundRegions = "Quorndon", [item]
        dataset.RequestAttributesSequence = [inner]
        path = write(tmp_path / "a.dcm", dataset)
        assert path.read_bytes().count(b"Quorndon") > 700
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clip = open_clip(path)
            everything = [clip, clip.frames, *clip]
        assert not caught
        assert clip.facts.regions
        assert clip.facts.spacing == (0.25, 0.2)
        assert clip.facts.transducer is None
        text = repr([repr(part) for part in reachable(everything)]) + repr(pickle.dumps(everything))
        assert "a.dcm" in text
        assert not [secret for secret in SECRETS if secret.casefold() in text.casefold()]

    @pytest.mark.parametrize("share", np.linspace(0.02, 0.98, 25))
    def test_wherever_the_file_ends(self, tmp_path: Path, share: float) -> None:
        data = write(tmp_path / "a.dcm", make(noise(1, 8, 6))).read_bytes()
        path = tmp_path / "b.dcm"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UnreadableError) as caught:
            list(iterate(path))
        assert_discreet(caught.value)

    @pytest.mark.parametrize("keyword", ["CineRate", "FrameTime", "NumberOfFrames", "WindowWidth"])
    def test_a_name_in_the_wrong_place(self, tmp_path: Path, keyword: str) -> None:
        dataset = make(noise(2, 8, 6))
        setattr(dataset, keyword, 33333333)
        path = write(tmp_path / "a.dcm", dataset)
        path.write_bytes(path.read_bytes().replace(b"33333333", b"Quorndon"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                list(iterate(path))
            except UnreadableError as error:
                assert_discreet(error)
        assert not [warning for warning in caught if "Quorndon" in str(warning.message)]


class TestLazily:
    def test_frames_are_let_go(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.dcm", make(noise(40, 8, 6)))
        alive: list[weakref.ref[Image.Image]] = []
        most = 0
        for _, image in iterate(path):
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(image)]
            most = max(most, len(alive))
        assert most <= 2

    def test_a_long_file_is_not_read_whole(self, tmp_path: Path) -> None:
        import tracemalloc

        frames = np.zeros((400, 200, 300), np.uint8)
        path = write(tmp_path / "a.dcm", make(frames))
        tracemalloc.start()
        try:
            assert sum(1 for _ in iterate(path)) == 400
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < frames.nbytes / 4


class TestFind:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        dicom = write(tmp_path / "a.dcm", make(noise(1, 8, 6)))
        for name in ("b.DICOM", "IM_0001", "1.2.840.113", "DICOMDIR", "c.xyz"):
            shutil.copy(dicom, tmp_path / name)
        (tmp_path / "README").write_text("text")
        (tmp_path / "7").write_bytes(bytes(128) + b"DICX")
        (tmp_path / "broken.dcm").write_text("text")
        return tmp_path

    def test_by_suffix_or_content(self, tree: Path) -> None:
        told: list[str] = []
        found = {path.name for path in find(tree, on_damage=told.append)}
        assert [line.endswith("DICOM: 7, README") for line in told] == [True]
        assert found == {"a.dcm", "b.DICOM", "IM_0001", "1.2.840.113", "c.xyz", "broken.dcm"}

    @pytest.mark.parametrize("name", ["a.dcm", "b.DICOM", "IM_0001", "1.2.840.113", "c.xyz"])
    def test_named_directly(self, tree: Path, name: str) -> None:
        assert find(tree / name) == [tree / name]
        assert np.array_equal(read(tree / name), as_rgb(noise(1, 8, 6)))

    def test_neither(self, tree: Path) -> None:
        with pytest.raises(UnreadableError, match=r"broken\.dcm: not a DICOM file by its content"):
            list(iterate(tree / "broken.dcm"))
        with pytest.raises(UnreadableError, match=r"README: .* nor DICOM by its content; known"):
            iterate(tree / "README")

    def test_images_beside_it_are_no_clip(self, tree: Path) -> None:
        folder = tree / "study"
        folder.mkdir()
        for index in range(2):
            Image.new("L", (8, 8)).save(folder / f"f{index}.png")
        assert find(folder) == [folder]
        shutil.copy(tree / "a.dcm", folder / "f2.dcm")
        assert [path.name for path in find(folder)] == ["f0.png", "f1.png", "f2.dcm"]


def test_embed(tmp_path: Path, installed: Callable[..., Card]) -> None:
    card = installed()
    frames = scene(3)[None] // np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1)
    folder = tmp_path / "study"
    folder.mkdir()
    write(folder / "IM_0001", make(frames, "RGB", FrameTime=500))
    (folder / "broken.dcm").write_text("text")
    Image.fromarray(frames[0]).save(tmp_path / "first.png")
    embedded = embed(card.name, [folder, tmp_path / "first.png"], rate=30, progress=False)
    assert [path.name for path in embedded.sources] == ["IM_0001"] * 5 + ["first.png"]
    assert embedded.times.tolist() == [0, 0.5, 1, 1.5, 2, 0]
    # the same pixels by either door
    assert np.allclose(embedded.features[0], embedded.features[5], rtol=1e-3, atol=1e-6)
    assert not np.allclose(embedded.features[0], embedded.features[1], rtol=1e-3, atol=1e-6)
    assert [(path.name, reason) for path, reason in embedded.skipped] == [
        ("broken.dcm", "not a DICOM file by its content")
    ]
    with pytest.raises(DataError, match="none of 1 sources can be read"):
        embed(card.name, folder / "broken.dcm", progress=False)
