from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.beam import as_box, box_overlap, overlap, read_boxes
from benchmarks.simulator import KINDS, Simulated, find
from PIL import Image

from uscl_zoo.errors import MissingDependencyError
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.beam import DOUBTFUL, Beam, beam
from uscl_zoo.ultrasound.cleaning import clean
from uscl_zoo.ultrasound.clip import Clip, Facts, Frame, Region
from uscl_zoo.ultrasound.phantom import lung_clip

# ------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("kind", KINDS)
def test_the_beam_of_a_clip(kind: str, truths: dict[str, Simulated]) -> None:
    truth = truths[kind]
    found = beam(Clip.of(truth.frames))
    assert found.kind == kind
    assert overlap(found.mask, truth.mask) > 0.95
    assert box_overlap(found.box, truth.box) > 0.95
    assert found.confidence > DOUBTFUL
    assert (found.apex is None) == (found.angles is None) == (found.radii is None)
    assert (found.apex is None) == (kind == "linear")


def test_a_still_is_enough() -> None:
    truth = find("curved", count=1)
    found = beam(Clip.of(truth.frames))
    assert found.kind == "curved"
    assert overlap(found.mask, truth.mask) > 0.95


def test_the_geometry_of_the_phantom() -> None:
    frames, times = lung_clip(seconds=1)
    found = beam(Clip.of(frames, times))
    # the probe's radius is 55 mm, the depth 140 mm, the half angle 27 degrees
    assert found.kind == "curved"
    assert found.angles == pytest.approx((-27, 27), abs=1.5)
    assert found.radii is not None
    # ribs hide most of its sides, so that the apex is not as exact as the rest
    assert found.radii[0] / found.radii[1] == pytest.approx(55 / 195, abs=0.08)
    assert found.apex is not None
    assert found.apex[0] == pytest.approx(239.5, abs=4)


def test_the_mask_is_the_geometry(truths: dict[str, Simulated]) -> None:
    found = beam(Clip.of(truths["sector"].frames))
    assert found.apex is not None and found.angles is not None and found.radii is not None
    y, x = np.mgrid[: found.mask.shape[0], : found.mask.shape[1]]
    x, y = x - found.apex[0], y - found.apex[1]
    r, angle = np.hypot(x, y), np.degrees(np.arctan2(x, y))
    drawn = (r >= found.radii[0]) & (r <= found.radii[1])
    drawn &= (angle >= found.angles[0]) & (angle <= found.angles[1])
    assert overlap(drawn, found.mask) > 0.99


@pytest.mark.parametrize("level", [0, 128])
def test_nothing_is_no_beam(level: int) -> None:
    found = beam(Clip.of(np.full((3, 120, 160, 3), level, np.uint8)))
    assert found.kind == "unknown"
    assert found.confidence < DOUBTFUL
    assert found.mask.all()


def test_a_picture_without_edges_of_a_beam_is_left_whole() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(20, 255, (4, 200, 240, 1), dtype=np.uint8).repeat(3, axis=3)
    found = beam(Clip.of(frames))
    assert (found.kind, found.box) == ("unknown", (0, 0, 240, 200))
    assert found.confidence < DOUBTFUL
    cleaned = clean(Clip.of(frames))
    assert np.array_equal(cleaned.clip.frames, frames)
    assert not any(overlay.any() for overlay in cleaned.overlays())


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (7, 9)])
def test_tiny_pictures(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (2, *shape, 3), dtype=np.uint8)
    found = beam(Clip.of(frames))
    assert found.mask.shape == shape
    assert clean(Clip.of(frames)).clip.frames.ndim == 4


def test_what_the_scanner_declares_bounds_the_beam(truths: dict[str, Simulated]) -> None:
    truth = truths["curved"]
    # a second image beside the first, as on a split screen
    frames = np.concatenate([truth.frames, truth.frames[:, :, ::-1]], axis=2)
    height, width = truth.mask.shape
    facts = Facts(regions=(Region((0, 0, width, height), "2D"),))
    found = beam(Clip.of(frames, facts=facts))
    assert found.box[2] <= width
    assert overlap(found.mask[:, :width], truth.mask) > 0.95
    other = Facts(regions=(Region((0, 0, width, height), "spectral"),))
    assert beam(Clip.of(frames, facts=other)).box[2] > width


def test_a_long_clip_is_not_kept() -> None:
    truth = find("linear")
    alive, most = 0, 0

    class Counted(Image.Image):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def decode() -> Iterator[Frame]:
        nonlocal alive, most
        for i in range(90):
            image = Image.fromarray(truth.frames[i % len(truth.frames)])
            image.__class__ = Counted
            alive += 1
            most = max(most, alive)
            yield Frame(i / 10, image)

    found = beam(Clip(decode))
    assert overlap(found.mask, truth.mask) > 0.95
    assert most <= 3


@pytest.mark.parametrize("library", ["cv2", "scipy"])
def test_a_missing_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=r"uscl-zoo\[clean\]"):
        beam(Clip.of(np.random.default_rng(0).integers(0, 255, (1, 60, 80, 3), dtype=np.uint8)))


# ------------------------------------------------------------------------------------ real files


def test_the_boxes_are_of_files(data: Path) -> None:
    rows = read_boxes()
    assert len({row["file"] for row in rows}) == len(rows) == 60
    assert sum(row["file"].startswith("pocus") for row in rows) >= 40
    for row in rows:
        left, top, right, bottom = as_box(row)
        assert 0 <= left < right <= int(row["width"])
        assert 0 <= top < bottom <= int(row["height"])
        assert (data / row["file"]).is_file()


@pytest.mark.parametrize(
    "name",
    [
        "vendor_ui/clarius-ocular-image.png",
        "dicom/OBXXXX1A.dcm",
        "dicom/US1_UNCI.dcm",
        "pocus/videos/convex/Pneu_liftl_pneu_case3_clip4.mp4",
        "pocus/videos/convex/Cov-Atlas-Day+1.gif",
    ],
)
def test_real_files(data: Path, name: str) -> None:
    rows = {row["file"]: row for row in read_boxes()}
    clip = reading.read(data / name)
    found: Beam = beam(clip)
    assert 0 <= found.confidence <= 1
    if name in rows:
        assert box_overlap(found.box, as_box(rows[name])) > 0.9
    assert math.isfinite(found.confidence)
