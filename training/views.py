"""Two views of every video: frames augmented and mixed with the anchor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from . import augment
from .pairs import ANCHOR, VIEW1, VIEW2
from .recipe import Recipe


def make_views(
    frames: Tensor, lam: Tensor, draws: augment.Draws, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Augment and mix the frames of some videos into two views each.

    Args:
        frames: uint8 (3N, H, W, 3).
        lam: (N, 2).
        draws: of the 3N frames.
        recipe: method, and the order of mixing and augmentation.

    Returns:
        Two views, float32 (N, 3, H, W).
    """
    images = augment.to_float(frames)
    if recipe.mix == "after" and recipe.method == "uscl":
        return mix(augment.augment(images, draws, recipe), lam)
    # without mixing the order means nothing, and this one leaves the anchor unaugmented
    view1, view2 = mix(images, lam)
    return (
        augment.augment(view1, draws[VIEW1::3], recipe),
        augment.augment(view2, draws[VIEW2::3], recipe),
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


class ByVideo:
    """What `make_views` does, as a CPU does it best: one video after another, on every core.

    The frames of a video stay in the cache from the store to the mixed views, and a frame without
    colour is one plane until the end. Each image is computed by one thread, so that the number of
    threads changes no bit.

    Args:
        recipe: method, order of mixing and augmentation, mean and std.
        layout: of the views in memory.
    """

    def __init__(self, recipe: Recipe, layout: torch.memory_format) -> None:
        self.recipe, self.layout = recipe, layout
        self._shift, self._scale = augment.normalising(recipe)
        self._map: Callable[..., Iterable[Any]] = map
        threads = torch.get_num_threads()
        if threads > 1:
            pool = ThreadPoolExecutor(threads, "views", torch.set_num_threads, (1,))
            self._map = pool.map

    def __call__(self, frames: Tensor, lam: Tensor, draws: augment.Draws) -> tuple[Tensor, Tensor]:
        """Augment and mix the frames of some videos into two views each.

        Args:
            frames: uint8 (3N, H, W, 3).
            lam: (N, 2).
            draws: of the 3N frames.

        Returns:
            Two views, float32 (N, 3, H, W).
        """
        count, height, width = len(lam), *frames.shape[1:3]
        views = [torch.empty(count, 3, height, width, memory_format=self.layout) for _ in range(2)]
        drawn, shares = augment.each(draws), lam.tolist()

        def make(i: int) -> None:
            own = slice(3 * i, 3 * i + 3)
            images = self._two(frames[own], shares[i], drawn[own])
            for view, image in zip(views, images, strict=True):
                torch.addcmul(self._shift, image, self._scale, out=view[i : i + 1])

        for _ in self._map(make, range(count)):
            pass  # errors of the threads are raised here
        first, second = views
        return first, second

    def _two(
        self, frames: Tensor, lam: list[float], drawn: list[augment.Drawn]
    ) -> tuple[Tensor, Tensor]:
        """The views of one video, (1, C, H, W), before they are normalised."""
        after = self.recipe.mix == "after" and self.recipe.method == "uscl"

        def mixable(place: int) -> Tensor:
            planes = augment.planes_of(frames[place])
            return augment.augment_one(planes, drawn[place]) if after else planes

        # of λ = 1 nothing of the anchor is left
        anchor = mixable(ANCHOR) if min(lam) < 1 else None
        views = []
        for place, share in zip((VIEW1, VIEW2), lam, strict=True):
            view = mixable(place)
            if anchor is not None:
                view = torch.lerp(anchor, view, share)
            views.append(view if after else augment.augment_one(view, drawn[place]))
        first, second = views
        return first, second
