"""What visitors upload: where it lies, and when it goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

# How folders of uploads are named, with the process that they belong to.
_FOLDER = "uscl-app"


class Sessions:
    """Which files each visitor has uploaded.

    Args:
        folder: in which they lie, and outside of which nothing is deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._files: dict[str | None, Path] = {}
        self._lock = threading.Lock()

    def keep(self, session: str | None, file: str | Path | None) -> None:
        """Keep a visitor's file, and nothing that came before it."""
        with self._lock:
            before = self._files.pop(session, None)
            if file is not None:
                self._files[session] = Path(file)
            wanted = set(self._files.values())
        # the same file of two visitors may be one
        if before is not None and before not in wanted:
            self._delete(before)

    def end(self, session: str | None) -> None:
        """Delete what a visitor has uploaded."""
        self.keep(session, None)

    def _delete(self, file: Path) -> None:
        if self.folder in file.resolve().parents:
            file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.parent.rmdir()


@contextlib.contextmanager
def uploads() -> Iterator[Path]:
    """A folder for what is uploaded; it goes whatever ends the page, but for a kill.

    What a page that was killed left behind goes when the next one starts.
    """
    above = Path(tempfile.gettempdir())
    for left in above.glob(f"{_FOLDER}-*-*"):
        owner = left.name.split("-")[2]
        if owner.isdigit() and left.stat().st_uid == os.getuid() and not _lives(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}-{os.getpid()}-"))
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    usual = None
    if threading.current_thread() is threading.main_thread():
        # as by Ctrl-C, or it would end without tidying up
        usual = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.environ.pop("GRADIO_TEMP_DIR")
        if before is not None:
            os.environ["GRADIO_TEMP_DIR"] = before
        if usual is not None:
            signal.signal(signal.SIGTERM, usual)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
