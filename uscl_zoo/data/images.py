"""Images and clips of one's own as a Dataset of torch, split by subject."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from ..errors import DataError
from ..files import expanded
from ..network import RATE
from ..ultrasound.reading import DamageWarning
from ..ultrasound.sources import Look
from .annotations import unify, words_of
from .collection import collect
from .splits import draw_folds, hold_out
from .tables import Tabular


class Images(Dataset[tuple[Any, int]], Tabular):
    """Labelled images and clips, an item a file: what `transform` makes of it, and its class.

    `Images("breast")` takes a folder with a folder per class; `Images("scans", "scans.csv",
    file_column="file", label_column="finding", subject_column="patient")` the files that the rows
    of a CSV name, or of a data frame of pandas or Polars. What is found, by which names, what is
    left out and whose a file is, is as for `uscl finetune` and `uscl evaluate`, and so are the
    splits: no subject is on both sides.

    Args:
        folder: of the images, videos and DICOM files.
        table: of them, if the folders are no classes.
        file_column: of the table: names, stems or paths.
        label_column: of the table: the class.
        subject_column: of the table: the patient.
        subject_pattern: regular expression whose group is the patient, see
            `annotations.SubjectPattern`.
        classes: the only ones to take; None for all.
        exclude: patterns of file names to leave out.
        every_row: whether a row without a file is an error.
        transform: makes an input of a Pillow image in RGB, as `create_transform(model)` does; None
            leaves the image as it is.
        clip: of a clip the frame in its `middle`; one at `random`, drawn by torch, another each
            time; or `all`, stacked (T, C, H, W) where they are tensors, and of a still its one.
        rate: frames a second at which a clip is looked at.
        clean: whether frames are cut to the beam and cleaned of what is drawn in it.

    Attributes:
        files: the file or folder of each item.
        names: what each is called within the folder.
        labels: the class of each, in words.
        subjects: whom each shows; each file its own where nobody knows.
        classes: in the order of the targets.
        targets: int64 (N,), the class of each, by number.
        knows_subjects: whether subjects are known.

    Raises:
        UnreadableError: if there is no such folder, or the table cannot be read.
        DataError: if there are not two classes, a column is missing, or rows and files do not meet.
    """

    def __init__(
        self,
        folder: str | Path,
        table: Any = None,
        *,
        file_column: str = "Filename",
        label_column: str | None = None,
        subject_column: str | None = None,
        subject_pattern: str | None = None,
        classes: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        every_row: bool = False,
        transform: Callable[[Image.Image], Any] | None = None,
        clip: Literal["middle", "random", "all"] = "middle",
        rate: float = RATE,
        clean: bool = False,
    ) -> None:
        if clip not in ("middle", "random", "all"):
            raise DataError(f"clip should be 'middle', 'random' or 'all', not {clip!r}")
        self.folder = expanded(folder)
        self.transform, self.clip = transform, clip
        self.look = Look(rate, clean)
        collection = collect(
            self.folder,
            table,
            file_column=file_column,
            label_column=label_column,
            subject_column=subject_column,
            subject_pattern=subject_pattern,
            classes=None if classes is None else words_of(classes),
            exclude=words_of(exclude),
            every_row=every_row,
        )
        for note in collection.notes:
            warnings.warn(note, DamageWarning, stacklevel=2)
        rows = unify(collection.annotations)
        self.names = list(collection.sources)
        self.files = [collection.sources[name] for name in self.names]
        self.labels = [rows[name].label or "" for name in self.names]
        self.subjects = [rows[name].subject for name in self.names]
        self.classes = tuple(sorted(set(self.labels)))
        self.knows_subjects = collection.subjects
        self._annotations = rows

    @property
    def targets(self) -> NDArray[np.int64]:
        """The class of each item, by its number: int64 (N,)."""
        return np.array([self.classes.index(label) for label in self.labels], np.int64)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """What the transform makes of an item, and the number of its class.

        Raises:
            UnreadableError: if the file cannot be decoded.
            MissingDependencyError: if the library for its kind is not installed.
        """
        place = operator.index(index)
        return self._input(self.files[place]), self.classes.index(self.labels[place])

    def _input(self, file: Path) -> Any:
        with closing(self.look.at(file)) as opened:
            frames = [frame.image for frame in opened]
        if not frames:
            raise DataError(f"{file}: has no frames")
        made = self.transform or (lambda image: image)
        if self.clip == "all":
            inputs: list[Any] = [made(frame) for frame in frames]
            return torch.stack(inputs) if isinstance(inputs[0], torch.Tensor) else inputs
        middle = self.clip == "middle"
        place = len(frames) // 2 if middle else int(torch.randint(len(frames), ()))
        return made(frames[place])

    def split(self, holdout: float = 0.2, seed: int = 0) -> tuple[Images, Images]:
        """Two parts that share no subject: to learn from, and to be judged on.

        The subjects held out are those of `uscl finetune` with the same share and seed, a share of
        each class.

        Args:
            holdout: share of the subjects of each class.
            seed: of the draw.

        Raises:
            DataError: if the share is none, or no class has two subjects.
        """
        if not 0 < holdout < 1:
            raise DataError(f"holdout should be a share between 0 and 1, not {holdout}")
        own = {name: self._annotations[name] for name in self.names}
        held = hold_out(own, holdout, seed)
        if not held:
            raise DataError(f"{self.folder}: no class has two subjects, of whom one is held out")
        judged = [subject in held for subject in self.subjects]
        return self.subset(~np.array(judged)), self.subset(np.array(judged))

    def folds(self, count: int = 5, seed: int = 0) -> list[tuple[Images, Images]]:
        """The folds of `uscl evaluate`: of each the part to learn from, and the one that is judged.

        Args:
            count: of folds.
            seed: of the draw.

        Raises:
            DataError: if a class has fewer subjects than there are folds.
            MissingDependencyError: if scikit-learn is not installed.
        """
        fold = draw_folds(self.labels, self.subjects, count, seed, str(self.folder))
        return [(self.subset(fold != one), self.subset(fold == one)) for one in range(count)]

    def subset(self, chosen: Any) -> Images:
        """Some of the items, with the same classes.

        Args:
            chosen: their numbers, or a bool each.
        """
        places = np.arange(len(self))[np.asarray(chosen)]
        other = copy.copy(self)
        for name in ("names", "files", "labels", "subjects"):
            setattr(other, name, [getattr(self, name)[place] for place in places])
        return other

    def with_transform(self, transform: Callable[[Image.Image], Any] | None) -> Images:
        """The same items with another transform, e.g. without the augmentation of training."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def columns(self) -> dict[str, Any]:
        """File, label and subject of each item."""
        files = [str(file) for file in self.files]
        return {"file": files, "label": self.labels, "subject": self.subjects}

    def __repr__(self) -> str:
        whom = f"{len(set(self.subjects))} subjects" if self.knows_subjects else "subjects unknown"
        return f"Images({len(self)} files, {len(self.classes)} classes, {whom})"
