"""Digests of files: computed once, and remembered where that is safe.

Hashing takes a sixth of the time a ResNet takes to load, so the digest of a file is remembered in
`~/.cache/uscl_zoo/verified.json` together with device, inode, size, mtime and ctime, and computed
anew once any of them differs. On POSIX no writer can set ctime back; Windows has no such clock, and
there a change that keeps size and mtime shows only in `weights_cache.verify_all`, which always
reads the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from ..errors import DigestError, UsclError
from ..files import expanded
from ..records import write_text

#: A file changed this recently (ns) could change again without its clocks showing it.
_UNSETTLED = 2_000_000_000

#: Device, inode, size in bytes, mtime and ctime in ns.
Fingerprint = tuple[int, int, int, int, int]


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, as 64 lower-case hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.
        DigestError: if somebody writes to it meanwhile.
    """
    return digest_of(Path(path))[0]


def digest_of(path: Path) -> tuple[str, Fingerprint]:
    """Digest and fingerprint of one and the same file: both are taken from the open handle."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as stream:
        before = fingerprint_of(os.fstat(stream.fileno()))
        while count := stream.readinto(block):
            digest.update(block[:count])
        after = fingerprint_of(os.fstat(stream.fileno()))
    if before != after:
        raise DigestError(f"{path}: was written to while it was being read; try again")
    return digest.hexdigest(), after


def fingerprint_of(stat: os.stat_result) -> Fingerprint:
    """Device, inode, size, mtime (ns) and ctime (ns): what changes when a file does."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _memory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(cache) / "uscl_zoo" / "verified.json"


def _recollections() -> dict[str, object]:
    """What is remembered, by real path; nothing, where the file is absent or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError, RuntimeError):
        content = json.loads(_memory().read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def recall(path: Path, fingerprint: Fingerprint) -> str | None:
    """The digest that is remembered of a file, if it has not changed since."""
    entry = _recollections().get(os.path.realpath(path))
    if isinstance(entry, dict) and entry.get("fingerprint") == list(fingerprint):
        digest = entry.get("sha256")
        return digest if isinstance(digest, str) else None
    return None


def memorise(path: Path, fingerprint: Fingerprint, digest: str) -> None:
    """Remember a digest, if it is safe to; a lost or impossible write costs one more hashing."""
    if fingerprint[4] > time.time_ns() - _UNSETTLED:
        return
    with contextlib.suppress(OSError, RuntimeError, UsclError):
        kept = {key: value for key, value in _recollections().items() if Path(key).exists()}
        kept[os.path.realpath(path)] = {"fingerprint": list(fingerprint), "sha256": digest}
        write_text(_memory(), json.dumps(kept, indent=1))
