"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PANELS = (
    ("NT-Xent", ("contrastive", "held-out contrastive")),
    ("Cross-entropy of both views", ("labelled",)),
    ("Learning rate", ("learning_rate",)),
)


def draw(history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw one panel a quantity over the epochs.

    Args:
        history: a row an epoch, as `pretrain` keeps it.
        path: of the PNG, replaced whole.
    """
    # without pyplot: no display, no global state
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name in names:
            points = [(row["epoch"], row[name]) for row in history if name in row]
            if points:
                label = "held-out videos" if name.startswith("held-out") else "training videos"
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.3)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(frameon=False)
    partial = path.with_name(f"{path.name}.partial")
    FigureCanvasAgg(figure).print_png(str(partial))
    partial.replace(path)
