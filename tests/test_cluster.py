"""Work spread over Ray: the engine, `embed` and `prepare` by it; one session serves them all."""

from __future__ import annotations

import importlib.util
import os
import signal
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
from PIL import Image
from torch import nn

from uscl_zoo import cluster
from uscl_zoo.cli import main
from uscl_zoo.cluster import Cluster, Outcome, joined
from uscl_zoo.embedding import parts
from uscl_zoo.embedding.extraction import embed_to
from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound.reading import DamageWarning


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    """Two workers, which the calls of this process then use."""
    with joined("local", 2) as session:
        from ray import cloudpickle

        # workers cannot import what pytest has
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield session


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
        if job == "wrong":
            raise DataError(f"{job}: no")
        yield Outcome(number, ("first", job), last=False)
        yield Outcome(number, job.upper())


def test_every_job_is_done_though_workers_are_killed(ray: Cluster, tmp_path: Path) -> None:
    jobs = [f"job {i}" for i in range(20)] + ["once", "always", "more"]
    outcomes = list(ray.outcomes(partial(work, tmp_path / "mark"), jobs, together=8))
    last = {outcome.number: outcome.value for outcome in outcomes if outcome.last}
    assert last == {i: None if job == "always" else job.upper() for i, job in enumerate(jobs)}
    assert sum(outcome.last for outcome in outcomes) == len(jobs)


def test_an_error_of_a_worker_is_raised_here(ray: Cluster, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^wrong: no$"):
        list(ray.outcomes(partial(work, tmp_path / "mark"), ["wrong"], together=1))


def test_nobody_else_can_reach_it(ray: Cluster) -> None:
    """Neither does it ask anything of anybody: every socket of every process is on this machine."""
    of_ray = [psutil.Process(), *psutil.Process().children(recursive=True)]
    names = {process.name() for process in of_ray}
    assert {"gcs_server", "raylet"} <= names
    found = 0
    for process in of_ray:
        for one in process.net_connections():
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
    ray: Cluster, model: nn.Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        embed_to(output, model, folder, ray="local", workers=1, **settings)
    with pytest.warns(DamageWarning):
        plain = embed_to(tmp_path / "plain.parquet", model, folder, **settings)
        ended = embed_to(output, model, folder, **settings)
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
