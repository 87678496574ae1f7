"""A thousand seeded corruptions: none loads, none runs code, each error names the file.

What counts as corruption is what can be told from the original. The weights of a card are told by
their digest, whatever the change. A card is told by its structure: a changed letter in a sentence
for people leaves a valid card, so cards are damaged in keys, types, digests, names and the YAML
itself. Checkpoints that come without a digest are told by the archive's checksums and by names,
shapes, types and values; files that have no checksums (safetensors, and torch.save before 1.6) are
therefore damaged in their structure only, and tensors are swapped where their shapes differ.

    USCL_ZOO_FULL=1 python -m pytest tests/test_corruption.py -q -s

prints the counts that docs/reliability.md gives; without the variable it makes a tenth of them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import trial
import yaml
from conftest import some
from safetensors.torch import load, save
from torch import Tensor

import uscl_zoo
from uscl_zoo.errors import (
    CardError,
    CheckpointError,
    DigestError,
    UsclError,
    WeightsNotFoundError,
)
from uscl_zoo.records import to_plain, write_yaml
from uscl_zoo.training.learning.runs import CHECKPOINT, load_checkpoint, save_checkpoint
from uscl_zoo.zoo import authors
from uscl_zoo.zoo.card import read_card

State = dict[str, Tensor]
Damage = Callable[[Path, random.Random, Path], None]


class Trap:
    """Its pickle leaves a file behind when it is read carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.marker)!r}, 'w')",)


# ------------------------------------------------------------------ damage to any file of bytes


def flip_a_bit(path: Path, rng: random.Random, marker: Path) -> None:
    """Anywhere; of a zip archive, inside of a record: between them there is padding."""
    start, stop = 0, path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            record = rng.choice(archive.infolist())
        with path.open("rb") as stream:
            stream.seek(record.header_offset + 26)
            start = record.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))
        stop = start + record.file_size
    with path.open("r+b") as stream:
        position = rng.randrange(start, stop)
        stream.seek(position)
        (byte,) = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ (1 << rng.randrange(8))]))


def truncate(path: Path, rng: random.Random, marker: Path) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def append(path: Path, rng: random.Random, marker: Path) -> None:
    with path.open("ab") as stream:
        stream.write(rng.randbytes(rng.randint(1, 4096)))


