"""Parts of a store that is being made: one video each, decoded, sampled and, if asked, cleaned.

A part is moved into place when it is whole, so an interrupted call goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
from PIL import Image
from tqdm import tqdm

from uscl_zoo.checks import real, whole
from uscl_zoo.cluster import DEADLY, MOST_DEADLY, Outcome, Work, check_there, joined
from uscl_zoo.errors import (
    DataError,
    MissingDependencyError,
    UnreadableError,
    UsclError,
    reason,
)
from uscl_zoo.files import WriteError, written
from uscl_zoo.partials import sweep
from uscl_zoo.records import write_text
from uscl_zoo.signals import ENDING, listening
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.cleaning import Cleaner
from uscl_zoo.ultrasound.clip import Clip
from uscl_zoo.ultrasound.morphology import opencv
from uscl_zoo.ultrasound.rgb import resampling
from uscl_zoo.ultrasound.sources import files_of, here, history_of, state_of
from uscl_zoo.zoo.digests import sha256_of

from .sources import Item

#: The folder of parts, in that of the store.
PARTS = "parts"
#: How frames are resized unless something else is asked for.
BILINEAR = "bilinear"
#: Names of parts, half-written ones of earlier releases among them.
_PART = re.compile(r"[0-9a-f]{32}\.(json|u8|u8\.partial|begun)|\.[0-9a-f]{32}\..*\.partial")

# Videos that are handed to a worker of a cluster at once, and bytes that it sends at once.
_TOGETHER, _PIECE = 32, 1 << 25


#: A source, its part, and how its frames are taken.
_Job: TypeAlias = "tuple[Path, Path, Sampling]"


@dataclass(frozen=True)
class Sampling:
    """How frames are taken from a video.

    Attributes:
        rate: frames a second. A folder of frames is taken whole: it has been sampled already.
        size: height and width in pixels; the aspect ratio is not kept (METHOD, step 2).
        clean: crop each video to its beam first, blank the rest and take out what is drawn inside.
        grey: keep the brightness alone, in all channels: a scanner's tint may give away a class.
        interpolation: of the resize to `size`, as a card's input has it.
    """

    rate: float = 3.0
    size: int = 224
    clean: bool = False
    grey: bool = False
    interpolation: str = BILINEAR

    def __post_init__(self) -> None:
        """Refuse what nothing can be taken by.

        Raises:
            DataError: naming the argument.
        """
        real("rate", self.rate, 0, math.inf)
        whole("size", self.size, 1, 4096)
        resampling(self.interpolation)

    def settings(self) -> dict[str, Any]:
        """As stores have it; of what older stores lack only what is not as it is in them."""
        usual = {"interpolation": BILINEAR}
        return {
            key: value
            for key, value in asdict(self).items()
            if value is not False and usual.get(key) != value
        }


@contextmanager
def parts_in(output: Path) -> Iterator[Path]:
    """The folder of what is decoded, which goes if it is left empty: by a store, or a refusal."""
    parts = output / PARTS
    parts.mkdir(exist_ok=True)
    sweep(parts)
    try:
        yield parts
    finally:
        # what is there still is to go on from, or is not ours
        with suppress(OSError):
            parts.rmdir()


def clear(parts: Path) -> None:
    """Take away the parts of a store that is whole, and nothing that is not one."""
    for path in parts.iterdir():
        if _PART.fullmatch(path.name):
            path.unlink()


def decode_all(
    items: Mapping[str, Item],
    parts: Path,
    sampling: Sampling,
    workers: int | None,
    progress: bool,
    ray: str | None = None,
) -> tuple[list[tuple[str, str]], int]:
    """Decode what has no part yet, here or by the workers of a cluster, see `cluster.joined`.

    Returns:
        What could not be decoded, and why; and how many parts there were.
    """
    todo = [
        (item.path, part_of(parts, name), _sampling_of(item, sampling))
        for name, item in items.items()
    ]
    todo = [job for job in todo if not _is_done(job[1], job[0], job[2])]
    # the largest first: begun last, a long one would leave the other workers idle
    todo.sort(key=lambda job: -sum(size for _, size, _ in state_of(job[0])))
    reused = len(items) - len(todo)
    skipped: list[tuple[str, str]] = []
    bar = tqdm(total=len(items), initial=reused, unit="video", disable=not progress)

    def tell(line: str) -> None:
        bar.write(line, file=sys.stderr)

    if ray is None:
        outcomes = _outcomes(todo, min(workers or os.cpu_count() or 1, max(len(todo), 1)), tell)
    else:
        outcomes = _spread(todo, ray, workers)
    with bar, closing(outcomes):
        for source, error in outcomes:
            if error is not None:
                skipped.append((str(source), error))
                tell(f"skipped {error}")
            bar.update()
    return sorted(skipped), reused


def _sampling_of(item: Item, sampling: Sampling) -> Sampling:
    return sampling if item.rate is None else replace(sampling, rate=item.rate)


def _outcomes(
    todo: Sequence[_Job], workers: int, tell: Callable[[str], None]
) -> Generator[tuple[Path, str | None], None, None]:
    """Decode; what may have ended the process that read it is decoded once more, alone.

    Yields:
        A source, and why it could not be decoded.

    Raises:
        DataError: if too many end the process that reads them, each alone.
    """
    deadly: list[Path] = []

    def alone(job: _Job) -> tuple[Path, str | None]:
        outcome = None
        for _, outcome in _pooled([job], 1):
            return job[0], outcome
        deadly.append(job[0])
        if len(deadly) > MOST_DEADLY:
            raise DataError(
                f"{job[1].parents[1]}: {len(deadly)} sources have each ended the process that read "
                f"them ({', '.join(map(str, deadly))}); out of memory? The same call goes on from "
                "there, with fewer `workers` if need be"
            )
        return job[0], f"{job[0]}: {DEADLY}"

    if workers == 1:
        for job in todo:
            begun = job[1].with_suffix(".begun")
            if begun.exists():
                tell(f"{job[0]}: an earlier call was killed at it; it is read in another process")
                # who ends that one as well stays marked until the store is whole
                yield alone(job)
                continue
            with suppress(OSError):  # of a full disk the frames tell
                begun.touch()
            try:
                yield job[0], _decode(*job)
            finally:
                begun.unlink(missing_ok=True)
        return
    left = {job[1]: job for job in todo}
    while left:
        for (source, part, _), outcome in _pooled(list(left.values()), workers):
            del left[part]
            yield source, outcome
        # begun first, and not done
        suspects = list(left.values())[:workers]
        if suspects:
            listed = ", ".join(str(source) for source, *_ in suspects)
            tell(f"a worker was killed, at one of {listed}; these are read again, one by one")
        for job in suspects:
            del left[job[1]]
            yield alone(job)


def _pooled(todo: Sequence[_Job], workers: int) -> Iterator[tuple[_Job, str | None]]:
    """Decode in other processes, until all is done or one of them is killed."""
    # Any other start imports torch anew, which takes as long as decoding fifty videos. A fork would
    # inherit the locks of torch's threads, but decoding calls nothing of torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    others = {process.pid for process in multiprocessing.active_children()}
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        futures: dict[Future[str | None], _Job] = {}
        try:
            # Python loses a signal that comes while it forks
            with listening():
                # a worker may be killed before the last is submitted
                for job in todo:
                    futures[pool.submit(_decode, *job)] = job
            for future in as_completed(list(futures)):
                outcome = future.result()
                yield futures.pop(future), outcome
        except BrokenProcessPool:
            pass  # what is left is read again
        except BaseException:
            for process in multiprocessing.active_children():
                if process.pid not in others:
                    process.terminate()  # a long video is not waited for
            pool.shutdown(cancel_futures=True)
            raise
    # what was done before the others were lost
    for future, job in futures.items():
        if future.done() and not future.cancelled() and future.exception() is None:
            yield job, future.result()


def _spread(
    todo: Sequence[_Job], address: str, workers: int | None
) -> Generator[tuple[Path, str | None], None, None]:
    """Decode by the workers of a cluster, which send what they decode: they may share no disk."""
    if not todo:
        return
    with joined(address, workers) as cluster, ExitStack() as begun:
        # dealt out: the largest are first, and should not all be one worker's
        count = cluster.batches(len(todo), _TOGETHER)
        todo = [job for number in range(count) for job in todo[number::count]]
        jobs = [(source, sampling) for source, _, sampling in todo]
        opened: dict[int, tuple[ExitStack, BinaryIO]] = {}
        outcomes = begun.enter_context(closing(cluster.outcomes(_make, jobs, _TOGETHER)))
        for number, value, last in outcomes:
            source, part, _ = todo[number]
            if not last:
                if number not in opened:
                    stack = begun.enter_context(ExitStack())
                    partial = stack.enter_context(written(part.with_suffix(".u8")))
                    opened[number] = stack, stack.enter_context(partial.open("wb"))
                offset, frames = value
                opened[number][1].seek(offset)
                opened[number][1].write(frames)
            elif isinstance(value, _About):
                stack, frames_of = opened.pop(number)
                frames_of.truncate(value.size)
                stack.close()
                write_text(part.with_suffix(".json"), value.text)
                yield source, None
            else:
                yield source, value or f"{source}: {DEADLY}"


class _About(NamedTuple):
    """The description of a part, and the bytes of its frames, once these are sent."""

    text: str
    size: int


def _make() -> Work:
    return _decode_and_send


def _decode_and_send(jobs: Sequence[tuple[int, tuple[Path, Sampling]]]) -> Iterator[Outcome]:
    """What a worker does with sources: as `_decode`, and it sends the part, some frames at a time.

    Those come with their place, as they come again if the worker is lost.
    """
    for number, (source, sampling) in jobs:
        check_there(source)
        with tempfile.TemporaryDirectory(prefix="uscl-") as folder:
            part = Path(folder, "part")
            error = _decode(source, part, sampling)
            if error is not None:
                yield Outcome(number, error)
                continue
            with part.with_suffix(".u8").open("rb") as stream:
                offset = 0
                while frames := stream.read(_PIECE):
                    yield Outcome(number, (offset, frames), last=False)
                    offset += len(frames)
            yield Outcome(number, _About(part.with_suffix(".json").read_text(), offset))


def _end_with_parent() -> None:
    """End this worker once the process that feeds it is killed: it would wait for ever."""
    # Ctrl-C reaches all: the parent answers it and ends this one, which would else look killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in ENDING[1:]:
        # at once, not when the decoder comes back to Python
        signal.signal(number, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def part_of(parts: Path, name: str) -> Path:
    """Where the part of a video lives; its name is hashed because it may hold folders."""
    return parts / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32]


def _is_done(part: Path, source: Path, sampling: Sampling) -> bool:
    try:
        about = json.loads(part.with_suffix(".json").read_text())
        size = part.with_suffix(".u8").stat().st_size
    except (OSError, ValueError):
        return False
    return bool(
        about["state"] == history_of(source)
        and "grey" in about
        and about["sampling"] == sampling.settings()
        and size == len(about["times"]) * sampling.size**2 * 3
    )


def _decode(source: Path, part: Path, sampling: Sampling) -> str | None:
    """Decode one source into a part; returns the reason if it cannot be decoded.

    The description is written after the frames, so that a part with one is whole.
    """
    try:
        about: dict[str, Any] = {"state": history_of(source), "sampling": sampling.settings()}
        with here(source) as path:
            cleaner = _cleaner(path, sampling)
            with written(part.with_suffix(".u8")) as partial:
                about["times"], about["grey"] = _sample(path, partial, sampling, cleaner)
                about["frames"] = sha256_of(partial)
            about["sha256"] = content_of(path)
        if history_of(source) != about["state"]:
            raise UnreadableError(f"{source}: was changed while it was read")
        if cleaner is not None:
            about["beam"] = _record(cleaner)
        write_text(part.with_suffix(".json"), json.dumps(about))
    except (MissingDependencyError, WriteError):
        # not the video's fault: skipping would leave every video out for want of a library, or room
        raise
    except UsclError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or source}: cannot be read ({reason(error)})"
    return None


def _sample(
    source: Path, path: Path, sampling: Sampling, cleaner: Cleaner | None
) -> tuple[list[float], bool]:
    """Write the frames of a source; returns their times, and whether all are grey."""
    times: list[float] = []
    grey = True
    with path.open("wb") as stream:
        for time, frame in reading.sample(source, rate=sampling.rate, grey=True):
            if cleaner is not None:
                frame, _ = cleaner(frame)
            side = (sampling.size, sampling.size)
            small = frame.resize(side, resampling(sampling.interpolation))
            if sampling.grey:
                small = small.convert("L")
            grey = grey and _is_grey(small)
            stream.write(small.convert("RGB").tobytes())
            times.append(round(time, 6))
    if not times:
        raise UnreadableError(f"{source}: holds no frame")
    return times, grey


def _is_grey(image: Image.Image) -> bool:
    """Whether red, green and blue are the same in every pixel."""
    if image.mode == "L":
        return True
    red, green, blue = (np.asarray(band) for band in image.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())


def _cleaner(source: Path, sampling: Sampling) -> Cleaner | None:
    """Looks at frames all over a source, in a pass of its own; None if not asked to."""
    if not sampling.clean:
        return None
    opencv().setNumThreads(1)  # other processes have the other cores

    def decode() -> Iterator[reading.Frame]:
        # the second pass reports damage
        return reading.sample(source, rate=sampling.rate, on_damage=lambda _: None)

    return Cleaner.of(Clip(decode, source, reading.read(source).facts))


def _record(cleaner: Cleaner) -> dict[str, Any]:
    beam = cleaner.beam
    return {
        "kind": beam.kind,
        "box": beam.box,
        "apex": beam.apex,
        "angles": beam.angles,
        "radii": beam.radii,
        "confidence": beam.confidence,
        "colour": cleaner.colour,
        "cleaned": cleaner.sure,
    }


def content_of(source: Path) -> str:
    """SHA-256 of a file, or of the files of a folder in order."""
    digest = hashlib.sha256()
    for file in files_of(source):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
