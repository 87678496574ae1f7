from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from noise import images
from torch import Tensor

from uscl_zoo.training.learning import augment
from uscl_zoo.training.learning.recipe import Recipe, replace
from uscl_zoo.training.pretraining.views import make_views, make_views_by_video, mix

RECIPE = Recipe(seed=5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def test_views_are_mixed_with_the_anchor() -> None:
    frames = torch.randn(6, 3, 4, 4)
    lam = torch.tensor([[0.3, 0.6], [1.0, 1.0]])
    view1, view2 = mix(frames, lam)
    assert torch.allclose(view1[0], 0.3 * frames[0] + 0.7 * frames[1])
    assert torch.allclose(view2[0], 0.6 * frames[2] + 0.4 * frames[1])
    assert torch.equal(view1[1], frames[3])
    assert torch.equal(view2[1], frames[5])


def frames_of_three_videos() -> Tensor:
    """In colour; without; and one that has a single coloured pixel in one frame."""
    pixels = images(9)
    pixels[3:9] = pixels[3:9, :, :, :1]
    pixels[7, 10, 20, 2] ^= 1
    return torch.from_numpy(pixels)


CHANGES: list[dict[str, Any]] = [
    {},
    {"mix": "before"},
    {"method": "pair"},
    {"method": "simclr", "classes": ()},
    {"mix": "before", "rotation": 0.3},
    {"gamma": 0.4, "blur": 0.5},
    {"speckle": 0.2, "speckle_rate": 0.5},
    {"saturation": 0.0, "hue": 0.0, "contrast": 0.0},
]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [64, 40])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_cpu_makes_the_views_that_a_gpu_makes(
    change: dict[str, Any], size: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, **change)
    frames, draws = frames_of_three_videos(), augment.draw(recipe, 0, 3, 64)
    lam = torch.tensor([[0.3, 0.3], [0.9, 0.2], [1.0, 0.5]])
    if recipe.method != "uscl":
        lam.fill_(1)
    noise = augment.draw_noise(recipe, 64, torch.device("cpu"))
    ours = make_views_by_video(frames, lam, draws, recipe, layout, size, noise)
    # the whole batch at once, as a GPU does it
    monkeypatch.setattr(augment, "augment", augment.augment_batch)
    theirs = make_views(frames, lam, draws, recipe, size, noise)
    for view, expected in zip(ours, theirs, strict=True):
        assert view.shape == (3, 3, size, size)
        assert view.dtype == torch.float32
        assert view.is_contiguous(memory_format=layout)
        assert torch.allclose(view, expected, atol=1e-3)


def test_without_an_anchor_nothing_is_done_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    planes_of = augment.planes_of

    def noting(frame: Tensor) -> Tensor:
        seen.append(len(seen))
        planes: Tensor = planes_of(frame)
        return planes

    monkeypatch.setattr(augment, "planes_of", noting)
    frames, draws = frames_of_three_videos(), augment.draw(RECIPE, 0, 3, 64)
    lam = torch.tensor([[1.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    make_views_by_video(frames, lam, draws, RECIPE, torch.channels_last)
    assert len(seen) == 2 + 3 + 2


def test_frames_known_to_be_grey_make_the_same_views() -> None:
    recipe = replace(RECIPE, saturation=0.0, speckle=0.2, speckle_rate=1.0, gamma=0.3)
    frames, draws = frames_of_three_videos()[3:6].repeat(3, 1, 1, 1), augment.draw(recipe, 0, 3, 64)
    lam, noise = torch.full((3, 2), 0.4), augment.draw_noise(recipe, 64, torch.device("cpu"))
    three, one = (
        make_views(frames, lam, draws, recipe, 48, noise, grey=grey) for grey in (False, True)
    )
    for view, expected in zip(one, three, strict=True):
        assert torch.allclose(view, expected, atol=1e-4)


def test_a_frame_without_colour_is_one_plane() -> None:
    planes = [augment.planes_of(frame) for frame in frames_of_three_videos()]
    assert [p.shape[1] for p in planes] == [3, 3, 3, 1, 1, 1, 1, 3, 1]
    for one, frame in zip(planes, frames_of_three_videos(), strict=True):
        expected = augment.to_float(frame[None])
        assert torch.equal(one.expand_as(expected), expected)
        assert one.is_contiguous()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_one_plane_is_augmented_as_three_like_it(order: list[int]) -> None:
    plane = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    for flip in (False, True):
        factor = (np.array([1, 1, 1, 0]) + 0.5 * rng.uniform(-1, 1, 4)).tolist()
        drawn = augment.Drawn([3, 5, 50, 57], flip, factor, order)
        three = augment.augment_one(plane.repeat(1, 3, 1, 1), drawn, RECIPE)
        one = augment.augment_one(plane, drawn, RECIPE)
        # torchvision's luma has weights that add up to 0.9999, which saturation brings in and a
        # plane without colour is spared
        assert torch.allclose(one.expand_as(three), three, atol=2e-4)
