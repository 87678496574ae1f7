"""`uscl evaluate`: models, the same folds and code for all, and subjects that are never shared."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from uscl_zoo.checks import seed_of
from uscl_zoo.errors import DataError, MissingDependencyError
from uscl_zoo.files import check_folder, expanded, is_ours, locked
from uscl_zoo.names import say
from uscl_zoo.partials import sweep

from ..downstream.bootstrap import Bootstrap, Floats
from ..downstream.contenders import Contender, Form, Statistics, contenders
from ..downstream.datasets import DataSet
from ..downstream.folds import Folds, draw_folds, official_folds
from ..downstream.infold import SETTINGS, Setting
from ..downstream.scoring import (
    Difference,
    Figures,
    bootstrap_of,
    differences,
    figures,
)
from ..downstream.seen import Material, Seen
from ..finetuning.tuning import trained_modules
from ..learning.execution import device_named, precision_on
from ..learning.frames import FrameStore
from ..learning.runs import code_version, hardware
from ..preparing.parts import Sampling
from ..preparing.prepare import prepare
from .bench import Bench, Case, Features
from .protocols import PROTOCOLS
from .subset import take

#: Shares of the training subjects for label efficiency.
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
WORK = "work"
# in it
_KEPT = re.compile(r"store-\d+(-clean)?(-grey)?(\.partial)?$|(runs|features|answers)$")


@dataclass(frozen=True)
class Outcome:
    """A model under a protocol.

    Attributes:
        model: as asked for.
        seen: what its weights were trained on of the data.
        protocol: of `PROTOCOLS`.
        form: of the frames it was given.
        probabilities: (seeds, N, classes), of every labelled frame by the fold that judges it.
        figures: by unit.
        best: share of right frames had each fold taken its best epoch; None without epochs.
        last: the same of the last epoch.
    """

    model: str
    seen: Seen
    protocol: str
    form: Form
    probabilities: Floats
    figures: dict[str, Figures]
    best: float | None = None
    last: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

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
    clean: bool | None = None,
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
        clean: whether models are shown frames that are cut to the beam and cleaned; None for each
            as it was made, backbones whole ones, or those of a store.
        resamples: of the bootstrap over subjects.
        seed: of the folds and the bootstrap.
        workers: processes that decode and pretrain.
        device: to compute on; None for CUDA where there is one.
        progress: show bars.
        tell: called with a line for whatever the user should know.

    Raises:
        DataError: if the data cannot serve, or another process, or what is not of an earlier call,
            is in `output/work`.
        UnknownModelError: if a model is none.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, with everything saved.
    """
    began = time.perf_counter()
    seed = seed_of(seed)
    if seeds < 1 or not set(protocols) <= set(PROTOCOLS):
        raise DataError(f"protocols are {', '.join(PROTOCOLS)}, and seeds at least 1")
    if len(set(models)) < len(models):
        raise DataError(f"a model is named twice: {', '.join(models)}")
    if any(not 0 < share <= 1 for share in shares):
        raise DataError("shares of the training subjects are above 0 and up to 1")
    chosen = SETTINGS[setting]
    asked = contenders(models, chosen, statistics, clean)
    if against is not None and against not in models:
        raise DataError(f"`against={against}`: is none of the models, {', '.join(models)}")
    if dataset.store is not None:
        asked = [one.judged_on(dataset.store) for one in asked]
    # a name of the zoo is written in full
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
        for note in _twins(first, divided):
            tell(note)
        bench = Bench(
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
        # whole frames where there are any, as those of a corpus mostly are
        widest = max(stores, key=lambda form: (not form.clean, form.size, not form.grey))
        material = Material.of(dataset.names, dataset.texts, stores[widest], divided.videos)
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


def _twins(store: FrameStore, folds: Folds) -> list[str]:
    """A line about files that are there more than once where that makes the figures too good."""
    content = store.description.get("sources_sha256", {})
    where: dict[str, set[tuple[int, str | None]]] = {}
    for video, fold in zip(folds.videos, folds.fold.tolist(), strict=True):
        if video.name in content:
            where.setdefault(content[video.name], set()).add((fold, video.label))
    twins = sum(len(places) > 1 for places in where.values())
    return [f"{twins} files are there twice, in two folds or in two classes"] if twins else []


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
) -> dict[Form, FrameStore]:
    """The frames in every form that is asked for, the same of each."""
    for note in dataset.collection.notes:
        tell(note)
    stores: dict[Form, FrameStore] = {}
    sources = dict(dataset.collection.sources)
    # cleaned ones first: what can be cleaned can be read
    for form in sorted({one.form for one in contenders}, key=lambda form: (not form.clean, form)):
        name = "-".join(
            ["store", str(form.size), *(k for k in ("clean", "grey") if getattr(form, k))]
        )
        if dataset.store is not None:
            stores[form] = take(
                dataset.store, dataset.videos, work / name, form.size, progress, form.grey
            )
            continue
        prepared = prepare(
            sources,
            work / name,
            dataset.collection.annotations.get,
            sampling=Sampling(rate, *form),
            holdout=0,
            seed=0,
            workers=workers,
            origin={"name": dataset.name, "url": dataset.url, "citation": dataset.citation},
            progress=progress,
        )
        # the same in every size
        for _, reason in [] if stores else prepared.skipped:
            tell(f"skipped: {reason}")
        for video in prepared.unclean or () if not stores else ():
            tell(f"{video}: no beam was detected in it, and its frames are not cleaned")
        stores[form] = prepared.store
        if form.clean:
            there = {video.name for video in prepared.store.videos}
            sources = {name: path for name, path in sources.items() if name in there}
    counts = {tuple((video.name, video.count) for video in one.videos) for one in stores.values()}
    if len(counts) > 1:
        raise DataError(f"{work}: its stores have not the same frames; delete it and call again")
    return stores


