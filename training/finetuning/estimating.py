"""How long fine-tuning will take, by a few steps that are measured and thrown away."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from uscl_zoo.inference import batched, infer
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.card import Input

from ..downstream.goal import Goal
from ..downstream.sample import Sample
from ..downstream.settings import Settings
from .judging import look
from .tuning import Tuner, sides_of

#: Steps of each size that are measured, after one that is not.
STEPS = 2
#: Frames of which looking is measured.
LOOKED = 32
#: Seconds of pictures and files at the end, and of a file that is blanked, on a core of 2.6 GHz.
END, BLANKING = 6.0, 0.5


def estimate(
    network: nn.Module,
    frames: npt.NDArray[np.uint8],
    runs: Sequence[tuple[Sample, Settings]],
    looked: int,
    embedded: int,
    blanked: int,
    device: torch.device,
    shape: Input,
    goal: Goal,
) -> float:
    """Seconds that some runs will take, with looking at frames at their end.

    Args:
        network: with its classifier; it is used up.
        frames: uint8 (N, H, W, 3).
        runs: what each trains on, and how.
        looked: frames that are looked at after training.
        embedded: frames that networks to compare with are shown.
        blanked: files whose answers are compared with those for less of them.
        device: to compute on.
        shape: of the input.
        goal: what is to be said.
    """
    full = int(frames.shape[1])
    widest, settings = max(runs, key=lambda run: len(run[0]))
    tuner = Tuner(network, frames, widest, settings, device, shape.mean, shape.std, goal)
    counts = Counter(side for run in runs for side in sides_of(*run, full))
    total = END + blanked * BLANKING
    for side, steps in counts.items():
        tuner.step(side)
        began = time.perf_counter()
        for _ in range(STEPS):
            tuner.step(side)
        total += steps * (time.perf_counter() - began) / STEPS
    rows = widest.rows[:LOOKED]
    transform = FrameTransform(shape.size[1:], shape.mean, shape.std, shape.interpolation)
    began = time.perf_counter()
    look(tuner, rows, shape)
    looking = (time.perf_counter() - began) / len(rows)
    began = time.perf_counter()
    batches = batched(frames[row] for row in rows)
    list(infer(tuner.network, transform.normalise, batches, precision=tuner.precision))
    total += embedded * (time.perf_counter() - began) / len(rows)
    # the probe, the survey of the training images, and the answers: a look at each
    times = 1 + (1 + settings.probe) * sum(len(sample) for sample, _ in runs) / max(looked, 1)
    return total + looked * times * looking


def spoken(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
