"""Names that are awkward to write, print or draw, in every command that has names."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import timm
import torch
from conftest import TINTS, draw_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from uscl_zoo.classifier.prediction import predict
from uscl_zoo.cli import main
from uscl_zoo.embedding.extraction import embed, embed_to
from uscl_zoo.embedding.neighbours import read_embeddings
from uscl_zoo.errors import DataError
from uscl_zoo.names import cell, plain, say
from uscl_zoo.training.evaluation.audit import audit
from uscl_zoo.training.finetuning.finetune import finetune
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe
from uscl_zoo.training.pretraining.pretrain import pretrain
from uscl_zoo.ultrasound.reading import read
from uscl_zoo.zoo.card import Card

#: Of files; as bytes, as Linux has them.
FILES = [
    b"latin-\xe9.png",  # no UTF-8
    b"half-\xed\xa0\x80.png",  # half a character
    "ü-日本-😀.png".encode(),
    b"two\nlines.png",
    b"car\rriage.png",
    b"tab\tbed.png",
    b"red-\x1b[31m.png",
    b"clear-\x1b]0;x\x07.png",
    "\u202egnp.x.png".encode(),  # shown from right to left
    b"$x_1$ {%s}.png",
    b"$HOME.png",
    b"=1+1.png",
    b"@sum.png",
    b"-f.png",
    b"'quoted'.png",
    b"<b>&amp;.png",
]
#: Of classes, which folders name.
CLASSES = ["a$b_{$", "=1+1", "_x", "日本-\x1b[31m", "<i>\n&"]


def make(folder: Path, name: bytes, seed: int, tint: tuple[int, int, int] = (90, 90, 90)) -> Path:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        Image.fromarray(draw_clip(seed, 1, tint)[0]).save(stream, "PNG")
    return path


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for i, name in enumerate(FILES):
        make(folder, name, i)
    return folder


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = timm.create_model("resnet18", num_classes=0)
    return network


def told(table: Path) -> list[dict[str, str]]:
    """The rows of a table that any program reads: a line each, in UTF-8, nothing calculated."""
    content = table.read_bytes().decode().replace("\r\n", "\n")
    assert not any(char in content for char in "\x1b\x07\r\u202e")
    rows = list(csv.DictReader(io.StringIO(content)))
    assert len(rows) == content.count("\n") - 1
    assert not any(value[:1] in ("=", "@") for row in rows for value in row.values())
    return rows


# ------------------------------------------------------------------------------------ one name


@given(st.text(st.characters()))
def test_cells(name: str) -> None:
    written = cell(name)
    written.encode()
    assert written.isprintable()
    assert written[:1] not in set("=+-@\t\r")
    if name.isprintable():
        assert plain(written) == name
    # what is written again stays
    assert cell(plain(written)) == written


@given(st.text(st.characters()))
def test_anything_can_be_said(text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    before, sys.stdout = sys.stdout, stream
    try:
        say(text)
    finally:
        sys.stdout = before


# ---------------------------------------------------------------------------------- the commands


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_embeddings_of_them(odd: Path, model: nn.Module, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out{suffix}"
    done = embed_to(output, model, odd, "subject", progress=False, subjects=lambda name: None)
    assert done.sources == len(FILES)
    if suffix == ".csv":
        rows = told(output)
        assert len({row["source"] for row in rows}) == len(FILES)
        assert any(row["subject"] == "'=1+1.png" for row in rows)
        assert any(row["subject"] == r"latin-\udce9.png" for row in rows)
    if suffix == ".npz":
        sources = np.load(output)["sources"].tolist()
        assert all(source.isprintable() for source in sources)
    assert embed(model, odd, progress=False).save(output) == output


@pytest.fixture
def latin(tmp_path: Path) -> Path:
    """A folder for outputs, whose name is no UTF-8."""
    folder = tmp_path / os.fsdecode(b"latin-\xe9")
    folder.mkdir()
    return folder


def test_embeddings_in_a_folder_that_is_no_utf8(model: nn.Module, odd: Path, latin: Path) -> None:
    """Of Parquet, whose library takes no such path."""
    done = embed_to(latin / "out.parquet", model, [odd], progress=False, device="cpu")
    assert done.rows == len(FILES)
    found = read_embeddings(latin / "out.parquet")
    assert found.features.shape == (len(FILES), 512)


def test_an_evaluation_in_a_folder_that_is_no_utf8(
    latin: Path, classes: Path, installed: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose report has the command line in it."""
    words = f"evaluate {installed().name} --dataset folder --protocol knn --folds 2 --resamples 100"
    given = [*words.split(), "--workers", "1", "--data", str(classes), "-o", str(latin / "out")]
    monkeypatch.setattr(sys, "argv", ["uscl", *given])
    main(given)
    assert "latin-\\udce9/out" in (latin / "out" / "results.md").read_text(encoding="utf-8")
    assert "latin-\\udce9/out" in (latin / "out" / "report.html").read_text(encoding="utf-8")


def test_a_run_in_a_folder_that_is_no_utf8(latin: Path, small_store: FrameStore) -> None:
    with pytest.raises(DataError, match=r"latin-.*run: is no UTF-8, in which TensorBoard wants"):
        pretrain(Recipe(epochs=1), small_store, latin / "run", progress=False)
    assert not list(latin.iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "utf-8"])
