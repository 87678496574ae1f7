"""Writing files and folders: whole or not at all, by one process at a time, never over an input.

What is being written lies beside its final name, hidden, and is moved there when it is whole; so a
reader never meets half of it, whatever becomes of the writer. Folders on the way may be links. A
link at the final name itself is refused: whoever made it meant another file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import DataError, UsclError, reason
from .partials import beside, held, is_partial, sweep

#: Seconds to wait for a lock: the workers of a process that was killed take a moment to end.
_PATIENCE = 2.0
_LOCK = "lock"

#: Who made a picture, as pictures say themselves; and how near to its ends they do, in bytes.
MADE = b"uscl-zoo"
_NEAR = 1 << 20
#: What a folder is, by files in it; weights alone may be waiting to be imported.
_WHOLE = {
    ("predict.json",): "a model",
    ("model.safetensors", "config.json"): "a network",
    ("store.json",): "a store of frames",
    ("run.json",): "a run",
}
#: What begins an address in object storage, as `s3://bucket/folder`; one letter is a drive.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?(?=[^/])")


class Address(type(Path())):  # type: ignore[misc]
    """The address of a file or folder that is in object storage, as `s3://bucket/folder`.

    It is a path in all but that nothing is there on this machine: `ultrasound.remote` fetches it.
    """

    def __str__(self) -> str:
        return _SCHEME.sub(r"\1://", super().__str__(), count=1)

    def __fspath__(self) -> str:
        return str(self)


def is_address(path: str | Path) -> bool:
    """Whether a path is in object storage."""
    return isinstance(path, Address) or (
        isinstance(path, str) and "://" in path and _SCHEME.match(path) is not None
    )


class WriteError(DataError, OSError):
    """A file or folder cannot be written; `strerror` says why."""

    def __init__(self, path: Path, why: str) -> None:
        """Word the message for people."""
        super().__init__(f"{path}: cannot be written ({why}); make room, or name another")
        self.filename, self.strerror = str(path), why

    def __reduce__(self) -> tuple[type[WriteError], tuple[Path, str]]:
        """Workers send their errors home."""
        return WriteError, (Path(self.filename), str(self.strerror))


@contextlib.contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """Give a path to write to, and move what is there to `path` if all goes well.

    Folders above are made. Its permissions are those that the umask leaves.

    Args:
        path: of the file; another file of that name is replaced.

    Yields:
        The path of an empty file beside it, which has not its suffix.

    Raises:
        WriteError: if the file cannot be written.
        DataError: if a link, a folder, a pipe or a device has that name.
    """
    path = Path(path)
    partial = beside(path)
    with _in_words(path, partial):
        _check_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # made here, not by tempfile, whose files nobody else may read; never through a link
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            with held(partial):
                yield partial
                sync(partial)
                _check_file(path)
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def written_folder(folder: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give a folder to fill, and move it to `folder` if all goes well.

    Args:
        folder: absent, or empty.
        replace: what was in it.

    Yields:
        An empty folder beside it.

    Raises:
        WriteError: if it cannot be written.
        DataError: if there is something in the folder, or a link or a file has that name.
    """
    folder = Path(folder)
    partial = beside(folder)
    with _in_words(folder, partial):
        _check_replaceable(folder, replace)
        partial.mkdir(parents=True)
        try:
            with held(partial):
                yield partial
                for root, _, names in os.walk(partial):
                    for name in names:
                        sync(Path(root, name))
                _check_replaceable(folder, replace)
                if folder.exists():
                    (shutil.rmtree if replace else Path.rmdir)(folder)
                partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: str | Path, name: str = "") -> Iterator[None]:
    """Keep other processes from writing to a folder, which is made if need be, meanwhile.

    What a killed process left half-written there is taken away.

    Args:
        folder: that is written to.
        name: with which the names of the files begin, where others may be written beside them.

    Raises:
        DataError: if another process holds the lock.
        WriteError: if the folder cannot be written to.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    folder = Path(folder)
    path = folder / f".{name}.{_LOCK}" if name else folder / f".{_LOCK}"
    lock = FileLock(path)
    until = time.monotonic() + _PATIENCE
    made = not folder.exists()
    with _in_words(folder, path):
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=max(until - time.monotonic(), 0))
            except NotImplementedError:  # by file systems without flock
                lock = SoftFileLock(path)
                continue
            except Timeout:
                held = f"{folder / name}: another process is writing there"
                raise DataError(f"{held}; wait for it, or name another") from None
            if path.exists():
                break
            # who held it has taken it away, with its folder perhaps: one that nobody else can see
            lock.release()
    try:
        sweep(folder, name)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        if made:
            # of what came to nothing; a folder with something in it stays
            with contextlib.suppress(OSError):
                folder.rmdir()
        lock.release()


@contextlib.contextmanager
def parts_of(output: Path, names: re.Pattern[str]) -> Iterator[Path]:
    """Keep what is done of a long call beside its output, in `OUTPUT.parts`, one call at a time.

    Args:
        output: a file.
        names: of the files that the call keeps there.

    Yields:
        The folder; it goes if it is left empty.

    Raises:
        DataError: if it is another's, as what is in it says, or another process works on it.
        WriteError: if it cannot be written to.
    """
    folder = output.with_name(f"{output.name}.parts")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DataError(f"{folder}: is no folder; move it, or name another output")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.is_dir() or not (names.fullmatch(path.name) or is_ours(path.name)):
            raise DataError(
                f"{folder}: {path.name} in it is not of an interrupted call; move it, or name "
                "another output"
            )
    try:
        with locked(folder):
            sweep(output.parent, output.name)
            yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_output(
    path: str | Path,
    inputs: Iterable[str | Path] = (),
    closed: Iterable[str | Path] = (),
    begins: bytes = b"",
    *,
    picture: bool = False,
) -> Path:
    """Make sure, before the work is done, that a file may be written, or replaced.

    Args:
        path: of the output.
        inputs: files that are read for it.
        closed: folders whose files belong together: models, stores, runs. Nothing is written among
            them, or into a folder within.
        begins: what a file of that name begins with if an earlier call wrote it.
        picture: whether it is a picture or film, which has `MADE` in it if a call wrote it.

    Returns:
        The path.

    Raises:
        DataError: if it is an input, lies in a closed folder, or something else has its name.
        WriteError: if a folder above it is none.
    """
    path = expanded(path)
    if isinstance(path, Address):
        raise DataError(f"{path}: is in object storage, which is read from; name a file here")
    state = _check_file(path)
    parents = {place for parent in path.resolve().parents if (place := _place(parent))}
    for folder in closed:
        if _place(folder) in parents:
            raise DataError(f"{path}: lies within {folder}, which is an input; name another")
    if state is not None:
        for one in inputs:
            if _place(one) == (state.st_dev, state.st_ino):
                raise DataError(f"{path}: is an input, and would be lost; name another")
        theirs = picture and not _is_made(path)
        if state.st_size and (theirs or not begins_with(path, begins)):
            raise DataError(
                f"{path}: is there, and not of an earlier call; move it, or name another"
            )
    sweep(path.parent, path.name, alone=False)
    return path


def check_folder(
    folder: str | Path,
    ours: bool = False,
    inputs: Iterable[str | Path] = (),
    names: Iterable[str] | None = None,
) -> Path:
    """Make sure, before the work is done, that a folder may be filled.

    Args:
        folder: of the output, absent perhaps. It may be a link to one.
        ours: whether what is in it says that it is of an earlier call, and so may be replaced.
        inputs: files and folders that are read for it.
        names: of what is written there; none if it has to be empty.

    Returns:
        The path.

    Raises:
        DataError: if it is no folder, or something in it would be lost: an input, or what is not of
            an earlier call.
        WriteError: if it cannot be looked into.
    """
    folder = expanded(folder)
    sweep(folder.parent, folder.name, alone=False)
    if not os.path.lexists(folder):
        return folder
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; name another")
    try:
        there = {path.name for path in folder.iterdir() if not is_ours(path.name)}
    except OSError as error:
        raise WriteError(folder, reason(error)) from error
    lost = sorted(there if names is None else there.intersection(names))
    if names is not None and not ours:
        refuse_whole(folder, names)
    if lost and not ours and names is None:
        raise DataError(f"{folder}: is not an empty folder; name another")
    if lost and not ours:
        raise DataError(
            f"{folder / lost[0]}: is there, and not of an earlier call; move it, or name another "
            "folder"
        )
    places = {_place(folder / name) for name in lost}
    if names is None and lost:
        places.add(_place(folder))
    for one in inputs:
        whole = expanded(one).resolve()
        if not places.isdisjoint(_place(parent) for parent in (whole, *whole.parents)):
            raise DataError(f"{folder}: holds an input, {one}, that would be lost; name another")
    sweep(folder, alone=False)
    return folder


def refuse_whole(folder: Path, names: Iterable[str] = ()) -> None:
    """Refuse a folder that is something of its own: what is put into it would be taken for its.

    Of two cards in the folder of a model nobody knows which is the model's.

    Args:
        folder: to write to, absent perhaps.
        names: of what is written there; a folder that has one of them already is its own.

    Raises:
        DataError: if it is a model, a network, a store or a run.
    """
    for marks, what in _WHOLE.items():
        if marks[0] not in names and all((folder / mark).is_file() for mark in marks):
            raise DataError(
                f"{folder}: is {what}, as {' and '.join(marks)} in it say, and its files belong "
                "together; name another folder"
            )


def expanded(path: str | Path) -> Path:
    """A path with the home of `~` or `~user` in its place; of object storage an `Address`.

    Raises:
        DataError: if there is none, or the path is empty.
    """
    if path == "":
        # as a path it would be the folder that Python was started in
        raise DataError("a path is empty; `.` is the folder here")
    if isinstance(path, Address):
        return path
    if is_address(path):
        address = Address(path)
        # what a path drops would be another file
        if str(address) != str(path).rstrip("/") or {".", ".."} & set(address.parts):
            raise DataError(
                f"{path}: is no address that can be read; one is of the kind s3://bucket/folder, "
                "without two slashes in a row, `.` or `..`"
            )
        return address
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(
            f"{path}: there is no such home folder; set HOME, or name the folder in full"
        ) from error


def is_ours(name: str) -> bool:
    """Whether a name is that of a lock, or of what a killed process left half-written."""
    return name == f".{_LOCK}" or is_partial(name)


def _is_made(path: Path) -> bool:
    """Whether a picture or film says that it was made here, at its beginning or end."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_NEAR)
            stream.seek(max(path.stat().st_size - _NEAR, 0))
            return MADE in head or MADE in stream.read(_NEAR)
    except OSError:
        return False