def pickle_with_code(path: Path, rng: random.Random, marker: Path) -> None:
    content = {"format": 1, "state_dict": {"conv1.weight": torch.zeros(3)}, "args": Trap(marker)}
    how = rng.randrange(3)
    if how == 0:
        path.write_bytes(pickle.dumps(content, protocol=rng.randint(2, 5)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == 1)


def huge_header(path: Path, rng: random.Random, marker: Path) -> None:
    """A safetensors file that announces up to 2^60 bytes of JSON."""
    path.write_bytes(struct.pack("<Q", 1 << rng.randint(27, 60)) + b'{"a":' + rng.randbytes(99))


def zip_bomb(path: Path, rng: random.Random, marker: Path) -> None:
    """An archive like PyTorch's, of zeros that unpack to a thousand times its size."""
    pickled = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(1)}, pickled)
    with (
        zipfile.ZipFile(pickled) as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            data = plain.read(entry)
            if "/data/" in entry.filename:
                data = bytes(rng.randint(300_000_000, 400_000_000))
            bomb.writestr(entry.filename, data)


def link_out(path: Path, rng: random.Random, marker: Path) -> None:
    """A link to some other file of the machine's."""
    outside = marker.with_name("outside")
    outside.write_bytes(rng.randbytes(rng.randint(0, 5000)))
    path.unlink()
    path.symlink_to(rng.choice([outside, Path("/etc/passwd"), Path("/dev/zero"), marker]))


# ---------------------------------------------------------------------------- damage to tensors


def _swap(state: State, rng: random.Random) -> None:
    while True:
        one, other = rng.sample(sorted(state), 2)
        if state[one].shape != state[other].shape:
            state[one], state[other] = state[other], state[one]
            return


def _rename(state: State, rng: random.Random) -> None:
    key = rng.choice([key for key in state if not key.endswith("num_batches_tracked")])
    state[rng.choice([f"{key}_", f"net.{key}", key.upper(), key[:-1]])] = state.pop(key)


def _drop(state: State, rng: random.Random) -> None:
    del state[rng.choice([key for key in state if not key.endswith("num_batches_tracked")])]


def _retype(state: State, rng: random.Random) -> None:
    key = rng.choice([key for key in state if state[key].is_floating_point()])
    kind = rng.choice([torch.float64, torch.int32, torch.uint8, torch.bool, torch.int64])
    state[key] = state[key].to(kind)


def _reshape(state: State, rng: random.Random) -> None:
    key = rng.choice([key for key in state if state[key].numel() > 1])
    state[key] = state[key].reshape(-1, *state[key].shape[2:], 1)


def _spoil(state: State, rng: random.Random) -> None:
    tensor = state[rng.choice([key for key in state if state[key].is_floating_point()])]
    value = rng.choice([float("nan"), float("inf"), float("-inf")])
    tensor.view(-1)[rng.randrange(tensor.numel())] = value


def in_safetensors(change: Callable[[State, random.Random], None]) -> Damage:
    def damage(path: Path, rng: random.Random, marker: Path) -> None:
        state = load(path.read_bytes())
        change(state, rng)
        path.write_bytes(save(state, metadata={"format": "pt"}))

    return damage


def in_checkpoint(change: Callable[[State, random.Random], None]) -> Damage:
    def damage(path: Path, rng: random.Random, marker: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state, rng)
        torch.save(state, path)

    return damage


# ------------------------------------------------------------------------------ damage to cards


def in_card(change: Callable[[dict[str, Any], random.Random], None]) -> Damage:
    def damage(path: Path, rng: random.Random, marker: Path) -> None:
        content = yaml.safe_load(path.read_text())
        change(content, rng)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    return damage


def _records(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The mappings of a card whose keys are fixed, unlike those of classes, licences and recipe."""
    training = content["training"]
    return [
        *(content, content["weights"], content["input"], training),
        *training["sources"],
        *content["metrics"],
    ]


#: Keys that a record may do without.
_OPTIONAL = {
    *("sha256", "bytes", "hub_repo", "revision", "origin", "metrics", "labels", "recipe"),
    *("interpolation", "crop_mode", "crop_pct", "held_out_subjects", "epochs", "steps", "seed"),
    *("code", "hardware", "hours", "classes", "corpus"),
}


def _card_rename(content: dict[str, Any], rng: random.Random) -> None:
    record = rng.choice(_records(content))
    key = rng.choice(list(record))
    record[rng.choice([f"{key}s", key.upper(), key[1:], f" {key}"])] = record.pop(key)


def _card_drop(content: dict[str, Any], rng: random.Random) -> None:
    record = rng.choice(_records(content))
    del record[rng.choice([key for key in record if key not in _OPTIONAL])]


def _card_retype(content: dict[str, Any], rng: random.Random) -> None:
    record = rng.choice(_records(content))
    key = rng.choice([key for key in record if key not in ("recipe", "metrics")])
    # of no type that any key has
    record[key] = rng.choice([[[[]]], {"a": {"b": [None]}}, float("nan"), True])


def _card_digest(content: dict[str, Any], rng: random.Random) -> None:
    digest = content["weights"]["sha256"]
    content["weights"]["sha256"] = rng.choice(
        [digest[:-1], digest + "0", digest.upper() + "F", f"g{digest[1:]}", f" {digest}", ""]
    )


def _card_bytes(content: dict[str, Any], rng: random.Random) -> None:
    content["weights"]["bytes"] = rng.choice([-1, 0, None, "many", 1.5, 2**70, True])


def _card_name(content: dict[str, Any], rng: random.Random) -> None:
    content["name"] = rng.choice(
        ["resnet18_uscl.other", "resnet50_uscl.trial", "../resnet18_uscl.trial", "", "trial"]
    )


def _card_way_out(content: dict[str, Any], rng: random.Random) -> None:
    content["weights"]["file"] = rng.choice(
        [
            *("../weights.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""),
            *("weights.pth", "a\\b.safetensors", "a\n.safetensors", "~/x.safetensors"),
        ]
    )


def _card_branch(content: dict[str, Any], rng: random.Random) -> None:
    content["weights"]["hub_repo"] = "me/model"
    content["weights"]["revision"] = rng.choice(["main", "v1", "abc1234", None, "a" * 39])


def _card_input(content: dict[str, Any], rng: random.Random) -> None:
    wrong = rng.choice(
        [
            *(("std", [0.25, 0.0, 0.25]), ("std", [0.25, 0.25]), ("mean", [0.5, float("inf"), 0])),
            *(("size", [3, 0, 224]), ("size", [1, 224, 224]), ("size", [3, 10**9, 224])),
        ]
    )
    content["input"][wrong[0]] = wrong[1]


def card_truncated(path: Path, rng: random.Random, marker: Path) -> None:
    """Somewhere before the last key that a card must have."""
    os.truncate(path, rng.randrange(path.read_bytes().index(b"\nlimits:")))


def card_bit_flip(path: Path, rng: random.Random, marker: Path) -> None:
    """In a key that a card must have."""
    data = bytearray(path.read_bytes())
    key = rng.choice(["name", "architecture", "summary", "weights", "input", "training", "licence"])
    start = (b"\n" + bytes(data)).index(f"\n{key}:".encode())
    data[start + rng.randrange(len(key))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def card_code(path: Path, rng: random.Random, marker: Path) -> None:
    """What yaml.load, unlike safe_load, would run."""
    command = f"open({str(marker)!r}, 'w')"
    tag = rng.choice(
        [
            f"!!python/object/apply:builtins.exec [{json.dumps(command)}]",
            f"!!python/object/apply:os.system ['touch {marker}']",
            f"!!python/object/new:os.system ['touch {marker}']",
        ]
    )
    text = path.read_text()
    path.write_text(text.replace("licence:", f"licence: {tag}\nlicense:", 1))


def card_bomb(path: Path, rng: random.Random, marker: Path) -> None:
    """A few aliases of aliases, which written out would fill the memory."""
    width = rng.randint(9, 12)
    lines = ["a0: &a0 [lol]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    text = path.read_text()
    where = rng.choice(["top", "summary", "name"])
    if where == "top":
        text = "\n".join([*lines, text])
    else:
        kept = [line for line in text.splitlines() if not line.startswith(f"{where}:")]
        nested = [line.replace(f"a{i}: ", "  - ", 1) for i, line in enumerate(lines)]
        text = "\n".join([f"{where}:", *nested, *kept])
    path.write_text(text)


def card_padded(path: Path, rng: random.Random, marker: Path) -> None:
    """A valid card, but for its size: more than the four mebibytes that may be read."""
    with path.open("a") as stream:
        stream.write("# lol\n" * rng.randint(2**20, 2**22))


def card_garbage(path: Path, rng: random.Random, marker: Path) -> None:
    choices = [rng.randbytes(500), b"", b"- a\n- b\n", b"[" * 20_000, b"a: b: c", b"\xff\xfe"]
    path.write_bytes(rng.choice(choices))


# ------------------------------------------------------------------------------- four targets

Try = Callable[[Path], object]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is damaged: made once, copied each time."""
    folder = tmp_path_factory.mktemp("originals")
    state = trial.random_state()
    # the store does not look inside before the digest agrees
    (folder / "small").write_bytes(save({f"layer{i}": torch.randn(9 + i, 7) for i in range(9)}))
    (folder / "whole").write_bytes(save(state, metadata={"format": "pt"}))
    small = (folder / "small").read_bytes()
    known = replace(trial.CARD.weights, sha256=sha256(small).hexdigest(), bytes=len(small))
    write_yaml(folder / f"{trial.NAME}.yaml", replace(trial.CARD, weights=known))
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(halves, folder / "checkpoint")
    torch.save(halves, folder / "old checkpoint", _use_new_zipfile_serialization=False)
    run: dict[str, Any] = {"format": 1, "network": {"weight": torch.randn(50, 50)}, "step": 3}
    save_checkpoint(folder, run)
    return folder


@dataclass(frozen=True)
class Target:
    """Something that is read: where it lies, and how.

    Attributes:
        original: that is copied to `path` before it is damaged.
        path: in the working folder.
        read: the working folder.
        errors: that the right check, not a later one, refuses with.
        vouched: write a card that agrees with the damaged file.
    """

    original: str
    path: str
    read: Try
    errors: tuple[type[UsclError], ...] = (CheckpointError,)
    vouched: bool = False


def _create(folder: Path) -> object:
    return uscl_zoo.create_model(trial.NAME, pretrained=True)


def _import(folder: Path) -> object:
    return authors.import_checkpoint(folder / "best_model.pth", "resnet18_uscl.us4", folder / "to")


FILE, CARD_FILE = f"{trial.NAME}.safetensors", f"{trial.NAME}.yaml"
TARGETS = {
    "weights": Target("small", FILE, _create, (DigestError, WeightsNotFoundError)),
    "weights vouched for": Target("whole", FILE, _create, vouched=True),
    "card": Target(
        CARD_FILE, CARD_FILE, lambda folder: read_card(folder / CARD_FILE), (CardError,)
    ),
    "checkpoint": Target("checkpoint", "best_model.pth", _import),
    "old checkpoint": Target("old checkpoint", "best_model.pth", _import),
    "safetensors checkpoint": Target("whole", "best_model.pth", _import),
    "training checkpoint": Target(CHECKPOINT, CHECKPOINT, load_checkpoint),
}

CORRUPTIONS: dict[tuple[str, str], tuple[int, Damage]] = {
    ("weights", "bit flip"): (150, flip_a_bit),
    ("weights", "truncation"): (60, truncate),
    ("weights", "bytes appended"): (20, append),
    ("weights", "swapped tensors"): (40, in_safetensors(_swap)),
    ("weights", "renamed key"): (30, in_safetensors(_rename)),
    ("weights", "wrong dtype"): (30, in_safetensors(_retype)),
    ("weights", "NaN or infinity"): (30, in_safetensors(_spoil)),
    ("weights", "huge header"): (15, huge_header),
    ("weights", "pickle with code"): (15, pickle_with_code),
    ("weights", "zip bomb"): (2, zip_bomb),
    ("weights", "link out of the folder"): (18, link_out),
    ("weights vouched for", "swapped tensors"): (10, in_safetensors(_swap)),
    ("weights vouched for", "renamed key"): (10, in_safetensors(_rename)),
    ("weights vouched for", "missing tensor"): (10, in_safetensors(_drop)),
    ("weights vouched for", "wrong dtype"): (10, in_safetensors(_retype)),
    ("weights vouched for", "wrong shape"): (10, in_safetensors(_reshape)),
    ("weights vouched for", "truncation"): (10, truncate),
    ("weights vouched for", "huge header"): (10, huge_header),
    ("weights vouched for", "pickle with code"): (10, pickle_with_code),
    ("card", "bit flip in a key"): (40, card_bit_flip),
    ("card", "truncation"): (40, card_truncated),
    ("card", "renamed key"): (30, in_card(_card_rename)),
    ("card", "missing key"): (30, in_card(_card_drop)),
    ("card", "wrong type"): (40, in_card(_card_retype)),
    ("card", "wrong digest"): (20, in_card(_card_digest)),
    ("card", "wrong size"): (10, in_card(_card_bytes)),
    ("card", "wrong name"): (15, in_card(_card_name)),
    ("card", "file outside the folder"): (20, in_card(_card_way_out)),
    ("card", "branch for a commit"): (15, in_card(_card_branch)),
    ("card", "impossible input"): (15, in_card(_card_input)),
    ("card", "code in YAML"): (15, card_code),
    ("card", "alias bomb"): (10, card_bomb),
    ("card", "garbage"): (10, card_garbage),
    ("card", "padded to megabytes"): (5, card_padded),
    ("card", "link out of the folder"): (5, link_out),
    ("checkpoint", "bit flip"): (35, flip_a_bit),
    ("checkpoint", "truncation"): (25, truncate),
    ("checkpoint", "swapped tensors"): (10, in_checkpoint(_swap)),
    ("checkpoint", "renamed key"): (10, in_checkpoint(_rename)),
    ("checkpoint", "missing tensor"): (10, in_checkpoint(_drop)),
    ("checkpoint", "wrong dtype"): (10, in_checkpoint(_retype)),
    ("checkpoint", "NaN or infinity"): (15, in_checkpoint(_spoil)),
    ("checkpoint", "pickle with code"): (15, pickle_with_code),
    ("checkpoint", "zip bomb"): (3, zip_bomb),
    ("checkpoint", "huge header"): (7, huge_header),
    ("old checkpoint", "truncation"): (15, truncate),
    ("safetensors checkpoint", "truncation"): (10, truncate),
    ("safetensors checkpoint", "renamed key"): (5, in_safetensors(_rename)),
    ("training checkpoint", "bit flip"): (10, flip_a_bit),
    ("training checkpoint", "truncation"): (5, truncate),
    ("training checkpoint", "pickle with code"): (5, pickle_with_code),
}


@contextmanager
def little_memory(megabytes: int = 256) -> Iterator[None]:
    """Let the process take no more than so much beyond what it has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def tally() -> Iterator[list[str]]:
    """The table of docs/reliability.md, printed when all is done."""
    rows: list[str] = []
    yield rows
    print("\n\n| what | corruption | made | loaded | ran code | refused with |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


@pytest.mark.parametrize(("what", "kind"), CORRUPTIONS)
def test_corruption(
    what: str,
    kind: str,
    originals: Path,
    tally: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, (count, damage) = TARGETS[what], CORRUPTIONS[what, kind]
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(tmp_path / "work"))
    marker, refusals, loaded = tmp_path / "ran", Counter[str](), []
    original = (originals / target.original).read_bytes()
    seeds = some(count, list(CORRUPTIONS).index((what, kind)))
    for seed in seeds:
        folder = tmp_path / "work"
        folder.mkdir()
        path = folder / target.path
        path.write_bytes(original)
        damage(path, random.Random(f"{what}, {kind}, {seed}"), marker)
        if target.vouched:
            data = path.read_bytes()
            known = replace(trial.CARD.weights, sha256=sha256(data).hexdigest(), bytes=len(data))
            write_yaml(folder / CARD_FILE, replace(trial.CARD, weights=known))
        elif what == "weights":
            shutil.copy(originals / CARD_FILE, folder)
        before = {entry.name for entry in folder.iterdir()}
        try:
            with little_memory():
                loaded.append(target.read(folder))
        except UsclError as error:
            message = str(error)
            assert isinstance(error, target.errors), f"seed {seed}: {message}"
            assert "bomb" not in kind or what != "checkpoint" or "would unpack" in message
            assert str(path) in message, f"seed {seed}: {message}"
            assert "\n" not in message, f"seed {seed}: {message}"
            assert "MemoryError" not in message, f"seed {seed}: {message}"
            refusals[type(error).__name__] += 1
        assert not loaded, f"seed {seed}: loaded {loaded}"
        assert not marker.exists(), f"seed {seed}: ran code"
        # nothing was written
        assert {entry.name for entry in folder.iterdir()} == before
        shutil.rmtree(folder)
    assert sum(refusals.values()) == len(seeds)
    told = ", ".join(f"{name} {number}" for name, number in refusals.most_common())
    tally.append(f"| {what} | {kind} | {len(seeds)} | {len(loaded)} | 0 | {told} |")


def test_a_thousand() -> None:
    assert sum(count for count, _ in CORRUPTIONS.values()) == 1000


@pytest.mark.parametrize("what", TARGETS)
def test_undamaged_it_loads(
    what: str, originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the above would prove nothing."""
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(tmp_path))
    target = TARGETS[what]
    shutil.copy(originals / target.original, tmp_path / target.path)
    if what == "weights":
        # not a network's, but the card's: the digest lets it pass
        shutil.copy(originals / CARD_FILE, tmp_path)
        uscl_zoo.zoo.weights_cache.locate(read_card(tmp_path / CARD_FILE))
        return
    if target.vouched:
        data = (tmp_path / target.path).read_bytes()
        known = replace(trial.CARD.weights, sha256=sha256(data).hexdigest(), bytes=len(data))
        write_yaml(tmp_path / CARD_FILE, replace(trial.CARD, weights=known))
    with little_memory():
        assert target.read(tmp_path) is not None


def test_the_traps_are_real(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "trap"
    for seed in range(6):
        pickle_with_code(path, random.Random(seed), marker)
        # of what pickle.dump wrote, torch.load misses a magic number, after having loaded it
        with suppress(RuntimeError):
            torch.load(path, weights_only=False)
        assert marker.exists()
        marker.unlink()
    for seed in range(6):
        path.write_text(yaml.safe_dump(to_plain(trial.CARD)))
        card_code(path, random.Random(seed), marker)
        yaml.unsafe_load(path.read_text())
        assert marker.exists()
        marker.unlink()
