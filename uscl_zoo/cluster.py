"""Work spread over the workers of an engine that others keep well: Ray, by its Ray Data.

What a worker does is what one process would do as well; here it is handed jobs, and its answers are
handed back. What a worker that is killed had not answered is done again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pickle
import secrets
import socket
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError, MissingDependencyError, one_line, quietly, reason
from .files import Address
from .release import release
from .ultrasound.reading import DamageWarning

#: The address of workers on this machine, which are started for one call.
LOCAL = "local"
#: Why there is no answer to a job, where that is so.
DEADLY = "ends the process that reads it, each time"


class Outcome(NamedTuple):
    """An answer to a job.

    Attributes:
        number: of the job.
        value: the answer, or a piece of it; None if there is none, as `DEADLY` says.
        last: whether the job is done with it.
    """

    number: int
    value: Any
    last: bool = True


#: What a worker makes of some jobs, each with its number: one answer or several to each, in turn.
Work = Callable[[Sequence[tuple[int, Any]]], Iterable[Outcome]]

# How often a job may end a worker that does nothing else, before it is given up.
_TIMES = 2
#: Files that may each end the process that reads them, before memory is the likelier reason.
MOST_DEADLY = 3
# Bytes of answers for which a batch is not waited for: it may be of hours of video.
_SOONEST = 1 << 18
# Seconds in which a machine answers, and in which a cluster can be joined.
_SOON, _PATIENCE = 5.0, 60.0


class _Trouble(NamedTuple):
    """What ends the whole call: a library that is missing, a full disk, a mistake of ours."""

    error: Exception


class _Damage(NamedTuple):
    """What files have lost, a line each."""

    messages: list[str]


@dataclass(frozen=True)
class Cluster:
    """The workers of a Ray that this process has joined, see `joined`.

    Attributes:
        address: as it was given.
        workers: how many there are, at most.
        cores: that each has.
        on_gpu: whether each has a GPU.
    """

    address: str
    workers: int
    cores: int = 1
    on_gpu: bool = False

    def outcomes(
        self, make: Callable[[], Work], jobs: Sequence[Any], together: int
    ) -> Generator[Outcome, None, None]:
        """Have jobs done, in any order; of damage that a worker warns of is warned here.

        A job whose worker was lost is done again, and its answers may come again from the first.
        One that ends its worker each time is given up.

        Args:
            make: what makes the work, in each worker once.
            jobs: anything that pickles.
            together: how many are handed to a worker at once, at most.

        Raises:
            UsclError: what the work raises.
            DataError: if no worker can begin, or many jobs end theirs.
        """
        import ray.data
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not jobs:
            return
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        ledger = ray.remote(num_cpus=0, scheduling_strategy=here)(_Ledger).remote()
        batches = self.batches(len(jobs), together)
        items = [{"job": pickle.dumps(job)} for job in enumerate(jobs)]
        context = quietly(ray.data.DataContext.get_current().copy)
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = _SOONEST
        with ray.data.DataContext.current(context):
            # blocks are at hand, as reading any would want a core when workers have them all
            given = ray.data.from_items(items, override_num_blocks=batches)
            done = given.map_batches(
                _Worker,
                fn_constructor_args=(make, ledger, str(Path.cwd()), release()),
                # a block at once; with GPUs Ray wants a number, and may join two that are short
                batch_size=-(-len(items) // batches) if self.on_gpu else None,
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=self.workers, initial_size=self.workers
                ),
                num_cpus=self.cores,
                num_gpus=1 if self.on_gpu else 0,
            )
        lost: set[int] = set()
        left = set(range(len(jobs)))
        try:
            for batch in done.iter_batches(batch_size=None, prefetch_batches=0):
                for answer in map(pickle.loads, batch["answer"]):
                    if isinstance(answer, _Trouble):
                        raise answer.error
                    if isinstance(answer, _Damage):
                        for message in answer.messages:
                            warnings.warn(message, DamageWarning, stacklevel=3)
                        continue
                    if answer.value is None:
                        lost.add(answer.number)
                        self._check(lost)
                    if answer.last:
                        left.discard(answer.number)
                    yield answer
        except ray.exceptions.RayError as error:
            raise DataError(
                f"`ray={self.address}`: its workers do not work ({_last_line(error)}); each needs "
                f"uscl-zoo {release()} and what is installed with it here, and the same Python"
            ) from error
        if left:
            raise DataError(
                f"`ray={self.address}`: nothing came of {len(left)} of {len(jobs)} files, though "
                "all were handed out; the same call goes on from there"
            )

    def batches(self, jobs: int, together: int) -> int:
        """How many batches so many jobs are handed out in, in order and of even size."""
        return max(-(-jobs // together), min(jobs, self.workers))

    def _check(self, lost: set[int]) -> None:
        if len(lost) > MOST_DEADLY:
            raise DataError(
                f"`ray={self.address}`: {len(lost)} files have each ended the worker that read "
                "them, several times; out of memory? The same call goes on from there, with fewer "
                "`workers` if need be"
            )


class _Ledger:
    """An actor that outlives the workers: what was begun how often, and not ended."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        self._begun[what] += 1
        return self._begun[what]

    def end(self, what: str) -> None:
        del self._begun[what]


