"""Who is in a video and what it shows: from a table, or from the name of the file."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from uscl_zoo.data.annotations import Annotation, SubjectPattern, Table, known, read_table, unify
from uscl_zoo.data.splits import hold_out
from uscl_zoo.errors import DataError

__all__ = [
    "LABEL_SCHEMES",
    "US4_CLASSES",
    "Annotation",
    "SubjectPattern",
    "Table",
    "from_name",
    "hold_out",
    "read_table",
    "unify",
]

#: Joint classes of US-4 by file prefix, as the authors' code numbers them (METHOD: 12 classes).
US4_CLASSES: dict[str, str] = {
    **{name: name for name in ("Rb1", "Rb2", "Rb3", "Rb4", "Rb5", "F0", "F1", "F2", "F3", "F4")},
    **dict.fromkeys(("Reg", "Ali"), "normal lung"),
    **dict.fromkeys(("Cov", "Bli", "Ple", "Oth"), "diseased lung"),
}

#: Labels that the sub-datasets of US-4 have of their own: the prefixes as they are (the paper's
#: table of US-4, and the file names that the authors' code reads).
US4_SUBSETS: dict[str, tuple[str, ...]] = {
    # lung, 22 videos: clips of Butterfly Network's COVID-19 gallery
    "us4-butterfly": ("Reg", "Cov"),
    # liver, 63 videos: the MICCAI Challenge on Liver Ultrasound Tracking
    "us4-clust": ("Rb1", "Rb2", "Rb3", "Rb4", "Rb5"),
    # liver, 296 videos: the paper's Liver Fibrosis, not released
    "us4-fibrosis": ("F0", "F1", "F2", "F3", "F4"),
    # lung, 670 videos: the paper's COVID19-LUSMS, not released
    "us4-lusms": ("Ali", "Bli", "Ple", "Oth"),
}

#: Labels by prefix; with None a video is kept without a label.
LABEL_SCHEMES: dict[str, dict[str, str | None]] = {
    "us4": {**US4_CLASSES},
    **{
        scheme: {prefix: prefix if prefix in own else None for prefix in US4_CLASSES}
        for scheme, own in US4_SUBSETS.items()
    },
}

_PREFIX = re.compile(r"([A-Za-z]+\d*)[-_ ]")


def from_name(
    name: str, scheme: str | None = None, subject_pattern: str | SubjectPattern | None = None
) -> Annotation:
    """Read label and subject off a name such as `Cov-Atlas-Day+1.gif` or `Rb2_x_mp4`.

    Args:
        name: path of the video within its folder.
        scheme: a key of `LABEL_SCHEMES`: `us4` folds the prefixes of US-4 into its twelve joint
            classes; `us4-butterfly`, `us4-clust`, `us4-fibrosis` and `us4-lusms` keep those of one
            sub-dataset and leave videos of the others unlabelled. None keeps every prefix.
        subject_pattern: see `SubjectPattern`; without it every video is its own subject, which is
            safe only if no subject has two.

    Raises:
        DataError: for a prefix that the scheme does not know, or a name without the pattern.
    """
    stem = PurePosixPath(name).name
    match = _PREFIX.match(stem)
    label: str | None = match.group(1) if match else None
    if label is not None and known(label) is None:
        label = None
    elif scheme is not None:
        meanings = {key.casefold(): value for key, value in LABEL_SCHEMES[scheme].items()}
        if label is None or label.casefold() not in meanings:
            raise DataError(
                f"{name}: the prefix {label!r} is none of {scheme}'s: "
                f"{', '.join(LABEL_SCHEMES[scheme])}"
            )
        label = meanings[label.casefold()]
    if isinstance(subject_pattern, str):
        subject_pattern = SubjectPattern(subject_pattern)
    subject = None if subject_pattern is None else subject_pattern(name)
    return Annotation(subject=subject or name, label=label)
