"""No command replaces an input, or what is not its own; and two do not write to one place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants
from own import run
from PIL import Image

from uscl_zoo import files
from uscl_zoo.drawing import stamp
from uscl_zoo.errors import DataError
from uscl_zoo.files import MADE, check_output, locked
from uscl_zoo.records import to_plain
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo.catalogue import packaged_cards

NAME = next(name for name, card in packaged_cards().items() if card.has_weights and card.licence)


def snapshot(folder: Path) -> dict[str, object]:
    """What is in a folder: the bytes of files, the targets of links, by path."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = path.lstat().st_mode
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a still, a table, a model by its looks, and things of others."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data")
    folder.mkdir()
    Image.new("L", (40, 30), 99).save(folder / "a.png")
    Image.new("L", (40, 30), 50).save(folder / "b.png")
    Path("t.csv").write_text(ROWS)
    Path("model").mkdir()
    for name in ("predict.json", "config.json"):
        (Path("model") / name).write_text("{}")
    return tmp_path


ROWS = "Filename,label,patient\na.png,x,1\nb.png,y,2\n"


def put(there: dict[str, str]) -> None:
    """Files of others by their path, with their content; `-> x` is a link to x."""
    for name, content in there.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("-> "):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_text(content)


TABLE = "--csv t.csv --label-column label --subject-column patient"

#: What is there, the command, and the path in its message.
CASES: dict[str, tuple[dict[str, str], str, str]] = {
    "embed over its table": (
        {},
        "embed data --csv t.csv --subject-column patient -o t.csv",
        "t.csv",
    ),
    "embed over another table": ({"u.csv": "theirs"}, "embed data -o u.csv", "u.csv"),
    "embed over what is no npz": ({"u.npz": "theirs"}, "embed data -o u.npz", "u.npz"),
    "embed through a link": ({"l.csv": "-> t.csv"}, "embed data -o l.csv", "l.csv"),
    "embed, parts of others": (
        {"o.npz.parts/mine.npz": "theirs"},
        "embed data -o o.npz",
        "o.npz.parts",
    ),
    "embed, parts through a link": (
        {"mine/x": "theirs", "o.npz.parts": "-> mine"},
        "embed data -o o.npz",
        "o.npz.parts",
    ),
    "embed into its model": (
        {},
        "embed data --model local-dir:model -o model/o.npz",
        "model/o.npz",
    ),
    "predict over its model": (
        {},
        "predict model data -o model/predict.json",
        "model/predict.json",
    ),
    "predict over another table": (
        {},
        "predict model data -o t.csv",
        "t.csv",
    ),
    "predict over other JSON": (
        {"u.json": "theirs"},
        "predict model data -o u.json",
        "u.json",
    ),
    "explain over its input": (
        {},
        f"explain {NAME} data/a.png -o data/a.png",
        "data/a.png",
    ),
    "explain over a frame": ({}, f"explain {NAME} data -o data/b.png", "data/b.png"),
    "explain over a picture of others": (
        {},
        f"explain {NAME} data/a.png -o data/b.png",
        "data/b.png",
    ),
    "explain, films of others": (
        {"b.mp4": "theirs", "b.gif": "theirs"},
        f"explain {NAME} data -o b.gif -o b.mp4",
        "b.gif",
    ),
    "explain over a picture that nobody named": (
        {"a_explained.png": "theirs"},
        f"explain {NAME} data/a.png",
        "a_explained.png",
    ),
    "demo over a picture of others": (
        {},
        f"demo data/a.png --model {NAME} -o data/b.png",
        "data/b.png",
    ),
    "neighbours over a picture of others": (
        {"f.npz": "features"},
        f"neighbours f.npz data/a.png --model {NAME} -o data/b.png",
        "data/b.png",
    ),
    "explain into its model": ({}, "explain model data -o model/x.png", "model/x.png"),
    "demo over its input": (
        {},
        f"demo data/a.png --model {NAME} -o data/a.png",
        "data/a.png",
    ),
    "shortcut over another page": (
        {"r.html": "theirs"},
        f"shortcut {NAME} data -o r.html",
        "r.html",
    ),
    "shortcut over a table nobody named": (
        {"r.csv": "theirs"},
        f"shortcut {NAME} data -o r.html",
        "r.csv",
    ),
    "shortcut, parts of others": (
        {"r.html.parts/thesis.tex": "theirs"},
        f"shortcut {NAME} data -o r.html",
        "r.html.parts",
    ),
    **{
        f"prepare over {name}": (
            {f"out/{name}": "theirs"},
            f"prepare data {TABLE} -o out",
            f"out/{name}",
        )
        for name in ("frames.npy", "manifest.csv", "skipped.csv", "left_out.csv", "corpus.yaml")
    },
    "prepare, parts of others": (
        {"out/parts/thesis.tex": "theirs"},
        f"prepare data {TABLE} -o out",
        "out/parts",
    ),
    "prepare over its table": (
        {"data/manifest.csv": ROWS},
        f"prepare data {TABLE.replace('t.csv', 'data/manifest.csv')} -o data",
        "data/manifest.csv",
    ),
    "prepare into a file": ({}, f"prepare data {TABLE} -o t.csv", "t.csv"),
    "finetune into its data": ({}, "finetune --data data -o data", "data"),
    "finetune beside others": (
        {"out/thesis.tex": "theirs"},
        "finetune --data data -o out",
        "out",
    ),
    "finetune, work of others": (
        {"out/predict.json": "theirs", "out/work/thesis.tex": "theirs"},
        "finetune --data data -o out --overwrite",
        "out/work",
    ),
    "finetune over its model": (
        {},
        "finetune --data data --model local-dir:model -o model --overwrite",
        "model",
    ),
    "audit over another page": ({"out/report.html": "theirs"}, "audit data -o out", "out"),
    "audit over another table": ({"out/pairs.csv": "theirs"}, "audit data -o out", "out"),
    "publish beside others": (
        {"out/thesis.tex": "theirs"},
        f"publish {NAME} --to me --dry-run -o out",
        "out",
    ),
    **{
        f"{command.split()[0]} into what is whole with its {name}": (
            {f"out/{one}": "{}" for one in (name, "config.json")},
            f"{command} -o out",
            "out: is a ",
        )
        for command, names in (
            (f"fetch {NAME}", ("predict.json", "model.safetensors", "store.json", "run.json")),
            (f"prepare data {TABLE}", ("predict.json", "model.safetensors", "run.json")),
            ("audit data t.csv", ("predict.json", "store.json")),
        )
        for name in names
    },
    "fetch over another card": (
        {f"out/{NAME}.yaml": "theirs"},
        f"fetch {NAME} -o out",
        f"out/{NAME}.yaml",
    ),
    "fetch through a link": (
        {"card": "theirs", f"out/{NAME}.yaml": "-> ../card"},
        f"fetch {NAME} -o out",
        f"out/{NAME}.yaml",
    ),
}


