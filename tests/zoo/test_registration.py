"""The models are in timm, whichever is imported first and wherever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fresh
import pytest

SHOWN = """
import timm
assert timm.list_models("*uscl*") == ["resnet18_uscl", "resnet50_uscl"]
assert "resnet18_uscl.pocus" in timm.list_pretrained("*uscl*")
assert timm.create_model("resnet18_uscl").num_features == 512
"""


def python(code: str, *arguments: str) -> None:
    done = fresh.run(code, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "before",
    [
        "import uscl_zoo",
        "import timm, uscl_zoo",
        # another hook that wraps what finds timm, as tracers do
        "import importlib.util, uscl_zoo\nassert importlib.util.find_spec('timm')",
    ],
)
def test_in_either_order(before: str) -> None:
    python(f"{before}\n{SHOWN}")


def test_importing_it_leaves_timm_for_later_and_as_it_is() -> None:
    python(
        "import sys, uscl_zoo\n"
        "assert 'timm' not in sys.modules\n"
        "import inspect, importlib.resources, pkgutil, timm\n"
        "assert 'create_model' in inspect.getsource(timm)\n"
        "assert importlib.resources.files(timm).joinpath('models').is_dir()\n"
        "assert pkgutil.get_data('timm', 'version.py')\n"
        "assert type(timm.__loader__) is type(timm.models.__loader__)"
    )


@pytest.mark.parametrize("first", ["timm", "uscl_zoo.zoo.registry"])
def test_threads_that_import_at_once(first: str) -> None:
    """Each has the models when its own import of timm is over, whoever came first."""
    python(
        "import sys, threading, torch, uscl_zoo\n"
        "from importlib import import_module\n"
        "right = []\n"
        "def look(name, wait):\n"
        "    wait()\n"
        "    import_module(name)\n"
        "    import timm\n"
        "    right.append(timm.is_model('resnet18_uscl'))\n"
        "def begun():\n"
        "    while sys.argv[1] not in sys.modules:\n"
        "        pass\n"
        "names = {'timm', 'uscl_zoo.zoo.registry', 'uscl_zoo.zoo.checkpoint'} - {sys.argv[1]}\n"
        "todo = [(sys.argv[1], int), *((name, begun) for name in names)]\n"
        "threads = [threading.Thread(target=look, args=each) for each in todo]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "assert right == [True] * 3, right",
        first,
    )


WORKER = """
import sys

import torch.multiprocessing
from torch.utils.data import DataLoader

import uscl_zoo


class Widths:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        import timm

        return timm.create_model("resnet18_uscl").num_features


if __name__ == "__main__":
    loader = DataLoader(Widths(), num_workers=1, multiprocessing_context=sys.argv[1])
    assert [int(width) for width in loader] == [512, 512]
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_the_workers_of_a_loader(tmp_path: Path, method: str) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py"), method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_timm_there_is_the_rest() -> None:
    python(
        "import sys, uscl_zoo\n"
        "sys.modules['timm'] = None\n"
        "assert 'resnet18_uscl' in uscl_zoo.list_models()\n"
        "try:\n"
        "    import timm\n"
        "except ModuleNotFoundError as error:\n"
        "    assert error.name == 'timm'\n"
        "else:\n"
        "    raise AssertionError"
    )
