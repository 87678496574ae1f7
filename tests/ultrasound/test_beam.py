from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.beam import as_box, box_overlap, overlap, read_boxes
from benchmarks.simulator import KINDS, Simulated, simulate
from PIL import Image

from uscl_zoo.errors import DataError, MissingDependencyError
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.beam import DOUBTFUL, Beam, Cleaner, beam, clean
from uscl_zoo.ultrasound.clip import Clip, Facts, Frame, Region
from uscl_zoo.ultrasound.phantom import lung_clip


def find(kind: str, start: int = 200, **wanted: Any) -> Simulated:
    """The first simulated clip of a kind."""
    for seed in range(start, start + 200):
        truth = simulate(seed, count=wanted.get("count", 6), annotated=wanted.get("annotated"))
        if truth.kind == kind and truth.doppler == wanted.get("doppler", False):
            return truth
    raise AssertionError(kind)


@pytest.fixture(scope="module")
def truths() -> dict[str, Simulated]:
    return {kind: find(kind, annotated=True) for kind in KINDS}


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


# ------------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_outside_is_blanked(kind: str, truths: dict[str, Simulated]) -> None:
    truth = truths[kind]
    cleaned = clean(Clip.of(truth.frames))
    left, top, right, bottom = cleaned.beam.box
    frames = cleaned.clip.frames
    assert frames.shape == (len(truth.frames), bottom - top, right - left, 3)
    outside = ~cleaned.beam.mask[top:bottom, left:right]
    assert not frames[:, outside].any()
    # and inside it is the tissue still
    overlays = list(cleaned.overlays())
    for before, after, overlay in zip(truth.frames, frames, overlays, strict=True):
        kept = ~outside & ~overlay
        assert np.array_equal(after[kept], before[top:bottom, left:right][kept])


def test_what_is_drawn_inside_is_painted_over(truths: dict[str, Simulated]) -> None:
    found, drawn = 0, 0
    for truth in truths.values():
        cleaned = clean(Clip.of(truth.frames))
        left, top, right, bottom = cleaned.beam.box
        overlay = next(cleaned.overlays())
        marks = truth.overlay[top:bottom, left:right]
        found += int((marks & overlay).sum())
        drawn += int(marks.sum())
        assert overlay.mean() < 0.1
    assert drawn > 200
    assert found / drawn > 0.6


def test_colour_flow_is_kept_and_flagged(truths: dict[str, Simulated]) -> None:
    truth = find("curved", doppler=True)
    cleaned = clean(Clip.of(truth.frames))
    assert cleaned.colour
    left, top, right, bottom = cleaned.beam.box
    before, after = truth.frames[0, top:bottom, left:right], cleaned.clip.frames[0]
    flow = np.ptp(before, axis=2) > 100
    assert flow.sum() > 500
    assert (np.ptp(after, axis=2) > 80)[flow].mean() > 0.85
    assert not clean(Clip.of(truths["linear"].frames)).colour


def test_facts_follow_the_crop(truths: dict[str, Simulated]) -> None:
    truth = truths["linear"]
    height, width = truth.mask.shape
    facts = Facts(regions=(Region((0, 0, width, height), "2D", (0.1, 0.1)),), spacing=(0.1, 0.1))
    cleaned = clean(Clip.of(truth.frames, facts=facts))
    left, top, right, bottom = cleaned.beam.box
    assert cleaned.clip.facts.regions[0].box == (0, 0, right - left, bottom - top)
    assert cleaned.clip.facts.spacing == (0.1, 0.1)


def test_frames_of_another_size_are_refused(truths: dict[str, Simulated]) -> None:
    cleaner = Cleaner.of(Clip.of(truths["linear"].frames))
    with pytest.raises(DataError, match="10x20"):
        cleaner(Image.new("RGB", (10, 20)))


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
