"""The page: Gradio around an examination, on this machine alone unless told otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..embedding.neighbours import read_collection
from ..errors import DataError, MissingDependencyError
from ..network import load
from .sessions import uploads

#: Where it listens unless told otherwise: at nobody but this machine.
LOOPBACK = "127.0.0.1"
#: The first port that is tried.
PORT = 7860
#: Bytes of a file that is taken.
LARGEST = 1 << 30

# The browser is told to ask nobody else for anything, so that it would not even if a page said so.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'"


def serve(
    model: str | Path = "resnet18_uscl",
    collection: str | Path | None = None,
    *,
    host: str | None = LOOPBACK,
    port: int | None = None,
    device: str | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Serve the page until it is interrupted.

    What is uploaded lies in a folder of its own, that nobody else may read; it goes when its tab is
    closed, and the folder when the page ends. Nothing is sent anywhere.

    Args:
        model: whatever `network.load` takes.
        collection: embeddings of `uscl embed` in which neighbours are looked for.
        host: an address of this machine; `0.0.0.0` lets everybody in who can reach it; None for
            that of the environment, as a Space sets it.
        port: by default the first from 7860 on that is free.
        device: to compute on.
        tell: is given what there is to say.

    Raises:
        DataError: if the port is taken, or the collection is another network's.
        MissingDependencyError: if Gradio is not installed.
        UsclError: as `network.load` and `read_collection`.
    """
    # before Gradio is imported, which looks where uploads should go
    with uploads() as folder:
        blocks = _blocks()
        network = load(model, device)
        known = None if collection is None else read_collection(collection, network)
        page = blocks.build(network, known, folder)
        # a Space sets where it listens, and what it is called from outside
        where: dict[str, Any] = {} if host is None else {"server_name": host}
        if port is not None:
            where["server_port"] = port
        try:
            _, address, _ = page.launch(
                **where,
                **blocks.looks(),
                share=False,
                quiet=True,
                inbrowser=False,
                show_error=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                max_file_size=LARGEST,
                app_kwargs={"middleware": [_guard()]},
            )
        except OSError as error:
            # Gradio's own words are of its arguments
            raise DataError(
                f"{host or LOOPBACK}: port {port or PORT} cannot be listened on, another program "
                "may; name one that is free (`port`), and an address of this machine (`host`)"
            ) from error
        try:
            tell(f"{network.name}: {address}  (Ctrl-C ends it)")
            if host not in (None, LOOPBACK, "localhost", "::1"):
                tell("whoever can reach this machine can use it, and has no password to give")
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _guard() -> Any:
    """What adds to every answer that the browser is to ask nobody else."""
    from starlette.middleware import Middleware

    return Middleware(_Policy)


class _Policy:
    """Middleware of ASGI that sets a policy for the browser."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, guarded)


def _blocks() -> Any:
    # read when it is imported, and by what it imports
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from . import blocks
    except ImportError as error:
        raise MissingDependencyError(
            "the page needs Gradio; install it by: pip install 'uscl-zoo[app]'"
        ) from error
    return blocks


def gradio_version() -> str:
    """The release of Gradio that is installed.

    Raises:
        MissingDependencyError: if it is not.
    """
    _blocks()
    return version("gradio")
