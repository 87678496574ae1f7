from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from noise import images, theirs_jitter
from PIL import Image
from scipy.stats import kstest  # type: ignore[import-untyped]
from torch import Tensor

from uscl_zoo.training.learning import augment
from uscl_zoo.training.learning.jitter import OPERATIONS
from uscl_zoo.training.learning.recipe import Recipe, replace

RECIPE = Recipe(seed=5)


BOXES = [
    (0, 0, 64, 64),
    (0, 0, 52, 60),
    (3, 7, 57, 51),
    (12, 0, 52, 64),
    (9, 5, 55, 59),
    (5, 5, 8, 3),
]


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_pillows_within_a_grey_level(flip: bool) -> None:
    frames = images(len(BOXES))
    ours = augment.resized_crop(
        augment.to_float(torch.from_numpy(frames)),
        torch.tensor(BOXES, dtype=torch.float32),
        torch.full((len(BOXES),), flip),
    )
    assert ours.dtype == torch.float32
    for frame, (top, left, height, width), ours_one in zip(frames, BOXES, ours, strict=True):
        crop = Image.fromarray(frame).crop((left, top, left + width, top + height))
        theirs = crop.resize((64, 64), Image.Resampling.BILINEAR)
        if flip:
            theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = ours_one.permute(1, 2, 0).numpy() * 255
        assert np.abs(pixels - np.asarray(theirs, np.float32)).max() <= 1


def test_each_image_has_its_own_flip() -> None:
    frames = augment.to_float(torch.from_numpy(images(2)))
    box = torch.tensor([[0.0, 0, 64, 64]] * 2)
    ours = augment.resized_crop(frames, box, torch.tensor([False, True]))
    assert torch.allclose(ours[0], frames[0], atol=1e-6)
    assert torch.allclose(ours[1], frames[1].flip(2), atol=1e-6)


def test_normalised_as_torchvision_does() -> None:
    frames = augment.to_float(torch.from_numpy(images(2)))
    recipe = replace(RECIPE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = TF.normalize(frames, recipe.mean, recipe.std)
    assert torch.allclose(augment.normalise(frames, recipe), expected, atol=1e-6)


def test_the_whole_is_its_parts() -> None:
    frames = torch.from_numpy(images(6))
    draws = augment.draw(RECIPE, 0, 2, 64)
    whole = augment.augment(augment.to_float(frames), draws, RECIPE)
    assert whole.shape == (6, 3, 64, 64)
    for i, (top, left, height, width) in enumerate(draws.box.int().tolist()):
        image = Image.fromarray(frames[i].numpy()).crop((left, top, left + width, top + height))
        theirs = TF.to_tensor(image.resize((64, 64), Image.Resampling.BILINEAR))
        if draws.flip[i]:
            theirs = theirs.flip(2)
        order = tuple(draws.order[i].tolist())
        theirs = TF.normalize(
            theirs_jitter(theirs, draws.factor[i].tolist(), order), RECIPE.mean, RECIPE.std
        )
        # a grey level of the crop, amplified by the jitter and divided by the deviation
        assert (whole[i] - theirs).abs().mean() < 2 / 255 / 0.25
        one = augment.to_float(frames[i : i + 1])
        alone = augment.augment(one, draws[torch.tensor([i])], RECIPE)
        assert torch.allclose(alone[0], whole[i], atol=1e-5)


@pytest.mark.parametrize("size", [32, 57])
def test_one_after_another_is_the_whole_batch_at_once(size: int) -> None:
    """What a CPU does, and what a GPU does, on the same draws."""
    frames = augment.to_float(torch.from_numpy(images(24, side=64)[:, :size, :size]))
    draws = augment.draw(RECIPE, 0, 8, size)
    one_by_one = augment.augment(frames, draws, RECIPE)
    at_once = augment.augment_batch(frames, draws, RECIPE)
    assert torch.allclose(one_by_one, at_once, atol=1e-3)


# ------------------------------------------------------------------------- ultrasound's own


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [17, 32, 48])
def test_shrunk_crops_are_pillows_within_a_grey_level(size: int, flip: bool) -> None:
    frames = images(len(BOXES))
    ours = augment.shrunk_crop(
        augment.to_float(torch.from_numpy(frames)),
        torch.tensor(BOXES, dtype=torch.float32),
        torch.full((len(BOXES),), flip),
        size,
    )
    for frame, (top, left, height, width), ours_one in zip(frames, BOXES, ours, strict=True):
        crop = Image.fromarray(frame).crop((left, top, left + width, top + height))
        theirs = crop.resize((size, size), Image.Resampling.BILINEAR)
        if flip:
            theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = ours_one.permute(1, 2, 0).numpy() * 255
        assert np.abs(pixels - np.asarray(theirs, np.float32)).max() <= 1.01


