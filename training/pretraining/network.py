"""Encoder, projection head and classifier of USCL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from ..learning.recipe import Recipe


class UsclNetwork(nn.Module):
    """ResNet → h → Linear, ReLU, Linear → z; and a Linear → class logits.

    The classifier reads z or h, as `Recipe.classifier_on` says, through a hidden layer if there is
    one.

    Attributes:
        encoder: timm's ResNet without a classifier; h is its pooled output.
        projection: h to z.
        classifier: z or h to logits, None without classes.
        maps: h to what each teacher's features are compared with.
    """

    def __init__(self, recipe: Recipe, classes: int, taught: Sequence[int] = ()) -> None:
        super().__init__()
        # timm would start the last norm of every block at zero; the paper's ResNet does not
        self.encoder: nn.Module = timm.create_model(
            recipe.architecture, num_classes=0, zero_init_last=False
        )
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
    """

    first: tuple[Tensor, Tensor | None]
    second: tuple[Tensor, Tensor | None]
    h: Tensor
    mapped: tuple[Tensor, ...]


class TwoViews(nn.Module):
    """Both views through one network: a forward a view, or one for both.

    Args:
        network: of one view.
        recipe: whether the views share their batch statistics.
    """

    def __init__(self, network: UsclNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.fused = network, recipe.batch_statistics == "fused"

    def forward(self, view1: Tensor, view2: Tensor) -> Outputs:
        """Project both views.

        Args:
            view1: float32 (N, 3, H, W), normalised.
            view2: likewise.
        """
        encoder = self.network.encoder
        if self.fused:
            h = encoder(torch.cat([view1, view2]))
        else:
            h = torch.cat([encoder(view1), encoder(view2)])
        z, logits = self.network.heads(h)
        (z1, z2), (logits1, logits2) = z.chunk(2), (None, None)
        if logits is not None:
            logits1, logits2 = logits.chunk(2)
        mapped = tuple(m(h) for m in self.network.maps)
        return Outputs((z1, logits1), (z2, logits2), h, mapped)


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
