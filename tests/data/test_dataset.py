"""Images of one's own as a Dataset: whose they are, what an item is, and how it is parted."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import torch
from conftest import TINTS, draw_clip, write_clip
from PIL import Image
from torch.utils.data import DataLoader

from uscl_zoo.data import Images
from uscl_zoo.errors import DataError, UnreadableError
from uscl_zoo.training.downstream import datasets
from uscl_zoo.training.downstream.collection import collect
from uscl_zoo.training.downstream.folds import draw_folds
from uscl_zoo.training.preparing.parts import Sampling
from uscl_zoo.training.preparing.prepare import prepare
from uscl_zoo.ultrasound.transforms import FrameTransform

TRANSFORM = FrameTransform((32, 32), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 stills of 12 subjects, of three classes, and a table of them."""
    folder = tmp_path_factory.mktemp("cohort")
    lines = ["file,finding,patient,age"]
    for number in range(36):
        subject, label = number // 3, list(TINTS)[number // 3 % 3]
        name = f"{label}-s{subject:02}-{number}.png"
        Image.fromarray(draw_clip(number, 1, TINTS[label])[0]).save(folder / name)
        lines.append(f"{name},{label},s{subject:02},{number}")
    (folder / "table.csv").write_text("\n".join(lines))
    return folder


def of_table(cohort: Path, table: Any = None, **options: Any) -> Images:
    return Images(
        cohort,
        cohort / "table.csv" if table is None else table,
        file_column="file",
        label_column="finding",
        subject_column="patient",
        **options,
    )


