"""Work spread over Ray: the engine, `embed` and `prepare` by it; one session serves them all."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import stores
import timm
import torch
from own import run
from PIL import Image
from storage import s3_of
from torch import nn

from uscl_zoo import cluster, network
from uscl_zoo.cli import main
from uscl_zoo.cluster import Cluster, Outcome, joined
from uscl_zoo.embedding import parts, spreading
from uscl_zoo.embedding.extraction import embed_to
from uscl_zoo.errors import DataError
from uscl_zoo.files import expanded
from uscl_zoo.release import release
from uscl_zoo.training.preparing import parts as decoding
from uscl_zoo.ultrasound.reading import DamageWarning
from uscl_zoo.ultrasound.sources import Look


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("test_resnet", num_classes=0)
    return network


def gif(path: Path, seed: int, frames: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (frames, 40, 40), np.uint8)
    first, *rest = (Image.fromarray(frame) for frame in noise)
    first.save(path, save_all=True, append_images=rest, duration=200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and stills, one that is none, and a clip that breaks off."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(6):
        gif(folder / f"c{i}.gif", i, frames=3 + i)
    for i in range(6):
        Image.fromarray(np.full((30, 50), 40 * i, np.uint8)).save(folder / f"{i} s.png")
    (folder / "c3.gif").write_bytes(b"nothing")
    whole = (folder / "c5.gif").read_bytes()
    (folder / "c5.gif").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[str]:
    """The same in object storage, by the address of the folder."""
    with s3_of(folder) as address:
        yield address


@pytest.fixture(scope="module")
def ray(bucket: str) -> Iterator[Cluster]:
    """Two workers, which the calls of this process then use, and which know where the bucket is."""
    with joined("local", 2) as session:
        from ray import cloudpickle

        # workers cannot import what pytest has
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield session


def killed_at_work(count: int) -> threading.Thread:
    """Kill workers in the midst of what they do, as a machine that runs out of memory does."""

    def kill() -> None:
        left, until = count, time.monotonic() + 300
        while left and time.monotonic() < until:
            for process in psutil.Process().children(recursive=True):
                try:
                    title = "".join(process.cmdline())
                    if title.startswith("ray::MapWorker") and title.endswith(".submit"):
                        process.kill()
                        left -= 1
                        break
                except psutil.Error:
                    continue
            time.sleep(0.005)
        killed.append(count - left)

    killed: list[int] = []
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    thread.killed = killed  # type: ignore[attr-defined]
    return thread


# ------------------------------------------------------------------------------------- the engine


def work(mark: Path) -> cluster.Work:
    return partial(done, mark)


def done(mark: Path, jobs: Sequence[tuple[int, str]]) -> Iterable[Outcome]:
    """What jobs ask for; `once` ends the worker the first time, `always` each."""
    for number, job in jobs:
        if job == "always" or (job == "once" and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job.startswith("/"):
            cluster.check_there(Path(job))
        yield Outcome(number, ("first", job), last=False)
        yield Outcome(number, job.upper())


def test_every_job_is_done_though_workers_are_killed(ray: Cluster, tmp_path: Path) -> None:
    jobs = [f"job {i}" for i in range(20)] + ["once", "always", "more"]
    outcomes = list(ray.outcomes(partial(work, tmp_path / "mark"), jobs, together=8))
    last = {outcome.number: outcome.value for outcome in outcomes if outcome.last}
    assert last == {i: None if job == "always" else job.upper() for i, job in enumerate(jobs)}
    assert sum(outcome.last for outcome in outcomes) == len(jobs)


def test_a_file_that_a_worker_does_not_see_is_an_error_here(ray: Cluster, tmp_path: Path) -> None:
    said = "/elsewhere/x.png: is not there on .*all have to see files by the same names"
    with pytest.raises(DataError, match=said):
        list(ray.outcomes(partial(work, tmp_path / "mark"), ["a", "/elsewhere/x.png"], together=2))


def test_workers_of_another_release_are_refused(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs is asked of themselves: the same where it is, another where this one is newer."""
    own = release()
    monkeypatch.setattr(cluster, "release", lambda: "99.0")
    with pytest.raises(DataError, match=f"has uscl-zoo {own} where this is 99.0; install the same"):
        list(ray.outcomes(partial(work, tmp_path / "mark"), ["a"], together=1))


