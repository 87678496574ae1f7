"""Subjects to hold out, and folds: no subject is on both sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..checks import real, seed_of, whole
from ..errors import DataError, MissingDependencyError
from .annotations import Annotation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def hold_out(annotations: Mapping[str, Annotation], share: float, seed: int) -> set[str]:
    """Choose the subjects to hold out, a share of each class, drawn by a seed.

    A subject whose videos carry several labels counts for its most frequent one. A class with a
    single subject keeps it for training.

    Returns:
        The held-out subjects; at least one of every class that has two.
    """
    import numpy as np  # here: `uscl prepare --help` names the schemes of labels without it

    share, seed = real("holdout", share, 0, 1, ends=True), seed_of(seed)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row in annotations.values():
        labels[row.subject][row.label or ""] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for subject in sorted(labels):
        most = min(labels[subject].items(), key=lambda item: (-item[1], item[0]))[0]
        strata[most].append(subject)
    held: set[str] = set()
    for i, label in enumerate(sorted(strata)):
        subjects = strata[label]
        draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, i]))
        wanted = min(max(round(share * len(subjects)), 1), len(subjects) - 1) if share > 0 else 0
        held.update(subjects[j] for j in draw.permutation(len(subjects))[:wanted])
    return held


def draw_folds(
    labels: Sequence[str], subjects: Sequence[str], count: int = 5, seed: int = 0, where: str = ""
) -> NDArray[np.int64]:
    """Folds of about equal classes, no subject in two (scikit-learn's StratifiedGroupKFold).

    Args:
        labels: of N files or videos, of two classes at least.
        subjects: whom each shows.
        count: of folds.
        seed: of the draw.
        where: the data, for messages.

    Returns:
        The fold each is judged in, (N,), from 0.

    Raises:
        DataError: if a class has fewer subjects than there are folds, or is lacking without one.
        MissingDependencyError: if scikit-learn is not installed.
    """
    import numpy as np

    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise MissingDependencyError(
            "folds need scikit-learn; install it by: pip install 'uscl-zoo[training]'"
        ) from error
    count, seed = whole("folds", count, 2), seed_of(seed)
    classes = sorted(set(labels))
    begin = f"{where}: " if where else ""
    if len(classes) < 2:
        raise DataError(
            f"{begin}folds of a classification need two classes, not {', '.join(classes) or 'none'}"
        )
    pairs = set(zip(labels, subjects, strict=True))
    for label in classes:
        own = sum(other == label for other, _ in pairs)
        if own < count:
            raise DataError(
                f"{begin}{label} has {own} subjects, too few for {count} folds; ask for fewer "
                "`folds`, or name the `classes` to keep"
            )
    target = [classes.index(label) for label in labels]
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    fold = np.zeros(len(target), np.int64)
    for number, (_, test) in enumerate(splitter.split(target, target, subjects)):
        fold[test] = number
    check_folds(labels, subjects, fold, where)
    return fold


def check_folds(
    labels: Sequence[str], subjects: Sequence[str], fold: NDArray[np.int64], where: str = ""
) -> None:
    """Refuse folds that no figure could be computed from.

    Raises:
        DataError: if a subject is in two, or without one of them a class is lacking.
    """
    import numpy as np

    begin = f"{where}: " if where else ""
    seen: dict[str, int] = {}
    for subject, number in zip(subjects, fold.tolist(), strict=True):
        if seen.setdefault(subject, number) != number:
            raise DataError(f"{begin}subject {subject} is in two folds")
    of_fold = np.array(labels, object)
    for number in range(int(fold.max()) + 1):
        absent = sorted(set(labels) - set(of_fold[fold != number]))
        if absent:
            raise DataError(
                f"{begin}without fold {number + 1} there is no {', '.join(absent)} to learn from"
            )
