"""What a network sees in a still or clip, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..classifier.prediction import Answer, answer
from ..drawing import RGB
from ..embedding.neighbours import Collection, Neighbour
from ..errors import DataError
from ..inference import batched, infer
from ..network import Network
from ..ultrasound.beam import Beam
from ..ultrasound.cleaning import Cleaner
from ..ultrasound.clip import Frame
from ..ultrasound.morphology import Mask, disc, opencv

#: Frames that are looked at, at most: of a longer clip its beginning, as in `explain`.
MOST_FRAMES = 200
#: Frames that are shown, spread over the clip.
SHOWN = 6

# Longest side in pixels of a picture that is shown.
_LONGEST = 480
# Colours of the rim of the beam, and of what is drawn over it.
_RIM: RGB = (64, 224, 128)
_DRAWN: RGB = (255, 64, 160)


@dataclass(frozen=True)
class Detected:
    """The beam of a clip, and what the scanner drew over it.

    Attributes:
        beam: of the clip.
        sure: whether it can be relied on.
        overlays: share of the beam that is lettering, calipers and the like, mean over the frames.
        pictures: of some frames, small: the rim of the beam in green, what is outside it darkened,
            what is drawn over it in pink.
    """

    beam: Beam
    sure: bool
    overlays: float
    pictures: list[Image.Image]


@dataclass(frozen=True)
class Examination:
    """What a network sees in a source of T frames, and says of it.

    Attributes:
        source: the file or folder.
        network: who sees it.
        clip: what it says of all of it; None of a network that is no model of `uscl finetune`.
        frames: what it says of each frame, T; none where `clip` is.
        seen: uint8 (h, w, 3 or 1), `SHOWN` frames at most, as they go into the network.
        numbers: which frames these are.
        times: float64 (T,), seconds; NaN where the source does not say.
        clean: whether they had been cut to the beam and cleaned before.
        detected: beam and overlays; None where frames are of several sizes.
        neighbours: the nearest images of a collection.
        cut: whether the clip goes on behind its last frame here.
        notes: what of the file could not be used.
    """

    source: Path
    network: Network
    clip: Answer | None
    frames: list[Answer]
    seen: list[NDArray[np.uint8]]
    numbers: list[int]
    times: NDArray[np.float64]
    clean: bool
    detected: Detected | None
    neighbours: list[Neighbour] = field(default_factory=list)
    cut: bool = False
    notes: list[str] = field(default_factory=list)


def examine(
    network: Network, path: str | Path, collection: Collection | None = None
) -> Examination:
    """Look at a still, clip or DICOM file as a network does.

    Args:
        network: whose rate, cleaning and answers these are.
        path: of one file; of a clip no more than the first 200 sampled frames are taken.
        collection: in which neighbours are looked for.

    Raises:
        UnreadableError: if it cannot be decoded.
        DataError: if the frames are of several sizes, and the network wants them cleaned.
        MissingDependencyError: if the library of the file, or of cleaning, is not installed.
    """
    path = Path(path)
    look, notes = network.look(), list[str]()
    opened = look._replace(clean=False).at(path, on_damage=notes.append)
    cleaner: Cleaner | None = None
    try:
        cleaner = look.cleaner(path)
    except DataError as error:
        if look.clean:
            raise
        notes.append(str(error))
    resized: list[NDArray[np.uint8]] = []
    times: list[float] = []
    shown = _Shown(cleaner)
    for frame in islice(opened, MOST_FRAMES):
        image = shown(frame)
        resized.append(network.transform.resize(image if look.clean else frame.image))
        times.append(frame.time)
    cut = next(opened, None) is not None
    clip, frames = _answers(network, path, resized, np.array(times))
    neighbours = []
    if collection is not None:
        vectors = infer(network.module, network.transform.normalise, batched(resized, 32))
        mean = np.concatenate(list(vectors)).mean(axis=0)
        neighbours = collection.nearest(mean, network)
    numbers = spread(len(resized))
    return Examination(
        source=path,
        network=network,
        clip=clip,
        frames=frames,
        seen=[resized[number] for number in numbers],
        numbers=numbers,
        times=np.array(times),
        clean=look.clean,
        detected=shown.detected(numbers),
        neighbours=neighbours,
        cut=cut,
        notes=notes,
    )


def spread(count: int) -> list[int]:
    """Numbers of at most `SHOWN` of so many frames, spread over them."""
    places = np.linspace(0, count - 1, min(count, SHOWN)).round()
    return [int(place) for place in places]


def _answers(
    network: Network, path: Path, resized: list[NDArray[np.uint8]], times: NDArray[np.float64]
) -> tuple[Answer | None, list[Answer]]:
    if network.answers is None:
        return None, []
    probabilities, distances = network.run(resized)
    count = len(resized)
    frames, (clip,), _ = answer(
        network.answers,
        probabilities,
        distances,
        owner=np.zeros(count, np.int64),
        number=np.arange(count),
        time=times,
        sources=[path],
        subjects=[None],
    )
    return clip, frames


class _Shown:
    """Keeps of each frame a small picture with the beam and the overlays in it."""

    def __init__(self, cleaner: Cleaner | None) -> None:
        self.cleaner = cleaner
        self.pictures: list[Image.Image] = []
        self.shares: list[float] = []

    def __call__(self, frame: Frame) -> Image.Image:
        """Look at the next frame, and give it back cleaned."""
        if self.cleaner is None:
            return frame.image
        cleaned, overlay = self.cleaner(frame.image)
        inside = self.cleaner.beam.mask
        whole = np.zeros_like(inside)
        left, top, right, bottom = self.cleaner.box
        whole[top:bottom, left:right] = overlay
        self.shares.append(float(whole.sum() / max(inside.sum(), 1)))
        self.pictures.append(drawn(frame.image, inside, whole))
        return cleaned

    def detected(self, numbers: list[int]) -> Detected | None:
        if self.cleaner is None:
            return None
        share = float(np.mean(self.shares)) if self.shares else 0.0
        pictures = [self.pictures[number] for number in numbers]
        return Detected(self.cleaner.beam, self.cleaner.sure, share, pictures)


def drawn(image: Image.Image, inside: Mask, overlay: Mask) -> Image.Image:
    """A small picture of a frame: rim of the beam, darkness around it, overlays.

    Args:
        image: the frame.
        inside: the beam, bool (H, W) of its size.
        overlay: what is drawn over it, the same.
    """
    cv2 = opencv()
    small = image.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST))
    # area: of a stroke that is thinner than a pixel something is left
    beam, over = (
        cv2.resize(mask.astype(np.float32), small.size, interpolation=cv2.INTER_AREA)
        for mask in (inside, overlay)
    )
    pixels = np.asarray(small, np.float32) * np.where(beam >= 0.5, 1, 0.45)[..., None]
    kept = (beam >= 0.5).astype(np.uint8)
    # around the picture there is no beam: where it is cut by the edge, the rim is at the edge
    padded = np.pad(kept, 1)
    rim = (padded - cv2.erode(padded, disc(3)))[1:-1, 1:-1] > 0
    pixels[over > 0.25] = 0.35 * pixels[over > 0.25] + 0.65 * np.array(_DRAWN)
    pixels[rim] = _RIM
    return Image.fromarray(pixels.round().astype(np.uint8))
