import numpy as np
import pytest
from numpy.typing import NDArray

from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound.phantom import lung_clip


@pytest.fixture(scope="module")
def clip() -> NDArray[np.uint8]:
    return lung_clip(seconds=2, rate=5, seed=3)[0]


def central_beam(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean over a narrow strip below the middle of the probe, by depth."""
    return np.asarray(frame[:, 230:250, 0].mean(axis=1), np.float64)


def test_shape_type_and_times() -> None:
    frames, times = lung_clip(seconds=1, rate=4, size=(96, 128))
    assert frames.shape == (4, 96, 128, 3)
    assert frames.dtype == np.uint8
    assert times.tolist() == [0, 0.25, 0.5, 0.75]


def test_a_seed_is_a_clip() -> None:
    def draw(seed: int) -> NDArray[np.uint8]:
        return lung_clip(seconds=0.4, rate=5, size=(96, 96), seed=seed)[0]

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


def test_synthetic_is_written_outside_the_beam(clip: NDArray[np.uint8]) -> None:
    label = clip[:, :40, :120, 0]
    assert label[0].max() > 100
    # the writing stands still on black, which a beam would not
    assert (label == label[0]).all()
    assert (label[0] == 0).mean() > 0.5


def test_breathes(clip: NDArray[np.uint8]) -> None:
    # the third A-line moves three times as far as the pleura
    start, breathed_in = (280 + central_beam(clip[i])[280:330].argmax() for i in (0, 4))
    assert 3 <= breathed_in - start <= 12


def test_a_lines_lie_at_multiples_of_the_pleural_depth(clip: NDArray[np.uint8]) -> None:
    beam = central_beam(clip[0])
    face = int(np.flatnonzero(beam > 60)[0])
    pleura = face + 60 + int(beam[face + 60 : face + 130].argmax())
    for order in (2, 3):
        expected = face + order * (pleura - face)
        found = expected - 15 + int(beam[expected - 15 : expected + 15].argmax())
        assert abs(found - expected) <= 4
        background = np.median(beam[expected - 25 : expected + 25])
        assert beam[found] > background + 25


def test_b_lines_take_over_from_a_lines(clip: NDArray[np.uint8]) -> None:
    # between the A-lines and deep in the lung: healthy lung is dark there, rays are not
    deep = clip[:, 395:425, 150:330, 0].astype(float)
    brightness = deep.mean(axis=(1, 2))
    across = deep.mean(axis=1).std(axis=1)
    assert brightness[-1] > 1.3 * brightness[:4].mean()
    assert across[-1] > 2 * across[:4].mean()


def test_speckle_is_rayleigh() -> None:
    from uscl_zoo.ultrasound.phantom import _speckle

    field = np.abs(_speckle(np.random.default_rng(0), (560, 224), axial=0.4, lateral=0.5))
    # mean over standard deviation of a Rayleigh variable
    assert field.mean() / field.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"rate": -1},
        {"seconds": 0.01},
        {"seconds": float("nan")},
        {"size": (16, 480)},
    ],
)
def test_refuses_what_cannot_be_drawn(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError):
        lung_clip(**wrong)  # type: ignore[arg-type]
