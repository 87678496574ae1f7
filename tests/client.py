"""Another process that uses the weights cache and the Hub's client, told what to do over a pipe.

huggingface_hub reads HF_ENDPOINT, HF_HOME, HF_TOKEN and the like when it is imported, so a test
that sets them needs a process of its own. `Client` starts one and asks; run as a script, this file
answers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any


class Client:
    """A Python process with an environment of its own; a context manager.

    Args:
        environment: variables on top of PATH and PYTHONPATH.
        before: run in the process before Python starts, to take rights away from it.
    """

    def __init__(
        self, environment: dict[str, str], before: Callable[[], None] | None = None
    ) -> None:
        # the same code as here, and none of the settings
        inherited = {k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**inherited, **environment},
            preexec_fn=before,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """Have one of the functions below called, and return what it returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client process ended at {do!r}"
        return json.loads(line)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def locate(card: str, **arguments: Any) -> dict[str, Any]:
    """Where the weights cache has a card's weights and what is in the file, or how it refuses."""
    from uscl_zoo.errors import UsclError
    from uscl_zoo.zoo import digests, weights_cache
    from uscl_zoo.zoo.card import read_card

    start = time.monotonic()
    try:
        located = weights_cache.locate(read_card(Path(card)), **arguments)
    except UsclError as error:
        return {
            "error": type(error).__name__,
            "message": str(error),
            "seconds": time.monotonic() - start,
        }
    return {
        "path": str(located.path),
        "source": located.source,
        "sha256": digests.sha256_of(located.path),
        "seconds": time.monotonic() - start,
    }


def fetch(card: str, folder: str) -> dict[str, Any]:
    """Where the weights cache puts a copy of a card's weights, or how it refuses."""
    from uscl_zoo.errors import UsclError
    from uscl_zoo.zoo import weights_cache
    from uscl_zoo.zoo.card import read_card

    try:
        return {"path": str(weights_cache.fetch(read_card(Path(card)), folder))}
    except UsclError as error:
        return {"error": type(error).__name__, "message": str(error)}


def race(card: str, count: int, **arguments: Any) -> list[dict[str, Any]]:
    """The answers of so many processes that locate the same card at once."""
    # before the fork, or every child imports torch
    import uscl_zoo.zoo.weights_cache  # noqa: F401

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count)
    answers = context.Queue()

    def run() -> None:
        barrier.wait()
        answers.put(locate(card, **arguments))

    processes = [context.Process(target=run) for _ in range(count)]
    for process in processes:
        process.start()
    gathered = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return gathered


def publish(repo: str, folder: str) -> str:
    """Upload a folder with the Hub's own client; the name of the commit."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, exist_ok=True)
    return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="add").oid)


def contents(repo: str, revision: str) -> list[str]:
    """The names of a repository's files."""
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(repo, revision=revision)


def download(repo: str, file: str, revision: str, cache_dir: str) -> str:
    """Path of any file of a repository."""
    from huggingface_hub import hf_hub_download

    return hf_hub_download(repo, file, revision=revision, cache_dir=cache_dir)


def history(repo: str) -> list[str]:
    """The names of a repository's commits, newest first."""
    from huggingface_hub import HfApi

    return [commit.commit_id for commit in HfApi().list_repo_commits(repo)]


def main() -> None:
    """Answer until the pipe is closed."""
    known = {f.__name__: f for f in (locate, fetch, race, publish, contents, download, history)}
    answers, sys.stdout = sys.stdout, sys.stderr
    # of its retries the client makes as many as ever, and waits for each a twentieth as long
    waited = time.sleep
    time.sleep = lambda seconds: waited(float(seconds) / 20)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(known[asked.pop("do")](**asked)), file=answers, flush=True)


if __name__ == "__main__":
    main()
