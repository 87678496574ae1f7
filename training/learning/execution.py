"""How a run computes: switches that change its speed and its rounding, never the method."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from uscl_zoo.errors import DataError
from uscl_zoo.inference import device_named as device_named  # of runs, too

#: Where frames can live, fastest first.
PLACES = ("device", "host", "disk")

#: The most of a memory's free bytes that frames may take.
_SHARE = 0.5

#: Views of 224² from which on a run is long: ten minutes of the H200 that was measured. There
#: compiling took a minute, and eager kernels were no slower (docs/performance.md).
LONG = 5_000_000

#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Execution:
    """Switches of the loop; `docs/performance.md` says what each brings.

    Attributes:
        device: where to compute.
        place: where the frames live: `device`, `host` memory (pinned for CUDA) or `disk`; None for
            the first that has room.
        channels_last: keep the network and its images in the layout that convolutions are fast in.
        compiled: let torch.compile fuse network and loss, and on CUDA the augmentation; None for
            long runs on CUDA alone.
        graphed: replay a whole step as one CUDA graph, so that launching its kernels costs nothing.
            None for CUDA on one rank. Without CUDA nothing is replayed.
        fused: update all weights in one kernel.
        deterministic: use only kernels that give the same bits each time; a CPU always does.
    """

    device: torch.device
    place: str | None = None
    channels_last: bool = True
    compiled: bool | None = None
    graphed: bool | None = None
    fused: bool = True
    deterministic: bool = False

    def compiles(self, views: float) -> bool:
        """Whether to compile a run.

        Args:
            views: how many it computes, in views of 224².
        """
        if self.compiled is None:
            return self.device.type == "cuda" and views >= LONG
        return self.compiled

    def replays(self, ranks: int) -> bool:
        """Whether to replay steps as CUDA graphs.

        Args:
            ranks: processes that train together; their exchange of gradients is not captured.
        """
        return self.device.type == "cuda" and ranks == 1 and self.graphed is not False


def settle(execution: Execution) -> None:
    """Tell the whole process how a run computes: its kernels, and on a CPU its memory."""
    if execution.device.type == "cpu":
        keep_memory()
    if execution.deterministic and execution.device.type == "cuda":
        # cuBLAS reads it when its first handle is made
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(execution.deterministic)
    torch.backends.cudnn.benchmark = not execution.deterministic


def keep_memory() -> bool:
    """Have the memory of one step's activations serve the next, where the C library is glibc's.

    By default each large block is mapped from the kernel, cleared and given back: most of the page
    faults, and a tenth of a step's time (docs/performance.md).

    Returns:
        Whether it could be asked for.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        ask = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # no block of its own mapping, and nothing given back but what is over 2 GiB
    return bool(ask(_M_MMAP_MAX, 0)) and bool(ask(_M_TRIM_THRESHOLD, 2**31 - 1))


def precision_on(device: torch.device, asked: str) -> str:
    """`float32` or `bf16`: as asked; for `auto`, bf16 where the device has instructions for it."""
    if asked != "auto":
        return asked
    if device.type == "cpu":
        # the oldest torch we run on does not tell
        has = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
        return "bf16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"
    return "bf16"


def is_slow(precision: str, device: torch.device) -> bool:
    """Whether a run in that precision is slower here than in float32: bf16 without instructions."""
    return precision == "bf16" and precision_on(device, "auto") == "float32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Where a network computes in that precision; weights stay in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device, which goes on with what it does: nobody waits."""
    if device.type == "cuda":
        # from memory that can be paged out, a copy waits for all that was asked of the device
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def place_for(size: int, device: torch.device, asked: str | None = None) -> str:
    """Where frames of so many bytes shall live: the fastest memory half of which is free for them.

    Args:
        size: bytes.
        device: where to compute; on a CPU, device and host are one memory.
        asked: a place to take instead of the one measured.

    Raises:
        DataError: if there is no such place, or the memory asked for has no room.
    """
    if asked is not None and asked not in PLACES:
        raise DataError(f"frames can live in {', '.join(PLACES)}, not {asked!r}")
    room = {"host": free_host_bytes()}
    room["device"] = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else room["host"]
    if asked is None:
        return next((p for p in ("device", "host") if size <= _SHARE * room[p]), "disk")
    if asked != "disk" and size > room[asked]:
        raise DataError(
            f"`place={asked}`: {size / 1e9:.1f} GB of frames do not fit into "
            f"{room[asked] / 1e9:.1f} GB free; leave it out to have the place chosen"
        )
    return asked


def free_host_bytes() -> int:
    """Memory that can be taken without swapping."""
    table = Path("/proc/meminfo")
    if table.is_file():
        for line in table.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # elsewhere what is free is not reported by the standard library: half of all there is
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