def test_shrinking_is_filtered() -> None:
    # lines of one pixel become grey, not black or white as of every third pixel
    stripes = torch.zeros(1, 1, 63, 63)
    stripes[..., ::2] = 1
    assert augment.shrink(stripes, 63) is stripes
    small = augment.shrink(stripes, 21)
    assert small.shape == (1, 1, 21, 21)
    assert small.sub(0.5).abs().max() < 0.2


def test_a_turn_by_a_right_angle_is_exact() -> None:
    frames = augment.to_float(torch.from_numpy(images(3)))
    quarter, half, none = augment.rotate(frames, torch.tensor([np.pi / 2, np.pi, 0.0]).float())
    assert torch.allclose(quarter, frames[0].rot90(1, (1, 2)), atol=1e-4)
    assert torch.allclose(half, frames[1].rot90(2, (1, 2)), atol=1e-4)
    assert torch.allclose(none, frames[2], atol=1e-4)


def plain(**changes: Any) -> Recipe:
    """A recipe that does nothing to an image but what is named."""
    nothing = dict.fromkeys(("flip", "brightness", "contrast", "saturation", "hue"), 0.0)
    whole: dict[str, Any] = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    kept: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return replace(RECIPE, **nothing | whole | kept | changes)


def made(recipe: Recipe, frames: Tensor, epoch: int = 0) -> tuple[augment.Draws, Tensor]:
    draws = augment.draw(recipe, epoch, len(frames) // 3, frames.shape[-1])
    noise = augment.draw_noise(recipe, frames.shape[-1], torch.device("cpu"))
    return draws, augment.augment(frames, draws, recipe, None, noise)


def test_a_recipe_without_augmentation_changes_nothing() -> None:
    frames = augment.to_float(torch.from_numpy(images(6)))
    assert torch.allclose(made(plain(), frames)[1], frames, atol=1e-6)


def test_gamma_is_a_power_between_its_bounds() -> None:
    frames = augment.to_float(torch.from_numpy(images(30)))
    draws, gamma = made(plain(gamma=0.4), frames)
    assert np.exp(-0.4) <= draws.gamma.min() < 0.8
    assert 1.25 < draws.gamma.max() <= np.exp(0.4)
    expected = frames ** draws.gamma.view(-1, 1, 1, 1)
    assert torch.allclose(gamma, expected, atol=1e-6)


def test_speckle_is_multiplicative_and_of_some_frames() -> None:
    frames = torch.full((300, 3, 64, 64), 0.4)
    frames[:, :, :32] = 0.2
    draws, speckled = made(plain(speckle=0.15, speckle_rate=0.3), frames)
    noisy = draws.speckle > 0
    assert 60 < noisy.sum() < 120
    assert torch.allclose(speckled[~noisy], frames[~noisy], atol=1e-6)
    bright, dark = speckled[noisy, 0, 32:], speckled[noisy, 0, :32]
    assert bright.std().item() == pytest.approx(0.15 * 0.4, rel=0.02)
    assert dark.std().item() == pytest.approx(0.15 * 0.2, rel=0.02)
    assert speckled[noisy].mean().item() == pytest.approx(0.3, rel=0.01)
    # the same in all channels, another in each frame
    assert torch.equal(speckled[:, 0], speckled[:, 2])
    assert not torch.equal(speckled[noisy][0], speckled[noisy][1])


def test_blur_is_a_mean_over_neighbours_of_some_frames() -> None:
    frames = augment.to_float(torch.from_numpy(images(60)))
    draws, blurred = made(plain(blur=0.5), frames)
    assert 10 < draws.blur.sum() < 50
    assert torch.allclose(blurred[~draws.blur], frames[~draws.blur], atol=1e-6)
    inside = frames[draws.blur].unfold(2, 3, 1).unfold(3, 3, 1).mean(dim=(4, 5))
    assert torch.allclose(blurred[draws.blur][:, :, 1:-1, 1:-1], inside, atol=1e-5)


def test_saturation_and_hue_of_a_frame_without_colour_are_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def counting(number: int, operation: Any) -> Any:
        def count(image: Tensor, factor: float) -> Tensor:
            asked.append(number)
            changed: Tensor = operation(image, factor)
            return changed

        return count

    counted = [counting(*one) for one in enumerate(OPERATIONS)]
    monkeypatch.setattr(augment, "OPERATIONS", counted)
    grey = augment.to_float(torch.from_numpy(images(3)))[:, :1]
    made(RECIPE, grey)
    assert set(asked) == {0, 1}
    made(RECIPE, grey.repeat(1, 3, 1, 1))
    assert set(asked) == {0, 1}
    made(RECIPE, augment.to_float(torch.from_numpy(images(3))))
    assert set(asked) == {0, 1, 2, 3}


# ------------------------------------------------------------------------------------ the draws


def test_older_draws_are_not_moved_by_the_newer() -> None:
    changed = replace(RECIPE, rotation=0.3, gamma=0.2, speckle=0.1, speckle_rate=1.0, blur=1.0)
    before, after = augment.draw(RECIPE, 2, 20, 64), augment.draw(changed, 2, 20, 64)
    for name in ("box", "flip", "factor", "order"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert before.speckle.max() == 0
    assert before.angle.abs().max() == 0
    assert (before.gamma == 1).all()
    assert not before.blur.any()
    assert after.angle.abs().max() <= 0.3
    assert (after.start >= 0).all()


@pytest.mark.parametrize("size", [64, 1400, 1600])
def test_every_stretch_of_noise_is_within_the_table(size: int) -> None:
    """Of frames as large as may be stored, the usual table is shorter than one of them."""
    recipe = replace(RECIPE, speckle=0.1, speckle_rate=1.0)
    draws = augment.draw(recipe, 0, 300, size)
    noise = augment.draw_noise(recipe, size, torch.device("cpu"))
    assert (draws.start >= 0).all()
    assert (draws.start + size * size <= len(noise)).all()
    assert len(draws.start.unique()) > 800


def equal(a: augment.Draws, b: augment.Draws) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parts(), b.parts(), strict=True))


