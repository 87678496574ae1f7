from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from uscl_zoo.training.pretraining import curves

LOSS = {"loss": 4.0, "contrastive": 4.0, "labelled": 1.0, "learning_rate": 3e-4}
WATCHED = {
    "held-out contrastive": 4.0,
    "alignment": 0.1,
    "held-out alignment": 0.2,
    "uniformity": -2.0,
    "held-out uniformity": -1.5,
    "kNN, held-out frames": 0.6,
    "kNN, held-out videos": 0.7,
}


def panels(folder: Path, *measured: dict[str, float]) -> list[str]:
    """Draw a history and tell the titles of its panels with how many curves are in each."""
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    init = Figure.__init__

    def remember(self: Figure, *args: object, **kwargs: object) -> None:
        drawn.append(self)
        init(self, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "__init__", remember)
        curves.draw([{"epoch": i + 1.0} | row for i, row in enumerate(measured)], folder / "c.png")
    with Image.open(folder / "c.png") as image:
        assert image.format == "PNG"
    assert [path.name for path in folder.iterdir()] == ["c.png"]
    (figure,) = drawn
    return [f"{axes.get_title()}: {len(axes.lines)}" for axes in figure.axes if axes.lines]


def test_a_panel_a_quantity(tmp_path: Path) -> None:
    assert panels(tmp_path, LOSS, LOSS | WATCHED, LOSS) == [
        "NT-Xent: 2",
        "Cross-entropy of labelled views: 1",
        "Learning rate: 1",
        "Alignment (0 is a point a video): 2",
        "Uniformity (less is more even): 2",
        "kNN, balanced accuracy, held-out: 2",
    ]


def test_what_was_not_measured_takes_no_room(tmp_path: Path) -> None:
    found = panels(tmp_path, LOSS | {"alignment": 0.1})
    assert [name.split(" (")[0] for name in found] == [
        "NT-Xent: 1",
        "Cross-entropy of labelled views: 1",
        "Learning rate: 1",
        "Alignment",
    ]
