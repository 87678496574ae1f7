"""A run that is killed again and again, or has no disk left, loses nothing that was saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_pretrain import CPU, RECIPE, assert_same, run
from uscl_zoo.training.frames import FrameStore
from uscl_zoo.training.pretrain import pretrain
from uscl_zoo.training.recipe import replace
from uscl_zoo.training.runs import load_checkpoint

from uscl_zoo.records import write_yaml

SCRIPT = Path(__file__).parent / "kill_script.py"
KILLS = 20


def lives(store: FrameStore, recipe: Path, folder: Path, kills: int) -> list[str]:
    """Run it with so many kills; tells where each struck."""
    arguments = (store.folder, recipe, folder, kills)
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    return done.stdout.splitlines()


@pytest.mark.slow
def test_twenty_kills_leave_the_weights_of_an_uninterrupted_run(
    small_store: FrameStore, tmp_path: Path
) -> None:
    # long enough that no life but the last comes to its end
    recipe = tmp_path / "recipe.yaml"
    write_yaml(recipe, replace(RECIPE, epochs=60, validate_every=60))
    struck = lives(small_store, recipe, tmp_path / "killed", KILLS)
    assert len(struck) == KILLS
    print({where: struck.count(where) for where in sorted(set(struck))})
    lives(small_store, recipe, tmp_path / "whole", 0)
    assert_same(load_checkpoint(tmp_path / "killed"), load_checkpoint(tmp_path / "whole"))


FULL_DISK = """
import resource, sys
from uscl_zoo.cli import main
# as much as events and curves take, and less than a checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_its_last_checkpoint(
    small_store: FrameStore, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    recipe = replace(RECIPE, epochs=2, validate_every=10)
    pretrain(replace(recipe, epochs=1), small_store, folder, execution=CPU, progress=False)
    write_yaml(folder / "recipe.yaml", recipe)
    before = (folder / "checkpoint.pt").read_bytes()
    arguments = ["pretrain", "--data", small_store.folder, "-o", folder, "--resume"]
    command = [sys.executable, "-c", FULL_DISK, *map(str, arguments), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith(f"uscl: {folder / 'checkpoint.pt'}: cannot be written (")
    assert told.endswith("; the one before it is untouched")
    assert "Traceback" not in done.stderr
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert not (folder / "checkpoint.pt.partial").exists()
    # with room again it goes on
    state = run(small_store, folder, recipe, resume=True)
    assert state["progress"]["epoch"] == 2
    assert all(torch.isfinite(t).all() for t in state["network"].values())
