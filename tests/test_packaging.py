"""The wheel as people get it: what is in it, and that an index takes it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.catalogue import packaged_cards

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # a build folder of its own: one in the checkout may hold what is no longer packaged
    build = ["build", "--build-base", str(folder / "build"), "bdist_wheel", "-d", str(folder)]
    egg = ["egg_info", "--egg-base", str(folder)]
    code = "import setuptools; setuptools.setup()"
    subprocess.run([sys.executable, "-c", code, *egg, *build], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_an_index_takes_the_wheel(wheel: Path) -> None:
    """The index refuses 100 MB."""
    assert wheel.stat().st_size < 95e6


def test_every_bundled_file_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    folder = ROOT / "uscl_zoo" / "weights"
    bundled = {path.name for path in folder.iterdir() if path.suffix != ".py" and path.is_file()}
    assert {f"uscl_zoo/weights/{name}" for name in bundled} <= packed
    # by which mypy and editors believe the types of what is installed
    assert "uscl_zoo/py.typed" in packed
    assert "uscl_zoo/weights/LICENSE.resnet18_imagenet" in packed
    for card in packaged_cards().values():
        assert f"uscl_zoo/cards/{card.name}.yaml" in packed
        if card.corpus is not None:
            assert f"uscl_zoo/cards/{card.corpus.file}" in packed


def test_every_bundled_file_has_a_card() -> None:
    cards = packaged_cards().values()
    named = {card.weights.file for card in cards} | {card.weights.licence_file for card in cards}
    bundled = [
        path for path in weights_cache._BUNDLED.iterdir() if path.suffix != ".py" and path.is_file()
    ]
    assert {path.name for path in bundled} <= named


def test_every_module_is_in_the_wheel_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = sorted(name for name in archive.namelist() if name.endswith(".py"))
    expected = {path.relative_to(ROOT) for path in (ROOT / "uscl_zoo").rglob("*.py")}
    # a set, since some releases of Python follow the link to it and some do not
    expected |= {"uscl_zoo" / path.relative_to(ROOT) for path in (ROOT / "training").rglob("*.py")}
    assert packed == sorted(map(str, expected))


@pytest.mark.parametrize("arguments", [["-c", "import training"], ["-m", "training"]])
def test_a_checkout_has_training_under_one_name(arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "use uscl_zoo.training, the one name of this package" in done.stderr.splitlines()[-1]
    if "-m" in arguments:
        assert len(done.stderr.splitlines()) == 1


def test_mypy_and_editors_find_training_in_a_checkout() -> None:
    link = ROOT / "uscl_zoo" / "training"
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.samefile(ROOT / "training")
