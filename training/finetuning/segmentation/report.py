"""A model that outlines in pictures, and the one page that holds them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from uscl_zoo.files import written
from uscl_zoo.names import cell
from uscl_zoo.records import write_text
from uscl_zoo.segmentation.model import Outliner
from uscl_zoo.segmentation.overlay import drawn

from ...downstream import pages
from ...downstream.bootstrap import Score
from ...learning.plots import literal
from ..plates import draw_curves, plain
from .figures import Case, Figures

PAGE, HELD_OUT = "report.html", "heldout.csv"
WORST, MIDDLE = 10, 5
_BLUE, _GREY = "#2b6cb0", "#888888"
#: The pictures, in the order of the page, and what is to be seen in them.
PICTURES = {
    "worst.png": "The ten worst held-out images, by Dice: in white what is there, in colour what "
    "was said, with its probability; a thin outline with a question mark is below the confidence.",
    "others.png": "In the middle of the held-out images (above), and the best of them (below).",
    "spread.png": "Dice of the held-out images that show something, and how far outlines are off.",
    "reliability.png": "Left: of pixels with some probability of a class, the share that is of "
    "it. Right: of regions with some probability, the share that is there. Dots on the diagonal "
    "are calibrated; bars count.",
    "curves.png": "Learning curve: loss of the training images, augmented, and the learning rate.",
}


def write(
    folder: Path,
    said: Outliner,
    cases: Sequence[Case],
    figures: Figures,
    history: Sequence[dict[str, float]],
    image_of: Callable[[Case], Image.Image],
    notes: Sequence[str],
) -> None:
    """Write the pictures, `report.html` and `heldout.csv`, each whole.

    Args:
        folder: of the model; made if need be.
        said: by the model of itself.
        cases: held-out images.
        figures: of them.
        history: a row an epoch.
        image_of: opens the image of a case.
        notes: what the reader of the figures should know.
    """
    order = ranked(cases)
    middle = len(order) // 2
    start = max(0, min(middle - MIDDLE // 2, len(order) - MIDDLE))
    worst = order[:WORST]
    others = [order[start : start + MIDDLE], order[-MIDDLE:]]
    with literal():
        drawings = {
            "worst.png": draw_cases([worst[:5], worst[5:]], said, image_of),
            "others.png": draw_cases(others, said, image_of),
            "spread.png": draw_spread(cases),
            "reliability.png": draw_reliability(cases),
            "curves.png": draw_curves(history),
        }
        pictures = {}
        for name, figure in drawings.items():
            with written(folder / name) as partial:
                FigureCanvasAgg(figure).print_png(str(partial))
            pictures[name] = (folder / name).read_bytes()
    with (
        written(folder / HELD_OUT) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        write_rows(stream, said, cases)
    write_text(folder / PAGE, page(said, cases, figures, notes, pictures))


def ranked(cases: Sequence[Case]) -> list[Case]:
    """From the worst to the best, by Dice; of those alike, the surer are the worse.

    Where nothing is there and nothing said there is nothing to see: such images are left out, as
    long as there are others.
    """
    seen = [case for case in cases if case.there or case.said] or list(cases)

    def key(case: Case) -> tuple[float, float]:
        sure = max((region.score for region in case.said), default=0.0)
        return case.score, -sure if case.score < 0.5 else sure

    return sorted(seen, key=key)


def draw_cases(
    rows: Sequence[Sequence[Case]], said: Outliner, image_of: Callable[[Case], Image.Image]
) -> Figure:
    """Images with what is there and what was said, some a row."""
    columns = max((len(row) for row in rows), default=1) or 1
    lines = [row for row in rows if row]
    figure = Figure(figsize=(2.6 * columns, 2.75 * max(len(lines), 1)), layout="constrained")
    grid: Any = figure.subplots(max(len(lines), 1), columns, squeeze=False)
    for line, places in enumerate(grid):
        for place, axes in enumerate(places):
            axes.axis("off")
            if line >= len(lines) or place >= len(lines[line]):
                continue
            case = lines[line][place]
            doubtful = [r for r in case.predicted if r.score < said.confidence][:3]
            picture = drawn(
                image_of(case),
                [*case.said, *doubtful],
                said.classes,
                known=case.there,
                confidence=said.confidence,
            )
            axes.imshow(picture)
            what = f"Dice {case.score:.2f}" if case.there else "none is there"
            far = np.nanmax(case.distance) if np.isfinite(case.distance).any() else np.nan
            what += f", {far:.0f} px off" if np.isfinite(far) else ""
            if case.there and not case.said:
                what = "missed"
            axes.set_title(f"{Path(case.name).name[:34]}\n{what}", fontsize=7.5)
    return figure


def draw_spread(cases: Sequence[Case]) -> Figure:
    """Histograms of Dice and of the Hausdorff distance."""
    figure = Figure(figsize=(9, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist([case.score for case in cases if case.there], bins=np.linspace(0, 1, 21), color=_BLUE)
    left.set(xlabel="Dice", ylabel="images", xlim=(0, 1))
    far = [float(np.nanmax(c.distance)) for c in cases if np.isfinite(c.distance).any()]
    right.hist(far, bins=20, color=_BLUE) if far else None
    right.set(xlabel="95 % Hausdorff distance, px", ylabel="images", xlim=(0, None))
    plain(left)
    plain(right)
    return figure


def draw_reliability(cases: Sequence[Case]) -> Figure:
    """Of pixels and of regions, the share that is right by probability."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    grid: Any = figure.subplots(2, 2, height_ratios=(3, 1), sharex=True)
    scores = np.array([r.score for c in cases for r in c.predicted])
    right = np.array([one for c in cases for one in c.right], float)
    bins = np.minimum((scores * 10).astype(int), 9)
    regions = (
        np.bincount(bins, minlength=10).astype(float),
        np.bincount(bins, weights=scores, minlength=10),
        np.bincount(bins, weights=right, minlength=10),
    )
    tables = [case.pixels for case in cases if case.pixels is not None]
    pixels = tuple(np.sum(tables, axis=0)) if tables else None
    for column, (table, name) in enumerate(((pixels, "pixels"), (regions, "regions"))):
        above, below = grid[0, column], grid[1, column]
        above.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
        above.set(ylabel="share right", ylim=(0, 1.02), xlim=(0, 1), title=name)
        below.set(xlabel="probability", ylabel=name)
        plain(above)
        plain(below)
        if table is None:
            continue
        count, sums, hits = table
        filled = np.flatnonzero(count)
        middle = (np.arange(len(count)) + 0.5) / len(count)
        above.plot(
            sums[filled] / count[filled], hits[filled] / count[filled], color=_BLUE, marker="o"
        )
        below.bar(middle, count, width=0.9 / len(count), color=_BLUE)
        if name == "pixels":
            # most are surely background
            below.set_yscale("log")
            below.yaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
    return figure


