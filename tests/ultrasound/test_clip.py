import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from uscl_zoo.errors import DataError
from uscl_zoo.ultrasound import Clip, Facts, Frame, read

Frames = NDArray[Any]


def noise(count: int = 3) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 8, 3), np.uint8)


class TestOf:
    def test_what_goes_in_comes_out(self) -> None:
        frames, times = noise(), np.array([0, 0.5, 0.7])
        facts = Facts(transducer="LINEAR")
        clip = Clip.of(frames, times, Path("a.mp4"), facts)
        assert np.array_equal(clip.frames, frames)
        assert clip.times.tolist() == times.tolist()
        assert clip.times.dtype == np.float64
        assert (len(clip), clip.source, clip.facts) == (3, Path("a.mp4"), facts)
        for _ in range(2):
            told = list(clip)
            assert [frame.time for frame in told] == [0, 0.5, 0.7]
            assert np.array_equal([np.asarray(frame.image) for frame in told], frames)

    def test_times_that_are_unknown(self) -> None:
        assert Clip.of(noise(1)).times.tolist() == [0]
        assert np.isnan(Clip.of(noise(2)).times).tolist() == [True, True]

    @pytest.mark.parametrize(
        "frames", [noise()[0], noise()[..., :1], noise().astype(float), noise()[:0]]
    )
    def test_frames_of_another_kind(self, frames: Frames) -> None:
        with pytest.raises(DataError, match=r"should be uint8 \(T, H, W, 3\), not"):
            Clip.of(frames)

    def test_times_of_another_length(self) -> None:
        with pytest.raises(DataError, match="3 frames should have as many times"):
            Clip.of(noise(), np.zeros(2))


class TestDecoding:
    def test_anew_each_time_and_once_for_the_array(self) -> None:
        begun = []

        def decode() -> Iterator[Frame]:
            begun.append(1)
            yield from (Frame(float(i), Image.fromarray(frame)) for i, frame in enumerate(noise()))

        clip = Clip(decode)
        assert not begun
        assert [frame.time for frame in clip] == [frame.time for frame in clip] == [0, 1, 2]
        assert len(begun) == 2
        assert np.array_equal(clip.frames, noise())
        assert clip.frames is clip.frames
        assert (len(clip), clip.times.tolist(), len(begun)) == (3, [0, 1, 2], 3)

    def test_frames_of_several_sizes_make_no_array(self, tmp_path: Path) -> None:
        pages = [Image.new("L", (8, 6)), Image.new("L", (9, 6))]
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
        clip = read(tmp_path / "a.tif")
        assert [image.size for _, image in clip] == [(8, 6), (9, 6)]
        with pytest.raises(DataError, match=r"a\.tif: frames of 8 x 6 and 9 x 6 pixels"):
            _ = clip.frames

    def test_goes_to_other_processes(self, tmp_path: Path) -> None:
        Image.fromarray(noise()[0]).save(tmp_path / "a.png")
        clip = pickle.loads(pickle.dumps(read(tmp_path / "a.png")))
        assert np.array_equal(clip.frames, noise()[:1])
