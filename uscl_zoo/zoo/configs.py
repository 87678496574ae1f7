"""What timm is given of a card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .card import Card, Input

if TYPE_CHECKING:
    from timm.models import PretrainedCfg


def pretrained_cfg_of(card: Card) -> PretrainedCfg:
    """What timm has to know of a card. Digest, provenance and metrics stay in the card."""
    from timm.models import PretrainedCfg

    hub = f"{card.weights.hub_repo}@{card.weights.revision}" if card.weights.hub_repo else None
    return PretrainedCfg(
        # tells timm that there are weights; the entry point puts the verified file in its place
        file=card.weights.file if card.has_weights else None,
        hf_hub_id=hub,
        architecture=card.model,
        tag=card.tag,
        input_size=card.input.size,
        interpolation=card.input.interpolation,
        crop_pct=card.input.crop_pct,
        crop_mode=card.input.crop_mode,
        mean=card.input.mean,
        std=card.input.std,
        num_classes=0,
        pool_size=tuple(side // 32 for side in card.input.size[1:]),
        first_conv="conv1",
        classifier="fc",
        license=card.licence,
        description=card.summary,
        origin_url="https://github.com/983632847/USCL" if card.is_uscl else card.weights.origin,
        paper_ids="arXiv:2011.13066" if card.is_uscl else None,
    )


def card_config(of: Card | Input) -> dict[str, Any]:
    """Arguments of `timm.create_model` that have a network say of its input what a card does."""
    shape = of.input if isinstance(of, Card) else of
    said: dict[str, Any] = {
        "input_size": shape.size,
        "mean": shape.mean,
        "std": shape.std,
        "interpolation": shape.interpolation,
        "crop_pct": shape.crop_pct,
        "crop_mode": shape.crop_mode,
    }
    if isinstance(of, Card):
        said |= {"license": of.licence, "description": of.summary}
        said["label_names"] = of.classes or None
    return {"pretrained_cfg_overlay": said}
