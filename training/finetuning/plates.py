"""The pictures of a fine-tuned model: how good, against what, for whom, and where it errs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from uscl_zoo.answers import CLASSES, LABELS, NUMBER
from uscl_zoo.modelcard import AGREEMENT, CONFUSION, ROC

from ..downstream.bootstrap import Floats, Score
from ..downstream.metrics import BINS, Judged, bins
from ..learning.plots import in_legend
from .concluding import by_third, called, signed
from .judging import Verdict
from .rivals import Standing

VERDICT, CASES, CURVES, RELIABILITY = "verdict.png", "cases.png", "curves.png", "reliability.png"

_AGAINST = (
    "Left, against what: {} of this model and of linear heads that are fitted on frozen features "
    "of the same training subjects, with what the model has more or less. Right, for whom: {}. "
    "Bars are 95 % intervals over subjects; grey is the linear head on the same features."
)
_CURVES = "Learning curve: loss of the training frames, augmented, and the learning rate."
#: What is to be seen in the pictures, in the order of the page, by task.
CAPTIONS: dict[str, dict[str, str]] = {
    CLASSES: {
        VERDICT: _AGAINST.format("macro AUROC", "the share of each class that is recognised"),
        CASES: "Clips that did not train it: the surest right ones, and in red the surest wrong "
        "ones.",
        CONFUSION: "Confusion matrix: shares of the true class, and counts of clips.",
        ROC: "ROC curves, one class against the rest.",
        RELIABILITY: "Reliability of the probabilities: dots on the diagonal are calibrated; bars "
        "count the clips.",
        CURVES: _CURVES,
    },
    LABELS: {
        VERDICT: _AGAINST.format("mean AUROC", "the AUROC of each label"),
        CASES: "Clips that did not train it: the surest that are right in every label, and in red "
        "those with the surest wrong label.",
        ROC: "ROC curves of the labels.",
        RELIABILITY: "Reliability of the labels' probabilities: dots on the diagonal are "
        "calibrated; bars count the clips, once a label.",
        CURVES: _CURVES,
    },
    NUMBER: {
        VERDICT: _AGAINST.format(
            "the mean absolute error (less is better)",
            "that of the lowest, middle and highest third of the numbers",
        ),
        CASES: "Clips that did not train it: the nearest, and in red the farthest off.",
        AGREEMENT: "Left: what was said against what is right; the band is where nine in ten "
        "should lie. Right: Bland and Altman's picture, the difference against the mean of the "
        "two, with the bias and the limits of agreement.",
        CURVES: _CURVES,
    },
}
#: Cases of a row, and of either kind.
_ROW = 6
_BLUE, _RED, _GREY = "#2b6cb0", "#c53030", "#888888"


def of(
    verdict: Verdict,
    standing: Standing,
    spread: float,
    history: Sequence[dict[str, float]],
    frames: npt.NDArray[np.uint8],
) -> dict[str, Figure]:
    """The pictures of a report, by file name.

    Args:
        verdict: on the subjects that it was judged on.
        standing: beside linear heads.
        spread: of an interval of numbers.
        history: a row an epoch.
        frames: uint8 (N, H, W, 3), of the store.
    """
    # pictures are of clips: a clip is what a user asks about
    judged = next(unit for unit in verdict.units if unit.unit == "clip")
    first = {
        VERDICT: draw_verdict(standing),
        CASES: draw_cases(judged, verdict, frames),
    }
    last = {CURVES: draw_curves(history)}
    if verdict.goal.task == NUMBER:
        return {**first, AGREEMENT: draw_agreement(judged, verdict.figures["clip"], spread), **last}
    if verdict.goal.task == LABELS:
        return {
            **first,
            ROC: draw_roc(judged),
            RELIABILITY: draw_reliability(a_label_each(judged)),
            **last,
        }
    return {
        **first,
        CONFUSION: draw_confusion(judged),
        ROC: draw_roc(judged),
        RELIABILITY: draw_reliability(judged),
        **last,
    }


def a_label_each(judged: Judged) -> Judged:
    """Labels that are known, each as two classes: it is not there, it is."""
    there = np.isfinite(judged.target)
    chances = judged.probabilities[there]
    every = np.ones(len(chances), bool)
    return Judged(
        unit="label",
        classes=("absent", "there"),
        probabilities=np.stack([1 - chances, chances], axis=1),
        target=judged.target[there].astype(np.int64),
        subject=np.nonzero(there)[0],
        answered=every,
        unlike=~every,
    )


def draw_verdict(standing: Standing) -> Figure:
    """How good, against what and for whom: rows of figures with their intervals."""
    judged, goal = standing.judged, standing.goal
    rows: list[tuple[str, dict[str, Floats], dict[str, Score] | None]]
    rows = [("this model", standing.values, None)]
    for rival in standing.rivals:
        rows.append((f"linear head on\n{called(rival.name)}", rival.values, rival.gap))
    height = 1.1 + 0.5 * max(len(rows), len(judged.classes), 2)
    figure = Figure(figsize=(10.5, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    main = goal.main
    scores = [standing.score(main, values) for _, values, _ in rows]
    for place, ((_, _, gap), score) in enumerate(zip(rows, scores, strict=True)):
        _interval(left, score, place, _BLUE if gap is None else _GREY)
        text = f"{score.value:{'.4g' if goal.task == NUMBER else '.3f'}}"
        if gap is not None:
            text += f"   model {signed(gap[main], main)}"
        left.annotate(
            text,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    left.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    known = [s for s in scores if np.isfinite(s.value)]
    low = min((s.low if s.bounded else s.value for s in known), default=0.0)
    if goal.chance is None:
        left.set(xlabel=f"{main} (less is better)")
        left.set_xlim(left=0)
    else:
        left.axvline(goal.chance, color=_GREY, linestyle=":", linewidth=1)
        left.set(xlabel=f"{main} (dotted: by chance)", xlim=(min(goal.chance, low) - 0.02, 1.01))
    left.set_ylim(len(rows) - 0.5, -0.5)
    _draw_whom(right, standing)
    plain(left)
    plain(right)
    return figure


def _draw_whom(axes: Any, standing: Standing) -> None:
    """For whom it is good and for whom not."""
    judged, goal, own = standing.judged, standing.goal, standing.own
    if goal.task == NUMBER:
        thirds = by_third(judged)
        others = {} if own is None else by_third(own.judged)
        names = [f"{name}\n{whom}" for name, (whom, _) in thirds.items()]
        for place, name in enumerate(thirds):
            if name in others:
                axes.plot(others[name][1], place + 0.18, "o", color=_GREY)
            axes.plot(thirds[name][1], place, "o", color=_BLUE)
        axes.set(xlabel="MAE, by third of the numbers")
        axes.set_xlim(left=0)
    else:
        figure = "recall" if goal.task == CLASSES else "AUROC"
        names = [in_legend(c) for c in judged.classes]
        for place, label in enumerate(judged.classes):
            name = f"{figure} of {label}"
            if own is not None:
                _interval(axes, standing.score(name, own.values), place + 0.18, _GREY)
            _interval(axes, standing.score(name), place, _BLUE)
        what = "share of the class that is recognised" if goal.task == CLASSES else "AUROC by label"
        axes.set(xlabel=what, xlim=(-0.02, 1.02))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _interval(axes: Any, score: Score, place: float, colour: str) -> None:
    if score.bounded:
        axes.plot([score.low, score.high], [place, place], color=colour, linewidth=2)
    axes.plot(score.value, place, "o", color=colour)


def draw_agreement(judged: Judged, figures: dict[str, Score], spread: float) -> Figure:
    """Said against right, and the difference against the mean of the two."""
    truth, said = judged.target[:, 0], judged.probabilities[:, 0]
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.array([min(truth.min(), said.min()), max(truth.max(), said.max())])
    left.plot(ends, ends, color=_GREY, linewidth=1, linestyle=":")
    left.fill_between(ends, ends - spread, ends + spread, color=_BLUE, alpha=0.08, linewidth=0)
    left.plot(truth, said, "o", color=_BLUE, markersize=3, alpha=0.7)
    name = in_legend(judged.classes[0])
    left.set(xlabel=f"{name}, right", ylabel=f"{name}, said")
    middle = (truth + said) / 2
    right.plot(middle, said - truth, "o", color=_BLUE, markersize=3, alpha=0.7)
    lines = {
        "bias": "bias",
        "lower limit of agreement": "bias - 1.96 SD",
        "upper limit of agreement": "bias + 1.96 SD",
    }
    for key, text in lines.items():
        score = figures[key]
        right.axhline(
            score.value, color=_RED, linewidth=1, linestyle="-" if key == "bias" else "--"
        )
        if score.bounded:
            right.axhspan(score.low, score.high, color=_RED, alpha=0.08, linewidth=0)
        right.annotate(
            f"{text}\n{score.value:.4g}",
            (1.01, score.value),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    right.set(xlabel="mean of the two", ylabel="said less right")
    plain(left)
    plain(right)
    return figure


def draw_curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss and learning rate over the epochs; of no epochs empty axes that say so."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    epochs = [row["epoch"] for row in history]
    pairs = zip(figure.subplots(1, 2), ("loss", "learning_rate"), ("Loss", "Rate"), strict=True)
    for axes, name, title in pairs:
        if history:
            axes.plot(epochs, [row[name] for row in history], color=_BLUE, marker=".")
        else:
            axes.text(0.5, 0.5, "a regression, no epochs", ha="center", transform=axes.transAxes)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        plain(axes)
    return figure


def draw_confusion(judged: Judged) -> Figure:
    """Rows are the truth; shares of each row, with counts."""
    count = len(judged.classes)
    table = np.zeros((count, count), int)
    np.add.at(table, (judged.target, judged.predicted), 1)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.8 * count
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for true, said in np.ndindex(count, count):
        axes.text(
            said,
            true,
            f"{share[true, said]:.2f}\n{table[true, said]}",
            ha="center",
            va="center",
            color="white" if share[true, said] > 0.5 else "black",
        )
    ticks = range(count)
    axes.set_xticks(ticks, judged.classes, rotation=30, ha="right")
    axes.set_yticks(ticks, judged.classes)
    axes.set(xlabel="most probable class", ylabel="true class")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
    return figure


def draw_roc(judged: Judged) -> Figure:
    """A curve a class against the rest."""
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
    for i, label in enumerate(judged.classes):
        known, positive = truth_of(judged, i)
        if positive.all() or not positive.any():
            continue
        scores = judged.probabilities[known, i]
        cuts = np.unique(scores)[::-1]
        up = np.array([0, *((scores[positive][:, None] >= cuts).mean(axis=0))])
        across = np.array([0, *((scores[~positive][:, None] >= cuts).mean(axis=0))])
        area = float(np.sum(np.diff(across) * (up[1:] + up[:-1]) / 2))
        axes.plot(across, up, label=in_legend(f"{label}, {area:.2f}"))
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(frameon=False, title="area under the curve", loc="lower right")
    plain(axes)
    return figure


def draw_reliability(judged: Judged) -> Figure:
    """Share of right answers by confidence."""
    member, confidence, hit = bins(judged)
    counts = member.sum(axis=0)
    filled = np.flatnonzero(counts)
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    above.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
    above.plot(
        (confidence @ member)[filled] / counts[filled],
        (hit @ member)[filled] / counts[filled],
        color=_BLUE,
        marker="o",
    )
    above.set(ylabel="share right", ylim=(0, 1.02), xlim=(0, 1))
    below.bar((np.arange(BINS) + 0.5) / BINS, counts, width=0.9 / BINS, color=_BLUE)
    below.set(xlabel="probability of the most probable class", ylabel=f"{judged.unit}s")
    plain(above)
    plain(below)
    return figure


def truth_of(judged: Judged, place: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Of which it is known whether they are of a class or have a label, and whether."""
    if judged.target.ndim == 1:
        return np.arange(len(judged)), judged.target == place
    known = np.flatnonzero(np.isfinite(judged.target[:, place]))
    return known, judged.target[known, place] > 0


