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


def build(recipe: Recipe, classes: int) -> UsclNetwork:
    """The network with the initial weights of the recipe's seed, leaving the global state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return UsclNetwork(recipe, classes)
