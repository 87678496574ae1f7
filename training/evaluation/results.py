"""What `uscl evaluate` leaves: tables as Markdown and JSON, pictures, and one page of all."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from uscl_zoo.errors import DataError
from uscl_zoo.files import begins_with, check_folder, written
from uscl_zoo.names import cell
from uscl_zoo.records import to_plain, write_text
from uscl_zoo.zoo.card import Metric

from ..downstream import pages
from ..downstream.scoring import COMPARED, Difference, Figures, units
from ..learning.plots import literal
from . import pictures
from .evaluate import Evaluation, Outcome
from .protocols import PROTOCOLS

PAGE, TABLES, FIGURES, ANSWERS = "report.html", "results.md", "results.json", "answers.csv"
#: What the authors report of fine-tuning on POCUS, chosen and judged by the same fold (METHOD).
PAPER_BEST = 0.9419
#: The metric that cards tell.
_ON_CARD = "macro AUROC"
_SHOWN = ("accuracy", "balanced accuracy", "macro F1", "macro AUROC", "expected calibration error")


def write(evaluation: Evaluation, output: Path, command: str) -> None:
    """Write the report, each file whole.

    Args:
        evaluation: what is reported.
        output: folder.
        command: that led to it.

    Raises:
        DataError: if it would replace what is not of an earlier report, or cannot be written.
    """
    with literal():
        drawn = [(name, _png(figure), text) for name, figure, text in pictures.of(evaluation)]
    check_report(output, names=[name for name, _, _ in drawn])
    # first, as it says that the folder is ours
    write_text(output / FIGURES, json.dumps(plain(evaluation, command), indent=1))
    for name, content, _ in drawn:
        with written(output / name) as partial:
            partial.write_bytes(content)
    write_text(output / TABLES, markdown(evaluation, command))
    write_text(output / ANSWERS, _answers(evaluation))
    write_text(output / PAGE, page(evaluation, command, drawn))


def check_report(
    output: Path, inputs: Iterable[str | Path] = (), names: Iterable[str] = ()
) -> Path:
    """Make sure, before the work is done, that a report can be written to a folder.

    Args:
        output: folder.
        inputs: that are read.
        names: of pictures.

    Raises:
        DataError: if files of that name in it are not of an earlier report, or are inputs.
    """
    ours = begins_with(output / FIGURES, b'{\n "dataset": ')
    return check_folder(output, ours, inputs, (PAGE, TABLES, FIGURES, ANSWERS, *names))


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


Table = tuple[str, list[str], list[list[str]]]


def tables(evaluation: Evaluation) -> list[Table]:
    """Every table as title, head and rows."""
    made: list[Table] = []
    for protocol in dict.fromkeys(outcome.protocol for outcome in evaluation.outcomes):
        mine = [outcome for outcome in evaluation.outcomes if outcome.protocol == protocol]
        for unit in mine[0].figures:
            head = ["model", "frames", "seeds", *_SHOWN, "corpus"]
            rows = [_row(outcome, outcome.figures[unit]) for outcome in mine]
            made.append((f"{protocol}, by {unit}", head, rows))
        if mine[0].best is not None:
            made.append(_epochs(evaluation, protocol, mine))
        for unit in mine[0].figures:
            if evaluation.compared[protocol, unit]:
                made.append(
                    (
                        f"{protocol}, by {unit}: differences",
                        ["difference", *_COMPARED_HEAD],
                        _compared(evaluation.compared[protocol, unit]),
                    )
                )
    return made + _by_share(evaluation)


#: Columns of a comparison: of each metric the difference, p, and p corrected.
_COMPARED_HEAD = [
    column for metric in COMPARED for column in (metric, "p", "p corrected")
]  # fmt: skip


def metrics(evaluation: Evaluation, model: str, command: str) -> list[Metric]:
    """What a card tells of a model: its macro AUROC, and how far it is from the reference.

    The figures are of the largest unit there is: subjects, or clips where each is its own.

    Args:
        evaluation: with the model, and compared with a reference.
        model: as it was asked for.
        command: that measures it again.

    Raises:
        DataError: if the model was not judged, or is the reference itself.
    """
    mine = [outcome for outcome in evaluation.outcomes if outcome.model == model]
    if not mine or model == evaluation.reference:
        judged = ", ".join(sorted({o.model for o in evaluation.outcomes} - {evaluation.reference}))
        raise DataError(f"{model}: is not among the models that were compared ({judged})")
    subjects = len(evaluation.bootstrap.task.subjects)

    def figure(protocol: str, unit: str, score: Any, of: str | None, other: str | None) -> Metric:
        return Metric(
            dataset=f"{evaluation.dataset.name}, {subjects:,} subjects",
            protocol=f"{protocol}; {evaluation.folds.count} folds",
            unit=unit,
            metric=_ON_CARD if other is None else f"{_ON_CARD}, difference",
            value=round(score.value, 3),
            interval=(round(score.low, 3), round(score.high, 3)),
            interval_kind=f"95 %, bootstrap over {subjects:,} subjects within classes",
            compared_with=other,
            command=command,
            model=of,
        )

    made = []
    for outcome in mine:
        protocol, unit = outcome.protocol, list(outcome.figures)[-1]
        for one in evaluation.outcomes:
            if one.protocol == protocol and one.model in (model, evaluation.reference):
                of = None if one.model == model else one.model
                score = one.figures[unit].scores[_ON_CARD]
                made.append(figure(PROTOCOLS[protocol], unit, score, of, None))
        made += [
            figure(PROTOCOLS[protocol], unit, one.difference, None, one.second)
            for one in evaluation.compared[protocol, unit]
            if one.metric == _ON_CARD and (one.first, one.second) == (model, evaluation.reference)
        ]
    unit = list(evaluation.thinned)[-1] if evaluation.thinned else ""
    return made + [
        figure(f"linear with {_percent(one.share)} of the training subjects", unit, one.difference,
             None, one.second)
        for one in evaluation.thinned.get(unit, [])
        if one.metric == _ON_CARD and one.first == model and one.share < 1
    ]  # fmt: skip


def _by_share(evaluation: Evaluation) -> list[Table]:
    """Label efficiency, and the differences at each share."""
    made: list[Table] = []
    for unit, compared in evaluation.thinned.items():
        shares = [share for share, _ in next(iter(evaluation.efficiency.values()))]
        for metric in COMPARED:
            rows = [
                [model, *(_in_words(units[unit], metric) for _, units in points)]
                for model, points in evaluation.efficiency.items()
            ]
            title = f"label efficiency, by {unit}: {metric} by share of training subjects"
            made.append((title, ["model", *map(_percent, shares)], rows))
        if compared:
            title = f"label efficiency, by {unit}: differences to {evaluation.reference}"
            head = ["subjects", "difference", *_COMPARED_HEAD]
            rows = [
                [_percent(share), *row]
                for share in shares
                for row in _compared([one for one in compared if one.share == share])
            ]
            made.append((title, head, rows))
    return made


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _row(outcome: Outcome, figures: Figures) -> list[str]:
    seeds = len(outcome.probabilities)
    size = str(outcome.form)
    cells = [_in_words(figures, name) for name in _SHOWN]
    return [outcome.model, size, str(seeds), *cells, str(outcome.seen)]


def _in_words(figures: Figures, name: str) -> str:
    spread = figures.spread[name]
    return f"{figures.scores[name]}" + (f" ±{spread:.3f}" if spread == spread else "")


def _compared(differences: Sequence[Difference]) -> list[list[str]]:
    """A row a pair, with every metric side by side."""
    rows: dict[str, list[str]] = {}
    for one in differences:
        pair = f"{one.first} − {one.second}"
        cells = [str(one.difference), f"{one.p:.3f}", f"{one.corrected:.3f}"]
        rows.setdefault(pair, [pair]).extend(cells)
    return list(rows.values())


def _epochs(evaluation: Evaluation, protocol: str, mine: Sequence[Outcome]) -> Table:
    """The optimistic protocol beside the honest one."""
    rows = [
        [one.model, f"{one.last:.3f}", f"{one.best:.3f}", str(one.seen)]
        for one in mine
        if one.last is not None and one.best is not None
    ]
    if evaluation.dataset.name.startswith("POCUS"):
        rows.append(["the paper's USCL, its own folds", "", f"{PAPER_BEST:.4f}", "not ours"])
    head = ["model", "last epoch", "best epoch on the held-out fold", "corpus"]
    return (
        f"{protocol}: accuracy by frame, and what choosing on the test fold would add",
        head,
        rows,
    )


def facts(evaluation: Evaluation, command: str) -> list[tuple[str, str]]:
    """How it was made."""
    name, setting = evaluation.setting
    folds, about = evaluation.folds, evaluation.about
    subjects = evaluation.bootstrap.task.subjects
    kind = "its own" if folds.official else f"drawn by class and subject, seed {about['seed']}"
    return [
        ("command", command),
        ("data", f"{evaluation.dataset.name}: {len(folds.videos)} clips or stills, "
         f"{len(folds.sample())} frames, {len(subjects)} subjects; {', '.join(folds.classes)}"),
        ("licence", evaluation.dataset.licence or _licences(evaluation)),
        ("folds", f"{folds.count}, {kind}; no subject in two"),
        ("setting", f"{name}: pretraining within folds {setting.epochs} epochs at "
         f"{setting.size}², {about['precision']}"),
        *_sizes(evaluation),
        ("compared", "every two models"
         + (f"; at each share with {evaluation.reference}" if evaluation.thinned else "")
         if evaluation.every_two else f"with {evaluation.reference}"),
        ("corpus", "what weights were trained on, known by names, DOIs and URLs on their card, by "
         "SHA-256 of files, and by perceptual hashes of pictures, also saved anew"),
        ("intervals", f"95 %, bootstrap over subjects within classes, {about['resamples']} "
         "resamples, the same for all models; ± is the standard deviation over seeds"),
        ("p", "two-sided, from the paired resamples; corrected by Holm's method for all rows "
         "of a metric"),
        ("hardware", f"{about['hardware']}, torch {about['torch']}, {about['seconds']} s"),
        ("code", str(about["code"])),
    ]  # fmt: skip


def _sizes(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Said where not all models were given the same frames."""
    forms = {outcome.model: outcome.form for outcome in evaluation.outcomes}
    if len(set(forms.values())) == 1:
        return []
    listed = "; ".join(f"{model} {form}" for model, form in forms.items())
    return [("frames", f"like is not compared with like: {listed}")]


