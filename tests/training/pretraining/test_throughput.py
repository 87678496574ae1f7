from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from uscl_zoo.cli import main
from uscl_zoo.training.learning.execution import Execution
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.preparing.labels import US4_CLASSES
from uscl_zoo.training.preparing.synthetic import us4_shaped
from uscl_zoo.training.pretraining.throughput import Timing, measure

CPU = Execution(torch.device("cpu"))
RECIPE = Recipe(batch_size=4, epochs=2, projection_dim=16, precision="float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """A fiftieth of US-4, small."""
    made: FrameStore = us4_shaped(tmp_path_factory.mktemp("us4"), size=32, share=0.02)
    return made


def test_the_synthetic_store_has_the_counts_of_us4(tmp_path: Path) -> None:
    store = us4_shaped(tmp_path / "store", size=8)
    assert len(store.videos) == 1051
    assert len(store.frames) == sum(v.count for v in store.videos) == 23231
    assert set(store.labels) == set(US4_CLASSES.values())
    assert len(store.select("train")) == 841  # 27 batches an epoch, 8,100 in all
    for split in ("train", "heldout"):
        assert {video.label for video in store.select(split)} == set(US4_CLASSES.values())
    prefixes = Counter(video.name.split("-")[0] for video in store.videos)
    assert prefixes["Rb1"] == 13
    assert store.frames.std() > 10


def test_the_synthetic_store_may_be_grey(tmp_path: Path) -> None:
    store = us4_shaped(tmp_path / "store", size=8, share=0.02, grey=True)
    assert store.description["grey"] is True
    assert (store.frames == store.frames[..., :1]).all()
    assert store.frames.std() > 10
    coloured = us4_shaped(tmp_path / "other", size=8, share=0.02)
    assert coloured.digest != store.digest
    assert not (coloured.frames == coloured.frames[..., :1]).all()


def test_a_report_says_what_was_measured(store: FrameStore) -> None:
    report = measure(RECIPE, store, CPU, repeats=3, per_image=True, workers=0, progress=False)
    # 17 videos: three batches of four and one of five
    assert len(store.select("train")) % 4 == 1
    batches = len(store.select("train")) // 4
    assert report.steps == 2 * batches
    ((name, (odd, count)),) = report.kinds.items()
    assert (name, count, len(odd.seconds)) == ("5 videos, views of 32²", 2, 3)
    expected = (report.steps - 2) * report.loop.median + 2 * odd.median
    assert report.seconds == pytest.approx(expected)
    assert len(report.loop.seconds) == len(report.bare.seconds) == 3
    assert list(report.stages) == ["frames", "views", "forward", "backward", "update"]
    names = ("tables of an epoch", "weights are finite", "looking", "checkpoint")
    assert list(report.beside) == [*names, "picture of the curves"]
    assert min(report.beside.values()) > 0
    assert report.looks == 1  # the last epoch is looked at whatever the recipe says
    told = str(report)
    assert "resnet18, 32², float32, channels last, not compiled, no graph, fused Adam" in told
    rate = re.search(r"step of the loop .* ([\d.]+) images/s", told)
    assert rate is not None
    assert float(rate[1]) == pytest.approx(8 / report.loop.median, rel=0.01)
    assert report.images is not None
    assert f"{report.images.median / report.loop.median:.2f} times as fast" in told
    # 32² pixels cost a 49th of 224²
    assert report.cost == pytest.approx(8 * 10.65e9 * (32 / 224) ** 2)


def test_every_size_of_the_views_counts(tmp_path: Path) -> None:
    store = us4_shaped(tmp_path / "store", size=48, share=0.02)
    recipe = replace(RECIPE, epochs=4, sizes=((32, 0.5), (48, 1.0)))
    report = measure(recipe, store, CPU, repeats=2, progress=False)
    batches = len(store.select("train")) // 4
    assert {name: count for name, (_, count) in report.kinds.items()} == {
        "4 videos, views of 32²": 2 * (batches - 1),
        "5 videos, views of 32²": 2,
        "5 videos, views of 48²": 2,
    }
    assert report.steps == 4 * batches


def test_timing_has_the_middle_and_its_spread() -> None:
    timing = Timing((0.001, 0.003, 0.002, 0.010))
    assert timing.median == 0.0025
    assert str(timing).split() == ["2.5", "ms", "[1.8,", "4.8]"]


def test_the_command(store: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(store.folder), "--device", "cpu", "--repeats", "2", "--channels-first"]
    words += ["--trace", str(tmp_path / "trace")]
    settings = ["batch_size=4", "classes=null"]
    main(["throughput", "--recipe", "us4_resnet18", *words, *settings])
    told = capsys.readouterr().out
    assert "channels first" in told
    assert "yardstick" not in told
    assert re.search(r"convolution +[\d.]+ ms +[\d.]+% +[\d.]+ kernels  most: aten::", told)
    assert {path.name for path in (tmp_path / "trace").iterdir()} == {"trace.json", "kernels.csv"}


@pytest.mark.parametrize("words", [[], ["--data", "x", "--synthetic", "us4"]])
def test_the_command_takes_one_store(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["throughput", *words])
    assert caught.value.code == 2
    assert "give either --data STORE or --synthetic us4" in capsys.readouterr().err
