"""Object storage on this machine, as tests need it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uscl_zoo.ultrasound import remote


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with socket.socket() as asking:
            if asking.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, "the server has ended"
        time.sleep(0.1)
    raise AssertionError("the server does not answer")


@contextmanager
def s3_of(files: Path) -> Iterator[str]:
    """The address of a folder's files on a server of our own that speaks S3.

    What is started meanwhile finds it by its environment, as a user's does.
    """
    import boto3
    import s3fs

    port = free_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server, pytest.MonkeyPatch.context() as patch:
        for key, value in told.items():
            patch.setenv(key, value)
        try:
            wait_for(port, server)
            # what this process knows of another such server, which had the same names
            s3fs.S3FileSystem.clear_instance_cache()
            patch.setattr(remote, "_STATES", {})
            client = boto3.client("s3")
            client.create_bucket(Bucket="scans")
            for file in sorted(files.rglob("*.*")):
                client.upload_file(str(file), "scans", f"set/{file.relative_to(files).as_posix()}")
            yield "s3://scans/set"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.terminate()
