import copy
import csv
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
from uscl_zoo.cli import main
from uscl_zoo.embedding import extraction as embedding
from uscl_zoo.embedding import parts, running
from uscl_zoo.embedding.extraction import (
    Embeddings,
    check_suffix,
    embed,
    embed_frames,
    embed_to,
)
from uscl_zoo.errors import DataError, MissingDependencyError, UnknownModelError, UnreadableError
from uscl_zoo.network import load
from uscl_zoo.ultrasound.reading import sample
from uscl_zoo.ultrasound.transforms import create_transform
from uscl_zoo.zoo.card import Card


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


def test_stills_videos_and_dicom_in_one_folder(
    model: nn.Module, data: Path, tmp_path: Path
) -> None:
    videos = data / "pocus" / "videos" / "convex"
    taken = [next(videos.glob(f"*.{suffix}")) for suffix in ("avi", "gif", "mov", "mp4", "mpeg")]
    taken += [data / "dicom" / "US1_J2KR.dcm", data / "dicom" / "OBXXXX1A_rle_2frame.dcm"]
    taken += [next((data / "busi" / "normal").glob("*.jpg"))]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in taken:
        shutil.copy(path, mixed)
    # DICOM is known by its content
    (mixed / "US1_J2KR.dcm").rename(mixed / "IM00001")
    (mixed / "notes.txt").write_text("a list of what is here")
    result = embed(model, mixed, pool="clip", rate=1, progress=False)
    assert len(result) == len(taken)
    assert {path.name for path in result.sources} == {p.name for p in mixed.iterdir()} - {
        "notes.txt"
    }
    assert np.isfinite(result.features).all()
    alone = embed(model, taken[3], pool="clip", rate=1, progress=False)
    row = [path.name for path in result.sources].index(taken[3].name)
    assert np.allclose(result.features[row], alone.features[0], rtol=1e-3, atol=1e-5)


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
    "wrong",
    [{"pool": "video"}, {"batch_size": 0}, {"rate": -1}, {"device": "abacus"}, {"workers": 0}],
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


def test_a_row_a_subject_is_the_mean_of_its_clips(model: nn.Module, folder: Path) -> None:
    clips = embed(model, folder, pool="clip", rate=10, progress=False)
    whose = {"a.gif": "P1", "b.png": "P1", "c.gif": "P2", "d.png": "P1"}.get
    result = embed(model, folder, pool="subject", rate=10, progress=False, subjects=whose)
    assert result.subjects == ["P1", "P2"]
    assert result.counts.tolist() == [6, 3]
    assert [path.name for path in result.sources] == ["a.gif", "c.gif"]
    expected = [(clips.features[0] + clips.features[2]) / 2, clips.features[1]]
    assert np.allclose(result.features, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="needs subjects"):
        embed(model, folder, pool="subject", progress=False)


def test_subjects_are_known_by_the_path_in_the_folder(model: nn.Module, folder: Path) -> None:
    (folder.parent / "P7").mkdir()
    (folder / "d.png").rename(folder.parent / "P7" / "d.png")
    named = []

    def subjects(name: str) -> str | None:
        named.append(name)
        return name.split("/")[0] if "/" in name else None

    paths = [folder.parent / "P7" / "d.png", folder.parent]
    result = embed(model, paths, pool="clip", progress=False, subjects=subjects)
    assert named == ["d.png", "clips/a.gif", "clips/b.png", "clips/c.gif"]
    # one that nobody knows is its own
    assert result.subjects == ["d.png", "clips", "clips"]


