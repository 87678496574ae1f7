"""The folder of a run: its recipe, what it ran on, and its checkpoints."""

from __future__ import annotations

import json
import platform
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import torch

from uscl_zoo.errors import CardError, CheckpointError, DataError
from uscl_zoo.files import sync, written
from uscl_zoo.records import from_mapping, read_yaml
from uscl_zoo.release import release

from .recipe import Recipe, settings_of

RECIPE, ABOUT, EVENTS = "recipe.yaml", "run.json", "tensorboard"
CURVES, EMBEDDING = "curves.png", "embedding.png"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint whole, keeping the one before it.

    Raises:
        CheckpointError: if it cannot be written.
    """
    path = run / CHECKPOINT
    try:
        with written(path) as partial:
            with partial.open("wb") as stream:
                torch.save(state, stream)
            sync(partial)
            # only now: until then the one before is where it is looked for first
            if path.exists():
                path.replace(run / PREVIOUS)
    except (OSError, RuntimeError) as error:
        # torch's archive, closed over a stream that failed, raises an error of its own
        first = error if isinstance(error, OSError) else error.__context__
        if isinstance(first, KeyboardInterrupt):
            raise first from None
        reason = getattr(first, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); the one before it is untouched"
        ) from error


def load_checkpoint(run: Path, kind: int = 1) -> dict[str, Any] | None:
    """The newest checkpoint of a run that can be read; None before the first.

    Args:
        run: its folder.
        kind: of the checkpoint, its `format`.

    Raises:
        CheckpointError: if there are checkpoints and none can be read.
    """
    damaged = []
    for path in (run / CHECKPOINT, run / PREVIOUS):
        if not path.exists():
            continue
        try:
            # torch.load reads past flipped bits; the archive's checksums do not
            with zipfile.ZipFile(path) as archive:
                if (wrong := archive.testzip()) is not None:
                    raise ValueError(f"{wrong} has another checksum")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != kind:
                raise ValueError(f"format {state['format']}")
            return state
        except Exception as error:  # torch.load raises whatever its parsers do
            damaged.append(f"{path} ({type(error).__name__})")
    if damaged:
        raise CheckpointError(f"no checkpoint can be read: {', '.join(damaged)}; start a new run")
    return None


def load_run(run: Path) -> tuple[Recipe, dict[str, Any], dict[str, Any]]:
    """Recipe, description and last checkpoint of a run.

    Raises:
        DataError: if the folder holds no run, or one without a checkpoint.
    """
    if not (run / RECIPE).is_file():
        raise DataError(f"{run}: holds no run (`uscl pretrain -o {run}` makes one)")
    recipe = from_mapping(Recipe, read_yaml(run / RECIPE), str(run / RECIPE))
    state = load_checkpoint(run)
    if state is None:
        raise DataError(f"{run}: has no checkpoint yet; resume it with `uscl pretrain --resume`")
    return recipe, json.loads((run / ABOUT).read_text()), state


def same_recipe(recipe: Recipe, path: Path) -> Recipe:
    """The recipe of a run that is to be continued, which its settings must not change.

    Mean and std are those of the weights that the run began with, if there were any. The precision
    may change, for a run that goes on where the one it began in is slow.

    Args:
        recipe: as it is asked for now.
        path: of the recipe that the run began with.

    Raises:
        CardError: naming the first setting that differs.
    """
    before = from_mapping(Recipe, read_yaml(path), str(path))
    settled = {"precision"} | ({"mean", "std"} if before.init is not None else set())
    for key, value in settings_of(recipe).items():
        if key not in settled and settings_of(before)[key] != value:
            raise CardError(
                f"{path}: {key} is {getattr(before, key)!r} in the run and {value!r} now; "
                "resume with the same settings"
            )
    return before


def code_version() -> str:
    """uscl-zoo's version and, in a checkout, its commit."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    version = f"uscl-zoo {release()}"
    try:
        # installed into an environment inside somebody's repository, the commit would be theirs
        git("ls-files", "--error-unmatch", here.name)
        return f"{version} ({git('describe', '--always', '--dirty', '--abbrev=12')})"
    except (OSError, subprocess.CalledProcessError):
        return version


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{torch.get_num_threads()} threads of {model} (CPU)"
