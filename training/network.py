"""Encoder, projection head and classifier of USCL."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from .recipe import Recipe


class UsclNetwork(nn.Module):
    """ResNet → h → Linear, ReLU, Linear → z; and a Linear → class logits.

    The classifier reads z or h, as `Recipe.classifier_on` says.

    Attributes:
        encoder: timm's ResNet without a classifier; h is its pooled output.
        projection: h to z.
        classifier: z or h to logits, None without classes.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
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
        self.classifier = nn.Linear(read, classes) if classes else None

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor | None]:
        """Project one view.

        Args:
            view: float32 (N, 3, H, W), normalised.

        Returns:
            z (N, projection_dim) and logits (N, classes) or None.
        """
        h = self.encoder(view)
        z = self.projection(h)
        if self.classifier is None:
            return z, None
        return z, self.classifier(h if self.classifies_h else z)


class TwoViews(nn.Module):
    """Both views through one network: a forward a view, or one for both.

    Args:
        network: of one view.
        recipe: whether the views share their batch statistics.
    """

    def __init__(self, network: UsclNetwork, recipe: Recipe) -> None:
        super().__init__()
        self.network, self.fused = network, recipe.batch_statistics == "fused"

    def forward(
        self, view1: Tensor, view2: Tensor
    ) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
        """Project both views.

        Args:
            view1: float32 (N, 3, H, W), normalised.
            view2: likewise.

        Returns:
            z and logits of the first view, and of the second.
        """
        if not self.fused:
            return self.network(view1), self.network(view2)
        z, logits = self.network(torch.cat([view1, view2]))
        first, second = z.chunk(2)
        if logits is None:
            return (first, None), (second, None)
        logits1, logits2 = logits.chunk(2)
        return (first, logits1), (second, logits2)


def build(recipe: Recipe, classes: int) -> UsclNetwork:
    """The network with the initial weights of the recipe's seed, leaving the global state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return UsclNetwork(recipe, classes)
