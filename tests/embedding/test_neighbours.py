"""The nearest images of an embedded collection, and the map of it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from conftest import TINTS, draw_clip, write_clip
from own import run, write_model
from PIL import Image
from pyarrow import parquet

from uscl_zoo.data.annotations import read_table
from uscl_zoo.embedding.atlas import MOST_GROUPS, draw_map
from uscl_zoo.embedding.embeddings import concatenate
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.embedding.neighbours import neighbours, read_collection, read_embeddings
from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError
from uscl_zoo.network import Network, load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("own") / "model")


@pytest.fixture(scope="module")
def network(model: Path) -> Network:
    return load(model, "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, five stills in each, which by their names are no clip."""
    folder = tmp_path_factory.mktemp("collection") / "set"
    for place, (label, tint) in enumerate(TINTS.items()):
        (folder / label).mkdir(parents=True)
        for number, name in enumerate("abcde"):
            frame = draw_clip(100 * place + number, 1, tint)[0]
            Image.fromarray(frame).save(folder / label / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def features(folder: Path, network: Network) -> Path:
    found = embed(network, folder, progress=False, subjects=lambda name: f"s{name[:5]}")
    return found.save(folder.parent / "features.npz")


class TestReading:
    @pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
    def test_what_was_written_is_read(self, suffix: str, tmp_path: Path, network: Network) -> None:
        """Whatever the names are."""
        names = ["=1+1.png", "a,b.png", "'quoted'.png", "é\n.png"]
        for number, name in enumerate(names):
            frame = draw_clip(number, 1, TINTS["Cov"])[0]
            Image.fromarray(frame).save(tmp_path / name)
        made = embed(network, [tmp_path / n for n in names], progress=False, subjects=names)
        known = read_embeddings(made.save(tmp_path / f"f{suffix}"))
        lengths = np.linalg.norm(made.features, axis=1, keepdims=True)
        assert known.features == pytest.approx(made.features / lengths, abs=1e-6)
        assert [Path(source).name for source in known.sources[:3]] == names[:3]
        assert known.subjects is not None and list(known.subjects[:3]) == names[:3]
        assert known.frames.tolist() == [0] * 4 and known.counts.tolist() == [1] * 4

    @pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
    @pytest.mark.parametrize("content", [b"", b"PK\3\4", b"a,b\n1,2\n"])
    def test_what_is_none_is_said(self, suffix: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"f{suffix}"
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match=re.escape(path.name)):
            read_embeddings(path)

    def test_columns_that_do_not_fit(self, tmp_path: Path) -> None:
        one = np.ones(1, np.int64)
        made = {"features": np.ones((2, 8), "f4"), "sources": ["x"], "frames": one, "counts": one}
        np.savez(tmp_path / "f.npz", **made)  # type: ignore[arg-type]
        with pytest.raises(UnreadableError, match="holds no embeddings"):
            read_embeddings(tmp_path / "f.npz")
        made["features"] = np.full((1, 8), np.nan, "f4")
        np.savez(tmp_path / "f.npz", **made)  # type: ignore[arg-type]
        with pytest.raises(UnreadableError, match="are no numbers"):
            read_embeddings(tmp_path / "f.npz")

    @pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet"])
    @pytest.mark.parametrize("what", ["pipe", "device"])
    def test_no_file_is_said_at_once(self, suffix: str, what: str, tmp_path: Path) -> None:
        path = tmp_path / f"f{suffix}"
        if what == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(UnreadableError, match="neither a file nor a folder"):
            read_embeddings(path)

    def test_small_to_send_and_long_to_read(self, tmp_path: Path) -> None:
        packed = zipfile.ZipFile(tmp_path / "f.npz", "w", zipfile.ZIP_DEFLATED)
        with packed, packed.open("features.npy", "w") as stream:
            about = {"descr": "<f4", "fortran_order": False, "shape": (60_000, 512)}
            np.lib.format.write_array_header_1_0(stream, about)
            for _ in range(60):
                stream.write(bytes(2048_000))
        frames = pyarrow.array(np.zeros(10_000_000, np.int8))
        columns = dict.fromkeys(("source", "frame", "frames_averaged", "feature_0"), frames)
        parquet.write_table(pyarrow.table(columns), tmp_path / "f.parquet", compression="zstd")
        for suffix in ("npz", "parquet"):
            assert (tmp_path / f"f.{suffix}").stat().st_size < 2**20
            with pytest.raises(UnreadableError, match="many more numbers than a file of its size"):
                read_embeddings(tmp_path / f"f.{suffix}")

    def test_what_claims_to_be_larger_than_memory(self, tmp_path: Path) -> None:
        packed = zipfile.ZipFile(tmp_path / "f.npz", "w")
        with packed, packed.open("features.npy", "w") as stream:
            about = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 512)}
            np.lib.format.write_array_header_1_0(stream, about)
        with pytest.raises(UnreadableError, match="holds no embeddings"):
            read_embeddings(tmp_path / "f.npz")

    def test_what_spreadsheets_and_editors_make_of_a_table(
        self, features: Path, folder: Path, network: Network, tmp_path: Path
    ) -> None:
        path = embed(network, folder, progress=False).save(tmp_path / "f.csv")
        text = path.read_text("utf-8")
        marked = tmp_path / "marked.csv"
        marked.write_text(text, "utf-8-sig")
        assert read_embeddings(marked).sources == read_embeddings(path).sources
        lines = text.splitlines()
        for number, line in enumerate((lines[3] + ",1", lines[3].rpartition(",")[0])):
            path = tmp_path / f"{number}.csv"
            path.write_text("\n".join([*lines[:3], line, *lines[4:]]))
            with pytest.raises(UnreadableError, match=r"line 4 has \d+ cells, not \d+"):
                read_embeddings(path)

    @pytest.mark.parametrize(
        "changed",
        [
            {"frames": -np.ones(1, np.int64)},
            {"counts": np.zeros(1, np.int64)},
            {"frames": np.array(["x"])},
            {"features": np.ones((1, 8), "c8")},
        ],
    )
    def test_numbers_that_are_none(self, changed: dict[str, Any], tmp_path: Path) -> None:
        one = np.ones(1, np.int64)
        made = {"features": np.ones((1, 8), "f4"), "sources": ["x"], "frames": one, "counts": one}
        np.savez(tmp_path / "f.npz", **made | changed)  # type: ignore[arg-type]
        with pytest.raises(UnreadableError):
            read_embeddings(tmp_path / "f.npz")


