"""Python processes that find torch imported: no test that starts one is about that.

To import it takes four seconds of a core. A server does it once for all tests of a worker, and
each call is a fork of it, with variables, arguments and streams of its own; nothing of uscl_zoo or
timm is imported before the code is run. What is about Python's start, its streams or signals
starts Python itself.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def run(
    code: str, *arguments: object, environment: Mapping[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run some code as `python -c` does.

    Args:
        code: of the program.
        *arguments: in `sys.argv`.
        environment: its variables; None for those of now.

    Returns:
        Its exit status, and what it printed.
    """
    variables = os.environ if environment is None else environment
    asked = {
        "code": code,
        "arguments": [str(argument) for argument in arguments],
        "variables": {name: str(value) for name, value in variables.items()},
        "folder": str(Path.cwd()),
    }
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(asked | {"streams": list(map(str, streams))}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(
            ["python", "-c", code], status, *(path.read_text() for path in streams)
        )


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    import torch
    import torchvision

    assert torch.get_num_threads() and torchvision
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(asked: dict[str, Any]) -> None:
    for number, path in enumerate(asked["streams"], start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(asked["variables"])
    os.chdir(asked["folder"])
    sys.argv, sys.path[0] = ["-c", *asked["arguments"]], ""
    status: int | str | None = 1
    try:
        exec(compile(asked["code"], "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    _serve()
