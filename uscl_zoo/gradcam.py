"""Where in a clip the evidence for an answer is: Grad-CAM, inside the beam."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from .drawing import FAINT, INK, RULE, Box, Page, coloured
from .errors import DataError, MissingDependencyError, one_line
from .files import check_output, expanded, written
from .network import Network, load
from .ultrasound.beam import DOUBTFUL, UNKNOWN, Beam, beam
from .ultrasound.reading import read
from .ultrasound.sources import files_of, name_sources
from .ultrasound.transforms import FrameTransform

#: Frames taken from a clip at most.
MOST_FRAMES = 200
#: What an explanation can be written as: a strip, and for clips a film.
STRIP, FILMS = ".png", (".mp4", ".gif")

# Longest side in pixels of the frames that are kept for drawing.
_LONGEST = 480
_BATCH = 16
# Frames in a strip.
_COLUMNS = 6

# Magma of matplotlib at equal steps, perceptually uniform, without the black that would not show.
_HEAT = ((59, 15, 112), (100, 26, 128), (140, 41, 129), (183, 55, 121), (222, 73, 104),
         (247, 112, 92), (254, 159, 109), (254, 207, 146), (252, 253, 191))  # fmt: skip
# How much of a frame the strongest evidence covers.
_COVER = 0.65


@dataclass(frozen=True)
class Explanation:
    """Where in the T frames of a clip the evidence for an answer is.

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
        beam: of the clip; of kind `unknown`, and all of the picture, where it cannot be told.
        rate: frames a second that were sampled.
        cut: whether the clip goes on behind its last frame here.
        clean: whether the network saw its frames cut to the beam, and cleaned.
        guarded: whether there is something to say by whether the clip is unlike.
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

    def __len__(self) -> int:
        return len(self.frames)

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
        return f"{self.label}: {kind} {mean:.2f}{unlike}"

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
            "no beam found, nothing masked"
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
        check_output(path, files_of(self.source))
        with written(path) as partial:
            if suffix == STRIP:
                self._strip().save(partial, "PNG", dpi=(200, 200))
            elif suffix == ".gif":
                first, *rest = (page.convert("P", dither=None) for page in self._film(density=1))
                steps = [round(1000 / self._frame_rate)] * len(self)
                first.save(
                    partial, "GIF", save_all=True, append_images=rest, duration=steps, loop=0
                )
            else:
                self._write_mp4(partial)
        return path

    @property
    def _frame_rate(self) -> float:
        steps = np.diff(self.times)
        step = float(np.median(steps)) if len(steps) and not np.isnan(steps).any() else 0.0
        return 1 / step if step > 0 else min(self.rate, 10.0)

    def _caption(self, index: int) -> str:
        score = f"{'cosine' if self.label is None else 'p'} {self.scores[index]:.2f}"
        if len(self) == 1:
            return score
        time = self.times[index]
        return f"frame {index}, {score}" if math.isnan(time) else f"{time:.2f} s, {score}"

    def _strip(self) -> Image.Image:
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

    def _write_mp4(self, path: Path) -> None:
        av = _pyav(path)
        with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = None
            for page in self._film(density=2):
                if stream is None:
                    rate = Fraction(self._frame_rate).limit_denominator(1000)
                    stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
                    stream.width, stream.height = page.size
                    # what every player and browser shows
                    stream.pix_fmt = "yuv420p"
                container.mux(stream.encode(av.VideoFrame.from_image(page)))
            assert stream is not None
            container.mux(stream.encode())


