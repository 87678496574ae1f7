"""A fine-tuned model on one page: the verdict first, then what to do next, tables last."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from uscl_zoo.answers import LABELS, NUMBER, Answers
from uscl_zoo.classifier.prediction import write_rows
from uscl_zoo.files import written
from uscl_zoo.records import write_text
from uscl_zoo.zoo.card import Card

from ..downstream import pages
from ..downstream.bootstrap import LEAST, Score
from ..learning.plots import literal
from . import plates
from .concluding import Conclusion, called
from .judging import Verdict
from .rivals import Standing

PAGE, HELD_OUT = "report.html", "heldout.csv"


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
    pictures = {}
    with literal():
        figures = plates.of(verdict, conclusion.standing, answers.spread, history, frames)
        for name, figure in figures.items():
            with written(folder / name) as partial:
                FigureCanvasAgg(figure).print_png(str(partial))
            pictures[name] = (folder / name).read_bytes()
    with (
        written(folder / HELD_OUT) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        write_rows(stream, verdict.frames, verdict.clips, verdict.subjects, truth=verdict.label)
    write_text(folder / PAGE, page(card, verdict, conclusion, answers, notes, pictures))


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
    captions = plates.CAPTIONS[verdict.goal.task]
    first, second, *others = (
        pages.figure(name, "image/png", content, captions[name])
        for name, content in pictures.items()
    )
    advice = "".join(
        f"<dt>{escape(one.what)}<dd>{pages.prose(one.text)}" for one in conclusion.advice
    )
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in card.limits)
    return pages.page(
        card.name,
        f'<p class="verdict">{escape(conclusion.verdict)}</p>{first}{warned}'
        f"<h2>What to do next</h2><dl>{advice}</dl>{second}"
        f"<h2>How it answers</h2>{''.join(others)}"
        f"<h2>Figures</h2>{_figures(verdict)}"
        f"<h2>Beside linear heads</h2>{_beside(conclusion.standing)}"
        f"<h2>How it was made</h2>{pages.table([], _facts(card, answers))}"
        f"<h2>Limits</h2><ul>{limits}</ul>",
    )


def _figures(verdict: Verdict) -> str:
    units = list(verdict.figures)
    count = len(verdict.bootstrap.task.subjects)
    names = list(dict.fromkeys(n for scores in verdict.figures.values() for n in scores))
    form = ".4g" if verdict.goal.task == NUMBER else ".3f"
    rows = [
        [name, *(_shown(verdict.figures[unit].get(name), form) for unit in units)] for name in names
    ]
    sizes = ", ".join(f"{len(judged)} {judged.unit}s" for judged in verdict.units)
    return (
        f"<p>What did not train it: {sizes}. In brackets 95 % intervals, bootstrap over {count} "
        f"subjects; a figure without one is about fewer than {LEAST} subjects (of a class or "
        "label), or all of them agree. A still is a clip of one frame.</p>"
        + pages.table(["", *units], rows)
    )


def _beside(standing: Standing) -> str:
    form = ".4g" if standing.goal.task == NUMBER else ".3f"
    rows = [["this model", *(_shown(standing.score(name), form) for name in standing.values)]]
    for rival in standing.rivals:
        scores = [standing.score(name, rival.values) for name in standing.values]
        head = f"linear head on {called(rival.name)}"
        rows.append([head, *(_shown(score, form) for score in scores)])
        gaps = [rival.gap[name] for name in standing.values]
        rows.append(["– difference to it", *(_shown(gap, f"+{form}") for gap in gaps)])
    absent = "".join(f"<p>Not compared: {escape(text)}</p>" for text in standing.absent)
    kind = "ridge" if standing.goal.task == NUMBER else "logistic"
    return (
        f"<p>By clip. A linear head is a {kind} regression on frozen features, fitted on at most "
        "1,000 frames of the same training subjects, its penalty chosen among them. Differences "
        "are paired: both judged on the same resampled subjects.</p>"
        f"{pages.table(['', *standing.values], rows)}{absent}"
    )


def _facts(card: Card, answers: Answers) -> list[list[str]]:
    training = card.training
    facts = [
        ("summary", card.summary),
        ("says", ", ".join(card.classes)),
        ("method", training.method),
        ("trained", f"{training.recipe['train']}; {training.epochs} epochs"),
        ("seed", str(training.seed)),
        ("hardware", f"{training.hardware}, {training.hours} h of training"),
        ("code", str(training.code)),
    ]
    if answers.task == NUMBER:
        text = f"within {answers.spread:.4g} of the number, by cross-validation"
        facts.append(("nine in ten", text))
    else:
        edge = f"below a probability of {answers.confidence:g}"
        if answers.task == LABELS:
            edge = "if a probability is between: " + ", ".join(
                f"{label} {low:.3g} and {high:.3g}" for label, (low, high) in answers.doubt.items()
            )
        facts += [
            ("temperature", f"{answers.temperature:.3f}, fitted by cross-validation"),
            ("cannot tell", edge),
        ]
    facts.append(
        (
            "unlike the training images",
            f"beyond a distance of {answers.threshold:.3f}, the {answers.quantile:g} quantile of "
            f"{answers.validation_frames} frames, each by a network trained without its subject",
        )
    )
    facts += [(source.name, source.counts) for source in training.sources]
    return [list(fact) for fact in facts]


def _shown(score: Score | None, form: str) -> str:
    return "-" if score is None or np.isnan(score.value) else format(score, form)
