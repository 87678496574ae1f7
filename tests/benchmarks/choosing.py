"""The picture of docs/choosing.md, from what `uscl evaluate --shares` left.

python -m tests.benchmarks.choosing REPORT/results.json docs/pictures/choosing.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: Colours that people who see fewer of them tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999")


def draw(told: dict[str, Any]) -> Figure:
    """Macro AUROC by the number of labelled subjects, and by nearest neighbours with all."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    models = list(told["label efficiency"])
    for place, model in enumerate(models):
        colour = COLOURS[place % len(COLOURS)]
        points = []
        for share, units in told["label efficiency"][model].items():
            figures = units.get("subject") or units["clip"]
            score = figures["macro AUROC"]
            points.append(
                (
                    0.8 * told["subjects"] * float(share),
                    *(score[k] for k in ("value", "low", "high")),
                )
            )
        count, value, low, high = zip(*points, strict=True)
        axes.fill_between(count, low, high, color=colour, alpha=0.12, lw=0)
        axes.plot(
            count,
            value,
            color=colour,
            marker="o",
            ms=4,
            label=Path(model).name.removesuffix(".safetensors"),
        )
        near = next(o for o in told["outcomes"] if o["model"] == model and o["protocol"] == "knn")
        score = (near.get("subject") or near["clip"])["macro AUROC"]
        beside.errorbar(
            [place],
            [score["value"]],
            [[score["value"] - score["low"]], [score["high"] - score["value"]]],
            color=colour,
            fmt="o",
            capsize=3,
        )
    axes.set_xscale("log")
    axes.set(xlabel="labelled subjects (of three classes)", ylabel="macro AUROC by subject")
    axes.set_title("linear classifier on frozen features", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_xticks(count, [f"{c:.0f}" for c in count], minor=False)
    axes.minorticks_off()
    beside.set_title("nearest neighbours, all", fontsize=10)
    beside.set(xticks=[], xlim=(-0.7, len(models) - 0.3))
    for one in (axes, beside):
        one.grid(axis="y", color="0.9")
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    figure.suptitle(f"{told['dataset']}: never seen in pretraining; 95 % intervals", fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    figure = draw(json.loads(given.results.read_text()))
    FigureCanvasAgg(figure).print_figure(str(given.picture), dpi=130)


if __name__ == "__main__":
    main()
