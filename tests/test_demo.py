from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from uscl_zoo import demo, drawing
from uscl_zoo.errors import DataError, UnknownModelError, UnreadableError, WeightsNotFoundError
from uscl_zoo.zoo.card import Card

NAME = "resnet18_uscl.trial"
RED = (176, 58, 46)


@pytest.fixture
def zoo(installed: Callable[..., Card], home: Path) -> Path:
    """The weights file of the one checkpoint there is."""
    return home / ".uscl_zoo" / installed(NAME).weights.file


def clip(path: Path, frames: int) -> Path:
    images = [Image.new("L", (90, 60), 25 * i) for i in range(frames)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=200)
    return path


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        found = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert found is not None
    return {colour for _, colour in found}  # type: ignore[misc]


@pytest.mark.slow
def test_the_phantom(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = demo.run(NAME, output=tmp_path / "new" / "demo.png")
    with Image.open(output) as picture:
        assert picture.size == (2400, 1600)
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=1)
    assert RED in colours(output)  # the tag that says so
    printed = capsys.readouterr().out
    assert f"{NAME}: named folder, {zoo}" in printed
    assert "synthetic lung phantom: 8 frames" in printed
    assert [entry.name for entry in output.parent.iterdir()] == ["demo.png"]


def test_a_clip_of_the_users(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = demo.run(NAME, clip(tmp_path / "clip.gif", 8), tmp_path / "demo.png")
    assert RED not in colours(output)
    assert "clip.gif: 8 frames" in capsys.readouterr().out


def test_a_folder_of_frames_without_times(zoo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(4):
        Image.new("L", (50, 80), 60 * index).save(folder / f"f{index}.png")
    assert demo.run(NAME, folder, tmp_path / "demo.png").is_file()


def test_frames_that_are_all_alike() -> None:
    clip = demo._Clip("still", False, lambda: iter(()), [0, 1, 2], [Image.new("RGB", (9, 9))] * 3)
    alike = np.array([[1.0, 0, 0]] * 3)
    assert demo._draw(NAME, clip, alike, alike).size == (2400, 1600)


def test_mistakes_leave_nothing_behind(zoo: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "demo.png"
    with pytest.raises(DataError, match="has 2 frames; the picture needs three"):
        demo.run(NAME, clip(tmp_path / "short.gif", 2), output)
    with pytest.raises(UnreadableError, match=r"none\.mp4: no such file"):
        demo.run(NAME, tmp_path / "none.mp4", output)
    with pytest.raises(UnknownModelError):
        demo.run("resnet18_uscl.yours", None, output)
    with pytest.raises(WeightsNotFoundError):
        demo.run("resnet18_uscl.us4", None, output)
    with pytest.raises(DataError, match=r"should end in \.png"):
        demo.run(NAME, None, output.with_suffix(".pdf"))
    assert not output.parent.exists()


def test_similarity() -> None:
    features = np.array([[2.0, 0], [0, 3], [5, 5], [-1, 0]])
    half = np.sqrt(0.5)
    expected = [[1, 0, half, -1], [0, 1, half, 0], [half, half, 1, -half], [-1, 0, -half, 1]]
    assert np.allclose(demo.similarity(features), expected)


def test_principal_components() -> None:
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.standard_normal((20, 2)))
    plane = rng.standard_normal((50, 2)) * (3, 1)
    points, shares = demo.principal_components(plane @ axes.T + 7)
    assert shares.sum() == pytest.approx(1)
    assert 0.8 < shares[0] < 0.98
    # distances survive, whatever the signs of the axes
    assert np.linalg.norm(points[0] - points[1]) == pytest.approx(
        np.linalg.norm(plane[0] - plane[1])
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3.93, ["0", "1", "2", "3"]),
        (0.936, 1, ["0.94", "0.96", "0.98", "1.00"]),
        (-0.3, 1, ["0.0", "0.5", "1.0"]),
        (0, 59, ["0", "20", "40"]),
        (0.999, 1, ["0.9990", "0.9992", "0.9994", "0.9996", "0.9998", "1.0000"]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[str]) -> None:
    ticks = drawing.ticks(low, high, 5)
    assert [text for _, text in ticks] == expected
    assert all(float(text) == pytest.approx(value) for value, text in ticks)


def test_colours_run_through_those_given() -> None:
    stops = np.linspace(0, 1, len(drawing.VIRIDIS))[None]
    image = np.asarray(drawing.coloured(stops, drawing.VIRIDIS))
    assert image[0].tolist() == [list(colour) for colour in drawing.VIRIDIS]
    # perceptually uniform: lightness rises by even steps
    light = image[0].astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > 0).all()
