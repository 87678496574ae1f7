"""Encoder, projection head and classifier of USCL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..learning.recipe import Recipe

#: Of timm's ResNets, what of `forward_intermediates` leaves a stage; before them comes the stem.
STAGES = (1, 2, 3, 4)


class UsclNetwork(nn.Module):
    """ResNet → h → Linear, ReLU, Linear → z; and a Linear → class logits.

    The classifier reads z or h, as `Recipe.classifier_on` says, through a hidden layer if there is
    one.

    Attributes:
        encoder: timm's ResNet without a classifier; h is its pooled output.
        projection: h to z.
        classifier: z or h to logits, None without classes.
        maps: h to what each teacher's features are compared with.
        frozen: whether the norms of the encoder keep their statistics in training.
    """

    def __init__(self, recipe: Recipe, classes: int, taught: Sequence[int] = ()) -> None:
        super().__init__()
        # timm would start the last norm of every block at zero; the paper's ResNet does not
        self.encoder: nn.Module = timm.create_model(
            recipe.architecture, num_classes=0, zero_init_last=False
        )
        self.frozen = recipe.batch_statistics == "frozen"
        width = int(self.encoder.num_features)  # type: ignore[arg-type]
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, recipe.projection_dim)
        )
        self.classifies_h = recipe.classifier_on == "h"
        read = width if self.classifies_h else recipe.projection_dim
        self.classifier: nn.Module | None = None
        if classes and recipe.classifier_hidden:
            self.classifier = nn.Sequential(
                nn.Linear(read, recipe.classifier_hidden),
                nn.ReLU(),
                nn.Linear(recipe.classifier_hidden, classes),
            )
        elif classes:
            self.classifier = nn.Linear(read, classes)
        self.maps = nn.ModuleList(nn.Linear(width, features) for features in taught)

    def train(self, mode: bool = True) -> UsclNetwork:
        """As of any module; norms that keep their statistics stay in the mode of evaluation."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project one view.

        Args:
            view: float32 (N, 3, H, W), normalised.

        Returns:
            z (N, projection_dim) and logits (N, classes) or None.
        """
        return self.heads(self.encoder(view))

    def heads(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project pooled features (N, num_features), and classify them."""
        z = self.projection(h)
        if self.classifier is None:
            return z, None
        return z, self.classifier(h if self.classifies_h else z)


class Outputs(NamedTuple):
    """What the loss reads of two views.

    Attributes:
        first: z (N, projection_dim) and logits (N, classes), or None, of the first view.
        second: of the second view.
        h: (2N, num_features), pooled features of the first view's, then the second's images.
        mapped: h through the map of each teacher, (2N, its features).
        streams: what leaves each stage, (2N, C, H, W); empty unless a teacher's is compared.
    """

    first: tuple[Tensor, Tensor | None]
    second: tuple[Tensor, Tensor | None]
    h: Tensor
    mapped: tuple[Tensor, ...]
    streams: tuple[Tensor, ...] = ()


def encoded(encoder: Any, views: Tensor, stages: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Pooled features (N, num_features), and what leaves each stage if that is asked for.

    Args:
        encoder: timm's ResNet without a classifier.
        views: float32 (N, 3, H, W), normalised.
        stages: whether the streams are returned.
    """
    if not stages:
        return encoder(views), ()
    last, streams = encoder.forward_intermediates(views, indices=list(STAGES))
    return encoder.forward_head(last), tuple(streams)


class TwoViews(nn.Module):
    """Both views through one network: a forward a view, or one for both.

    Args:
        network: of one view.
        recipe: whether the views share their batch statistics, and whether streams are compared.
    """

    def __init__(self, network: UsclNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.fused = network, recipe.batch_statistics != "per-view"
        self.stages = bool(recipe.teachers) and recipe.teacher_term == "stages"

    def forward(self, view1: Tensor, view2: Tensor) -> Outputs:
        """Project both views.

        Args:
            view1: float32 (N, 3, H, W), normalised.
            view2: likewise.
        """
        encoder = self.network.encoder
        if self.fused:
            h, streams = encoded(encoder, torch.cat([view1, view2]), self.stages)
        else:
            each = [encoded(encoder, view, self.stages) for view in (view1, view2)]
            h = torch.cat([one[0] for one in each])
            streams = tuple(torch.cat(both) for both in zip(each[0][1], each[1][1], strict=True))
        z, logits = self.network.heads(h)
        (z1, z2), (logits1, logits2) = z.chunk(2), (None, None)
        if logits is not None:
            logits1, logits2 = logits.chunk(2)
        mapped = tuple(m(h) for m in self.network.maps)
        return Outputs((z1, logits1), (z2, logits2), h, mapped, streams)


def build(
    recipe: Recipe,
    classes: int,
    init: Mapping[str, Tensor] | None = None,
    taught: Sequence[int] = (),
) -> UsclNetwork:
    """The network with the initial weights of the recipe's seed, leaving the global state alone.

    Args:
        recipe: architecture, heads and seed.
        classes: of the classifier.
        init: weights of the encoder in timm's keys, as `starts.fit` gives them, or a part of them;
            what it lacks begins as the seed has it.
        taught: features of each teacher.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = UsclNetwork(recipe, classes, taught)
    network.encoder.load_state_dict(dict(init or {}), strict=False)
    return network
