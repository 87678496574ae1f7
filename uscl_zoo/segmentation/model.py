"""The folder of a model that outlines: what it says of itself, and its network, verified."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from ..answers import (
    ANSWERS,
    OUTLINING,
    STATISTICS,
    TEMPERATURE,
    Statistics,
    is_temperature,
    read_statistics,
    task_of,
    verified_bytes,
    warn_unguarded,
)
from ..errors import CardError, CheckpointError, DataError, HubError, reason
from ..files import expanded
from ..inference import batched, device_named, infer
from ..network import HUB, LOCAL
from ..records import from_mapping, read_json
from ..ultrasound.sources import Look
from ..ultrasound.transforms import FrameTransform
from ..zoo.card import Card, Input, Metric, Training, Weights
from ..zoo.hub import HUB_FILE, snapshot
from .detectors import build_detector, detect
from .networks import DETECTORS, SEGMENTERS, build_segmenter, maps_and_textures
from .regions import Region, components

#: Bytes of weights that are read: a Mask R-CNN on a ResNet-50 has 180 million.
_LARGEST = 1 << 31

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trust:
    """How sure one may be of a region: a logistic regression, fitted on subjects left out.

    Its answer is the probability that a region of the truth lies there (IoU of at least 0.5).

    Attributes:
        score: weight of the logit of the mean probability of its pixels, or of a detector's score.
        area: weight of the logarithm of its share of the frame.
        offset: what is added.
        regions: it was fitted on.
    """

    score: float = 1.0
    area: float = 0.0
    offset: float = 0.0
    regions: int = 0

    def __call__(self, score: Any, share: Any) -> Floats:
        """Of regions with some scores and shares of their frames, 0-1."""
        logit = self.score * trusted(score) + self.area * np.log(np.maximum(share, 1e-9))
        return np.asarray(1 / (1 + np.exp(-(logit + self.offset))))


def trusted(score: Any) -> Floats:
    """The logit of a score, bounded."""
    clipped = np.clip(np.asarray(score, np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


@dataclass(frozen=True)
class Pixels:
    """How logits of pixels become probabilities, fitted on subjects left out.

    A temperature that depends on the margin of the likeliest class over the next: networks of
    Dice's loss are too sure of most pixels, and most of all near outlines, where margins are small.
    Which class is the likeliest stays as it is.

    Attributes:
        temperature: of a margin of 1.
        exponent: logits are multiplied by the margin to the power of this less 1; 1 for a
            temperature that is the same everywhere.
    """

    temperature: float = 1.0
    exponent: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities (classes + 1, ...) of logits of that shape."""
        first, second = logits.topk(2, dim=0).values
        margin = (first - second).clamp_min(1e-6)
        return torch.softmax(logits * (margin ** (self.exponent - 1) / self.temperature), dim=0)


@dataclass(frozen=True)
class Outliner:
    """What a model that outlines says of itself; its file `predict.json`.

    Attributes:
        task: `segmentation` or `detection`.
        network: of smp or torchvision, one of `networks.SEGMENTERS` or `DETECTORS`.
        encoder: timm's name of it.
        classes: that it outlines; what is none of them is the background.
        input: what it takes.
        temperature: of the pixels, see `Pixels`; 1 for a detector.
        trust: how sure one may be of a region.
        confidence: below it a region is not said.
        threshold: distance from the training images above which an image is of another kind.
        quantile: of the distances of images that the network had not seen.
        validation_images: of how many.
        rate: frames a second to sample from videos.
        weights_sha256: digest of `model.safetensors`.
        statistics_sha256: digest of `statistics.safetensors`.
        flips: whether it says the mean over a frame and its mirror image.
        summary: a line.
        licence: of the weights, as an SPDX identifier; None where nobody says.
        intended_use: a sentence.
        limits: a sentence each.
        training: provenance.
        metrics: measured figures.
        exponent: of the pixels, see `Pixels`; 1 for a detector.
    """

    task: str
    network: str
    encoder: str
    classes: tuple[str, ...]
    input: Input
    temperature: float
    trust: Trust
    confidence: float
    threshold: float
    quantile: float
    validation_images: int
    rate: float
    weights_sha256: str
    statistics_sha256: str
    flips: bool
    summary: str
    licence: str | None
    intended_use: str
    limits: tuple[str, ...]
    training: Training
    metrics: tuple[Metric, ...] = field(default=())
    exponent: float = 1.0

    @property
    def pixels(self) -> Pixels:
        """How its logits become probabilities."""
        return Pixels(self.temperature, self.exponent)


