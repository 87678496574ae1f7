"""COCO's JSON of outlines: images, categories, and polygons, run lengths or boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uscl_zoo.errors import CardError, DataError, MissingDependencyError, UnreadableError, one_line
from uscl_zoo.records import read_json
from uscl_zoo.segmentation.regions import Region, region_of
from uscl_zoo.ultrasound.sources import Named, name_sources, named

#: Bytes of a file that is read: COCO's own largest has half of that.
_LARGEST = 1 << 30
#: Keys that tell it from any other JSON.
_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class Read:
    """What such a file says.

    Attributes:
        files: name of the file of each image, by its id.
        sizes: height and width of each.
        annotations: by image, each with `label`, the place of its class.
        classes: names, in the order of their ids.
        notes: what was left out.
    """

    files: dict[int, str]
    sizes: dict[int, tuple[int, int]]
    annotations: dict[int, list[dict[str, Any]]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def tools() -> Any:
    """Pycocotools' masks.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingDependencyError(
            "outlines in COCO's form need pycocotools: pip install 'uscl-zoo[segmentation]'"
        ) from error
    return mask


def file_in(data: Path) -> Path | None:
    """COCO's JSON: the file given, or the only one in a folder; None if there is none.

    Raises:
        DataError: if a folder holds several.
    """
    if not data.is_dir():
        return data if data.suffix.lower() == ".json" else None
    places = [data, data / "annotations"]
    files = [file for place in places if place.is_dir() for file in sorted(place.glob("*.json"))]
    own = [file for file in files if _is_coco(file)]
    if len(own) > 1:
        raise DataError(
            f"{data}: holds {len(own)} files of COCO ({', '.join(file.name for file in own[:4])}); "
            "give one of them: subjects are divided here"
        )
    return own[0] if own else None


def _is_coco(path: Path) -> bool:
    try:
        said = read_json(path, _LARGEST)
    except CardError:
        return False
    return isinstance(said, Mapping) and all(isinstance(said.get(key), list) for key in _KEYS)


def read(path: Path, wanted: Sequence[str] | None = None) -> Read:
    """Read such a file.

    Args:
        path: of it.
        wanted: the only categories to take, in that order; None for all.

    Raises:
        UnreadableError: if it cannot be read.
        DataError: if it says something else, or has not the categories.
    """
    try:
        said = read_json(path, _LARGEST)
    except CardError as error:
        raise UnreadableError(str(error)) from error
    if not isinstance(said, Mapping) or not all(isinstance(said.get(k), list) for k in _KEYS):
        raise DataError(f"{path}: is not of COCO, which has lists {', '.join(_KEYS)}")
    try:
        names = {int(c["id"]): str(c["name"]) for c in said["categories"]}
        files = {int(image["id"]): str(image["file_name"]) for image in said["images"]}
        sizes = {
            int(image["id"]): (int(image["height"]), int(image["width"]))
            for image in said["images"]
            if "height" in image and "width" in image
        }
        given = [
            {**one, "image_id": int(one["image_id"]), "category_id": int(one["category_id"])}
            for one in said["annotations"]
        ]
    except (TypeError, ValueError, LookupError) as error:
        raise DataError(f"{path}: is not of COCO ({type(error).__name__}: {error})") from error
    notes: list[str] = []
    used = {one["category_id"] for one in given}
    absent = sorted(used - names.keys())
    if absent:
        raise DataError(f"{path}: has annotations of category {absent[0]}, which it does not name")
    # some programs write a category above all others that nothing is of
    order = [number for number in sorted(names) if number in used]
    if wanted is not None:
        by_name = {name.casefold(): number for number, name in names.items()}
        unknown = [name for name in wanted if name.casefold() not in by_name]
        if unknown:
            raise DataError(f"{path}: has no category {unknown[0]!r}, only {_listed(names)}")
        order = [by_name[name.casefold()] for name in wanted]
    if not order:
        raise DataError(f"{path}: has no annotations, so there is nothing to learn to outline")
    place = {number: label for label, number in enumerate(order)}
    annotations: dict[int, list[dict[str, Any]]] = {}
    lost = crowds = others = 0
    for one in given:
        if one["image_id"] not in files:
            lost += 1
        elif one.get("iscrowd"):
            crowds += 1
        elif one["category_id"] not in place:
            others += 1
        else:
            one["label"] = place[one["category_id"]]
            annotations.setdefault(one["image_id"], []).append(one)
    for count, why in (
        (lost, "are of no image"),
        (crowds, "are of crowds"),
        (others, "are of other categories"),
    ):
        if count:
            notes.append(f"{path.name}: {count} annotations {why}, and left out")
    return Read(files, sizes, annotations, tuple(names[number] for number in order), tuple(notes))


