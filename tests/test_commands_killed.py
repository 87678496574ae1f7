"""Kill -9 at seeded moments: what is there is whole or absent, and the same call finishes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import FULL
from own import write_model

from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining.pretrain import pretrain
from uscl_zoo.zoo.card import Card

SCRIPT = Path(__file__).parent / "command_kill_script.py"
KILLS = 20 if FULL else 3
#: By the command: what looks at what is there, and the words.
COMMANDS = {
    "embed": ("embedded", "embed --model MODEL CLIPS -o OUT/o.npz --rate 30"),
    "finetune": (
        "finetuned",
        "finetune --data CLASSES -o OUT/model --model NAME --size 32 --epochs 1 --train head "
        "--workers 1",
    ),
    "export": ("exported", "export RUN --name resnet18_uscl.trial -o OUT"),
    "publish": ("published", "publish MODEL --to me --dry-run -o OUT/repository"),
    "prepare": (
        "prepared",
        "prepare CLIPS -o OUT/store --size 32 --workers 1 --subject-pattern (.*)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_it_is_whole_or_absent(
    command: str,
    clips: Path,
    classes: Path,
    small_store: FrameStore,
    installed: Callable[..., Card],
    tmp_path: Path,
) -> None:
    check, line = COMMANDS[command]
    names = {"CLIPS": str(clips), "CLASSES": str(classes), "RUN": str(tmp_path / "run")}
    names |= {"MODEL": str(tmp_path / "model"), "NAME": installed().name}
    if "MODEL" in line:
        write_model(tmp_path / "model")
    if command == "export":
        recipe = Recipe(epochs=1, batch_size=4, smallest_batch=2, projection_dim=16, seed=11)
        cpu = Execution(torch.device("cpu"))
        pretrain(
            recipe, small_store, tmp_path / "run", execution=cpu, progress=False, pictures=False
        )
    words = [names.get(word, word) for word in line.split()]
    work = tmp_path / "work"
    work.mkdir()
    seed = sum(map(ord, command))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(KILLS), str(seed), str(work), check, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    first, *struck = done.stdout.splitlines()
    assert len(struck) == KILLS and set(struck) <= {"whole", "absent"}
    print(command, first, {what: struck.count(what) for what in sorted(set(struck))})