class _Worker:
    """What an actor of Ray Data is: it makes the work, and does it on one batch after another.

    Ray begins a batch again whose worker was lost, for ever. So the second time its jobs are done
    one by one, and what was begun so several times and never ended is given up.
    """

    def __init__(self, make: Callable[[], Work], ledger: Any, folder: str, wanted: str) -> None:
        self._ledger = ledger
        self._work: Work | None = None
        self._trouble: Exception | None = None
        try:
            if release() != wanted:
                raise DataError(
                    f"a worker of Ray, on {socket.gethostname()}, has uscl-zoo {release()} where "
                    f"this is {wanted}; install the same"
                )
            # so that files have the same names here as there
            with contextlib.suppress(OSError):
                os.chdir(folder)
            self._work = make()
        except Exception as error:
            self._trouble = error

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        """Answers, a batch each; what goes wrong is one as well, as Ray would wrap it."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", DamageWarning)
                for outcome in self._outcomes([pickle.loads(job) for job in batch["job"]]):
                    yield {"answer": [pickle.dumps(outcome)]}
            of = [str(one.message) for one in caught if issubclass(one.category, DamageWarning)]
            if of:
                yield {"answer": [pickle.dumps(_Damage(of))]}
        except Exception as error:
            yield {"answer": [pickle.dumps(_Trouble(_plain(error)))]}

    def _outcomes(self, jobs: list[tuple[int, Any]]) -> Iterator[Outcome]:
        if self._work is None:
            assert self._trouble is not None
            raise self._trouble
        if self._begin(f"batch {jobs[0][0]}") == 1:
            yield from self._work(jobs)
            return
        for number, job in jobs:
            if self._begin(str(number)) > _TIMES:
                yield Outcome(number, None)
                continue
            yield from self._work([(number, job)])
            self._ledger.end.remote(str(number))

    def _begin(self, what: str) -> int:
        import ray

        return int(ray.get(self._ledger.begin.remote(what)))


def check_there(path: Path) -> None:
    """Make sure, in a worker, that its machine has a file which the one that asks has seen.

    Raises:
        DataError: if it has not: to skip the file would be to lose it.
    """
    if not isinstance(path, Address) and not os.path.lexists(path):
        raise DataError(
            f"{path}: is not there on {socket.gethostname()}, which is of the cluster; all have to "
            "see files by the same names, or have them from object storage"
        )


def _plain(error: Exception) -> Exception:
    """An error that can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextlib.contextmanager
