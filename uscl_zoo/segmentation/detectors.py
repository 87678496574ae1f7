"""Mask R-CNN and Faster R-CNN of torchvision, with a feature pyramid on an encoder of timm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError
from ..inference import evaluating
from ..zoo.card import Input
from .networks import features_means
from .regions import Region, region_of

#: The stages of an encoder that the pyramid stands on, and what they are called there.
STAGES = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
#: Channels of the pyramid.
_WIDTH = 256
#: Sides of the anchors of its five levels, as shares of the frame's.
_ANCHORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
#: What is detected in a frame at most, and the lowest score of it.
_MOST, _LOWEST = 20, 0.02
#: Proposals a frame that are taught, and that are looked at: an image of an organ shows one thing
#: or a few, where a photograph, for which torchvision has 512 and 1,000, shows dozens.
_TAUGHT, _PROPOSED = 64, 100


@dataclass(frozen=True)
class Detected:
    """What a detector says of a frame, in pixels of its own input.

    Attributes:
        labels: int64 (K,), from 0.
        scores: float32 (K,).
        boxes: float32 (K, 4): left, top, right, bottom.
        masks: float32 (K, h, w), probabilities of the pixels; None of boxes alone.
        textures: float32 (D,), mean activations of the first two stages.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: NDArray[np.float32]
    masks: NDArray[np.float32] | None
    textures: NDArray[np.float32]

    def regions(self, shape: tuple[int, int], size: tuple[int, int]) -> list[Region]:
        """As regions of the frame it was made of.

        Args:
            shape: height and width of the detector's input.
            size: height and width of the frame.
        """
        regions: list[Region] = []
        down, across = size[0] / shape[0], size[1] / shape[1]
        for place, (label, score) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ):
            if self.masks is None:
                left, top, right, bottom = self.boxes[place].tolist()
                box = (left * across, top * down, right * across, bottom * down)
                if box[2] > box[0] and box[3] > box[1]:
                    regions.append(Region(label, box, None, score))
                continue
            maps = torch.from_numpy(self.masks[place])[None, None]
            large = nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
            region = region_of((large[0, 0] > 0.5).numpy(), label, score)
            if region is not None:
                regions.append(region)
        return regions


def build_detector(network: str, encoder: str, classes: int, shape: Input) -> nn.Module:
    """A detector with random weights, whose encoder keeps its batch statistics.

    Args:
        network: `maskrcnn` or `fasterrcnn`.
        encoder: timm's name of it.
        classes: without the background.
        shape: of its input; frames are already of that size.

    Raises:
        DataError: if the encoder has no residual stages.
    """
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body: Any = timm.create_model(encoder, num_classes=0)
    if not all(hasattr(body, stage) for stage in STAGES):
        raise DataError(f"{encoder}: has no four residual stages for a pyramid to stand on")
    widths = [stage["num_chs"] for stage in body.feature_info[1:5]]
    backbone = BackboneWithFPN(body, STAGES, widths, _WIDTH)
    side = min(shape.size[1:])
    anchors = AnchorGenerator(
        tuple((max(4, round(side * share)),) for share in _ANCHORS), ((0.5, 1.0, 2.0),) * 5
    )
    make: Any = {"maskrcnn": detection.MaskRCNN, "fasterrcnn": detection.FasterRCNN}[network]
    built: nn.Module = make(
        backbone,
        classes + 1,
        min_size=side,
        max_size=max(shape.size[1:]),
        image_mean=list(shape.mean),
        image_std=list(shape.std),
        rpn_anchor_generator=anchors,
        box_score_thresh=_LOWEST,
        box_detections_per_img=_MOST,
        box_batch_size_per_image=_TAUGHT,
        rpn_pre_nms_top_n_train=_PROPOSED * 4,
        rpn_pre_nms_top_n_test=_PROPOSED * 4,
        rpn_post_nms_top_n_train=_PROPOSED * 2,
        rpn_post_nms_top_n_test=_PROPOSED,
    )
    return built


def body_of(network: Any) -> nn.Module:
    """The encoder of a detector."""
    body: nn.Module = network.backbone.body
    return body


def begin_detector(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the encoder of a detector the weights of a backbone, all of them."""
    body_of(network).load_state_dict(dict(state))


def to_inputs(frames: Sequence[NDArray[np.uint8]], device: torch.device) -> list[Tensor]:
    """Frames uint8 (H, W, 3) as a detector takes them: float32 (3, H, W) of 0-1."""
    return [
        torch.from_numpy(np.array(frame)).to(device).permute(2, 0, 1).float() / 255
        for frame in frames
    ]


def detect(
    network: Any, frames: Iterable[NDArray[np.uint8]], batch_size: int = 8
) -> Iterator[Detected]:
    """What a detector says of frames of its input's size, one after the other.

    Args:
        network: as `build_detector` made it.
        frames: uint8 (H, W, 3).
        batch_size: frames at a time.
    """
    device = next(network.parameters()).device
    given = iter(frames)
    while batch := list(islice(given, batch_size)):
        with evaluating(network), torch.inference_mode():
            sizes = [frame.shape[:2] for frame in batch]
            images, _ = network.transform(to_inputs(batch, device))
            stages = network.backbone.body(images.tensors)
            pyramid = network.backbone.fpn(stages)
            proposals, _ = network.rpn(images, pyramid)
            answers, _ = network.roi_heads(pyramid, proposals, images.image_sizes)
            answers = network.transform.postprocess(answers, images.image_sizes, sizes)
            textures = features_means([stages["0"], stages["1"]]).cpu().numpy()
        for answer, texture in zip(answers, textures, strict=True):
            masks = answer.get("masks")
            yield Detected(
                labels=answer["labels"].cpu().numpy() - 1,
                scores=answer["scores"].float().cpu().numpy(),
                boxes=answer["boxes"].float().cpu().numpy(),
                masks=None if masks is None else masks[:, 0].float().cpu().numpy(),
                textures=texture,
            )
