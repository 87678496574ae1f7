"""The command line: what it prints, and that a user's mistake is one line and status 2."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import fresh
import numpy as np
import pytest
import yaml
from PIL import Image

from uscl_zoo.cli import cli, main
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import Card
from uscl_zoo.zoo.catalogue import card_named, model_info, packaged_cards
from uscl_zoo.zoo.descriptions import table


def call(*arguments: str | Path) -> int:
    """Run a command in this process and return its exit status."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        assert isinstance(error.code, int)
        return error.code
    return 0


#: Every command there has ever been: scripts of users name them.
COMMANDS = {
    *("list", "info", "demo", "embed", "neighbours", "map", "app"),
    *("finetune", "predict", "explain"),
    *("evaluate", "probe", "audit", "shortcut"),
    *("prepare", "pretrain", "throughput", "export", "corpus"),
    *("where", "verify", "fetch", "import", "publish"),
}


def test_every_command_is_under_exactly_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    options, *headings = re.split(r"^(?=\S.*:$)", capsys.readouterr().out, flags=re.MULTILINE)[1:]
    assert options.startswith("Options:")
    titles = ["Use a", "Adapt one", "Check a", "Pretrain a", "Keep weights"]
    assert [heading.startswith(title) for heading, title in zip(headings, titles, strict=True)]
    listed = re.findall(r"^  (\w+)  ", "".join(headings), flags=re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert sorted(cli.list_commands(click.Context(cli))) == sorted(COMMANDS)
    assert "..." not in "".join(headings)


def imported(*arguments: str | Path) -> tuple[str, set[str]]:
    """What a command prints in a Python of its own, and the packages of others it imports."""
    code = (
        "import sys\n"
        "known = set(sys.modules)\n"
        "from uscl_zoo.cli import main\n"
        "for command in ' '.join(sys.argv[1:]).split(' + '):\n"
        "    try:\n"
        "        main(command.split())\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, command\n"
        "new = [module for name, module in sys.modules.items() if name not in known]\n"
        "files = [getattr(module, '__file__', None) or '' for module in new]\n"
        "parts = [file.split('site-packages/')[1] for file in files if 'site-packages/' in file]\n"
        "print(*{part.split('/')[0] for part in parts}, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, set(done.stderr.splitlines()[-1].split()) - {"uscl_zoo"}


def test_help_and_version_import_click_alone() -> None:
    helps = " + ".join(f"{name} --help" for name in sorted(COMMANDS))
    printed, packages = imported(f"--version + --help + -h + {helps}")
    assert packages == {"click"}
    assert printed.count("Usage: uscl ") == 2 + len(COMMANDS)


@pytest.mark.parametrize("command", ["list", "info", "where", "verify", "fetch", "prepare"])
def test_a_command_pays_for_what_it_uses(command: str, clips: Path, tmp_path: Path) -> None:
    arguments: dict[str, list[str | Path]] = {
        "info": ["resnet18_uscl"],
        "where": ["resnet18_uscl"],
        "fetch": ["resnet18_uscl", "-o", tmp_path / "fetched"],
        "prepare": [clips, "-o", tmp_path / "store", "--workers", "1"],
    }
    printed, packages = imported(command, *arguments.get(command, []))
    assert printed
    heavy = {"torch", "timm", "torchvision", "sklearn", "matplotlib", "tensorboard", "pydicom"}
    if command != "prepare":
        heavy |= {"numpy", "scipy", "PIL", "av"}
    assert packages.isdisjoint(heavy)


def test_what_is_not_installed_is_named() -> None:
    code = (
        "import sys, uscl_zoo\n"
        "sys.modules['sklearn'] = None\n"
        "try:\n"
        "    uscl_zoo.finetune\n"
        "except uscl_zoo.UsclError as error:\n"
        "    print(error)\n"
        "from uscl_zoo.cli import main\n"
        "main(['probe', 'resnet18_uscl', '--data', 'store'])\n"
    )
    done = fresh.run(code)
    told = "needs sklearn: pip install 'uscl-zoo[training]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, f"finetune {told}", f"uscl: {told}")


def write_clip(folder: Path, seed: int, frames: int = 4) -> None:
    """Write a folder of frames, which is a clip."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (40, 48))
    for i in range(frames):
        pixels = (base + rng.integers(0, 50, base.shape)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{folder.name}_frame{i}.png")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Twelve short clips of two classes, named as US-4 names them."""
    for i in range(12):
        write_clip(tmp_path / "clips" / f"{'Cov' if i % 2 else 'Reg'}-{i:02}_mp4", seed=i)
    return tmp_path / "clips"


@pytest.fixture
def store(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert call("prepare", clips, "-o", tmp_path / "store", "--size", "32", "--workers", "1") == 0
    capsys.readouterr()
    return tmp_path / "store"


PRETRAIN = ["pretrain", "--recipe", "pocus_resnet18", "--data", "{store}", "-o", "{tmp}/r"]
QUICK = ("epochs=2", "batch_size=4", "smallest_batch=2", "classes=null", "seed=3")


def test_list_shows_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in packaged_cards())


def listed_in(out: str) -> set[str]:
    """The names in a listing, which stand at the beginning of lines."""
    return {line.split()[0] for line in out.splitlines() if line[:1].strip()}


def test_list_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "*50*") == 0
    assert listed_in(capsys.readouterr().out) == {n for n in packaged_cards() if "50" in n}
    assert call("list", "--pretrained") == 0
    listed = listed_in(capsys.readouterr().out)
    assert listed == {name for name, card in packaged_cards().items() if card.has_weights}


def test_readme_has_the_table_of_the_cards() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    between = readme.split("<!-- uscl list --markdown -->")[1].split("<!-- end -->")[0]
    assert between.strip() == table(packaged_cards().values())


@pytest.mark.parametrize("name", packaged_cards())
def test_info(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("info", name) == 0
    assert capsys.readouterr().out.startswith(name)
    assert call("info", name, "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["info", "resnet18_usl"], ["resnet18_usl", "did you mean resnet18_uscl"]),
        (["info", "zzz"], ["zzz", "uscl list"]),
        (
            ["info", "resnet18_uscl.lung"],
            ["resnet18_uscl has resnet18_uscl.open, resnet18_uscl.pocus,"],
        ),
        (["info", "resnet50_uscl.us5"], ["did you mean resnet50_uscl.us4?"]),
        (["where", "resnet18_uscl.us5"], ["resnet18_uscl.us5", "did you mean"]),
        (["embed", "{absent}", "-o", "{tmp}/a.npz"], ["{absent}", "no such file"]),
        (["embed", "{empty}", "-o", "{tmp}/a.npz"], ["{empty}", "no image or video"]),
        (["embed", "{empty}", "-o", "{tmp}/a.txt"], ["a.txt", ".npz", ".csv"]),
        (["prepare", "{absent}", "-o", "{tmp}/s"], ["{absent}", "no such file"]),
        (["prepare", "{empty}", "-o", "{tmp}/s"], ["{empty}", "no image or video"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--csv", "{absent}"], ["{absent}", "read"]),
        (
            ["prepare", "{clips}", "-o", "{tmp}/s", "--csv", "{table}", "--label-column", "lable"],
            ["{table}", "'lable'", "'label'"],
        ),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--class", "Cov"], ["'Reg'", "Cov", "declare"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--label-column", "x"], ["needs --csv"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--only-annotated"], ["needs --csv or --corpus"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--root", "a=b"], ["--root a=b", "--corpus"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--licence", "CC BY"], ["'CC BY'", "SPDX"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--licence", "MIT"], ["12 states no licence"]),
        (["prepare", "-o", "{tmp}/s"], ["VIDEOS", "--corpus"]),
        (["prepare", "{clips}", "-o", "{tmp}/s", "--corpus", "open"], ["--corpus and VIDEOS"]),
        (["prepare", "-o", "{tmp}/s", "--corpus", "opne"], ["no corpus 'opne'", "open"]),
        (["prepare", "-o", "{tmp}/s", "--corpus", "open", "--root", "open"], ["KEY=FOLDER"]),
        (["prepare", "-o", "{tmp}/s", "--corpus", "open", "--csv", "x"], ["--corpus and --csv"]),
        (["pretrain", "--recipe", "no", "--data", "{store}", "-o", "{tmp}/r"], ["no recipe 'no'"]),
        (["pretrain", "--data", "{store}", "-o", "{tmp}/r"], ["--recipe is missing"]),
        (["pretrain", "--data", "{store}", "-o", "{tmp}/r", "--resume"], ["no run to resume"]),
        (
            ["pretrain", "--recipe", "pocus_resnet18", "--data", "{empty}", "-o", "{tmp}/r"],
            ["{empty}", "uscl prepare"],
        ),
        (
            [*PRETRAIN, "epohcs=3"],
            ["pocus_resnet18.yaml", "'epohcs'"],
        ),
        (PRETRAIN, ["classes", "'COVID-19'", "Cov"]),
        (
            [*PRETRAIN, "classes=null", "batch_size=900"],
            ["batch_size", "900"],
        ),
        (["export", "{empty}", "--name", "resnet18_uscl.x"], ["{empty}", "holds no run"]),
        (["probe", "resnet18_uscl.us4", "--data", "{empty}"], ["{empty}"]),
        (["no-such-command"], ["no-such-command"]),
        (["fnetune"], ["'fnetune'", "(Did you mean finetune?); see"]),
        (["embed"], ["FILES", "uscl embed --help"]),
        (["demo", "{absent}"], ["{absent}", "uscl demo --help"]),
        (["embed", "{clips}", "-o", "{tmp}/a.npz", "--rate", "0"], ["--rate", "0"]),
    ],
    ids=lambda value: "-".join(value[:2]).replace("/", "") if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str],
    words: list[str],
    store: Path,
    clips: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("Filename,label\nCov-01_mp4,Cov\n")
    places = {
        "tmp": tmp_path,
        "empty": tmp_path / "empty",
        "absent": tmp_path / "absent",
        "table": tmp_path / "table.csv",
        "store": store,
        "clips": clips,
    }
    assert call(*(argument.format(**places) for argument in arguments)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert all(word.format(**places) in told[-1] for word in words), told
    assert "Traceback" not in "".join(told)
    assert len(told) == 1
    # nothing half-written
    assert not any((tmp_path / name).exists() for name in ("a.npz", "a.txt", "s", "r"))


def test_a_corpus_is_told_source_by_source(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"Cov-{i:02}_mp4,a,{'free' if i < 7 else 'mine'}\n" for i in range(1, 11, 2)]
    (tmp_path / "t.csv").write_text("Filename,label,terms\n" + "".join(rows))
    source = {"name": "Ours", "root": "here", "folder": "clips", "table": "t.csv"}
    source |= {"label_column": "label", "licence_column": "terms"}
    plain = {"name": "One", "roots": {"here": "nowhere"}, "sources": {"ours": source}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(plain | {"licences": {"free": "CC0-1.0"}}))
    corpus = str(tmp_path / "c.yaml")
    options = ["--corpus", corpus, "--root", f"here={tmp_path}", "--size", "32"]
    options += ["--licence", "CC0-1.0", "--only-annotated", "--workers", "1", "--holdout", "0.4"]
    assert call("prepare", *options, "-o", tmp_path / "store") == 0
    told = capsys.readouterr()
    assert "9 items left out (left_out.csv names them)" in told.err
    assert "  7 has no row\n" in told.err
    assert "  2 has a licence that is mapped to no SPDX expression, 'mine'\n" in told.err
    assert "  Ours: 2 videos, 8 frames, 2 subjects\n" in told.out
    assert "3 videos, 12 frames; 0 skipped" in told.out


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError):
        main(["info", "zzz", "--debug"])


def test_from_clips_to_a_model(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """prepare → pretrain → export → create_model → probe, as a newcomer would."""
    import uscl_zoo

    run, own = tmp_path / "run", tmp_path / "own"
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(own))
    assert call("pretrain", "--recipe", "pocus_resnet18", "--data", store, "-o", run, *QUICK) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["epochs"] == 2
    assert Image.open(run / "curves.png").width > 500
    assert list((run / "tensorboard").glob("events*"))
    capsys.readouterr()
    named = ("export", run, "--name", "resnet18_uscl.mine")
    assert call(*named, "--licence", "CC-BY-4.0") == 2
    assert "'not stated', which the zoo does not know" in capsys.readouterr().err
    assert call(*named, "--licence", "CC-BY-4.0", "--licence-reason", "our own videos") == 0
    card = uscl_zoo.model_info("resnet18_uscl.mine")
    assert card.training.epochs == 2
    assert card.training.sources[0].videos == 10
    assert len(card.training.held_out_subjects) == 2
    model = uscl_zoo.create_model("resnet18_uscl.mine", pretrained=True)
    assert model.num_features == 512
    capsys.readouterr()
    probe = ("probe", "resnet18_uscl.mine", "--data", store, "--random-seeds", "1")
    assert call(*probe, "--card", own / "resnet18_uscl.mine.yaml") == 0
    assert "difference" in capsys.readouterr().out
    assert len(uscl_zoo.model_info("resnet18_uscl.mine").metrics) == 3
    # a second export does not overwrite unasked
    assert call("export", run, "--name", "resnet18_uscl.mine") == 2


def test_list_says_who_may_use_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "resnet18_*") == 0
    told = capsys.readouterr().out
    imagenet, default, pocus, us4 = re.split(r"^(?=resnet)", told, flags=re.MULTILINE)[1:]
    assert "in a product: yes, under MIT" in imagenet
    assert "has seen: ImageNet-1k" in imagenet
    assert "beside ImageNet" not in imagenet
    assert "in a product: yes, under CC-BY-4.0" in default
    assert "has seen: BUS-BRA (breast; 1,598 images" in default
    first = next(m for m in card_named("resnet18_uscl.open").metrics if m.compared_with)
    assert first.interval is not None
    low, high = first.interval
    figure = f"{first.value:+.3f} [{low:+.3f}, {high:+.3f}] macro AUROC"
    assert low > 0 and f"ahead of resnet18_imagenet.mit: {figure}" in default
    assert "in a product: no: CC-BY-NC-SA-4.0 forbids commercial use" in pocus
    assert "has seen: POCUS lung ultrasound (lung; 108 videos" in pocus
    assert "level with random initialisation, mean of 3 seeds: +0.219 [-0.008, +0.367]" in pocus
    assert "beside ImageNet: no figure on this card" in pocus
    assert "in a product: ask its authors" in us4


