"""Whether pretraining works: alignment, uniformity, nearest neighbours, and a picture.

All of it is for people to look at: nothing is chosen by it. Frames are taken evenly over a video
and shown under the deterministic transform, so that two measurements differ by the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uscl_zoo.files import written
from uscl_zoo.inference import outputs

from ..learning import augment
from ..learning.feed import Feed
from ..learning.frames import Video
from ..learning.pairs import Purpose, stream
from ..learning.recipe import Recipe
from .network import UsclNetwork

#: Frames a video that are embedded to measure, and to draw; all of a shorter one.
FRAMES, DRAWN = 4, 6
#: Videos of a split that are looked at, to measure and to draw; drawn by the seed where there are
#: more.
VIDEOS, SHOWN = 512, 96
#: Neighbours that vote, and the temperature of a vote's weight, exp(cosine / τ).
NEIGHBOURS, TAU = 20, 0.07
_BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """Frames of some videos, embedded.

    Attributes:
        h: float32 (N, num_features), pooled features, unit vectors.
        z: float32 (N, projection_dim), projections, unit vectors.
        video: int64 (N,), which of the videos.
        videos: those looked at.
    """

    h: Tensor
    z: Tensor
    video: npt.NDArray[np.int64]
    videos: tuple[Video, ...]


def measure(
    network: UsclNetwork,
    feed: Feed,
    recipe: Recipe,
    train_videos: Sequence[Video],
    heldout_videos: Sequence[Video],
    precision: str,
    size: int | None = None,
) -> dict[str, float]:
    """What a row of the history says of the embedding.

    Alignment and uniformity are those of the projections z, on whose sphere NT-Xent is; nearest
    neighbours are those of the pooled features h, which a backbone of the zoo gives (cosine, 20
    neighbours, a vote weighs exp(cosine / 0.07), as Wu et al., CVPR 2018, section 3.4). The bank is
    frames of training videos; a video is judged by the votes of all its frames. Of either split at
    most 512 videos are looked at, and 4 frames of a video.

    Args:
        network: left in the mode it was in.
        feed: frames.
        recipe: mean, std and seed.
        train_videos: those trained on.
        heldout_videos: those held out.
        precision: of the encoder, `float32` or `bf16`.
        size: side in pixels at which frames are shown; None for the store's.

    Returns:
        "alignment" and "uniformity", the same as "held-out alignment" and "held-out uniformity",
        and the balanced accuracies "kNN, held-out frames" and "kNN, held-out videos"; without those
        that the videos do not allow: an alignment takes a video of two frames, a uniformity two
        videos, and neighbours labelled videos on both sides, of two classes.
    """
    row: dict[str, float] = {}
    sides = []
    for name, videos in (("", train_videos), ("held-out ", heldout_videos)):
        chosen = _choose(videos, VIDEOS, recipe)
        side = embed(network, feed, recipe, chosen, FRAMES, precision, size)
        sides.append(side)
        for quantity, of in (("alignment", alignment), ("uniformity", uniformity)):
            value = of(side.z, side.video)
            if value is not None:
                row[f"{name}{quantity}"] = value
    scores = neighbours(*sides)
    if scores is not None:
        row["kNN, held-out frames"], row["kNN, held-out videos"] = scores
    return row


def alignment(z: Tensor, video: npt.NDArray[np.int64]) -> float | None:
    """How far apart the frames of a video lie (Wang & Isola, ICML 2020, section 4.1, α = 2).

    L_align = E ‖f(x) − f(y)‖², over pairs of distinct frames of a video, then over videos. 0 is
    best; 2 is what unrelated frames have on a sphere that is evenly filled.

    Args:
        z: (N, D), unit vectors.
        video: (N,), whose frames they are.

    Returns:
        None if no video has two frames.
    """
    _, whose, count = np.unique(video, return_inverse=True, return_counts=True)
    if count.max(initial=0) < 2:
        return None
    own, frames = (torch.from_numpy(values).to(z.device) for values in (whose, count))
    # the diagonal is zero
    near = (_square_distances(z) * (own[:, None] == own)).sum(dim=1)
    total = near.new_zeros(len(count)).index_add(0, own, near)
    # of a video of one frame 0 by 1
    mean = total / (frames * (frames - 1)).clamp(min=1)
    return mean.sum().item() / int((count > 1).sum())


def uniformity(z: Tensor, video: npt.NDArray[np.int64]) -> float | None:
    """How evenly frames fill the sphere (Wang & Isola, ICML 2020, section 4.1, t = 2).

    L_uniform = log E exp(−2 ‖f(x) − f(y)‖²), over pairs of frames of different videos: of two
    independent draws among many videos, none are of one. 0 is a single point, −4 about the least.

    Args:
        z: (N, D), unit vectors.
        video: (N,), whose frames they are.

    Returns:
        None if there is a single video.
    """
    if len(np.unique(video)) < 2:
        return None
    whose = torch.from_numpy(video).to(z.device)
    apart = whose[:, None] != whose
    kernel = torch.exp(-2 * _square_distances(z)) * apart
    return (kernel.sum() / apart.sum()).log().item()


def _square_distances(z: Tensor) -> Tensor:
    # by differences: near 0, 2 less twice the cosine is all rounding
    return torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").square()


def neighbours(bank: Embedded, queries: Embedded) -> tuple[float, float] | None:
    """Balanced accuracy of the nearest neighbours' votes, by frame and by video.

    Args:
        bank: frames that vote; those without a label do not.
        queries: frames that are judged; those without a label, or with one the bank lacks, are not.

    Returns:
        None unless there are two classes in the bank and a query.
    """
    classes = sorted({v.label for v in bank.videos if v.label is not None})
    index = {label: i for i, label in enumerate(classes)}

    def targets(side: Embedded) -> npt.NDArray[np.int64]:
        own = np.array([index.get(v.label or "", -1) for v in side.videos], dtype=np.int64)
        return own[side.video]

    voters, judged = targets(bank), targets(queries)
    known, asked = voters >= 0, judged >= 0
    if len(classes) < 2 or not asked.any():
        return None
    voting, judging = (torch.from_numpy(mask).to(bank.h.device) for mask in (known, asked))
    similarity = queries.h[judging] @ bank.h[voting].T
    best = similarity.topk(min(NEIGHBOURS, similarity.shape[1]), dim=1)
    label = torch.from_numpy(voters[known]).to(bank.h.device)
    whose = F.one_hot(label[best.indices], len(classes))
    votes = ((best.values / TAU).exp()[:, :, None] * whose).sum(dim=1).cpu().numpy()
    target, video = judged[asked], queries.video[asked]
    by_video = np.unique(video)
    summed = np.stack([votes[video == one].sum(axis=0) for one in by_video])
    of_video = np.array([target[video == one][0] for one in by_video])
    return _balanced(votes, target), _balanced(summed, of_video)


def _balanced(votes: npt.NDArray[np.float32], target: npt.NDArray[np.int64]) -> float:
    right = votes.argmax(axis=1) == target
    return float(np.mean([right[target == label].mean() for label in np.unique(target)]))


def _choose(videos: Sequence[Video], most: int, recipe: Recipe) -> list[Video]:
    """At most so many videos, in their order and the same ones whenever asked."""
    shuffled = stream(recipe.seed, 0, Purpose.MONITOR).permutation(len(videos))
    return [videos[i] for i in sorted(shuffled[:most])]


def embed(
    network: UsclNetwork,
    feed: Feed,
    recipe: Recipe,
    videos: Sequence[Video],
    frames: int,
    precision: str,
    size: int | None = None,
) -> Embedded:
    """Embed at most `frames` frames of each video, evenly over it, by the deterministic transform.

    By the averaged batch statistics; the network is left in the mode it was in.

    Args:
        network: on the device of `feed`.
        feed: frames.
        recipe: mean and std.
        videos: of the store that `feed` reads.
        frames: the most of a video.
        precision: of the encoder and the projection, `float32` or `bf16`.
        size: side in pixels at which frames are shown; None for the store's.

    Returns:
        Unit vectors on the device.
    """
    picks = [
        v.first + (np.arange(min(frames, v.count)) + 0.5) * v.count // min(frames, v.count)
        for v in videos
    ]
    rows = np.concatenate([np.empty(0), *picks]).astype(np.int64)

    def normalise(frames: Tensor) -> Tensor:
        images = augment.to_float(frames)
        return augment.normalise(augment.shrink(images, size or images.shape[-1]), recipe)

    def both(module: Any, inputs: Tensor) -> Tensor:
        features = module.encoder(inputs)
        return torch.cat([features, module.projection(features)], dim=1)

    # of no videos a batch of no frames, whose features have their width
    starts = range(0, max(len(rows), 1), _BATCH)
    batches = (feed.take(rows[start : start + _BATCH]) for start in starts)
    values = torch.cat(list(outputs(network, normalise, batches, both, precision)))
    width = network.encoder.num_features
    h, z = F.normalize(values[:, :width]), F.normalize(values[:, width:])
    video = np.repeat(np.arange(len(videos)), [len(pick) for pick in picks]).astype(np.int64)
    return Embedded(h, z, video, (*videos,))


def picture(
    network: UsclNetwork,
    feed: Feed,
    recipe: Recipe,
    train_videos: Sequence[Video],
    heldout_videos: Sequence[Video],
    precision: str,
    path: Path,
    size: int | None = None,
) -> None:
    """Draw the embedding in two dimensions, coloured by class and by video.

    t-SNE (van der Maaten & Hinton, JMLR 2008) of the pooled features h, of at most 96 videos of
    either split and 6 frames of each, from the same start whenever the seed is. Distances between
    clusters mean little in it; what to see is whether a video's frames lie together, and whether
    videos of one class do.

    Args:
        network: left in the mode it was in.
        feed: frames.
        recipe: mean, std and seed.
        train_videos: those trained on.
        heldout_videos: those held out.
        precision: of the encoder, `float32` or `bf16`.
        path: of the PNG, replaced whole. Not written where there are fewer than five frames.
        size: side in pixels at which frames are shown; None for the store's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE  # slow to import

    from ..learning.plots import in_legend

    train = _choose(train_videos, SHOWN, recipe)
    videos = [*train, *_choose(heldout_videos, SHOWN, recipe)]
    shown = embed(network, feed, recipe, videos, DRAWN, precision, size)
    if len(shown.h) < 5:
        return
    flat = TSNE(
        perplexity=min(30.0, (len(shown.h) - 1) / 4),
        init="pca",
        random_state=recipe.seed % 2**32,
        n_jobs=1,
    ).fit_transform(shown.h.cpu().numpy())
    heldout = shown.video >= len(train)
    classes = sorted({v.label for v in videos if v.label is not None})
    named = [*classes, *(["no label"] if any(v.label is None for v in videos) else [])]
    which = np.array([named.index(v.label or "no label") for v in videos])[shown.video]

    figure = Figure(figsize=(12.5, 6), layout="constrained")
    by_class, by_video = figure.subplots(1, 2)
    for i, name in enumerate(named):
        colour = "0.7" if name == "no label" else f"C{i % 10}"
        for held, marker, size in ((False, "o", 9), (True, "^", 26)):
            dots = flat[(which == i) & (heldout == held)]
            label = in_legend(f"{name}, {'held out' if held else 'trained on'}")
            if len(dots):
                by_class.scatter(*dots.T, s=size, marker=marker, color=colour, label=label, lw=0)
    legend = by_class.legend(
        fontsize=8, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0.0)
    )
    for text in legend.get_texts():
        # names of classes are no formulas
        text.set_parse_math(False)
    by_class.set_title("by class")
    for i in range(len(videos)):
        # a line through the frames in the order of time
        own = flat[shown.video == i]
        style = {"color": _colour(i), "marker": "^" if i >= len(train) else "o"}
        by_video.plot(*own.T, lw=0.5, ms=3, mew=0, alpha=0.8, **style)
    by_video.set_title("by video: one colour, and a line through its frames in time")
    for axes in (by_class, by_video):
        axes.set(xticks=[], yticks=[])
    figure.suptitle(
        f"t-SNE of {len(flat)} frames of {len(train)} training videos (dots) and "
        f"{len(videos) - len(train)} held-out videos (triangles), pooled features"
    )
    with written(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))


def _colour(index: int) -> tuple[float, float, float]:
    """Colours of which neighbours differ, as many as one likes."""
    from matplotlib.colors import hsv_to_rgb

    # steps of the golden ratio never fall on one another
    hue, shade = index * 0.618034 % 1, index % 3
    red, green, blue = hsv_to_rgb((hue, (0.9, 0.6, 0.8)[shade], (0.85, 0.9, 0.55)[shade]))
    return float(red), float(green), float(blue)