class TestWhatIsFound:
    def test_a_folder_per_class(self, classes: Path) -> None:
        with pytest.warns(UserWarning, match="no subjects are known"):
            images = Images(classes)
        assert repr(images) == "Images(27 files, 3 classes, subjects unknown)"
        assert images.classes == tuple(sorted(TINTS))
        image, target = images[0]
        assert (image.size, images.classes[target]) == ((48, 40), images.labels[0])

    @pytest.mark.parametrize("library", [pandas, polars])
    def test_a_data_frame_is_as_its_csv(self, library: Any, cohort: Path) -> None:
        expected = of_table(cohort)
        found = of_table(cohort, library.read_csv(cohort / "table.csv"))
        assert repr(found) == "Images(36 files, 3 classes, 12 subjects)"
        for name in ("files", "labels", "subjects", "classes"):
            assert getattr(found, name) == getattr(expected, name)
        assert found.to_pandas().equals(expected.to_pandas())

    def test_values_of_a_data_frame_are_read_as_text(self, cohort: Path) -> None:
        frame = pandas.read_csv(cohort / "table.csv")
        frame["finding"] = pandas.Categorical([i % 2 for i in range(36)])
        frame["patient"] = [1.0, None, float("nan"), 2.0, *[7.0] * 32]
        frame["file"] = [cohort / name for name in frame["file"]]
        images = of_table(cohort, frame)
        assert images.classes == ("0", "1")
        by_file = dict(zip(images.files, images.subjects, strict=True))
        first = [by_file[path] for path in frame["file"][:4]]
        # whoever is unknown is nobody else
        assert (first[0], first[3]) == ("1", "2")
        assert len({*first, "7"}) == 5

    def test_a_table_elsewhere_names_files_by_its_own_folder_or_ours(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        text = (cohort / "table.csv").read_text()
        (tmp_path / "names.csv").write_text(text)
        assert len(of_table(cohort, tmp_path / "names.csv")) == 36
        (tmp_path / "link").symlink_to(cohort)
        paths = text.replace("\n", "\nlink/")
        (tmp_path / "paths.csv").write_text(paths)
        assert len(of_table(tmp_path / "link", str(tmp_path / "paths.csv"))) == 36

    @pytest.mark.parametrize(
        ("call", "error", "words"),
        [
            (lambda folder: Images(folder / "none"), UnreadableError, "no such file"),
            (lambda folder: Images(folder), DataError, "less than two classes"),
            (lambda folder: Images(folder, folder / "table.csv"), DataError, "`label_column`"),
            (lambda folder: of_table(folder, [1, 2]), DataError, "a table is the path of a CSV or"),
            (
                lambda folder: of_table(folder, pandas.DataFrame({"a": []})),
                DataError,
                "no column 'file'; it has 'a'",
            ),
            (lambda folder: of_table(folder, clip="last"), DataError, "'middle', 'random' or"),
            (lambda folder: of_table(folder).split(1.0), DataError, "a share between 0 and 1"),
            (lambda folder: of_table(folder).folds(1), DataError, "at least 2"),
            (lambda folder: of_table(folder).folds(5), DataError, "too few for 5 folds"),
        ],
    )
    def test_what_is_wrong(
        self, call: Callable[[Path], Any], error: type[Exception], words: str, cohort: Path
    ) -> None:
        with pytest.raises(error, match=words):
            call(cohort)


class TestSplits:
    @pytest.fixture
    def store(self, cohort: Path, tmp_path: Path) -> Any:
        """As `uscl finetune` and `uscl evaluate` decode it."""
        columns: Any = {
            "file_column": "file",
            "label_column": "finding",
            "subject_column": "patient",
        }
        found = collect(cohort / "table.csv", **columns)
        return prepare(
            found.sources,
            tmp_path / "store",
            found.annotations.get,
            sampling=Sampling(size=32),
            holdout=0.3,
            seed=4,
            workers=1,
            progress=False,
        ).store

    def test_no_subject_is_on_both_sides_and_they_are_those_of_finetune(
        self, cohort: Path, store: Any
    ) -> None:
        train, test = of_table(cohort).split(0.3, seed=4)
        assert not set(train.subjects) & set(test.subjects)
        assert set(test.subjects) == {v.subject for v in store.select("heldout")}
        assert len(train) + len(test) == 36
        # and once more, for a validation
        smaller, validation = train.split(0.3)
        assert not set(smaller.subjects) & set(validation.subjects) | set(test.subjects) & set(
            smaller.subjects + validation.subjects
        )
        assert train.classes == test.classes == smaller.classes

    def test_the_folds_are_those_of_evaluate(self, cohort: Path, store: Any) -> None:
        asked: Any = {"file_column": "file", "label_column": "finding", "subject_column": "patient"}
        assert datasets.load("csv", cohort / "table.csv", **asked).folds is None
        expected = draw_folds(store, 3, seed=1)
        for number, (train, test) in enumerate(of_table(cohort).folds(3, seed=1)):
            assert set(test.subjects) == expected.held_out(number)
            assert not set(train.subjects) & set(test.subjects)
            assert len(train) + len(test) == 36

    def test_some(self, cohort: Path) -> None:
        images = of_table(cohort)
        some = images.subset([3, 1])
        assert some.files == [images.files[3], images.files[1]]
        assert some.targets.tolist() == images.targets[[3, 1]].tolist()
        assert len(images.subset(images.targets == 0)) == 12


class TestItems:
    @pytest.fixture
    def clips(self, tmp_path: Path) -> Path:
        for label in ("a", "b"):
            write_clip(tmp_path / label / "x_mp4", draw_clip(ord(label), 5, (90, 90, 90)))
            write_clip(tmp_path / label / "y_mp4", draw_clip(ord(label) + 9, 4, (90, 90, 90)))
            Image.new("L", (20, 20)).save(tmp_path / label / "still.png")
        return tmp_path

    @pytest.mark.filterwarnings("ignore:no subjects are known")
    def test_of_a_clip(self, clips: Path) -> None:
        middle = Images(clips, transform=np.asarray)
        place = next(i for i, file in enumerate(middle.files) if file.name == "x_mp4")
        frames = draw_clip(ord("a"), 5, (90, 90, 90))
        assert np.array_equal(middle[place][0], frames[2])
        drawn = Images(clips, transform=np.asarray, clip="random")
        torch.manual_seed(0)
        first = [drawn[place][0] for _ in range(8)]
        assert len({frame.tobytes() for frame in first}) > 2
        torch.manual_seed(0)
        assert all(np.array_equal(drawn[place][0], frame) for frame in first)
        whole = Images(clips, transform=TRANSFORM, clip="all")
        assert whole[place][0].shape == (5, 3, 32, 32)
        still = next(i for i, file in enumerate(whole.files) if file.name == "still.png")
        assert whole[still][0].shape == (1, 3, 32, 32)

    def test_one_that_cannot_be_read_says_which(self, cohort: Path, tmp_path: Path) -> None:
        for label in ("a", "b"):
            (tmp_path / label).mkdir()
            (tmp_path / label / "x.png").write_bytes(b"no image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            images = Images(tmp_path, transform=TRANSFORM)
        with pytest.raises(UnreadableError, match=r"a/x\.png"):
            images[0]
        with pytest.raises(UnreadableError, match=r"x\.png"):
            next(iter(DataLoader(images, num_workers=1)))


def test_it_pickles(cohort: Path) -> None:
    images = of_table(cohort, transform=TRANSFORM)
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again[5][0], images[5][0])