def write_rows(stream: Any, said: Outliner, cases: Sequence[Case]) -> None:
    """Write a row an image and class, with what the figures are made of."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            *("image", "subject", "class", "there", "found", "said", "hits", "dice", "iou"),
            *("hd95_px", "hd95_mm", "area_px", "said_area_px", "said_area_mm2", "distance"),
            "unlike_training",
        ]
    )

    def number(value: float) -> str:
        return f"{value:.6g}" if np.isfinite(value) else ""

    for case in cases:
        for label, name in enumerate(said.classes):
            there = [region for region in case.there if region.label == label]
            claim = [region for region in case.said if region.label == label]
            hits = sum(h for h, r in zip(case.hits, case.there, strict=True) if r.label == label)
            area = sum(region.area for region in claim)
            spacing = case.spacing
            writer.writerow(
                [
                    cell(case.name),
                    cell(case.subject),
                    cell(name),
                    len(there),
                    sum(region.label == label for region in case.predicted),
                    len(claim),
                    hits,
                    number(case.dice[label]),
                    number(case.iou[label]),
                    number(case.distance[label]),
                    number(case.distance_mm[label]),
                    f"{sum(region.area for region in there):.0f}",
                    f"{area:.0f}",
                    "" if spacing is None else f"{area * spacing[0] * spacing[1]:.2f}",
                    number(case.away),
                    int(case.unlike),
                ]
            )


def page(
    said: Outliner,
    cases: Sequence[Case],
    figures: Figures,
    notes: Sequence[str],
    pictures: dict[str, bytes],
) -> str:
    """The report as one HTML file that needs no other."""
    subjects = len(figures.bootstrap.task.subjects)
    rows = [[name, _shown(one), _shown(other)] for name, (one, other) in figures.rows.items()]
    training = said.training
    facts = [
        ("classes", ", ".join(said.classes)),
        (
            "network",
            f"{said.network} on {said.encoder}, {said.input.size[1]} x {said.input.size[2]}",
        ),
        ("method", training.method),
        ("trained", f"{training.epochs} epochs, {training.steps} steps"),
        ("seed", str(training.seed)),
        ("hardware", f"{training.hardware}, {training.hours} h of training"),
        ("code", str(training.code)),
        (
            "probability of a pixel",
            f"softmax of the logits, divided by {said.temperature:.3f} and multiplied by the "
            f"margin of the first over the second to the power of {said.exponent - 1:.3f}, fitted "
            "by cross-validation",
        ),
        (
            "probability of a region",
            f"logistic in the logit of its score (× {said.trust.score:.2f}) and the logarithm of "
            f"its share of the frame (× {said.trust.area:.2f}), fitted on {said.trust.regions} "
            "regions of subjects left out",
        ),
        ("none", f"where no region has a probability of {said.confidence:g}"),
        (
            "unlike the training images",
            f"beyond a distance of {said.threshold:.3f}, the {said.quantile:g} quantile of "
            f"{said.validation_images} images, each by a network trained without its subject",
        ),
    ]
    facts += [(source.name, source.counts) for source in training.sources]
    shown = sum(bool(case.there) for case in cases)
    missing = figures.without_distance
    far = (
        f" {missing} images have no Hausdorff distance, as nothing was said where something is, or "
        "something where nothing is; sensitivity and false regions count them."
        if missing
        else ""
    )
    drawings = "".join(
        pages.figure(name, "image/png", pictures[name], text) for name, text in PICTURES.items()
    )
    warned = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in said.limits)
    return pages.page(
        said.summary,
        f"{warned}<h2>Figures</h2><p>Held-out data: {figures.images} images of {subjects} "
        f"subjects; {shown} show something. In brackets 95 % intervals, bootstrap over subjects. "
        "Dice, IoU and distance are means over images that show the class; what was missed there "
        f"has a Dice of 0.{escape(far)} AP, AP50 and AP75 are COCO's, over all images, and count "
        "regions below the confidence as well.</p>"
        f"{pages.table(['', 'by image', 'by subject'], rows)}{drawings}"
        f"<h2>How it was made</h2>{pages.table([], [list(fact) for fact in facts])}"
        f"<h2>Limits</h2><ul>{limits}</ul>",
    )


def _shown(score: Score | None) -> str:
    return "-" if score is None or not np.isfinite(score.value) else str(score)
