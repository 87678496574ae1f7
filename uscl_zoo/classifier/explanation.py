"""What explains an answer, drawn: a strip of frames, or a film."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..drawing import FAINT, INK, RULE, Box, Page, coloured, stamp
from ..errors import DataError, one_line
from ..files import check_output, expanded, written
from ..films import pyav, write_film
from ..ultrasound.beam import UNKNOWN, Beam
from ..ultrasound.sources import files_of

#: What an explanation can be written as: a strip, and for clips a film.
STRIP, FILMS = ".png", (".mp4", ".gif")

# Frames in a strip.
_COLUMNS = 6

# Magma of matplotlib at equal steps, perceptually uniform, without the black that would not show.
_HEAT = ((59, 15, 112), (100, 26, 128), (140, 41, 129), (183, 55, 121), (222, 73, 104),
         (247, 112, 92), (254, 159, 109), (254, 207, 146), (252, 253, 191))  # fmt: skip
# How much of a frame the strongest evidence covers.
_COVER = 0.65


@dataclass(frozen=True, repr=False)
class Explanation:
    """Where in the T frames of a clip the evidence for an answer is; notebooks show the picture.

    Attributes:
        source: the file or folder.
        network: its name.
        label: the class explained; None for a network without classes, where the similarity to the
            clip's mean embedding is.
        scores: float64 (T,): the probability of the class, or the cosine to the mean embedding.
        calibrated: whether the probabilities are.
        unlike: whether the clip is of another kind than the training images, as `predict` says it;
            False where there is nothing to say it by.
        times: float64 (T,), seconds, NaN where the source does not say.
        frames: RGB, cut to the beam's box, black outside the beam, reduced to at most 480 pixels.
        heat: float32 (T, h, w), evidence at each pixel of these frames: 0 outside the beam, 1 where
            it is strongest in the whole clip. One scale for all, so that frames can be compared.
        outside: share of the evidence that lies outside the beam, which is not drawn.
        beam: of the clip; of kind `unknown`, and all of the picture, where none is detected.
        rate: frames a second that were sampled.
        cut: whether the clip goes on behind its last frame here.
        clean: whether the network saw its frames cut to the beam, and cleaned.
        guarded: whether there is something to say by whether the clip is unlike.
        number: whether the scores are numbers of a regression, and the evidence that for more.
    """

    source: Path
    network: str
    label: str | None
    scores: NDArray[np.float64]
    calibrated: bool
    unlike: bool
    times: NDArray[np.float64]
    frames: list[Image.Image]
    heat: NDArray[np.float32]
    outside: float
    beam: Beam
    rate: float
    cut: bool
    clean: bool = False
    guarded: bool = True
    number: bool = False

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        return f"Explanation({one_line(self.source.name)}: {self.title})"

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        stream = io.BytesIO()
        self.picture.save(stream, "PNG")
        return stream.getvalue()

    @property
    def title(self) -> str:
        """What is explained, in a line."""
        mean = float(self.scores.mean())
        if self.label is None:
            whose = "the clip's mean" if len(self) > 1 else "its own"
            return f"No classifier: similarity to {whose} embedding"
        kind = "calibrated probability" if self.calibrated else "probability"
        unlike = "; unlike the training images" if self.unlike else ""
        if not self.guarded:
            unlike = "; whether it is like the training images is not known"
        said = f"{mean:.4g}, and what speaks for more" if self.number else f"{kind} {mean:.2f}"
        return f"{self.label}: {said}{unlike}"

    @property
    def subtitle(self) -> str:
        """Of what, by what, and what is not drawn."""
        return "; ".join(self._words)

    @property
    def _words(self) -> tuple[str, str, str]:
        times = self.times[-1]
        span = "" if math.isnan(times) or len(self) == 1 else f" over {times:.1f} s"
        cut = ", its beginning" if self.cut else ""
        count = f"{len(self)} frames{span}{cut}" if len(self) > 1 else "1 frame"
        where = (
            "no beam detected, nothing masked"
            if self.beam.kind == UNKNOWN
            else "cut to the beam and cleaned before the network saw it"
            if self.clean
            else f"{100 * self.outside:.0f} % of the evidence lies outside the beam, not drawn"
        )
        return f"{_short(one_line(self.source.name))}, {count}", _short(self.network), where

    def overlay(self, index: int) -> Image.Image:
        """One frame with its evidence in colour."""
        frame = np.asarray(self.frames[index], np.float32)
        colours = np.asarray(coloured(self.heat[index], _HEAT), np.float32)
        # what there is little of stays clear
        cover = _cover(self.heat[index])
        mixed = frame * (1 - cover) + colours * cover
        return Image.fromarray(mixed.round().astype(np.uint8))

    def save(self, path: str | Path) -> Path:
        """Draw a strip of frames (`.png`), or every frame (`.mp4`, `.gif`), whole or not at all.

        Raises:
            DataError: if the suffix is another, the file cannot be written or is the source, or a
                film of a single frame is asked for.
            MissingDependencyError: for MP4 without PyAV.
        """
        path = check_suffix(path)
        suffix = path.suffix.lower()
        if suffix in FILMS and len(self) == 1:
            raise DataError(f"{path}: a single frame makes no film; name a {STRIP}")
        check_output(path, files_of(self.source), picture=True)
        with written(path) as partial:
            if suffix == STRIP:
                self.picture.save(partial, "PNG", dpi=(200, 200), **stamp("PNG"))
            elif suffix == ".gif":
                first, *rest = (page.convert("P", dither=None) for page in self._film(density=1))
                steps = [round(1000 / self._frame_rate)] * len(self)
                pages: dict[str, Any] = {"append_images": rest, "duration": steps, "loop": 0}
                first.save(partial, "GIF", save_all=True, **pages, **stamp("GIF"))
            else:
                write_film(partial, self._film(density=2), self._frame_rate)
        return path

    @property
    def _frame_rate(self) -> float:
        steps = np.diff(self.times)
        step = float(np.median(steps)) if len(steps) and not np.isnan(steps).any() else 0.0
        return 1 / step if step > 0 else min(self.rate, 10.0)

    def _caption(self, index: int) -> str:
        score = f"{'cosine' if self.label is None else 'p'} {self.scores[index]:.2f}"
        if self.number:
            score = f"{self.scores[index]:.4g}"
        if len(self) == 1:
            return score
        time = self.times[index]
        return f"frame {index}, {score}" if math.isnan(time) else f"{time:.2f} s, {score}"

    @property
    def picture(self) -> Image.Image:
        """A strip of up to six frames, and the evidence in each."""
        left, top, gap = 40, 96, 8
        count = min(len(self), _COLUMNS)
        aspect = self.frames[0].width / self.frames[0].height
        single = count == 1
        longest = 420 if single else 330
        width = min((1080 - gap * (count - 1)) / count, longest * aspect, 1.6 * longest)
        height = width / aspect
        # a single frame has its evidence beside it, several have it below
        step = (width + gap, 0.0) if single else (0.0, height + gap)
        right = left + (2 if single else count) * (width + gap)
        page = Page(max(round(right + 72), 760), round(top + height + step[1] + 44))
        self._head(page, left, wrap=right < 900)
        for column, index in enumerate(np.linspace(0, len(self) - 1, count).round().astype(int)):
            x, y = left + column * (width + gap), float(top)
            page.image((x, y, x + width, y + height), self.frames[index])
            x, y = x + step[0], y + step[1]
            page.image((x, y, x + width, y + height), self.overlay(index))
            page.text((x + width / 2, y + height + 16), self._caption(index), 13, FAINT, "mm")
        _bar(page, (right + 4, top + step[1], right + 16, top + step[1] + height))
        return page.finish()

    def _film(self, density: int) -> Iterator[Image.Image]:
        left, top, gap = 24, 80, 8
        aspect = self.frames[0].width / self.frames[0].height
        height = min(360.0, 380 / aspect)
        width = height * aspect
        # the bar, and the words on it
        across = max(2 * (left + width) + gap + 60, 560)
        page = Page(_even(across), _even(top + height + 40), density, 1)
        self._head(page, left, wrap=True)
        second = left + width + gap
        _bar(page, (second + width + 10, top, second + width + 20, top + height))
        empty = page.sheet.copy()
        for index in range(len(self)):
            page.sheet.paste(empty)
            page.image((left, top, left + width, top + height), self.frames[index])
            page.image((second, top, second + width, top + height), self.overlay(index))
            page.text((left, top + height + 20), self._caption(index), 14, INK)
            yield page.sheet.copy()

    def _head(self, page: Page, left: int, wrap: bool = False) -> None:
        page.text((left, 32 if not wrap else 20), self.title, 22 if not wrap else 17)
        if not wrap:
            page.text((left, 64), self.subtitle, 14, FAINT)
            return
        first, second, rest = self._words
        page.text((left, 42), f"{first}; {second}", 12, FAINT)
        page.text((left, 60), rest, 12, FAINT)


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that `Explanation.save` can write to a path.

    Raises:
        DataError: naming the suffixes it can.
        MissingDependencyError: for MP4 without PyAV.
    """
    path = expanded(path)
    if path.suffix.lower() not in (STRIP, *FILMS):
        raise DataError(f"{path}: the name should end in {STRIP}, {' or '.join(FILMS)}")
    if path.suffix.lower() == ".mp4":
        pyav(path)
    return path


def _bar(page: Page, box: Box) -> None:
    """The scale of the colours, as they are over a grey of medium brightness."""
    _, top, right, bottom = box
    values = np.linspace(1, 0, 256, dtype=np.float32)[:, None]
    cover = _cover(values)
    mixed = 90 * (1 - cover) + np.asarray(coloured(values, _HEAT), np.float32) * cover
    page.image(box, Image.fromarray(mixed.round().astype(np.uint8)))
    page.frame(box)
    for share, words in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        y = bottom - share * (bottom - top)
        page.line([(right, y), (right + 4, y)], RULE, 1)
        page.text((right + 7, y), words, 12, FAINT, "lm")
    page.text((right + 36, (top + bottom) / 2), "evidence", 12, FAINT, "mm", upright=True)


def _cover(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of each pixel the colour covers, (h, w, 1)."""
    return np.asarray(_COVER * heat**0.7, np.float32)[:, :, None]


def _even(value: float) -> int:
    return 2 * math.ceil(value / 2)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:40]}…{name[-19:]}"