def read_outliner(folder: Path) -> Outliner:
    """What the model of a folder says of itself.

    Raises:
        CardError: if the file is damaged.
        DataError: if the folder holds no such model.
    """
    path = folder / ANSWERS
    if task_of(folder) not in OUTLINING:
        raise DataError(
            f"{folder}: holds no model that outlines (`uscl finetune --task segmentation --data "
            f"DIR -o {folder}`)"
        )
    plain: Any = read_json(path)
    said = from_mapping(Outliner, plain, str(path))
    # a weight that is not there would be that of a model that nobody has fitted
    if lacking := [one.name for one in fields(Trust) if one.name not in plain["trust"]]:
        raise CardError(f"{path}: trust: lacks {', '.join(lacking)}; copy the model's folder again")
    known = SEGMENTERS if said.task == "segmentation" else DETECTORS
    for key, right, rule in (
        ("network", said.network in known, f"one of {', '.join(known)}"),
        ("encoder", re.fullmatch(r"\w+", said.encoder) is not None, "a name of timm"),
        ("classes", 0 < len(set(said.classes)) == len(said.classes) < 255, "different names"),
        ("input", _is_shape(said.input), "3 channels and sides from 32 to 4096 pixels"),
        ("temperature", is_temperature(said.temperature), TEMPERATURE),
        ("exponent", 0 < said.exponent < 10, "from 0 to 10"),
        ("confidence", 0 <= said.confidence <= 1, "a probability"),
        ("threshold", said.threshold > 0, "positive"),
        ("quantile", 0 < said.quantile <= 1, "a share"),
        ("rate", said.rate > 0, "positive"),
        ("weights_sha256", _is_digest(said.weights_sha256), "64 hexadecimal digits"),
        ("statistics_sha256", _is_digest(said.statistics_sha256), "64 hexadecimal digits"),
    ):
        if not right:
            raise CardError(f"{path}: {key}: should be {rule}, not {getattr(said, key)!r}")
    return said


def card_of(folder: Path) -> Card:
    """What the model of a folder says of itself as a card, from which it is described to others.

    Raises:
        CardError: as `read_outliner`.
        DataError: as `read_outliner`, or if its weights are not there.
    """
    said = read_outliner(folder)
    try:
        size = (folder / HUB_FILE).stat().st_size
    except OSError as error:
        raise DataError(f"{folder / HUB_FILE}: is not there; copy the folder again") from error
    return Card(
        name=re.sub(r"[^\w.-]+", "-", folder.resolve().name, flags=re.ASCII).strip("-.") or "model",
        architecture=said.encoder,
        summary=said.summary,
        weights=Weights(file=HUB_FILE, sha256=said.weights_sha256, bytes=size),
        input=said.input,
        training=said.training,
        licence=said.licence,
        intended_use=said.intended_use,
        limits=said.limits,
        metrics=said.metrics,
        classes=said.classes,
        task=said.task,
    )


def located(reference: str | Path) -> Path:
    """The folder of a model: a path, with or without `local-dir:`, or `hf-hub:` and a repository.

    Raises:
        HubError: if the Hub does not give it.
    """
    name = str(reference)
    if name.startswith(HUB):
        return snapshot(name.removeprefix(HUB), (ANSWERS, STATISTICS, HUB_FILE))
    return expanded(name.removeprefix(LOCAL))


