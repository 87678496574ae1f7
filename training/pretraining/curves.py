"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uscl_zoo.files import written

_SPLITS = ("training videos", "held-out videos")
#: Title of a panel, and the quantities in it with what the legend calls them.
_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "NT-Xent",
        dict(zip(("contrastive", "held-out contrastive"), _SPLITS, strict=True)),
    ),
    ("Cross-entropy of labelled views", {"labelled": "training videos"}),
    ("Distance from the teachers", {"taught": "training videos"}),
    ("Disagreement with itself", {"consistency": "training videos"}),
    ("Learning rate", {"learning_rate": ""}),
    (
        "Alignment (0 is a point a video)",
        dict(zip(("alignment", "held-out alignment"), _SPLITS, strict=True)),
    ),
    (
        "Uniformity (less is more even)",
        dict(zip(("uniformity", "held-out uniformity"), _SPLITS, strict=True)),
    ),
    (
        "kNN, balanced accuracy, held-out",
        {"kNN, held-out frames": "by frame", "kNN, held-out videos": "by video"},
    ),
)
_COLUMNS = 3
# Of the first quantity of a panel, and of the second.
_MARKS = ".o"


def draw(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw one panel a quantity over the epochs, those that were measured.

    Args:
        history: a row an epoch, as `pretrain` keeps it.
        path: of the PNG, replaced whole.
    """
    # without pyplot: no display, no global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    measured = {name for row in history for name in row}
    panels = [panel for panel in _PANELS if measured.intersection(panel[1])]
    rows = -(-len(panels) // _COLUMNS)
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(11, 3.4 * rows), layout="constrained")
    places = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for (title, names), axes in zip(panels, places, strict=False):
        for name, label in names.items():
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                # of a few points a line shows nothing
                marker = _MARKS[len(axes.lines)] if len(points) < 40 else None
                axes.plot(
                    *zip(*points, strict=True),
                    label=label,
                    linewidth=1.3,
                    marker=marker,
                    markersize=5,
                    # two that coincide are both seen
                    fillstyle="full" if not axes.lines else "none",
                )
        # of what is measured now and then, too: one scale of time for all
        axes.set(title=title, xlabel="epoch", xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        if "accuracy" in title:
            axes.set_ylim(0, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False)
    for axes in places:
        axes.set_axis_off()
    with written(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))
