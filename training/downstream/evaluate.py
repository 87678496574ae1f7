"""`uscl evaluate`: models, the same folds and code for all, and subjects that are never shared."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from uscl_zoo import store as weights_store
from uscl_zoo.errors import DataError, MissingDependencyError
from uscl_zoo.files import check_folder, expanded, is_ours, locked, sweep, written
from uscl_zoo.gradcam import heat_maps
from uscl_zoo.names import say
from uscl_zoo.network import Network
from uscl_zoo.ultrasound.transforms import FrameTransform

from ..execution import device_named, precision_on
from ..frames import FrameStore
from ..prepare import Sampling, prepare
from ..runs import code_version, hardware
from .contenders import Contender, Statistics, contenders
from .datasets import DataSet
from .folds import Folds, draw_folds, official_folds, some_subjects
from .infold import SETTINGS, Job, Setting, method_recipe, pretrain_within
from .probe import Bootstrap, Floats, features
from .protocols import BUDGETS, PROTOCOLS, finetuned, knn
from .regressions import linear, linear_classifier
from .report import surest
from .sample import Sample
from .scoring import (
    Difference,
    Figures,
    bootstrap_of,
    differences,
    figures,
    units,
)
from .seen import Material, Seen
from .subset import take
from .tuning import trained_modules

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

#: Shares of the training subjects for label efficiency.
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
WORK = "work"
# in it
_KEPT = re.compile(r"store-\d+(\.partial)?$|(runs|features|answers)$")
#: Cases shown of either kind.
CASES = 5


@dataclass(frozen=True)
class Outcome:
    """A model under a protocol.

    Attributes:
        model: as asked for.
        seen: what its weights were trained on of the data.
        protocol: of `PROTOCOLS`.
        size: height and width of the frames it was given.
        probabilities: (seeds, N, classes), of every labelled frame by the fold that judges it.
        figures: by unit.
        best: share of right frames had each fold taken its best epoch; None without epochs.
        last: the same of the last epoch.
    """

    model: str
    seen: Seen
    protocol: str
    size: int
    probabilities: Floats
    figures: dict[str, Figures]
    best: float | None = None
    last: float | None = None


@dataclass(frozen=True)
class Case:
    """A clip, and where in its middle frame the evidence is.

    Attributes:
        frame: uint8 (H, W, 3).
        heat: float32 (h, w), Grad-CAM of the class that was said, at least 0.
        said: the most probable class.
        truth: its class.
        probability: of what was said, of the whole clip.
    """

    frame: npt.NDArray[np.uint8]
    heat: npt.NDArray[np.float32]
    said: str
    truth: str
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found.

    Attributes:
        dataset: what was judged on.
        folds: of it.
        bootstrap: of its subjects.
        setting: name and content.
        outcomes: by protocol and model, in the order asked for.
        compared: by protocol and unit.
        efficiency: by model, figures by unit at a share of the training subjects.
        thinned: by unit, the models compared at each share with `reference`.
        reference: what models are compared with at each share.
        every_two: whether elsewhere every two are compared, and not with it alone.
        embedded: by model, features of every labelled frame by its first seed, for pictures.
        cases: by model, of the linear protocol: the surest right and the surest wrong clips.
        about: how it was made.
    """

    dataset: DataSet
    folds: Folds
    bootstrap: Bootstrap
    setting: tuple[str, Setting]
    outcomes: list[Outcome]
    compared: dict[tuple[str, str], list[Difference]]
    efficiency: dict[str, list[tuple[float, dict[str, Figures]]]]
    thinned: dict[str, list[Difference]]
    reference: str
    every_two: bool
    embedded: dict[str, Features]
    cases: dict[str, list[Case]]
    about: dict[str, Any] = field(default_factory=dict)


