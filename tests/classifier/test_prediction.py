"""Answers: by frame, clip and subject, and when there is none."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINTS, draw_clip, write_clip
from own import write_model
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

import uscl_zoo
from uscl_zoo.answers import Answers, Statistics
from uscl_zoo.classifier import prediction
from uscl_zoo.classifier.prediction import Predictions, answer, predict
from uscl_zoo.cli import main
from uscl_zoo.embedding import running
from uscl_zoo.errors import CardError, DataError, DigestError, UnreadableError
from uscl_zoo.network import Network, load

ANSWERS = Answers(("a", "b"), 1.0, 0.7, 2.0, 0.99, 50, 3.0, "0" * 64)


@pytest.fixture(scope="module")
def classifier(tuned: Path) -> Network:
    return load(tuned, "cpu")


def ask(classifier: Network, *paths: Path, **how: object) -> Predictions:
    return predict(classifier, paths, progress=False, **how)  # type: ignore[arg-type]


def some_answers(
    probabilities: list[list[float]], distances: list[float], owner: list[int]
) -> tuple[list[prediction.Answer], ...]:
    return answer(
        ANSWERS,
        np.array(probabilities),
        np.array(distances),
        owner=np.array(owner),
        number=np.arange(len(owner)),
        time=np.zeros(len(owner)),
        sources=[Path("0.png"), Path("1.mp4"), Path("2.mp4")],
        subjects=["p", "p", "q"],
    )


def test_frames_clips_and_subjects_are_means() -> None:
    chances = [[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.6, 0.4]]
    frames, clips, subjects = some_answers(chances, [1.0] * 4, [0, 1, 1, 1])
    assert [frame.answer for frame in frames] == ["a", "a", "b", None]
    assert [clip.source for clip in clips] == [Path("0.png"), Path("1.mp4")]
    assert clips[1].probabilities == pytest.approx({"a": 1.6 / 3, "b": 1.4 / 3})
    assert clips[1].frames == 3
    assert clips[1].agreement == pytest.approx(2 / 3)
    # each clip counts once, however long it is
    (person,) = subjects
    assert person.probabilities["a"] == pytest.approx((0.9 + 1.6 / 3) / 2)
    assert (person.subject, person.frames, person.agreement) == ("p", 4, 0.75)


def test_it_cannot_tell_below_the_confidence() -> None:
    _, clips, _ = some_answers([[0.69, 0.31], [0.7, 0.3]], [1.0, 1.0], [0, 1])
    assert [clip.answer for clip in clips] == [None, "a"]
    assert [clip.best for clip in clips] == ["a", "a"]
    assert str(clips[0]) == "0.png: cannot tell (a 0.69)"


def test_it_cannot_tell_of_another_kind_of_image() -> None:
    frames, clips, _ = some_answers([[0.99, 0.01]] * 4, [2.1, 1, 3, 3], [0, 1, 1, 1])
    assert [frame.unlike for frame in frames] == [True, False, True, True]
    assert [clip.unlike for clip in clips] == [True, True]
    assert [clip.answer for clip in clips] == [None, None]
    assert "unlike the training images" in str(clips[0])


def test_the_distance_is_mahalanobis_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    known = rng.normal(5, (1, 5), (4000, 2)).astype(np.float32)
    statistics = Statistics.of(known)
    assert np.sqrt((statistics.distance(known) ** 2).mean()) == pytest.approx(1, abs=0.02)
    away = statistics.distance(np.array([[5 + 3, 5], [5, 5 + 15]], np.float32))
    assert away == pytest.approx([3 / np.sqrt(2)] * 2, rel=0.1)
    # a number that never varies makes no infinity
    constant = Statistics.of(np.ones((10, 2), np.float32))
    assert constant.distance(np.ones((1, 2), np.float32)) == pytest.approx([0])


def house() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


def text() -> Image.Image:
    page = Image.new("RGB", (400, 400), "white")
    for line in range(14):
        place = 10, 10 + 27 * line
        words, font = "findings, impression and plan", ImageFont.load_default(20)
        ImageDraw.Draw(page).text(place, words, fill="black", font=font)
    return page


def test_other_kinds_of_image_are_flagged(classifier: Network, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    others = {
        "house": house(),
        "grey house": house().convert("L"),
        "noise": Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)),
        "black": Image.new("L", (64, 64)),
        "white": Image.new("L", (64, 64), 255),
        "text": text(),
    }
    for name, image in others.items():
        image.save(tmp_path / f"{name}.png")
    clips = ask(classifier, *(tmp_path / f"{name}.png" for name in others)).clips
    assert [clip.source for clip in clips if clip.source and not clip.unlike] == []
    assert all(clip.answer is None for clip in clips)


def test_images_like_the_training_ones_are_not_flagged(classifier: Network, tmp_path: Path) -> None:
    for i, (label, tint) in enumerate(TINTS.items()):
        write_clip(tmp_path / f"{label}-s{i}", draw_clip(500 + i, 4, tint))
    result = ask(classifier, tmp_path, subjects=r"-(s\d)")
    assert [clip.answer for clip in result.clips] == list(TINTS)
    assert [clip.frames for clip in result.clips] == [4, 4, 4]
    assert [person.subject for person in result.subjects] == ["s0", "s1", "s2"]
    assert len(result.frames) == 12
    none = ask(classifier, tmp_path, confidence=1.0)
    assert [clip.answer for clip in none.clips] == [None] * 3
    assert not none.subjects


def test_a_pattern_is_searched_as_in_every_command(classifier: Network, tmp_path: Path) -> None:
    """Within the folder given, whose own path may name another; or in a file's path as given."""
    data = tmp_path / "P0_export"
    for name in ("P1_x", "P2_x"):
        write_clip(data / name, draw_clip(1, 2, (90, 90, 90)))
    whole = ask(classifier, data, subjects=r"(P\d)_")
    assert [person.subject for person in whole.subjects] == ["P1", "P2"]
    files = ask(classifier, *sorted(data.rglob("*.*")), subjects=r"(P\d)_")
    assert [person.subject for person in files.subjects] == ["P0"]
    with pytest.raises(DataError, match=r"P1_x: the subject pattern '\(Q\)' finds no group in it"):
        ask(classifier, data, subjects="(Q)")
    nobody = ask(classifier, data, subjects=lambda path: "NaN")
    assert not nobody.subjects


