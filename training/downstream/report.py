"""A fine-tuned model in pictures, and the one page that holds them: the verdict first."""

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
from .bootstrap import LEAST, Floats, Score
from .concluding import Conclusion, called, signed
from .judging import Verdict
from .metrics import BINS, Judged, bins
from .rivals import Standing

PAGE, HELD_OUT = "report.html", "heldout.csv"
VERDICT, CASES = "verdict.png", "cases.png"
#: The pictures, in the order of the page, and what is to be seen in them.
PICTURES = {
    VERDICT: "Left, against what: macro AUROC of this model and of linear heads that are fitted on "
    "frozen features of the same training subjects, with how far the model is ahead. Right, for "
    "whom: the share of each class that is found. Bars are 95 % intervals over subjects.",
    CASES: "Clips that did not train it: the surest right ones, and in red the surest wrong ones.",
    CONFUSION: "Confusion matrix: shares of the true class, and counts of clips.",
    "roc.png": "ROC curves, one class against the rest.",
    "reliability.png": "Reliability of the probabilities: dots on the diagonal are calibrated; "
    "bars count the clips.",
    "curves.png": "Learning curve: cross-entropy of the training frames, augmented, with smoothed "
    "labels, and the learning rate.",
}
#: Cases of a row, and of either kind.
_ROW = 6
_BLUE, _RED, _GREY = "#2b6cb0", "#c53030", "#888888"


