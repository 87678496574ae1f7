"""What several tests make: a model of one's own without training, and a command's status."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from conftest import TINTS, make_card
from PIL import Image

from uscl_zoo import modelcard
from uscl_zoo.answers import ANSWERS, CONFIG, STATISTICS, Answers, Statistics
from uscl_zoo.cli import main
from uscl_zoo.records import to_plain, write_text, write_yaml
from uscl_zoo.training.finetuning.judging import pack
from uscl_zoo.zoo.card import Input, Weights
from uscl_zoo.zoo.checkpoint import write_backbone

NAME = "resnet18_uscl.own"
CLASSES = tuple(TINTS)


def run(*arguments: object) -> int:
    """The exit status of a command, in this process."""
    try:
        main([*map(str, arguments)])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def write_model(folder: Path, seed: int = 0, size: int = 64, **answers: Any) -> Path:
    """Write what `uscl finetune` would, but the report.

    Args:
        folder: of the model.
        seed: of the weights.
        size: of the frames.
        **answers: of `predict.json`, in place of the usual.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = timm.create_model("resnet18", num_classes=len(CLASSES), zero_init_last=False)
        # one that says something: of a new classifier every class is as probable
        torch.nn.init.normal_(network.fc.weight)
    weights = folder / "model.safetensors"
    write_backbone(network.state_dict(), weights, "resnet18", False, len(CLASSES))
    content = weights.read_bytes()
    # of the first two stages of a ResNet-18
    textures = np.random.default_rng(seed).random((50, 192), np.float32)
    statistics = pack(Statistics.of(textures))
    (folder / STATISTICS).write_bytes(statistics)
    card = make_card(
        NAME,
        weights=Weights(weights.name, sha256(content).hexdigest(), len(content)),
        input=Input(size=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3),
        classes=CLASSES,
    )
    write_yaml(folder / f"{NAME}.yaml", card)
    write_text(folder / CONFIG, json.dumps(modelcard.config(card)))
    usual: dict[str, Any] = {
        "classes": CLASSES,
        "temperature": 1.5,
        "confidence": 0.5,
        "threshold": 90.0,
        "quantile": 0.99,
        "validation_frames": 50,
        "rate": 3.0,
        "statistics_sha256": sha256(statistics).hexdigest(),
    }
    write_answers(folder, to_plain(Answers(**(usual | answers))))
    Image.new("RGB", (8, 8)).save(folder / modelcard.CONFUSION)
    return folder


def write_answers(folder: Path, content: Any) -> None:
    """Write `predict.json`, right or wrong."""
    write_text(folder / ANSWERS, json.dumps(content))


def answers_of(folder: Path) -> dict[str, Any]:
    """What `predict.json` says."""
    content: dict[str, Any] = json.loads((folder / ANSWERS).read_text())
    return content