def test_threads_do_not_change_order(
    model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lines so short that threads have to wait for room
    monkeypatch.setattr("uscl_zoo.ultrasound.sources._DEPTH", 1)
    alone = embed(model, folder, rate=10, batch_size=2, progress=False, workers=1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = embed(model, folder, rate=10, batch_size=2, progress=False, workers=5)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert together.sources == alone.sources
    assert together.frames.tolist() == alone.frames.tolist()
    assert np.allclose(together.features, alone.features, rtol=1e-3, atol=1e-5)


def test_an_error_ends_the_threads(model: nn.Module, folder: Path) -> None:
    before = threading.active_count()

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        embed(Broken(), folder, rate=10, batch_size=1, progress=False, workers=4)
    assert threading.active_count() == before


class TestEmbedTo:
    def test_as_in_memory(self, model: nn.Module, folder: Path, tmp_path: Path) -> None:
        expected = embed(model, folder, rate=10, progress=False)
        done = embed_to(tmp_path / "out.npz", model, folder, rate=10, progress=False)
        assert (done.rows, done.width, done.sources, done.resumed) == (9, 512, 3, 0)
        assert done.skipped == expected.skipped
        with np.load(done.path, allow_pickle=False) as saved:
            assert np.array_equal(saved["features"], expected.features)
            assert saved["sources"].tolist() == [str(path) for path in expected.sources]
            assert saved["frames"].tolist() == expected.frames.tolist()
            assert np.array_equal(saved["times"], expected.times)
            assert saved["skipped"][0, 0] == str(folder / "b.png")
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clips", "out.npz"]

    def test_subjects(self, model: nn.Module, folder: Path, tmp_path: Path) -> None:
        whose = {"a.gif": "P1", "c.gif": "P2", "d.png": "P1"}.get
        expected = embed(model, folder, "subject", progress=False, subjects=whose)
        done = embed_to(
            tmp_path / "out.csv", model, folder, "subject", progress=False, subjects=whose
        )
        assert (done.rows, done.sources) == (2, 3)
        assert done.path.read_text() == expected.save(tmp_path / "x.csv").read_text()

    @pytest.fixture
    def interrupted(
        self, model: nn.Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        """An output whose making was interrupted after its first source."""
        output = tmp_path / "out.npz"
        rows = running.run

        def cut_short(*given: Any, **options: Any) -> Iterator[Any]:
            yield next(rows(*given, **options))
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(running, "run", cut_short)
            embed_to(output, model, folder, rate=10, progress=False)
        assert not output.exists()
        assert [part.suffix for part in (tmp_path / "out.npz.parts").iterdir()] == [".npz"]
        return output

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the sources that are decoded."""
        names: list[str] = []

        def spy(path: Path, *given: Any, **settings: Any) -> Any:
            names.append(path.name)
            return sample(path, *given, **settings)

        monkeypatch.setattr("uscl_zoo.ultrasound.sources.sample", spy)
        return names

    def test_resumes(
        self, model: nn.Module, folder: Path, interrupted: Path, opened: list[str]
    ) -> None:
        done = embed_to(interrupted, model, folder, rate=10, progress=False)
        assert sorted(opened) == ["b.png", "c.gif", "d.png"]
        assert (done.resumed, done.rows, done.sources) == (1, 9, 3)
        expected = embed(model, folder, rate=10, progress=False)
        with np.load(interrupted, allow_pickle=False) as saved:
            assert np.allclose(saved["features"], expected.features, rtol=1e-3, atol=1e-5)
            assert saved["sources"].tolist() == [str(path) for path in expected.sources]
            assert saved["frames"].tolist() == expected.frames.tolist()
        assert not interrupted.with_name("out.npz.parts").exists()

    @pytest.mark.parametrize("change", ["file", "network", "rate", "pool", "damage"])
    def test_what_has_changed_is_done_again(
        self, model: nn.Module, folder: Path, interrupted: Path, opened: list[str], change: str
    ) -> None:
        settings: dict[str, Any] = {"rate": 10, "pool": "frame"}
        network = model
        if change == "file":
            gif(folder / "a.gif", seed=9, frames=2)
        elif change == "network":
            network = copy.deepcopy(model)
            network.state_dict()["bn1.running_mean"][0] += 1e-3
        elif change == "damage":
            (part,) = interrupted.with_name("out.npz.parts").iterdir()
            part.write_bytes(part.read_bytes()[:2000])
        else:
            settings[change] = {"rate": 5, "pool": "clip"}[change]
        done = embed_to(interrupted, network, folder, progress=False, **settings)
        assert "a.gif" in opened
        assert done.resumed == 0
        expected = embed(network, folder, progress=False, **settings)
        with np.load(interrupted, allow_pickle=False) as saved:
            assert np.allclose(saved["features"], expected.features, rtol=1e-3, atol=1e-5)

    def test_parts_of_many_sources(
        self, model: nn.Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # a part for each source, then all in one
        monkeypatch.setattr(parts, "_PART_ROWS", 1)
        one = embed_to(tmp_path / "one.csv", model, folder, rate=10, progress=False)
        monkeypatch.setattr(parts, "_PART_ROWS", 10**6)
        other = embed_to(tmp_path / "other.csv", model, folder, rate=10, progress=False)
        assert one.path.read_text() == other.path.read_text()

    @pytest.mark.slow
    def test_killed_while_it_works(self, folder: Path, tmp_path: Path) -> None:
        """No process gets to tidy up here; what was put on disk counts."""
        for i in range(8):
            gif(folder / f"e{i}.gif", seed=i, frames=6)
        output = tmp_path / "out.parquet"
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=0)
        code = (
            "import sys, time, timm, torch; from uscl_zoo.embedding import extraction as e, parts\n"
            "parts._PART_ROWS = 1\n"
            "torch.manual_seed(0); m = timm.create_model('test_resnet', num_classes=0)\n"
            "m.register_forward_pre_hook(lambda *_: time.sleep(0.5))\n"
            "e.embed_to(sys.argv[1], m, sys.argv[2], rate=100, batch_size=4, progress=False)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(output), str(folder)])
        while not list(tmp_path.glob("out.parquet.parts/[0-9]*.npz")):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert not output.exists()
        done = embed_to(output, network, folder, rate=100, progress=False)
        assert done.resumed >= 1
        assert done.rows == 9 + 8 * 6
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clips", "out.parquet"]

    def test_what_ends_the_process_that_reads_it_is_skipped_and_named(
        self, folder: Path, tmp_path: Path
    ) -> None:
        output, beside = tmp_path / "out.csv", tmp_path / "beside"
        beside.mkdir()
        # as FFmpeg may end by a damaged byte, in whatever process reads it
        (beside / "sitecustomize.py").write_text(
            "import os, sys, threading\n"
            "def look(event, about):\n"
            "    if event == 'open' and str(about[0]).endswith('c.gif'):\n"
            "        if sys.argv[0] == '-c' or 'decode' in threading.current_thread().name:\n"
            "            os.kill(os.getpid(), 9)\n"
            "sys.addaudithook(look)\n"
        )
        code = (
            "import timm, torch; from uscl_zoo.embedding.extraction import embed_to\n"
            "torch.manual_seed(0); m = timm.create_model('test_resnet', num_classes=0)\n"
            f"done = embed_to({str(output)!r}, m, {str(folder)!r}, rate=10, progress=False)\n"
            "print(*done.skipped, sep='\\n')\n"
        )
        script = tmp_path / "script.py"
        script.write_text(code)
        paths = os.pathsep.join([str(beside), os.environ.get("PYTHONPATH", "")])
        where = os.environ | {"PYTHONPATH": paths}

        def call() -> subprocess.CompletedProcess[str]:
            words = [sys.executable, str(script)]
            return subprocess.run(words, capture_output=True, text=True, env=where)

        assert call().returncode == -9
        assert len(list(tmp_path.glob("out.csv.parts/*.begun"))) >= 1
        done = call()
        assert done.returncode == 0, done.stderr
        assert f"{folder / 'c.gif'}'), 'ends the process that reads it" in done.stdout
        assert not list(tmp_path.glob("out.csv.parts"))
        with output.open(newline="", encoding="utf-8") as stream:
            read = {row["source"] for row in csv.DictReader(stream)}
        assert read == {str(folder / "a.gif"), str(folder / "d.png")}

    def test_nothing_readable_leaves_nothing(
        self, model: nn.Module, folder: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match="none of 1 sources"):
            embed_to(tmp_path / "out.npz", model, folder / "b.png", progress=False)
        assert [entry.name for entry in tmp_path.iterdir()] == ["clips"]


class TestCommand:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=0)
        monkeypatch.setattr(embedding, "load", lambda name, device: load(network, device))

    def run(self, *arguments: str | Path) -> int:
        try:
            main(["embed", *map(str, arguments)])
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    def test_subjects_of_a_table(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table, output = tmp_path / "t.csv", tmp_path / "out.csv"
        table.write_text("video,patient\na,P1\nD.png,P1\n")
        where = ("--csv", table, "--file-column", "video", "--subject-column", "patient")
        assert self.run(folder, "-o", output, "--pool", "subject", *where) == 0
        with output.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["subject"] for row in rows] == ["P1", "c.gif"]
        told = capsys.readouterr()
        # b.png cannot be read either
        assert f"2 files have no row in {table}, each its own subject; the first: b.png" in told.err
        assert "2 subjects of 3 files, " in told.out

    def test_subjects_of_names(self, folder: Path, tmp_path: Path) -> None:
        output = tmp_path / "out.csv"
        assert self.run(folder, "-o", output, "--subject-pattern", "^(.)") == 0
        with output.open(newline="", encoding="utf-8") as stream:
            assert [row["subject"] for row in csv.DictReader(stream)] == [*"aaa", "c", "c", "d"]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--pool", "subject"], "needs --csv with --subject-column, or --subject-pattern"),
            (["--csv", "t.csv"], "--csv: needs --subject-column"),
            (["--subject-column", "p"], "--subject-column p: needs --csv"),
            (["--subject-pattern", "("], "is no regular expression"),
            (["--subject-pattern", "^(P)"], "a.gif: the subject pattern '^(P)' finds no group"),
            (["--csv", "t.csv", "--subject-pattern", "(.)"], "exclude each other"),
        ],
    )
    def test_mistakes(
        self,
        folder: Path,
        tmp_path: Path,
        arguments: list[str],
        words: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.run(folder, "-o", tmp_path / "out.csv", *arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
        assert [entry.name for entry in tmp_path.iterdir()] == ["clips"]


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

    def test_parquet(self, embeddings: Embeddings, tmp_path: Path) -> None:
        from pyarrow import parquet

        whose = replace(embeddings, subjects=["P1", "P1", "P2"])
        table = parquet.read_table(whose.save(tmp_path / "out.parquet"))
        names = [f"feature_{i}" for i in range(4)]
        about = ["source", "subject", "frame", "time_s", "frames_averaged"]
        assert table.column_names == [*about, *names]
        columns = table.to_pydict()
        assert columns["source"] == ["a, b.gif", "ü.gif", "folder"]
        assert columns["subject"] == ["P1", "P1", "P2"]
        assert columns["time_s"] == [0, 1 / 3, None]
        assert columns["frames_averaged"] == [1, 1, 7]
        features = np.stack([table[name].to_numpy() for name in names], axis=1)
        assert features.dtype == np.float32
        assert np.array_equal(features, embeddings.features)

    def test_parquet_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match=r"uscl-zoo\[parquet\]"):
            check_suffix(tmp_path / "out.parquet")

    def test_subjects(self, embeddings: Embeddings, tmp_path: Path) -> None:
        whose = replace(embeddings, subjects=["P1", "P, 1", "P2"])
        with whose.save(tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["subject"] for row in rows] == ["P1", "P, 1", "P2"]
        with np.load(whose.save(tmp_path / "out.npz"), allow_pickle=False) as saved:
            assert saved["subjects"].tolist() == ["P1", "P, 1", "P2"]

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
