"""Whether a network goes by what is not ultrasound: its answer with and without the rest."""

from __future__ import annotations

import base64
import contextlib
import csv
import html
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..answers import CLASSES, LABELS, NUMBER
from ..embedding.running import digest
from ..errors import DataError, MissingDependencyError, UsclError, one_line, reason
from ..files import WriteError, check_output, expanded, parts_of
from ..names import cell
from ..network import Network, load
from ..records import write_text
from ..ultrasound.beam import UNKNOWN
from ..ultrasound.sources import Look, files_of, history_of, name_sources
from ..zoo.catalogue import folder_of
from .blanking import MOST_FRAMES, blank

#: Cases with pictures in a report.
PICTURED = 24

# Longest side in pixels of the pictures in a report.
_LONGEST = 360

# What movement is, by what the network says.
_UNITS = {
    CLASSES: "total variation",
    NUMBER: "change of the number",
    LABELS: "largest change of a probability",
}
# Of an interrupted call.
_CASES = "cases.jsonl"
_PARTS = re.compile(re.escape(_CASES))


@dataclass(frozen=True)
class Case:
    """How the answer for one source moves when what is not ultrasound is blanked.

    Attributes:
        source: the file or folder.
        frames: how many were looked at.
        beam: its kind, `unknown` where none was detected and so nothing outside it blanked.
        confidence: of the beam, see `ultrasound.beam.Beam`.
        blanked: share of the pixels that lie outside the beam.
        removed: share of the pixels in it that text and calipers were removed from.
        outside: how far the answer moves when what is outside the beam is blanked: total variation
            distance of the class probabilities (0 to 1), or cosine distance of the embeddings (0 to
            2). Answers are means over the frames.
        moved: how far it moves when text and calipers in the beam are removed as well.
        before: class probabilities of the clip as it is; empty without a classifier.
        after: and of what is left of it.
        worst: number of the frame that moves farthest.
        labels: whether the probabilities are of labels, of which any may be there.
    """

    source: Path
    frames: int
    beam: str
    confidence: float
    blanked: float
    removed: float
    outside: float
    moved: float
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    worst: int = 0
    labels: bool = False

    @property
    def changed(self) -> bool:
        """Whether another class is the most probable one, or a label comes or goes."""
        if self.labels:
            return any(
                (p >= 0.5) != (q >= 0.5) for p, q in zip(self.before, self.after, strict=True)
            )
        return bool(self.before) and np.argmax(self.before) != np.argmax(self.after)


