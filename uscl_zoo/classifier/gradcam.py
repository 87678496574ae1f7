"""Where in a clip the evidence for an answer is: Grad-CAM, inside the beam."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from ..answers import NUMBER
from ..data.inputs import Inputs, one_by_one, several, source_of
from ..errors import DataError, MissingDependencyError
from ..network import Network, Reference, load
from ..ultrasound.beam import DOUBTFUL, UNKNOWN, Beam, beam
from ..ultrasound.clip import Clip
from ..ultrasound.sources import Look, Source, name_sources, path_of
from ..ultrasound.transforms import FrameTransform
from .explanation import Explanation, check_suffix

__all__ = ["Explanation", "check_suffix", "explain", "heat_maps"]

#: Frames taken from a clip at most.
MOST_FRAMES = 200

# Longest side in pixels of the frames that are kept for drawing.
_LONGEST = 480
_BATCH = 16


@overload
def explain(
    model: Reference,
    images: str | Path | Image.Image | Clip,
    label: str | None = ...,
    rate: float | None = ...,
    device: str | torch.device | None = ...,
    progress: bool = ...,
    *,
    clean: bool | None = ...,
) -> Explanation: ...


@overload
def explain(
    model: Reference,
    images: list[Any] | tuple[Any, ...],
    label: str | None = ...,
    rate: float | None = ...,
    device: str | torch.device | None = ...,
    progress: bool = ...,
    *,
    clean: bool | None = ...,
) -> list[Explanation]: ...


@overload
def explain(
    model: Reference,
    images: Inputs,
    label: str | None = ...,
    rate: float | None = ...,
    device: str | torch.device | None = ...,
    progress: bool = ...,
    *,
    clean: bool | None = ...,
) -> Any: ...


def explain(
    model: Reference,
    images: Inputs,
    label: str | None = None,
    rate: float | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    *,
    clean: bool | None = None,
) -> Any:
    """Find where in a still or clip the evidence for a class is, by Grad-CAM.

    The map is that of the last feature map of the network (Selvaraju et al., ICCV 2017). Frames go
    through the network whole, as for `embed`; only what is drawn is cut to the beam. A network
    without a classifier has its embedding explained instead: what makes up its component along the
    clip's mean embedding.

    Args:
        model: whatever `network.load` takes, if it is convolutional; a network of one's own is left
            as it was.
        images: a still, video, DICOM file or folder of frames, which is one source, as `find`
            counts them; an image or clip in memory; or several, see `inputs.one_by_one`.
        label: the class to explain; the most probable of the clip if None.
        rate: frames a second to sample, None for those of the network; of a clip no more than its
            first 200 are taken.
        device: as for `embed`.
        progress: show a bar.
        clean: whether the network sees frames that are cut to the beam, and cleaned of what is
            drawn in it; as it was made if None. What is drawn is what it sees.

    Returns:
        The `Explanation`, to look at or to `save`; of several a list.

    Raises:
        DataError: if the class is unknown, the network is not convolutional, a folder holds
            several sources, or the frames are of several sizes.
        UnreadableError: if a file cannot be decoded.
        UnknownModelError: if no model is of that name.
        MissingDependencyError: if grad-cam, or the library of a file, is not installed.
    """
    items = one_by_one(images)
    if not items:
        raise DataError("there is nothing to explain: name a file, or give an image")
    network = load(model, device)
    if label is not None and label not in network.classes:
        known = ", ".join(network.classes) or "none: it has no classifier"
        raise DataError(f"{network.name}: has no class {label!r}; its classes are {known}")
    look = network.look(rate, clean)
    if several(images) is None:
        return _explain(network, look, _source(items[0], "image"), label, progress)
    sources = [_source(item, f"image {number}") for number, item in enumerate(items)]
    bar = tqdm(sources, unit="source", disable=not progress)
    return [_explain(network, look, source, label, False) for source in bar]


def _explain(
    network: Network, look: Look, source: Source, label: str | None, progress: bool
) -> Explanation:
    # of the frames that are looked at, as the page and `shortcut` have it
    detected = look.cleaner(source).beam if look.clean else beam(look.clip(source))
    if detected.kind == UNKNOWN or detected.confidence < DOUBTFUL:
        height, width = detected.mask.shape
        everywhere = np.ones_like(detected.mask)
        detected = replace(detected, mask=everywhere, kind=UNKNOWN, box=(0, 0, width, height))
    opened = look.at(source)
    resized: list[NDArray[np.uint8]] = []
    drawn: list[Image.Image] = []
    times: list[float] = []
    path = path_of(source)
    cutting = _Cutting(_cropped(detected) if look.clean else detected, path)
    for frame in islice(opened, MOST_FRAMES):
        resized.append(network.transform.resize(frame.image))
        drawn.append(cutting(frame.image))
        times.append(frame.time)
    cut = next(opened, None) is not None
    scores, distances = network.run(resized)
    chosen: Any
    if network.classes:
        place = int(scores.mean(axis=0).argmax()) if label is None else network.classes.index(label)
        label, chosen, scores = network.classes[place], place, scores[:, place]
    else:
        chosen = scores.mean(axis=0)
        lengths = np.linalg.norm(scores, axis=1) * np.linalg.norm(chosen)
        scores = scores @ chosen / np.maximum(lengths, 1e-12)
    maps = heat_maps(network, resized, chosen, progress)
    heat, outside = cutting.heat(maps)
    return Explanation(
        source=path,
        network=network.name,
        label=label,
        scores=scores,
        calibrated=network.answers is not None,
        unlike=network.is_unlike(distances),
        times=np.array(times),
        frames=drawn,
        heat=heat,
        outside=outside,
        beam=detected,
        rate=look.rate,
        clean=look.clean,
        guarded=network.statistics is not None,
        cut=cut,
        number=network.answers is not None and network.answers.task == NUMBER,
    )


def _cropped(detected: Beam) -> Beam:
    """A beam in pixels of its own box, to which frames have been cut."""
    left, top, right, bottom = detected.box
    mask = detected.mask[top:bottom, left:right]
    return replace(detected, mask=mask, box=(0, 0, right - left, bottom - top))


def _source(item: Any, called: str) -> Source:
    """The one source that is meant: a folder of stills is as many as it holds, not a clip."""
    if not isinstance(item, (str, Path)):
        return source_of(item, called)
    sources = [source.path for source, _ in name_sources(item)]
    if len(sources) != 1:
        raise DataError(
            f"{item}: holds {len(sources)} sources, which are no clip; explain one of them, as "
            f"{sources[0]}"
        )
    return sources[0]


class _Cutting:
    """Cuts frames and maps to the box of the beam, and blanks them outside the beam."""

    def __init__(self, detected: Beam, source: Path) -> None:
        self.source = source
        left, top, right, bottom = detected.box
        self.mask = detected.mask
        self.box = detected.box
        scale = min(_LONGEST / max(right - left, bottom - top), 1)
        self.size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
        inside = Image.fromarray(detected.mask[top:bottom, left:right])
        self.inside = inside.convert("L").resize(self.size, Image.Resampling.BILINEAR)

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size != self.mask.shape[::-1]:
            width, height = image.size
            raise DataError(
                f"{self.source}: its frames are of several sizes, {width} x {height} among them"
            )
        small = image.resize(self.size, Image.Resampling.BICUBIC, box=self.box)
        return Image.composite(small, Image.new("RGB", self.size), self.inside)

    def heat(self, maps: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Maps (T, h, w) of whole frames to those of cut ones, 0-1, and the share outside."""
        height, width = self.mask.shape
        inside = np.asarray(self.inside, np.float32) / 255
        heat = np.empty((len(maps), self.size[1], self.size[0]), np.float32)
        within = total = 0.0
        for target, values in zip(heat, maps, strict=True):
            # bilinear: cubic would overshoot, and make evidence where there is none
            large = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
            total += float(np.asarray(large).sum(dtype=np.float64))
            within += float(np.asarray(large)[self.mask].sum(dtype=np.float64))
            small = large.resize(self.size, Image.Resampling.BILINEAR, box=self.box)
            target[...] = np.asarray(small) * inside
        highest = float(heat.max())
        if highest > 0:
            heat /= highest
        return heat, 1 - within / total if total > 0 else 0.0


