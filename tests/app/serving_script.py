"""Runs what follows, and writes down whom it would have asked beyond this machine.

serving_script.py ASKED ARGUMENTS...      of uscl
serving_script.py ASKED FILE.py           another program
"""

import runpy
import socket
import sys
from pathlib import Path
from typing import Any

asked = Path(sys.argv[1])
connect, resolve = socket.socket.connect, socket.getaddrinfo


def note(where: Any) -> None:
    host = where[0] if isinstance(where, tuple) else where
    if host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", None, ""):
        with asked.open("a") as stream:
            stream.write(f"{host}\n")


def connected(self: socket.socket, where: Any) -> None:
    note(where)
    connect(self, where)


def resolved(host: Any, *arguments: Any, **options: Any) -> Any:
    note(host)
    return resolve(host, *arguments, **options)


socket.socket.connect = connected  # type: ignore[method-assign, assignment]
socket.getaddrinfo = resolved
if sys.argv[2].endswith(".py"):
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    from uscl_zoo.cli import main

    main(sys.argv[2:])