def _listed(names: Mapping[int, str]) -> str:
    return ", ".join(names[number] for number in sorted(names))


def images_of(read: Read, path: Path, notes: list[str]) -> dict[int, Named]:
    """The files of images, by their ids: from the folder of the JSON, or by their names below it.

    Raises:
        DataError: if none is there, or a name is of several.
    """
    home = path.parent
    roots = [home, home / "images", home.parent, home.parent / "images"]
    by_name: dict[str, list[Path]] = {}
    found: dict[int, Named] = {}
    lost: list[str] = []
    searched = False
    for number, name in read.files.items():
        direct = next((root / name for root in roots if (root / name).is_file()), None)
        if direct is None and not searched:
            searched = True
            for own, _ in name_sources([home], on_damage=lambda message: None, masks=[]):
                by_name.setdefault(own.path.name.casefold(), []).append(own.path)
        if direct is None:
            there = by_name.get(Path(name.replace("\\", "/")).name.casefold(), [])
            if len(there) > 1:
                raise DataError(
                    f"{path}: {one_line(name)} may be {there[0]} or {there[1]}; write its path"
                )
            direct = there[0] if there else None
        if direct is None:
            lost.append(name)
        else:
            top = home if direct.is_relative_to(home) else home.parent
            found[number] = named(direct, top)
    if not found:
        raise DataError(f"{path}: none of its {len(lost)} images is there, as {lost[0]}")
    if lost:
        notes.append(
            f"{path.name}: {len(lost)} images are not there, the first: {one_line(lost[0])}"
        )
    return found


def regions(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[Region]:
    """Annotations of an image as regions of it; of one without an outline its box alone.

    Raises:
        DataError: if an annotation has neither, or one that cannot be read.
    """
    found: list[Region] = []
    for one in annotations:
        outline, label = one.get("segmentation"), int(one["label"])
        if not outline:
            if "bbox" not in one:
                raise DataError(f"annotation {one.get('id')} has neither an outline nor a box")
            left, top, width, height = map(float, one["bbox"])
            if width > 0 and height > 0:
                found.append(Region(label, (left, top, left + width, top + height)))
            continue
        region = region_of(_decoded(one, outline, size), label)
        if region is not None:
            found.append(region)
    # large ones first, so that what lies upon them is drawn upon them
    return sorted(found, key=lambda region: -region.area)


def _decoded(one: Mapping[str, Any], outline: Any, size: tuple[int, int]) -> Any:
    mask = tools()
    height, width = size
    try:
        if isinstance(outline, list):
            runs = mask.merge(mask.frPyObjects(outline, height, width))
        elif isinstance(outline["counts"], list):
            runs = mask.frPyObjects(dict(outline), height, width)
        else:
            runs = dict(outline)
        decoded = np.asarray(mask.decode(runs)).astype(bool)
    except Exception as error:  # of whatever is no outline it raises what it meets
        raise DataError(
            f"annotation {one.get('id')} has no outline that can be read ({error})"
        ) from error
    if decoded.shape != size:
        raise DataError(
            f"annotation {one.get('id')} is of {decoded.shape[1]} x {decoded.shape[0]} pixels, and "
            f"its image of {width} x {height}"
        )
    return decoded
