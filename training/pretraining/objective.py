"""The loss of USCL: NT-Xent between the views and cross-entropy where there is a label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learning.ranks import ALONE, Ranks
from ..learning.recipe import Recipe


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, ranks: Ranks = ALONE) -> Tensor:
    """Normalised temperature-scaled cross-entropy over the 2N anchors of a batch.

    Each view's positive is the other view of its video; the 2N − 2 views of the other videos are
    its negatives. Computed in float32: exp(1/τ) of cosines is not for half precision.

    Args:
        z1: (N, D), not normalised.
        z2: (N, D), not normalised.
        temperature: τ.
        ranks: processes that share the batch. Each gives the views of its own videos, contrasts
            them with those of all, and returns its share, so scaled that the mean over ranks is
            the loss of the whole batch, and the mean of gradients its gradient.

    Returns:
        The mean over 2N anchors, a scalar.
    """
    z1, z2 = (F.normalize(z.float(), dim=1) for z in (z1, z2))
    everyone = torch.cat([ranks.gather(z1), ranks.gather(z2)])
    count, before = ranks.place(len(z1))
    own = torch.arange(before, before + len(z1), device=z1.device)
    similarity = torch.cat([z1, z2]) @ everyone.T / temperature
    itself = torch.cat([own, own + count])
    positive = torch.cat([own + count, own])
    similarity = similarity.scatter(1, itself[:, None], float("-inf"))
    total = F.cross_entropy(similarity, positive, reduction="sum")
    return total * (ranks.world / (2 * count))


def labelled_term(
    logits1: Tensor,
    logits2: Tensor,
    target: Tensor,
    ranks: Ranks = ALONE,
    smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of both views over the labelled videos; 0 where there are none.

    Args:
        logits1: (N, classes).
        logits2: (N, classes).
        target: int64 (N,), −1 where unlabelled.
        ranks: as for `nt_xent`; the labelled videos are counted over all of them.
        smoothing: share of a label that is spread over all classes.
    """
    # a sum over none divided by one is 0 with a gradient of 0, where a mean over none is NaN
    count = ranks.total((target >= 0).sum()).clamp(min=1)
    terms = (
        F.cross_entropy(
            logits.float(), target, ignore_index=-1, reduction="sum", label_smoothing=smoothing
        )
        for logits in (logits1, logits2)
    )
    return sum(terms, start=torch.zeros((), device=target.device)) * ranks.world / count


@dataclass(frozen=True)
class Loss:
    """The loss and its terms, scalars; a term is measured whether or not it counts."""

    total: Tensor
    contrastive: Tensor
    labelled: Tensor
    taught: Tensor
    consistency: Tensor


def uscl_loss(
    first: tuple[Tensor, Tensor | None],
    second: tuple[Tensor, Tensor | None],
    target: Tensor,
    recipe: Recipe,
    ranks: Ranks = ALONE,
    taught: Tensor | None = None,
) -> Loss:
    """L = NT-Xent + λ_cls · (CE(view 1) + CE(view 2)) (paper, the semi-supervised loss).

    With method `supervised` the first term does not count. A recipe may weigh the first, and
    teachers add a term.

    Args:
        first: z and logits of the first view.
        second: z and logits of the second view.
        target: int64 (N,), −1 where unlabelled.
        recipe: method, τ and λ_cls.
        ranks: as for `nt_xent`.
        taught: the term of the teachers, as `teacher_term` gives it; None without.
    """
    (z1, logits1), (z2, logits2) = first, second
    contrastive = nt_xent(z1, z2, recipe.temperature, ranks)
    labelled = torch.zeros((), device=z1.device)
    if logits1 is not None and logits2 is not None:
        labelled = labelled_term(logits1, logits2, target, ranks, recipe.label_smoothing)
    total = recipe.class_weight * labelled
    if recipe.method != "supervised":
        total = total + recipe.contrast_weight * contrastive
    none = torch.zeros((), device=z1.device)
    if taught is None:
        taught = none
    else:
        total = total + recipe.teacher_weight * taught
    return Loss(total, contrastive, labelled, taught, none)
