"""Whatever people hand over is looked at alike by embed, predict and explain, and given back."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest
import torch
from conftest import TINTS, draw_clip, write_clip
from own import run, write_model
from PIL import Image, ImageOps

import uscl_zoo
from uscl_zoo import Embedder, network
from uscl_zoo.data.annotations import read_table
from uscl_zoo.data.inputs import source_of
from uscl_zoo.errors import DataError, MissingDependencyError
from uscl_zoo.ultrasound import read
from uscl_zoo.ultrasound.clip import Clip, DamageWarning
from uscl_zoo.ultrasound.rgb import to_frame

FRAMES = draw_clip(0, 3, TINTS["Cov"])
PLANES = torch.from_numpy(FRAMES[0].copy()).permute(2, 0, 1)

#: One image, in every form there is of it in memory.
ONE: dict[str, Any] = {
    "image": Image.fromarray(FRAMES[0]),
    "array": FRAMES[0],
    "deep": FRAMES[0].astype(np.uint16) * 257,
    "floats": FRAMES[0] / 255,
    "tensor": PLANES,
    "shares": PLANES / 255,
    "clip": Clip.of(FRAMES[:1]),
}
#: One clip of three frames, as it stands in a list.
CLIP: dict[str, Any] = {
    "array": FRAMES,
    "list": list(FRAMES),
    "images": tuple(map(Image.fromarray, FRAMES)),
    "tensor": torch.from_numpy(FRAMES).permute(0, 3, 1, 2),
    "clip": Clip.of(FRAMES),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A still and a clip of three frames, whose first is the still."""
    folder = tmp_path_factory.mktemp("given")
    Image.fromarray(FRAMES[0]).save(folder / "still.png")
    write_clip(folder / "clip_mp4", FRAMES)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model: Path) -> Any:
    return network.load(model, "cpu")


def embed(loaded: Any, given: Any, **options: Any) -> Any:
    return uscl_zoo.embed(loaded.module, given, progress=False, **options)


def predict(loaded: Any, given: Any, **options: Any) -> Any:
    return uscl_zoo.predict(loaded, given, progress=False, **options)


