"""Pretraining within folds: what it must not see, and that it goes on after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from uscl_zoo.errors import CardError, CheckpointError, DataError
from uscl_zoo.training.downstream import infold
from uscl_zoo.training.downstream.contenders import contender
from uscl_zoo.training.downstream.infold import (
    SETTINGS,
    Job,
    Setting,
    method_recipe,
    pretrain_within,
)
from uscl_zoo.training.learning.execution import Execution, device_named
from uscl_zoo.training.learning.frames import DESCRIPTION, FRAMES, FrameStore
from uscl_zoo.training.learning.runs import load_run
from uscl_zoo.training.pretraining.export import encoder_of
from uscl_zoo.training.pretraining.pretrain import pretrain
from uscl_zoo.zoo.checkpoint import write_backbone

SPEC = "method:pocus_resnet18+classes=null+batch_size=4+smallest_batch=2"
TINY = Setting(32, 1, "float32")


def job(store: FrameStore, spec: str = SPEC, seed: int = 0) -> Job:
    subjects = sorted({video.subject for video in store.videos})
    return Job(spec, method_recipe(spec, TINY, seed), tuple(subjects[:3]), 0)


def weights(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    said = {"mean": "0.4 0.5 0.6", "std": "0.2 0.2 0.2"}
    write_backbone(state, path, "resnet18", metadata=said)
    return path


def test_other_weights_to_begin_with_are_another_job(
    small_store: FrameStore, tmp_path: Path
) -> None:
    path = tmp_path / "start.safetensors"
    spec = f"{SPEC}+init={path}"
    first, other = (weights(tmp_path / f"{seed}.safetensors", seed).read_bytes() for seed in (0, 1))
    keys = []
    for data in (first, first, other):
        path.write_bytes(data)
        infold._digest_of.cache_clear()
        keys.append(job(small_store, spec).key(small_store))
    assert keys[0] == keys[1] != keys[2]


def test_a_method_that_begins_with_weights_is_given_their_statistics(tmp_path: Path) -> None:
    path = weights(tmp_path / "start.safetensors")
    spec = f"method:open_resnet18+init={path}+teachers=[{path}]"
    recipe = method_recipe(spec, SETTINGS["reduced"], 0)
    assert (recipe.mean, recipe.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    # the last size is that of the setting, and the others keep their proportion
    assert recipe.sizes == ((36, 0.7), (64, 1.0))
    assert method_recipe(spec, SETTINGS["full"], 0).sizes == ((128, 0.7), (224, 1.0))
    assert contender(spec, SETTINGS["reduced"]).shape.mean == (0.4, 0.5, 0.6)


def test_a_method_is_a_recipe_with_settings_of_its_own() -> None:
    recipe = method_recipe("method:pocus_resnet18+label_rate=0.2", Setting(64, 7, "bf16"), 3)
    assert (recipe.method, recipe.label_rate) == ("uscl", 0.2)
    assert (recipe.epochs, recipe.precision, recipe.seed) == (7, "bf16", 3)


def test_a_method_may_name_a_precision_to_compare() -> None:
    spec = "method:pocus_resnet18+precision=float32"
    assert method_recipe(spec, Setting(64, 7, "bf16"), 3).precision == "float32"


@pytest.mark.parametrize("key", ["epochs=3", "seed=1"])
def test_what_the_setting_decides_is_refused(key: str) -> None:
    with pytest.raises(CardError, match="is decided by `setting` and `seeds`"):
        method_recipe(f"method:pocus_resnet18+{key}", TINY, 0)


@pytest.mark.parametrize("setting", ["reduced", "full"])
def test_without_a_word_the_precision_is_the_machines(setting: str) -> None:
    assert method_recipe("method:pocus_resnet18", SETTINGS[setting], 0).precision == "auto"


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(CardError, match="no recipe 'pocus_resnet19'"):
        method_recipe("method:pocus_resnet19", TINY, 0)


def test_the_frames_of_the_judged_subjects_cannot_change_the_weights(
    small_store: FrameStore, tmp_path: Path
) -> None:
    """Another store, in which the judged subjects are noise, gives the same bits."""
    one = job(small_store)
    other = tmp_path / "other"
    shutil.copytree(small_store.folder, other)
    frames = np.load(other / FRAMES, mmap_mode="r+")
    said = json.loads((other / DESCRIPTION).read_text())
    for video in small_store.videos:
        if video.subject in one.held_out:
            own = frames[video.first : video.first + video.count]
            own[...] = np.random.default_rng(0).integers(0, 256, own.shape, np.uint8)
            said["frames_sha256"][video.name] = hashlib.sha256(own.tobytes()).hexdigest()
    frames.flush()
    (other / DESCRIPTION).write_text(json.dumps(said))
    made = [
        pretrain_within([one], FrameStore(folder), work, workers=1, progress=False)[0]
        for folder, work in ((small_store.folder, tmp_path / "a"), (other, tmp_path / "b"))
    ]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_weights_are_those_of_a_run_on_the_rest(small_store: FrameStore, tmp_path: Path) -> None:
    one = job(small_store)
    # a thread each, as here: more would round otherwise
    threads = os.cpu_count() or 1
    (path,) = pretrain_within([one], small_store, tmp_path, workers=threads, progress=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu = Execution(device_named("cpu"))
    run, store = tmp_path / "run", small_store.holding_out(one.held_out)
    pretrain(one.recipe, store, run, execution=cpu, progress=False, pictures=False)
    torch.set_num_threads(before)
    kept = load_file(path)
    for name, tensor in encoder_of(load_run(run)[2]).items():
        assert (kept[name].float() - tensor.float()).abs().max() <= 1e-3 * tensor.abs().max()
    # done once
    written = path.stat().st_mtime_ns
    assert pretrain_within([one], small_store, tmp_path, progress=False) == [path]
    assert path.stat().st_mtime_ns == written
    assert not path.with_suffix("").exists()
    # of another fold it would have seen what this one judges
    content = path.read_bytes()
    state, other = load_file(path), path.with_name("other.safetensors")
    write_backbone(state, other, "resnet18", metadata={"job": "another-fold2"})
    path.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="holds the weights of another-fold2; delete it"):
        pretrain_within([one], small_store, tmp_path, progress=False)
    path.write_bytes(content[:5000])
    with pytest.raises(CheckpointError, match="is no readable safetensors file"):
        pretrain_within([one], small_store, tmp_path, progress=False)


def test_another_seed_method_or_fold_is_another_file(small_store: FrameStore) -> None:
    one = job(small_store)
    others = [
        one,
        job(small_store, seed=1),
        job(small_store, f"{SPEC}+label_rate=0"),
        Job(one.spec, one.recipe, one.held_out[:2], 0),
    ]
    assert len({other.key(small_store) for other in others}) == 4
    # but not another name or place of the same store
    assert one.key(small_store.holding_out({one.held_out[0]})) == one.key(small_store)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_infold import Setting
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.errors import UsclError
import test_infold
if __name__ == "__main__":
    test_infold.TINY = Setting(32, 400, "float32")
    store = FrameStore({store!r})
    jobs = [test_infold.job(store, seed=seed) for seed in range(4)]
    try:
        test_infold.pretrain_within(jobs, store, Path({work!r}), workers=2, progress=False)
    except UsclError as error:
        print(error)
        sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_a_stop_saves_every_run_and_leaves_nobody_behind(
    small_store: FrameStore, tmp_path: Path
) -> None:
    work, script = tmp_path / "work", tmp_path / "script.py"
    text = SCRIPT.format(
        tests=str(Path(__file__).parent), store=str(small_store.folder), work=str(work)
    )
    script.write_text(text)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 300
    while len(list(work.glob("*/checkpoint.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped by SIGTERM, 0 of 4 runs done" in said
    assert "the same command continues it" in said
    # those that ran are saved, and no other has begun
    assert len(list(work.glob("*"))) == len(list(work.glob("*/checkpoint.pt"))) == 2
    # whatever it started is of its group
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
