"""Two views of every video: frames augmented and mixed with the anchor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..learning import augment
from ..learning.pairs import ANCHOR, VIEW1, VIEW2
from ..learning.recipe import Recipe


def make_views(
    frames: Tensor,
    lam: Tensor,
    draws: augment.Draws,
    recipe: Recipe,
    size: int | None = None,
    noise: Tensor | None = None,
    grey: bool = False,
) -> tuple[Tensor, Tensor]:
    """Augment and mix the frames of some videos into two views each.

    Args:
        frames: uint8 (3N, H, W, 3).
        lam: (N, 2).
        draws: of the 3N frames.
        recipe: method, and the order of mixing and augmentation.
        size: side of the views; None for that of the frames.
        noise: as `augment.draw_noise` gives it.
        grey: whether no frame has colour, so that one plane of each will do.

    Returns:
        Two views, float32 (N, 3, size, size).
    """
    images = augment.to_float(frames[..., :1] if grey else frames)
    if recipe.mix == "after" and recipe.method == "uscl":
        return mix(augment.augment(images, draws, recipe, size, noise), lam)
    # without mixing the order means nothing, and this one leaves the anchor unaugmented
    view1, view2 = mix(images, lam)
    return (
        augment.augment(view1, draws[VIEW1::3], recipe, size, noise),
        augment.augment(view2, draws[VIEW2::3], recipe, size, noise),
    )


def mix(images: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """Positive pair generation: view = λ f + (1 − λ) anchor.

    Args:
        images: (3N, C, H, W), the three frames of each video in turn.
        lam: (N, 2), λ of either view.

    Returns:
        Two views (N, C, H, W).
    """
    anchor = images[ANCHOR::3]
    first, second = lam[:, :, None, None, None].unbind(1)
    return (
        torch.lerp(anchor, images[VIEW1::3], first),
        torch.lerp(anchor, images[VIEW2::3], second),
    )


def make_views_by_video(
    frames: Tensor,
    lam: Tensor,
    draws: augment.Draws,
    recipe: Recipe,
    layout: torch.memory_format,
    size: int | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `make_views` does, as a CPU does it best: one video after another.

    The frames of a video stay in the cache from the store to the mixed views, and a frame without
    colour is one plane until the end. (Videos side by side in threads of Python took longer than
    this, in which torch shares out each operation: the threads waited for the interpreter.)

    Args:
        frames: uint8 (3N, H, W, 3).
        lam: (N, 2).
        draws: of the 3N frames.
        recipe: method, order of mixing and augmentation, mean and std.
        layout: of the views in memory.
        size: side of the views; None for that of the frames.
        noise: as `augment.draw_noise` gives it.

    Returns:
        Two views, float32 (N, 3, size, size).
    """
    size = size or frames.shape[1]
    shape = (len(lam), 3, size, size)
    view1, view2 = (torch.empty(shape, memory_format=layout) for _ in range(2))
    shift, scale = augment.normalising(recipe)
    drawn = augment.each(draws)
    for i, shares in enumerate(lam.tolist()):
        own = slice(3 * i, 3 * i + 3)
        images = _views_of_one(frames[own], shares, drawn[own], recipe, size, noise)
        for view, image in zip((view1, view2), images, strict=True):
            torch.addcmul(shift, image, scale, out=view[i : i + 1])
    return view1, view2


def _views_of_one(
    frames: Tensor,
    lam: list[float],
    drawn: list[augment.Drawn],
    recipe: Recipe,
    size: int,
    noise: Tensor | None,
) -> list[Tensor]:
    """The views of one video, (1, C, H, W), before they are normalised."""
    after = recipe.mix == "after" and recipe.method == "uscl"

    def mixable(place: int) -> Tensor:
        planes = augment.planes_of(frames[place])
        if not after:
            return planes
        return augment.augment_one(planes, drawn[place], recipe, size, noise)

    # of λ = 1 nothing of the anchor is left
    anchor = mixable(ANCHOR) if min(lam) < 1 else None
    views = []
    for place, share in zip((VIEW1, VIEW2), lam, strict=True):
        view = mixable(place)
        if anchor is not None:
            view = torch.lerp(anchor, view, share)
        if not after:
            view = augment.augment_one(view, drawn[place], recipe, size, noise)
        views.append(view)
    return views