def surest(judged: Judged, chosen: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int64]:
    """The most confident of those chosen, classes in turn.

    Args:
        judged: N of them, of classes.
        chosen: (N,).
        count: at most.
    """
    sure = judged.probabilities.max(axis=1)
    order = np.flatnonzero(chosen)[np.argsort(-sure[chosen], kind="stable")]
    # one of each class in turn, so that one easy class does not fill the row
    turn = [int((judged.target[order[:i]] == judged.target[k]).sum()) for i, k in enumerate(order)]
    return np.asarray(order[np.argsort(turn, kind="stable")][:count])


def _cases(judged: Judged, task: str) -> tuple[dict[int, str], dict[int, str]]:
    """The clearest right and wrong ones, with what is said of each."""
    if task == NUMBER:
        truth, said = judged.target[:, 0], judged.probabilities[:, 0]
        order = np.argsort(np.abs(said - truth), kind="stable").tolist()
        texts = {i: f"{said[i]:.4g}\nis {truth[i]:.4g}" for i in order}
        many = min(_ROW, len(order) // 2)
        return (
            {i: texts[i] for i in order[:many]},
            {i: texts[i] for i in order[::-1][:many]},
        )
    if task == LABELS:
        known = np.isfinite(judged.target)
        off = np.where(known, np.abs(judged.probabilities - np.nan_to_num(judged.target)), -1.0)
        worst = off.max(axis=1)
        texts = {}
        for i, place in enumerate(off.argmax(axis=1)):
            there = "is there" if judged.target[i, place] else "is not there"
            chance = judged.probabilities[i, place]
            texts[i] = f"{judged.classes[place]} {chance:.2f}\n{there}"
        order = [int(i) for i in np.argsort(worst, kind="stable") if known[i].any()]
        called: Any = judged.probabilities >= 0.5 if judged.said is None else judged.said
        missed = (known & (called != (np.nan_to_num(judged.target) > 0))).any(axis=1)
        right = [i for i in order if not missed[i]][:_ROW]
        wrong = [i for i in order[::-1] if missed[i]][:_ROW]
        return {i: texts[i] for i in right}, {i: texts[i] for i in wrong}
    sure, hit = judged.probabilities.max(axis=1), judged.predicted == judged.target
    cells = []
    for chosen in (hit, ~hit):
        texts = {}
        for i in surest(judged, chosen, _ROW).tolist():
            texts[i] = f"{judged.classes[judged.predicted[i]]} {sure[i]:.2f}"
            if not hit[i]:
                texts[i] += f"\nis {judged.classes[judged.target[i]]}"
        cells.append(texts)
    return cells[0], cells[1]


def draw_cases(judged: Judged, verdict: Verdict, frames: npt.NDArray[np.uint8]) -> Figure:
    """The clearest right and wrong clips, by the middle frame of each."""
    right, wrong = _cases(judged, verdict.goal.task)
    kinds = [(texts, colour) for texts, colour in ((right, "black"), (wrong, _RED)) if texts]
    figure = Figure(figsize=(1.75 * _ROW, 2.3 * len(kinds)), layout="constrained")
    grid: Any = figure.subplots(len(kinds), _ROW, squeeze=False)
    starts = np.cumsum([0, *(clip.frames for clip in verdict.clips)])
    for axes in grid.flat:
        axes.axis("off")
    for line, (texts, colour) in enumerate(kinds):
        for axes, (index, text) in zip(grid[line], texts.items(), strict=False):
            row = verdict.rows[(starts[index] + starts[index + 1] - 1) // 2]
            axes.imshow(frames[row])
            axes.set_title(text, fontsize=8, color=colour)
    return figure


def plain(axes: Any) -> None:
    """A faint grid and no box."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