def test_draws_are_keyed() -> None:
    first = augment.draw(RECIPE, 0, 20, 64)
    augment.draw(RECIPE, 3, 20, 64)
    assert equal(first, augment.draw(replace(RECIPE, batch_size=4), 0, 20, 64))
    assert not equal(first, augment.draw(RECIPE, 1, 20, 64))
    assert not equal(first, augment.draw(replace(RECIPE, seed=6), 0, 20, 64))


def test_no_two_frames_share_a_draw() -> None:
    draws = augment.draw(RECIPE, 0, 500, 224)
    assert len(draws.factor.unique(dim=0)) == 1500


def test_draws_have_the_recipes_distributions() -> None:
    draws = augment.draw(RECIPE, 0, 2000, 224)
    for column, (low, high) in enumerate([(0.2, 1.8)] * 3 + [(-0.2, 0.2)]):
        factor = draws.factor[:, column].numpy()
        assert kstest(factor, "uniform", (low, high - low)).pvalue > 1e-3
    assert abs(draws.flip.float().mean() - 0.5) < 0.03
    orders, counts = draws.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.min() > 180  # of 250 expected


def test_boxes_are_those_of_random_resized_crop() -> None:
    """Their areas and ratios are distributed as torchvision draws them."""
    from torchvision.transforms import RandomResizedCrop

    box = augment.draw(RECIPE, 0, 1000, 224).box.numpy()
    torch.manual_seed(0)
    image = torch.zeros(3, 224, 224)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.8, 1.0), (0.8, 1.25)) for _ in range(2000)]
    )
    for ours_of, theirs_of in (
        (box[:, 2] * box[:, 3], theirs[:, 2] * theirs[:, 3]),
        (box[:, 3] / box[:, 2], theirs[:, 3] / theirs[:, 2]),
        (box[:, 0], theirs[:, 0]),
        (box[:, 1], theirs[:, 1]),
    ):
        assert kstest(ours_of, theirs_of).pvalue > 1e-3


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.8, 1.0), (0.8, 1.25)),
        ((1.0, 1.0), (1.0, 1.0)),
        ((0.9, 1.0), (2.0, 3.0)),  # never fits
        ((0.9, 1.0), (0.3, 0.4)),
        ((1e-7, 1e-5), (0.8, 1.25)),  # less than a pixel
    ],
)
@pytest.mark.parametrize("size", [32, 224])
def test_boxes_are_whole_pixels_inside(
    scale: tuple[float, float], ratio: tuple[float, float], size: int
) -> None:
    recipe = replace(RECIPE, crop_scale=scale, crop_ratio=ratio)
    top, left, height, width = augment.draw(recipe, 0, 100, size).box.unbind(1)
    for values in (top, left, height, width):
        assert torch.equal(values, values.round())
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size
    assert (left + width).max() <= size


@pytest.mark.parametrize(
    ("ratio", "box"), [((2.0, 3.0), [25, 0, 50, 100]), ((0.25, 0.5), [0, 25, 100, 50])]
)
def test_what_never_fits_is_the_central_crop(ratio: tuple[float, float], box: list[int]) -> None:
    recipe = replace(RECIPE, crop_scale=(0.95, 1.0), crop_ratio=ratio)
    assert augment.draw(recipe, 0, 1, 100).box.tolist() == [box] * 3