def explain(
    model: nn.Module | str | Path,
    path: str | Path,
    label: str | None = None,
    rate: float | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    *,
    clean: bool | None = None,
) -> Explanation:
    """Find where in a still or clip the evidence for a class is, by Grad-CAM.

    The map is that of the last feature map of the network (Selvaraju et al., ICCV 2017). Frames go
    through the network whole, as for `embed`; only what is drawn is cut to the beam. A network
    without a classifier has its embedding explained instead: what makes up its component along the
    clip's mean embedding.

    Args:
        model: whatever `network.load` takes, if it is convolutional; a network of one's own is left
            as it was.
        path: of a still, video, DICOM file or folder of frames; one source, as `find` counts them.
        label: the class to explain; the most probable of the clip if None.
        rate: frames a second to sample, None for those of the network; of a clip no more than its
            first 200 are taken.
        device: as for `embed`.
        progress: show a bar.
        clean: whether the network sees frames that are cut to the beam, and cleaned of what is
            drawn in it; as it was made if None. What is drawn is what it sees.

    Returns:
        The explanation, to look at or to `save`.

    Raises:
        DataError: if the class is unknown, the network is not convolutional, the folder holds
            several sources, or the frames are of several sizes.
        UnreadableError: if the file cannot be decoded.
        UnknownModelError: if no model is of that name.
        MissingDependencyError: if grad-cam, or the library of the file, is not installed.
    """
    network = load(model, device)
    look = network.look(rate, clean)
    if label is not None and label not in network.classes:
        known = ", ".join(network.classes) or "none: it has no classifier"
        raise DataError(f"{network.name}: has no class {label!r}; its classes are {known}")
    path = _source(path)
    found = look.cleaner(path).beam if look.clean else beam(read(path))
    if found.kind == UNKNOWN or found.confidence < DOUBTFUL:
        height, width = found.mask.shape
        whole = np.ones_like(found.mask)
        found = replace(found, mask=whole, kind=UNKNOWN, box=(0, 0, width, height))
    opened = look.at(path)
    resized: list[NDArray[np.uint8]] = []
    drawn: list[Image.Image] = []
    times: list[float] = []
    cutting = _Cutting(_cropped(found) if look.clean else found, path)
    for frame in islice(opened, MOST_FRAMES):
        resized.append(network.transform.resize(frame.image))
        drawn.append(cutting(frame.image))
        times.append(frame.time)
    cut = next(opened, None) is not None
    scores, distances = network.run(resized)
    chosen: Any
    if network.classes:
        place = int(scores.mean(axis=0).argmax()) if label is None else network.classes.index(label)
        label, chosen, scores = network.classes[place], place, scores[:, place]
    else:
        chosen = scores.mean(axis=0)
        lengths = np.linalg.norm(scores, axis=1) * np.linalg.norm(chosen)
        scores = scores @ chosen / np.maximum(lengths, 1e-12)
    maps = heat_maps(network, resized, chosen, progress)
    heat, outside = cutting.heat(maps)
    return Explanation(
        source=path,
        network=network.name,
        label=label,
        scores=scores,
        calibrated=network.answers is not None,
        unlike=network.is_unlike(distances),
        times=np.array(times),
        frames=drawn,
        heat=heat,
        outside=outside,
        beam=found,
        rate=look.rate,
        clean=look.clean,
        guarded=network.statistics is not None,
        cut=cut,
    )


def _cropped(found: Beam) -> Beam:
    """A beam in pixels of its own box, to which frames have been cut."""
    left, top, right, bottom = found.box
    mask = found.mask[top:bottom, left:right]
    return replace(found, mask=mask, box=(0, 0, right - left, bottom - top))


def _source(path: str | Path) -> Path:
    """The one source that a path names: a folder of stills is as many as it holds, not a clip."""
    found = [source.path for source, _ in name_sources(path)]
    if len(found) != 1:
        raise DataError(
            f"{path}: holds {len(found)} sources, which are no clip; explain one of them, as "
            f"{found[0]}"
        )
    return found[0]


