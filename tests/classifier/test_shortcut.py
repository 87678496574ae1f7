import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from timm.models import save_for_hf
from torch import Tensor, nn

from uscl_zoo.cli import main
from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound.phantom import lung_clip

pytest.importorskip("uscl_zoo.ultrasound.beam")

from uscl_zoo.classifier import shortcuts
from uscl_zoo.classifier.blanking import blank
from uscl_zoo.classifier.shortcuts import Shortcuts, shortcut
from uscl_zoo.network import UnverifiedWarning
from uscl_zoo.ultrasound.sources import Look, state_of


class Corner(nn.Module):
    """A network that goes by the brightness of a part of the picture, and nothing else."""

    num_features, num_classes = 1, 2

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "input_size": (3, 160, 160),
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
            "label_names": ["plain", "marked"],
        }
        self.where = rows, columns
        self.gain = nn.Parameter(torch.tensor(40.0))

    def forward(self, inputs: Tensor) -> Tensor:
        marked = self.gain * inputs[:, :, self.where[0], self.where[1]].mean((1, 2, 3)) - 1
        return torch.stack([-marked, marked], dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as it is drawn, with a word in its corner, and without that word."""
    folder = tmp_path_factory.mktemp("data")
    frames, _ = lung_clip(seconds=4, rate=1, size=(240, 240))
    bare = frames.copy()
    bare[:40, :100] = 0
    for name, some in (("marked", frames), ("bare", bare)):
        first, *rest = (Image.fromarray(frame) for frame in some)
        first.save(folder / f"{name}.gif", save_all=True, append_images=rest, duration=1000)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def found(data: Path) -> Shortcuts:
    return shortcut(Corner(slice(0, 20), slice(0, 60)), data, progress=False)


def test_a_network_that_goes_by_the_overlay_is_found_out(found: Shortcuts) -> None:
    worst, best = found.cases
    assert worst.source.name == "marked.gif"
    assert worst.changed
    assert worst.moved > 0.3
    assert worst.outside == pytest.approx(worst.moved, abs=0.05)
    assert worst.before[1] > 0.5 > worst.after[1]
    assert best.source.name == "bare.gif"
    assert best.moved < 0.01
    assert not best.changed
    assert [source.name for source, _ in found.skipped] == ["broken.png"]
    assert ("another class is most probable", "1 of 2") in found.summary()


def test_a_network_that_goes_by_ultrasound_is_not(data: Path) -> None:
    result = shortcut(Corner(slice(60, 100), slice(60, 100)), data, progress=False)
    assert max(case.moved for case in result.cases) < 0.02


def test_what_is_left_stays_where_it_was(data: Path) -> None:
    less = blank(data / "marked.gif", Look(1.0))
    assert less.beam == "curved"
    assert less.outside.shape == less.all.shape == less.frames.shape
    assert not less.all[:, :20, :60].any()
    middle = np.s_[:, 100:140, 100:140]
    assert np.array_equal(less.outside[middle], less.frames[middle])
    same = (less.all == less.frames).all(axis=3)
    assert same.mean() > 0.2
    assert less.blanked == pytest.approx(1 - (less.outside.any(axis=(0, 3))).mean(), abs=0.1)


def test_calipers_in_the_beam(tmp_path: Path) -> None:
    frames, _ = lung_clip(seconds=1, rate=1, size=(240, 240))
    picture = Image.fromarray(frames[0])
    pen = ImageDraw.Draw(picture)
    for x, y in ((100, 110), (140, 150)):
        pen.line((x - 6, y, x + 6, y), fill=(255, 255, 0), width=2)
        pen.line((x, y - 6, x, y + 6), fill=(255, 255, 0), width=2)
    picture.save(tmp_path / "calipers.png")
    around = Corner(slice(68, 79), slice(62, 72))
    around.gain.data.fill_(4.0)
    (case,) = shortcut(around, tmp_path, progress=False).cases
    assert case.removed > 0
    assert case.outside < 0.01 < case.moved


def test_without_a_classifier(data: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    result = shortcut(network, data, progress=False)
    assert result.classes == ()
    assert result.unit == "cosine distance"
    assert result.cases[0].before == ()
    assert 0 <= result.cases[1].moved <= result.cases[0].moved
    from uscl_zoo.embedding.extraction import embed

    one, other = embed(network, [data / "marked.gif", data / "bare.gif"], "clip", 1.0).features
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert result.typical == pytest.approx(1 - cosine, abs=1e-5)


def test_a_report(found: Shortcuts, tmp_path: Path) -> None:
    path = found.save(tmp_path / "new" / "report.html")
    page = path.read_text(encoding="utf-8")
    assert page.index("marked.gif") < page.index("bare.gif")
    assert page.count("data:image/jpeg;base64,") == 4
    # nothing is fetched
    assert "http" not in page
    assert "marked 0." in page
    assert "broken.png" in page
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["source"]).name for row in rows] == ["marked.gif", "bare.gif"]
    assert rows[0]["class_before"] == "marked"
    assert rows[0]["class_after"] == "plain"
    assert float(rows[0]["moved"]) == pytest.approx(found.cases[0].moved, rel=1e-5)
    assert float(rows[0]["p_plain_before"]) == pytest.approx(found.cases[0].before[0], rel=1e-5)
    with pytest.raises(DataError, match=r"should end in \.html"):
        found.save(tmp_path / "report.pdf")


def test_names_are_escaped(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "<b>&.png"
    Image.open(data / "marked.gif").convert("RGB").save(path)
    report = tmp_path / "r.html"
    shortcut(Corner(slice(0, 20), slice(0, 60)), path, report, progress=False)
    page = report.read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;.png" in page


def test_continues_after_an_interruption(
    data: Path, found: Shortcuts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Corner(slice(0, 20), slice(0, 60))
    output = tmp_path / "r.html"
    judge, judged = shortcuts._judge, []

    def once(scorer: Any, source: Path, look: Look) -> Any:
        judged.append(source.name)
        if judged.count(source.name) == 1 and len(judged) == 3:
            raise KeyboardInterrupt
        return judge(scorer, source, look)

    monkeypatch.setattr(shortcuts, "_judge", once)
    with pytest.raises(KeyboardInterrupt):
        shortcut(network, data, output, progress=False)
    assert judged == ["bare.gif", "broken.png", "marked.gif"]
    assert not output.exists()
    journal = tmp_path / "r.html.parts" / "cases.jsonl"
    # as if the machine had stopped in the middle of a line
    journal.write_text(journal.read_text() + '{"key": "x", "sou')
    judged[:] = ["", "", ""]
    result = shortcut(network, data, output, progress=False)
    assert judged[3:] == ["broken.png", "marked.gif"]
    for again, case in zip(result.cases, found.cases, strict=True):
        assert again.source == case.source
        assert again.moved == pytest.approx(case.moved, abs=1e-6)
        assert again.before == pytest.approx(case.before, abs=1e-6)
    assert sorted(entry.name for entry in output.parent.iterdir()) == ["r.csv", "r.html"]


def test_another_network_begins_anew(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    journal = shortcuts._Journal(tmp_path / "r.html.parts", json.dumps(["another"]))
    state = state_of(data / "bare.gif")
    case = shortcuts.Case(data / "bare.gif", 1, "linear", 1, 0, 0, 0.9, 0.9, (1, 0), (0, 1))
    journal.add(data / "bare.gif", state, case, np.ones(2))
    journal.close()
    result = shortcut(Corner(slice(0, 20), slice(0, 60)), data, output, progress=False)
    assert result.cases[-1].moved < 0.01


def test_nothing_to_look_at(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 1 sources.*broken\.png"):
        shortcut(Corner(slice(0, 9), slice(0, 9)), data / "broken.png", progress=False)
    with pytest.raises(DataError, match=r"should end in \.html"):
        shortcut("resnet18_uscl", data, tmp_path / "r.pdf")


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet", num_classes=0), str(tmp_path / "model"))
    output = tmp_path / "report" / "r.html"
    with pytest.warns(UnverifiedWarning, match="no card names their digest"):
        main(["shortcut", str(tmp_path / "model"), str(data), "-o", str(output)])
    told = capsys.readouterr()
    assert "cosine distance, median" in told.out
    assert "between two files, mean" in told.out
    assert "broken.png" in told.err
    assert sorted(entry.name for entry in output.parent.iterdir()) == ["r.csv", "r.html"]