def _licences(evaluation: Evaluation) -> str:
    """Those of the files, where the data set has none as a whole."""
    counts = Counter(video.licence for video in evaluation.folds.videos if video.licence)
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "not stated"


def markdown(evaluation: Evaluation, command: str) -> str:
    """The tables and how they were made."""
    parts = [f"# {evaluation.dataset.name}\n"]
    for title, head, rows in tables(evaluation):
        parts += [f"## {title}\n", as_markdown(head, rows)]
    used = dict.fromkeys(outcome.protocol for outcome in evaluation.outcomes)
    parts += ["## how\n", *(f"- {name}: {PROTOCOLS[name]}" for name in used)]
    parts += [f"- {name}: {text}" for name, text in facts(evaluation, command)]
    parts += [f"- {note}" for note in evaluation.dataset.collection.notes]
    return "\n".join(parts) + "\n"


def as_markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plain(evaluation: Evaluation, command: str) -> dict[str, Any]:
    """Everything that is a number."""
    return {
        "dataset": evaluation.dataset.name,
        "command": command,
        "classes": list(evaluation.folds.classes),
        "subjects": len(evaluation.bootstrap.task.subjects),
        "folds": {
            video.name: int(fold)
            for video, fold in zip(evaluation.folds.videos, evaluation.folds.fold, strict=True)
        },
        "setting": {evaluation.setting[0]: to_plain(evaluation.setting[1])},
        "about": evaluation.about,
        "outcomes": [
            {
                "model": outcome.model,
                "corpus": outcome.seen.words,
                "in corpus": outcome.seen.leaks,
                "protocol": outcome.protocol,
                "size": outcome.form.size,
                "clean": outcome.form.clean,
                "grey": outcome.form.grey,
                "seeds": len(outcome.probabilities),
                "last epoch": outcome.last,
                "best epoch on the held-out fold": outcome.best,
            }
            | {
                unit: {
                    name: _numbers(score) | {"spread over seeds": _number(figures.spread[name])}
                    for name, score in figures.scores.items()
                }
                for unit, figures in outcome.figures.items()
            }
            for outcome in evaluation.outcomes
        ],
        "reference": evaluation.reference,
        "differences": [
            {"protocol": protocol, "unit": unit} | _difference(one)
            for (protocol, unit), rows in evaluation.compared.items()
            for one in rows
        ],
        "label efficiency": {
            model: {
                f"{share:g}": {
                    unit: {metric: _numbers(figures.scores[metric]) for metric in COMPARED}
                    for unit, figures in units.items()
                }
                for share, units in points
            }
            for model, points in evaluation.efficiency.items()
        },
        "differences by share": [
            {"unit": unit, "share": one.share} | _difference(one)
            for unit, rows in evaluation.thinned.items()
            for one in rows
        ],
    }


