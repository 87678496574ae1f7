"""A picture of what a network sees in one clip.

Drawn with Pillow, so that it needs nothing beyond the core dependencies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .drawing import (
    FAINT,
    INK,
    PLASMA,
    RULE,
    VIRIDIS,
    Box,
    Floats,
    Page,
    coloured,
    fitted,
    stamp,
    ticks,
)
from .embedding.extraction import embed_frames
from .errors import DataError
from .files import check_output, expanded, written
from .ultrasound.clip import Frame
from .ultrasound.phantom import lung_clip
from .ultrasound.reading import sample
from .ultrasound.sources import inputs_of
from .zoo import weights_cache
from .zoo.catalogue import model_info, own_folder
from .zoo.registry import create_model

#: Frames a second taken from a user's clip, and how many at most.
RATE, MOST_FRAMES = 10.0, 100

#: Of the picture, by the suffix of its name.
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# The picture in points.
_WIDTH, _HEIGHT = 1200, 800


def run(model_name: str, clip_path: Path | None = None, output: Path = Path("demo.png")) -> Path:
    """Embed a clip frame by frame and draw how the embedding moves.

    The picture shows the frames, the cosine similarity of each pair of them as the pretrained
    network and the same network with random weights see it, and the path of the embedding in its
    first two principal components. What is loaded, and from where, is printed.

    Args:
        model_name: a model or checkpoint of the zoo, or the folder of a model.
        clip_path: a video, animation or folder of frames; None for the synthetic phantom.
        output: of the picture; its suffix, e.g. `.png`, is the format.

    Returns:
        The path of the picture.

    Raises:
        DataError: if the clip has fewer than three frames, or the picture cannot be written or
            would replace the clip.
        UnreadableError: if the clip cannot be decoded.
        UnknownModelError: if no model is of that name.
        WeightsNotFoundError: if its weights are not in reach.
    """
    output = expanded(output)
    if output.suffix.lower() not in _FORMATS:
        raise DataError(f"{output}: the name should end in .png, .jpg or .webp")
    check_output(output, () if clip_path is None else inputs_of([clip_path]), picture=True)
    card, folder = model_info(model_name), own_folder(model_name)
    located = weights_cache.locate(card, folder)
    name = card.name if folder is None else str(folder)
    pretrained = create_model(name, pretrained=True, num_classes=0)
    print(f"{card.name}: {located.source}, {located.path}")

    clip = _Clip.of(clip_path)
    started = time.perf_counter()
    seen = embed_frames(pretrained, clip.frames(keep=True))
    if len(seen) < 3:
        raise DataError(f"{clip.name}: has {len(seen)} frames; the picture needs three or more")
    seconds = time.perf_counter() - started
    print(
        f"{clip.name}: {len(seen)} frames embedded in {seconds:.1f} s, {seen.shape[1]} numbers each"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = create_model(card.model)
    picture = _draw(card.name, clip, seen, embed_frames(untrained, clip.frames()))
    with written(output) as partial:
        kind = _FORMATS[output.suffix.lower()]
        picture.save(partial, kind, dpi=(200, 200), **stamp(kind))
    print(f"{output}: written")
    return output


@dataclass
class _Clip:
    """A clip that can be gone through more than once.

    Attributes:
        name: for people.
        synthetic: whether it is the phantom.
        open: decodes it anew.
        times: seconds, of the frames kept.
        thumbnails: of the frames kept.
    """

    name: str
    synthetic: bool
    open: Callable[[], Iterator[Frame]]
    times: list[float]
    thumbnails: list[Image.Image]

    @classmethod
    def of(cls, path: Path | None) -> _Clip:
        if path is not None:
            path = Path(path)
            return cls(path.name, False, lambda: islice(sample(path, RATE), MOST_FRAMES), [], [])
        pixels, times = lung_clip()

        def draw() -> Iterator[Frame]:
            for when, frame in zip(times, pixels, strict=True):
                yield Frame(float(when), Image.fromarray(frame))

        return cls("synthetic lung phantom", True, draw, [], [])

    def frames(self, keep: bool = False) -> Iterator[Image.Image]:
        for when, image in self.open():
            if keep:
                self.times.append(when)
                small = image.copy()
                small.thumbnail((400, 400))
                self.thumbnails.append(small)
            yield image

    @property
    def axis(self) -> tuple[Floats, str]:
        """Where the frames lie on the time axis, and its label."""
        times = np.array(self.times)
        if np.isnan(times).any():
            return np.arange(len(times), dtype=float), "frame"
        return times, "time / s"


def similarity(features: Floats) -> Floats:
    """Cosine similarity of each pair of N embeddings: (N, D) to (N, N)."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(norms, 1e-12)
    cosines: Floats = np.clip(unit @ unit.T, -1, 1)
    return cosines


