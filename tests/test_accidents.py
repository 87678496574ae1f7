"""Accidents: a worker that is killed, a call that is interrupted, a disk that is full.

Each is one line with the place, and the same call goes on from there.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SUBJECT, files_of
from own import run, write_model
from torchvision.models import resnet18

from uscl_zoo.errors import DataError
from uscl_zoo.signals import Interrupted, listening
from uscl_zoo.training.finetuning.work import put_away
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.runs import save_checkpoint
from uscl_zoo.training.preparing import parts
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.zoo.card import Card


def prepared(clips: Path, output: Path, workers: int = 2) -> FrameStore:
    return prepare(
        [clips],
        output,
        lambda name: from_name(name, subject_pattern=SUBJECT),
        sampling=Sampling(size=32),
        holdout=0.3,
        workers=workers,
        origin={"name": "Clips", "url": None, "citation": None},
        progress=False,
    ).store


def test_a_worker_that_is_killed_is_a_line(
    clips: Path, small_store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill() -> None:
        while not (children := multiprocessing.active_children()):
            time.sleep(0.001)
        assert children[0].pid is not None
        os.kill(children[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    store = prepared(clips, tmp_path / "store")
    killer.join()
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.startswith(f"a worker was killed, at one of {clips}")
    assert store.digest == small_store.digest and store.description["skipped"] == []
    assert np.array_equal(store.frames, small_store.frames)


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of sources that end the process that reads them."""
    names: list[str] = []
    sample: Any = parts._sample

    def read(source: Path, *rest: Any) -> Any:
        if source.name in names:
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(source, *rest)

    monkeypatch.setattr(parts, "_sample", read)
    return names


