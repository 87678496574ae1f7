"""What every test has: a home of its own. And what many want: data, and a small FrameStore."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # a core each for the workers and what they start; before torch counts the cores for itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# read by gcsfs when it is imported, which Lightning does: to ask Google by gRPC what kind of bucket
# this is, which an emulator does not answer, and nobody would wait for without an end
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

import gc
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from narrow import TIMM as narrow_timm
from numpy.typing import NDArray
from PIL import Image

from uscl_zoo import demo
from uscl_zoo.records import write_yaml
from uscl_zoo.training.learning.execution import keep_memory
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.training.pretraining import network
from uscl_zoo.ultrasound.phantom import lung_clip
from uscl_zoo.zoo.card import Card, Input, Training, Weights, read_card
from uscl_zoo.zoo.checkpoint import write_backbone

# as training does by itself: else a tenth of the time goes into giving memory back
keep_memory()

#: Colours of the synthetic classes: easy to tell apart, so that a probe has something to find.
TINTS = {"Cov": (190, 60, 60), "Pneu": (60, 190, 60), "Reg": (60, 60, 190)}
SUBJECT = r"-s(\d+)"
#: Whether all seeds and kills are wanted, and not the few that are enough for every change.
FULL = os.environ.get("USCL_ZOO_FULL") == "1"


def some(count: int, turn: int = 0) -> range:
    """So many seeds, or every tenth of them from one of the first ten on.

    Args:
        count: how many there are.
        turn: of the caller, so that not all callers take the same.
    """
    return range(count) if FULL else range(turn % min(10, count), count, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: two workers then end together."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish() -> None:
    """Look for garbage among what tests leave, not in all that was imported, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home within the test's own folder, and none of the variables that name another."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("USCL_ZOO_WEIGHTS", raising=False)
    return home


@pytest.fixture(autouse=True)
def home(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty home, so that no test finds, or leaves, anything in the user's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.delenv("USCL_ZOO_WEIGHTS", raising=False)
    # huggingface_hub read HF_HOME when it was imported
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf" / "hub"))
    yield home
    # the caches of a thousand tests would fill a disk
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def short_phantom() -> Iterator[None]:
    """The picture of a page is of eight frames and not of sixty, which take a core six seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "lung_clip", partial(lung_clip, rate=2.0))
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The shared ultrasound data, described in its README."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("USCL_ZOO_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; USCL_ZOO_DATA names another folder")
    return folder


def draw_clip(seed: int, count: int, tint: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Still noise under flickering noise, in a colour: uint8 (count, 40, 48, 3)."""
    rng = np.random.default_rng(seed)
    still = rng.integers(-50, 50, (40, 48, 1))
    moving = rng.integers(-15, 15, (count, 40, 48, 3))
    frames: NDArray[np.uint8] = np.clip(np.array(tint) + still + moving, 0, 255).astype(np.uint8)
    return frames


def write_clip(folder: Path, clip: NDArray[np.uint8]) -> None:
    """Write a clip as US-4 does: a folder of frames."""
    folder.mkdir(parents=True)
    for i, frame in enumerate(clip):
        Image.fromarray(frame).save(folder / f"{folder.name}_frame{i}.png")


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 clips of 9 subjects, three of each class, with 2 to 6 frames."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(18):
        subject = i // 2
        prefix = list(TINTS)[subject % 3]
        clip = draw_clip(i, count=2 + 3 * i % 5, tint=TINTS[prefix])
        write_clip(folder / f"{prefix}-s{subject:02}-{'ab'[i % 2]}_mp4", clip)
    return folder


@pytest.fixture
def own_clips(clips: Path, tmp_path: Path) -> Path:
    """A copy of the clips to be damaged."""
    return Path(shutil.copytree(clips, tmp_path / "clips"))


@pytest.fixture(scope="session")
def small_store(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """The clips as frames of 32x32, a subject of each class held out."""
    return prepare(
        [clips],
        tmp_path_factory.mktemp("prepared") / "store",
        lambda name: from_name(name, subject_pattern=SUBJECT),
        sampling=Sampling(size=32),
        holdout=0.3,
        workers=1,
        origin={"name": "Clips", "url": None, "citation": None},
        progress=False,
    ).store


def make_card(name: str = "resnet18_uscl.trial", **changes: Any) -> Card:
    """A card with no more than it must have."""
    plain: dict[str, Any] = {
        "name": name,
        "architecture": name.split("_")[0],
        "summary": "for tests",
        "weights": Weights(file=f"{name}.safetensors"),
        "input": Input(size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        "training": Training(method="uscl", sources=()),
        "licence": "MIT",
        "intended_use": "none",
        "limits": (),
    }
    return Card(**(plain | changes))


def install_card(folder: Path, name: str = "resnet18_uscl.trial", seed: int = 0) -> Card:
    """Write random weights and their card into a user's folder, as an export does."""
    architecture = name.split("_")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = timm.create_model(architecture, num_classes=0, zero_init_last=False).state_dict()
    # as training leaves them: none of the statistics that a new network has
    for key in state:
        if key.endswith("running_mean"):
            # downwards: the other way leaves a ResNet-50 nothing but zeros
            state[key] -= 0.1
    path = folder / f"{name}.safetensors"
    write_backbone(state, path, architecture)
    data = path.read_bytes()
    weights = Weights(file=path.name, sha256=sha256(data).hexdigest(), bytes=len(data))
    card = make_card(name, weights=weights)
    write_yaml(folder / f"{name}.yaml", card)
    return card


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cards with random weights made so far, to be copied."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """What is pretrained in this process is a quarter as wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "timm", narrow_timm)
        yield


@pytest.fixture
def installed(home: Path, made: Path) -> Callable[..., Card]:
    """Installs a card with random weights where `create_model` finds it: the user's folder."""

    def install(name: str = "resnet18_uscl.trial") -> Card:
        if not (made / f"{name}.yaml").exists():
            install_card(made, name)
        folder = home / ".uscl_zoo"
        folder.mkdir(exist_ok=True)
        for suffix in (".safetensors", ".yaml"):
            shutil.copy(made / f"{name}{suffix}", folder)
        return read_card(folder / f"{name}.yaml")

    return install


def draw_classes(folder: Path, each: int = 9) -> Path:
    """A folder per class of numbered stills of one size, as a reader would take for a clip."""
    for place, (label, tint) in enumerate(TINTS.items()):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            frame = draw_clip(1000 * place + i, 1, tint)[0]
            Image.fromarray(frame).save(folder / label / f"{i + 1}.png")
    return folder


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder per class, nine stills in each."""
    return draw_classes(tmp_path_factory.mktemp("classes") / "data")


@pytest.fixture(scope="session")
def tuned(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model fine-tuned on `classes`; copy it before changing anything."""
    from uscl_zoo.training.finetuning.finetune import finetune

    folder = tmp_path_factory.mktemp("tuned")
    finetune(
        classes,
        folder / "model",
        model="resnet18_uscl",
        size=64,
        epochs=10,
        confidence=0.5,
        licence="CC-BY-NC-SA-4.0",
        resamples=100,
        workers=1,
        device="cpu",
        progress=False,
        tell=lambda text: None,
    )
    return folder / "model"


@pytest.fixture(scope="session")
def truths() -> dict[str, Any]:
    """A simulated clip with lettering in it for each kind of beam; not to be written to."""
    from benchmarks.simulator import KINDS, find

    return {kind: find(kind, annotated=True) for kind in KINDS}