class _Seen(nn.Module):
    """A network in two halves, so that its last feature map is the output of a module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        # a copy: hooks, gradients and modes of the caller's own are not touched; and of single
        # precision, since the sums of a map in bfloat16 would be good to two digits
        self.network: Any = copy.deepcopy(network.module).float().requires_grad_(False).eval()
        self.last = nn.Identity()
        self.headless = not network.classes

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.last(self.network.forward_features(inputs))
        if features.ndim != 4 or features.shape[1] != self.network.num_features:
            raise DataError(
                f"{type(self.network).__name__}: Grad-CAM needs a convolutional network of timm"
            )
        outputs: Tensor = self.network.forward_head(features, pre_logits=self.headless)
        return outputs


def heat_maps(
    network: Network, frames: Sequence[NDArray[np.uint8]], chosen: Any, progress: bool
) -> NDArray[np.float32]:
    """Grad-CAM of frames by the last feature map of a network.

    Args:
        network: and its input.
        frames: uint8, as `FrameTransform.resize` leaves them, T of them.
        chosen: the number of the class; of a network without classes, the embedding to explain.
        progress: show a bar.

    They are computed in single precision, with gradients, whatever the caller has switched off.

    Returns:
        float32 (T, h, w), at least 0, not scaled, in the resolution of the feature map.

    Raises:
        DataError: if the network is not convolutional.
        MissingDependencyError: if grad-cam is not installed.
    """
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise MissingDependencyError(
            "explaining needs grad-cam; install it by: pip install 'uscl-zoo[explain]'"
        ) from error
    if not hasattr(network.module, "forward_head"):
        raise DataError(f"{network.name}: Grad-CAM needs a convolutional network of timm")
    device = next(network.module.parameters()).device

    def target(output: Tensor) -> Tensor:
        if network.classes:
            return output[chosen]
        # not the cosine, which is at its highest for a still, and has no gradient there
        return output @ normalize(torch.from_numpy(chosen).to(output), dim=0)

    transform: FrameTransform = network.transform
    maps = []
    with (
        tqdm(total=len(frames), unit="frame", disable=not progress or len(frames) <= _BATCH) as bar,
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        seen = _Seen(network)
        cam = GradCAM(seen, [seen.last])

        def maps_of(inputs: Tensor) -> NDArray[np.float32]:
            inputs, targets = inputs.requires_grad_(), [target] * len(inputs)
            cam(inputs, targets)
            # what it returns is scaled by frame, and frames could not be compared
            kept = cam.activations_and_grads
            parts = (tensors[0].numpy() for tensors in (kept.activations, kept.gradients))
            raw = cam.get_cam_image(inputs, seen.last, targets, *parts)
            return np.asarray(np.maximum(raw, 0), np.float32)

        for start in range(0, len(frames), _BATCH):
            batch = torch.from_numpy(np.stack(frames[start : start + _BATCH])).to(device)
            inputs = transform.normalise(batch)
            heat = maps_of(inputs)
            if network.flips:
                # of the two looks whose mean is the answer
                heat += maps_of(inputs.flip(3))[:, :, ::-1]
                heat /= 2
            maps.append(heat)
            bar.update(len(batch))
    return np.concatenate(maps)
