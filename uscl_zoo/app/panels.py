"""An examination as HTML: every picture is part of it, so that none has to be kept in a file."""

from __future__ import annotations

import base64
import io
import math
import tempfile
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from ..answers import CLASSES, NUMBER
from ..classifier.explanation import FILMS, STRIP, Explanation
from ..classifier.prediction import Answer
from ..embedding.neighbours import Collection
from ..errors import one_line
from ..ultrasound.beam import UNKNOWN
from .examination import Examination

#: Under everything that is said.
CAUTION = "For research. Not a medical device; not for diagnosis or treatment."


def wrapped(content: str) -> str:
    """A panel."""
    return f'<div class="uscl">{content}</div>'


def refused(message: str, folder: Path) -> str:
    """Why a file could not be examined, without the folder that nobody has heard of.

    Args:
        message: of the error.
        folder: where the file was put.
    """
    said = escape(one_line(message.replace(f"{folder}/", "")))
    return wrapped(f'<div class="bad"><h3>This file could not be examined</h3><p>{said}</p></div>')


def answered(seen: Examination) -> str:
    """What the network says of the whole clip."""
    count, times = len(seen.times), seen.times
    long = "" if count == 1 or math.isnan(times[-1]) else f" over {times[-1]:.1f} s"
    cut = ", its beginning" if seen.cut else ""
    of = f"{count} frames{long}{cut}" if count > 1 else "1 frame"
    about = f'<p class="faint">{escape(one_line(seen.source.name))}: {of}</p>'
    notes = "".join(
        f'<p class="faint">Note: {escape(one_line(note.replace(f"{seen.source}: ", "")))}</p>'
        for note in seen.notes
    )
    if seen.clip is None:
        said = (
            '<p class="answer">No classifier</p>'
            f"<p>{escape(seen.network.name)} is a backbone: it has an embedding of each frame, and "
            "no classes. <code>uscl finetune</code> makes a model of it that has.</p>"
        )
        return wrapped(f"{said}{about}{notes}<p class='faint'>{CAUTION}</p>")
    return wrapped(f"{_said(seen.clip, seen)}{about}{notes}<p class='faint'>{CAUTION}</p>")


def _said(clip: Answer, seen: Examination) -> str:
    answers = seen.network.answers
    assert answers is not None
    whole = _in_short(clip)
    if clip.answer is not None:
        first = f'<p class="answer">{escape(whole)}</p>'
    else:
        if clip.labels:
            unsure = answers.unsure(np.array(list(clip.probabilities.values())))
            whole = ", ".join(f"{label} ({clip.probabilities[label]:.2f})" for label in unsure)
        why = (
            "it is unlike the training images"
            if clip.unlike
            else f"it is less sure than {answers.confidence:g} of {escape(whole)}"
        )
        first = f'<p class="answer unsure">cannot tell</p><p>Because {why}.</p>'
    bars, words = "", "A number, and in brackets where nine in ten of such subjects lie."
    if answers.task != NUMBER:
        # of labels each has its own
        marks = answers.cuts or (0.5,) * len(answers.classes)
        if answers.task == CLASSES:
            marks = (answers.confidence,) * len(answers.classes)
        rows = "".join(
            f"<span>{escape(label)}</span>"
            f'<span class="bar"><i style="width:{100 * value:.1f}%"></i>'
            f'<b style="left:{100 * mark:.1f}%"></b></span>'
            f"<span>{value:.2f}</span>"
            for (label, value), mark in zip(clip.probabilities.items(), marks, strict=True)
        )
        bars = f'<div class="bars">{rows}</div>'
        words = "Calibrated probabilities; the mark is where " + (
            "an answer begins." if answers.task == CLASSES else "a label is said."
        )
    like = "Unlike" if clip.unlike else "Like"
    rest = (
        f'<p class="faint">{words} {like} the training images: distance {clip.distance:.2f}, '
        f"unlike above {answers.threshold:.2f}."
    )
    if clip.frames > 1:
        rest += f" {100 * clip.agreement:.0f} % of the frames agree."
    return f"{first}{bars}{rest}</p>"


def _in_short(one: Answer) -> str:
    """What is said of a frame or clip, whatever the model says: a class, labels, a number."""
    if one.interval is not None:
        (name,) = one.probabilities
        return "{} {} [{:.4g}, {:.4g}]".format(name, one.best, *one.interval)
    share = one.probabilities.get(one.best)
    return one.best if share is None else f"{one.best} {share:.2f}"


