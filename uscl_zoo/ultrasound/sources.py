"""Many sources: whether one has changed, and decoding them ahead of whoever takes the frames."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from queue import Full, Queue
from threading import Event
from typing import Any, Generic, NamedTuple, TypeVar

from PIL import Image

from ..errors import one_line
from ..files import Address, expanded
from . import remote
from .cleaning import Cleaner
from .clip import Clip, Frame, OnDamage
from .reading import find, read, sample, wanted_at, warn

T = TypeVar("T")

#: Where frames come from: a file or folder, or what is in memory.
Source = Path | Clip
#: What a clip is called that came from no file.
IN_MEMORY = "clip"

#: Frames of one source that wait to be taken.
_DEPTH = 64

# Seconds after which a thread that waits for room looks whether it is still wanted.
_PATIENCE = 0.1


class Look(NamedTuple):
    """How the frames of a source are looked at.

    Attributes:
        rate: frames a second.
        clean: cut to the beam, blank around it, and without what is drawn in it, as `uscl prepare
            --clean` makes them.
        grey: their brightness alone, in all channels.
    """

    rate: float
    clean: bool = False
    grey: bool = False

    def at(
        self, source: Source, threads: int = 1, on_damage: OnDamage = warn
    ) -> Generator[Frame, None, None]:
        """The frames of a source, as `reading.sample` gives them, looked at so.

        Of a clip in memory those are taken that `reading.sample` would take of a file.

        Raises:
            UnreadableError: as `reading.sample`.
            MissingDependencyError: as `reading.sample`, and if what cleaning needs is not there.
            DataError: if they are to be cleaned, and are of several sizes.
        """
        cleaner = self.cleaner(source) if self.clean else None
        for time, image in self._sampled(source, threads, on_damage):
            if cleaner is not None:
                image, _ = cleaner(image)
            yield Frame(time, image.convert("L").convert("RGB") if self.grey else image)

    def clip(self, source: Source) -> Clip:
        """A source as the clip of the frames that are looked at, not cleaned; damage is not said.

        Raises:
            UnreadableError: as `reading.read`.
            MissingDependencyError: as `reading.read`.
        """

        def decode() -> Iterator[Frame]:
            # who takes the frames reports the damage
            return self._sampled(source, 1, lambda message: None)

        whole = source if isinstance(source, Clip) else read(source)
        return Clip(decode, whole.source, whole.facts)

    def cleaner(self, source: Source) -> Cleaner:
        """What cleans the frames of a source, which is decoded for it once."""
        return Cleaner.of(self.clip(source))

    def _sampled(self, source: Source, threads: int, on_damage: OnDamage) -> Iterator[Frame]:
        if not isinstance(source, Clip):
            return sample(source, self.rate, threads=threads, on_damage=on_damage)
        wanted = wanted_at(self.rate)
        return (frame for frame in source if wanted(frame.time))


class Named(NamedTuple):
    """A source, and what it is called.

    Attributes:
        path: of the file or folder.
        name: its path within the folder given, or its own name where it was given itself; what
            cannot be written or printed is escaped in it.
        within: what patterns of subjects are searched in: its path within the folder given, or as
            it was given itself.
    """

    path: Path
    name: str
    within: str


def named(source: Path, given: Path) -> Named:
    """A source, and what it is called within the file or folder that was given."""
    if source == given:
        # `.` has no name of its own
        return Named(source, one_line(source.name or source.resolve().name), source.as_posix())
    within = source.relative_to(given).as_posix()
    return Named(source, one_line(within), within)


def name_sources(
    paths: str | Path | Iterable[str | Path],
    *,
    on_damage: OnDamage = warn,
    masks: list[Path] | None = None,
    table: Path | None = None,
) -> list[tuple[Named, Path]]:
    """Find sources as `reading.find` does, and name each within the file or folder given.

    Args:
        paths: as for `find`.
        on_damage: as for `find`.
        masks: as for `find`.
        table: as for `find`.

    Returns:
        The sources and what each is in, each source once, in the order of `find`.

    Raises:
        UnreadableError: as `find`.
        DataError: as `find`.
    """
    sources: dict[Path, tuple[Named, Path]] = {}
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        root = expanded(path)
        for source in find(root, on_damage=on_damage, masks=masks, table=table):
            real = source if isinstance(source, Address) else source.resolve()
            sources.setdefault(real, (named(source, root), root))
    return list(sources.values())


def path_of(source: Source) -> Path:
    """The file or folder that a source is, or what one in memory is called."""
    if isinstance(source, Clip):
        return source.source or Path(IN_MEMORY)
    return source


def files_of(source: Path) -> list[Path]:
    """The file that a source is, or the files of a folder of frames, hidden ones left out."""
    if isinstance(source, Address) or not source.is_dir():
        return [source]
    return sorted(file for file in source.iterdir() if not file.name.startswith("."))


def inputs_of(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Every file of the sources in `paths`, as `name_sources` takes them, and of masks among them.

    Whoever reads them says what is left out.
    """
    masks: list[Path] = []
    for source, _ in name_sources(paths, on_damage=lambda message: None, masks=masks):
        yield from files_of(source.path)
    yield from masks


