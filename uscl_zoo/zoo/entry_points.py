"""Cards as timm models: what timm is given of them, and calls.

This is imported while timm is, under the lock of that import. So nothing that imports timm by
itself may be imported here: another thread may be importing that, and waiting for timm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .card import MODELS
from .catalogue import ranked_cards
from .configs import pretrained_cfg_of

if TYPE_CHECKING:
    from torch import nn


def _entry_point(model: str) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from .registry import create

        return create(model, pretrained, **kwargs)

    # timm registers a function under its name, in the module it says it is from
    entry.__name__ = entry.__qualname__ = model
    entry.__doc__ = f"{model}, a {MODELS[model]} without classifier; `uscl list` says of what."
    return entry


#: The functions that timm and torch.hub create the models with, by name.
ENTRY_POINTS = {model: _entry_point(model) for model in MODELS}


def register_models() -> None:
    """Put the entry points into timm's registry, with what it has to know of each checkpoint."""
    from timm.models import generate_default_cfgs, register_model

    # timm looks for an attribute of exactly this name in the module of what it registers
    globals()["default_cfgs"] = generate_default_cfgs(
        {card.name: pretrained_cfg_of(card) for card in ranked_cards()}
    )
    for entry in ENTRY_POINTS.values():
        register_model(entry)
