"""What the same subjects give without training: linear heads on frozen features, compared in pairs.

A network that was trained is worth what it says better than a regression on the features that it
began with, which costs seconds. Beside it stand ImageNet's features, which everybody has, and those
of random weights, which know nothing but edges and brightness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from uscl_zoo import network as door
from uscl_zoo.errors import UsclError
from uscl_zoo.inference import batched, infer
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Input

from ..downstream.bootstrap import Bootstrap, Floats, Score
from ..downstream.contenders import RANDOM, random_network
from ..downstream.folds import some_subjects
from ..downstream.goal import Goal
from ..downstream.metrics import Judged
from ..downstream.sample import Rows, Sample
from ..learning.pairs import Purpose, stream

IMAGENET = "resnet18_imagenet.mit"
#: Frames that a head is fitted on at most, and of a clip that it is judged by.
MOST, LOOKS = 1000, 4
#: Draws of half of the subjects, whose mean figure is compared with that of all.
HALVES = 3
#: Folds and frames: to fit on, and to answer for.
Pairs = Sequence[tuple[Sample, Sample]]


@dataclass(frozen=True)
class Rival:
    """A linear head on frozen features, fitted on the same training subjects.

    Attributes:
        name: whose features.
        judged: clips.
        values: figures of `Goal.compared`, (resamples + 1,) each.
        gap: by figure, that of the trained network less its own.
    """

    name: str
    judged: Judged
    values: dict[str, Floats]
    gap: dict[str, Score]


@dataclass(frozen=True)
class Standing:
    """A trained network beside linear heads.

    Attributes:
        goal: what is said.
        judged: its clips.
        values: as of a rival.
        rivals: on its own features first, if it is no linear head itself.
        learns: what the linear head on its own features gains from half of the training subjects
            to all of them, by figure.
        absent: rivals whose weights cannot be had, and why.
    """

    goal: Goal
    judged: Judged
    values: dict[str, Floats]
    rivals: tuple[Rival, ...]
    learns: dict[str, Score]
    absent: tuple[str, ...] = ()

    def score(self, figure: str, values: dict[str, Floats] | None = None) -> Score:
        """A figure, of the network unless others are given, with its interval if there is one."""
        return self.goal.score(figure, (values or self.values)[figure], self.judged)

    def ahead(self, score: Score) -> Score:
        """A difference in the main figure, as more that is better."""
        return score if self.goal.rises else Score(-score.value, -score.high, -score.low)

    @property
    def own(self) -> Rival | None:
        """The linear head on the features that training began with; None of a linear head."""
        return next((rival for rival in self.rivals if rival.name == OWN), None)


#: What the features that training began with are called.
OWN = "the same features"


def heads(model: str, architecture: str, trained: bool) -> list[str]:
    """The rivals of a network that began with a model: their names.

    Args:
        model: that it began with.
        architecture: timm's name.
        trained: whether it is more than a linear head itself.
    """
    names = [OWN] if trained else []
    return names + [n for n in (IMAGENET, f"{RANDOM}:{architecture}") if n != model]


def frames_of(pairs: Pairs) -> tuple[list[tuple[Sample, Sample]], Rows]:
    """What heads are fitted on and judged by, thinned, and the frames to embed for it."""
    chosen = []
    for train, test in pairs:
        own = train.take(train.thin(LOOKS))
        own = own.take(np.sort(stream(0, 0, Purpose.VIDEOS).permutation(len(own))[:MOST]))
        chosen.append((own, test.take(test.thin(LOOKS))))
    return chosen, np.unique(np.concatenate([part.rows for pair in chosen for part in pair]))


def compare(
    names: Sequence[str],
    own: Any,
    goal: Goal,
    frames: npt.NDArray[np.uint8],
    pairs: Pairs,
    judged: Judged,
    bootstrap: Bootstrap,
    shape: Input,
    device: torch.device,
    precision: str,
    seed: int,
    progress: bool = False,
) -> Standing:
    """Fit linear heads on the training subjects of a network, and compare them with it.

    Args:
        names: of the rivals, see `heads`.
        own: the network that training began with.
        goal: what is said.
        frames: uint8 (N, H, W, 3), of the store.
        pairs: frames to train on and to be judged on; several of a cross-validation.
        judged: clips, as the trained network answers for them; `clip` of the frames to be judged on
            is a place among these.
        bootstrap: resampled subjects.
        shape: of the input of the trained network.
        device: to compute on.
        precision: of the embedding.
        seed: of the random network and the folds within.
        progress: show a bar for each of the networks.
    """
    parts, rows = frames_of(pairs)
    places = [tuple(np.searchsorted(rows, part.rows) for part in pair) for pair in parts]
    values = goal.compared(judged, bootstrap)
    rivals: list[Rival] = []
    absent: list[str] = []
    learns: dict[str, Score] = {}

    def answers(known: Any, draw: int | None = None) -> Judged:
        total = np.zeros(judged.probabilities.shape)
        count = np.zeros(len(judged))
        for (train, test), (place, asked) in zip(parts, places, strict=True):
            kept = np.arange(len(train))
            if draw is not None:
                strata = goal.strata(train.target)
                half = some_subjects(strata, train.subject, 0.5, (seed, draw))
                kept = np.flatnonzero(np.isin(train.subject, half))
            said = goal.linear(
                known[place[kept]],
                train.target[kept],
                train.subject[kept],
                known[asked],
                len(judged.classes),
                seed,
            )
            np.add.at(total, test.clip, said)
            np.add.at(count, test.clip, 1)
        every = np.ones(len(judged), bool)
        mean = total / np.maximum(count, 1)[:, None]
        return replace(judged, probabilities=mean, answered=every, unlike=~every, said=None)

    for name in names:
        try:
            module, mean, std = _network(name, own, shape, seed)
        except UsclError as error:
            absent.append(f"{name}: {error}")
            continue
        transform = FrameTransform(shape.size[1:], mean, std, shape.interpolation)
        bar = tqdm(rows, name, unit="frame", leave=False, disable=not progress)
        batches = batched((transform.resize(frames[row]) for row in bar), 64)
        known = np.concatenate(
            list(infer(module.to(device), transform.normalise, batches, precision=precision))
        )
        other = answers(known)
        theirs = goal.compared(other, bootstrap)
        gap = {k: goal.score(k, values[k] - theirs[k], judged) for k in values}
        rivals.append(Rival(name, other, theirs, gap))
        if name == OWN:
            draws = [goal.compared(answers(known, draw), bootstrap) for draw in range(HALVES)]
            for figure, whole in theirs.items():
                half = np.mean([draw[figure] for draw in draws], axis=0)
                learns[figure] = goal.score(figure, whole - half, judged)
    return Standing(goal, judged, values, tuple(rivals), learns, tuple(absent))


def _network(
    name: str, own: Any, shape: Input, seed: int
) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """A network without a classifier, and the mean and std of its input."""
    if name == OWN:
        return own, shape.mean, shape.std
    if name.startswith(RANDOM):
        # of no data either
        made = random_network(f"{name.partition(':')[2]}_uscl", seed)
        return made, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    loaded = door.load(name, "cpu")
    return loaded.module, loaded.transform.mean, loaded.transform.std