def test_consoles_that_cannot_print_them(tuned: Path, odd: Path, encoding: str) -> None:
    (odd / "no-é-image.png").write_bytes(b"x")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    program = "import sys; from uscl_zoo.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "predict", str(tuned), str(odd), "--device", "cpu"]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    (odd / "no-é-image.png").unlink()
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert ended.stdout.count(b"\n") == len(FILES)
    assert b"\x1b" not in ended.stdout
    assert b"skipped" in ended.stderr


def test_answers_about_them(
    tuned: Path, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = predict(tuned, odd, subjects=r"^(.)", device="cpu", progress=False)
    rows = told(result.save(tmp_path / "out.csv"))
    assert sum(row["unit"] == "clip" for row in rows) == len(FILES)
    content = json.loads(result.save(tmp_path / "out.json").read_bytes().decode())
    assert all(clip["source"].isprintable() for clip in content["clips"])
    for answer in result.clips:
        assert str(answer).isprintable()


@pytest.mark.parametrize("name", [b"latin-\xe9.png", b"two\nlines.png", b"$x_1$ {%s}.png"])
def test_they_are_explained(tuned: Path, odd: Path, tmp_path: Path, name: bytes) -> None:
    output = tmp_path / "out.png"
    main(["explain", str(tuned), str(odd / os.fsdecode(name)), "-o", str(output)])
    assert Image.open(output).size[0] > 100


def test_a_store_of_them(odd: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    arguments = ["prepare", str(odd), "-o", str(store), "--label-scheme", "none", "--holdout", "0"]
    main([*arguments, "--workers", "1", "--size", "32"])
    opened = FrameStore(store)
    assert len(opened.videos) == len(FILES)
    names = {video.name for video in opened.videos}
    assert {"=1+1.png", r"two\nlines.png", r"latin-\udce9.png", "'quoted'.png"} <= names
    assert {video.subject for video in opened.videos} == names
    assert all(row["video"].isprintable() for row in told(store / "manifest.csv"))


def test_an_audit_of_them(odd: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    for name in FILES:
        make(again, name, 0)
    found = audit([str(odd), str(again)], progress=False)
    found.save(tmp_path / "report")
    assert len(told(tmp_path / "report" / "pairs.csv")) == len(found.findings) > 0
    (tmp_path / "report" / "report.html").read_bytes().decode()
    assert all(line.isprintable() for line in str(found).splitlines())


def test_a_training_on_classes_of_such_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once the work was done, a `$` in a plot lost all of it."""
    data = tmp_path / os.fsdecode(b"d\xe4ta $=")
    for i, label in enumerate(CLASSES):
        for j in range(6):
            name = os.fsencode(f"{label}/{j}") + FILES[j]
            make(data, name, 100 * i + j, list(TINTS.values())[i % 3])
    output = tmp_path / "model"
    how: dict[str, Any] = {"size": 32, "epochs": 1, "resamples": 100, "workers": 1, "device": "cpu"}
    done = finetune(data, output, train="head", progress=False, **how)
    assert sorted(done.card.classes) == sorted(["a$b_{$", "=1+1", "_x", r"日本-\x1b[31m", "<i> &"])
    rows = told(output / "heldout.csv")
    assert {plain(row["label"]) for row in rows} == set(done.card.classes)
    page = (output / "report.html").read_bytes().decode()
    assert "<i>" not in page
    # and its model answers
    result = predict(output, data, device="cpu", progress=False)
    assert len(told(result.save(tmp_path / "out.csv"))) > 0


# ------------------------------------------------------------------------------------- no home


def homeless(program: str, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run a program without HOME, by a user without a name."""
    nobody = "import os, pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment = {key: v for key, v in environment.items() if not key.startswith("USCL_ZOO")}
    code = nobody + "\n".join([program, *lines])
    return fresh.run(code, environment=environment)


def test_without_a_home_the_package_says_what_it_lacks() -> None:
    ended = homeless(
        "import uscl_zoo, uscl_zoo.cli",
        "from uscl_zoo.zoo.catalogue import all_cards",
        "print(len(all_cards()))",
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 0
    assert "there is no such home folder; set HOME" in ended.stderr
    ended = homeless("from uscl_zoo.cli import main", "main(['where', 'resnet18_uscl'])")
    assert ended.returncode == 0, ended.stderr
    assert "there is no such home folder; set HOME" in ended.stdout
    assert "\n* bundled" in ended.stdout
    ended = homeless("from uscl_zoo.cli import main", "main(['fetch', 'resnet18_uscl'])")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "there is no such home folder; set HOME" in ended.stderr.splitlines()[-1]


COMMANDS: list[Callable[[str], list[str]]] = [
    lambda path: ["embed", path, "-o", "x.csv"],
    lambda path: ["predict", "x", path],
    lambda path: ["prepare", path, "-o", "x"],
    lambda path: ["finetune", "--data", path, "-o", "x"],
    lambda path: ["finetune", "--data", "x", "-o", path],
    lambda path: ["evaluate", "random", "--dataset", "folder", "--data", path, "-o", "x"],
    lambda path: ["audit", path],
    lambda path: ["shortcut", "resnet18_uscl", path, "-o", "x.html"],
    lambda path: ["explain", path, "x.png"],
    lambda path: ["explain", "resnet18_uscl", path],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_home_of_nobody(
    command: Callable[[str], list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(command("~nosuch/data"))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "~nosuch/data" in line
    with pytest.raises(DataError, match="~nosuch/x: there is no such home folder"):
        read("~nosuch/x")
    assert list(tmp_path.iterdir()) == []