def test_embed_and_prepare_ask_whether_a_file_is_there(model: nn.Module, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    how = {"batch_size": 2, "answer": None, "fill": True, "workers": 1}
    embedding = spreading._Work(network.load(model, "cpu"), Look(1), "cpu", how)
    asked: list[tuple[cluster.Work, Any]] = [
        (embedding, gone),
        (decoding._make(), (gone, decoding.Sampling())),
    ]
    for work, job in asked:
        with pytest.raises(DataError, match=r"gone\.png: is not there on"):
            list(work([(0, job)]))
    # of object storage each worker finds out when it reads
    cluster.check_there(expanded("s3://nowhere/x.png"))
    (dangling := tmp_path / "link").symlink_to(gone)
    cluster.check_there(dangling)


def test_nobody_else_can_reach_it(ray: Cluster) -> None:
    """Neither does it ask anything of anybody: every socket of every process is on this machine."""
    of_ray = [psutil.Process(), *psutil.Process().children(recursive=True)]
    names = {process.name() for process in of_ray}
    assert {"gcs_server", "raylet"} <= names
    found = 0
    for process in of_ray:
        try:
            connections = process.net_connections()
        except psutil.NoSuchProcess:
            # a worker that was no longer wanted
            continue
        for one in connections:
            for side in filter(None, (one.laddr, one.raddr)):
                assert side.ip in ("127.0.0.1", "::ffff:127.0.0.1", "::1"), (process, one)
                found += 1
    assert found > 4
    assert not Path.home().joinpath(".ray").exists()


# --------------------------------------------------------------------------------------- `embed`


def test_rows_and_bytes_are_those_of_one_process(
    ray: Cluster, model: nn.Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun in one process, interrupted, continued by workers of which one is killed."""
    settings: dict[str, Any] = {"rate": 10, "batch_size": 4, "progress": False}
    with pytest.warns(DamageWarning, match="c5"):
        plain = embed_to(tmp_path / "plain.npz", model, folder, **settings)
    add = parts.Parts.add

    def interrupt(self: parts.Parts, source: Path, row: parts.Row) -> None:
        if row.source == 2:
            raise KeyboardInterrupt
        add(self, source, row)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Parts, "add", interrupt)
        embed_to(tmp_path / "spread.npz", model, folder, **settings)
    killing = killed_at_work(1)
    with pytest.warns(DamageWarning, match="c5"):
        spread = embed_to(
            tmp_path / "spread.npz", model, folder, ray="local", workers=1, **settings
        )
    killing.join()
    assert killing.killed == [1]  # type: ignore[attr-defined]
    assert (plain.resumed, spread.resumed) == (0, 2)
    assert [path.name for path, _ in plain.skipped] == ["c3.gif"]
    assert spread.skipped == plain.skipped
    assert (spread.rows, spread.sources) == (plain.rows, plain.sources)
    assert spread.path.read_bytes() == plain.path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.npz", "spread.npz"]


def test_one_process_continues_what_workers_began(
    ray: Cluster, model: nn.Module, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From object storage, of which each worker fetches its own."""
    settings: dict[str, Any] = {"rate": 10, "batch_size": 4, "progress": False, "pool": "clip"}
    add, taken = parts.Parts.add, 0

    def interrupt(self: parts.Parts, source: Path, row: parts.Row) -> None:
        nonlocal taken
        if taken == 5:
            raise KeyboardInterrupt
        add(self, source, row)
        taken += 1

    output = tmp_path / "spread.parquet"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Parts, "add", interrupt)
        embed_to(output, model, bucket, ray="local", workers=1, **settings)
    with pytest.warns(DamageWarning):
        plain = embed_to(tmp_path / "plain.parquet", model, bucket, **settings)
        ended = embed_to(output, model, bucket, **settings)
    assert ended.resumed == 5
    assert output.read_bytes() == plain.path.read_bytes()


# ------------------------------------------------------------------------------------- `prepare`


def test_a_store_is_that_of_one_process(ray: Cluster, clips: Path, tmp_path: Path) -> None:
    (own := tmp_path / "clips").symlink_to(clips)
    stores.run(own, tmp_path / "plain")
    killing = killed_at_work(1)
    report = stores.run(own, tmp_path / "spread", ray="local")
    killing.join()
    assert killing.killed == [1]  # type: ignore[attr-defined]
    assert report.reused == 0
    assert stores.content(tmp_path / "spread") == stores.content(tmp_path / "plain")


def test_a_cluster_that_runs_is_joined(ray: Cluster, bucket: str, tmp_path: Path) -> None:
    """By another process, and left as it was; its workers read object storage."""
    import ray as engine

    address = engine.get_runtime_context().gcs_address
    options = ("--label-scheme", "none", "--size", "32", "--workers", "1")
    words = ["prepare", bucket, *options, "-o", str(tmp_path / "joined"), "--ray", address]
    code = "import sys; from uscl_zoo.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "c3.gif" in done.stderr
    assert run("prepare", bucket, *options, "-o", tmp_path / "plain") == 0
    assert stores.content(tmp_path / "joined") == stores.content(tmp_path / "plain")
    assert engine.is_initialized()


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "--ray 127.0.0.1:1: no cluster of Ray can be joined there (Connection"),
        ("nowhere.invalid:6379", "--ray nowhere.invalid:6379: no cluster of Ray can be joined"),
        ("ray://127.0.0.1:1", "--ray ray://127.0.0.1:1: should be HOST:PORT"),
        ("there", "--ray there: should be HOST:PORT"),
    ],
)
def test_no_cluster_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["embed", str(folder / "c0.gif"), "-o", str(tmp_path / "x.npz"), "--ray", address])
    assert ended.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"uscl: {said}")
    assert not list(tmp_path.iterdir())


def test_without_ray(
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: None if name == "ray" else usual(name, *of)
    )
    with pytest.raises(SystemExit) as ended:
        main(["prepare", str(clips), "-o", str(tmp_path / "store"), "--ray", "local"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == "uscl: --ray local: needs Ray; install it by: pip install 'uscl-zoo[ray]'"
