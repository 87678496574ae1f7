"""The loop of fine-tuning, whatever is learned: steps and epochs, resumed where they were left."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from uscl_zoo.errors import CheckpointError, reason
from uscl_zoo.signals import Interrupted, listening

from ..learning.runs import load_checkpoint, save_checkpoint
from ..pretraining.trainer import NotFiniteError

#: The most of a run's time that checkpoints may take before its end.
_SHARE = 0.05


class Pace(Protocol):
    """The settings that the loop asks for."""

    @property
    def epochs(self) -> int:
        """Passes."""

    @property
    def learning_rate(self) -> float:
        """After the warm-up."""

    @property
    def warmup(self) -> float:
        """Share of the steps in which the rate rises."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: the one in progress, from 0.
        step: steps finished within it.
        total: of the loss over the steps of this epoch.
        seconds: so far, over all sittings.
        history: a row an epoch.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Learner(ABC):
    """A network that learns, one step after another; every draw is a function of (seed, epoch).

    Attributes:
        network: changed in place.
        pace: how long and at what rate.
        optimizer: its groups say in `times` how many times the rate is theirs.
        steps: of an epoch.
        progress: how far it is.
        form: of its checkpoints; pretraining's are 1.
        of: what it learns, see `work.identity`: a checkpoint of another fold has seen other images.
    """

    form: int
    of: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int

    def __init__(self, pace: Pace) -> None:
        self.pace, self.progress = pace, Progress()

    @abstractmethod
    def loss(self, side: int | None = None) -> Tensor:
        """The loss of the next step, a scalar; `side` as for `step`."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that a resumed run needs; draws need nothing, they are keyed."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""

    def begin(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what comes before the first step, if it is the first."""

    def updated(self) -> None:  # noqa: B027 - likewise
        """Do what comes after each update."""

    def finish(self) -> None:
        """Leave the network as the result, in eval mode."""
        self.network.eval()

    def cost(self, step: int) -> float:
        """What a step of all, from 0, costs beside one of full size."""
        return 1.0

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done."""
        return self.progress.epoch >= self.pace.epochs

    @property
    def done(self) -> int:
        """Steps of all epochs so far."""
        return self.progress.epoch * self.steps + self.progress.step

    @property
    def learning_rate(self) -> float:
        """Of the next step: a warm-up, then a cosine to 0."""
        pace, state = self.pace, self.progress
        done = (state.epoch + state.step / self.steps) / pace.epochs
        if done < pace.warmup:
            return float(pace.learning_rate * max(done / pace.warmup, 1e-3))
        after = min((done - pace.warmup) / (1 - pace.warmup), 1.0)
        return float(pace.learning_rate * (1 + np.cos(np.pi * after)) / 2)

    def step(self, side: int | None = None) -> None:
        """Do the next step.

        Args:
            side: of its images in pixels; None for what is planned.

        Raises:
            NotFiniteError: before anything is updated, if the loss is not finite.
        """
        state = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["times"]
        loss = self.loss(side)
        value = loss.item()
        if not np.isfinite(value):
            raise NotFiniteError(
                f"the loss is {value} in epoch {state.epoch + 1}, step {state.step + 1}; "
                "lower the learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updated()
        state.step += 1
        state.total += value

    def close_epoch(self) -> None:
        """Note the loss and begin the next epoch."""
        state = self.progress
        state.history.append(
            {
                "epoch": float(state.epoch + 1),
                "learning_rate": self.learning_rate,
                "loss": state.total / max(state.step, 1),
            }
        )
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0

    def kept(self) -> dict[str, Any]:
        """What any checkpoint holds."""
        return {
            "format": self.form,
            "of": self.of,
            "optimizer": self.optimizer.state_dict(),
            "progress": dataclasses.asdict(self.progress),
        }


def _resume(learner: Learner, state: dict[str, Any], work: Path) -> None:
    """Continue from a checkpoint.

    Raises:
        CheckpointError: if it is of another training, or of none.
    """
    advice = f"{work}: its checkpoint is of another training or damaged; delete that folder"
    if state.get("of") != learner.of:
        raise CheckpointError(advice)
    try:
        learner.restore(state)
        done = learner.progress
        counted = 0 <= done.step <= learner.steps and 0 <= done.epoch <= learner.pace.epochs
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{advice} ({reason(error)})") from error
    tensors = [t for t in learner.network.state_dict().values() if t.is_floating_point()]
    if not counted or not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise CheckpointError(advice)


def fit(
    learner: Learner,
    work: Path | None = None,
    tick: Callable[[float, str], object] | None = None,
) -> Progress:
    """Train to the end and leave the network as the result.

    Args:
        learner: to train, from where it is or where a checkpoint was left.
        work: folder for checkpoints, and to save itself in when asked to stop.
        tick: is given what a step cost, in steps of images of full size, and how it goes.

    Raises:
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with a checkpoint written.
        CheckpointError: if the checkpoint is of another training, or damaged.
        NotFiniteError: if the loss is not finite.
    """
    epochs = learner.pace.epochs
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        kept = load_checkpoint(work, learner.form)
        if kept is not None:
            _resume(learner, kept, work)
    learner.begin()
    state = learner.progress
    report = tick or (lambda cost, text: None)
    report(sum(learner.cost(step) for step in range(learner.done)), "")
    clock = time.monotonic()
    saving = 0.0
    with listening() as asked:
        while not learner.finished:
            while state.step < learner.steps:
                began, cost = time.perf_counter(), learner.cost(learner.done)
                learner.step()
                state.seconds += time.perf_counter() - began
                report(
                    cost, f"epoch {state.epoch + 1}/{epochs}, loss {state.total / state.step:.3f}"
                )
                if asked:
                    saved = ""
                    if work is not None:
                        save_checkpoint(work, learner.state())
                        saved = ", saved; the same command continues it"
                    raise Interrupted(
                        f"stopped by {asked[0]} in epoch {state.epoch + 1} of {epochs}{saved}"
                    )
            learner.close_epoch()
            since = time.monotonic()
            if work is None or not (learner.finished or saving <= _SHARE * (since - clock)):
                continue
            # not of a run of seconds
            if learner.finished or state.seconds / state.epoch > 1:
                save_checkpoint(work, learner.state())
                saving += time.monotonic() - since
    learner.finish()
    return state
