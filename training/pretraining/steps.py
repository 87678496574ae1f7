"""A step of pretraining: what is drawn for it, what it reads, and at what rate it learns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..learning import augment
from ..learning.pairs import Pairs
from ..learning.recipe import Recipe


@dataclass(frozen=True)
class Tables:
    """Every draw of an epoch.

    Attributes:
        pairs: frames and λ of every place.
        lam: λ of `pairs`, on the device.
        draws: augmentation of the three frames of every place, on the device.
        batches: places of every step, of all ranks.
        target: int64 (places,), class of the video at each, −1 where unlabelled, on the device.
        video: int64 (places,), which video stands at each, on the device.
    """

    pairs: Pairs
    lam: Tensor
    draws: augment.Draws
    batches: list[np.ndarray]
    target: Tensor
    video: Tensor


@dataclass(frozen=True)
class Sample:
    """What a step reads, on the device.

    Attributes:
        frames: uint8 (3N, H, W, 3), the three frames of each video in turn.
        lam: float32 (N, 2), λ of either view.
        draws: augmentation of the 3N frames.
        target: int64 (N,), class of each video, −1 where unlabelled.
        video: int64 (N,), which of the training videos each is.
    """

    frames: Tensor
    lam: Tensor
    draws: augment.Draws
    target: Tensor
    video: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Everything in it, in an order of its own."""
        return self.frames, self.lam, *self.draws.parts(), self.target, self.video


def learning_rate(recipe: Recipe, epoch: int, step: int = 0, steps: int = 1) -> float:
    """The rate of a step.

    By `epochs`: constant for `constant_epochs`, then a cosine that ends in the last epoch (METHOD,
    6). By `steps`: rising over `warmup` of all steps, then a cosine that ends with the last.

    Args:
        recipe: which of them.
        epoch: from 0.
        step: within the epoch, from 0.
        steps: of an epoch.
    """
    if recipe.schedule == "steps":
        done = (epoch * steps + step) / (recipe.epochs * steps)
        if done < recipe.warmup:
            # not from 0: the first step would be lost
            return recipe.learning_rate * (done + 1 / (recipe.epochs * steps)) / recipe.warmup
        done = (done - recipe.warmup) / (1 - recipe.warmup)
        span = recipe.learning_rate - recipe.final_learning_rate
        return recipe.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2
    if epoch < recipe.constant_epochs or recipe.epochs <= recipe.constant_epochs + 1:
        return recipe.learning_rate
    done = (epoch - recipe.constant_epochs) / (recipe.epochs - 1 - recipe.constant_epochs)
    span = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + span * (1 + math.cos(math.pi * done)) / 2


def views_of(recipe: Recipe, side: int, items: int) -> float:
    """How much a run computes, in views of 224².

    Args:
        recipe: epochs and sizes.
        side: of the store's frames in pixels.
        items: of an epoch, each of two views.
    """
    area, before = 0.0, 0.0
    for size, end in recipe.sizes or ((side, 1.0),):
        area, before = area + (end - before) * (size / 224) ** 2, end
    return 2 * items * recipe.epochs * area