@contextmanager
def here(source: Path) -> Iterator[Path]:
    """A source on this machine: itself, or a copy for a while of what is in object storage."""
    if not isinstance(source, Address):
        yield source
        return
    with remote.fetched(source) as local:
        yield local


def state_of(source: Path) -> list[list[Any]]:
    """Name, size and modification time (ns) of each file of a source: whether it has changed.

    Of one in object storage size and version, as the storage has them.
    """
    if isinstance(source, Address):
        return [remote.state_of(source)]
    # a dangling link has none; decoding it says so
    files = [file for file in files_of(source) if file.exists()]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def history_of(source: Path) -> list[list[Any]]:
    """As `state_of`, and the time of the last change of whatever kind, which nobody can set.

    What puts a new file in the place of an old one may keep size and time, as archives do whose
    times are all the same. To be compared on one machine: a copy has a history of its own.
    """
    if isinstance(source, Address):
        return state_of(source)
    files = [file for file in files_of(source) if file.exists()]
    return [[*s, f.stat().st_ctime_ns] for s, f in zip(state_of(source), files, strict=True)]


def decode_ahead(
    sources: Iterable[Source],
    look: Look | float,
    take: Callable[[Image.Image], T],
    workers: int | None = None,
    on_damage: OnDamage = lambda message: None,
    watch: Callable[[Source], AbstractContextManager[Any]] = nullcontext,
) -> Generator[Iterator[tuple[float, T]], None, None]:
    """Sample sources in threads, ahead of the caller, and hand their frames over in order.

    Memory is bounded however many and however long the sources are: at most 64 frames, as `take`
    leaves them, wait for each of the next `2 * workers`. Close the iterator if it is not gone
    through to its end, e.g. by `contextlib.closing`: its threads wait for that.

    Args:
        sources: as `reading.find` gives them, or in memory.
        look: how; frames a second of as they are.
        take: what to make of a frame, in the thread that decodes it.
        workers: threads; None for one a core.
        on_damage: as for `reading.iterate`, called from these threads.
        watch: what is around the reading of a source, in the thread that reads it.

    Yields:
        For each source in turn its frames, as time and what `take` made. That iterator raises what
        `Look.at` would, and is to be gone through before the next.
    """
    sources = list(sources)
    look = look if isinstance(look, Look) else Look(look)
    cores = workers or os.cpu_count() or 1
    # what cannot be spread over sources can at times be spread over the frames of one
    threads = max(cores // max(len(sources), 1), 1)
    stop = Event()
    waiting: deque[_Line[T]] = deque()
    rest = iter(sources)

    def fill(source: Source, line: _Line[T]) -> None:
        try:
            with watch(source):
                for time, image in look.at(source, threads, on_damage):
                    if not line.put((time, take(image))):
                        return
            line.put(None)
        except BaseException as error:  # raised again where the frames are taken
            line.put(error)

    pool = ThreadPoolExecutor(cores, "decode")
    with warnings.catch_warnings():
        # Reading DICOM silences pydicom, whose warnings quote the file, while it does: a setting of
        # the process, which threads would take back from each other.
        warnings.filterwarnings("ignore", module="pydicom")
        try:
            while True:
                for source in islice(rest, 2 * cores - len(waiting)):
                    waiting.append(_Line(stop))
                    pool.submit(fill, source, waiting[-1])
                if not waiting:
                    return
                yield iter(waiting.popleft())
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _Line(Generic[T]):
    """The frames of one source between the thread that decodes them and the one that takes them."""

    def __init__(self, stop: Event) -> None:
        self.stop = stop
        self.queue: Queue[tuple[float, T] | BaseException | None] = Queue(_DEPTH)

    def put(self, item: tuple[float, T] | BaseException | None) -> bool:
        """Wait for room; returns False if nobody will take it."""
        while not self.stop.is_set():
            try:
                self.queue.put(item, timeout=_PATIENCE)
            except Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[tuple[float, T]]:
        while (item := self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def ends_its_reader(source: Path, look: Look) -> bool:
    """Whether a source ends the process that reads it, which is another one here."""
    code = "from uscl_zoo.ultrasound import sources; sources._read_through()"
    # not by multiprocessing, which would run the caller's own script once more
    other = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((source, look)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    # by a signal; on Windows by a number that none gives on purpose
    return other.returncode < 0 or other.returncode > 255


def _read_through() -> None:
    source, look = pickle.load(sys.stdin.buffer)
    try:
        for _ in look.at(source):
            pass
    except Exception:  # it is read again where that is said
        sys.exit(0)