def test_subjects_by_name_or_function(classifier: Network, classes: Path) -> None:
    files = [classes / "Cov" / "1.png", classes / "Reg" / "2.png"]
    named = ask(classifier, *files, subjects={"1.png": "p", str(files[1]): "q"})
    assert [person.subject for person in named.subjects] == ["p", "q"]
    called = ask(classifier, *files, subjects=lambda path: path.parent.name)
    assert [person.subject for person in called.subjects] == ["Cov", "Reg"]


def test_what_cannot_be_read_is_skipped_and_named(
    classifier: Network, classes: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = ask(classifier, tmp_path / "bad.png", classes / "Cov" / "1.png")
    assert len(result.clips) == 1
    assert result.skipped[0][0] == tmp_path / "bad.png"
    with pytest.raises(DataError, match="none of 1 files can be read"):
        ask(classifier, tmp_path / "bad.png")
    with pytest.raises(UnreadableError, match="no such file"):
        ask(classifier, tmp_path / "absent.png")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"subjects": "("}, "no regular expression"),
        ({"subjects": "s"}, "has no group"),
        ({"confidence": 1.2}, "should be a number between 0 and 1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_arguments(
    how: dict[str, object], told: str, classifier: Network, classes: Path
) -> None:
    with pytest.raises(DataError, match=told):
        ask(classifier, classes / "Cov" / "1.png", **how)


# ---------------------------------------------------------------------------------- what is written


