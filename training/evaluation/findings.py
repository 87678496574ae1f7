"""What an audit reports: sources that show the same, what lies between them, a page and a table."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from uscl_zoo.errors import (
    one_line,
)
from uscl_zoo.files import begins_with, check_folder
from uscl_zoo.names import cell
from uscl_zoo.records import write_text
from uscl_zoo.ultrasound import reading

from ..downstream import pages
from ..learning.frames import FrameStore

PAGE, PAIRS = "report.html", "pairs.csv"
#: Pairs on the page with their pictures; the table has them all.
PICTURED = 300
# lines on the terminal of a kind of finding
_LISTED = 40
# pixels of a picture on the page
_HEIGHT = 180


@dataclass(frozen=True)
class Source:
    """An image or a video, of one of the data sets that are compared.

    Attributes:
        data: the name of its data set.
        name: within it.
        subject: whom it shows; None where that is not known.
        label: its class; None where it has none.
        split: its side of a division; None where there is none.
        path: of the file; None of a corpus.
    """

    data: str
    name: str
    subject: str | None = None
    label: str | None = None
    split: str | None = None
    path: Path | None = None

    def __str__(self) -> str:
        known = ", ".join(filter(None, (self.label, self.split)))
        return one_line(f"{self.name} ({known})" if known else self.name)


@dataclass(frozen=True)
class Data:
    """One of the data sets that are compared.

    Attributes:
        name: unique among them.
        sources: in order.
        notes: what was left out.
        store: with their frames; None where they are decoded.
    """

    name: str
    sources: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    store: FrameStore | None = None


@dataclass(frozen=True)
class Finding:
    """Two sources that show the same.

    Attributes:
        first: a source.
        second: another, or a video of a corpus.
        how: `same file`, `same picture` or `mirrored picture`.
        across: what lies between them: `classes`, `splits`, `data sets`, `corpus` or `subjects`.
        frames: of either the frame shown, counted as sampled; None of files and of a corpus.
        distance: of the hashes, in bits.
        correlation: of the textures; None where only the hashes are known.
    """

    first: Source
    second: Source
    how: str
    across: tuple[str, ...]
    frames: tuple[int | None, int | None]
    distance: int | None = None
    correlation: float | None = None

    @property
    def leaks(self) -> bool:
        """Whether a figure measured on one side would be too good, or a label is wrong."""
        return any(between != "subjects" for between in self.across)

    @property
    def measure(self) -> str:
        """How alike they are, in words."""
        parts = [self.how]
        if self.distance is not None:
            parts.append(f"{self.distance} bits apart")
        if self.correlation is not None:
            parts.append(f"correlation {self.correlation:.3f}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Audit:
    """What an audit reports.

    Attributes:
        data: that was compared.
        corpora: names of the weights it was compared with, and the videos these have seen.
        images: compared, by data set.
        findings: leaks first, most alike first.
        torn: subjects on several sides of a division, as (data set, subject, sides).
        skipped: sources that could not be read, and why.
        thresholds: in words.
        rate: frames a second of videos.
    """

    data: tuple[Data, ...]
    corpora: Mapping[str, int]
    images: Mapping[str, int]
    findings: tuple[Finding, ...]
    torn: tuple[tuple[str, str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    thresholds: str
    rate: float

    @property
    def leaks(self) -> bool:
        """Whether anything crosses splits, classes or data sets, or was trained on."""
        return bool(self.torn) or any(finding.leaks for finding in self.findings)

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self._contents()]
        lines += [f"skipped {source}: {why}" for source, why in self.skipped]
        lines += [""]
        if not self.findings:
            lines.append("no two sources show the same picture")
        for between, findings in self._by_kind().items():
            lines.append(f"{len(findings)} pairs {between}")
            lines += [
                f"  {finding.first} = {finding.second}: {finding.measure}"
                for finding in findings[:_LISTED]
            ]
            if len(findings) > _LISTED:
                lines.append(f"  … and {len(findings) - _LISTED} more")
        for data, subject, of in self.torn:
            lines.append(one_line(f"{data}: subject {subject} is on several sides: {of}"))
        return "\n".join(lines)

    def _contents(self) -> list[tuple[str, str]]:
        rows = []
        for data in self.data:
            labels = Counter(source.label for source in data.sources if source.label)
            subjects = {source.subject for source in data.sources if source.subject}
            parts = [f"{len(data.sources)} files", f"{self.images[data.name]} images"]
            parts += [f"{len(subjects)} subjects"] if subjects else []
            parts += [f"{label} {count}" for label, count in sorted(labels.items())]
            rows.append((data.name, ", ".join([*parts, *data.notes])))
        rows += [(name, f"has seen {count} videos") for name, count in self.corpora.items()]
        return rows

    def _by_kind(self) -> dict[str, list[Finding]]:
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            kind = "of one class"
            if finding.across:
                kind = f"across {', '.join(finding.across)}"
            elif finding.second.path is None:
                kind = "with what weights have seen, on the training side"
            kinds.setdefault(kind, []).append(finding)
        return kinds

    def save(self, folder: Path, progress: bool = False) -> None:
        """Write `pairs.csv`, all of them, and `report.html` with pictures, each whole."""
        check_report(folder)
        out = io.StringIO(newline="")
        sides = ["data", "name", "subject", "label", "split", "frame"]
        table = csv.writer(out, lineterminator="\n")
        table.writerow(
            ["how", "across", "distance", "correlation"]
            + [f"{place}_{column}" for place in ("first", "second") for column in sides]
        )
        for one in self.findings:
            row: list[object] = [one.how, " ".join(one.across), one.distance]
            row.append("" if one.correlation is None else f"{one.correlation:.4f}")
            for source, frame in zip((one.first, one.second), one.frames, strict=True):
                described = source.data, source.name, source.subject, source.label, source.split
                row += [*map(cell, described), "" if frame is None else frame]
            table.writerow(["" if value is None else value for value in row])
        write_text(folder / PAIRS, out.getvalue())
        write_text(folder / PAGE, self._page(progress))

    def _page(self, progress: bool) -> str:
        body = [pages.table([], [list(row) for row in self._contents()])]
        body.append(
            f"<p>{escape(self.thresholds)} Videos were sampled at {self.rate:g} frames a second "
            "and are shown by their best pair of frames.</p>"
        )
        if self.torn:
            rows = [list(row) for row in self.torn]
            body.append("<h2>Subjects on several sides</h2>")
            body.append(pages.table(["data", "subject", "sides"], rows))
        if not self.findings:
            body.append("<p>No two sources show the same picture.</p>")
        if len(self.findings) > PICTURED:
            body.append(
                f"<p class='note'>{PICTURED} of {len(self.findings)} pairs are shown; {PAIRS} has "
                "them all.</p>"
            )
        left = PICTURED
        with tqdm(total=min(left, len(self.findings)), unit="picture", disable=not progress) as bar:
            for between, findings in self._by_kind().items():
                body.append(f"<h2>{len(findings)} pairs {escape(between)}</h2>")
                for finding in findings[:left]:
                    caption = f"{finding.first} = {finding.second}: {finding.measure}"
                    picture = self._picture(finding)
                    name = f"{finding.first.name} = {finding.second.name}"
                    body.append(pages.figure(name, "image/jpeg", picture, caption))
                    bar.update()
                left = max(left - len(findings), 0)
        if self.skipped:
            body.append("<h2>Could not be read</h2>")
            body.append(pages.table([], [list(row) for row in self.skipped]))
        return pages.page(f"Audit of {', '.join(data.name for data in self.data)}", "".join(body))

    def _picture(self, finding: Finding) -> bytes:
        stores = {data.name: data.store for data in self.data}
        shown = []
        for source, frame in zip((finding.first, finding.second), finding.frames, strict=True):
            if source.path is None:
                # of a corpus nothing but fingerprints is known
                continue
            image = _frame(source, stores[source.data], frame or 0, self.rate).convert("RGB")
            shown.append(image.resize((round(_HEIGHT * image.width / image.height), _HEIGHT)))
        sheet = Image.new("RGB", (sum(image.width + 4 for image in shown) - 4, _HEIGHT), "white")
        left = 0
        for image in shown:
            sheet.paste(image, (left, 0))
            left += image.width + 4
        out = io.BytesIO()
        sheet.save(out, "JPEG", quality=80)
        return out.getvalue()


def check_report(folder: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Make sure, before the work is done, that a report can be saved to a folder.

    Raises:
        DataError: if files of that name in it are not of an earlier audit, or are inputs.
    """
    ours = begins_with(Path(folder) / PAIRS, b"how,across,")
    return check_folder(folder, ours, inputs, (PAIRS, PAGE))


def _frame(source: Source, store: FrameStore | None, index: int, rate: float) -> Image.Image:
    if store is not None:
        video = next(video for video in store.videos if video.name == source.name)
        return Image.fromarray(store.frames[video.first + index])
    assert source.path is not None
    frames = reading.sample(source.path, rate, on_damage=lambda message: None)
    return next(islice(frames, index, None)).image