@pytest.mark.parametrize("name", ["x.png", "x.gif", "x.mp4"])
def test_pictures_made_here_are_replaced(place: Path, name: str) -> None:
    for i in range(3):
        Image.new("L", (48, 40), 60 * i).save(place / "data" / f"f{i}.png")
    for file in ("a.png", "b.png"):
        (place / "data" / file).unlink()
    for _ in range(2):
        assert run("explain", NAME, "data", "-o", name) == 0
    said = Path(name).read_bytes()
    assert MADE in said
    # and not what else has that name
    Image.new("L", (9, 9)).save(name.replace(".mp4", ".gif"))
    Path(name.replace(".mp4", ".gif")).replace(name)
    before = snapshot(place)
    assert run("explain", NAME, "data", "-o", name) == 2
    assert snapshot(place) == before


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_pictures_say_who_made_them(place: Path, suffix: str) -> None:
    kind = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
    path = place / f"x{suffix}"
    Image.effect_noise((900, 900), 90).save(path, kind)
    with pytest.raises(DataError, match="is there, and not of an earlier call"):
        check_output(path, picture=True)
    Image.effect_noise((900, 900), 90).save(path, kind, **stamp(kind))
    check_output(path, picture=True)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost(place: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    there, command, named = CASES[case]
    put(there)
    before = snapshot(place)
    assert run(*command.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"uscl: {named}")
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["checkpoint.pt", "curves.png", "run.json", "tensorboard/x"])
def test_a_run_replaces_nothing_of_others(
    place: Path, small_store: FrameStore, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    put({f"out/{name}": "theirs"})
    before = snapshot(place)
    recipe = ("--recipe", "pocus_resnet18", "--data", small_store.folder)
    assert run("pretrain", *recipe, "-o", "out", "--device", "cpu") == 2
    assert "not of an earlier call" in capsys.readouterr().err
    assert snapshot(place) == before


@pytest.mark.parametrize("name", ["report.html", "answers.csv", "results.json", "work/thesis.tex"])
def test_an_evaluation_replaces_nothing_of_others(
    place: Path, small_store: FrameStore, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    put({f"out/{name}": "theirs"})
    before = snapshot(place)
    data = ("--dataset", small_store.folder, "--all-subjects")
    assert run("evaluate", "random", *data, "-o", "out", "--device", "cpu") == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("uscl: out/")
    assert snapshot(place) == before


def test_weights_may_be_imported_from_where_they_go(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = home / ".uscl_zoo" / "model.safetensors"
    own.parent.mkdir()
    bundled = packaged_cards()["resnet18_uscl.open"].weights.file
    own.write_bytes((Path(files.__file__).parent / "weights" / bundled).read_bytes())
    assert run("import", own, "--as", "resnet18_uscl.mine") == 0, capsys.readouterr().err


def test_an_import_does_not_replace_its_file(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was imported, imported again from where it lies."""
    own = home / ".uscl_zoo" / "resnet18_uscl.mine.safetensors"
    own.parent.mkdir()
    bundled = packaged_cards()["resnet18_uscl.open"].weights.file
    own.write_bytes((Path(files.__file__).parent / "weights" / bundled).read_bytes())
    before = snapshot(home)
    assert run("import", own, "--as", "resnet18_uscl.mine", "--overwrite") == 2
    assert "is an input" in capsys.readouterr().err
    assert snapshot(home) == before


@pytest.mark.parametrize(
    ("command", "held"),
    [
        (f"prepare data {TABLE} -o out", "out"),
        ("embed data -o out.npz", "out.npz.parts"),
        (f"shortcut {NAME} data -o out.html", "out.html.parts"),
        ("finetune --data data -o out", "out"),
        ("pretrain --recipe pocus_resnet18 --data STORE -o out --device cpu", "out"),
        ("evaluate random --dataset STORE --all-subjects -o out --device cpu", "out/work"),
    ],
)
def test_one_process_at_a_time(
    place: Path,
    small_store: FrameStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    held: str,
) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    arguments = command.replace("STORE", str(small_store.folder)).split()
    with locked(held):
        before = snapshot(place)
        assert run(*arguments) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            line == f"uscl: {held}: another process is writing there; wait for it, or name another"
        )
        assert snapshot(place) == before


class TestUnreadable:
    """One folder, card or cache that cannot be read: the rest is listed, and it is named."""

    @pytest.fixture(params=["home", "home loop", "card", "card folder", "card pipe", "cache"])
    def broken(
        self,
        request: pytest.FixtureRequest,
        home: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> str:
        """Breaks one; what has to be named."""
        own = home / ".uscl_zoo"
        if request.param == "home":
            own.write_text("a file")
            return str(own)
        if request.param == "home loop":
            own.symlink_to(own)
            return str(own)
        if request.param == "cache":
            (tmp_path / "cache").write_text("a file")
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
            card = packaged_cards()[NAME]
            plain = to_plain(card)
            plain["weights"] |= {"hub_repo": "a/b", "revision": "0" * 40}
            plain["name"] = "resnet18_uscl.hub"
            own.mkdir()
            (own / "resnet18_uscl.hub.yaml").write_text(json.dumps(plain))
            return str(tmp_path / "cache")
        own.mkdir()
        path = own / "resnet18_uscl.torn.yaml"
        if request.param == "card":
            path.write_bytes(b"name: \xff")
        elif request.param == "card folder":
            path.mkdir()
        else:
            os.mkfifo(path)
        return str(path)

    def test_list(self, broken: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("list") == 0
        said = capsys.readouterr()
        assert all(name in said.out for name in packaged_cards())
        assert broken in said.err
        assert "Traceback" not in said.err
        assert all(line.startswith("uscl: ") for line in said.err.splitlines())

    @pytest.mark.filterwarnings("ignore:left out of the zoo")
    def test_the_others_can_be_asked_for(
        self, broken: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("info", NAME) == 0
        assert run("where", NAME) == 0
        assert run("verify", NAME) == 0
        assert f"{NAME}: verified" in capsys.readouterr().out