def joined(
    address: str, workers: int | None = None, device: str | None = "cpu"
) -> Iterator[Cluster]:
    """Join a Ray for a while; one that this process has joined before is used, and left so.

    Nothing is reported to Ray's makers.

    Args:
        address: of a cluster that this machine is part of, as HOST:PORT or `auto`; or `local` for
            workers on this machine alone, which nothing else can reach.
        workers: at most; None for one a GPU, or else a core.
        device: of the workers, `cpu` or `cuda`; None for GPUs where there are some.

    Raises:
        MissingDependencyError: without Ray.
        DataError: if there is no cluster at the address, or none of its machines has a GPU that is
            asked for.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingDependencyError(
            f"`ray={address}`: needs Ray; install it by: pip install 'uscl-zoo[ray]'"
        )
    if workers is not None and workers < 1:
        raise DataError(f"workers should be at least 1, not {workers}")
    # read when Ray is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.ExitStack() as stack:
        if address != LOCAL:
            _check_address(address)
        else:
            # else it would listen for other machines to join
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            # else it would leave one in the home
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            # else whatever runs besides would come first, as they are nice
            os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        if not ray.is_initialized():
            settings: dict[str, Any] = {"address": address}
            if address == LOCAL:
                settings |= {"num_cpus": workers, "include_dashboard": False}
                settings["_temp_dir"] = stack.enter_context(_short_folder())
            else:
                _try(address)
            stack.callback(ray.shutdown)
            try:
                with _silence():
                    ray.init(**settings, log_to_driver=False, logging_level="error")
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise DataError(_cannot(address, _last_line(error))) from error
        yield _cluster(address, workers, device)


def _cluster(address: str, workers: int | None, device: str | None) -> Cluster:
    import ray

    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    on_gpu = gpus > 0 if device is None else device != "cpu"
    if not on_gpu:
        return Cluster(address, workers or max(cores, 1))
    if not gpus:
        raise DataError(f"device {device!r} cannot be used (no machine of the cluster has a GPU)")
    machines = [node["Resources"] for node in ray.nodes() if node["Resources"].get("GPU")]
    each = min(int(of.get("CPU", 1) // of["GPU"]) for of in machines)
    return Cluster(address, workers or gpus, max(each, 1), on_gpu=True)


def _check_address(address: str) -> None:
    """Make sure that an address is one, and something listens there."""
    host, colon, port = address.rpartition(":")
    if not colon and address == "auto":
        return
    if "/" in address or not (host and port.isdecimal()):
        raise DataError(
            f"`ray={address}`: should be HOST:PORT of a cluster that this machine is part of, "
            f"`auto` for the one that runs on it, or `{LOCAL}`"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SOON).close()
    except (OSError, OverflowError) as error:
        raise DataError(_cannot(address, reason(error))) from error


def _try(address: str) -> None:
    """Join a cluster in a process that may be ended: of what is none, Ray asks for many minutes."""
    code = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False); ray.shutdown()"
    try:
        subprocess.run(
            [sys.executable, "-c", code, address],
            capture_output=True,
            check=True,
            text=True,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(_cannot(address, "nothing there answers as Ray does")) from error
    except subprocess.CalledProcessError as error:
        raise DataError(_cannot(address, _last_line(error.stderr))) from error


def _cannot(address: str, why: str) -> str:
    return (
        f"`ray={address}`: no cluster of Ray can be joined there ({one_line(why)}); `ray start` "
        f"makes this machine part of one, and `{LOCAL}` needs none"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep standard error from all there is: Ray's core says that it was asked to be quiet."""
    usual = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(usual, 2)
        os.close(usual)
        os.close(nowhere)


@contextlib.contextmanager
def _short_folder() -> Iterator[str]:
    """A folder for a while, where names are short enough for the sockets that Ray puts there."""
    usual = tempfile.gettempdir()
    place = usual if len(usual) <= 20 or os.name == "nt" else "/tmp"
    with tempfile.TemporaryDirectory("", "uscl-", place, ignore_cleanup_errors=True) as folder:
        yield folder


def _last_line(error: BaseException | str) -> str:
    """What an error says in the end: before that are tracebacks of other machines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__).rstrip(".")
