"""Which frames, which λ, which crop: every random draw of pretraining, keyed and tabulated.

A draw is a function of (seed, epoch, purpose) and of a place, by a counter-based generator
(Philox). An epoch has as many places as there are videos, and `draw_items` says which video stands
at each: its own, unless labels are sampled. So (epoch, place) is the (epoch, step, sample) of a run
whatever its batches; worker processes, ranks and interruptions cannot change a draw, because nobody
keeps a generator's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .frames import Video
from .recipe import Recipe

#: Frames of a sample: f1 and f3, and between them the anchor f2.
VIEW1, ANCHOR, VIEW2 = range(3)


class Purpose(IntEnum):
    """What a table of draws is for; each has its own stream."""

    ORDER = 0
    PAIRS = 1
    AUGMENTATION = 2
    VALIDATION = 3
    LABELS = 4
    VIDEOS = 5
    MONITOR = 6
    ITEMS = 7
    SPECKLE = 8


def stream(seed: int, epoch: int, purpose: Purpose) -> np.random.Generator:
    """The generator of one purpose in one epoch, always at its beginning."""
    # the low counter words are Philox's own; ours stay clear of them
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, int(purpose), epoch]))


@dataclass(frozen=True)
class Pairs:
    """One sample of every video: which frames, mixed how.

    Attributes:
        frames: int64 (videos, 3), rows of the store: f1, anchor f2, f3.
        lam: float32 (videos, 2), λ of view = λ f + (1 − λ) anchor for each of the two views; 1
            where nothing is mixed.
    """

    frames: npt.NDArray[np.int64]
    lam: npt.NDArray[np.float32]


def draw_pairs(
    videos: Sequence[Video], recipe: Recipe, epoch: int, validation: bool = False
) -> Pairs:
    """Positive pair generation (paper, section on PPG; METHOD steps 1 and 3).

    Three distinct frames in random order and λ ~ Beta(β, β), once or twice a video. With two frames
    there is no anchor to mix in and the two are the pair; a single frame is paired with itself, and
    only the augmentation tells the views apart. Methods to compare with see fewer of the same
    frames: `pair` and `supervised` f1 and f3 as they are, all others f1 twice.

    Args:
        videos: of the split, in the order of the store.
        recipe: method, seed, β and how many λ.
        epoch: the pass; validation always asks for pass 0, to compare like with like.
        validation: draw from the stream of validation, and as `uscl` whatever the method: without
            augmentation the two views of `simclr` would be one.
    """
    method = "uscl" if validation else recipe.method
    purpose = Purpose.VALIDATION if validation else Purpose.PAIRS
    rng = stream(recipe.seed, epoch, purpose)
    counts = np.array([video.count for video in videos])
    first = np.array([video.first for video in videos])
    # each draw picks among the frames not yet taken; shifting past the taken ones keeps it uniform
    u = rng.random((len(videos), 3))
    a = np.floor(u[:, 0] * counts).astype(np.int64)
    b = np.floor(u[:, 1] * np.maximum(counts - 1, 1)).astype(np.int64)
    b = np.where(counts > 1, b + (b >= a), a)
    low, high = np.minimum(a, b), np.maximum(a, b)
    c = np.floor(u[:, 2] * np.maximum(counts - 2, 1)).astype(np.int64)
    c += c >= low
    c += c >= high
    if method not in ("uscl", "pair", "supervised"):
        b = a
    mixed = (counts >= 3) & (method == "uscl")
    # where nothing is mixed the anchor is a frame of the video that λ = 1 leaves out
    anchor = np.where(mixed, c, a)
    drawn = rng.beta(recipe.beta, recipe.beta, (recipe.lambdas, len(videos)))
    if recipe.fold_lambda:
        drawn = np.maximum(drawn, 1 - drawn)
    lam = np.where(mixed, drawn, 1.0)
    both = np.broadcast_to(lam, (2, len(videos))).T
    return Pairs(np.stack([a, anchor, b], axis=1) + first[:, None], both.astype(np.float32))


def without(videos: Sequence[Video], recipe: Recipe) -> list[Video]:
    """Some videos less those of the sources that a recipe leaves out."""
    return [video for video in videos if video.origin not in recipe.leave_out]


def draw_videos(videos: Sequence[Video], recipe: Recipe) -> list[Video]:
    """The `data_rate` share of some videos, in their order and the same ones in every epoch.

    Of sources that are left out none.
    """
    videos = without(videos, recipe)
    shuffled = stream(recipe.seed, 0, Purpose.VIDEOS).permutation(len(videos))
    kept = shuffled[: round(recipe.data_rate * len(videos))]
    return [videos[i] for i in sorted(kept)]


def draw_labelled(videos: Sequence[Video], recipe: Recipe, classes: Sequence[str]) -> list[int]:
    """The class index of every video, −1 where its label is absent or not used.

    `label_rate` keeps that share of the labelled videos, the same ones in every epoch.
    """
    index = {label: i for i, label in enumerate(classes)}
    targets = np.array([index.get(video.label or "", -1) for video in videos], dtype=np.int64)
    labelled = np.flatnonzero(targets >= 0)
    shuffled = stream(recipe.seed, 0, Purpose.LABELS).permutation(labelled)
    targets[shuffled[round(recipe.label_rate * len(labelled)) :]] = -1
    return [int(target) for target in targets]


def draw_batches(places: int, recipe: Recipe, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Shuffle the places of an epoch and cut them into batches.

    A last batch below `smallest_batch` joins the one before it, so every place is seen.

    Returns:
        Places, one array a step.
    """
    return cut(stream(recipe.seed, epoch, Purpose.ORDER).permutation(places), recipe)


def draw_items(
    videos: Sequence[Video], recipe: Recipe, epoch: int, batches: Sequence[npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """Which video stands at each place of an epoch: its own, or one drawn by label.

    With `sampling_power` p below 1 a batch is drawn without replacement, a video with a weight of
    count^(p − 1), where count is how many videos have its label: by labels that is count^p.
    (Without replacement a label that fills much of a batch comes out a little below that.)

    Args:
        videos: those trained on.
        recipe: p and the seed.
        epoch: the pass.
        batches: places of every step, as `draw_batches` gives them.

    Returns:
        int64 (places,), indices of `videos`.
    """
    if recipe.sampling_power == 1:
        return np.arange(len(videos))
    counts = Counter(video.label for video in videos)
    weight = np.array([counts[v.label] ** (recipe.sampling_power - 1) for v in videos])
    rng = stream(recipe.seed, epoch, Purpose.ITEMS)
    items = np.empty(len(videos), dtype=np.int64)
    for places in batches:
        # the first of exponential waiting times are a weighted draw without replacement
        # (Efraimidis & Spirakis, 2006)
        waiting = rng.exponential(size=len(videos)) / weight
        items[places] = np.argpartition(waiting, len(places) - 1)[: len(places)]
    return items


def cut(order: npt.NDArray[np.int64], recipe: Recipe) -> list[npt.NDArray[np.int64]]:
    """Cut videos in some order into batches, as `draw_batches` does."""
    cuts = list(range(recipe.batch_size, len(order), recipe.batch_size))
    # a whole batch is never too small, though `batch_size` may be below `smallest_batch`
    if cuts and len(order) - cuts[-1] < min(recipe.smallest_batch, recipe.batch_size):
        cuts.pop()
    return np.split(order, cuts)
