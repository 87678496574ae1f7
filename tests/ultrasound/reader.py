"""Read what is named on standard input, and answer each with a line; a script for test_fuzz.py.

    python tests/ultrasound/reader.py BYTES

A line of JSON is a path; the answer, in JSON too, is what came of reading all its frames. The
process is held to so many bytes on top of what it has taken before the first.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import av  # noqa: F401
import numpy as np
import pydicom.pixels  # noqa: F401

from uscl_zoo.errors import UsclError
from uscl_zoo.ultrasound import read
from uscl_zoo.ultrasound.clip import DamageWarning


def look(path: str) -> dict[str, Any]:
    """What reading it comes to: `clip`, `damaged` (a clip, and told so), `refused` or `broken`."""
    frames, told = 0, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            clip = read(path)
            for _, image in clip:
                pixels = np.asarray(image)
                assert image.mode == "RGB"
                assert pixels.dtype == np.uint8
                assert pixels.size
                frames += 1
            outcome = "clip"
            facts = repr(clip.facts)
        except UsclError as error:
            outcome, told, facts = "refused", str(error), ""
        except BaseException as error:
            outcome, told, facts = "broken", f"{type(error).__name__}: {error}", ""
    damage = [str(w.message) for w in caught if issubclass(w.category, DamageWarning)]
    if outcome == "clip" and damage:
        outcome, told = "damaged", damage[0]
    stray = [str(w.message) for w in caught if not issubclass(w.category, DamageWarning)]
    return {"outcome": outcome, "told": told, "frames": frames, "facts": facts, "stray": stray}


def memory(key: str) -> int:
    """Bytes in memory: now (`VmRSS`), or at the most (`VmHWM`)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(key)).split()[1])


def main(limit: str) -> None:
    """Answer until the input ends."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    taken = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(limit),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
        before, began = memory("VmRSS"), time.process_time()
        answer = look(json.loads(line))
        answer["seconds"] = time.process_time() - began
        answer["bytes"] = memory("VmHWM") - before
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
