"""Writing: whole or not at all, by one process at a time, never over what is not ours."""

from __future__ import annotations

import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FULL, files_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uscl_zoo import files
from uscl_zoo.errors import DataError
from uscl_zoo.files import (
    WriteError,
    check_folder,
    check_output,
    is_ours,
    locked,
    parts_of,
    written,
    written_folder,
)
from uscl_zoo.partials import sweep

#: Any name that a file may have on Linux, those that are no UTF-8 among them.
NAMES = (
    st.binary(min_size=1, max_size=255)
    .map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda raw: raw not in (b".", b".."))
    .map(os.fsdecode)
)
PATIENT = settings(
    max_examples=200 if FULL else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestWritten:
    @PATIENT
    @given(name=NAMES, before=st.none() | st.binary(), after=st.binary(), fails=st.booleans())
    def test_whole_or_as_before(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        name: str,
        before: bytes | None,
        after: bytes,
        fails: bool,
    ) -> None:
        folder = tmp_path_factory.mktemp("any")
        path = folder / name
        if before is not None:
            path.write_bytes(before)
        try:
            with written(path) as partial:
                partial.write_bytes(after)
                assert (path.read_bytes() if path.exists() else None) == before
                if fails:
                    raise KeyError
        except KeyError:
            pass
        wanted = before if fails else after
        assert (path.read_bytes() if path.exists() else None) == wanted
        assert os.listdir(folder) == ([] if wanted is None else [name])  # noqa: PTH208

    @pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o027])
    def test_permissions_are_those_the_umask_leaves(self, tmp_path: Path, mask: int) -> None:
        (tmp_path / "old").touch(mode=0o600)
        before = os.umask(mask)
        try:
            for name in ("old", "new"):
                with written(tmp_path / name) as partial:
                    partial.write_text("x")
            with written_folder(tmp_path / "folder") as inside:
                (inside / "file").touch()
        finally:
            os.umask(before)
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
        assert modes == {"old": 0o666 & ~mask, "new": 0o666 & ~mask, "folder": 0o777 & ~mask}

    def test_folders_on_the_way_may_be_links(self, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "home").symlink_to("scratch")
        with written(tmp_path / "home" / "deep" / "a.txt") as partial:
            partial.write_text("x")
        with locked(tmp_path / "home"), pytest.raises(DataError, match="another process"):
            files._PATIENCE, patience = 0.1, files._PATIENCE
            try:
                # by whichever way it is reached
                with locked(tmp_path / "scratch"):
                    pass
            finally:
                files._PATIENCE = patience
        assert (tmp_path / "scratch" / "deep" / "a.txt").read_text() == "x"

    def test_an_input_that_fails_is_named_itself(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as raised, written(tmp_path / "a") as partial:
            partial.write_bytes((tmp_path / "input").read_bytes())
        assert not isinstance(raised.value, DataError)
        assert raised.value.filename == str(tmp_path / "input")

    def test_a_full_disk_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("before")
        told = f"^{tmp_path}/a: cannot be written \\(File too large\\); make room, or name another$"
        with files_of(100), pytest.raises(WriteError, match=told), written(tmp_path / "a") as part:
            part.write_bytes(bytes(1000))
        assert everything(tmp_path) == ["a"]
        assert (tmp_path / "a").read_text() == "before"

    def test_errors_go_through_a_pool_of_processes(self) -> None:
        error = WriteError(Path("a"), "disk full")
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.strerror, type(again)) == (str(error), "disk full", WriteError)


def link(path: Path) -> None:
    (path.parent / "target").write_text("theirs")
    path.symlink_to("target")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def write(path: Path) -> None:
    with written(path) as partial:
        partial.write_text("ours")


