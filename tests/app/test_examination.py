"""What a network sees in a file, and says of it; and the same as HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own import CLASSES, write_model
from PIL import Image

from uscl_zoo.answers import LABELS, NUMBER
from uscl_zoo.app import panels
from uscl_zoo.app.examination import SHOWN, drawn, examine, spread
from uscl_zoo.classifier.blanking import blank
from uscl_zoo.classifier.gradcam import explain
from uscl_zoo.classifier.prediction import predict
from uscl_zoo.embedding.embeddings import concatenate
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.embedding.neighbours import read_collection
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.network import Network, load
from uscl_zoo.ultrasound.phantom import lung_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a clip of the phantom, and its frames as stills."""
    folder = tmp_path_factory.mktemp("app")
    write_model(folder / "model")
    frames, _ = lung_clip(seconds=0.9, rate=10, size=(160, 160))
    first, *rest = map(Image.fromarray, frames)
    first.save(folder / "clip.gif", save_all=True, append_images=rest, duration=400)
    (folder / "stills").mkdir()
    # of sizes of their own: they are no clip
    for number, frame in enumerate(frames[:4]):
        Image.fromarray(frame[number:]).save(folder / "stills" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def network(folder: Path) -> Network:
    return load(folder / "model", "cpu")


def test_it_says_what_predict_says(folder: Path, network: Network) -> None:
    seen = examine(network, folder / "clip.gif")
    said = predict(network, folder / "clip.gif", progress=False)
    assert seen.clip is not None
    assert seen.clip.probabilities == pytest.approx(said.clips[0].probabilities)
    assert [frame.best for frame in seen.frames] == [frame.best for frame in said.frames]
    assert len(seen.times) == 9
    assert not seen.cut


def test_frames_are_shown_as_they_go_in(folder: Path, network: Network) -> None:
    seen = examine(network, folder / "clip.gif")
    assert [frame.shape for frame in seen.seen] == [(64, 64, 3)] * SHOWN
    assert seen.numbers[0] == 0
    assert seen.numbers[-1] == 8
    first = next(iter(network.look().at(folder / "clip.gif"))).image
    np.testing.assert_array_equal(seen.seen[0], network.transform.resize(first))


def test_beam_and_overlays(folder: Path, network: Network) -> None:
    seen = examine(network, folder / "clip.gif")
    assert seen.detected is not None
    assert seen.detected.sure
    assert seen.detected.beam.kind == "curved"
    assert len(seen.detected.pictures) == SHOWN


def test_the_beam_is_that_of_explain_and_shortcut(network: Network, tmp_path: Path) -> None:
    """Of the frames that are looked at, between which others may show anything."""
    frames, _ = lung_clip(seconds=1.4, rate=10, size=(160, 160))
    frames[1::2] = 200
    first, *rest = map(Image.fromarray, frames)
    path = tmp_path / "clip.gif"
    # at three a second every other frame
    first.save(path, save_all=True, append_images=rest, duration=170)
    seen = examine(network, path).detected
    assert seen is not None
    assert seen.sure
    explained = explain(network, path, progress=False)
    np.testing.assert_array_equal(explained.beam.mask, seen.beam.mask)
    assert blank(path, network.look()).blanked == pytest.approx(1 - seen.beam.mask.mean())


def test_drawn_shows_rim_overlay_and_darkness() -> None:
    inside = np.zeros((100, 100), bool)
    inside[20:80, 20:80] = True
    overlay = np.zeros_like(inside)
    overlay[40:50, 40:50] = True
    pixels = np.asarray(drawn(Image.new("RGB", (100, 100), (200,) * 3), inside, overlay))
    assert pixels[5, 5].tolist() == [90] * 3
    assert pixels[60, 60].tolist() == [200] * 3
    assert pixels[20, 50].tolist() == [64, 224, 128]
    assert pixels[45, 45].tolist() == [236, 112, 174]


def test_a_model_of_cleaned_frames_sees_them_cleaned(folder: Path, tmp_path: Path) -> None:
    network = load(write_model(tmp_path / "model", clean=True), "cpu")
    seen = examine(network, folder / "clip.gif")
    assert seen.clean
    said = predict(network, folder / "clip.gif", progress=False)
    assert seen.clip is not None
    assert seen.clip.probabilities == pytest.approx(said.clips[0].probabilities)
    assert "cut to the beam and cleaned" in panels.frames(seen)


def test_frames_of_several_sizes_have_no_one_beam(network: Network, tmp_path: Path) -> None:
    pages = [Image.new("L", size, 90) for size in ((64, 64), (80, 64))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    seen = examine(network, tmp_path / "pages.tif")
    assert seen.detected is None
    assert len(seen.times) == 2
    assert "several sizes" in panels.beam(seen)


def test_a_backbone_has_no_answer(folder: Path) -> None:
    seen = examine(load("resnet18_uscl", "cpu"), folder / "stills" / "0.png")
    assert seen.clip is None
    assert "No classifier" in panels.answered(seen)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"text"])
def test_what_is_no_image_is_said(network: Network, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "upload" / "x.png"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        examine(network, path)
    said = panels.refused(str(caught.value), path.parent)
    assert "x.png" in said
    assert str(tmp_path) not in said


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (3, [0, 1, 2]), (11, [0, 2, 4, 6, 8, 10])]
)
def test_frames_shown_are_spread(count: int, expected: list[int]) -> None:
    assert spread(count) == expected


