"""MoCo v2 as a method to compare with: an encoder that follows, and a queue of its keys.

He et al., CVPR 2020 (doi 10.1109/CVPR42600.2020.00975), algorithm 1, with the projection head of
Chen et al., arXiv 2003.04297, which USCL has as well. Queue, loss and momentum are lightly's. Left
out is the shuffling of batch norm, which parts the statistics of several devices; a single one has
none to part.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from uscl_zoo.errors import MissingDependencyError

from ..learning.recipe import Recipe
from .network import UsclNetwork


class Moco:
    """What MoCo keeps beside the network that is trained.

    Attributes:
        network: the encoder that follows, with its projection; batch norm as in training.
        criterion: the loss, and within it the queue: float32 (queue, projection_dim), unit vectors.
    """

    def __init__(self, recipe: Recipe, network: UsclNetwork) -> None:
        """Begin with a copy of the network and a queue of random unit vectors.

        Raises:
            MissingDependencyError: without lightly.
        """
        try:
            from lightly.loss import NTXentLoss
            from lightly.models.utils import deactivate_requires_grad, update_momentum
        except ImportError as error:
            raise MissingDependencyError(
                "method moco needs lightly; install it by: pip install 'uscl-zoo[moco]'"
            ) from error
        self.network = copy.deepcopy(network).train()
        deactivate_requires_grad(self.network)
        self._follow, self._momentum = update_momentum, recipe.momentum
        device = next(network.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.criterion: nn.Module = NTXentLoss(
                recipe.temperature, (recipe.queue, recipe.projection_dim)
            ).to(device)

    def keys(self, view: Tensor) -> Tensor:
        """Project a view by the encoder that follows: (N, projection_dim), without gradient."""
        with torch.no_grad():
            z: Tensor = self.network(view)[0]
        return z

    def loss(self, z: Tensor, keys: Tensor) -> Tensor:
        """InfoNCE of each query, its own key against those of the queue (MoCo, equation 1).

        In float32. Where gradients are wanted the keys then enter the queue in place of the oldest.

        Args:
            z: (N, projection_dim), queries, not normalised.
            keys: (N, projection_dim), of the other view, not normalised.

        Returns:
            The mean over N queries, a scalar.
        """
        with torch.autocast(z.device.type, enabled=False):
            loss: Tensor = self.criterion(z.float(), keys.float())
        return loss

    def update(self, network: UsclNetwork) -> None:
        """Have the encoder follow, after a step of the optimiser: θ_k ← m θ_k + (1 − m) θ_q."""
        self._follow(network, self.network, self._momentum)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; lightly leaves the queue out of its own."""
        bank = self.criterion.memory_bank
        return {
            "network": self.network.state_dict(),
            "queue": bank.bank,  # type: ignore[union-attr]
            "place": bank.bank_ptr,  # type: ignore[union-attr]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        bank = self.criterion.memory_bank
        self.network.load_state_dict(state["network"])
        bank.bank.copy_(state["queue"])  # type: ignore[union-attr,operator]
        bank.bank_ptr.copy_(state["place"])  # type: ignore[union-attr,operator]
