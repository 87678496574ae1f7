import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import uscl_zoo
from uscl_zoo.card import Card
from uscl_zoo.embed import Embeddings, check_suffix, embed, embed_frames, written_whole
from uscl_zoo.errors import DataError, UnknownModelError, UnreadableError
from uscl_zoo.ultrasound.reading import sample
from uscl_zoo.ultrasound.transforms import create_transform


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return uscl_zoo.create_model("resnet18_uscl")


def gif(path: Path, seed: int, frames: int = 5) -> Path:
    """A clip of noise, five frames a second."""
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 40, 40), np.uint8)
    first, *rest = (Image.fromarray(frame) for frame in noise)
    first.save(path, save_all=True, append_images=rest, duration=200)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    gif(folder / "a.gif", seed=1, frames=5)
    (folder / "b.png").write_bytes(b"nothing")
    gif(folder / "c.gif", seed=2, frames=3)
    Image.fromarray(np.full((30, 50), 90, np.uint8)).save(folder / "d.png")
    return folder


def reference(model: nn.Module, path: Path, rate: float) -> list[np.ndarray[Any, Any]]:
    """One frame at a time, by the plainest route."""
    transform = create_transform(model)
    model.eval()
    with torch.inference_mode():
        return [model(transform(image)[None])[0].numpy() for _, image in sample(path, rate)]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_a_row_a_frame(model: nn.Module, folder: Path, batch_size: int) -> None:
    result = embed(model, folder, rate=10, batch_size=batch_size, progress=False)
    assert [path.name for path in result.sources] == ["a.gif"] * 5 + ["c.gif"] * 3 + ["d.png"]
    assert result.frames.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0]
    assert result.times == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0, 0.2, 0.4, 0])
    assert result.counts.tolist() == [1] * 9
    assert len(result) == 9
    assert result.features.dtype == np.float32
    expected = [
        row for name in ("a.gif", "c.gif", "d.png") for row in reference(model, folder / name, 10)
    ]
    assert np.allclose(result.features, expected, rtol=1e-3, atol=1e-5)


def test_a_row_a_clip_is_the_mean_of_its_frames(model: nn.Module, folder: Path) -> None:
    frames = embed(model, folder, rate=10, progress=False)
    clips = embed(model, folder, pool="clip", rate=10, progress=False)
    assert [path.name for path in clips.sources] == ["a.gif", "c.gif", "d.png"]
    assert clips.counts.tolist() == [5, 3, 1]
    assert clips.frames.tolist() == [0, 0, 0]
    expected = [frames.features[:5].mean(0), frames.features[5:8].mean(0), frames.features[8]]
    assert np.allclose(clips.features, expected, rtol=1e-5, atol=1e-6)


def test_rate_is_of_time(model: nn.Module, folder: Path) -> None:
    result = embed(model, folder / "a.gif", rate=2.5, progress=False)
    assert result.times == pytest.approx([0, 0.4, 0.8])


def test_what_cannot_be_read_is_skipped_and_named(model: nn.Module, folder: Path) -> None:
    result = embed(model, folder, progress=False)
    assert result.skipped == [(folder / "b.png", "cannot be read (not an image)")]


def test_nothing_readable(model: nn.Module, folder: Path) -> None:
    with pytest.raises(DataError, match=r"none of 1 sources can be read; .*b\.png"):
        embed(model, folder / "b.png", progress=False)
    with pytest.raises(UnreadableError, match="no such file"):
        embed(model, folder / "x.png", progress=False)
    with pytest.raises(DataError, match="nothing to embed"):
        embed(model, [], progress=False)
    with pytest.raises(DataError, match="no frames"):
        embed_frames(model, [])