def frames(seen: Examination) -> str:
    """The frames as they go into the network, and what it says of each."""
    figures = []
    for number, pixels in zip(seen.numbers, seen.seen, strict=True):
        words = _when(seen, number)
        if seen.frames:
            one = seen.frames[number]
            words += _in_short(one)
            words += ", unlike" if one.unlike else ""
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        figures.append(_figure(image, words or "1 frame"))
    height, width = seen.seen[0].shape[:2]
    how = "cut to the beam and cleaned" if seen.clean else "whole"
    return wrapped(
        "<h3>As the network sees it</h3>"
        f'<p class="faint">Frames go in {how}, {width} × {height} pixels, whatever their shape.'
        f"</p>{_strip(figures)}"
    )


def beam(seen: Examination) -> str:
    """The beam and the overlays that were detected."""
    head = "<h3>Beam and overlays</h3>"
    if seen.detected is None:
        return wrapped(f'{head}<p class="faint">Its frames are of several sizes: no one beam.</p>')
    detected = seen.detected
    if not detected.sure:
        kind = (
            "No edge of a beam was detected"
            if detected.beam.kind == UNKNOWN
            else "The beam is unsure"
        )
        said = f"{kind} (confidence {detected.beam.confidence:.2f}); frames stay as they are."
    else:
        left, top, right, bottom = detected.beam.box
        said = (
            f"{detected.beam.kind.capitalize()} beam, confidence {detected.beam.confidence:.2f}, "
            f"{right - left} × {bottom - top} pixels; lettering, calipers and the like cover "
            f"{100 * detected.overlays:.1f} % of it."
        )
    keys = (
        '<span class="key" style="background:rgb(64,224,128)"></span> rim of the beam, '
        '<span class="key" style="background:rgb(255,64,160)"></span> drawn over it'
    )
    use = (
        "The network sees the beam alone, without them."
        if seen.clean
        else "The network sees the frame with all of it: <code>uscl shortcut</code> tells whether "
        "that moves its answer."
    )
    figures = [
        _figure(picture, _when(seen, number))
        for number, picture in zip(seen.numbers, detected.pictures, strict=True)
    ]
    return wrapped(f'{head}<p class="faint">{said} {keys}. {use}</p>{_strip(figures)}')


def neighbours(seen: Examination, collection: Collection | None) -> str:
    """The nearest images of the collection."""
    if collection is None:
        return ""
    count = len(set(collection.sources))
    unsure = (
        ""
        if collection.checked
        else " That the collection was embedded by this network could not be checked: none of its "
        "frames is in reach."
    )
    figures = [
        _figure(
            near.picture,
            f"{near.cosine:.3f} {near.name}" + (f", {near.subject}" if near.subject else ""),
        )
        for near in seen.neighbours
    ]
    return wrapped(
        "<h3>Nearest in the collection</h3>"
        f'<p class="faint">By cosine of the embeddings, of {count:,} files in '
        f"{escape(one_line(collection.path.name))}.{unsure}</p>{_strip(figures)}"
    )


def evidence(explanation: Explanation) -> str:
    """Grad-CAM: a strip, and of a clip a film."""
    film = ""
    if len(explanation) > 1:
        content = base64.b64encode(_saved(explanation, FILMS[0])).decode()
        film = (
            '<video controls loop muted playsinline autoplay src="data:video/mp4;base64,'
            f'{content}"></video>'
        )
    strip = base64.b64encode(_saved(explanation, STRIP)).decode()
    alternative = escape(f"{explanation.title}; {explanation.subtitle}")
    return wrapped(
        "<h3>Where the evidence is</h3>"
        f'<p class="faint">Grad-CAM. {escape(explanation.title)}.</p>{film}'
        f'<img class="wide" alt="{alternative}" src="data:image/png;base64,{strip}">'
    )


def _saved(explanation: Explanation, suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return explanation.save(Path(folder, f"evidence{suffix}")).read_bytes()


def _when(seen: Examination, number: int) -> str:
    if len(seen.times) == 1:
        return ""
    time = seen.times[number]
    return f"frame {number}, " if np.isnan(time) else f"{time:.2f} s, "


def _figure(image: Image.Image | None, words: str) -> str:
    words = escape(one_line(words.removesuffix(", ")))
    if image is None:
        picture = '<div class="faint">picture not in reach</div>'
    else:
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=88)
        content = base64.b64encode(stream.getvalue()).decode()
        picture = f'<img alt="{words}" src="data:image/jpeg;base64,{content}">'
    return f"<figure>{picture}<figcaption>{words}</figcaption></figure>"


def _strip(figures: Iterable[str]) -> str:
    return f'<div class="strip">{"".join(figures)}</div>'
