"""A fine-tuned model in pictures, and the one page that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uscl_zoo.answers import Answers
from uscl_zoo.card import Card
from uscl_zoo.files import written
from uscl_zoo.modelcard import CONFUSION
from uscl_zoo.prediction import write_rows
from uscl_zoo.records import write_text

from ..plots import in_legend, literal
from . import pages
from .judging import Verdict
from .metrics import BINS, Judged, bins

PAGE, HELD_OUT = "report.html", "heldout.csv"
#: The pictures, in the order of the page, and what is to be seen in them.
PICTURES = {
    "curves.png": "Learning curve: cross-entropy of the training frames, augmented, with smoothed "
    "labels, and the learning rate.",
    CONFUSION: "Confusion matrix of the held-out {unit}s: shares of the true class, and counts.",
    "roc.png": "ROC curves, one class against the rest, held-out {unit}s.",
    "reliability.png": "Reliability of the held-out {unit}s' probabilities: dots on the diagonal "
    "are calibrated; bars count the {unit}s.",
    "cases.png": "Held-out {unit}s: above the surest right ones, below the surest wrong ones.",
}
#: Cases of a row, and of either kind.
_ROW = 6
_BLUE, _RED, _GREY = "#2b6cb0", "#c53030", "#888888"


def write(
    folder: Path,
    card: Card,
    verdict: Verdict,
    history: Sequence[dict[str, float]],
    answers: Answers,
    frames: npt.NDArray[np.uint8],
    notes: Sequence[str],
) -> None:
    """Write the pictures, `report.html` and `heldout.csv`, each whole.

    Args:
        folder: of the model; made if need be.
        card: of the model.
        verdict: on the held-out subjects.
        history: a row an epoch.
        answers: how logits became answers.
        frames: uint8 (N, H, W, 3), of the store.
        notes: what the reader of the figures should know.
    """
    # pictures are of clips: a clip is what a user asks about
    judged = next(unit for unit in verdict.units if unit.unit == "clip")
    pictures = {}
    with literal():
        figures = {
            "curves.png": draw_curves(history),
            CONFUSION: draw_confusion(judged),
            "roc.png": draw_roc(judged),
            "reliability.png": draw_reliability(judged),
            "cases.png": draw_cases(judged, verdict, frames),
        }
        for name, figure in figures.items():
            with written(folder / name) as partial:
                FigureCanvasAgg(figure).print_png(str(partial))
            pictures[name] = (folder / name).read_bytes()
    with (
        written(folder / HELD_OUT) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        tables = verdict.frames, verdict.clips, verdict.subjects
        write_rows(stream, card.classes, *tables, truth=verdict.label)
    write_text(folder / PAGE, page(card, verdict, answers, notes, pictures))


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
        positive = judged.target == i
        if positive.all() or not positive.any():
            continue
        scores = judged.probabilities[:, i]
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


def surest(judged: Judged, chosen: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int64]:
    """The most confident of those chosen, classes in turn.

    Args:
        judged: N of them.
        chosen: (N,).
        count: at most.
    """
    sure = judged.probabilities.max(axis=1)
    order = np.flatnonzero(chosen)[np.argsort(-sure[chosen], kind="stable")]
    # one of each class in turn, so that one easy class does not fill the row
    turn = [int((judged.target[order[:i]] == judged.target[k]).sum()) for i, k in enumerate(order)]
    return np.asarray(order[np.argsort(turn, kind="stable")][:count])


def draw_cases(judged: Judged, verdict: Verdict, frames: npt.NDArray[np.uint8]) -> Figure:
    """The surest right and the surest wrong clips, by the middle frame of each."""
    sure = judged.probabilities.max(axis=1)
    right = judged.predicted == judged.target
    figure = Figure(figsize=(1.75 * _ROW, 4.6), layout="constrained")
    grid: Any = figure.subplots(2, _ROW)
    starts = np.cumsum([0, *(clip.frames for clip in verdict.clips)])
    for line, (title, chosen) in enumerate((("right", right), ("wrong", ~right))):
        order = surest(judged, chosen, _ROW)
        for place in range(_ROW):
            axes = grid[line, place]
            axes.axis("off")
            if place >= len(order):
                if place == 0:
                    axes.set_title(f"none {title}", fontsize=8)
                continue
            index = int(order[place])
            row = verdict.rows[(starts[index] + starts[index + 1] - 1) // 2]
            axes.imshow(frames[row])
            said, true = (
                judged.classes[k] for k in (judged.predicted[index], judged.target[index])
            )
            text = (
                f"{said} {sure[index]:.2f}" if line == 0 else f"{said} {sure[index]:.2f}\nis {true}"
            )
            axes.set_title(text, fontsize=8, color=_RED if line else "black")
    return figure


def plain(axes: Any) -> None:
    """A faint grid and no box."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def page(
    card: Card,
    verdict: Verdict,
    answers: Answers,
    notes: Sequence[str],
    pictures: dict[str, bytes],
) -> str:
    """The report as one HTML file that needs no other."""
    units = list(verdict.figures)
    count = len(verdict.bootstrap.task.subjects)
    names = list(dict.fromkeys(n for scores in verdict.figures.values() for n in scores))
    rows = [[name, *(_shown(str(verdict.figures[unit][name])) for unit in units)] for name in names]
    sizes = ", ".join(f"{len(judged)} {judged.unit}s" for judged in verdict.units)
    training = card.training
    facts = [
        ("classes", ", ".join(card.classes)),
        ("method", training.method),
        ("trained", f"{training.recipe['train']}; {training.epochs} epochs"),
        ("seed", str(training.seed)),
        ("hardware", f"{training.hardware}, {training.hours} h of training"),
        ("code", str(training.code)),
        ("temperature", f"{answers.temperature:.3f}, fitted by cross-validation"),
        ("cannot tell", f"below a probability of {answers.confidence:g}"),
        (
            "unlike the training images",
            f"beyond a distance of {answers.threshold:.3f}, the {answers.quantile:g} quantile of "
            f"{answers.validation_frames} frames, each by a network trained without its subject",
        ),
    ]
    facts += [(source.name, source.counts) for source in training.sources]
    figures = "".join(
        pages.figure(name, "image/png", pictures[name], text.format(unit="clip"))
        for name, text in PICTURES.items()
    )
    warned = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in card.limits)
    return pages.page(
        card.name,
        f"<p>{escape(card.summary)}.</p>{warned}"
        f"<h2>Figures</h2><p>Held-out data: {sizes}. In brackets 95 % intervals, bootstrap over "
        f"{count} held-out subjects within classes. A still is a clip of one frame.</p>"
        f"{pages.table(['', *units], rows)}{figures}"
        f"<h2>How it was made</h2>{pages.table([], [list(fact) for fact in facts])}"
        f"<h2>Limits</h2><ul>{limits}</ul>",
    )


def _shown(score: str) -> str:
    return "-" if "nan" in score else score
