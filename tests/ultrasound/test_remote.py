"""Files in object storage are read as those here, from loopback servers of S3 and GCS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINTS, draw_clip
from own import run, write_model
from PIL import Image
from storage import free_port, s3_of, wait_for

import uscl_zoo
from uscl_zoo.embedding import running
from uscl_zoo.embedding.extraction import embed, embed_to
from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError
from uscl_zoo.files import Address, expanded
from uscl_zoo.network import Network, load
from uscl_zoo.ultrasound import remote
from uscl_zoo.ultrasound.reading import find, read

pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stills in folders, a clip, and what is none of them."""
    folder = tmp_path_factory.mktemp("remote")
    for place, name in enumerate(
        ("a/x2.png", "a/x10.png", "a/y.png", "b/x y+z.png", "b/1_mask.png")
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw_clip(place, 1, TINTS["Cov"])[0]).save(folder / name)
    first, *rest = (Image.fromarray(frame) for frame in draw_clip(9, 4, TINTS["Reg"]))
    first.save(folder / "clip.gif", save_all=True, append_images=rest, duration=400)
    (folder / "a" / ".hidden.png").write_bytes(b"x")
    (folder / "b" / "notes.txt").write_text("none")
    (folder / "b" / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def s3(files: Path) -> Iterator[str]:
    """The address of these files on a server of our own that speaks S3."""
    with s3_of(files) as address:
        yield address


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    return load(write_model(tmp_path_factory.mktemp("own") / "model"), "cpu")


def test_an_address_is_a_path_that_keeps_its_slashes() -> None:
    address = expanded("s3://bucket/folder/x.png")
    assert isinstance(address, Address)
    assert (str(address), address.name, address.suffix) == (
        "s3://bucket/folder/x.png",
        "x.png",
        ".png",
    )
    assert str(address.parent / "y.png") == "s3://bucket/folder/y.png"
    assert Address(str(address)) == address
    assert address.relative_to("s3://bucket").as_posix() == "folder/x.png"
    for path in ("C:/x.png", "c:\\x.png", "a/b.png", "/x", "http:/x"):
        assert not isinstance(expanded(path), Address)


class TestS3:
    def test_it_is_found_as_here(self, s3: str, files: Path) -> None:
        told: list[str] = []
        found = find(s3, on_damage=told.append)
        here = find(files, on_damage=lambda message: None)
        assert [str(source) for source in found] == [
            f"{s3}/{source.relative_to(files).as_posix()}" for source in here
        ]
        assert len(found) == 6
        assert [line.partition(":")[0] for line in told] == ["s3", "s3"]
        assert "b/notes.txt" in told[0] and "b/1_mask.png" in told[1]
        assert [str(path) for path in find(f"{s3}/a/x2.png")] == [f"{s3}/a/x2.png"]

    def test_names_that_no_path_has(
        self, s3: str, files: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A path of `odd//etc/x.png` would be `odd/etc/x.png`, or `/etc/x.png` on this machine."""
        import boto3

        names = ["odd/x.png", "odd//x.png", f"odd/{files}/a/y.png", "odd/./x.png", "odd/../x.png"]
        for name in names:
            boto3.client("s3").upload_file(str(files / "a" / "x2.png"), "scans", name)
        told: list[str] = []
        found = find("s3://scans/odd", on_damage=told.append)
        assert [str(source) for source in found] == ["s3://scans/odd/x.png"]
        assert [isinstance(source, Address) for source in found] == [True]
        (line,) = told
        assert line.startswith("s3://scans/odd: 4 names that no path has")
        for name in names[1:]:
            with pytest.raises(DataError, match="is no address that can be read"):
                find(f"s3://scans/{name}")
            assert run("audit", f"s3://scans/{name}") == 2
            assert "is no address that can be read" in capsys.readouterr().err

    def test_rows_are_those_of_the_files_here(self, s3: str, files: Path, network: Network) -> None:
        here = embed(network, files, rate=5, progress=False, subjects=lambda name: name[0])
        there = embed(network, s3, rate=5, progress=False, subjects=lambda name: name[0])
        assert (there.features == here.features).all()
        assert there.times.tolist() == here.times.tolist()
        assert there.subjects == here.subjects
        assert [str(path)[len(s3) :] for path in there.sources] == [
            f"/{path.relative_to(files).as_posix()}" for path in here.sources
        ]
        ((bad, why),) = there.skipped
        assert str(bad) == f"{s3}/b/bad.png" and "uscl-" not in why

    def test_interrupted_it_goes_on_by_version(
        self, s3: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output, once, asked = tmp_path / "x.csv", running.run, []

        def cut_short(net: Network, sources: Any, *given: Any, **options: Any) -> Iterator[Any]:
            asked.append(len(sources))
            for number, row in enumerate(once(net, sources, *given, **options)):
                if len(asked) == 1 and number == 2:
                    raise KeyboardInterrupt
                yield row

        monkeypatch.setattr(running, "run", cut_short)
        with pytest.raises(KeyboardInterrupt):
            embed_to(output, network.module, s3, progress=False)
        monkeypatch.setattr(remote, "_STATES", {})  # as another process would
        done = embed_to(output, network.module, s3, progress=False)
        assert (asked, done.resumed, done.sources) == ([6, 4], 2, 5)
        assert f"\n{s3}/a/x2.png," in output.read_text()

    def test_predict_and_explain(self, s3: str, files: Path, network: Network) -> None:
        said = uscl_zoo.predict(network, f"{s3}/clip.gif", progress=False)
        here = uscl_zoo.predict(network, files / "clip.gif", progress=False)
        assert said[0].probabilities == here[0].probabilities
        assert str(said[0]).startswith(f"{s3}/clip.gif: ")
        assert uscl_zoo.Embedder(network)(f"{s3}/a/x2.png").shape == (512,)
        assert read(f"{s3}/clip.gif").frames.shape == (4, 40, 48, 3)

    def test_on_the_command_line(
        self, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = write_model(tmp_path / "model")
        output = tmp_path / "x.npz"
        asked = ["embed", f"{s3}/a", "-o", output, "--model", model, "--device", "cpu"]
        assert run(*asked) == 0
        assert "3 frames of 3 files" in capsys.readouterr().out
        assert run("embed", "s3://scans/none", *asked[2:]) == 2
        assert "uscl: s3://scans/none: no such file or folder" in capsys.readouterr().err
        assert run("embed", f"{s3}/a", "-o", "s3://scans/x.npz") == 2
        assert "is in object storage, which is read from" in capsys.readouterr().err

    def test_prepare(self, s3: str, files: Path, tmp_path: Path) -> None:
        from uscl_zoo.training.preparing.labels import from_name
        from uscl_zoo.training.preparing.parts import Sampling
        from uscl_zoo.training.preparing.prepare import prepare

        how: Any = {"sampling": Sampling(size=32), "progress": False, "tell": lambda line: None}
        there = prepare([expanded(s3)], tmp_path / "there", from_name, workers=2, **how).store
        here = prepare([files], tmp_path / "here", from_name, workers=1, **how).store
        assert (there.frames == here.frames).all()
        assert [video.name for video in there.videos] == [video.name for video in here.videos]

    def test_nothing_is_left_behind(
        self, s3: str, network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        embed(network, f"{s3}/a", progress=False)
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_reached(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UnreadableError, match=r"s3://nobucket/x: no such file or folder"):
            find("s3://nobucket/x")
        with pytest.raises(UnreadableError, match="nothing://x/y: "):
            find("nothing://x/y")

        def missing(*given: Any, **options: Any) -> Any:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr("fsspec.core.url_to_fs", missing)
        with pytest.raises(MissingDependencyError, match=r"uscl-zoo\[s3\]"):
            find("s3://other/x")


@pytest.fixture(scope="module")
def gs(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of these files on a server of our own that speaks GCS."""
    import gcsfs
    from fsspec.config import conf

    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1"]
    command += [f"--port={port}", "--in-memory", "--default-bucket=scans"]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    home = tmp_path_factory.mktemp("gcs")
    with (
        subprocess.Popen(command, cwd=home, **quiet) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # what a user has in FSSPEC_GS_TOKEN, or in a configuration of fsspec
        patch.setitem(conf, "gs", {"token": "anon"})
        try:
            wait_for(port, server)
            system = gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
            for file in sorted(files.rglob("*.*")):
                system.pipe_file(
                    f"scans/set/{file.relative_to(files).as_posix()}", file.read_bytes()
                )
            yield "gs://scans/set"
        finally:
            server.terminate()


def test_gcs(gs: str, files: Path, network: Network) -> None:
    here = embed(network, files, progress=False)
    there = embed(network, gs, progress=False)
    assert (there.features == here.features).all()
    assert str(there.sources[0]) == f"{gs}/a/x2.png"