def evaluate(
    models: Sequence[str],
    dataset: DataSet,
    output: Path,
    *,
    protocols: Sequence[str] = ("linear",),
    setting: str = "reduced",
    folds: int = 5,
    seeds: int = 3,
    shares: Sequence[float] = (),
    against: str | None = None,
    statistics: Statistics | None = None,
    rate: float = 3.0,
    resamples: int = 2000,
    seed: int = 0,
    workers: int | None = None,
    device: str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = say,
) -> Evaluation:
    """Judge models on a data set, each frame by what was fitted without its subject.

    Frames, features, weights of pretraining within folds and fine-tuned folds are kept in
    `output/work`; an interrupted call goes on when it is made again.

    Args:
        models: see `contenders.contender`.
        dataset: labelled images or videos.
        output: folder of the report.
        protocols: of `PROTOCOLS`.
        setting: of `SETTINGS`: size and epochs of what is pretrained here, and epochs of
            fine-tuning.
        folds: how many, where the data set has none of its own.
        seeds: of whatever is trained or random.
        shares: of the training subjects, for label efficiency by the linear protocol.
        against: the model that the others are compared with; None for every two, and at each share
            for the first model.
        statistics: mean and std of checkpoint files that do not say theirs.
        rate: frames a second to take from videos; a store has its own.
        resamples: of the bootstrap over subjects.
        seed: of the folds and the bootstrap.
        workers: processes that decode and pretrain.
        device: to compute on; None for CUDA where there is one.
        progress: show bars.
        tell: is given a line for whatever the user should know.

    Raises:
        DataError: if the data cannot serve, or another process, or what is not of an earlier call,
            is in `output/work`.
        UnknownModelError: if a model is none.
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    began = time.perf_counter()
    if seeds < 1 or not set(protocols) <= set(PROTOCOLS):
        raise DataError(f"protocols are {', '.join(PROTOCOLS)}, and seeds at least 1")
    if len(set(models)) < len(models):
        raise DataError(f"a model is named twice: {', '.join(models)}")
    if any(not 0 < share <= 1 for share in shares):
        raise DataError("shares of the training subjects are above 0 and up to 1")
    chosen = SETTINGS[setting]
    asked = contenders(models, chosen, statistics)
    if against is not None and against not in models:
        raise DataError(f"--against {against}: is none of the models, {', '.join(models)}")
    # a name of the zoo is told in full
    names = dict(zip(models, (one.spec for one in asked), strict=True))
    against = None if against is None else names[against]
    if "finetune-last" in protocols:
        for one in asked:
            if one.kind in ("timm", "folder"):
                trained_modules(one.build(0, None), "last")  # an error now, not after hours
    work = expanded(output) / WORK
    check_folder(work, all(map(_is_kept, work.iterdir())) if work.is_dir() else False)
    with locked(work):
        for kept in work.iterdir():
            sweep(kept)
        stores = _prepare(asked, dataset, work, rate, workers, progress, tell)
        first = next(iter(stores.values()))
        divided = (
            draw_folds(first, folds, seed)
            if dataset.folds is None
            else official_folds(first, dataset.folds)
        )
        bench = _Bench(
            stores=stores,
            folds=divided,
            work=work,
            setting=setting,
            seeds=seeds,
            workers=workers,
            device=device_named(device),
            progress=progress,
        )
        bootstrap = bootstrap_of(divided, resamples, seed)
        runs = bench.pretrain(asked)
        material = Material(dataset.names, dataset.texts, stores[max(stores)], divided.videos)
        seen = {one.spec: one.has_seen(material) for one in asked}
        outcomes = [
            _outcome(bench, one, protocol, runs.get(one.spec, {}), bootstrap, seen[one.spec])
            for protocol in protocols
            for one in asked
        ]
        compared = {}
        for protocol in protocols:
            mine = [outcome for outcome in outcomes if outcome.protocol == protocol]
            for unit in mine[0].figures:
                compared[protocol, unit] = differences(
                    {1.0: {outcome.model: outcome.figures[unit] for outcome in mine}}, against
                )
        reference = against or asked[0].spec
        efficiency = _efficiency(bench, asked, runs, shares, bootstrap)
        return Evaluation(
            dataset=dataset,
            folds=divided,
            bootstrap=bootstrap,
            setting=(setting, chosen),
            outcomes=outcomes,
            compared=compared,
            efficiency=efficiency,
            thinned=_thinned(efficiency, reference),
            reference=reference,
            every_two=against is None,
            embedded={
                one.spec: bench.embed(one, 0, runs.get(one.spec, {}).get((0, 0))) for one in asked
            },
            cases=_all_cases(bench, asked, runs, outcomes, tell),
            about={
                "seed": seed,
                "seeds": seeds,
                "resamples": resamples,
                "rate": first.description["sampling"]["rate"],
                "precision": precision_on(bench.device, chosen.precision),
                "hardware": hardware(bench.device),
                "torch": torch.__version__,
                "code": code_version(),
                "seconds": round(time.perf_counter() - began, 1),
            },
        )


def _is_kept(path: Path) -> bool:
    """Whether something in `work`, as many folders are named, is what a call keeps there."""
    return bool(_KEPT.match(path.name)) or is_ours(path.name)


def _prepare(
    contenders: Sequence[Contender],
    dataset: DataSet,
    work: Path,
    rate: float,
    workers: int | None,
    progress: bool,
    tell: Callable[[str], None],
) -> dict[int, FrameStore]:
    """The frames in every size that is asked for."""
    for note in dataset.collection.notes:
        tell(note)
    stores: dict[int, FrameStore] = {}
    for size in sorted({one.shape.size[1] for one in contenders}):
        if dataset.store is not None:
            kept = work / f"store-{size}"
            stores[size] = take(dataset.store, dataset.videos, kept, size, progress)
            continue
        prepared = prepare(
            dataset.collection.sources,
            work / f"store-{size}",
            dataset.collection.annotations.get,
            sampling=Sampling(rate, size),
            holdout=0,
            seed=0,
            workers=workers,
            origin={"name": dataset.name, "url": dataset.url, "citation": dataset.citation},
            progress=progress,
        )
        # the same in every size
        for _, reason in [] if stores else prepared.skipped:
            tell(f"skipped: {reason}")
        stores[size] = prepared.store
    return stores


def _outcome(
    bench: _Bench,
    one: Contender,
    protocol: str,
    runs: dict[tuple[int, int], Path],
    bootstrap: Bootstrap,
    seen: Seen,
) -> Outcome:
    probabilities, right = bench.judge(one, protocol, runs)
    return Outcome(
        model=one.spec,
        seen=seen,
        protocol=protocol,
        size=one.shape.size[1],
        probabilities=probabilities,
        figures={unit.unit: unit for unit in figures(probabilities, bench.folds, bootstrap)},
        best=None if right is None else right[0],
        last=None if right is None else right[1],
    )


def _efficiency(
    bench: _Bench,
    contenders: Sequence[Contender],
    runs: dict[str, dict[tuple[int, int], Path]],
    shares: Sequence[float],
    bootstrap: Bootstrap,
) -> dict[str, list[tuple[float, dict[str, Figures]]]]:
    """The linear protocol at each share, by model; nothing without shares."""
    if not shares:
        return {}
    found: dict[str, list[tuple[float, dict[str, Figures]]]] = {}
    with tqdm(total=len(contenders) * len(shares), unit="share", disable=not bench.progress) as bar:
        for one in contenders:
            points = found.setdefault(one.spec, [])
            for share in shares:
                bar.set_description(f"{share:.3g} of the subjects, {one.spec}")
                said = bench.thinned(one, runs.get(one.spec, {}), share)
                by_unit = {unit.unit: unit for unit in figures(said, bench.folds, bootstrap)}
                points.append((share, by_unit))
                bar.update()
    return found


def _thinned(
    efficiency: dict[str, list[tuple[float, dict[str, Figures]]]], reference: str
) -> dict[str, list[Difference]]:
    """The models compared with one at each share, by unit."""
    found = {}
    for unit in next((points[0][1] for points in efficiency.values()), {}):
        by_share: dict[float, dict[str, Figures]] = {}
        for model, points in efficiency.items():
            for share, by_unit in points:
                by_share.setdefault(share, {})[model] = by_unit[unit]
        found[unit] = differences(by_share, reference)
    return found


def _all_cases(
    bench: _Bench,
    contenders: Sequence[Contender],
    runs: dict[str, dict[tuple[int, int], Path]],
    outcomes: Sequence[Outcome],
    tell: Callable[[str], None],
) -> dict[str, list[Case]]:
    found = {}
    said = {one.model: one.probabilities[0] for one in outcomes if one.protocol == "linear"}
    for one in contenders:
        if one.spec in said:
            try:
                found[one.spec] = bench.cases(one, runs.get(one.spec, {}), said[one.spec])
            except (MissingDependencyError, DataError) as error:
                tell(f"no Grad-CAM of {one.spec}: {error}")
    return found


@dataclass
class _Bench:
    """Where contenders are put to the test: frames, folds, and what is kept between calls."""

    stores: dict[int, FrameStore]
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
        specs = [one.spec for one in contenders if one.kind == "method"]
        if not specs:
            return {}
        store = self.stores[setting.size]
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
        found: dict[str, dict[tuple[int, int], Path]] = {spec: {} for spec in specs}
        for job, path in zip(jobs, paths, strict=True):
            found[job.spec][job.recipe.seed, job.fold] = path
        return found

    def embed(self, one: Contender, seed: int, weights: Path | None) -> Features:
        """Features of every labelled frame, computed once."""
        store = self.stores[one.shape.size[1]]
        identity = one.identity if weights is None else weights_store.sha256_of(weights)
        told = [identity, seed if one.kind == "random" else 0, one.shape.size, self.digests]
        told += [one.shape.mean, one.shape.std, store.description["sampling"]]
        path = self.work / "features" / f"{_digest(told)}.npy"
        if not path.exists():
            network = one.build(seed, weights).to(self.device)
            found = features(network, store, self.sample.rows, self.progress, one.shape)
            with written(path) as partial, partial.open("wb") as stream:
                np.save(stream, found)
        return np.asarray(np.load(path))

    def judge(
        self, one: Contender, protocol: str, runs: dict[tuple[int, int], Path]
    ) -> tuple[Floats, tuple[float, float] | None]:
        """Probabilities (seeds, N, classes), and of fine-tuning the best and the last accuracy."""
        if protocol in ("knn", "linear"):
            count = self.seeds if one.varies else 1
            return np.stack([self._frozen(one, protocol, s, runs) for s in range(count)]), None
        found = [self._tuned(one, protocol, seed, runs) for seed in range(self.seeds)]
        ends = np.mean([end for _, end in found], axis=0)
        return np.stack([one for one, _ in found]), (float(ends[0]), float(ends[1]))

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
        budget, store = BUDGETS[self.setting], self.stores[one.shape.size[1]]
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
                    said, right = finetuned(
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
                    np.savez(stream, said=said, right=right)
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
        store, classes = self.stores[one.shape.size[1]], self.folds.classes
        transform = FrameTransform(one.shape.size[1:], one.shape.mean, one.shape.std)
        found: dict[int, Case] = {}
        for fold in sorted({int(self.folds.fold[i]) for i in chosen}):
            module = self._classifier(one, fold, runs)
            network = Network(one.spec, one.kind, one.spec, module, transform, classes)
            for i in chosen:
                if self.folds.fold[i] != fold:
                    continue
                video, said = self.folds.videos[i], int(judged.predicted[i])
                frame = np.asarray(store.frames[video.first + video.count // 2])
                found[i] = Case(
                    frame=frame,
                    heat=heat_maps(network, [frame], said, False)[0],
                    said=classes[said],
                    truth=classes[int(judged.target[i])],
                    probability=float(judged.probabilities[i, said]),
                )
        return [found[i] for i in chosen]

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
            # no draw, and so what the protocol itself has said
            return self.judge(one, "linear", runs)[0]
        found = []
        for seed in range(self.seeds):
            path = self._path(".npy", "linear", one, seed, runs, share)
            if path.exists():
                found.append(np.asarray(np.load(path)))
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
            found.append(_kept(path, probabilities))
        return np.stack(found)

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
        told = [protocol, one.identity, one.shape.size, one.shape.mean, one.shape.std, seed]
        told += [self._data(), _names(runs, seed), *more]
        return self.work / "answers" / f"{_digest(told)}{suffix}"

    def _take(self, chosen: npt.NDArray[np.bool_]) -> Sample:
        return self.sample.take(np.flatnonzero(chosen))

    def _data(self) -> list[Any]:
        """What answers depend on besides the model."""
        told = [
            [digest, video.label, video.subject, video.count]
            for digest, video in zip(self.digests, self.folds.videos, strict=True)
        ]
        return [*told, self.folds.fold.tolist()]


def _names(runs: dict[tuple[int, int], Path], seed: int) -> list[str]:
    return sorted(path.name for (own, _), path in runs.items() if own == seed)


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _kept(path: Path, values: Floats) -> Floats:
    with written(path) as partial, partial.open("wb") as stream:
        np.save(stream, values)
    return values
