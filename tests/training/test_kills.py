"""A run that is killed again and again, or has no disk left, loses nothing that was saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FULL, files_of
from short_runs import RECIPE, assert_same, run

from uscl_zoo.cli import main
from uscl_zoo.records import write_yaml
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import replace
from uscl_zoo.training.learning.runs import load_checkpoint

SCRIPT = Path(__file__).parent / "kill_script.py"
KILLS = 20 if FULL else 4


@pytest.mark.slow
def test_kills_leave_the_weights_of_an_uninterrupted_run(
    small_store: FrameStore, tmp_path: Path
) -> None:
    # three steps an epoch: long enough that no life but the last comes to its end
    epochs = 3 * KILLS
    write_yaml(tmp_path / "recipe.yaml", replace(RECIPE, epochs=epochs, validate_every=epochs))
    folders = (tmp_path / "killed", tmp_path / "whole")
    arguments = (small_store.folder, tmp_path / "recipe.yaml", *folders, KILLS)
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    struck = done.stdout.splitlines()
    assert len(struck) == KILLS
    print({where: struck.count(where) for where in sorted(set(struck))})
    killed, whole = map(load_checkpoint, folders)
    assert whole is not None
    assert whole["progress"]["epoch"] == epochs
    assert_same(killed, whole)


def test_a_full_disk_stops_the_run_and_leaves_its_last_checkpoint(
    small_store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    recipe = replace(RECIPE, epochs=2, validate_every=10)
    run(small_store, folder, replace(recipe, epochs=1))
    write_yaml(folder / "recipe.yaml", recipe)
    before = (folder / "checkpoint.pt").read_bytes()
    arguments = ["pretrain", "--data", small_store.folder, "-o", folder, "--resume"]
    # as much as events and curves take, and less than a checkpoint
    with files_of(1 << 20), pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--device", "cpu"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    told = said.strip().splitlines()[-1]
    assert told.startswith(f"uscl: {folder / 'checkpoint.pt'}: cannot be written (")
    assert told.endswith("; the one before it is untouched")
    assert "Traceback" not in said
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not list(folder.glob("*.partial*"))
    # with room again it goes on
    state = run(small_store, folder, recipe, resume=True)
    assert state["progress"]["epoch"] == 2
    assert all(torch.isfinite(t).all() for t in state["network"].values())
