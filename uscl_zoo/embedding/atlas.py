"""A map of embedded images: one HTML page on which like lies beside like, with each on hover."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from ..checks import seed_of
from ..data.annotations import Table
from ..data.rows import assign
from ..errors import DataError, MissingDependencyError, one_line
from ..files import check_output, expanded, written
from ..network import RATE
from ..ultrasound.sources import Look
from .neighbours import Collection, read_embeddings

#: Groups with a colour of their own; all others share one.
MOST_GROUPS = 10
#: Okabe and Ito's colours and two more, told apart by those who see few; the last of all others.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294",
            "#8c6d31", "#000000", "#b3b300", "#b0b4ba")  # fmt: skip
#: Points are laid out on a square of this side.
_SIDE = 1000
_BEGINS = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Map of '


def draw_map(
    features: str | Path,
    output: str | Path,
    *,
    groups: Table | None = None,
    rate: float = RATE,
    most: int = 3000,
    longest: int = 128,
    seed: int = 0,
    progress: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
    """Lay out what `uscl embed` wrote by t-SNE (scikit-learn), as a page that needs no other file.

    Points are coloured by the labels of a table, or by subject or folder. Hovering shows the image,
    if it is in reach. The pictures are in the page: it is to be kept as the images are.

    Args:
        features: `.npz`, `.csv` or `.parquet`.
        output: ends in `.html`.
        groups: table of labels.
        rate: frames a second at which clips were embedded, to find the frames of their rows.
        most: points at most; of more, so many drawn at random.
        longest: side of the pictures in pixels.
        seed: of the layout and the draw.
        progress: show a bar.
        tell: is given what the reader should know, a line each.

    Returns:
        The path.

    Raises:
        DataError: if there are fewer than three images, the table names none of them, or the
            output is another's.
        UnreadableError: if the embeddings cannot be read.
        MissingDependencyError: if scikit-learn is not installed.
    """
    seed, output = seed_of(seed), expanded(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"{output}: the name should end in .html")
    check_output(output, [expanded(features)], begins=_BEGINS.encode())
    known = read_embeddings(features)
    if len(known) < 3:
        raise DataError(f"{known.path}: has {len(known)} embeddings; a map needs three or more")
    if most < 3:
        raise DataError(f"`most` should be at least 3, not {most}")
    rows = np.arange(len(known))
    if len(known) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
        tell(f"{most} of {len(known)} rows, drawn at random; `most={len(known)}` takes all")
    group, by = _groups(known, rows, groups, tell)
    # nobody would wait for minutes without a word
    tell(f"laying out {len(rows)} points by t-SNE")
    places = _layout(known.features[rows], seed)
    look = Look(rate)
    pictures = [
        _jpeg(known.picture(int(row), look, longest))
        for row in tqdm(rows, "pictures", unit="image", disable=not progress)
    ]
    absent = sum(picture is None for picture in pictures)
    if absent:
        tell(f"{absent} of {len(rows)} images are not in reach, and so have no picture")
    points = [
        {
            "x": int(x),
            "y": int(y),
            "g": g,
            "n": _name(known, int(row)),
            "p": picture,
        }
        for (x, y), g, row, picture in zip(places, group.numbers, rows, pictures, strict=True)
    ]
    data = {"points": points, "groups": group.names, "colours": group.colours, "by": by}
    page = _page(known.path.name, len(rows), data)
    with written(output) as partial:
        partial.write_text(page, encoding="utf-8")
    return output


class _Grouped:
    """Names of groups, their colours, and which of them each point is in."""

    def __init__(self, labels: Sequence[str]) -> None:
        counts = Counter(labels)
        # the most frequent, and of those as frequent the first by name
        named = sorted(counts, key=lambda label: (-counts[label], label))
        if len(named) > MOST_GROUPS:
            named = named[:MOST_GROUPS]
        others = len(counts) - len(named)
        self.names = [one_line(label) for label in named]
        self.colours = list(_COLOURS[: len(named)])
        if others:
            self.names.append(f"{others} others")
            self.colours.append(_COLOURS[-1])
        place = {label: number for number, label in enumerate(named)}
        self.numbers = [place.get(label, len(named)) for label in labels]


def _groups(
    known: Collection, rows: NDArray[np.int64], table: Table | None, tell: Callable[[str], None]
) -> tuple[_Grouped, str]:
    sources = [known.sources[row] for row in rows]
    if table is not None:
        files = {Path(source): [PurePath(source).as_posix()] for source in dict.fromkeys(sources)}
        assigned = assign(table, files)
        for note in assigned.notes:
            tell(note)
        labels = [assigned.rows.get(Path(source)) for source in sources]
        return _Grouped([row.label if row and row.label else "no label" for row in labels]), "label"
    folders = [PurePath(source).parent.name for source in sources]
    if known.subjects is not None and len(set(folders)) < 2:
        return _Grouped([known.subjects[row] for row in rows]), "subject"
    return _Grouped([folder or "." for folder in folders]), "folder"


def _layout(features: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """Places on the square, (N, 2)."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingDependencyError(
            "a map needs scikit-learn; install it by: pip install 'uscl-zoo[training]'"
        ) from error
    perplexity = min(30.0, (len(features) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    low, high = places.min(axis=0), places.max(axis=0)
    shares = (places - low) / np.maximum(high - low, 1e-9)
    return np.asarray(np.rint(shares * _SIDE), np.int64)


def _name(known: Collection, row: int) -> str:
    source = PurePath(known.sources[row])
    words = "/".join(source.parts[-2:])
    if known.counts[row] == 1 and known.frames[row]:
        words += f", frame {known.frames[row]}"
    if known.subjects is not None and known.subjects[row] not in words:
        words += f", {known.subjects[row]}"
    return one_line(words)


def _jpeg(image: Image.Image | None) -> str | None:
    if image is None:
        return None
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=70)
    return base64.b64encode(stream.getvalue()).decode()


def _page(name: str, count: int, data: dict[str, Any]) -> str:
    # within a script nothing may look like its end
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = html.escape(one_line(name))
    return f"{_BEGINS}{title}</title>\n" + _BODY.replace("NAME", title).replace(
        "COUNT", f"{count:,}"
    ).replace("SIDE", str(_SIDE)).replace("DATA", content)


_BODY = """<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; } * { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2026; margin: 0 auto; padding: 1rem;
  max-width: 62rem }
h1 { font-size: 1.25rem; font-weight: 600; margin: 0 0 .2rem; overflow-wrap: anywhere }
p { margin: .2rem 0 .8rem; color: #545b65 }
#legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin-bottom: .6rem }
#legend button { font: inherit; border: 0; background: none; padding: .1rem; cursor: pointer;
  color: inherit; max-width: 22rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
#legend button[aria-pressed=false] { opacity: .35 }
#legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .35rem }
#map { position: relative; border: 1px solid #d5d9de; border-radius: 4px }
canvas { display: block; width: 100%; touch-action: manipulation }
#shown { position: absolute; pointer-events: none; background: #fff; padding: .35rem;
  border: 1px solid #aeb4bc; border-radius: 4px; box-shadow: 0 2px 8px #0003; max-width: 15rem;
  font-size: .85rem; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) {
  body { background: #15181c; color: #e8eaed } p { color: #aab1ba } #map { border-color: #3a4048 }
  #shown { background: #22262c; border-color: #525963 }
}
#shown img { display: block; width: 12rem; image-rendering: auto; margin-bottom: .3rem }
</style>
<h1>Map of NAME</h1>
<p>COUNT images, like beside like (t-SNE of the embeddings): what is near is alike, how far apart
the rest lies means nothing. Hover or tap to see one; a name below hides and shows its points. The
pictures are in this page, with what is burnt into them: keep it as you keep the data.</p>
<div id="legend"></div>
<div id="map"><canvas tabindex="0" aria-label="map of images"></canvas>
<div id="shown" hidden></div></div>
<script>
"use strict";
const data = DATA, side = SIDE, margin = 18;
const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
const shown = document.getElementById("shown"), legend = document.getElementById("legend");
const hidden = new Set();
let scale = 1, high = 0, near = null;
function at(point) {
  return [margin + point.x * scale, margin + point.y * high];
}
function draw() {
  const density = window.devicePixelRatio || 1, width = canvas.clientWidth;
  const above = canvas.getBoundingClientRect().top + window.scrollY;
  const height = Math.max(Math.min(width * .75, window.innerHeight - above - 24), 240);
  canvas.style.height = height + "px";
  canvas.width = width * density; canvas.height = height * density;
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, width, height);
  scale = (width - 2 * margin) / side; high = (height - 2 * margin) / side;
  const radius = data.points.length > 1500 ? 2.5 : 4;
  for (const point of data.points) {
    if (hidden.has(point.g)) continue;
    const [x, y] = at(point);
    pen.beginPath(); pen.arc(x, y, point === near ? radius + 3 : radius, 0, 7);
    pen.globalAlpha = point === near ? 1 : .8;
    pen.fillStyle = data.colours[point.g]; pen.fill();
    if (point === near) {
      pen.lineWidth = 2; pen.strokeStyle = getComputedStyle(canvas).color; pen.stroke();
    }
  }
}
function show(event) {
  const box = canvas.getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  let best = 20 * 20, nearest = null;
  for (const point of data.points) {
    if (hidden.has(point.g)) continue;
    const [px, py] = at(point), away = (px - x) ** 2 + (py - y) ** 2;
    if (away < best) { best = away; nearest = point; }
  }
  if (nearest === near) return;
  near = nearest; draw(); shown.hidden = !nearest;
  if (!nearest) return;
  shown.replaceChildren();
  if (nearest.p) {
    const image = document.createElement("img");
    image.src = "data:image/jpeg;base64," + nearest.p; image.alt = nearest.n; shown.append(image);
  } else shown.append("(not in reach) ");
  const group = data.by === "folder" ? "" : data.groups[nearest.g] + ": ";
  shown.append(group + nearest.n);
  const [px, py] = at(nearest), left = px > box.width / 2, up = py > box.height / 2;
  shown.style.left = left ? "" : px + 12 + "px";
  shown.style.right = left ? box.width - px + 12 + "px" : "";
  shown.style.top = up ? "" : py + 8 + "px";
  shown.style.bottom = up ? box.height - py + 8 + "px" : "";
}
function hide() { near = null; shown.hidden = true; draw(); }
data.groups.forEach((name, number) => {
  const button = document.createElement("button"), dot = document.createElement("i");
  const count = data.points.filter(point => point.g === number).length;
  dot.style.background = data.colours[number];
  button.append(dot, name + " (" + count + ")"); button.title = name;
  button.setAttribute("aria-pressed", "true");
  button.onclick = () => {
    hidden.has(number) ? hidden.delete(number) : hidden.add(number);
    button.setAttribute("aria-pressed", String(!hidden.has(number))); hide();
  };
  legend.append(button);
});
canvas.addEventListener("pointermove", show);
canvas.addEventListener("pointerdown", show);
canvas.addEventListener("pointerleave", hide);
window.addEventListener("resize", draw);
draw();
</script>
</html>
"""
