"""A checkpoint of random weights for the tests, and other processes to load it in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import fresh
import timm
import torch
from torch import Tensor

from uscl_zoo.records import write_yaml
from uscl_zoo.zoo import checkpoint
from uscl_zoo.zoo.card import Card, Input, Metric, Source, Training, Weights
from uscl_zoo.zoo.digests import sha256_of

NAME = "resnet18_uscl.trial"

#: Small frames, as every network of the zoo takes any size.
FRAMES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

CARD = Card(
    name=NAME,
    architecture="resnet18",
    summary="random weights for tests",
    weights=Weights(file=f"{NAME}.safetensors", sha256="0" * 64, bytes=1),
    input=Input(size=(3, 224, 224), mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.15)),
    training=Training(
        method="uscl",
        sources=(
            Source(
                name="POCUS",
                url="https://example.org/pocus",
                citation="Born et al., 2021",
                videos=87,
                frames=1234,
                subjects=61,
                classes={"Cov": 50, "Reg": 37},
                licences={"CC BY-NC-SA 4.0": 87},
            ),
        ),
        labels=("Cov", "Reg"),
        held_out_subjects=("s1", "s2"),
        recipe={"epochs": 300},
        epochs=300,
        steps=8100,
        seed=3,
        code="uscl-zoo 0.1.0",
        hardware="one core",
        hours=0.5,
    ),
    licence="CC-BY-NC-SA-4.0",
    intended_use="Tests.",
    limits=("Knows nothing.",),
    metrics=(
        Metric(
            "POCUS, 13 subjects",
            "linear probe, 5 folds by subject",
            "clip",
            "balanced accuracy",
            0.625,
            (0.5, 0.75),
            "95 %, bootstrap over subjects",
            None,
            "uscl probe",
            None,
        ),
        Metric(
            "POCUS, 13 subjects",
            "linear probe, 5 folds by subject",
            "clip",
            "balanced accuracy",
            -0.125,
            (-0.25, 0.0625),
            "95 %, bootstrap over subjects",
            "ImageNet",
            "uscl probe",
            None,
        ),
    ),
)


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """A backbone's tensors, with batch-norm statistics that make a difference."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", num_classes=0, zero_init_last=False)
    state: dict[str, Tensor] = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return state


def write(folder: Path, card: Card = CARD, seed: int = 0) -> Card:
    """Write weights and card into a folder for `USCL_ZOO_WEIGHTS`; the card with its digest."""
    path = folder / card.weights.file
    checkpoint.write_backbone(random_state(seed), path, card.architecture)
    known = replace(card.weights, sha256=sha256_of(path), bytes=path.stat().st_size)
    card = replace(card, weights=known)
    write_yaml(folder / f"{card.name}.yaml", card)
    return card


def python(*arguments: str, environment: Mapping[str, object], path: Path | None = None) -> str:
    """Run another Python with an environment of its own, and return what it prints.

    Args:
        *arguments: of Python.
        environment: variables on top of PATH, PYTHONPATH and the like.
        path: of packages that go before the installed ones.
    """
    kept = ("PATH", "PYTHONPATH", "TMPDIR", "OMP_NUM_THREADS")
    inherited = {key: os.environ[key] for key in kept if key in os.environ}
    if path is not None:
        inherited["PYTHONPATH"] = os.pathsep.join([str(path), inherited.get("PYTHONPATH", "")])
    variables = inherited | {key: str(value) for key, value in environment.items()}
    if path is None and arguments[0] == "-c":
        result = fresh.run(*arguments[1:], environment=variables)
    else:
        result = subprocess.run(
            [sys.executable, *arguments], env=variables, capture_output=True, text=True
        )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
