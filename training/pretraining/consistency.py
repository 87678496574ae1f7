"""Baselines that learn from labels and from agreement with themselves.

The Π-model and temporal ensembling (Laine & Aila, ICLR 2017, arXiv 1610.02242) and FixMatch (Sohn
et al., NeurIPS 2020, arXiv 2001.07685), baselines of the paper whose settings we do not know. Both
views are augmentations of one frame, by the recipe's augmentation and not that of their papers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..learning.ranks import ALONE, Ranks
from ..learning.recipe import Recipe
from .objective import Loss


def consistency_weight(recipe: Recipe, epoch: int, labelled: float) -> float:
    """w(t): what the agreement weighs in an epoch.

    Of the Π-model and temporal ensembling (section 2.3) it grows as exp(−5 (1 − T)²) over the
    ramp, T from 0 to 1, to w_max times the share of labelled inputs, and is 0 where temporal
    ensembling has nothing to agree with yet. Of FixMatch it is λ_u throughout.

    Args:
        recipe: method, weight and ramp.
        epoch: from 0.
        labelled: share of the training videos whose label is used, M / N.
    """
    if recipe.method == "fixmatch":
        return recipe.consistency_weight
    if recipe.method == "temporal" and epoch == 0:
        return 0.0
    ramp = recipe.consistency_ramp * recipe.epochs
    left = max(1 - epoch / ramp, 0.0) if ramp > 0 else 0.0
    return recipe.consistency_weight * labelled * math.exp(-5 * left**2)


class Ensemble(nn.Module):
    """What a network has said of each video so far (temporal ensembling, algorithm 2).

    Z ← α Z + (1 − α) z with every answer z about a video, and its target is Z / (1 − α^t), after t
    answers: corrected for Z having begun at 0. Counted by video, since sampling by label may show
    one oftener than another.

    Args:
        videos: how many are trained on.
        classes: of the classifier.
        momentum: α.
    """

    def __init__(self, videos: int, classes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("said", torch.zeros(videos, classes))
        self.register_buffer("times", torch.zeros(videos))

    def targets(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is to agree with.

        Args:
            video: int64 (N,), which of the videos.

        Returns:
            Probabilities (N, classes), and bool (N,), whether anything was said of the video yet.
        """
        times = self.get_buffer("times")[video]
        known = times > 0
        share = torch.where(known, 1 - self.momentum**times, torch.ones_like(times))
        return self.get_buffer("said")[video] / share[:, None], known

    @torch.no_grad()
    def hear(self, video: Tensor, chances: Tensor) -> None:
        """Take in what the network says now.

        Args:
            video: int64 (N,), each once.
            chances: probabilities (N, classes).
        """
        said, times = self.get_buffer("said"), self.get_buffer("times")
        said[video] = self.momentum * said[video] + (1 - self.momentum) * chances.float()
        times[video] += 1


def consistency_loss(
    logits: Tensor,
    other: Tensor,
    target: Tensor,
    weight: Tensor | float,
    recipe: Recipe,
    ranks: Ranks = ALONE,
    known: Tensor | None = None,
) -> Loss:
    """The loss of `pi`, `temporal` or `fixmatch`, in float32.

    Laine & Aila, algorithms 1 and 2, over a batch B of which L is labelled, C classes, with z and z̃
    the probabilities of both evaluations (or z̃ those of the ensemble):
    −1/|B| Σ_{i ∈ B∩L} log z_i[y_i] + w/(C |B|) Σ_{i ∈ B} ‖z_i − z̃_i‖².

    FixMatch, equations 3 and 4, with p of the weakly and s of the strongly augmented view:
    the mean over labelled i of −log p_i[y_i], + λ_u times the mean over all i of
    1(max p_i ≥ τ) · −log s_i[argmax p_i]; nothing flows back through what was only asked.

    Args:
        logits: (N, classes) of the first view; the weakly augmented one of `fixmatch`.
        other: (N, classes), logits of the second view; of `temporal` the ensemble's probabilities.
        target: int64 (N,), −1 where unlabelled.
        weight: w or λ_u.
        recipe: method, λ_cls and τ.
        ranks: as for `nt_xent`.
        known: bool (N,), of which videos `temporal` has an ensemble; None for all.

    Returns:
        The terms as they are, and their weighted sum.
    """
    logits, other = logits.float(), other.float()
    everyone, _ = ranks.place(len(logits))
    per_batch = ranks.world / everyone
    labelled = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    if recipe.method == "fixmatch":
        labelled = labelled * ranks.world / ranks.total((target >= 0).sum()).clamp(min=1)
        sure, guess = logits.detach().softmax(1).max(1)
        strong = F.cross_entropy(other, guess, reduction="none")
        agreement = (strong * (sure >= recipe.confidence)).sum() * per_batch
    else:
        labelled = labelled * per_batch
        if recipe.method == "pi":
            other = other.softmax(1)
        apart = (logits.softmax(1) - other).square().mean(1)
        if known is not None:
            apart = apart * known
        agreement = apart.sum() * per_batch
    none = torch.zeros((), device=logits.device)
    total = recipe.class_weight * labelled + weight * agreement
    return Loss(total, none, labelled, none, agreement)