def outlines(reference: str | Path) -> bool:
    """Whether that is a model that outlines; of the Hub one small file is asked for."""
    name = str(reference)
    try:
        folder = snapshot(name.removeprefix(HUB), (ANSWERS,)) if name.startswith(HUB) else None
    except HubError:
        # whoever loads it says why
        return False
    return task_of(folder or located(name)) in OUTLINING


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _is_shape(shape: Input) -> bool:
    sides = shape.size[1:]
    return (
        shape.size[0] == 3
        and all(32 <= side <= 4096 and side % 32 == 0 for side in sides)
        and min(shape.std) > 0
    )


@dataclass(frozen=True)
class Predicted:
    """What a model says of a frame.

    Attributes:
        regions: all of them, the surest first, however unsure.
        distance: of the frame from the training images.
    """

    regions: list[Region]
    distance: float


@dataclass(frozen=True)
class Model:
    """A model that outlines, and its network.

    Attributes:
        folder: of it.
        said: of itself.
        module: its network, in eval mode, on its device.
        statistics: of its training images.
    """

    folder: Path
    said: Outliner
    module: nn.Module
    statistics: Statistics

    @property
    def transform(self) -> FrameTransform:
        """What makes its input of a frame."""
        shape = self.said.input
        return FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)

    def look(self) -> Look:
        """How it looks at a clip."""
        return Look(self.said.rate)

    def adapted(self, confidence: float | None = None, rate: float | None = None) -> Model:
        """The same, with another confidence, or so many frames of a clip a second."""
        said = self.said
        if confidence is not None:
            said = replace(said, confidence=confidence)
        if rate is not None:
            said = replace(said, rate=rate)
        return replace(self, said=said)

    def __call__(self, frames: Iterable[Image.Image], batch_size: int = 8) -> Iterator[Predicted]:
        """What it says of frames, one after the other, in pixels of each."""
        sizes: list[tuple[int, int]] = []
        transform, said = self.transform, self.said

        def small() -> Iterator[NDArray[np.uint8]]:
            for frame in frames:
                sizes.append((frame.height, frame.width))
                yield transform.resize(frame)

        if said.task == "detection":
            for place, one in enumerate(detect(self.module, small(), batch_size)):
                regions = trusting(
                    one.regions(transform.size, sizes[place]), said.trust, sizes[place]
                )
                yield Predicted(regions, float(self.statistics.distance(one.textures[None])[0]))
            return
        done = 0
        for logits, textures in outputs(
            self.module, transform, small(), said.flips, len(said.classes), batch_size
        ):
            distances = self.statistics.distance(textures)
            for one, distance in zip(logits, distances, strict=True):
                size, done = sizes[done], done + 1
                regions = found_in(one, size, said.pixels, len(said.classes))
                yield Predicted(trusting(regions, said.trust, size), float(distance))