def write(
    folder: Path,
    card: Card,
    verdict: Verdict,
    conclusion: Conclusion,
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
        conclusion: what it comes to.
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
            VERDICT: draw_verdict(conclusion.standing),
            CASES: draw_cases(judged, verdict, frames),
            CONFUSION: draw_confusion(judged),
            "roc.png": draw_roc(judged),
            "reliability.png": draw_reliability(judged),
            "curves.png": draw_curves(history),
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
    write_text(folder / PAGE, page(card, verdict, conclusion, answers, notes, pictures))


def draw_verdict(standing: Standing) -> Figure:
    """How good, against what and for whom: rows of figures with their intervals."""
    judged = standing.judged
    rows: list[tuple[str, dict[str, Floats], dict[str, Score] | None]]
    rows = [("this model", standing.values, None)]
    for rival in standing.rivals:
        rows.append((f"linear head on\n{called(rival.name)}", rival.values, rival.behind))
    height = 1.1 + 0.5 * max(len(rows), len(judged.classes))
    figure = Figure(figsize=(10, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    main = "macro AUROC"
    scores = [standing.score(main, values) for _, values, _ in rows]
    for place, ((_, _, behind), score) in enumerate(zip(rows, scores, strict=True)):
        _interval(left, score, place, _BLUE if behind is None else _GREY)
        text = f"{score.value:.3f}"
        if behind is not None:
            text += f"   model {signed(behind[main])}"
        left.annotate(
            text,
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    left.axvline(0.5, color=_GREY, linestyle=":", linewidth=1)
    left.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    lowest = min([0.5, *(s.low if s.bounded else s.value for s in scores)])
    left.set(xlabel=f"{main} (dotted: by chance)", xlim=(lowest - 0.02, 1.01))
    left.set_ylim(len(rows) - 0.5, -0.5)
    own = standing.own
    for place, label in enumerate(judged.classes):
        name = f"recall of {label}"
        if own is not None:
            _interval(right, standing.score(name, own.values), place + 0.18, _GREY)
        _interval(right, standing.score(name), place, _BLUE)
    right.set_yticks(range(len(judged.classes)), [in_legend(c) for c in judged.classes])
    right.set(xlabel="share of the class that is found", xlim=(-0.02, 1.02))
    right.set_ylim(len(judged.classes) - 0.5, -0.5)
    plain(left)
    plain(right)
    return figure


def _interval(axes: Any, score: Score, place: float, colour: str) -> None:
    if score.bounded:
        axes.plot([score.low, score.high], [place, place], color=colour, linewidth=2)
    axes.plot(score.value, place, "o", color=colour)


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
    kinds = [(title, chosen) for title, chosen in (("right", right), ("wrong", ~right))]
    kinds = [(title, chosen) for title, chosen in kinds if chosen.any()]
    figure = Figure(figsize=(1.75 * _ROW, 2.3 * len(kinds)), layout="constrained")
    grid: Any = figure.subplots(len(kinds), _ROW, squeeze=False)
    starts = np.cumsum([0, *(clip.frames for clip in verdict.clips)])
    for line, (title, chosen) in enumerate(kinds):
        order = surest(judged, chosen, _ROW)
        for place in range(_ROW):
            axes = grid[line, place]
            axes.axis("off")
            if place >= len(order):
                continue
            index = int(order[place])
            row = verdict.rows[(starts[index] + starts[index + 1] - 1) // 2]
            axes.imshow(frames[row])
            said, true = (
                judged.classes[k] for k in (judged.predicted[index], judged.target[index])
            )
            text = (
                f"{said} {sure[index]:.2f}"
                if title == "right"
                else f"{said} {sure[index]:.2f}\nis {true}"
            )
            axes.set_title(text, fontsize=8, color="black" if title == "right" else _RED)
    return figure


def plain(axes: Any) -> None:
    """A faint grid and no box."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def page(
    card: Card,
    verdict: Verdict,
    conclusion: Conclusion,
    answers: Answers,
    notes: Sequence[str],
    pictures: dict[str, bytes],
) -> str:
    """The report as one HTML file that needs no other: verdict, what next, pictures, tables."""
    warned = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    first, second, *others = (
        pages.figure(name, "image/png", pictures[name], text) for name, text in PICTURES.items()
    )
    advice = "".join(
        f"<dt>{escape(one.what)}<dd>{pages.prose(one.text)}" for one in conclusion.advice
    )
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in card.limits)
    return pages.page(
        card.name,
        f'<p class="verdict">{escape(conclusion.verdict)}</p>{first}{warned}'
        f"<h2>What to do next</h2><dl>{advice}</dl>{second}"
        f"<h2>How it tells them apart</h2>{''.join(others)}"
        f"<h2>Figures</h2>{_figures(verdict)}"
        f"<h2>Beside linear heads</h2>{_beside(conclusion.standing)}"
        f"<h2>How it was made</h2>{pages.table([], _facts(card, answers))}"
        f"<h2>Limits</h2><ul>{limits}</ul>",
    )


def _figures(verdict: Verdict) -> str:
    units = list(verdict.figures)
    count = len(verdict.bootstrap.task.subjects)
    names = list(dict.fromkeys(n for scores in verdict.figures.values() for n in scores))
    rows = [[name, *(_shown(str(verdict.figures[unit][name])) for unit in units)] for name in names]
    sizes = ", ".join(f"{len(judged)} {judged.unit}s" for judged in verdict.units)
    return (
        f"<p>Held-out data: {sizes}. In brackets 95 % intervals, bootstrap over {count} held-out "
        f"subjects within classes; a figure without one is about fewer than {LEAST} subjects of "
        "a class, or all of them agree. A still is a clip of one frame.</p>"
        + pages.table(["", *units], rows)
    )


def _beside(standing: Standing) -> str:
    head = ["", *(f"{name}" for name in standing.values)]
    rows = [["this model", *(_shown(str(standing.score(name))) for name in standing.values)]]
    for rival in standing.rivals:
        cells = [str(standing.score(name, rival.values)) for name in standing.values]
        rows.append([f"linear head on {called(rival.name)}", *map(_shown, cells)])
        cells = [signed(rival.behind[name]) for name in standing.values]
        rows.append(["– how far the model is ahead", *map(_shown, cells)])
    absent = "".join(f"<p>Not compared: {escape(text)}</p>" for text in standing.absent)
    return (
        "<p>By clip. A linear head is a logistic regression on frozen features, fitted on at most "
        "1,000 frames of the same training subjects, its penalty chosen among them. Differences "
        "are paired: both judged on the same resampled subjects.</p>"
        f"{pages.table(head, rows)}{absent}"
    )


def _facts(card: Card, answers: Answers) -> list[list[str]]:
    training = card.training
    facts = [
        ("begun from", card.summary),
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
    return [list(fact) for fact in facts]


def _shown(score: str) -> str:
    return "-" if "nan" in score else score
