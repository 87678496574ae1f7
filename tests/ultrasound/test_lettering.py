from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.simulator import simulate
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from uscl_zoo.errors import MissingDependencyError
from uscl_zoo.ultrasound import lettering as module
from uscl_zoo.ultrasound.lettering import lettering


def written(words: str, at: tuple[int, int], size: float = 14) -> NDArray[np.uint8]:
    """White words on black, (1, 240, 320, 3)."""
    picture = Image.new("RGB", (320, 240))
    ImageDraw.Draw(picture).text(at, words, fill="white", font=ImageFont.load_default(size=size))
    return np.asarray(picture)[None]


@pytest.mark.parametrize("size", [9, 14, 18])
def test_a_line_is_found_and_hardly_more(size: int) -> None:
    frames = written("NOVAK, EVA 01.02.1950", (40, 100), size)
    found = lettering(frames)
    assert found.shape == (240, 320)
    assert found[frames[0].max(2) > 80].mean() > 0.98
    assert found.mean() < 0.15


def test_a_picture_without_text_has_none() -> None:
    assert not lettering(np.zeros((1, 240, 320, 3), np.uint8)).any()
    truth = simulate(206, count=1, annotated=False)
    assert lettering(truth.frames)[truth.mask].mean() < 0.01


def test_text_is_found_over_moving_tissue() -> None:
    noise = np.random.default_rng(0).integers(0, 160, (8, 240, 320, 1), np.uint8)
    frames = np.maximum(np.repeat(noise, 3, 3), written("SILVA, JOAO", (90, 120), 16))
    assert lettering(frames)[written("SILVA, JOAO", (90, 120), 16)[0].max(2) > 80].mean() > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (8, 500), (1500, 40), (40, 1500)])
def test_pictures_of_any_shape_are_looked_at(shape: tuple[int, int]) -> None:
    assert lettering(np.full((1, *shape, 3), 90, np.uint8)).shape == shape


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_forked_process_has_a_detector_of_its_own() -> None:
    frames = written("GARCIA, ADA", (60, 60))
    here = lettering(frames)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply_async(lettering, (frames,)).get(60)
    assert here.any() and np.array_equal(here, there)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOADED", {})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"uscl-zoo\[clean\]"):
        lettering(written("ROSSI", (10, 10)))


#: Finds text in a picture, and waits as long as telemetry takes to begin.
LOOKING = """
import time
import numpy as np
from uscl_zoo.ultrasound.lettering import lettering
lettering(np.zeros((1, 64, 64, 3), np.uint8))
time.sleep(1)
"""


def test_nobody_is_told_of_it(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry begins with an identifier in a file, and goes on to its makers."""
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    inherited = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", LOOKING], env={**inherited, **places}, check=True)
    assert list(tmp_path.rglob("*")) == []