def _difference(one: Difference) -> dict[str, Any]:
    names = {"first": one.first, "second": one.second, "metric": one.metric}
    return names | {"p": one.p, "p corrected": one.corrected} | _numbers(one.difference)


def _numbers(score: Any) -> dict[str, float | None]:
    return {name: _number(getattr(score, name)) for name in ("value", "low", "high")}


def _number(value: float) -> float | None:
    # JSON has no NaN
    return round(float(value), 5) if value == value else None


def _answers(evaluation: Evaluation) -> str:
    """A row a clip, model, protocol and seed: what the figures were computed from."""
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    classes = evaluation.folds.classes
    table.writerow(
        ["protocol", "model", "seed", "clip", "subject", "fold", "class", *map(cell, classes)]
    )
    for outcome in evaluation.outcomes:
        for seed, probabilities in enumerate(outcome.probabilities):
            clips = next(
                one for one in units(probabilities, evaluation.folds) if one.unit == "clip"
            )
            for video, fold, row in zip(
                evaluation.folds.videos, evaluation.folds.fold, clips.probabilities, strict=True
            ):
                cells = [f"{value:.4f}" for value in row]
                who = [cell(video.name), cell(video.subject), int(fold) + 1, cell(video.label)]
                table.writerow([outcome.protocol, cell(outcome.model), seed, *who, *cells])
    return stream.getvalue()


