"""Small weights, a card of them, and files laid where weights are looked for."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save

from uscl_zoo.records import write_yaml
from uscl_zoo.zoo import digests
from uscl_zoo.zoo.card import Card, Input, Training, Weights
from uscl_zoo.zoo.hub import HUB_FILE

NAME = "resnet18_uscl.trial"
FILE = f"{NAME}.safetensors"


def tensors(seed: int = 0) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return save({f"layer{i}": torch.randn(64, 64, 3, generator=generator) for i in range(3)})


def card_of(data: bytes | None, repo: str | None = None, commit: str | None = None) -> Card:
    return Card(
        name=NAME,
        architecture="resnet18",
        summary="for tests",
        weights=Weights(
            file=FILE,
            sha256=None if data is None else sha256(data).hexdigest(),
            bytes=None if data is None else len(data),
            hub_repo=repo,
            revision=commit,
        ),
        input=Input(size=(3, 224, 224), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        training=Training(method="uscl", sources=()),
        licence="MIT",
        intended_use="none",
        limits=(),
    )


def write_card(card: Card, folder: Path) -> Path:
    path = folder / f"{card.name}.yaml"
    write_yaml(path, card)
    return path


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def age(*paths: Path) -> None:
    """Wait until nobody could have changed the files without their clocks showing it."""
    newest = max(path.stat().st_ctime_ns for path in paths)
    time.sleep(max(0.0, (newest + 1.05 * digests._UNSETTLED - time.time_ns()) / 1e9))


def cached_file(cache: Path, repo: str, commit: str, data: bytes) -> Path:
    """Lay a file into a Hub cache as the client does: a blob, and a link to it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    blob = put(root / "blobs" / sha256(data).hexdigest(), data)
    link = root / "snapshots" / commit / HUB_FILE
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link