@dataclass(frozen=True)
class Shortcuts:
    """What a network makes of some data with and without what is not ultrasound.

    Attributes:
        network: its name.
        classes: names of its outputs; none if it has no classifier.
        cases: the farthest moved first.
        look: how the sources were looked at; if cleaned, the network sees nothing that could be
            blanked.
        typical: mean cosine distance between two of the sources, to compare `moved` with; None with
            a classifier, or of a single source.
        skipped: sources that could not be read or cleaned, and why.
        task: what the network says, see `answers.Answers`.
    """

    network: str
    classes: tuple[str, ...]
    cases: list[Case]
    look: Look
    typical: float | None
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    task: str = CLASSES

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def unit(self) -> str:
        """What `moved` is."""
        if not self.classes:
            return "cosine distance"
        return _UNITS[self.task]

    def summary(self) -> list[tuple[str, str]]:
        """The figures in short: name, value."""
        moved = np.array([case.moved for case in self.cases])
        lines = [
            ("files", f"{len(self.cases)}"),
            (f"{self.unit}, median", f"{np.median(moved):.2g}"),
            ("90 % of files below", f"{np.quantile(moved, 0.9):.2g}"),
            ("largest", f"{moved.max():.2g}"),
        ]
        if self.classes and self.task != NUMBER:
            changed = sum(case.changed for case in self.cases)
            what = "another class is most probable" if self.task == CLASSES else "a label changes"
            lines.append((what, f"{changed} of {len(self.cases)}"))
        elif self.typical is not None:
            lines.append(("between two files, mean", f"{self.typical:.2g}"))
        unknown = sum(case.beam == UNKNOWN for case in self.cases)
        lines.append(("no beam detected, nothing outside it blanked", f"{unknown}"))
        if self.look.clean:
            words = "made for cleaned frames, and so shown nothing that could be blanked"
            lines.append((words, f"{len(self.cases)}"))
        return lines

    def save(self, path: str | Path) -> Path:
        """Write a report: one HTML file with its pictures, and the table beside it as CSV.

        Args:
            path: of the report, ends in `.html`; the table is `.csv` of the same name.

        Raises:
            DataError: if the suffix is another, or a file cannot be written, is there and no
                report, or is one of the sources.
        """
        path = check_suffix(path)
        _check_outputs(path, (case.source for case in self.cases))
        write_text(path.with_suffix(".csv"), self._table())
        write_text(path, self._page(path.with_suffix(".csv").name))
        return path

    def _table(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        head = [
            "source",
            "frames",
            "beam",
            "confidence",
            "blanked",
            "removed",
            "moved_outside",
            "moved",
        ]
        for when in ("before", "after") if self.classes else ():
            head += [f"class_{when}", *(f"p_{name}_{when}" for name in self.classes)]
        writer.writerow(head)
        for case in self.cases:
            row = [cell(case.source), case.frames, case.beam, f"{case.confidence:.3g}"]
            row += [f"{v:.6g}" for v in (case.blanked, case.removed, case.outside, case.moved)]
            for values in (case.before, case.after) if self.classes else ():
                row += [cell(self.classes[int(np.argmax(values))]), *(f"{v:.6g}" for v in values)]
            writer.writerow(row)
        return text.getvalue()

    def _answer(self, values: Sequence[float]) -> str:
        best = int(np.argmax(values))
        return f"{self.classes[best]} {values[best]:.2f}"

    def _page(self, table: str) -> str:
        rows = "".join(f"<tr><td>{html.escape(name)}<td>{value}" for name, value in self.summary())
        blocks = "".join(self._block(case) for case in self.cases[:PICTURED])
        skipped = "".join(
            f"<li>{html.escape(one_line(str(source)))}: {html.escape(one_line(reason))}"
            for source, reason in self.skipped
        )
        if skipped:
            skipped = f"<h2>Left out</h2><ul>{skipped}</ul>"
        return _HTML.format(
            network=html.escape(one_line(self.network)),
            rate=f"{self.look.rate:g}",
            most=MOST_FRAMES,
            unit=self.unit,
            rows=rows,
            table=html.escape(one_line(table)),
            shown=min(PICTURED, len(self.cases)),
            blocks=blocks,
            skipped=skipped,
        )

    def _block(self, case: Case) -> str:
        figures = f"{self.unit} {case.moved:.2g}"
        if self.typical:
            figures += f", {case.moved / self.typical:.2f} of that between two files"
        figures += f"; {case.outside:.2g} from outside the beam alone"
        about = (
            f"beam {case.beam} (confidence {case.confidence:.2f}), {100 * case.blanked:.0f} % of "
            f"the picture outside it, text and calipers on {100 * case.removed:.1f} % of it; "
            f"{case.frames} frames"
        )
        pictures = []
        for name, values, image in zip(
            ("as it is", "blanked"), (case.before, case.after), self._pictures(case), strict=True
        ):
            words = f"{name}: {self._answer(values)}" if values else name
            pictures.append(
                f'<figure><img alt="{name}" src="data:image/jpeg;base64,{_jpeg(image)}">'
                f"<figcaption>{html.escape(words)}</figcaption></figure>"
            )
        mark = " class=changed" if case.changed else ""
        return (
            f"<section{mark}><h3>{html.escape(one_line(str(case.source)))}</h3><p>{figures}<br>{about}"
            f"<div>{''.join(pictures)}</div></section>\n"
        )

    def _pictures(self, case: Case) -> tuple[Image.Image, Image.Image]:
        less = blank(case.source, self.look)
        return Image.fromarray(less.frames[case.worst]), Image.fromarray(less.all[case.worst])


_HTML = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Shortcuts of {network}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1c2026; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem }}
h1, h2, h3 {{ font-weight: 500 }} h3 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere }}
td {{ padding: .1rem 1.5rem .1rem 0 }} td + td {{ text-align: right }}
section {{ border-top: 1px solid #bec4cc; padding: .8rem 0 }}
section p {{ color: #69707a; margin: .2rem 0 .6rem }}
section.changed h3::after {{ content: " another class"; color: #b03a2e }}
section div {{ display: flex; gap: .6rem; flex-wrap: wrap }}
figure {{ margin: 0 }} figcaption {{ color: #69707a }} img {{ display: block; max-width: 100% }}
</style>
<h1>Shortcuts of {network}</h1>
<p>How far its answer moves when everything outside the beam, and text and calipers in it, is
blanked. The rest of the picture stays where it is. {rate} frames a second, at most {most} a clip;
answers are means over the frames, and movement is {unit}.</p>
<p>A network that goes by ultrasound moves little. One that moves may go by what was blanked, or
only be unused to pictures without it; and where the beam was detected wrongly, ultrasound was
blanked as well. Look at the cases.</p>
<table>{rows}</table>
<p>All files: {table}</p>
<h2>The {shown} that move farthest</h2>
<p>The pictures on the left show what the scanner has burnt in, names included: keep this file as
you keep the data.</p>
{blocks}{skipped}
</html>
"""


def shortcut(
    model: nn.Module | str | Path | Network,
    paths: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    rate: float | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    *,
    clean: bool | None = None,
) -> Shortcuts:
    """Measure how far answers move when overlays, calipers and all outside the beam are blanked.

    Args:
        model: whatever `network.load` takes, or what it gave. With a classifier its class
            probabilities are compared, otherwise its embeddings.
        paths: files and folders, as for `ultrasound.reading.find`.
        output: write the report there, see `Shortcuts.save`. An interrupted call to the same output
            continues where it was.
        rate: frames a second to sample, None for those of the network; of a clip no more than its
            first 24 are taken.
        device: as for `embed`.
        progress: show a bar.
        clean: whether the network is shown frames that are cut to the beam and cleaned, in which
            nothing is left to blank; as it was made if None.

    Raises:
        DataError: if nothing can be read, the report cannot be written or would replace what is no
            report, or another process writes it.
        UnreadableError: if a path does not exist.
        UnknownModelError: if no model is of that name.
        MissingDependencyError: if a library that a file or the beam needs is not installed.
    """
    output = None if output is None else check_suffix(output)
    sources = [source.path for source, _ in name_sources(paths)]
    if not sources:
        raise DataError("there is nothing to look at: name a file or folder")
    if output is None:
        network = model if isinstance(model, Network) else load(model, device)
        return _shortcut(network, sources, None, None, network.look(rate, clean), progress)
    if isinstance(model, Network):
        home = model.folder
    else:
        home = None if isinstance(model, nn.Module) else folder_of(model)
    _check_outputs(output, sources, [home] if home else [])
    with parts_of(output, _PARTS) as folder:
        network = model if isinstance(model, Network) else load(model, device)
        return _shortcut(network, sources, output, folder, network.look(rate, clean), progress)


def _check_outputs(output: Path, sources: Iterable[Path], closed: Iterable[Path] = ()) -> None:
    closed = list(closed)
    inputs = [file for source in sources for file in files_of(source)]
    check_output(output, inputs, closed, _HTML.partition("{")[0].encode())
    # which nobody has named
    check_output(output.with_suffix(".csv"), inputs, closed, b"source,frames,beam,")


def _shortcut(
    network: Network,
    sources: Sequence[Path],
    output: Path | None,
    folder: Path | None,
    look: Look,
    progress: bool,
) -> Shortcuts:
    key = json.dumps([digest(network.module), repr(network.transform), network.temperature, look])
    cases: list[Case] = []
    skipped: list[tuple[Path, str]] = []
    directions: NDArray[np.float64] | float = 0.0
    with contextlib.closing(_Journal(folder, key)) as journal:
        for source in tqdm(sources, unit="source", disable=not progress):
            state = history_of(source)
            done = journal.find(source, state)
            if done is None:
                try:
                    done = _judge(network, source, look)
                except MissingDependencyError:
                    raise
                except (UsclError, OSError) as error:
                    skipped.append((source, str(error).removeprefix(f"{source}: ")))
                    continue
                journal.add(source, state, *done)
            cases.append(done[0])
            directions = directions + done[1]
    if not cases:
        first = f"{skipped[0][0]}: {skipped[0][1]}"
        raise DataError(f"none of {len(sources)} sources can be used; {first}")
    cases.sort(key=lambda case: -case.moved)
    typical = None
    if not network.classes and len(cases) > 1:
        # the mean over all pairs, of the sum alone: |sum|² = n + sum of the cosines of the pairs
        count = len(cases)
        typical = 1 - (float(np.square(directions).sum()) - count) / (count * (count - 1))
    task = CLASSES if network.answers is None else network.answers.task
    result = Shortcuts(network.name, network.classes, cases, look, typical, skipped, task)
    if output is not None:
        result.save(output)
        journal.remove()
    return result


def _judge(network: Network, source: Path, look: Look) -> tuple[Case, NDArray[np.float64]]:
    """One case, and the direction of its embedding."""
    less = blank(source, look)
    if look.clean:
        answers = [network(less.cut)] * 3
    else:
        answers = [network(frames) for frames in (less.frames, less.outside, less.all)]
    means = [answer.mean(axis=0) for answer in answers]
    case = Case(
        source,
        len(less.frames),
        less.beam,
        less.confidence,
        less.blanked,
        less.removed,
        outside=_distance(means[0], means[1], network),
        moved=_distance(means[0], means[2], network),
        before=tuple(map(float, means[0])) if network.classes else (),
        after=tuple(map(float, means[2])) if network.classes else (),
        worst=max(
            range(len(less.frames)),
            key=lambda i: _distance(answers[0][i], answers[2][i], network),
        ),
        labels=network.answers is not None and network.answers.task == LABELS,
    )
    return case, means[0] / max(float(np.linalg.norm(means[0])), 1e-12)


def _distance(one: NDArray[np.float64], other: NDArray[np.float64], network: Network) -> float:
    if network.classes:
        task = CLASSES if network.answers is None else network.answers.task
        away = np.abs(one - other)
        return float(away.sum() / 2 if task == CLASSES else away.max())
    length = np.linalg.norm(one) * np.linalg.norm(other)
    # rounding must not make a distance negative
    return max(0.0, 1 - float(one @ other) / max(float(length), 1e-12))


class _Journal:
    """Cases that are done, a line each, so that an interrupted call loses none.

    A line counts for the same network and sampling, and for a source that has not changed.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = folder
        self.key = key
        self._done: dict[str, tuple[Any, dict[str, Any], str]] = {}
        self._stream: io.FileIO | None = None
        if folder is None:
            return
        with contextlib.suppress(OSError):
            for line in (folder / _CASES).read_text(encoding="utf-8").splitlines():
                # the last may be half a line
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    if row["key"] == key:
                        self._done[row["source"]] = (row["state"], row["case"], row["direction"])

    def find(self, source: Path, state: Any) -> tuple[Case, NDArray[np.float64]] | None:
        then, row, direction = self._done.get(str(source), (None, {}, ""))
        if then != state:
            return None
        values = {**row, "source": source}
        values |= {name: tuple(row[name]) for name in ("before", "after")}
        vector = np.frombuffer(base64.b64decode(direction), np.float32)
        return Case(**values), vector.astype(np.float64)

    def add(self, source: Path, state: Any, case: Case, direction: NDArray[np.float64]) -> None:
        if self.folder is None:
            return
        row = {
            "key": self.key,
            "source": str(source),
            "state": state,
            "case": {**vars(case), "source": str(source)},
            "direction": base64.b64encode(direction.astype(np.float32).tobytes()).decode(),
        }
        try:
            if self._stream is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                # unbuffered, so that what could not be written is not tried again at the end
                self._stream = (self.folder / _CASES).open("ab", buffering=0)
                # behind half a line of an earlier call
                self._stream.write(b"\n")
            line = f"{json.dumps(row)}\n".encode()
            if self._stream.write(line) != len(line):
                # of the rest there is an error, which says why
                self._stream.write(line)
        except OSError as error:
            raise WriteError(self.folder / _CASES, reason(error)) from error

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def remove(self) -> None:
        if self.folder is not None:
            (self.folder / _CASES).unlink(missing_ok=True)


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that `Shortcuts.save` can write to a path.

    Raises:
        DataError: if it does not end in `.html`.
    """
    path = expanded(path)
    if path.suffix.lower() != ".html":
        raise DataError(f"{path}: the name should end in .html")
    return path


def _jpeg(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_LONGEST, _LONGEST))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