def page(evaluation: Evaluation, command: str, drawn: Sequence[tuple[str, bytes, str]]) -> str:
    """The report as one HTML file that needs no other."""
    body = [f"<p>{escape(evaluation.dataset.citation or '')}</p>"]
    seen = sorted({outcome.model for outcome in evaluation.outcomes if outcome.seen.leaks})
    if seen:
        body.append(
            f'<p class="note">In corpus: {escape(", ".join(seen))} was trained on this data set, '
            "as far as is known on subjects it is judged by here; its figures say nothing of "
            "new patients.</p>"
        )
    for title, head, rows in tables(evaluation):
        body += [f"<h2>{escape(title)}</h2>", pages.table(head, rows)]
    body.append("<h2>Pictures</h2>")
    body += [pages.figure(name, "image/png", content, caption) for name, content, caption in drawn]
    for outcome in evaluation.outcomes:
        body.append(f"<h3>{escape(outcome.protocol)}, {escape(outcome.model)}: all figures</h3>")
        names = list(next(iter(outcome.figures.values())).scores)
        rows = [
            [name, *(_in_words(figures, name) for figures in outcome.figures.values())]
            for name in names
        ]
        body.append(pages.table(["", *outcome.figures], rows))
    used = dict.fromkeys(outcome.protocol for outcome in evaluation.outcomes)
    how = [[name, PROTOCOLS[name]] for name in used]
    how += [list(fact) for fact in facts(evaluation, command)]
    body += ["<h2>How it was made</h2>", pages.table([], how, wrap=True)]
    notes = "".join(f"<li>{escape(note)}</li>" for note in evaluation.dataset.collection.notes)
    body.append(f"<h2>Left out</h2><ul>{notes}</ul>" if notes else "")
    return pages.page(f"Evaluation on {evaluation.dataset.name}", "".join(body))