@pytest.mark.parametrize("make", [link, dangling, Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("way", [write, check_output])
def test_what_is_no_file_is_not_replaced(
    tmp_path: Path, make: Callable[[Path], None], way: Callable[[Path], object]
) -> None:
    path = tmp_path / "out.csv"
    make(path)
    before, kind = everything(tmp_path), path.lstat().st_mode
    with pytest.raises(DataError, match=f"^{path}: is .*; name "):
        way(path)
    assert everything(tmp_path) == before
    assert path.lstat().st_mode == kind
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "theirs"


class TestFolder:
    def test_whole_or_absent(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), written_folder(tmp_path / "a" / "b") as folder:
            (folder / "x").touch()
            raise KeyError
        assert everything(tmp_path) == ["a"]
        with written_folder(tmp_path / "a" / "b") as folder:
            (folder / "x").touch()
            assert not (tmp_path / "a" / "b").exists()
        assert everything(tmp_path) == ["a", "a/b", "a/b/x"]
        with written_folder(tmp_path / "a" / "b", replace=True) as folder:
            (folder / "y").touch()
        assert everything(tmp_path) == ["a", "a/b", "a/b/y"]

    def test_what_comes_into_it_meanwhile_stays(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with pytest.raises(DataError, match="empty"), written_folder(tmp_path / "a") as folder:
            (folder / "x").touch()
            (tmp_path / "a" / "theirs").touch()
        assert everything(tmp_path) == ["a", "a/theirs"]

    def test_a_link_is_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "a").symlink_to("theirs")
        with pytest.raises(DataError, match="no folder"), written_folder(tmp_path / "a"):
            pass
        assert (tmp_path / "a").is_symlink()


HOLDER = """
import sys, time
from pathlib import Path
from uscl_zoo.files import locked, written
with locked(Path(sys.argv[1])), written(Path(sys.argv[1]) / "half") as partial:
    partial.write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


class TestLocked:
    def test_two_processes_and_one_that_is_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "a")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            monkeypatch.setattr(files, "_PATIENCE", 0.2)
            told = f"^{tmp_path}/a: another process is writing there; wait for it, or name another$"
            with pytest.raises(DataError, match=told), locked(tmp_path / "a"):
                pass
            # not to be swept away while it lives
            assert any(name.endswith(".partial") for name in everything(tmp_path))
            holder.send_signal(signal.SIGKILL)
            holder.wait()
        monkeypatch.undo()
        with locked(tmp_path / "a"):
            assert everything(tmp_path) == ["a", "a/.lock"]
            (tmp_path / "a" / "x").touch()
        assert everything(tmp_path) == ["a", "a/x"]

    def test_names_do_not_hinder_each_other(self, tmp_path: Path) -> None:
        with locked(tmp_path, "one"), locked(tmp_path, "one2"), written(tmp_path / "one2.yaml"):
            with locked(tmp_path / "deep"), locked(tmp_path, "two"):
                sweep(tmp_path, "one")
            assert any(is_ours(name) and "one2" in name for name in everything(tmp_path))
        assert everything(tmp_path) == ["one2.yaml"]

    def test_what_was_left_goes_and_what_is_written_stays(self, tmp_path: Path) -> None:
        """Where no lock keeps others away: at the name of a picture, a table, a folder."""
        left = [tmp_path / f".{name}.0123456789ab.partial" for name in ("a.png", "b", "other.png")]
        left[0].write_text("half")
        (left[1] / "deep").mkdir(parents=True)
        left[2].write_text("half")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / ".c.csv.0123456789ab.partial").write_text("half")
        with written(tmp_path / "a.png"), written_folder(tmp_path / "b", replace=True):
            check_output(tmp_path / "a.png")
            check_folder(tmp_path / "b")
            now = everything(tmp_path)
            assert [name for name in now if name.endswith("0123456789ab.partial")] == [left[2].name]
            assert len([name for name in now if name.endswith(".partial")]) == 3
        assert everything(tmp_path) == [left[2].name, "a.png", "b"]

    def test_of_a_name_that_is_cut_too(self, tmp_path: Path) -> None:
        name = "ü" * 120
        with written(tmp_path / name):
            (half,) = tmp_path.iterdir()
        half.write_text("half")
        check_output(tmp_path / name)
        assert everything(tmp_path) == [name]

    def test_a_folder_of_what_came_to_nothing_goes(self, tmp_path: Path) -> None:
        (tmp_path / "was there").mkdir()
        for name in ("new", "was there"):
            with pytest.raises(KeyError), locked(tmp_path / name):
                raise KeyError
        assert everything(tmp_path) == ["was there"]

    def test_a_folder_that_cannot_be_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with (
            pytest.raises(WriteError, match=r"^[^;]*cannot be written \("),
            locked(tmp_path / "file" / "a"),
        ):
            pass


WRITER = """
import sys
from pathlib import Path
from uscl_zoo.files import written
path, size = Path(sys.argv[1]), 1 << 22
print("ready", flush=True)
for turn in range(256):
    with written(path) as partial, partial.open("wb") as stream:
        for _ in range(64):
            stream.write(bytes([turn]) * (size // 64))
"""


def test_killed_at_any_moment_it_is_whole(tmp_path: Path) -> None:
    import random

    moments, path = random.Random(19), tmp_path / "a"
    for _ in range(20 if FULL else 3):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(moments.uniform(0.02, 0.5))
            writer.send_signal(signal.SIGKILL)
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 1 << 22
            assert len(set(content)) == 1
    sweep(tmp_path, "a")
    assert set(everything(tmp_path)) <= {"a"}


class TestCheckOutput:
    @pytest.mark.parametrize("spelling", ["t.csv", "./t.csv", "sub/../t.csv", "linked/t.csv"])
    def test_an_input_in_any_spelling(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
    ) -> None:
        (tmp_path / "t.csv").write_text("source,label\n")
        (tmp_path / "sub").mkdir()
        (tmp_path / "linked").symlink_to(tmp_path)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match=re.escape(f"{Path(spelling)}: is an input")):
            check_output(spelling, [Path("other"), tmp_path / "t.csv"])

    def test_a_link_to_the_output_is_an_input(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("x")
        (tmp_path / "given.csv").symlink_to("t.csv")
        with pytest.raises(DataError, match="is an input"):
            check_output(tmp_path / "t.csv", [tmp_path / "given.csv"])

    def test_closed_folders(self, tmp_path: Path) -> None:
        (tmp_path / "model" / "deep").mkdir(parents=True)
        for name in ("new.csv", "deep/new.csv"):
            with pytest.raises(DataError, match="lies within"):
                check_output(tmp_path / "model" / name, closed=[tmp_path / "model"])
        check_output(tmp_path / "model2.csv", closed=[tmp_path / "model"])

    def test_what_does_not_begin_as_ours(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("patient,label\n")
        with pytest.raises(DataError, match="not of an earlier call"):
            check_output(path, begins=b"source,")
        path.write_text("source,frame\n")
        check_output(path, begins=b"source,")
        path.write_text("")
        check_output(path, begins=b"source,")

    def test_no_such_home(self) -> None:
        with pytest.raises(DataError, match="no such home folder"):
            check_output("~nosuch/a.csv")


class TestCheckFolder:
    @PATIENT
    @given(
        there=st.sets(st.sampled_from(["frames", "manifest", "theirs", ".lock"])),
        ours=st.booleans(),
        empty=st.booleans(),
    )
    def test_what_is_lost_is_ours(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        there: set[str],
        ours: bool,
        empty: bool,
    ) -> None:
        folder = tmp_path_factory.mktemp("any")
        for name in there:
            (folder / name).touch()
        written_there = None if empty else ("frames", "manifest")
        lost = there - {".lock"} if empty else there & {"frames", "manifest"}
        if lost and not ours:
            with pytest.raises(DataError, match=f"^{folder}"):
                check_folder(folder, ours, names=written_there)
        else:
            assert check_folder(folder, ours, names=written_there) == folder

    def test_an_input_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        table = tmp_path / "store" / "manifest.csv"
        table.touch()
        with pytest.raises(DataError, match="holds an input"):
            check_folder(tmp_path / "store", True, [table], ["manifest.csv"])
        check_folder(tmp_path / "store", True, [table], ["frames.npy"])

    def test_a_link_to_a_folder_is_followed_and_to_nothing_not(self, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "a").symlink_to("scratch")
        assert check_folder(tmp_path / "a") == tmp_path / "a"
        (tmp_path / "b").symlink_to("nowhere")
        with pytest.raises(DataError, match="no folder"):
            check_folder(tmp_path / "b")


class TestParts:
    NAMES = re.compile(r"\d+\.npz")

    def test_they_go_when_nothing_is_left(self, tmp_path: Path) -> None:
        output = tmp_path / "out.npz"
        with pytest.raises(KeyError), parts_of(output, self.NAMES) as folder:
            (folder / "1.npz").touch()
            raise KeyError
        assert everything(tmp_path) == ["out.npz.parts", "out.npz.parts/1.npz"]
        with parts_of(output, self.NAMES) as folder:
            (folder / "1.npz").unlink()
        assert everything(tmp_path) == []

    @pytest.mark.parametrize("name", ["thesis.tex", "1.npz.bak", "x1.npz", "folder/1.npz"])
    def test_of_others_they_are_left_alone(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "out.npz.parts" / name
        path.parent.mkdir(parents=True)
        path.write_text("theirs")
        told = re.escape(f"{tmp_path / 'out.npz.parts'}: {name.partition('/')[0]} in it")
        with pytest.raises(DataError, match=told), parts_of(tmp_path / "out.npz", self.NAMES):
            pass
        assert path.read_text() == "theirs"