def principal_components(features: Floats) -> tuple[Floats, Floats]:
    """Project embeddings onto their first two principal components.

    Returns:
        Coordinates (N, 2), and the shares of the variance that the two hold (2,).
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    shares = scale**2 / max(float((scale**2).sum()), 1e-30)
    return left[:, :2] * scale[:2], shares[:2]


def _draw(name: str, clip: _Clip, seen: Floats, unseen: Floats) -> Image.Image:
    page = Page(_WIDTH, _HEIGHT)
    positions, label = clip.axis
    left, right = 48, _WIDTH - 48
    page.text((left, 34), f"One clip, frame by frame, as {name} sees it", 27)
    page.text((left, 70), _about(clip, positions, seen), 14.5, FAINT)
    if clip.synthetic:
        page.tag((right, 34), "SYNTHETIC CLIP")

    _filmstrip(page, (left, 102, right, 284), clip, label)

    ours, theirs = similarity(seen), similarity(unseen)
    low = min(float(ours.min()), float(theirs.min()), 0.999)
    side, top = 318, 372
    page.text((left, top - 46), "Similarity of its frames", 17)
    matrices = (
        (left + 44, "pretrained weights", ours),
        (left + 44 + side + 52, "random weights, same colours", theirs),
    )
    for x, title, matrix in matrices:
        page.text((x, top - 21), title, 13.5, FAINT)
        box = (x, top, x + side, top + side)
        page.image(box, coloured((matrix - low) / (1 - low), VIRIDIS), Image.Resampling.NEAREST)
        page.frame(box)
        _axes(page, box, positions, label, vertical=x < 200)
    bar_x = left + 44 + 2 * side + 52 + 18
    _colour_bar(page, (bar_x, top, bar_x + 12, top + side), low)
    page.text((bar_x - 4, top - 21), "cosine", 13.5, FAINT)

    x = bar_x + 92
    page.text((x, top - 46), "Path of the embedding", 17)
    page.text((x, top - 21), "pretrained weights, principal components", 13.5, FAINT)
    _path(page, (x, top, right, top + side), seen, positions, label)

    for index, words in enumerate(_captions(clip, ours, theirs)):
        page.text((left, _HEIGHT - 42 + 20 * index), words, 13.5, FAINT)
    return page.finish()


def _about(clip: _Clip, positions: Floats, features: Floats) -> str:
    count, width = features.shape
    span = "" if math.isnan(clip.times[0]) else f" over {positions[-1] - positions[0]:.1f} s"
    cut = ", its beginning" if not clip.synthetic and count == MOST_FRAMES else ""
    name = clip.name if len(clip.name) <= 60 else f"{clip.name[:40]}…{clip.name[-19:]}"
    return f"{name}{cut}: {count} frames{span}, {width} numbers a frame"


def _captions(clip: _Clip, ours: Floats, theirs: Floats) -> list[str]:
    """In figures what the matrices show: neighbours against the two ends of the clip."""
    third = max(len(ours) // 3, 1)

    def figures(matrix: Floats) -> str:
        near = float(np.diagonal(matrix, 1).mean())
        far = float(matrix[:third, -third:].mean())
        return f"{near:.4f} and {far:.4f}"

    lines = [
        "Mean cosine of neighbouring frames, and of the first third of the clip with the last: "
        f"{figures(ours)} pretrained, {figures(theirs)} random."
    ]
    if clip.synthetic:
        lines.append(
            "Drawn, not recorded: A-lines give way to B-lines in the second half. "
            "It shows how to read the picture and is no evidence of anything else."
        )
    return lines


def _filmstrip(page: Page, box: Box, clip: _Clip, label: str) -> None:
    left, top, right, bottom = box
    gap, caption = 8, 22
    height = bottom - top - caption
    aspect = clip.thumbnails[0].width / clip.thumbnails[0].height
    count = int((right - left + gap) // (height * min(max(aspect, 0.5), 2.5) + gap))
    count = min(count, len(clip.thumbnails))
    width = (right - left + gap) / count - gap if count > 3 else height * aspect
    for slot, index in enumerate(
        np.linspace(0, len(clip.thumbnails) - 1, count).round().astype(int)
    ):
        x = left + slot * (width + gap)
        cell = (x, top, x + width, top + height)
        page.fill(cell, (0, 0, 0))
        page.image(fitted(cell, clip.thumbnails[index].size), clip.thumbnails[index])
        when = f"frame {index}" if label == "frame" else f"{clip.times[index]:.2f} s"
        page.text((x + width / 2, bottom - 8), when, 13, FAINT, "mm")


def _axes(page: Page, box: Box, positions: Floats, label: str, vertical: bool) -> None:
    left, top, right, bottom = box
    first, last = float(positions[0]), float(positions[-1])
    for value, text in ticks(first, last, 6):
        # frames are cells, so the first lies half a cell from the edge
        share = (0.5 + (value - first) / (last - first) * (len(positions) - 1)) / len(positions)
        x, y = left + share * (right - left), top + share * (bottom - top)
        page.line([(x, bottom), (x, bottom + 5)], RULE, 1)
        page.text((x, bottom + 14), text, 12.5, FAINT, "mm")
        if vertical:
            page.line([(left - 5, y), (left, y)], RULE, 1)
            page.text((left - 9, y), text, 12.5, FAINT, "rm")
    page.text(((left + right) / 2, bottom + 34), label, 13, INK, "mm")
    if vertical:
        page.text((left - 42, (top + bottom) / 2), label, 13, INK, "mm", upright=True)


def _colour_bar(page: Page, box: Box, low: float) -> None:
    _, top, right, bottom = box
    page.image(box, coloured(np.linspace(1, 0, 256)[:, None], VIRIDIS))
    page.frame(box)
    for value, text in ticks(low, 1.0, 5):
        y = bottom - (value - low) / (1 - low) * (bottom - top)
        page.line([(right, y), (right + 4, y)], RULE, 1)
        page.text((right + 8, y), text, 12.5, FAINT, "lm")


def _path(page: Page, box: Box, features: Floats, positions: Floats, label: str) -> None:
    left, top, right, bottom = box
    points, shares = principal_components(features)
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    # one scale for both axes, or the path would be bent
    span = np.maximum(np.ptp(points, axis=0), 1e-9)
    scale = 0.86 * min((right - left) / span[0], (bottom - top) / span[1])
    xy = [
        ((left + right) / 2 + (x - middle[0]) * scale, (top + bottom) / 2 - (y - middle[1]) * scale)
        for x, y in points
    ]
    page.frame(box)
    colours = coloured(np.linspace(0, 0.92, len(xy))[None], PLASMA)
    page.line(xy, RULE, 1.2)
    radius = 4.2 if len(xy) <= 60 else 3.4
    for index, point in enumerate(xy):
        red, green, blue = colours.getpixel((index, 0))  # type: ignore[misc]
        page.dot(point, radius, (red, green, blue))
    share = [f"{100 * value:.0f} %" for value in shares]
    page.text(
        ((left + right) / 2, bottom + 14), f"component 1, {share[0]} of variance", 13, INK, "mm"
    )
    page.text(
        (left - 16, (top + bottom) / 2), f"component 2, {share[1]}", 13, INK, "mm", upright=True
    )
    # time runs along the colours
    bar = (left + 62, bottom + 30, right - 62, bottom + 39)
    page.image(bar, coloured(np.linspace(0, 0.92, 256)[None], PLASMA))
    unit = "" if label == "frame" else " s"
    ends = [
        f"{'frame ' if label == 'frame' else ''}{value:.4g}{unit}" for value in positions[[0, -1]]
    ]
    page.text((bar[0] - 8, bottom + 34.5), ends[0], 12.5, FAINT, "rm")
    page.text((bar[2] + 8, bottom + 34.5), ends[1], 12.5, FAINT, "lm")