@pytest.mark.parametrize(
    "wrong", [{"pool": "video"}, {"batch_size": 0}, {"rate": -1}, {"device": "abacus"}]
)
def test_wrong_arguments(model: nn.Module, folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        embed(model, folder, progress=False, **wrong)


def test_a_classifier_is_passed_by(folder: Path) -> None:
    network = timm.create_model("resnet18", num_classes=3)
    assert embed(network, folder / "d.png", progress=False).features.shape == (1, 512)


@pytest.mark.parametrize("settings", [{"features_only": True}, {"global_pool": ""}])
def test_a_network_without_one_vector_a_frame(folder: Path, settings: dict[str, Any]) -> None:
    network = uscl_zoo.create_model("resnet18_uscl", **settings)
    with pytest.raises(DataError, match="does not give one vector a frame"):
        embed(network, folder / "d.png", progress=False)


def test_the_network_is_left_as_it_was(model: nn.Module, folder: Path) -> None:
    model.train()
    model.get_submodule("bn1").eval()  # frozen, as in fine-tuning
    before = {name: value.clone() for name, value in model.state_dict().items()}
    embed(model, folder / "a.gif", progress=False)
    assert model.training
    assert not model.get_submodule("bn1").training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_half_precision_network(folder: Path) -> None:
    network = uscl_zoo.create_model("resnet18_uscl").to(torch.bfloat16)
    assert embed(network, folder / "d.png", progress=False).features.dtype == np.float32


def test_frames_in_memory(model: nn.Module, folder: Path) -> None:
    images = [image for _, image in sample(folder / "a.gif", 10)]
    arrays = np.stack([np.asarray(image) for image in images])
    expected = embed(model, folder / "a.gif", rate=10, progress=False).features
    assert np.array_equal(embed_frames(model, images), expected)
    assert np.array_equal(embed_frames(model, arrays), expected)


def test_by_name(installed: Callable[..., Card], folder: Path) -> None:
    name = installed().name
    network = uscl_zoo.create_model(name, pretrained=True)
    by_name = embed(name, folder / "a.gif", device="cpu", progress=False)
    by_network = embed(network, folder / "a.gif", progress=False)
    assert np.array_equal(by_name.features, by_network.features)
    with pytest.raises(UnknownModelError, match="did you mean"):
        embed("resnet18_uscl.trail", folder, progress=False)


class TestSave:
    @pytest.fixture
    def embeddings(self) -> Embeddings:
        return Embeddings(
            features=np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32),
            sources=[Path("a, b.gif"), Path("ü.gif"), Path("folder")],
            frames=np.array([0, 1, 0]),
            times=np.array([0, 1 / 3, math.nan]),
            counts=np.array([1, 1, 7]),
            skipped=[(Path("c.png"), "not an image")],
        )

    def test_npz(self, embeddings: Embeddings, tmp_path: Path) -> None:
        path = embeddings.save(tmp_path / "new folder" / "out.npz")
        with np.load(path, allow_pickle=False) as saved:
            assert np.array_equal(saved["features"], embeddings.features)
            assert saved["sources"].tolist() == ["a, b.gif", "ü.gif", "folder"]
            assert np.array_equal(saved["times"], embeddings.times, equal_nan=True)
            assert saved["frames"].tolist() == [0, 1, 0]
            assert saved["counts"].tolist() == [1, 1, 7]
            assert saved["skipped"].tolist() == [["c.png", "not an image"]]

    def test_csv(self, embeddings: Embeddings, tmp_path: Path) -> None:
        path = embeddings.save(str(tmp_path / "out.CSV"))
        with path.open(newline="", encoding="utf-8") as stream:
            header, *rows = csv.reader(stream)
        names = [f"feature_{i}" for i in range(4)]
        assert header == ["source", "frame", "time_s", "frames_averaged", *names]
        assert [row[:4] for row in rows] == [
            ["a, b.gif", "0", "0", "1"],
            ["ü.gif", "1", "0.333333", "1"],
            ["folder", "0", "", "7"],
        ]
        assert np.array_equal(np.array([row[4:] for row in rows], np.float32), embeddings.features)

    def test_nothing_skipped(self, embeddings: Embeddings, tmp_path: Path) -> None:
        path = replace(embeddings, skipped=[]).save(tmp_path / "out.npz")
        with np.load(path, allow_pickle=False) as saved:
            assert saved["skipped"].shape == (0, 2)

    @pytest.mark.parametrize("name", ["out.xlsx", "out", "out.npz.gz"])
    def test_other_suffixes(self, embeddings: Embeddings, tmp_path: Path, name: str) -> None:
        with pytest.raises(DataError, match=r"should end in \.npz, \.csv or \.parquet"):
            check_suffix(tmp_path / name)
        with pytest.raises(DataError, match=r"should end in \.npz, \.csv or \.parquet"):
            embeddings.save(tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_a_folder_in_the_way(self, embeddings: Embeddings, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot be written"):
            embeddings.save(tmp_path / "file" / "out.npz")

    def test_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "out.csv"
        path.write_text("earlier")
        with pytest.raises(RuntimeError), written_whole(path) as partial:
            partial.write_text("half")
            raise RuntimeError
        assert path.read_text() == "earlier"
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]
