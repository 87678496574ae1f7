"""Where contenders are put to the test: frames, folds, and what is kept between calls."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from uscl_zoo.classifier.gradcam import heat_maps
from uscl_zoo.files import written
from uscl_zoo.network import Network
from uscl_zoo.ultrasound.transforms import FrameTransform
from uscl_zoo.zoo.digests import sha256_of

from ..downstream.bootstrap import Floats
from ..downstream.contenders import Contender, Form
from ..downstream.folds import Folds, some_subjects
from ..downstream.infold import SETTINGS, Job, method_recipe, pretrain_within
from ..downstream.regression import features, linear, linear_classifier
from ..downstream.sample import Sample
from ..downstream.scoring import (
    units,
)
from ..finetuning.plates import surest
from ..learning.frames import FrameStore
from .protocols import BUDGETS, PROTOCOLS, finetuned, knn

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
#: Cases shown of either kind.
CASES = 5


@dataclass(frozen=True)
class Case:
    """A clip, and where in its middle frame the evidence is.

    Attributes:
        frame: uint8 (H, W, 3).
        heat: float32 (h, w), Grad-CAM of the predicted class, at least 0.
        predicted: the most probable class.
        truth: its class.
        probability: of the predicted class, of the whole clip.
    """

    frame: npt.NDArray[np.uint8]
    heat: npt.NDArray[np.float32]
    predicted: str
    truth: str
    probability: float


@dataclass
class Bench:
    """Where contenders are put to the test: frames, folds, and what is kept between calls."""

    stores: dict[Form, FrameStore]
    folds: Folds
    work: Path
    setting: str
    seeds: int
    workers: int | None
    device: torch.device
    progress: bool

    def __post_init__(self) -> None:
        self.sample = self.folds.sample()
        self.fold = self.folds.of_frames()
        content = next(iter(self.stores.values())).description["sources_sha256"]
        self.digests = [content[video.name] for video in self.folds.videos]

    def pretrain(self, contenders: Sequence[Contender]) -> dict[str, dict[tuple[int, int], Path]]:
        """Weights of the methods, by seed and fold; the first seed of all before the next."""
        setting = SETTINGS[self.setting]
        methods = [one for one in contenders if one.kind == "method"]
        specs = [one.spec for one in methods]
        if not specs:
            return {}
        store = self.stores[methods[0].form]
        jobs = [
            Job(
                spec,
                method_recipe(spec, setting, seed),
                tuple(sorted(self.folds.held_out(fold))),
                fold,
            )
            for seed in range(self.seeds)
            for spec in specs
            for fold in range(self.folds.count)
        ]
        paths = pretrain_within(
            jobs,
            store,
            self.work / "runs",
            workers=self.workers,
            device=str(self.device),
            progress=self.progress,
        )
        weights: dict[str, dict[tuple[int, int], Path]] = {spec: {} for spec in specs}
        for job, path in zip(jobs, paths, strict=True):
            weights[job.spec][job.recipe.seed, job.fold] = path
        return weights

    def embed(self, one: Contender, seed: int, weights: Path | None) -> Features:
        """Features of every labelled frame, computed once."""
        store = self.stores[one.form]
        identity = one.identity if weights is None else sha256_of(weights)
        basis = [identity, seed if one.kind == "random" else 0, one.shape.size, self.digests]
        basis += [one.shape.mean, one.shape.std, store.description["sampling"]]
        path = self.work / "features" / f"{_digest(basis)}.npy"
        if not path.exists():
            network = one.build(seed, weights).to(self.device)
            embedded = features(network, store, self.sample.rows, self.progress, one.shape)
            with written(path) as partial, partial.open("wb") as stream:
                np.save(stream, embedded)
        return np.asarray(np.load(path))

    def judge(
        self, one: Contender, protocol: str, runs: dict[tuple[int, int], Path]
    ) -> tuple[Floats, tuple[float, float] | None]:
        """Probabilities (seeds, N, classes), and of fine-tuning the best and the last accuracy."""
        if protocol in ("knn", "linear"):
            count = self.seeds if one.varies else 1
            return np.stack([self._frozen(one, protocol, s, runs) for s in range(count)]), None
        tuned = [self._tuned(one, protocol, seed, runs) for seed in range(self.seeds)]
        ends = np.mean([end for _, end in tuned], axis=0)
        return np.stack([one for one, _ in tuned]), (float(ends[0]), float(ends[1]))

    def _frozen(
        self, one: Contender, protocol: str, seed: int, runs: dict[tuple[int, int], Path]
    ) -> Floats:
        path = self._path(".npy", protocol, one, seed, runs)
        if path.exists():
            return np.asarray(np.load(path))
        probabilities = np.zeros((len(self.sample), len(self.folds.classes)))
        numbers = range(self.folds.count)
        shown = f"{protocol} {one.spec}"
        for fold in tqdm(numbers, desc=shown, leave=False, disable=not self.progress):
            embedded = self.embed(one, seed, runs.get((seed, fold)))
            test = self.fold == fold
            probabilities[test] = self._fit(protocol, embedded, ~test, test)
        return _kept(path, probabilities)

    def _fit(
        self, protocol: str, embedded: Features, train: npt.NDArray[np.bool_], test: Any
    ) -> Floats:
        sample, classes = self.sample, len(self.folds.classes)
        if protocol == "knn":
            return knn(embedded[train], sample.target[train], embedded[test], classes)
        given = embedded[train], sample.target[train], sample.subject[train]
        return linear(*given, embedded[test], classes)[0]

    def _tuned(
        self, one: Contender, protocol: str, seed: int, runs: dict[tuple[int, int], Path]
    ) -> tuple[Floats, tuple[float, float]]:
        """Fine-tuned fold by fold, each kept once it is done."""
        budget, store = BUDGETS[self.setting], self.stores[one.form]
        probabilities = np.zeros((len(self.sample), len(self.folds.classes)))
        best = last = 0.0
        for fold in range(self.folds.count):
            path = self._path(".npz", protocol, one, seed, runs, fold, vars(budget))
            test = self.fold == fold
            if not path.exists():
                network = one.build(seed, runs.get((seed, fold)))
                with tqdm(
                    total=budget.epochs,
                    desc=f"{protocol} {one.spec}, seed {seed}, fold {fold + 1}",
                    leave=False,
                    unit="epoch",
                    disable=not self.progress,
                ) as bar:
                    predicted, right = finetuned(
                        # another fold begins with the same weights
                        copy.deepcopy(network),
                        store.frames,
                        self._take(~test),
                        self._take(test),
                        one.shape,
                        len(self.folds.classes),
                        everything=protocol == "finetune",
                        budget=budget,
                        seed=seed,
                        device=self.device,
                        tick=bar.update,
                    )
                with written(path) as partial, partial.open("wb") as stream:
                    np.savez(stream, said=predicted, right=right)
            with np.load(path) as kept:
                probabilities[test] = kept["said"]
                share = test.mean()
                best += share * kept["right"].max()
                last += share * kept["right"][-1]
        return probabilities, (best, last)

    def cases(
        self, one: Contender, runs: dict[tuple[int, int], Path], probabilities: Floats
    ) -> list[Case]:
        """The surest right and wrong clips, explained by the very classifiers that judged them.

        Args:
            one: the model.
            runs: its weights, of a method.
            probabilities: (N, classes), of the linear protocol by the first seed.
        """
        judged = next(unit for unit in units(probabilities, self.folds) if unit.unit == "clip")
        right = judged.predicted == judged.target
        chosen = [int(i) for side in (right, ~right) for i in surest(judged, side, CASES)]
        store, classes = self.stores[one.form], self.folds.classes
        transform = FrameTransform(one.shape.size[1:], one.shape.mean, one.shape.std)
        explained: dict[int, Case] = {}
        for fold in sorted({int(self.folds.fold[i]) for i in chosen}):
            module = self._classifier(one, fold, runs)
            network = Network(one.spec, one.kind, one.spec, module, transform, classes)
            for i in chosen:
                if self.folds.fold[i] != fold:
                    continue
                video, predicted = self.folds.videos[i], int(judged.predicted[i])
                frame = np.asarray(store.frames[video.first + video.count // 2])
                explained[i] = Case(
                    frame=frame,
                    heat=heat_maps(network, [frame], predicted, False)[0],
                    predicted=classes[predicted],
                    truth=classes[int(judged.target[i])],
                    probability=float(judged.probabilities[i, predicted]),
                )
        return [explained[i] for i in chosen]

    def _classifier(
        self, one: Contender, fold: int, runs: dict[tuple[int, int], Path]
    ) -> torch.nn.Module:
        """The backbone with the regression of a fold on it, by the first seed."""
        weights = runs.get((0, fold))
        embedded, train, sample = self.embed(one, 0, weights), self.fold != fold, self.sample
        given = embedded[train], sample.target[train]
        _, penalty = linear(*given, sample.subject[train], embedded[:1], len(self.folds.classes))
        weight, bias = linear_classifier(*given, penalty, len(self.folds.classes))
        network: Any = copy.deepcopy(one.build(0, weights))
        network.reset_classifier(len(self.folds.classes))
        head = network.get_classifier()
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        placed: torch.nn.Module = network.to(self.device)
        return placed

    def thinned(self, one: Contender, runs: dict[tuple[int, int], Path], share: float) -> Floats:
        """The linear protocol on a share of the training subjects, drawn anew by each seed.

        A smaller share is part of a larger one, and every class keeps a subject.
        """
        if share == 1:
            # no draw, and so the probabilities of the protocol itself
            return self.judge(one, "linear", runs)[0]
        by_seed = []
        for seed in range(self.seeds):
            path = self._path(".npy", "linear", one, seed, runs, share)
            if path.exists():
                by_seed.append(np.asarray(np.load(path)))
                continue
            probabilities = np.zeros((len(self.sample), len(self.folds.classes)))
            for fold in range(self.folds.count):
                embedded = self.embed(one, seed, runs.get((seed, fold)))
                train = self.fold != fold
                some = some_subjects(
                    self.sample.target[train], self.sample.subject[train], share, (seed, fold)
                )
                taken = train & np.isin(self.sample.subject, some)
                probabilities[~train] = self._fit("linear", embedded, taken, ~train)
            by_seed.append(_kept(path, probabilities))
        return np.stack(by_seed)

    def _path(
        self,
        suffix: str,
        protocol: str,
        one: Contender,
        seed: int,
        runs: dict[tuple[int, int], Path],
        *more: Any,
    ) -> Path:
        """Where answers are kept, by all that they depend on."""
        basis = [protocol, one.identity, one.shape.size, one.shape.mean, one.shape.std, seed]
        basis += [self._data(), _names(runs, seed), *more]
        # a release may fit otherwise than the one before
        basis += [PROTOCOLS[protocol]] if protocol == "linear" else []
        # as before, where frames are whole and in colour
        basis += [name for name in ("clean", "grey") if getattr(one.form, name)]
        return self.work / "answers" / f"{_digest(basis)}{suffix}"

    def _take(self, chosen: npt.NDArray[np.bool_]) -> Sample:
        return self.sample.take(np.flatnonzero(chosen))

    def _data(self) -> list[Any]:
        """What answers depend on besides the model."""
        basis = [
            [digest, video.label, video.subject, video.count]
            for digest, video in zip(self.digests, self.folds.videos, strict=True)
        ]
        return [*basis, self.folds.fold.tolist()]


def _names(runs: dict[tuple[int, int], Path], seed: int) -> list[str]:
    return sorted(path.name for (own, _), path in runs.items() if own == seed)


def _digest(basis: Any) -> str:
    return hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()[:24]


def _kept(path: Path, values: Floats) -> Floats:
    with written(path) as partial, partial.open("wb") as stream:
        np.save(stream, values)
    return values