class _Cutting:
    """Cuts frames and maps to the box of the beam, and blanks them outside the beam."""

    def __init__(self, found: Beam, source: Path) -> None:
        self.source = source
        left, top, right, bottom = found.box
        self.mask = found.mask
        self.box = found.box
        scale = min(_LONGEST / max(right - left, bottom - top), 1)
        self.size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
        inside = Image.fromarray(found.mask[top:bottom, left:right])
        self.inside = inside.convert("L").resize(self.size, Image.Resampling.BILINEAR)

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size != self.mask.shape[::-1]:
            width, height = image.size
            raise DataError(
                f"{self.source}: its frames are of several sizes, {width} x {height} among them"
            )
        small = image.resize(self.size, Image.Resampling.BICUBIC, box=self.box)
        return Image.composite(small, Image.new("RGB", self.size), self.inside)

    def heat(self, maps: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """Maps (T, h, w) of whole frames to those of cut ones, 0-1, and the share outside."""
        height, width = self.mask.shape
        inside = np.asarray(self.inside, np.float32) / 255
        heat = np.empty((len(maps), self.size[1], self.size[0]), np.float32)
        within = total = 0.0
        for target, values in zip(heat, maps, strict=True):
            # bilinear: cubic would overshoot, and make evidence where there is none
            large = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
            total += float(np.asarray(large).sum(dtype=np.float64))
            within += float(np.asarray(large)[self.mask].sum(dtype=np.float64))
            small = large.resize(self.size, Image.Resampling.BILINEAR, box=self.box)
            target[...] = np.asarray(small) * inside
        highest = float(heat.max())
        if highest > 0:
            heat /= highest
        return heat, 1 - within / total if total > 0 else 0.0


class _Seen(nn.Module):
    """A network in two halves, so that its last feature map is the output of a module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        # a copy: hooks, gradients and modes of the caller's own are not touched; and of single
        # precision, since the sums of a map in bfloat16 would be good to two digits
        self.network: Any = copy.deepcopy(network.module).float().requires_grad_(False).eval()
        self.last = nn.Identity()
        self.headless = not network.classes

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.last(self.network.forward_features(inputs))
        if features.ndim != 4 or features.shape[1] != self.network.num_features:
            raise DataError(
                f"{type(self.network).__name__}: Grad-CAM needs a convolutional network of timm"
            )
        outputs: Tensor = self.network.forward_head(features, pre_logits=self.headless)
        return outputs


def heat_maps(
    network: Network, frames: Sequence[NDArray[np.uint8]], chosen: Any, progress: bool
) -> NDArray[np.float32]:
    """Grad-CAM of frames by the last feature map of a network.

    Args:
        network: and its input.
        frames: uint8, as `FrameTransform.resize` leaves them, T of them.
        chosen: the number of the class; of a network without classes, the embedding to explain.
        progress: show a bar.

    They are computed in single precision, with gradients, whatever the caller has switched off.

    Returns:
        float32 (T, h, w), at least 0, not scaled, in the resolution of the feature map.

    Raises:
        DataError: if the network is not convolutional.
        MissingDependencyError: if grad-cam is not installed.
    """
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise MissingDependencyError(
            "explaining needs grad-cam; install it by: pip install 'uscl-zoo[explain]'"
        ) from error
    if not hasattr(network.module, "forward_head"):
        raise DataError(f"{network.name}: Grad-CAM needs a convolutional network of timm")
    device = next(network.module.parameters()).device

    def target(output: Tensor) -> Tensor:
        if network.classes:
            return output[chosen]
        # not the cosine, which is at its highest for a still, and has no gradient there
        return output @ normalize(torch.from_numpy(chosen).to(output), dim=0)

    transform: FrameTransform = network.transform
    maps = []
    with (
        tqdm(total=len(frames), unit="frame", disable=not progress or len(frames) <= _BATCH) as bar,
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        seen = _Seen(network)
        cam = GradCAM(seen, [seen.last])
        for start in range(0, len(frames), _BATCH):
            batch = torch.from_numpy(np.stack(frames[start : start + _BATCH])).to(device)
            inputs = transform.normalise(batch).requires_grad_()
            targets = [target] * len(batch)
            cam(inputs, targets)
            # what it returns is scaled by frame, and frames could not be compared
            kept = cam.activations_and_grads
            parts = (tensors[0].numpy() for tensors in (kept.activations, kept.gradients))
            raw = cam.get_cam_image(inputs, seen.last, targets, *parts)
            maps.append(np.maximum(raw, 0).astype(np.float32))
            bar.update(len(batch))
    return np.concatenate(maps)


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
        _pyav(path)
    return path


def _pyav(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: MP4 needs PyAV; install it by: pip install 'uscl-zoo[explain]', "
            "or name a .gif"
        ) from error
    return av


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