def begins_with(path: Path, content: bytes) -> bool:
    """Whether a file can be read, and begins so."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(content)) == content
    except OSError:
        return False


def _check_file(path: Path) -> os.stat_result | None:
    """Refuse to put a file in the place of what is none; what is there, if anything is."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WriteError(path, reason(error)) from error
    if stat.S_ISLNK(state.st_mode):
        raise DataError(f"{path}: is a link; name the file that it leads to, or another")
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "no regular file"
        raise DataError(f"{path}: is {kind}; name another")
    return state


def _check_replaceable(folder: Path, replace: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DataError(f"{folder}: is no folder; name another")
    if not replace and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not an empty folder; name another")


def _place(path: str | Path) -> tuple[int, int] | None:
    """Device and inode; None of what is not there."""
    try:
        state = expanded(path).stat()
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def sync(path: Path) -> None:
    """Wait until a file is on the disk: the name must not get there before the content."""
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _in_words(path: Path, partial: Path) -> Iterator[None]:
    """Report what goes wrong with a file that nobody has named by the name that they know."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, WriteError) and isinstance(error, UsclError):
            raise
        if isinstance(error.filename, (str, bytes, os.PathLike)):
            about = Path(os.fsdecode(error.filename))
            if about not in (path, *path.parents) and partial not in (about, *about.parents):
                raise  # of an input that was being read
        raise WriteError(path, reason(error)) from error


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, at once or not at all: a pipe would be waited for, a device never ends.

    Raises:
        OSError: if it is neither a regular file nor a link to one, or cannot be opened.
    """
    neither = OSError(errno.EINVAL, "neither a file nor a folder")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        # a socket, or a device that is not there
        if error.errno == errno.ENXIO:
            raise neither from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return open(handle, "rb")  # noqa: PTH123
    os.close(handle)
    raise neither