def outputs(
    module: nn.Module,
    transform: FrameTransform,
    frames: Iterable[NDArray[np.uint8]],
    flips: bool,
    classes: int,
    batch_size: int = 8,
    precision: str = "float32",
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """What a segmenter says of frames.

    Args:
        module: as `networks.build_segmenter` made it.
        transform: whose `resize` has been applied to the frames.
        frames: uint8 (H, W, 3).
        flips: say the mean over a frame and its mirror image.
        classes: without the background.
        batch_size: frames at a time.
        precision: as for `inference.infer`.

    Yields:
        Logits float32 (N, classes + 1, H, W) and textures float32 (N, D) of a batch.
    """
    height, width = transform.size

    def answer(network: nn.Module, inputs: Tensor) -> Tensor:
        maps, textures = maps_and_textures(network, inputs)
        if flips:
            mirrored, others = maps_and_textures(network, inputs.flip(3))
            maps, textures = (maps + mirrored.flip(3)) / 2, (textures + others) / 2
        # one array, as the loop hands over
        return torch.cat([maps.flatten(1), textures], dim=1)

    batches = batched(frames, batch_size)
    for out in infer(module, transform.normalise, batches, answer, precision):
        maps = out[:, : (classes + 1) * height * width]
        yield maps.reshape(-1, classes + 1, height, width), out[:, maps.shape[1] :]


def chances(logits: NDArray[np.float32], size: tuple[int, int], pixels: Pixels) -> Tensor:
    """Probabilities of the classes at each pixel of a frame.

    Args:
        logits: (classes + 1, h, w).
        size: height and width of the frame.
        pixels: what makes probabilities of them.

    Returns:
        float32 (classes + 1, H, W).
    """
    maps = torch.from_numpy(np.ascontiguousarray(logits))[None]
    large = nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    return pixels(large[0])


def found_in(
    logits: NDArray[np.float32], size: tuple[int, int], pixels: Pixels, classes: int
) -> list[Region]:
    """The regions of a frame, each scored by the mean probability of its pixels."""
    shares = chances(logits, size, pixels).numpy()
    labels = shares.argmax(axis=0).astype(np.uint8)
    regions = []
    for region in components(labels, classes):
        left, top, right, bottom = region.window
        own = shares[region.label + 1, top:bottom, left:right]
        regions.append(region.scored(float(own[region.mask].mean())))
    return regions


def trusting(regions: list[Region], trust: Trust, size: tuple[int, int]) -> list[Region]:
    """Regions of a frame with how sure one may be of them, the surest first."""
    if not regions:
        return []
    scores = np.array([region.score for region in regions])
    shares = np.array([region.area for region in regions]) / (size[0] * size[1])
    sure = trust(scores, shares).tolist()
    scored = [region.scored(score) for region, score in zip(regions, sure, strict=True)]
    return sorted(scored, key=lambda region: -region.score)


def load_outliner(folder: str | Path, device: str | torch.device | None = None) -> Model:
    """Load a model that outlines; the bytes that are used are those whose digest it names.

    Args:
        folder: that `uscl finetune` wrote; or `hf-hub:` and a repository that has one.
        device: to compute on; None for a GPU where there is one.

    Raises:
        HubError: if the Hub does not give it.
        DataError: if the folder holds none, or the device cannot be used.
        DigestError: if a file is not the one the model was written with.
        CardError: if what it says of itself is malformed.
        CheckpointError: if the weights are those of another network.
        MissingDependencyError: if the library of the network is not installed.
    """
    place = device_named(device)
    folder = located(folder)
    said = read_outliner(folder)
    seen = read_statistics(folder / STATISTICS, said)
    state = _weights(folder / HUB_FILE, said)
    frames = f"{said.validation_images} validation images"
    warn_unguarded(folder / ANSWERS, said.threshold, frames)
    try:
        if said.task == "detection":
            module = build_detector(said.network, said.encoder, len(said.classes), said.input)
        else:
            module = build_segmenter(said.network, said.encoder, len(said.classes))
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise CardError(
            f"{folder / ANSWERS}: encoder: {said.encoder!r} is none of which a {said.network} can "
            f"be built ({reason(error)})"
        ) from error
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder / HUB_FILE}: does not hold the tensors of a {said.network} on "
            f"{said.encoder} ({str(error).splitlines()[-1].strip()})"
        ) from error
    try:
        module = module.to(place).eval()
    except RuntimeError as error:
        # of no room
        raise DataError(f"{folder}: cannot be moved to {place} ({reason(error)})") from error
    return Model(folder, said, module, seen)


def _weights(path: Path, said: Outliner) -> dict[str, Tensor]:
    content = verified_bytes(path, said.weights_sha256, most=_LARGEST)
    try:
        state: dict[str, Tensor] = load_tensors(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is no readable safetensors file ({error})") from error
    # of which every answer would be that there is nothing
    if not all(bool(torch.isfinite(one).all()) for one in state.values()):
        raise CheckpointError(f"{path}: holds numbers that are not finite")
    return state