@pytest.mark.parametrize("workers", [1, 2])
def test_what_ends_the_process_that_reads_it_is_skipped_and_named(
    clips: Path,
    deadly: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    deadly += [source.name for source in sorted(clips.iterdir())[4:6]]
    output = tmp_path / "store"
    if workers == 1:
        # that process is the call itself, and the next knows
        for _ in deadly:
            call = multiprocessing.get_context("fork").Process(
                target=prepared, args=(clips, output, 1)
            )
            call.start()
            call.join()
            assert call.exitcode == -signal.SIGKILL
    store = prepared(clips, output, workers)
    told = capsys.readouterr().err
    assert [entry["source"] for entry in store.description["skipped"]] == [
        str(clips / name) for name in deadly
    ]
    assert len(store.videos) == 16 and "Traceback" not in told
    for name in deadly:
        assert f"skipped {clips / name}: ends the process that reads it" in told
        assert name in (output / "skipped.csv").read_text()
    assert not (output / "parts").exists()


def test_where_many_end_it_memory_is_the_likelier_reason(
    clips: Path, deadly: list[str], tmp_path: Path
) -> None:
    deadly += [source.name for source in clips.iterdir()]
    with pytest.raises(DataError, match=r"4 sources have each ended .* fewer `workers`") as caught:
        prepared(clips, tmp_path / "store")
    assert str(caught.value).startswith(str(tmp_path / "store"))
    deadly.clear()
    assert len(prepared(clips, tmp_path / "store").videos) == 18


def test_an_interrupted_pool_ends_without_tracebacks(
    clips: Path, small_store: FrameStore, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    for i in range(12):
        shutil.copytree(clips, many / f"{i}", copy_function=os.link)
    output = tmp_path / "store"
    words = ["prepare", str(many), "-o", str(output), "--workers", "2", "--size", "32"]
    words += ["--subject-pattern", r"(.*)"]
    # what a shell has put in the background does not hear Ctrl-C, and tests may be
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}from uscl_zoo.cli import main; main()", *words],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while not list(output.glob("parts/*.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    # as a terminal does: to all of them
    os.killpg(process.pid, signal.SIGINT)
    told = process.stderr.read()
    assert process.wait() == 130, told
    assert "Traceback" not in told
    assert told.strip().splitlines()[-1].endswith("uscl: interrupted")
    done = len(list(output.glob("parts/*.json")))
    assert 0 < done < 12 * 18 and not (output / "store.json").exists()
    assert run(*words) == 0
    assert len(FrameStore(output).videos) == 12 * 18


def test_ctrl_c_while_workers_are_started_is_not_lost(clips: Path, tmp_path: Path) -> None:
    """Python ignores what is raised while it forks."""
    armed = [True]

    def strike() -> None:
        if armed:
            armed.clear()
            os.kill(os.getpid(), signal.SIGINT)

    os.register_at_fork(before=strike)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            prepared(clips, tmp_path / "store")
    finally:
        signal.signal(signal.SIGINT, usual)
    assert len(prepared(clips, tmp_path / "store").videos) == 18


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_came_after_the_last_look_is_not_lost(name: str) -> None:
    number = getattr(signal, name)
    usual = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), listening() as asked:
            os.kill(os.getpid(), number)
            assert asked == [name]
        # what was raised for it is enough
        with pytest.raises(Interrupted), listening() as asked:
            os.kill(os.getpid(), number)
            raise Interrupted(f"stopped by {asked[0]}")
    finally:
        signal.signal(number, usual)


def test_a_checkpoint_that_is_interrupted_is_no_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(state: object, stream: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            # as torch's archive does when it is closed
            raise RuntimeError("unexpected pos 51719872 vs 51719764")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_parts_of_a_store_that_is_whole_go(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption may come between the last file of the store and the end of its parts."""

    def interrupted(parts: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uscl_zoo.training.preparing.prepare.clear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepared(clips, tmp_path / "store", 1)
    assert list((tmp_path / "store" / "parts").iterdir())
    assert len(prepared(clips, tmp_path / "store", 1).videos) == 18
    assert not (tmp_path / "store" / "parts").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_command_that_is_told_to_end_tidies_up(
    name: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    number = getattr(signal, name)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def verify(path: Path, card: Card) -> None:
        assert path.exists()
        os.kill(os.getpid(), number)

    monkeypatch.setattr("uscl_zoo.publish.weights_cache.verify", verify)
    usual = signal.signal(
        number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    )
    try:
        assert run("publish", model, "--to", "me") == 128 + number
        told = capsys.readouterr().err.strip()
        assert told == "uscl: interrupted" + (f", by {name}" if name != "SIGINT" else "")
        assert not list(temporary.iterdir())
        if name == "SIGHUP":
            # as by nohup
            signal.signal(number, signal.SIG_IGN)
            assert run("publish", model, "--to", "me", "--dry-run", "-o", tmp_path / "built") == 0
            with listening() as asked:
                os.kill(os.getpid(), number)
            assert not asked
    finally:
        signal.signal(number, usual)


def test_a_file_that_a_network_keeps_open_fails_no_finished_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is mapped NFS and FUSE keep a file of another name, and so its folder."""
    work = tmp_path / "work"
    (work / "store").mkdir(parents=True)
    for path in (work / "run.json", work / "store" / "frames.npy"):
        path.touch()
    unlink = os.unlink

    def silly(path: Any, **more: Any) -> None:
        if str(path).endswith("frames.npy"):
            (work / "store" / ".nfs0000").touch()
        if str(path).endswith(".nfs0000"):
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        unlink(path, **more)

    ending: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", silly)
        patch.setattr("atexit.register", lambda *given: ending.append(given))
        put_away(work)
    assert [path.name for path in work.rglob("*")] == ["store", ".nfs0000"]
    (work / "store" / ".nfs0000").unlink()
    ((call, folder),) = ending
    call(folder)
    assert not work.exists()


def test_a_folder_that_cannot_be_taken_away_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("run.json", "fold0.npz"):
        (work / name).touch()
    unlink = os.unlink

    def refuse(path: Any, **more: Any) -> None:
        if str(path).endswith("fold0.npz"):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", refuse)
    said = r"work: could not be taken away \(Operation not permitted\); delete it$"
    with pytest.warns(UserWarning, match=said):
        put_away(work)
    assert [path.name for path in work.iterdir()] == ["fold0.npz"]


# ------------------------------------------------------------------------------------- a full disk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model")


#: What is written, by the command, with the folder IN of what it reads, and the most bytes a file
#: may have.
COMMANDS = {
    "embed.csv": ("embed --model MODEL IN -o OUT.csv", 3000),
    "embed.npz": ("embed --model MODEL IN -o OUT.npz", 3000),
    "embed.parquet": ("embed --model MODEL IN -o OUT.parquet", 3000),
    "embed, at its parts": ("embed --model MODEL IN -o OUT.csv", 100),
    "predict.csv": ("predict MODEL IN -o OUT.csv", 100),
    "predict.json": ("predict MODEL IN -o OUT.json", 100),
    "explain.png": ("explain MODEL IN/1.png -o OUT.png", 1000),
    "shortcut": ("shortcut MODEL IN -o OUT.html", 3000),
    "shortcut, at its journal": ("shortcut MODEL IN -o OUT.html", 100),
    "publish": ("publish MODEL --to me --dry-run -o OUT", 5000),
    "publish, the weights": ("publish MODEL --to me --dry-run -o OUT", 1 << 20),
    "import": ("import FILE --as resnet18_uscl.mine", 1 << 20),
    "demo": ("demo IN/1.png --model NAME -o OUT.png", 1000),
    "fetch": ("fetch NAME -o OUT", 1 << 20),
    "prepare": ("prepare IN -o OUT --size 32 --workers 1 --subject-pattern (.*)", 1000),
    "prepare, the frames": ("prepare IN -o OUT --size 32 --workers 1 --subject-pattern (.*)", 9000),
    "audit": ("audit IN OTHER -o OUT", 100),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_full_disk_is_a_line_with_the_path(
    what: str,
    model: Path,
    classes: Path,
    installed: Callable[..., Card],
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, most = COMMANDS[what]
    stills = tmp_path / "in"
    stills.mkdir()
    for i in range(1, 4):
        os.link(classes / "Cov" / f"{i}.png", stills / f"{i}.png")
    if words.startswith("demo"):
        words = words.replace("IN/1.png ", "")
    other = tmp_path / "other"
    other.mkdir()
    os.link(classes / "Reg" / "1.png", other / "1.png")
    if "FILE" in words:
        torch.save(resnet18().state_dict(), tmp_path / "file.pth")
    names = {
        "MODEL": str(model),
        "IN": str(stills),
        "OUT": str(tmp_path / "out"),
        "FILE": str(tmp_path / "file.pth"),
        "NAME": installed().name,
        "OTHER": str(other),
    }
    arguments = []
    for word in words.split():
        for name, value in names.items():
            if word.startswith(name):
                word = value + word.removeprefix(name)
        arguments.append(word)
    with files_of(most):
        status = run(*arguments)
    told = capsys.readouterr().err
    assert status == 2, told
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    place = home / ".uscl_zoo" if words.startswith("import") else tmp_path / "out"
    assert str(place) in last and "File too large" in last, last
    whole = {path.name for path in tmp_path.glob("out*") if path.is_file()}
    # the table beside a report, of which there was room
    assert whole <= ({"out.csv"} if what == "shortcut" else set())
    assert run(*arguments) == 0, capsys.readouterr().err
    assert not list(tmp_path.glob("**/*.partial")) and not list(tmp_path.glob("*.parts"))
