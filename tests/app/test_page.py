"""The page in a real browser, Debian's Chromium: what is shown, what is kept, whom it asks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from own import write_model
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import uscl_zoo.app
from uscl_zoo.app.page import serve
from uscl_zoo.app.sessions import Sessions, uploads
from uscl_zoo.app.space import write_space
from uscl_zoo.cli import main
from uscl_zoo.embedding.extraction import embed
from uscl_zoo.errors import DataError, MissingDependencyError
from uscl_zoo.network import load
from uscl_zoo.ultrasound.phantom import lung_clip

SCRIPT = Path(__file__).parent / "serving_script.py"
#: It asks nobody on its own then.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 300


def until(holds: Callable[[], bool]) -> bool:
    """Whether something comes true in time."""
    ends = time.monotonic() + PATIENCE
    while not (true := holds()) and time.monotonic() < ends:
        time.sleep(0.1)
    return true


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass(frozen=True)
class Served:
    """A page that is served by another process."""

    url: str
    process: subprocess.Popen[bytes]
    temporary: Path
    asked: Path

    def kept(self) -> list[str]:
        """The files with something in them that lie in its folder of uploads."""
        files = (path for path in self.temporary.rglob("*") if path.is_file())
        return sorted(path.name for path in files if path.stat().st_size)


@contextmanager
def served(folder: Path, *arguments: str, **environment: str) -> Iterator[Served]:
    """Start a page, and end it."""
    temporary, asked, port = folder / "tmp", folder / "asked", free_port()
    temporary.mkdir(parents=True)
    known = {"TMPDIR": str(temporary), "GRADIO_SERVER_PORT": str(port), "HOME": str(folder)}
    command = [sys.executable, str(SCRIPT), str(asked), *arguments]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **known, **environment}, stdout=log, stderr=log
        )
    page = Served(f"http://127.0.0.1:{port}/", process, temporary, asked)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        try:
            return bool(urllib.request.urlopen(page.url).status == 200)
        except OSError:
            return False

    try:
        assert until(answers), (folder / "log").read_text()[-2000:]
        yield page
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a clip, stills and their embeddings."""
    folder = tmp_path_factory.mktemp("page")
    write_model(folder / "model")
    frames, _ = lung_clip(seconds=0.4, rate=10, size=(160, 160))
    first, *rest = map(Image.fromarray, frames)
    first.save(folder / "clip.gif", save_all=True, append_images=rest, duration=400)
    (folder / "stills").mkdir()
    for number, frame in enumerate(frames[:3]):
        Image.fromarray(frame[number:]).save(folder / "stills" / f"{number}.png")
    (folder / "<img src=x onerror=document.title='bad'>.png").write_bytes(b"no image")
    network = load(folder / "model", "cpu")
    embed(network.module, folder / "stills", progress=False).save(folder / "features.npz")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Served]:
    arguments = ("app", str(folder / "model"), "--collection", str(folder / "features.npz"))
    with served(folder / "served", *arguments) as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # not skipped where there is none: a page that nobody has looked at is not tested
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield browser
        browser.close()


def drop(tab: Page, url: str, file: Path, shown: str) -> None:
    """Open the page, give it a file, and wait for what should be shown then."""
    tab.goto(url)
    tab.wait_for_selector("#file input[type=file]", state="attached", timeout=1000 * PATIENCE)
    tab.set_input_files("#file input[type=file]", file)
    tab.wait_for_selector(shown, timeout=1000 * PATIENCE)


def test_a_clip_is_shown_and_nobody_is_asked(browser: Browser, page: Served, folder: Path) -> None:
    requests: list[str] = []
    tab = browser.new_page()
    tab.on("request", lambda request: requests.append(request.url))
    drop(tab, page.url, folder / "clip.gif", "#evidence video")
    text = tab.inner_text("body")
    for words in (
        "Where the evidence is",
        "As the network sees it",
        "Curved beam, confidence",
        "Nearest in the collection",
        "clip.gif: 4 frames",
        "Not a medical device",
    ):
        assert words in text
    assert tab.locator("#frames img").count() == 4
    assert tab.locator("#beam img").count() == 4
    assert tab.locator("#near img").count() == 3
    # a film that the browser plays
    assert tab.evaluate("document.querySelector('#evidence video').videoWidth") > 0
    # of another class there is other evidence
    best = tab.locator("#choice input:checked").get_attribute("value")
    other = next(label for label in ("Cov", "Pneu", "Reg") if label != best)
    tab.locator(f"#choice input[value={other}]").check()
    tab.wait_for_selector(f"#evidence p:has-text('{other}: calibrated')", timeout=1000 * PATIENCE)
    assert page.kept() == ["clip.gif"]
    own = (page.url, page.url.replace("http", "ws", 1), "data:", "blob:")
    assert requests
    assert [url for url in requests if not url.startswith(own)] == []
    assert not page.asked.exists(), page.asked.read_text()
    # closed, it is forgotten
    tab.close()
    assert until(lambda: page.kept() == [])