def test_panels_tell_what_predict_does(folder: Path, tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"confidence": 0.0, "threshold": 90.0}, ""),
        ({"confidence": 1.0, "threshold": 90.0}, "less sure than 1"),
        ({"confidence": 0.0, "threshold": 1e-6}, "unlike the training images"),
    )
    for number, (answers, why) in enumerate(cases):
        network = load(write_model(tmp_path / str(number), **answers), "cpu")
        seen = examine(network, folder / "stills" / "0.png")
        text = panels.answered(seen)
        assert ("cannot tell" in text) == bool(why)
        assert why in text
        assert seen.clip is not None
        assert ("Unlike the training images: " in text) == seen.clip.unlike
        for label in CLASSES:
            assert f"<span>{label}</span>" in text
        assert "Not a medical device" in text


def test_labels_and_a_number_are_said(folder: Path, network: Network) -> None:
    assert network.answers is not None
    said = replace(network.answers, task=LABELS, confidence=0.0)
    seen = examine(replace(network, answers=said), folder / "clip.gif")
    text = panels.answered(seen)
    assert seen.clip is not None
    assert f'<p class="answer">{seen.clip.best}' in text
    assert "where a label is said" in text
    assert panels.frames(seen).count("<img") == SHOWN
    # of one that is said, however unlikely, and of which nothing is sure
    first = seen.clip.probabilities | {CLASSES[0]: 0.2}
    early = replace(said, confidence=0.7, cuts=tuple(0.1 for _ in CLASSES))
    unsure = replace(seen.clip, answer=None, unlike=False, probabilities=first)
    text = panels.answered(replace(seen, clip=unsure, network=replace(network, answers=early)))
    assert f"less sure than 0.7 of {CLASSES[0]} (0.20)" in text
    number = replace(seen.clip, probabilities={"area": 12.0}, best="12", interval=(10.0, 14.5))
    of_numbers = replace(network, answers=replace(said, classes=("area",), task=NUMBER))
    text = panels.answered(replace(seen, clip=replace(number, answer="12"), network=of_numbers))
    assert "area 12 [10, 14.5]" in text
    assert "nine in ten" in text


def test_names_are_no_markup(network: Network, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    path.write_bytes((folder / "stills" / "0.png").read_bytes())
    seen = examine(network, path)
    for panel in (panels.answered(seen), panels.frames(seen), panels.beam(seen)):
        assert "<img src=x" not in panel
    assert "&lt;img src=x" in panels.answered(seen)


class TestCollection:
    @pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
    def test_the_same_image_is_nearest(self, folder: Path, network: Network, suffix: str) -> None:
        found = embed(
            network.module, folder / "stills", progress=False, subjects=lambda name: f"s{name[0]}"
        )
        path = found.save(folder / f"features{suffix}")
        known = read_collection(path, network)
        assert known.checked
        seen = examine(network, folder / "stills" / "2.png", known)
        first = seen.neighbours[0]
        assert first.name == "stills/2.png"
        assert first.subject == "s2"
        assert first.cosine == pytest.approx(1, abs=1e-4)
        assert first.picture is not None
        cosines = [near.cosine for near in seen.neighbours]
        assert cosines == sorted(cosines, reverse=True)
        text = panels.neighbours(seen, known)
        assert text.count("<img") == 4
        assert "of 4 files" in text

    def test_a_file_is_near_once(self, folder: Path, network: Network, tmp_path: Path) -> None:
        frames = embed(network.module, folder / "clip.gif", progress=False)
        still = embed(network.module, folder / "stills" / "0.png", progress=False)
        path = concatenate([frames, still]).save(tmp_path / "features.npz")
        known = read_collection(path, network)
        seen = examine(network, folder / "clip.gif", known)
        assert len(seen.neighbours) == 2

    def test_of_another_network_it_is_refused(
        self, folder: Path, network: Network, tmp_path: Path
    ) -> None:
        other = load(write_model(tmp_path / "other", seed=1), "cpu")
        path = embed(other.module, folder / "stills", progress=False).save(tmp_path / "f.npz")
        with pytest.raises(DataError, match=r"not embedded by model.*cosine of"):
            read_collection(path, network)

    def test_of_another_width_it_is_refused(self, network: Network, tmp_path: Path) -> None:
        path = tmp_path / "f.npz"
        one = np.ones(1, np.int64)
        np.savez(path, features=np.ones((1, 8), "f4"), sources=["x"], frames=one, counts=one)
        with pytest.raises(DataError, match="8 numbers an image, and model makes 512"):
            read_collection(path, network)

    def test_files_that_have_gone_are_near_without_a_picture(
        self, folder: Path, network: Network, tmp_path: Path
    ) -> None:
        still = tmp_path / "gone.png"
        still.write_bytes((folder / "stills" / "1.png").read_bytes())
        path = embed(network.module, still, progress=False).save(tmp_path / "f.npz")
        still.unlink()
        known = read_collection(path, network)
        assert not known.checked
        text = panels.neighbours(examine(network, folder / "stills" / "1.png", known), known)
        assert "picture not in reach" in text
        assert "could not be checked" in text

    @pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
    @pytest.mark.parametrize("content", [b"", b"PK\3\4", b"a,b\n1,2\n"])
    def test_what_is_none_is_said(
        self, network: Network, tmp_path: Path, suffix: str, content: bytes
    ) -> None:
        path = tmp_path / f"f{suffix}"
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match=re.escape(path.name)):
            read_collection(path, network)
