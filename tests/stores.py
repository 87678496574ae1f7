"""Stores of small frames, prepared in this process, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import SUBJECT

from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import Report, prepare

#: A call that takes its time: folder of videos, output, pattern of subjects, workers.
SLOWLY = """
import sys, time
from pathlib import Path
from uscl_zoo.training.preparing import parts
from uscl_zoo.training.preparing.labels import from_name
from uscl_zoo.training.preparing.prepare import prepare
decode = parts._decode
def slowly(*arguments):
    time.sleep(0.05)
    return decode(*arguments)
parts._decode = slowly
prepare([Path(sys.argv[1])], Path(sys.argv[2]),
    lambda name: from_name(name, subject_pattern=sys.argv[3]),
    sampling=parts.Sampling(size=32), workers=int(sys.argv[4]), progress=False)
"""

#: What a store consists of.
FILES = ("frames.npy", "manifest.csv", "skipped.csv", "store.json")


def run(videos: Path | list[Path], output: Path, **changes: Any) -> Report:
    """Prepare at 32x32 in this process, labels and subjects from names."""
    settings: dict[str, Any] = {
        "annotate": lambda name: from_name(name, subject_pattern=SUBJECT),
        "sampling": Sampling(size=32),
        "workers": 1,
        "progress": False,
    }
    settings |= changes
    annotate = settings.pop("annotate")
    report: Report = prepare(
        videos if isinstance(videos, list) else [videos], output, annotate, **settings
    )
    return report


def content(store: Path) -> dict[str, bytes]:
    assert sorted(p.name for p in store.iterdir()) == sorted(FILES)
    return {name: (store / name).read_bytes() for name in FILES}
