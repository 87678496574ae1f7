"""What a card says in plain words: for terminals, tables and model cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import licences
from .card import Card, Metric, Origin


def seen(card: Card) -> str:
    """What weights were trained on, in a line."""
    parts = []
    for source in card.training.sources:
        facts = "; ".join(part for part in (", ".join(source.organs), source.counts) if part)
        parts.append(f"{source.name} ({facts})" if facts else source.name)
    return ", ".join(parts) or "nothing is known of it"


def standing(card: Card, brief: bool = False) -> list[str]:
    """Where weights are ahead of others, level with them or behind, a line a measured figure.

    A difference whose interval holds zero is `level`: nothing distinguishes it from none. Where the
    card has no figure beside ImageNet, the last line says so.

    Args:
        card: whose figures to report.
        brief: leave out how they were measured.
    """
    lines = []
    for metric in card.metrics:
        if metric.compared_with is None:
            continue
        where = "beside"
        if metric.interval is not None:
            low, high = metric.interval
            where = "ahead of" if low > 0 else "behind" if high < 0 else "level with"
        how = f"; {_in_short(metric.protocol) if brief else metric.protocol}"
        lines.append(
            f"{where} {metric.compared_with}: {_figure(metric)} {metric.metric}, by {metric.unit}; "
            f"{metric.dataset}{how}"
        )
    against = [m.compared_with for m in card.metrics if m.compared_with]
    if card.is_uscl and not any("imagenet" in name.lower() for name in against):
        lines.append("beside ImageNet: no figure on this card")
    return lines


def _in_short(protocol: str) -> str:
    """The first clause of how something was measured."""
    return protocol.partition(";")[0].partition(",")[0]


def _figure(metric: Metric) -> str:
    form = "+.3f" if metric.compared_with else ".3f"
    interval = ""
    if metric.interval is not None:
        interval = " [" + ", ".join(format(bound, form) for bound in metric.interval) + "]"
    return f"{metric.value:{form}}{interval}"


def origin_in_words(origin: Origin) -> str:
    """What weights came of, with its licence and digest."""
    digest = f", sha256 {origin.sha256}" if origin.sha256 else ""
    return f"{origin.name}, {origin.licence or 'licence not stated'}{digest}"


def _numbers(values: Sequence[float]) -> str:
    """One number where all are the same."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def describe(card: Card) -> str:
    """A card as a person reads it."""
    weights, training = card.weights, card.training
    lines = [card.name, f"  {card.summary}", ""]

    def row(key: str, value: object) -> None:
        lines.append(f"  {key:18} {value}")

    def rows(key: str, values: Iterable[object]) -> None:
        for i, value in enumerate(values):
            row("" if i else key, value)

    row("in a product", licences.in_a_product(card.licence))
    row("has seen", seen(card))
    rows("how good", standing(card))
    lines.append("")
    row("architecture", f"{card.architecture} (timm), embeds frames {card.input.size}")
    mean, std = _numbers(card.input.mean), _numbers(card.input.std)
    row("normalisation", f"mean {mean}, std {std}, intensities in 0-1")
    row("licence", card.licence or "not stated by the authors")
    if card.has_weights:
        row("weights", f"{weights.file}, {(weights.bytes or 0) / 1e6:.1f} MB")
        row("sha256", weights.sha256)
        if weights.again:
            row("distributed", f"no more; make it again: {weights.again}")
    else:
        row("weights", f"published by their authors at {weights.origin}; `uscl import` takes them")
    if weights.converted_from:
        row("converted from", origin_in_words(weights.converted_from))
    if weights.hub_repo:
        row("Hub", f"{weights.hub_repo} at {weights.revision}")
    row("method", training.method)
    if training.start is not None:
        row("began from", origin_in_words(training.start))
    rows("teachers", [origin_in_words(teacher) for teacher in training.teachers])
    for source in training.sources:
        row("trained on", source.name)
        rows("", [source.counts] if source.counts else [])
        if source.classes:
            row("", ", ".join(f"{label} {count}" for label, count in source.classes.items()))
        if source.licences:
            bound = ", ".join(f"{name} {count}" for name, count in source.licences.items())
            row("licences", bound)
    if card.corpus is not None:
        row("fingerprints", f"of the training data, {card.corpus.file}; `uscl audit` reads them")
    if training.held_out_subjects:
        row("held out", f"{len(training.held_out_subjects)} subjects")
    if training.epochs is not None:
        row("run", f"{training.epochs} epochs, {training.steps} steps, seed {training.seed}")
        row("", f"{training.hours} h on {training.hardware}; {training.code}")
    for metric in card.metrics:
        what = f"{metric.metric} of {metric.model}" if metric.model else metric.metric
        row("measured", f"{what}, by {metric.unit}: {_figure(metric)}")
        row("", f"{metric.protocol}; {metric.dataset}")
        row("", f"{metric.interval_kind}; {metric.command}")
    row("intended use", card.intended_use)
    rows("limits", card.limits)
    return "\n".join(lines)


def table(cards: Iterable[Card]) -> str:
    """Cards as a table in Markdown: the one of the README."""
    lines = [
        "| checkpoint | weights | trained on | licence | in a product | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for card in cards:
        size = f"{(card.weights.bytes or 0) / 1e6:.0f} MB" if card.has_weights else "`uscl import`"
        sources, measured = _sources_in_short(card), _measured_in_short(card)
        licence = card.licence or "not stated"
        product = licences.in_a_product(card.licence).partition(" ")[0].strip(":,")
        cells = (f"`{card.name}`", size, sources, licence, product, measured or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


#: Sources, and figures, that a cell of the table names one by one.
_NAMED = 3


def _sources_in_short(card: Card) -> str:
    sources = card.training.sources
    if len(sources) > _NAMED:
        organs = sorted({organ for source in sources for organ in source.organs})
        of = f" of {', '.join(organs)}" if organs else ""
        return f"{len(sources)} collections{of}"
    return "; ".join(
        f"{source.name}: {source.counts.split(', ')[0]}" if source.counts else source.name
        for source in sources
    )


def _measured_in_short(card: Card) -> str:
    compared = [metric for metric in card.metrics if metric.compared_with]
    cells, heading = [], ""
    for metric in compared[:_NAMED]:
        own = f"{metric.metric} to {metric.compared_with}, by {metric.unit}: "
        shown = "" if own == heading else own
        cells.append(f"{shown}{_figure(metric)} ({_in_short(metric.protocol)})")
        heading = own
    if len(compared) > _NAMED:
        cells.append(f"{len(compared) - _NAMED} more by `uscl info {card.name}`")
    return "; ".join(cells) or "-"