class TestNearest:
    def test_its_own_class_and_not_itself(
        self, features: Path, folder: Path, model: Path, tmp_path: Path
    ) -> None:
        image = folder / "Cov" / "b.png"
        found = neighbours(features, image, model, count=4, output=tmp_path / "x.png", device="cpu")
        assert found.checked
        names = [one.name for one in found.nearest]
        assert set(names) == {f"Cov/{letter}.png" for letter in "acde"}
        cosines = [one.cosine for one in found.nearest]
        assert cosines == sorted(cosines, reverse=True)
        assert found.nearest[0].subject == "sCov/" + names[0][4]
        assert Image.open(tmp_path / "x.png").size[0] > 1000

    def test_an_array_or_a_copy_is_nearest_to_its_file(
        self, features: Path, folder: Path, model: Path, tmp_path: Path
    ) -> None:
        image = Image.open(folder / "Reg" / "c.png")
        image.save(tmp_path / "mine.png")
        for given in (image, np.asarray(image), tmp_path / "mine.png"):
            first = neighbours(features, given, model, device="cpu").nearest[0]
            assert first.name == "Reg/c.png"
            assert first.cosine == pytest.approx(1, abs=1e-4)

    def test_a_clip_is_near_once(self, folder: Path, network: Network, tmp_path: Path) -> None:
        write_clip(tmp_path / "c_mp4", draw_clip(5, 4, TINTS["Cov"]))
        frames = embed(network, tmp_path / "c_mp4", progress=False)
        stills = embed(network, folder / "Cov", progress=False)
        path = concatenate([frames, stills]).save(tmp_path / "f.npz")
        found = neighbours(path, folder / "Cov" / "a.png", network)
        assert len(found.nearest) == 5
        assert len({one.source for one in found.nearest}) == 5

    def test_of_another_network(self, folder: Path, network: Network, tmp_path: Path) -> None:
        other = load(write_model(tmp_path / "other", seed=1), "cpu")
        path = embed(other, folder / "Cov", progress=False).save(tmp_path / "f.npz")
        with pytest.raises(DataError, match=r"not embedded by model.*cosine of"):
            read_collection(path, network)
        narrow = tmp_path / "narrow.npz"
        one = np.ones(1, np.int64)
        np.savez(narrow, features=np.ones((1, 8), "f4"), sources=["x"], frames=one, counts=one)
        with pytest.raises(DataError, match="8 numbers an image, and model makes 512"):
            read_collection(narrow, network)

    def test_several_are_not_one(self, features: Path, folder: Path, network: Network) -> None:
        with pytest.raises(DataError, match="one image or clip is wanted, and these are 5"):
            neighbours(features, folder / "Cov", network)

    def test_on_the_command_line(
        self, folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a.png", "b.png"):
            Image.open(folder / "Cov" / name).save(tmp_path / name)
        path = embed(load(model, "cpu"), tmp_path, progress=False).save(tmp_path / "f.csv")
        asked = ["neighbours", path, folder / "Cov" / "a.png", "--model", model, "--device", "cpu"]
        assert run(*asked, "-n", 1) == 0
        assert capsys.readouterr().out == f" 1.000  {tmp_path / 'a.png'}\n"
        assert run(*asked, "--json") == 0
        (first, second) = json.loads(capsys.readouterr().out)
        assert (Path(second["source"]).name, first["cosine"]) == ("b.png", pytest.approx(1))
        for name in ("a.png", "b.png"):
            (tmp_path / name).unlink()
        assert run(*asked) == 0
        assert "none of its files is in reach" in capsys.readouterr().err


def content_of(page: Path) -> dict[str, Any]:
    """The data within a page."""
    (data,) = re.findall(r"^const data = (.*), side = 1000", page.read_text(), re.MULTILINE)
    found: dict[str, Any] = json.loads(data)
    return found


class TestMap:
    def test_it_is_one_page_with_every_image(self, features: Path, tmp_path: Path) -> None:
        page = draw_map(features, tmp_path / "map.html", progress=False)
        text, data = page.read_text(), content_of(page)
        assert "http" not in text and "<link" not in text and " src=" not in text
        assert len(data["points"]) == 15 and data["by"] == "folder"
        assert data["groups"] == sorted(TINTS)
        assert all(len(point["p"]) > 500 for point in data["points"])
        first = data["points"][0]
        assert first["n"].startswith("Cov/a.png") and data["groups"][first["g"]] == "Cov"
        again = draw_map(features, tmp_path / "again.html", progress=False)
        assert again.read_text() == text
        # like beside like
        places = np.array([[point["x"], point["y"]] for point in data["points"]])
        group = np.array([point["g"] for point in data["points"]])
        apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e6 * np.eye(15)
        assert (group[apart.argmin(axis=1)] == group).mean() > 0.8

    def test_coloured_by_a_table(self, features: Path, tmp_path: Path) -> None:
        parity = {"a": "odd", "b": "", "c": "odd", "d": ""}
        lines = [f"{label}/{n}.png,{word}" for label in TINTS for n, word in parity.items()]
        (tmp_path / "t.csv").write_text("\n".join(["file,parity", *lines]))
        groups = read_table(tmp_path / "t.csv", "file", "parity")
        data = content_of(draw_map(features, tmp_path / "map.html", groups=groups, progress=False))
        counts = dict.fromkeys(data["groups"], 0)
        for point in data["points"]:
            counts[data["groups"][point["g"]]] += 1
        assert counts == {"no label": 9, "odd": 6} and data["by"] == "label"

    def test_many_groups_few_points_and_names_that_are_code(
        self, network: Network, tmp_path: Path
    ) -> None:
        for number in range(14):
            home = tmp_path / "set" / f"</script><b>{number}"
            home.mkdir(parents=True)
            Image.fromarray(draw_clip(number, 1, (90, 90, 90))[0]).save(home / "x.png")
        path = embed(network, tmp_path / "set", progress=False).save(tmp_path / "f.npz")
        told: list[str] = []
        page = draw_map(path, tmp_path / "map.html", progress=False, tell=told.append)
        assert page.read_text().count("</script>") == 1
        data = content_of(page)
        assert data["groups"][-1] == "4 others"
        assert len(data["groups"]) == len(data["colours"]) == MOST_GROUPS + 1
        for image in (tmp_path / "set").rglob("*.png"):
            image.unlink()
        page = draw_map(path, page, most=6, progress=False, tell=told.append)
        assert [point["p"] for point in content_of(page)["points"]] == [None] * 6
        assert "6 of 14 rows, drawn at random; `most=14` takes all" in told
        assert "6 of 6 images are not in reach, and so have no picture" in told

    def test_what_is_refused(
        self, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(DataError, match=r"should end in \.html"):
            draw_map(features, tmp_path / "map.png")
        (tmp_path / "mine.html").write_text("<html>my own page")
        with pytest.raises(DataError, match="is there, and not of an earlier call"):
            draw_map(features, tmp_path / "mine.html")
        monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
        with pytest.raises(MissingDependencyError, match="a map needs scikit-learn"):
            draw_map(features, tmp_path / "map.html")

    def test_on_the_command_line(
        self, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("map", features, "-o", tmp_path / "map.html", "--most", 9) == 0
        assert "9 of 15 rows, drawn at random; --most 15 takes all" in capsys.readouterr().err
