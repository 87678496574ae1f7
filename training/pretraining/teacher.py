"""Frozen networks that the encoder learns from, and the terms of the loss that they bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learning.ranks import ALONE, Ranks
from ..learning.recipe import Recipe
from .growing import carried
from .network import Outputs, encoded
from .starts import Start


class Lesson(NamedTuple):
    """What a teacher makes of both views.

    Attributes:
        features: (2N, its features), pooled.
        streams: what leaves each of its stages, (2N, C, H, W); empty unless they are compared.
    """

    features: Tensor
    streams: tuple[Tensor, ...] = ()


class Teachers:
    """The teachers of a run, on its device.

    Args:
        starts: their networks.
        recipe: mean and std of the views.
        device: where to compute.
        layout: of the networks in memory.
    """

    def __init__(
        self,
        starts: Sequence[Start],
        recipe: Recipe,
        device: torch.device,
        layout: torch.memory_format,
    ) -> None:
        self.networks = [
            start.network.eval().requires_grad_(False).to(device).to(memory_format=layout)
            for start in starts
        ]
        self._stages = recipe.teacher_term == "stages"
        self._inputs = [_renormalising(start, recipe, device) for start in starts]

    @property
    def features(self) -> list[int]:
        """Of each teacher, how many."""
        return [int(network.num_features) for network in self.networks]  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, view1: Tensor, view2: Tensor) -> tuple[Lesson, ...]:
        """What each makes of the two views.

        Args:
            view1: float32 (N, 3, H, W), normalised by the mean and std of the recipe.
            view2: likewise.

        Returns:
            The lesson of each; views of the first kind before those of the second.
        """
        if not self.networks:
            return ()
        views = torch.cat([view1, view2])
        return tuple(
            Lesson(
                *encoded(
                    network,
                    views if other is None else torch.addcmul(other[0], views, other[1]),
                    self._stages,
                )
            )
            for network, other in zip(self.networks, self._inputs, strict=True)
        )


def _renormalising(
    start: Start, recipe: Recipe, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Shift and scale from the recipe's normalisation to a teacher's; None where they are one."""
    if (start.mean, start.std) == (recipe.mean, recipe.std):
        return None
    mean, std, own_mean, own_std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1)
        for values in (recipe.mean, recipe.std, start.mean, start.std)
    )
    return (mean - own_mean) / own_std, std / own_std


def feature_term(mapped: Tensor, taught: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """1 − cosine between mapped features and a teacher's, both centred over the batch.

    In float32. With several ranks the batch is that of all of them.

    Args:
        mapped: (2N, D), h through a linear map.
        taught: (2N, D), the teacher's features.
        ranks: processes that share the batch.

    Returns:
        The mean over the 2N views, a scalar.
    """
    own, other = ranks.gather(mapped.float()), ranks.gather(taught.float())
    cosine = F.cosine_similarity(own - own.mean(0), other - other.mean(0))
    return (1 - cosine).mean()


def similarity_term(h: Tensor, taught: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """1 − correlation between the cosines of h and those of a teacher, over pairs of the batch.

    In float32. Features are centred over the batch first; a view is not paired with itself.

    Args:
        h: (2N, features).
        taught: (2N, the teacher's features).
        ranks: processes that share the batch.

    Returns:
        A scalar from 0 to 2.
    """
    cosines = []
    for features in (h, taught):
        every = ranks.gather(features.float())
        unit = F.normalize(every - every.mean(0))
        apart = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        similarity = unit @ unit.T
        count = len(unit) * (len(unit) - 1)
        mean = (similarity * apart).sum() / count
        # by a mask, since picking values out of the matrix would wait for the device
        cosines.append(((similarity - mean) * apart).flatten())
    return 1 - F.cosine_similarity(cosines[0], cosines[1], dim=0)


def stage_term(outputs: Outputs, lesson: Lesson, ranks: Ranks = ALONE) -> Tensor:
    """How far the encoder is from computing what a teacher does, stage by stage and pooled.

    The squared distance of each, as a share of the variance of the teacher's channels over the
    batch; of an encoder that was grown, that of the channels that carry the teacher's stream. In
    float32. With several ranks the batch is that of all of them.

    Args:
        outputs: h and the streams of the encoder.
        lesson: the teacher's.
        ranks: processes that share the batch.

    Returns:
        The mean over the stages and the pooled features, a scalar.
    """
    shares = []
    there, aims = (*outputs.streams, outputs.h), (*lesson.streams, lesson.features)
    for place, (own, taught) in enumerate(zip(there, aims, strict=True)):
        aimed = taught.float()
        parts = carried(own, aimed.shape[1], last=place >= len(there) - 2)
        distance = torch.stack([(part.float() - aimed).square().sum() for part in parts]).mean()
        across = (0, *range(2, aimed.ndim))
        # filled where it is used: a CUDA graph cannot hold a copy from the host
        own_count = torch.full((), aimed.numel() / aimed.shape[1], device=aimed.device)
        count = ranks.total(own_count)
        mean = ranks.total(aimed.sum(across, keepdim=True)) / count
        spread = ranks.total((aimed - mean).square().sum())
        shares.append(ranks.world * distance / spread.clamp(min=torch.finfo(torch.float32).tiny))
    return torch.stack(shares).mean()


def teacher_term(
    outputs: Outputs, lessons: Sequence[Lesson], recipe: Recipe, ranks: Ranks = ALONE
) -> Tensor:
    """The sum over teachers of the term that the recipe names; 0 without teachers.

    Args:
        outputs: of the encoder; maps there are with `features`, streams with `stages`.
        lessons: of each teacher.
        recipe: which term.
        ranks: processes that share the batch.
    """
    if recipe.teacher_term == "features":
        both = zip(outputs.mapped, lessons, strict=True)
        terms = [feature_term(mapped, lesson.features, ranks) for mapped, lesson in both]
    elif recipe.teacher_term == "stages":
        terms = [stage_term(outputs, lesson, ranks) for lesson in lessons]
    else:
        terms = [similarity_term(outputs.h, lesson.features, ranks) for lesson in lessons]
    return sum(terms, start=torch.zeros((), device=outputs.h.device))
