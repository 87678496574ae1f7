"""The pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..downstream.bootstrap import Bootstrap
from ..downstream.infold import file_name
from ..downstream.metrics import Judged
from ..downstream.scoring import units
from ..finetuning.plates import draw_confusion, draw_reliability, plain
from ..learning.plots import in_legend
from .bench import Case
from .evaluate import Evaluation, Outcome

#: The figure that models are drawn by.
DRAWN = "balanced accuracy"
_GRID = np.linspace(0, 1, 101)
#: Frames of the t-SNE, which takes long of many, and of each clip at most.
_DOTS, _FRAMES = 900, 6


def of(evaluation: Evaluation) -> Iterator[tuple[str, Figure, str]]:
    """File name, figure and caption of every picture."""
    yield (
        "compared.png",
        draw_compared(evaluation),
        (f"{DRAWN.capitalize()} by model, with 95 % intervals over subjects; red: in corpus."),
    )
    if evaluation.efficiency:
        yield (
            "efficiency.png",
            draw_efficiency(evaluation),
            (
                f"Label efficiency: {DRAWN} of the linear protocol by the share of training "
                "subjects, with 95 % intervals; every class keeps a subject."
            ),
        )
    for outcome in evaluation.outcomes:
        name = f"{outcome.protocol}-{file_name(outcome.model)}"
        judged = _clips(outcome, evaluation)
        whom = f"{outcome.model}, {outcome.protocol}, clips, mean probability over seeds"
        yield (
            f"confusion-{name}.png",
            draw_confusion(judged),
            (f"{whom}: shares of the true class, and counts."),
        )
        yield (
            f"roc-{name}.png",
            draw_roc(judged, evaluation.bootstrap),
            (f"{whom}: ROC curves, one class against the rest, with 95 % bands over subjects."),
        )
        yield (
            f"reliability-{name}.png",
            draw_reliability(judged),
            (f"{whom}: dots on the diagonal are calibrated; bars count the clips."),
        )
    for model, cases in evaluation.cases.items():
        yield (
            f"cases-{file_name(model)}.png",
            draw_cases(cases),
            (
                f"{model}, linear: Grad-CAM of the class that was said, in the middle frame of the "
                "surest right clips and, in red, of the surest wrong ones."
            ),
        )
    for model in evaluation.embedded:
        yield (
            f"embedding-{file_name(model)}.png",
            draw_embedding(evaluation, model),
            (
                f"{model}: t-SNE of frozen features, by class and by subject. Distances between "
                "clusters mean little; what to see is what lies together."
            ),
        )


def _clips(outcome: Outcome, evaluation: Evaluation) -> Judged:
    mean = outcome.probabilities.mean(axis=0)
    return next(one for one in units(mean, evaluation.folds) if one.unit == "clip")


def draw_compared(evaluation: Evaluation) -> Figure:
    """A row a model, a column a protocol."""
    protocols = list(dict.fromkeys(outcome.protocol for outcome in evaluation.outcomes))
    models = list(dict.fromkeys(outcome.model for outcome in evaluation.outcomes))
    unit = next(iter(evaluation.outcomes[0].figures))
    figure = Figure(
        figsize=(3 + 3.6 * len(protocols), 1.2 + 0.4 * len(models)), layout="constrained"
    )
    grid: Any = figure.subplots(1, len(protocols), sharey=True, squeeze=False)
    chance = 1 / len(evaluation.folds.classes)
    for axes, protocol in zip(grid[0], protocols, strict=True):
        axes.axvline(chance, color="0.6", linestyle=":", linewidth=1)
        for outcome in evaluation.outcomes:
            if outcome.protocol != protocol:
                continue
            row = models.index(outcome.model)
            score = outcome.figures[unit].scores[DRAWN]
            colour = "#c53030" if outcome.seen.leaks else "#2b6cb0"
            axes.plot([score.low, score.high], [row, row], color=colour, linewidth=2)
            axes.plot(score.value, row, "o", color=colour)
        axes.set(title=protocol, xlabel=f"{DRAWN}, by {unit}", xlim=(0, 1))
        plain(axes)
    grid[0, 0].set_yticks(range(len(models)), models)
    grid[0, 0].set_ylim(len(models) - 0.5, -0.5)
    return figure


def draw_efficiency(evaluation: Evaluation) -> Figure:
    """A curve a model."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    count = len(evaluation.efficiency)
    for i, (model, points) in enumerate(evaluation.efficiency.items()):
        # side by side, or the bars would hide one another
        across = np.array([share for share, _ in points]) * 1.03 ** (i - (count - 1) / 2)
        scores = [next(iter(units.values())).scores[DRAWN] for _, units in points]
        middle = np.array([score.value for score in scores])
        low = middle - [score.low for score in scores]
        high = np.array([score.high for score in scores]) - middle
        axes.errorbar(
            across,
            middle,
            [low, high],
            marker=".",
            linewidth=1.2,
            elinewidth=0.7,
            label=model,
        )
    axes.axhline(1 / len(evaluation.folds.classes), color="0.6", linestyle=":", linewidth=1)
    shares = [share for share, _ in points]
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{100 * share:.3g} %" for share in shares])
    axes.minorticks_off()
    axes.set(xlabel="training subjects", ylabel=DRAWN, ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    plain(axes)
    return figure


def draw_roc(judged: Judged, bootstrap: Bootstrap, resamples: int = 500) -> Figure:
    """A curve a class against the rest, with the band of its resamples."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    weights = bootstrap.counts[: resamples + 1, judged.subject].astype(float)
    for i, label in enumerate(judged.classes):
        curves = np.array([_curve(judged, i, weight) for weight in weights])
        known = curves[np.isfinite(curves[:, 0])]
        if not len(known) or not np.isfinite(curves[0, 0]):
            continue
        low, high = np.quantile(known, (0.025, 0.975), axis=0)
        area = float(np.diff(_GRID) @ (curves[0, 1:] + curves[0, :-1]) / 2)
        (line,) = axes.plot(_GRID, curves[0], label=in_legend(f"{label}, {area:.2f}"))
        axes.fill_between(_GRID, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(frameon=False, title="area under the curve", loc="lower right", fontsize=8)
    plain(axes)
    return figure


def _curve(judged: Judged, label: int, weight: Any) -> Any:
    """True positive rate at every false positive rate of `_GRID`."""
    order = np.argsort(-judged.probabilities[:, label], kind="stable")
    positive = (judged.target == label)[order]
    weight = weight[order]
    up, across = np.cumsum(weight * positive), np.cumsum(weight * ~positive)
    if up[-1] == 0 or across[-1] == 0:
        return np.full(len(_GRID), np.nan)
    # ties are one step
    scores = judged.probabilities[order, label]
    last = np.append(scores[1:] != scores[:-1], True)
    x = np.concatenate([[0.0], across[last] / across[-1]])
    y = np.concatenate([[0.0], up[last] / up[-1]])
    return np.interp(_GRID, x, y)


def draw_embedding(evaluation: Evaluation, model: str) -> Figure:
    """t-SNE (van der Maaten & Hinton, JMLR 2008) by class and by subject."""
    from sklearn.manifold import TSNE  # slow to import

    sample = evaluation.folds.sample()
    shown = sample.thin(_FRAMES)
    clips = len(evaluation.folds.videos)
    # whole clips
    some = np.random.default_rng(0).permutation(clips)[: clips * _DOTS // len(shown)]
    shown = shown[np.isin(sample.clip[shown], some)]
    features = evaluation.embedded[model][shown]
    flat = TSNE(
        perplexity=min(30.0, (len(shown) - 1) / 4), init="pca", random_state=0, n_jobs=1
    ).fit_transform(features)
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    by_class, by_subject = figure.subplots(1, 2)
    for i, label in enumerate(evaluation.folds.classes):
        dots = flat[sample.target[shown] == i]
        by_class.scatter(*dots.T, s=8, label=in_legend(label), linewidths=0)
    by_class.legend(frameon=False, fontsize=8, markerscale=2)
    by_class.set_title("by class")
    by_subject.scatter(
        *flat.T, c=sample.subject[shown] * 0.618034 % 1, cmap="hsv", s=8, linewidths=0
    )
    by_subject.set_title("by subject")
    for axes in (by_class, by_subject):
        axes.set(xticks=[], yticks=[])
    return figure


def draw_cases(cases: Sequence[Case]) -> Figure:
    """Right ones above, wrong ones below; the frame, and the evidence over it."""
    rows = [
        [case for case in cases if (case.predicted == case.truth) == right]
        for right in (True, False)
    ]
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.1 * columns, 5.2), layout="constrained")
    grid: Any = figure.subplots(2, columns, squeeze=False)
    for line, row in enumerate(rows):
        for place in range(columns):
            axes = grid[line, place]
            axes.axis("off")
            if place >= len(row):
                continue
            case = row[place]
            height, width = case.frame.shape[:2]
            axes.imshow(case.frame)
            axes.imshow(
                case.heat,
                cmap="magma",
                alpha=0.45,
                vmin=0,
                vmax=max(float(case.heat.max()), 1e-12),
                interpolation="bilinear",
                # the map covers the whole frame, however few its cells are
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            text = f"{case.predicted} {case.probability:.2f}"
            if case.predicted != case.truth:
                text += f"\nis {case.truth}"
            axes.set_title(text, fontsize=8, color="#c53030" if line else "black")
    return figure