def test_what_is_no_image_is_said(browser: Browser, page: Served, folder: Path) -> None:
    tab = browser.new_page()
    bad = next(folder.glob("<img*"))
    drop(tab, page.url, bad, "#answer .bad")
    said = tab.inner_text("#answer")
    assert "could not be examined" in said
    assert str(page.temporary) not in said
    assert tab.title() == "model: what it sees"
    # and the next file is examined
    tab.locator("#file button[aria-label=Clear]").click()
    tab.set_input_files("#file input[type=file]", folder / "stills" / "0.png")
    tab.wait_for_selector("#evidence img", timeout=1000 * PATIENCE)
    assert tab.locator("#answer .bad").count() == 0
    assert page.kept() == ["0.png"]
    tab.close()


def test_the_browser_is_told_to_ask_nobody(page: Served) -> None:
    with urllib.request.urlopen(page.url) as answer:
        policy = answer.headers["content-security-policy"]
        content = answer.read().decode()
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy
    assert "fonts.googleapis" not in content


@pytest.mark.parametrize("path", ["/etc/passwd", str(Path(__file__)), "setup.cfg"])
def test_files_of_the_machine_are_not_given_out(page: Served, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{page.url}gradio_api/file={path}")
    assert caught.value.code in (403, 404)


def test_it_listens_to_this_machine_alone(page: Served) -> None:
    port = int(page.url.rstrip("/").rpartition(":")[2])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                listening.append(local.partition(":")[0])
    assert listening == ["0100007F"]


def test_a_space_starts(folder: Path, tmp_path: Path, browser: Browser) -> None:
    space = write_space(folder / "model", tmp_path / "space")
    names = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert {"app.py", "requirements.txt", "README.md", "model/model.safetensors"} <= names
    assert (space / "README.md").read_text().startswith("---\ntitle: model\nsdk: gradio\n")
    assert (space / "requirements.txt").read_text().startswith("uscl-zoo[app]==")
    # a Space says so by this variable
    where = {"GRADIO_SERVER_NAME": "127.0.0.1"}
    with served(tmp_path / "served", str(space / "app.py"), **where) as page:
        tab = browser.new_page()
        drop(tab, page.url, folder / "stills" / "0.png", "#evidence img")
        tab.close()
        # told to end, it leaves nothing
        page.process.send_signal(signal.SIGTERM)
        page.process.wait(PATIENCE)
        assert list(page.temporary.iterdir()) == []


def test_a_space_has_what_answers_and_no_report(folder: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "report.html").write_text("pictures of patients")
    space = write_space(model, tmp_path / "space")
    assert not list(space.rglob("report.html"))
    load(space / "model", "cpu")
    bundled = write_space("resnet18_uscl", tmp_path / "bundled")
    assert "serve('resnet18_uscl.open', host=None)" in (bundled / "app.py").read_text()
    assert "license: cc-by-4.0" in (bundled / "README.md").read_text()
    with pytest.raises(DataError, match="not be in reach of a Space"):
        write_space(folder / "model" / "resnet18_uscl.own.yaml", tmp_path / "card")
    with pytest.raises(DataError, match="is not an empty folder"):
        write_space(model, space)


def test_uploads_of_a_page_that_was_killed_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for owner in (ended.pid, os.getpid()):
        (tmp_path / f"uscl-app-{owner}-x").mkdir()
    (tmp_path / "uscl-app-notes-x").mkdir()
    with uploads() as folder:
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {f"uscl-app-{os.getpid()}-x", "uscl-app-notes-x", folder.name}
        assert folder.stat().st_mode & 0o77 == 0
    assert not folder.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_a_visitor_has_one_file_and_nothing_else_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    files = [folder / name / "x.png" for name in "ab"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    (outside := tmp_path / "y.png").write_bytes(b"y")
    sessions = Sessions(folder)
    sessions.keep("one", files[0])
    sessions.keep("two", files[0])
    sessions.keep("one", files[1])
    assert files[0].exists()
    sessions.end("two")
    assert not files[0].parent.exists()
    sessions.keep("one", outside)
    sessions.end("one")
    assert outside.exists()
    assert not files[1].exists()


def test_what_is_wrong_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            main(["app", str(folder / "model"), "--port", str(port)])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"port {port} cannot be listened on" in said
    assert "(--port)" in said
    assert len(said.splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["app", "--space", str(folder / "s"), "--collection", "x.npz"])
    assert "--collection" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "uscl_zoo.app.blocks")
    monkeypatch.delattr(uscl_zoo.app, "blocks")
    with pytest.raises(MissingDependencyError, match=r"pip install 'uscl-zoo\[app\]'"):
        serve(folder / "model")