def _outcome(
    bench: Bench,
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
        form=one.form,
        probabilities=probabilities,
        figures={unit.unit: unit for unit in figures(probabilities, bench.folds, bootstrap)},
        best=None if right is None else right[0],
        last=None if right is None else right[1],
    )


def _efficiency(
    bench: Bench,
    contenders: Sequence[Contender],
    runs: dict[str, dict[tuple[int, int], Path]],
    shares: Sequence[float],
    bootstrap: Bootstrap,
) -> dict[str, list[tuple[float, dict[str, Figures]]]]:
    """The linear protocol at each share, by model; nothing without shares."""
    if not shares:
        return {}
    by_model: dict[str, list[tuple[float, dict[str, Figures]]]] = {}
    with tqdm(total=len(contenders) * len(shares), unit="share", disable=not bench.progress) as bar:
        for one in contenders:
            points = by_model.setdefault(one.spec, [])
            for share in shares:
                bar.set_description(f"{share:.3g} of the subjects, {one.spec}")
                probabilities = bench.thinned(one, runs.get(one.spec, {}), share)
                by_unit = {
                    unit.unit: unit for unit in figures(probabilities, bench.folds, bootstrap)
                }
                points.append((share, by_unit))
                bar.update()
    return by_model


def _thinned(
    efficiency: dict[str, list[tuple[float, dict[str, Figures]]]], reference: str
) -> dict[str, list[Difference]]:
    """The models compared with one at each share, by unit."""
    compared = {}
    for unit in next((points[0][1] for points in efficiency.values()), {}):
        by_share: dict[float, dict[str, Figures]] = {}
        for model, points in efficiency.items():
            for share, by_unit in points:
                by_share.setdefault(share, {})[model] = by_unit[unit]
        compared[unit] = differences(by_share, reference)
    return compared


def _all_cases(
    bench: Bench,
    contenders: Sequence[Contender],
    runs: dict[str, dict[tuple[int, int], Path]],
    outcomes: Sequence[Outcome],
    tell: Callable[[str], None],
) -> dict[str, list[Case]]:
    cases = {}
    probabilities = {
        one.model: one.probabilities[0] for one in outcomes if one.protocol == "linear"
    }
    for one in contenders:
        if one.spec in probabilities:
            try:
                cases[one.spec] = bench.cases(one, runs.get(one.spec, {}), probabilities[one.spec])
            except (MissingDependencyError, DataError) as error:
                tell(f"no Grad-CAM of {one.spec}: {error}")
    return cases