def test_tables_hold_every_answer(classifier: Network, classes: Path, tmp_path: Path) -> None:
    files = [classes / "Cov" / "1.png", classes / "Cov" / "2.png"]
    result = ask(classifier, *files, subjects=lambda path: "p")
    with result.save(tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["unit"] for row in rows] == ["frame", "frame", "clip", "clip", "subject"]
    for row in rows:
        assert sum(float(row[f"p_{label}"]) for label in TINTS) == pytest.approx(1, abs=1e-5)
    content = json.loads(result.save(tmp_path / "out.json").read_text())
    assert content["how"]["classes"] == list(TINTS)
    assert [clip["source"] for clip in content["clips"]] == [str(file) for file in files]
    assert content["subjects"][0]["probabilities"].keys() == TINTS.keys()
    with pytest.raises(DataError, match=r"\.csv or \.json"):
        result.save(tmp_path / "out.txt")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_into_a_file_it_goes_on_where_it_was(
    suffix: str, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, files = write_model(tmp_path / "model"), sorted((classes / "Cov").iterdir())
    wanted = predict(model, files, device="cpu", progress=False).save(tmp_path / f"whole{suffix}")
    output, once = tmp_path / f"out{suffix}", running.run
    asked: list[int] = []

    def cut_short(network: Network, sources: Any, *given: Any, **options: Any) -> Iterator[Any]:
        asked.append(len(sources))
        for number, row in enumerate(once(network, sources, *given, **options)):
            if len(asked) == 1 and number == 4:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(running, "run", cut_short)
    with pytest.raises(KeyboardInterrupt):
        predict(model, files, output=output, device="cpu", progress=False)
    assert not output.exists()
    # another confidence is another word on the same numbers
    found = predict(model, files, confidence=1, output=output, device="cpu", progress=False)
    assert (asked, len(found)) == ([9, 5], 9)
    assert {clip.answer for clip in found} == {None}
    assert not output.with_name(f"{output.name}.parts").exists()
    predict(model, files, output=output, device="cpu", progress=False)
    assert output.read_bytes() == wanted.read_bytes()


def test_on_the_command_line(
    tuned: Path, classes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house().save(tmp_path / "house.png")
    given = [str(tuned), str(classes / "Cov" / "1.png"), str(tmp_path / "house.png")]
    main(["predict", *given, "--device", "cpu"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{classes / 'Cov' / '1.png'}: Cov ")
    assert second == f"{tmp_path / 'house.png'}: cannot tell: unlike the training images"
    main(["predict", *given, "-o", str(tmp_path / "out.json"), "--device", "cpu"])
    assert "2 files, 1 answered, 1 unlike" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(tmp_path), str(tmp_path / "house.png")])
    assert stopped.value.code == 2
    assert "holds no model" in capsys.readouterr().err


# ----------------------------------------------------------------------------------- damaged models


@pytest.mark.parametrize("file", ["model.safetensors", "statistics.safetensors"])
def test_a_changed_file_is_not_loaded(file: str, tuned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(DigestError, match=file):
        load(folder, "cpu")


def test_answers_of_another_model_are_refused(tuned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned, tmp_path / "model"))
    path = folder / "predict.json"
    for text in (path.read_text().replace("Cov", "Flu"), "{", "[]"):
        path.write_text(text)
        with pytest.raises(CardError, match=r"predict\.json"):
            load(folder, "cpu")


def test_a_path_with_any_name_loads(tuned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tuned, tmp_path / "my model #2?"))
    assert load(folder, "cpu").classes == tuple(TINTS)


# ---------------------------------------------------------------------------------------- the names


def test_both_are_names_of_the_package() -> None:
    assert uscl_zoo.predict is prediction.predict
    assert callable(uscl_zoo.finetune)
    with pytest.raises(AttributeError, match="no attribute 'fine_tune'"):
        uscl_zoo.fine_tune  # type: ignore[attr-defined] # noqa: B018


def test_importing_the_package_imports_neither() -> None:
    code = (
        "import sys, uscl_zoo\n"
        "print([m for m in sys.modules if 'prediction' in m or 'sklearn' in m or 'finetune' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
