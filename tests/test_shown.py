"""The shell commands that README and docs show: run in small, or by a test that is named."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import outlined
import pytest
from conftest import TINTS, draw_clip
from own import run, write_model
from PIL import Image
from test_docs import PAGES, ROOT, blocks

from uscl_zoo.training.finetuning import finetune
from uscl_zoo.training.finetuning.segmentation import finetune as outlining

#: What makes a command short that takes minutes or hours as it is shown.
REDUCED = {
    "finetune": "--size 32 --epochs 1 --workers 1 --device cpu",
    "evaluate": "--folds 2 --resamples 100 --workers 1 --device cpu",
    "prepare": "--size 32 --workers 1",
    "embed": "--device cpu",
    "explain": "--device cpu",
    "shortcut": "--device cpu",
}
#: What pages call things, and what they are here: by page or command, or "" for all.
CALLED = {
    "": {
        "FILES": "DATA/benign0.png DATA/malignant1.png",
        "FILE": "DATA/benign0.png",
        "COLLECTION": "DATA",
        "FOLDER": "SORTED",
        "MODEL": "OURS",
        "DATA": "SORTED",
        "NAME": "Cov",
        "CARD.yaml": "card.yaml",
        "R": "2",
        "T": "table.csv",
        "F": "file",
        "L": "diagnosis",
        "BUSI": "busi",
        "shared/data/busi": "busi",
        "busi:shared/data/busi": "busi:busi",
        "MINE/": "DATA",
        "bus-bra:BUSBRA/": "bus-bra:busbra",
        "VIDEOS": "DATA",
        "STORE": "stored",
    },
    "explain": {"FILE": "clip.gif"},
    # that of the collection
    "neighbours": {"MODEL": "resnet18_uscl"},
    "finetune.md": {"MODEL": "made"},
    "README.md": {"MODEL": "made"},
    "index.md": {"MODEL": "made"},
    "outlining.md": {"DATA": "MASKS", "MODEL": "outliner", "FOLDER": "outlines"},
}
#: Commands, and the tests that run the same: what needs a server, a browser, a cluster or another
#: network. As a pattern of what is shown.
ELSEWHERE = {
    r"demo$": "test_demo.py",
    r"app MODEL --space": "app/test_page.py::test_a_space_starts",
    r"app MODEL": "app/test_page.py::test_a_clip_is_shown_and_nobody_is_asked",
    r"embed s3://bucket": "ultrasound/test_remote.py::TestS3",
    r"(embed|prepare) .*--ray": "test_cluster.py::test_a_cluster_that_runs_is_joined",
    r"predict hf-hub:": "segmentation/test_published.py",
    r"publish \S+ --to \S+ --dry-run": "test_cli.py::"
    "test_publish_dry_run_shows_what_would_be_pushed",
    r"import \S+ --as": "test_cli.py::test_import_then_create",
    r"audit stores/pocus \S+ --fail": "training/evaluation/test_audit.py::"
    "test_the_command_reports_and_fails_when_asked",
    r"corpus ": "training/preparing/test_fingerprints.py",
    r"evaluate .*--dataset (stores/open|\S*STORE)": "training/evaluation/test_evaluate.py::"
    "test_the_command_with_a_store",
    r"evaluate .*method:": "training/evaluation/test_evaluate.py::"
    "test_figures_are_those_of_the_answers",
    # of the very weights that are shipped, and what it found stands beside it
    r"evaluate resnet18_uscl.open resnet50": "training/evaluation/test_shipped.py",
    r"evaluate .*(WEIGHTS|in18.safetensors|local-dir:)": "test_door.py",
    r"finetune --task detection": "training/finetuning/segmentation/test_detecting.py",
    r"finetune --data busi\.csv": "training/finetuning/test_finetune.py",
    r"finetune --task (regression|multilabel) .*--effort": "training/finetuning/test_tasks.py",
    r"throughput": "training/pretraining/test_throughput.py",
    r"prepare --corpus open": "test_cli.py::test_a_corpus_is_told_source_by_source",
    r"prepare shared/data": "training/preparing/test_prepare.py",
    r"pretrain|export|probe": "test_cli.py::test_from_clips_to_a_model",
}


def shown(page: Path) -> Iterator[str]:
    """The `uscl` commands of a page, without `uscl`; what stands in brackets is taken too."""
    for code in blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            line = line.partition("  #")[0].replace("...", "")
            # any of several, and words that stand for more of them
            line = re.sub(r"\[(options|key=value )\]", "", line)
            line = re.sub(r"\[(-[^\]]*)\]", r"\1", line)
            line = re.sub(r"(?<=[a-z])(\|[a-z]+)+", "", line)
            for part in re.split(r"\s(?:&&|\|)\s", line):
                command = re.match(r"\s*(?:\S*/)?uscl (.*\S)", part)
                if command:
                    yield re.sub(r" +", " ", command[1])


def run_elsewhere(command: str) -> str | None:
    """The test that runs the like of a command."""
    return next((test for form, test in ELSEWHERE.items() if re.match(form, command)), None)


def reduced(page: str, command: str) -> list[str]:
    """The words of a command on what there is here."""
    words = shlex.split(command)
    called = CALLED[""] | CALLED.get(page, {}) | CALLED.get(words[0], {})
    words = [called.get(word, word) for word in words]
    # nothing is replaced that another command has made
    apart = {"regression", "multilabel", "--folds"}.intersection(words) or (
        {page} if words[0] == "evaluate" else set()
    )
    for of in apart:
        words[words.index("-o") + 1] += f" of {of}"
    short = REDUCED.get(words[0], "").split()
    return [
        part for word in words for part in (word.split() if "DATA/" in word else [word])
    ] + short


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers have of their own: images in one folder with tables, sorted by class, masks."""
    folder = tmp_path_factory.mktemp("own")
    tables: dict[str, list[str]] = {
        "table.csv": ["file,Filename,diagnosis,patient"],
        "areas.csv": ["Filename,lesion area,patient"],
        "findings.csv": ["Filename,A-lines,B-lines,patient"],
        "busbra/bus_data.csv": ["ID,Case,Pathology,BIRADS"],
        "busbra/5-fold-cv.csv": ["ID,kFold"],
        "busbra/10-fold-cv.csv": ["ID,kFold"],
    }
    (folder / "DATA").mkdir()
    for number in range(12):
        place = number % 2
        label, tint = ("benign", "malignant")[place], list(TINTS.values())[place]
        image = Image.fromarray(draw_clip(number, 1, tint)[0])
        image.save(folder / "DATA" / f"{label}{number}.png")
        (folder / "SORTED" / label).mkdir(parents=True, exist_ok=True)
        image.save(folder / "SORTED" / label / f"{label}{number}.png")
        name, area = f"DATA/{label}{number}.png", 10 + 30 * place + number
        tables["table.csv"].append(f"{name},{name},{label},p{number}")
        tables["areas.csv"].append(f"{name},{area},p{number}")
        tables["findings.csv"].append(f"{name},{number // 2 % 2},{place},p{number}")
        for one, shown in ((label, image), ("normal", image.rotate(180))):
            (folder / "busi" / one).mkdir(parents=True, exist_ok=True)
            shown.save(folder / "busi" / one / f"{one} ({number}).png")
        (folder / "busbra" / "Images").mkdir(parents=True, exist_ok=True)
        scan = f"bus_{number:04}-l"
        image.save(folder / "busbra" / "Images" / f"{scan}.png")
        tables["busbra/bus_data.csv"].append(f"{scan},{number},{label},2")
        for folds in (5, 10):
            tables[f"busbra/{folds}-fold-cv.csv"].append(f"{scan},{number % folds + 1}")
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines))
    first, *rest = (Image.fromarray(frame) for frame in draw_clip(0, 3, TINTS["Cov"]))
    first.save(folder / "clip.gif", save_all=True, append_images=rest, duration=400)
    outlined.write(folder / "MASKS", 12)
    write_model(folder / "OURS", size=32)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(
    page: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    done: set[tuple[str, ...]],
) -> None:
    """In the order of the page; what another page has shown as well is done once."""
    monkeypatch.chdir(folder)
    for module in (finetune, outlining):
        monkeypatch.setattr(
            module, "finetune", functools.partial(module.finetune, resamples=50, progress=False)
        )
    for command in shown(page):
        if "…" in command or run_elsewhere(command):
            continue
        words = reduced(page.name, command)
        if tuple(words) not in done:
            done.add(tuple(words))
            status = run(*words)
            assert status == 0, f"uscl {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.fixture(scope="module")
def done() -> set[tuple[str, ...]]:
    """What was run so far."""
    return set()


def test_tests_that_are_named_are_there() -> None:
    for named in ELSEWHERE.values():
        name, _, test = named.partition("::")
        content = (ROOT / "tests" / name).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {test or 'test_'}", content, re.M), named
    of_pages = [command for page in PAGES for command in shown(page)]
    for form in ELSEWHERE:
        assert any(re.match(form, command) for command in of_pages), f"no page shows {form}"
