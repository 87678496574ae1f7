"""Parts of a store that is being made: one video each, decoded, sampled and, if asked, cleaned.

A part is moved into place when it is whole, so an interrupted call goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from uscl_zoo.errors import DataError, MissingDependencyError, UnreadableError, UsclError
from uscl_zoo.files import WriteError, written
from uscl_zoo.records import write_text
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.cleaning import Cleaner
from uscl_zoo.ultrasound.clip import Clip
from uscl_zoo.ultrasound.morphology import opencv
from uscl_zoo.ultrasound.sources import files_of, state_of

from .sources import Item

#: Names of parts, half-written ones of earlier releases among them.
_PART = re.compile(r"[0-9a-f]{32}\.(json|u8|u8\.partial)|\.[0-9a-f]{32}\..*\.partial")


@dataclass(frozen=True)
class Sampling:
    """How frames are taken from a video.

    Attributes:
        rate: frames a second. A folder of frames is taken whole: it has been sampled already.
        size: height and width in pixels; the aspect ratio is not kept (METHOD, step 2).
        clean: crop each video to its beam first, blank the rest and take out what is drawn inside.
        grey: keep the brightness alone, in all channels: a scanner's tint may give away a class.
    """

    rate: float = 3.0
    size: int = 224
    clean: bool = False
    grey: bool = False

    def settings(self) -> dict[str, Any]:
        """As stores have it; switches only where they are on, as older stores lack them."""
        return {key: value for key, value in asdict(self).items() if value is not False}


def decode_all(
    items: Mapping[str, Item],
    parts: Path,
    sampling: Sampling,
    workers: int | None,
    progress: bool,
) -> tuple[list[tuple[str, str]], int]:
    """Decode what has no part yet; returns what could not be, and how many parts there were."""
    todo = [
        (item.path, part_of(parts, name), _sampling_of(item, sampling))
        for name, item in items.items()
    ]
    todo = [job for job in todo if not _is_done(job[1], job[0], job[2])]
    # the largest first: begun last, a long one would leave the other workers idle
    todo.sort(key=lambda job: -sum(size for _, size, _ in state_of(job[0])))
    reused = len(items) - len(todo)
    workers = min(workers or os.cpu_count() or 1, max(len(todo), 1))
    skipped: list[tuple[str, str]] = []
    bar = tqdm(total=len(items), initial=reused, unit="video", disable=not progress)
    with bar:
        for source, error in _outcomes(todo, workers):
            if error is not None:
                skipped.append((str(source), error))
                bar.write(f"skipped {error}", file=sys.stderr)
            bar.update()
    return sorted(skipped), reused


def _sampling_of(item: Item, sampling: Sampling) -> Sampling:
    return sampling if item.rate is None else replace(sampling, rate=item.rate)


def _outcomes(
    todo: Sequence[tuple[Path, Path, Sampling]], workers: int
) -> Iterator[tuple[Path, str | None]]:
    if workers == 1:
        for source, part, sampling in todo:
            yield source, _decode(source, part, sampling)
        return
    # Any other start imports torch anew, which takes as long as decoding fifty videos. A fork would
    # inherit the locks of torch's threads, but decoding calls nothing of torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, _end_with_parent) as pool:
        futures: dict[Future[str | None], Path] = {
            pool.submit(_decode, source, part, sampling): source for source, part, sampling in todo
        }
        try:
            for future in as_completed(futures):
                outcome = future.result()
                yield futures.pop(future), outcome
        except BrokenProcessPool as error:
            # Ctrl-C ends the workers as well, and may reach this process last
            time.sleep(0.3)
            begun = ", ".join(map(str, list(futures.values())[:workers]))
            raise DataError(
                f"{todo[0][1].parents[1]}: a worker was killed, at one of {begun}; out of memory? "
                "The same call goes on from there, with fewer workers if need be"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """End this worker once the process that feeds it is killed: it would wait for ever."""
    # at Ctrl-C, which reaches all, it ends without a traceback of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)
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
        about["state"] == state_of(source)
        and "grey" in about
        and about["sampling"] == sampling.settings()
        and size == len(about["times"]) * sampling.size**2 * 3
    )


def _decode(source: Path, part: Path, sampling: Sampling) -> str | None:
    """Decode one source into a part; returns the reason if it cannot be decoded.

    The description is written after the frames, so that a part with one is whole.
    """
    try:
        about: dict[str, Any] = {"state": state_of(source), "sampling": sampling.settings()}
        cleaner = _cleaner(source, sampling)
        with written(part.with_suffix(".u8")) as partial:
            about["times"], about["grey"] = _sample(source, partial, sampling, cleaner)
        about["sha256"] = content_of(source)
        if cleaner is not None:
            about["beam"] = _record(cleaner)
        write_text(part.with_suffix(".json"), json.dumps(about))
    except (MissingDependencyError, WriteError):
        # not the video's fault: skipping would leave every video out for want of a library, or room
        raise
    except (UsclError, OSError) as error:
        return str(error)
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
            small = frame.resize(side, Image.Resampling.BILINEAR)
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