def test_export_says_what_licence_may_be_stated(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert call("pretrain", "--recipe", "pocus_resnet18", "--data", store, "-o", run, *QUICK) == 0
    for licences, told in (
        ({"CC BY-NC 4.0": 1, "MIT": 9}, "may be stated: --licence CC-BY-NC-4.0"),
        ({"CC BY-ND 4.0": 10}, "lets nothing be made of it"),
        ({"not stated": 10}, "not stated is not known to it"),
    ):
        about = json.loads((run / "run.json").read_text())
        for counts in (about["training"], *about["sources"]):
            counts["licences"] = licences
        (run / "run.json").write_text(json.dumps(about))
        capsys.readouterr()
        assert call("export", run, "--name", "resnet18_uscl.mine", "--overwrite") == 0
        assert told in capsys.readouterr().err


def test_embed_pools_and_names_what_it_skips(
    store: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = model_info("resnet18_uscl").name
    (clips / "broken.png").write_bytes(b"no image")
    rows = tmp_path / "rows.csv"
    assert call("embed", clips, "-o", rows, "--model", name, "--pool", "clip") == 0
    told = capsys.readouterr()
    assert len(rows.read_text().splitlines()) == 1 + 12
    assert "broken.png" in told.err
    assert "1 skipped" in told.out


def test_interrupted_pretraining_resumes(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from uscl_zoo.cli import main; main()"]
    start = ["pretrain", "--recipe", "pocus_resnet18", "--data", str(store), "-o", str(run)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    settings = ["epochs=400", "batch_size=4", "smallest_batch=2", "classes=null"]
    process = subprocess.Popen(
        [*command, *start, *settings], stderr=subprocess.PIPE, text=True, env=environment
    )
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "--resume continues it" in told.splitlines()[-1]
    assert "Traceback" not in told
    # with other settings it is not the same run
    assert call(*start, "--resume", "epochs=3", *settings[1:]) == 2


def test_list_into_a_closed_pipe() -> None:
    head = shutil.which("head")
    assert head is not None
    done = subprocess.run(
        f'"{sys.executable}" -c "from uscl_zoo.cli import main; main()" list | {head} -n 1',
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


@pytest.fixture
def bundled() -> str:
    """A checkpoint whose weights come with the package."""
    cards = packaged_cards()
    return next(n for n in cards if (weights_cache._BUNDLED / cards[n].weights.file).is_file())


def test_where_marks_the_place_that_has_the_file(
    bundled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("where", bundled) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("*")]
    assert len(marked) == 1
    assert "bundled" in marked[0]


def test_where_alone_is_where_all_are(
    bundled: str, installed: Callable[[], Card], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed()
    assert call("where") == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert {*packaged_cards(), "resnet18_uscl.trial"} < rows.keys()
    assert rows[bundled][1] == "bundled"
    assert Path(rows[bundled][-1]).is_file()
    assert Path(rows["resnet18_uscl.trial"][-1]).parent == home / ".uscl_zoo"
    assert rows["resnet18_uscl.us4"][1:] == ["to", "be", "imported"]
    assert rows["your"][-1] == str(home / ".uscl_zoo")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_options_and_names(shell: str) -> None:
    def ask(instruction: str, words: str = "") -> str:
        environment = os.environ | {"_USCL_COMPLETE": f"{shell}_{instruction}"}
        typed = words.rpartition(" ")[2] if shell == "fish" else str(words.count(" "))
        environment |= {"COMP_WORDS": words, "COMP_CWORD": typed}
        command = [sys.executable, "-c", "from uscl_zoo.cli import main; main()"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert not done.stderr
        return done.stdout

    assert "_USCL_COMPLETE" in ask("source")
    assert "pretrain" in ask("complete", "uscl pre")
    assert "--subject-pattern" in ask("complete", "uscl finetune --sub")
    assert "resnet50_uscl.pocus" in ask("complete", "uscl info resnet50")
    assert "resnet50_uscl.pocus" in ask("complete", "uscl evaluate resnet18_uscl resnet50")
    assert "resnet18" not in ask("complete", "uscl info resnet50")


def test_bash_offers_what_it_was_given(tmp_path: Path) -> None:
    """By the function that is put into ~/.bashrc, which heeds the order of what it is given."""
    program = tmp_path / "uscl"
    program.write_text(f"#!{sys.executable}\nfrom uscl_zoo.cli import main; main()\n")
    program.chmod(0o755)
    script = """
        compopt() { :; }
        eval "$(_USCL_COMPLETE=bash_source uscl)"
        for words in "info resnet50" "app resnet50_uscl.o" "embed x --mod"; do
            COMP_WORDS=(uscl $words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
            _uscl_completion uscl
            echo "${COMPREPLY[@]}"
        done
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    of_info, of_app, of_embed = done.stdout.splitlines()
    assert "resnet50_uscl.pocus" in of_info.split()
    assert of_app == "resnet50_uscl.open"
    assert of_embed == "--model"


def test_verify_tells_right_from_wrong_and_absent(
    bundled: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("verify") == 0
    printed = capsys.readouterr().out
    assert f"{bundled}: verified, bundled" in printed
    assert "resnet18_uscl.us4: absent" in printed
    # naming one says that it should be there
    assert call("verify", "resnet18_uscl.us4") == 2
    own = home / ".uscl_zoo" / packaged_cards()[bundled].weights.file
    own.parent.mkdir()
    own.write_bytes(b"something else")
    capsys.readouterr()
    assert call("verify") == 2
    told = capsys.readouterr()
    assert "WRONG" in told.out
    assert str(own) in told.out
    assert "1 of" in told.err


def test_fetch_serves_a_machine_without_a_network(
    bundled: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("fetch", bundled, "-o", tmp_path / "stick") == 0
    weights = packaged_cards()[bundled].weights
    files = {weights.file, f"{bundled}.yaml", weights.licence_file}
    corpus = packaged_cards()[bundled].corpus
    files |= {corpus.file} if corpus is not None else set()
    assert {path.name for path in (tmp_path / "stick").iterdir()} == files - {None}
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(tmp_path / "stick"))
    capsys.readouterr()
    assert call("verify", bundled) == 0
    assert "named folder" in capsys.readouterr().out


def test_import_then_create(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torchvision.models import resnet18

    import uscl_zoo

    torch.save(resnet18().state_dict(), tmp_path / "best_model.pth")
    assert call("import", tmp_path / "best_model.pth", "--as", "resnet18_uscl.mine") == 0
    assert "create_model" in capsys.readouterr().out
    assert "resnet18_uscl.mine" in uscl_zoo.list_models(pretrained=True)
    uscl_zoo.create_model("resnet18_uscl.mine", pretrained=True)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert call("import", tmp_path / "text.pth", "--as", "resnet18_uscl.us4") == 2
    assert "text.pth" in capsys.readouterr().err


def test_publish_dry_run_shows_what_would_be_pushed(
    bundled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("publish", bundled, "--to", "me", "--dry-run", "-o", tmp_path / "repo") == 0
    printed = capsys.readouterr().out
    for file in (tmp_path / "repo").iterdir():
        assert file.name in printed
    assert (tmp_path / "repo" / "model.safetensors").is_file()
