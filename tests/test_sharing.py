"""Two users of one machine: a cache that another filled, and may not be written to."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import install_card

import uscl_zoo
from uscl_zoo.errors import UsclError
from uscl_zoo.network import load
from uscl_zoo.zoo import weights_cache

#: Who owns nothing here.
NOBODY = 65534
NAME = "resnet18_uscl.trial"
FRAMES = np.zeros((1, 40, 40, 3), np.uint8)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be two users"
)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of weights that everybody may read; those of pytest are its user's alone."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    folder = place / "weights"
    folder.mkdir()
    install_card(folder)
    monkeypatch.setenv("USCL_ZOO_WEIGHTS", str(folder))
    monkeypatch.setenv("HOME", str(place / "home"))
    # what comes with the package may be where only its user may look, as a checkout in his home
    monkeypatch.setattr(weights_cache, "_BUNDLED", place)
    monkeypatch.chdir(place)
    load(NAME, "cpu")(FRAMES)  # what is imported by then need not be readable
    yield folder
    shutil.rmtree(place)


def as_nobody(call: Callable[[], object]) -> str:
    """What a call gives, or its error, in another user's process."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        words = "died"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            words = f"gave {call()}"
        except UsclError as error:
            words = f"refused: {error}"
        except BaseException as error:
            words = f"failed: {error!r} {traceback.format_exc()}"
        finally:
            os.write(tell, words.encode())
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as stream:
        words = stream.read().decode()
    os.waitpid(pid, 0)
    return words


def test_another_user_may_use_what_is_there(shared: Path) -> None:
    expected = float(load(NAME, "cpu")(FRAMES).sum())
    assert as_nobody(lambda: float(load(NAME, "cpu")(FRAMES).sum())) == f"gave {expected}"
    count = sum(p.numel() for p in uscl_zoo.create_model(NAME, pretrained=True).parameters())
    assert as_nobody(
        lambda: sum(p.numel() for p in uscl_zoo.create_model(NAME, pretrained=True).parameters())
    ) == (f"gave {count}")
    # nothing was left in it
    assert sorted(p.name for p in shared.iterdir()) == [f"{NAME}.safetensors", f"{NAME}.yaml"]


def test_who_may_not_write_is_told_so(shared: Path) -> None:
    card = uscl_zoo.model_info(NAME)
    target = shared.parent / "target"
    target.mkdir(mode=0o755)
    told = as_nobody(lambda: weights_cache.fetch(card, target))
    assert told.startswith("refused: ") and str(target) in told and "Permission denied" in told
    assert list(target.iterdir()) == []


def test_what_a_user_keeps_to_himself_is_named(shared: Path) -> None:
    path = shared / f"{NAME}.safetensors"
    path.chmod(0o600)
    told = as_nobody(lambda: load(NAME, "cpu"))
    assert told.startswith("refused: ") and str(path) in told and "Permission denied" in told
    shared.chmod(0o700)
    told = as_nobody(lambda: load(NAME, "cpu"))
    assert told.startswith("refused: ")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_read_what_is_fetched(umask: int, shared: Path) -> None:
    card = uscl_zoo.model_info(NAME)
    target = shared.parent / f"target{umask}"
    before = os.umask(umask)
    try:
        weights_cache.fetch(card, target)
    finally:
        os.umask(before)
    for path in target.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path.name
    told = as_nobody(lambda: load(str(target / f"{NAME}.yaml"), "cpu").name)
    assert told == f"gave {NAME}" if not umask & 0o004 else told.startswith("refused: ")


def test_a_digest_that_another_user_remembers_is_not_believed(shared: Path) -> None:
    """What is remembered of files is in a user's own cache, and goes with the file's own state."""
    load(NAME, "cpu")
    path = shared / f"{NAME}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    told = as_nobody(lambda: load(NAME, "cpu"))
    assert told.startswith("refused: ") and "SHA-256" in told
