"""Several processes on the CPU (gloo), as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks_script
import torch
import torch.nn.functional as F
from torch import Tensor

from uscl_zoo.cli import main
from uscl_zoo.errors import DataError
from uscl_zoo.records import write_yaml
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.ranks import ALONE, Ranks, join
from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.learning.runs import load_checkpoint

#: Eleven videos a batch, so that neither two nor four ranks have equal shares.
RECIPE = Recipe(
    epochs=2,
    batch_size=11,
    smallest_batch=2,
    constant_epochs=1,
    validate_every=1,
    projection_dim=16,
    label_rate=0.6,
    sync_batch_norm=True,
    precision="float32",
    seed=3,
)


def torchrun(ranks: int, *arguments: object) -> subprocess.Popen[str]:
    """Start so many ranks on a port of their own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, f"--nproc-per-node={ranks}", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.double().flatten() for gradient in gradients.values()])


#: What changes with each recipe whose gradients are compared, by as few starts as there can be.
CHANGES: list[dict[str, Any]] = [
    {},
    {"batch_statistics": "fused"},
    {"method": "supervised", "classifier_on": "h"},
    {"method": "fixmatch", "confidence": 0.3},
    {
        "init": "resnet18_uscl.open",
        "teachers": ("resnet18_imagenet.mit",),
        "teacher_term": "stages",
        "batch_statistics": "frozen",
    },
    {"sync_batch_norm": False},
]


@pytest.fixture(scope="module")
def gradients_of(
    small_store: FrameStore, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, dict[str, Any]], dict[str, Any]]:
    """Gradients of the first batch by so many ranks, of a recipe changed so."""

    @cache
    def run(ranks: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("ranks")
        paths = [folder / f"{number}.yaml" for number in range(len(CHANGES))]
        for path, change in zip(paths, CHANGES, strict=True):
            write_yaml(path, replace(RECIPE, **change))
        # of a server that has imported torch, which takes longer than all the rest
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["uscl_zoo.training.pretraining.trainer"])
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        args = (ranks, port, small_store.folder, folder / "found.pt", paths)
        started = [
            context.Process(target=ranks_script.be, args=(rank, *args)) for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(240)
        assert [process.exitcode for process in started] == [0] * ranks
        found: list[dict[str, Any]] = torch.load(folder / "found.pt", weights_only=True)
        return found

    return lambda ranks, change: run(ranks)[CHANGES.index(change)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("change", CHANGES[:-1], ids=str)
def test_the_number_of_ranks_changes_only_rounding(
    gradients_of: Callable[[int, dict[str, Any]], dict[str, Any]],
    change: dict[str, Any],
    ranks: int,
) -> None:
    """In float64: in float32 rounding turns signs of activations near zero (docs/scaling.md)."""
    alone, found = gradients_of(1, change), gradients_of(ranks, change)
    assert len(set(found["labelled"])) > 1, "the labelled videos should be unequal"
    expected, ours = flat(alone["gradients"]), flat(found["gradients"])
    assert 1 - F.cosine_similarity(ours, expected, dim=0) < 1e-9
    assert ours.norm().item() == pytest.approx(expected.norm().item(), rel=1e-5)
    for name, buffer in found["buffers"].items():
        assert torch.allclose(buffer, alone["buffers"][name], rtol=1e-6, atol=1e-7), name


@pytest.mark.slow
def test_without_synchronised_statistics_each_rank_has_its_own(
    gradients_of: Callable[[int, dict[str, Any]], dict[str, Any]],
) -> None:
    alone, two = (flat(gradients_of(ranks, CHANGES[-1])["gradients"]) for ranks in (1, 2))
    assert F.cosine_similarity(alone, two, dim=0) < 0.999


def command(store: FrameStore, recipe: Path, run: Path, *more: str) -> list[object]:
    return [
        *("pretrain", "--recipe", recipe, "--data", store.folder),
        *("-o", run, "--device", "cpu", *more),
    ]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(
    small_store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ranks, stopped by a signal to their launcher, then one; rank 0 alone speaks."""
    recipe = tmp_path / "recipe.yaml"
    write_yaml(recipe, replace(RECIPE, epochs=400))
    process = torchrun(
        2, "-m", "uscl_zoo.training", *command(small_store, recipe, tmp_path / "run")
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, trouble = process.communicate(timeout=120)
    assert "saved in" in trouble
    stopped = load_checkpoint(tmp_path / "run")
    assert stopped is not None
    done = stopped["progress"]["epoch"]
    assert 0 < done < 400
    settings = load_settings(tmp_path / "run")
    settings["epochs"] = done + 2
    (tmp_path / "run" / "recipe.yaml").write_text(dump(settings))
    capsys.readouterr()
    words = command(small_store, tmp_path / "run" / "recipe.yaml", tmp_path / "run", "--resume")
    main([str(word) for word in words])
    assert capsys.readouterr().out.count("done; curves in") == 1
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    assert [row["epoch"] for row in state["progress"]["history"]] == list(range(1, done + 3))


def load_settings(run: Path) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load((run / "recipe.yaml").read_text()))


def dump(settings: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(settings))


def test_shares_are_the_batch() -> None:
    batch = np.arange(11)
    for world in (1, 2, 4):
        shares = [Ranks(rank, world).share(batch) for rank in range(world)]
        assert np.array_equal(np.concatenate(shares), batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as (ranks, device):
        assert ranks is ALONE
        assert device == "cpu"


def test_ranks_cannot_share_a_gpu_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(DataError, match=r"^`device=cuda:0`: 2 ranks cannot share it"),
        join("cuda:0"),
    ):
        pass