class TestAlike:
    @pytest.mark.parametrize("form", ONE)
    def test_an_image(self, form: str, loaded: Any, folder: Path) -> None:
        of_file = embed(loaded, folder / "still.png")
        found = embed(loaded, ONE[form])
        assert found.features == pytest.approx(of_file.features, abs=1e-5)
        assert (found.sources, found.times.tolist()) == ([Path("image")], [0])
        said = predict(loaded, ONE[form])
        assert said[0].probabilities == pytest.approx(
            predict(loaded, folder / "still.png")[0].probabilities, abs=1e-5
        )

    @pytest.mark.parametrize("form", CLIP)
    def test_a_clip(self, form: str, loaded: Any, folder: Path) -> None:
        of_file = embed(loaded, folder / "clip_mp4", pool="clip")
        found = embed(loaded, [CLIP[form], folder / "clip_mp4"], pool="clip")
        for features in found.features:
            assert features == pytest.approx(of_file.features[0], abs=1e-5)
        assert found.counts.tolist() == [3, 3]
        said = predict(loaded, [CLIP[form]])
        (expected,) = predict(loaded, folder / "clip_mp4")
        assert (len(said.frames), said[0].best) == (3, expected.best)
        assert said[0].probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        # and of an Embedder too
        vector = Embedder(loaded.module)([CLIP[form]])
        assert vector[0] == pytest.approx(of_file.features[0], abs=1e-5)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
    @pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
    def test_turned_as_the_file_says(self, orientation: int, suffix: str, tmp_path: Path) -> None:
        """Pillow leaves pictures as they are stored; a path and what it opens are one image."""
        path = tmp_path / f"still{suffix}"
        exif = Image.Exif()
        exif[0x112] = orientation
        picture = Image.fromarray(FRAMES[0]).convert("RGB").resize((48, 32))
        picture.save(path, exif=exif, lossless=True)
        expected = np.asarray(next(iter(read(path))).image)
        assert expected.shape[:2] == ((32, 48) if orientation < 5 else (48, 32))
        opened = Image.open(path)
        assert np.array_equal(np.asarray(to_frame(opened)), expected)
        clip = source_of(opened, "image")
        assert isinstance(clip, Clip)
        assert np.array_equal(np.asarray(next(iter(clip)).image), expected)
        # who has turned it is not asked again
        turned = ImageOps.exif_transpose(Image.open(path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(np.asarray(to_frame(turned)), expected)
        # a TIFF is turned where it is opened
        if orientation > 1 and suffix != ".tif":
            with pytest.warns(UserWarning, match=f"EXIF orientation {orientation}.* nobody knows"):
                to_frame(Image.open(path).convert("RGB"))

    @pytest.mark.parametrize("form", ["array", "alpha", "tensor", "I", "I;16", "clip"])
    @pytest.mark.parametrize("bits", [8, 12])
    def test_the_upper_bits_may_be_unused(
        self, bits: int, form: str, loaded: Any, tmp_path: Path
    ) -> None:
        """As a scanner stores it, and pydicom's `pixel_array` gives it."""
        stored = FRAMES[0][..., 0].astype(np.uint16) << (bits - 8)
        assert stored.max() >= 2 ** (bits - 1)
        Image.fromarray(stored).save(tmp_path / "still.png")
        forms: dict[str, Any] = {
            "array": stored,
            "alpha": np.stack([stored] * 3 + [np.full_like(stored, 65535)], -1),
            "tensor": torch.from_numpy(stored),
            "I": Image.fromarray(stored.astype(np.int32)),
            "I;16": Image.fromarray(stored),
            "clip": [list(np.stack([stored, stored // 2]))],
        }
        words = f"of 16 bits it uses {bits}, and is shown by these"
        with pytest.warns(DamageWarning, match=words):
            expected = embed(loaded, tmp_path / "still.png").features[0]
        with pytest.warns(DamageWarning, match=words):
            given = embed(loaded, forms[form]).features[0]
        assert given == pytest.approx(expected, abs=1e-5)

    def test_a_clip_with_times_is_sampled_as_its_file_is(self, loaded: Any) -> None:
        clip = Clip.of(FRAMES, np.array([0.0, 0.1, 0.5]))
        assert len(embed(loaded, clip, rate=2)) == 2
        assert len(embed(loaded, clip, rate=10)) == 3

    @pytest.mark.parametrize("form", ["array", "tensor", "image", "path", "clip"])
    def test_an_explanation(self, form: str, loaded: Any, folder: Path) -> None:
        expected = uscl_zoo.explain(loaded.module, folder / "still.png", progress=False)
        given = {"path": folder / "still.png"} | ONE
        found = uscl_zoo.explain(loaded.module, given[form], progress=False)
        assert found.heat == pytest.approx(expected.heat, abs=1e-3)
        assert found.scores == pytest.approx(expected.scores, abs=1e-5)

    def test_several_are_explained_one_by_one(self, loaded: Any, folder: Path) -> None:
        given = [folder / "still.png", FRAMES, FRAMES[0]]
        found = uscl_zoo.explain(loaded.module, given, progress=False)
        assert [len(one) for one in found] == [1, 3, 1]
        assert [one.source.name for one in found] == ["still.png", "image 1", "image 2"]
        assert len(uscl_zoo.explain(loaded.module, FRAMES, progress=False)) == 3

    @pytest.mark.parametrize("made", [{"grey": True}, {"grey": False}])
    def test_a_model_of_grey_sees_grey(
        self, made: dict[str, Any], tmp_path: Path, folder: Path
    ) -> None:
        own = write_model(tmp_path / "model", **made)
        of_file = Embedder(own, device="cpu")(folder / "still.png")
        assert Embedder(own, device="cpu")(FRAMES[0]) == pytest.approx(of_file, abs=1e-5)
        grey = np.asarray(Image.fromarray(FRAMES[0]).convert("L"))
        alike = np.allclose(Embedder(own, device="cpu")(grey), of_file, atol=1e-3)
        assert alike == made["grey"]

    def test_a_model_of_cleaned_frames_cleans_what_is_in_memory(self, truths: Any) -> None:
        frames = np.asarray(truths["curved"].frames[:3])
        network = uscl_zoo.create_model("resnet18_uscl", pretrained=True)
        (clean,) = Embedder(network, clean=True)([frames])
        (plain,) = Embedder(network, clean=False)([frames])
        assert not np.allclose(clean, plain, atol=1e-3)


class TestSubjects:
    @pytest.mark.parametrize("kind", [list, tuple, np.array, pandas.Series, polars.Series])
    def test_one_of_each_thing_given(self, kind: Callable[..., Any], loaded: Any) -> None:
        given = [FRAMES[0], FRAMES, FRAMES[2]]
        found = embed(loaded, given, pool="subject", subjects=kind(["a", "b", "a"]))
        assert found.subjects == ["a", "b"]
        said = predict(loaded, given, subjects=kind(["a", "b", "a"]))
        assert [answer.subject for answer in said.subjects] == ["a", "b"]

    def test_of_a_folder_all_that_is_in_it(self, loaded: Any, folder: Path) -> None:
        found = embed(loaded, [folder, FRAMES[0]], pool="clip", subjects=["a", "b"])
        assert found.subjects == ["a", "a", "b"]

    def test_of_none_there_is_one_each(self, loaded: Any) -> None:
        found = embed(loaded, list(FRAMES), subjects=["a", None, float("nan")])
        assert found.subjects == ["a", "image 1", "image 2"]

    def test_a_name_of_two_files_is_no_subject_of_both(self, loaded: Any, tmp_path: Path) -> None:
        for place, frame in zip("ab", FRAMES, strict=False):
            (tmp_path / place).mkdir()
            Image.fromarray(frame).save(tmp_path / place / "1.png")
        with pytest.raises(DataError, match=r"`subjects` has '1.png', and 2 files are called so"):
            embed(loaded, [tmp_path], subjects={"1.png": "p"})
        paths = [str(tmp_path / place / "1.png") for place in "ab"]
        told = embed(loaded, paths, subjects={paths[0]: "p", "1.png": "q"})
        assert told.subjects == ["p", "q"]

    def test_a_file_has_one_subject(self, loaded: Any, folder: Path) -> None:
        still = folder / "still.png"
        with pytest.raises(DataError, match="`subjects` has two for one file, 'p' and 'q'"):
            embed(loaded, [still, still], subjects=["p", "q"])
        assert embed(loaded, [still, still], subjects=["p", "p"]).subjects == ["p"]

    def test_whom_pandas_does_not_know(self, loaded: Any) -> None:
        subjects = pandas.Series(["p", pandas.NA, "none"], dtype="string")
        told = embed(loaded, [FRAMES[0]] * 3, subjects=subjects).subjects
        assert told is not None and told[0] == "p" and len(set(told)) == 3

    def test_too_few(self, loaded: Any) -> None:
        for call in (embed, predict):
            with pytest.raises(DataError, match="`subjects` names 1, and 3 files or images"):
                call(loaded, list(FRAMES), subjects=["a"])

    def test_a_table_is_of_files(self, loaded: Any, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("file,who\na.png,p\n")
        table = read_table(tmp_path / "t.csv", "file", subject_column="who")
        with pytest.raises(DataError, match="a table is of files"):
            embed(loaded, list(FRAMES), subjects=table)


class TestRefused:
    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (np.zeros((3, 40, 48), np.uint8), r"np\.moveaxis\(array, 0, -1\)"),
            ([np.zeros((3, 40, 48), np.uint8)], r"np\.moveaxis\(array, 0, -1\)"),
            (np.zeros((5, 3, 40, 48), np.uint8), r"np\.moveaxis\(array, 1, -1\)"),
            (torch.zeros(40, 48, 3), r"permute\(2, 0, 1\)"),
            (torch.zeros(5, 40, 48, 3), r"\(N, C, H, W\)"),
            ({"a": 1}, "not a whole dict: give the column"),
            (pandas.DataFrame({"file": ["a.png"]}), "not a whole DataFrame: give the column"),
            (polars.DataFrame({"file": ["a.png"]}), "not a whole DataFrame: give the column"),
            (b"\x89PNG", "a path, a Pillow image, an array or a tensor, not bytes"),
            ([[]], "image: has no frames"),
            (FRAMES[0].astype(np.float64), "image: an image of floats should keep to 0-1"),
            (FRAMES[0].astype(np.int64), "image: an image should be bool, uint8"),
            # what could be channels is no stack of narrow pictures
            (FRAMES[0][..., :2], r"an array \(40, 48, 2\) is no image"),
            ([np.zeros((40, 48, 5), np.uint8)], r"an array \(40, 48, 5\) is no image"),
            (torch.zeros(5, 40, 48), r"\(N, 1, H, W\): `tensor\[:, None\]`"),
            ([torch.zeros(2, 40, 48)], r"\(N, 1, H, W\): `tensor\[:, None\]`"),
            (torch.zeros(4, 40, 48), r"a tensor of an image is \(1, H, W\) or \(3, H, W\)"),
            (torch.zeros(3, 9, 9, device="meta"), "has no values"),
            (torch.zeros(9, 9).to_sparse(), "not dense"),
            (np.ma.masked_greater(FRAMES[0], 100), r"masked pixels.*array\.filled\(0\)"),
            (Image.new("RGB", (0, 5)), "an image of 0 x 5 pixels has none"),
            ("", "a path is empty"),
            ([""], "a path is empty"),
            (pandas.Series([""]), "a path is empty"),
            (memoryview(b"x"), "not memoryview"),
            (pandas.Series([pandas.NA], dtype="string"), "not NAType"),
        ],
    )
    def test_what_is_no_image(self, wrong: Any, words: str, loaded: Any) -> None:
        for call in (embed, predict):
            with pytest.raises(DataError, match=words):
                call(loaded, wrong)

    def test_a_network_that_says_no_number(self, loaded: Any) -> None:
        broken = copy.deepcopy(loaded.module)
        next(broken.parameters()).data[0] = math.nan
        for call in (embed, predict):
            with pytest.raises(DataError, match="gives values that are not finite"):
                call(dataclasses.replace(loaded, module=broken), FRAMES[0])

    @pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
    def test_no_default_of_the_caller_matters(self, kind: torch.dtype, loaded: Any) -> None:
        usual = [call(loaded, FRAMES[0]) for call in (embed, uscl_zoo.explain)]
        torch.set_default_dtype(kind)
        try:
            other = [call(loaded, FRAMES[0]) for call in (embed, uscl_zoo.explain)]
        finally:
            torch.set_default_dtype(torch.float32)
        assert np.array_equal(usual[0].features, other[0].features)
        assert np.array_equal(usual[1].heat, other[1].heat)

    def test_nothing(self, loaded: Any) -> None:
        for call in (embed, predict):
            with pytest.raises(DataError, match="there is nothing to"):
                call(loaded, [])
        with pytest.raises(DataError, match="there is nothing to explain"):
            uscl_zoo.explain(loaded.module, [])

    def test_what_is_in_memory_is_not_gone_on_with(self, loaded: Any, tmp_path: Path) -> None:
        from uscl_zoo.embedding.extraction import embed_to

        with pytest.raises(DataError, match="in memory cannot be gone on with"):
            embed_to(tmp_path / "x.npz", loaded.module, [FRAMES[0]])
        with pytest.raises(DataError, match="in memory cannot be gone on with"):
            predict(loaded, [FRAMES[0]], output=tmp_path / "x.csv")

    def test_one_that_cannot_be_looked_at_is_left_out(self, loaded: Any) -> None:
        found = embed(loaded, [FRAMES[0], FRAMES[0] * 300.0])
        assert (len(found), found.skipped[0][0]) == (1, Path("image 1"))


@pytest.fixture(scope="module")
def embeddings(loaded: Any, folder: Path) -> Any:
    return embed(loaded, folder, subjects=lambda name: name[:2])


@pytest.fixture(scope="module")
def said(loaded: Any, folder: Path) -> Any:
    return predict(loaded, folder, subjects=lambda path: path.name[:2])


class TestTables:
    def test_frames_of_both_libraries_hold_what_the_csv_does(
        self, embeddings: Any, tmp_path: Path
    ) -> None:
        written = pandas.read_csv(embeddings.save(tmp_path / "x.csv"))
        of_pandas, of_polars = embeddings.to_pandas(), embeddings.to_polars()
        assert list(of_pandas) == list(of_polars.columns) == list(written)
        assert of_pandas.shape == of_polars.shape == (4, 5 + 512)
        assert of_pandas["feature_3"].to_numpy() == pytest.approx(embeddings.features[:, 3])
        assert of_pandas["subject"].tolist() == written["subject"].tolist()
        assert of_polars["feature_3"].dtype == polars.Float32
        # of a folder of frames nobody knows the times
        assert of_pandas["time_s"].isna().tolist() == written["time_s"].isna().tolist()
        assert of_polars["time_s"].is_null().sum() == 3

    def test_answers(self, said: Any, tmp_path: Path) -> None:
        written = pandas.read_csv(said.save(tmp_path / "x.csv"))
        for table, unit in ((said.frames, "frame"), (said, "clip"), (said.subjects, "subject")):
            expected = written[written["unit"] == unit]
            found = table.to_pandas()
            assert set(found) <= set(expected)
            assert found["best"].tolist() == expected["best"].tolist()
            for column in ("p_Cov", "agreement", "distance"):
                assert found[column].to_numpy() == pytest.approx(expected[column], rel=1e-3)
            assert table.to_polars()["frames"].to_list() == expected["frames"].tolist()
        assert said.to_pandas()["answer"].isna().tolist() == [a.answer is None for a in said]

    def test_whatever_takes_arrow_takes_them(self, embeddings: Any, said: Any) -> None:
        assert pyarrow.table(embeddings).num_rows == len(embeddings)
        assert polars.DataFrame(said).equals(said.to_polars())
        assert pyarrow.table(said.frames).num_rows == len(said.frames)

    @pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
    def test_without_the_library(
        self, library: str, said: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        wanted = {"pyarrow": "__arrow_c_stream__"}.get(library, f"to_{library}")
        with pytest.raises(MissingDependencyError, match=f"needs {library}; .*uscl-zoo.tables"):
            getattr(said, wanted)()

    def test_they_print_short(self, embeddings: Any, said: Any, loaded: Any) -> None:
        assert repr(embeddings) == "Embeddings(4 × 512, of 2 sources)"
        assert repr(said).startswith("Predictions(2 files: ")
        shown = uscl_zoo.explain(loaded.module, FRAMES[0], progress=False)
        assert repr(shown).startswith("Explanation(image: ")
        assert repr(loaded).startswith("Network(")
        for one in (embeddings, said, shown, said[0], loaded):
            assert len(repr(one)) < 200

    def test_a_notebook_shows_the_picture(self, loaded: Any) -> None:
        shown = uscl_zoo.explain(loaded.module, FRAMES[0], progress=False)
        assert shown._repr_png_().startswith(b"\x89PNG")
        assert shown.picture.size[0] > 500


class TestFoldersOfClips:
    def test_who_was_not_named_is_said(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Numbered stills of several patients would be one answer, in silence."""
        for label in "ab":
            (tmp_path / "data" / label).mkdir(parents=True)
            for number in range(3):
                Image.new("L", (48, 40), 9 * number).save(
                    tmp_path / "data" / label / f"{number}.png"
                )
        model = write_model(tmp_path / "model")
        data, first = tmp_path / "data", tmp_path / "data" / "a"
        told = f"2 folders of numbered images are taken for one clip each, the first: {first}; if"
        with pytest.warns(DamageWarning, match=re.escape(told)):
            embed(network.load(model, "cpu"), data)
        assert run("predict", model, data, "--device", "cpu") == 0
        assert (
            f"{told} they are stills of several, give the files: {first}/*"
            in capsys.readouterr().err
        )
        # nor where they are named, or files
        named = [first, data / "b"]
        for given in (named, [path for one in named for path in one.iterdir()]):
            assert run("predict", model, *given, "--device", "cpu") == 0
            assert "numbered" not in capsys.readouterr().err
