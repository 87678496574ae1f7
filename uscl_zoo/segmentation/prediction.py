"""What a model outlines in files: masks, regions with areas, and pictures to look at."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .. import films
from ..checks import real
from ..data.annotations import SubjectPattern, known_subject
from ..errors import CardError, DataError, UnreadableError, one_line
from ..files import begins_with, check_folder, expanded, written_folder
from ..names import cell
from ..records import read_json, to_plain
from ..ultrasound.clip import DamageWarning
from ..ultrasound.reading import read
from ..ultrasound.sources import files_of, name_sources
from . import overlay
from .model import Model, load_outliner
from .regions import Labels, Region, painted, polygons, rle

#: The file of a folder that says it is of this; it holds all regions, in COCO's form.
COCO, TABLE = "outlines.json", "outlines.csv"
#: Bytes of it that are read, and how it begins.
_LARGEST = 1 << 30
_BEGINS = b'{\n "info": {\n  "description": "outlines of uscl-zoo"'


@dataclass(frozen=True)
class Outline:
    """What a model outlines in one frame.

    Attributes:
        source: the file or folder.
        name: of the source, within the folder given.
        subject: whom it shows; None where nobody said.
        frame: its number among those sampled.
        time: seconds since the first, NaN where the source does not say.
        size: height and width in pixels.
        spacing: height and width of a pixel in mm; None where the file does not say.
        regions: that the model is sure enough of, the surest first; none where nothing is there.
        unsure: those below its confidence.
        distance: from the training images.
        unlike: whether it is an image of another kind: what is outlined means nothing then.
    """

    source: Path
    name: str
    subject: str | None
    frame: int
    time: float
    size: tuple[int, int]
    spacing: tuple[float, float] | None
    regions: list[Region]
    unsure: list[Region]
    distance: float
    unlike: bool

    @property
    def labels(self) -> Labels:
        """A class a pixel, uint8 (H, W); 0 where there is none."""
        return painted(self.regions, *self.size)


@dataclass(frozen=True)
class Outlines:
    """What a model outlines in some files.

    Attributes:
        model: what made them.
        frames: an outline each, those of a source one after the other.
        skipped: files that could not be read, and why.
    """

    model: Model
    frames: list[Outline]
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def sources(self) -> Iterator[list[Outline]]:
        """The frames of each source."""
        own: list[Outline] = []
        for frame in self.frames:
            if own and own[0].source != frame.source:
                yield own
                own = []
            own.append(frame)
        if own:
            yield own

    def __str__(self) -> str:
        own = list(self.sources)
        some = sum(any(frame.regions for frame in frames) for frames in own)
        unlike = sum(np.mean([frame.unlike for frame in frames]) > 0.5 for frames in own)
        said = f"{len(own)} files, something outlined in {some}"
        return f"{said}, {unlike} unlike the training images"

    def lines(self) -> Iterator[str]:
        """A line a source, for people."""
        for own in self.sources:
            yield one_line(_line(own, self.model.said.classes, self.model.said.confidence))

    def save(self, folder: str | Path) -> Path:
        """Write masks, pictures, `outlines.json` and `outlines.csv` into a folder, whole or not.

        Of each source `NAME_mask.png`, whose values are the classes in the order of the model (0
        for none), and `NAME_overlay.png`; of a clip `NAME_mask.gif`, with a mask a frame, and
        `NAME_overlay.mp4`, or `.gif` where PyAV is not installed.

        Raises:
            DataError: if the folder holds what is not of an earlier call, or an input.
            WriteError: if it cannot be written.
        """
        folder = expanded(folder)
        check_output(folder, (file for own in self.sources for file in files_of(own[0].source)))
        names = _names(self.frames)
        with written_folder(folder, replace=True) as partial:
            for own in self.sources:
                self._draw(own, partial / names[own[0].source])
            with (partial / TABLE).open("w", newline="", encoding="utf-8") as stream:
                self._table(stream)
            content = self.coco()
            content["info"]["files"] = [*_within(partial), COCO]
            text = json.dumps(content, indent=1, ensure_ascii=False)
            (partial / COCO).write_text(text, encoding="utf-8")
        return folder

    def _draw(self, own: list[Outline], stem: Path) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        said = self.model.said
        count = len(said.classes)
        masks = [overlay.mask_image(frame.labels, count) for frame in own]
        pictures = (
            overlay.drawn(
                image, [*frame.regions, *frame.unsure], said.classes, confidence=said.confidence
            )
            for frame, image in zip(own, _images(own, self.model), strict=True)
        )
        mask, picture = (stem.with_name(f"{stem.name}_{kind}") for kind in ("mask", "overlay"))
        if len(own) == 1:
            masks[0].save(f"{mask}.png", "PNG")
            next(pictures).save(f"{picture}.png", "PNG")
            return
        rate = overlay.rate_of(np.array([frame.time for frame in own]), said.rate)
        overlay.write_gif(Path(f"{mask}.gif"), masks, rate)
        film = (overlay.reduced(image) for image in pictures)
        if films.can_film():
            films.write_film(Path(f"{picture}.mp4"), film, rate)
        else:
            first, *rest = list(film)
            step = round(1000 / rate)
            first.save(f"{picture}.gif", save_all=True, append_images=rest, duration=step, loop=0)

    def coco(self) -> dict[str, Any]:
        """Every region, those below the confidence among them, in COCO's form.

        Beside COCO's keys images have `frame`, `time`, `unlike` and `spacing_mm`, and annotations
        `score`, `said` (whether it is not below the confidence) and `area_mm2`. A region with holes
        has run lengths, and any other polygons.
        """
        said = self.model.said
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, frame in enumerate(self.frames, start=1):
            images.append(
                {
                    "id": number,
                    "file_name": frame.name,
                    "height": frame.size[0],
                    "width": frame.size[1],
                    "frame": frame.frame,
                    "time": None if np.isnan(frame.time) else frame.time,
                    "subject": None if frame.subject is None else one_line(frame.subject),
                    "spacing_mm": frame.spacing,
                    "distance": round(frame.distance, 4),
                    "unlike": frame.unlike,
                }
            )
            for region in (*frame.regions, *frame.unsure):
                left, top, right, bottom = region.box
                area = region.area_in_mm(frame.spacing)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": region.label + 1,
                        "bbox": [
                            round(edge, 2) for edge in (left, top, right - left, bottom - top)
                        ],
                        "area": region.area,
                        "iscrowd": 0,
                        "segmentation": _segmentation(region, frame.size),
                        "score": round(region.score, 4),
                        "said": region.score >= said.confidence,
                        "area_mm2": None if area is None else round(area, 3),
                    }
                )
        return {
            "info": {
                "description": "outlines of uscl-zoo",
                "model": one_line(str(self.model.folder)),
                "task": said.task,
                "network": f"{said.network} on {said.encoder}",
                "weights_sha256": said.weights_sha256,
                "temperature": said.temperature,
                "exponent": said.exponent,
                "confidence": said.confidence,
                "trust": to_plain(said.trust),
            },
            "categories": [
                {"id": number, "name": name} for number, name in enumerate(said.classes, start=1)
            ],
            "images": images,
            "annotations": annotations,
            "skipped": [
                {"source": one_line(str(source)), "reason": one_line(why)}
                for source, why in self.skipped
            ],
        }

    def _table(self, stream: Any) -> None:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            [
                *("source", "subject", "frame", "time_s", "found", "area_px", "area_mm2"),
                *("score", "unsure", "distance", "unlike_training"),
            ]
        )
        classes = self.model.said.classes
        for frame in self.frames:
            there = sorted({region.label for region in frame.regions})
            areas = [region.area_in_mm(frame.spacing) for region in frame.regions]
            known_areas = [area for area in areas if area is not None]
            writer.writerow(
                [
                    cell(frame.source),
                    cell(frame.subject),
                    frame.frame,
                    "" if np.isnan(frame.time) else f"{frame.time:.6g}",
                    cell("; ".join(classes[label] for label in there) or "none"),
                    f"{sum(region.area for region in frame.regions):.0f}",
                    f"{sum(known_areas):.2f}" if frame.spacing is not None else "",
                    f"{frame.regions[0].score:.4f}" if frame.regions else "",
                    len(frame.unsure),
                    f"{frame.distance:.4g}",
                    int(frame.unlike),
                ]
            )


def _segmentation(region: Region, size: tuple[int, int]) -> Any:
    if region.mask is None:
        return []
    parts, holes = polygons(region.mask)
    if holes:
        return rle(region.whole(*size))
    left, top, _, _ = region.window
    shift = np.array([left, top])
    return [(np.reshape(part, (-1, 2)) + shift).ravel().tolist() for part in parts]


def _line(own: list[Outline], classes: tuple[str, ...], confidence: float) -> str:
    """What there is to say of a source."""
    name = own[0].source
    unlike = float(np.mean([frame.unlike for frame in own])) > 0.5
    if unlike:
        return f"{name}: cannot tell: unlike the training images"
    parts = []
    for label, title in enumerate(classes):
        showing = [f for f in own if any(r.label == label for r in f.regions)]
        if not showing:
            continue
        best = max(r.score for f in showing for r in f.regions if r.label == label)
        largest = max(showing, key=lambda frame: _area(frame, label))
        pixels = f"{_area(largest, label):,.0f} px"
        spacing = largest.spacing
        size = (
            pixels
            if spacing is None
            else f"{_area(largest, label) * spacing[0] * spacing[1]:,.1f} mm²"
        )
        if len(own) == 1:
            count = sum(region.label == label for region in own[0].regions)
            many = f" in {count} regions" if count > 1 else ""
            parts.append(f"{title} {best:.2f}, {size}{many}")
        else:
            parts.append(
                f"{title} {best:.2f}, in {len(showing)} of {len(own)} frames, at most {size}"
            )
    if parts:
        return f"{name}: {'; '.join(parts)}"
    unsure = [region for frame in own for region in frame.unsure]
    if not unsure:
        return f"{name}: none"
    likely = max(unsure, key=lambda region: region.score)
    return f"{name}: none ({classes[likely.label]} {likely.score:.2f}, below {confidence:g})"


def _area(frame: Outline, label: int) -> float:
    return sum(region.area for region in frame.regions if region.label == label)


def _names(frames: list[Outline]) -> dict[Path, str]:
    """A stem for the files of each source, different ones for different sources."""
    stems: dict[Path, str] = {}
    for frame in frames:
        if frame.source not in stems:
            path = Path(frame.name)
            stems[frame.source] = path.with_suffix("").as_posix() if path.stem else path.as_posix()
    taken: dict[str, list[Path]] = {}
    for source, stem in stems.items():
        taken.setdefault(stem.casefold(), []).append(source)
    used: set[str] = set()
    names: dict[Path, str] = {}
    for source, stem in stems.items():
        alone = len(taken[stem.casefold()]) == 1
        name = stem if alone else f"{stem}{source.suffix.replace('.', '_')}"
        number = 1
        while name.casefold() in used:
            number += 1
            name = f"{stem}_{number}"
        used.add(name.casefold())
        names[source] = name
    return names


def _images(own: list[Outline], model: Model) -> Iterator[Image.Image]:
    """The frames of a source, decoded once more: to keep those of all sources would fill memory."""
    yield from (image for _, image in model.look().at(own[0].source, 1, lambda message: None))


def check_output(folder: str | Path, inputs: Iterable[str | Path] = ()) -> Path:
    """Make sure, before the work is done, that `Outlines.save` can write to a folder.

    Raises:
        DataError: if it holds what is not of an earlier call, or an input.
    """
    folder = expanded(folder)
    return check_folder(folder, _is_ours(folder), inputs)


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds what an earlier call wrote, and nothing else."""
    path = folder / COCO
    if not begins_with(path, _BEGINS):
        return False
    try:
        written_then = set(read_json(path, _LARGEST)["info"]["files"])
    except (CardError, LookupError, TypeError):
        return False
    return written_then.issuperset(_within(folder))


def _within(folder: Path) -> list[str]:
    """The files in a folder and below it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def outline(
    model: str | Path | Model,
    paths: str | Path | Iterable[str | Path],
    *,
    subjects: str | Mapping[str, str] | Callable[[Path], str | None] | None = None,
    confidence: float | None = None,
    rate: float | None = None,
    batch_size: int = 8,
    device: str | None = None,
    progress: bool = True,
) -> Outlines:
    """Outline what a model finds in images, videos, DICOM files and folders of them.

    Args:
        model: a folder that `uscl finetune --task segmentation` or `detection` wrote, or one that
            is loaded.
        paths: files and folders, as for `ultrasound.reading.find`.
        subjects: as for `predict`: a pattern, a mapping, or a function of the path.
        confidence: below which a region is not said; the model's own if None.
        rate: frames a second to sample from videos; the model's own if None.
        batch_size: frames at a time.
        device: to compute on; None for a GPU where there is one.
        progress: show a bar.

    Raises:
        DataError: if nothing can be read, the folder holds no such model, or an argument is out of
            range.
        UnreadableError: if a path does not exist.
        DigestError: if a file of the model is not the one it was written with.
    """
    if confidence is not None:
        confidence = real("confidence", confidence, 0, 1, ends=True)
    whose = _subjects(subjects)
    sources = [source for source, _ in name_sources(paths)]
    if not sources:
        raise DataError("there is nothing to outline: name a file or folder")
    owners = [known_subject(whose(source.path, source.within)) for source in sources]
    network = model if isinstance(model, Model) else load_outliner(model, device)
    network = network.adapted(confidence, rate)
    look, said = network.look(), network.said
    origins: list[tuple[int, int, float, tuple[int, int]]] = []
    spacings: dict[int, tuple[float, float] | None] = {}
    skipped: list[tuple[Path, str]] = []

    def frames() -> Iterator[Image.Image]:
        for index, source in enumerate(tqdm(sources, unit="file", disable=not progress)):
            try:
                spacings[index] = read(source.path).facts.spacing
                for number, (time, image) in enumerate(look.at(source.path)):
                    origins.append((index, number, time, (image.height, image.width)))
                    yield image
            except (UnreadableError, DataError) as error:
                if origins and origins[-1][0] == index:
                    warnings.warn(str(error), DamageWarning, stacklevel=2)
                else:
                    why = str(error).removeprefix(f"{source.path}: ")
                    skipped.append((source.path, why))

    outlines: list[Outline] = []
    for place, one in enumerate(network(frames(), batch_size)):
        index, number, time, size = origins[place]
        outlines.append(
            Outline(
                source=sources[index].path,
                name=sources[index].name,
                subject=owners[index],
                frame=number,
                time=float(time),
                size=size,
                spacing=spacings[index],
                regions=[region for region in one.regions if region.score >= said.confidence],
                unsure=[region for region in one.regions if region.score < said.confidence],
                distance=one.distance,
                unlike=one.distance > said.threshold,
            )
        )
    if not outlines:
        raise DataError(
            f"none of {len(sources)} files can be read; {skipped[0][0]}: {skipped[0][1]}"
        )
    return Outlines(network, outlines, skipped)


def _subjects(
    given: str | Mapping[str, str] | Callable[[Path], str | None] | None,
) -> Callable[[Path, str], str | None]:
    if given is None:
        return lambda path, within: None
    if isinstance(given, str):
        pattern = SubjectPattern(given)
        return lambda path, within: pattern(within)
    if isinstance(given, Mapping):
        return lambda path, within: given.get(str(path), given.get(path.name))
    return lambda path, within: given(path)
