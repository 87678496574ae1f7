"""Public collections with outlines, as their authors publish them: folders, subjects, terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from uscl_zoo.errors import DataError, UnreadableError, one_line
from uscl_zoo.ultrasound import reading
from uscl_zoo.ultrasound.masks import is_mask

from ...downstream.datasets import load as load_labelled
from .masks import legend_of, survey
from .outlined import Item, Outlined

#: Images by name, whose each is, their masks, and what is to be said.
_Listed = tuple[dict[str, Path], dict[str, str], dict[str, list[Path]], list[str]]


#: Of the second mask of an image, and the third.
_NUMBER = re.compile(r"(?<=_mask)_\d+$")


@dataclass(frozen=True)
class _Known:
    read: Callable[[Path], _Listed]
    name: str
    url: str
    citation: str
    licence: str | None


def _busi(data: Path) -> _Listed:
    """`benign (1).png` with `benign (1)_mask.png`, and maybe `…_mask_1.png`, beside it.

    Near-duplicates are one subject, and what is in two classes is left out, as in `uscl evaluate`.
    """
    labelled = load_labelled("busi", data).collection
    folders = {source.parent for source in labelled.sources.values()}
    drawn = {
        folder: [path for path in reading.entries(folder) if is_mask(path)] for folder in folders
    }
    by_stem: dict[tuple[Path, str], list[Path]] = {}
    for folder, own in drawn.items():
        for path in own:
            stem = _NUMBER.sub("", path.stem.casefold())
            by_stem.setdefault((folder, stem), []).append(path)
    masks = {
        name: by_stem.get((source.parent, f"{source.stem}_mask".casefold()), [])
        for name, source in labelled.sources.items()
    }
    whose = {name: row.subject for name, row in labelled.annotations.items()}
    # masks are what this is about
    notes = [note for note in labelled.notes if not note.endswith("masks left out")]
    return labelled.sources, whose, masks, notes


def _bus_bra(data: Path) -> _Listed:
    """`Images/bus_0001-l.png`, `Masks/mask_0001-l.png`, and `Case` of `bus_data.csv`."""
    labelled = load_labelled("bus-bra", data).collection
    masks: dict[str, list[Path]] = {}
    for name, source in labelled.sources.items():
        folder = _child(source.parent.parent, "Masks", "bus-bra")
        mask = folder / f"{source.stem.replace('bus_', 'mask_', 1)}{source.suffix}"
        masks[name] = [mask] if mask.is_file() else []
    whose = {name: row.subject for name, row in labelled.annotations.items()}
    return labelled.sources, whose, masks, list(labelled.notes)


def _udiat(data: Path) -> _Listed:
    """`original/000001.png` and `GT/000001.png`; each image is of another woman."""
    inner = [data, *(path for path in data.iterdir() if path.is_dir())]
    home = next((path for path in inner if (path / "GT").is_dir()), data)
    images, drawn = _child(home, "original", "udiat"), _child(home, "GT", "udiat")
    sources = {path.name: path for path in reading.images_in(images)}
    own = {path.stem.casefold(): path for path in reading.images_in(drawn)}
    masks = {
        name: [own[path.stem.casefold()]] if path.stem.casefold() in own else []
        for name, path in sources.items()
    }
    return sources, {name: name for name in sources}, masks, []


def _child(folder: Path, name: str, layout: str) -> Path:
    for path in folder.iterdir():
        if path.is_dir() and path.name.casefold() == name.casefold():
            return path
    known = LAYOUTS[layout]
    raise DataError(f"{folder}: has no {name}; get {known.name} from {known.url}")


LAYOUTS: Mapping[str, _Known] = {
    "busi": _Known(
        _busi,
        "BUSI breast ultrasound",
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        "Al-Dhabyani et al., Data in Brief 28:104863, 2020, doi 10.1016/j.dib.2019.104863",
        None,
    ),
    "bus-bra": _Known(
        _bus_bra,
        "BUS-BRA breast ultrasound",
        "https://doi.org/10.5281/zenodo.8231412",
        "Gómez-Flores et al., Medical Physics 51(4):3110-3123, 2024, doi 10.1002/mp.16812",
        "CC BY 4.0",
    ),
    "udiat": _Known(
        _udiat,
        "UDIAT Dataset B breast ultrasound",
        "http://www2.docm.mmu.ac.uk/STAFF/M.Yap/dataset.php",
        "Yap et al., IEEE Journal of Biomedical and Health Informatics 22(4):1218-1226, 2018, "
        "doi 10.1109/JBHI.2017.2731873",
        None,
    ),
}


def load(layout: str, data: Path) -> Outlined:
    """Read a public collection of lesions.

    Args:
        layout: one of `LAYOUTS`.
        data: its folder.

    Raises:
        UnreadableError: if there is no such folder.
        DataError: if the layout is unknown, or something is missing: what, and where to get it.
    """
    if layout not in LAYOUTS:
        raise DataError(f"`layout` should be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if not data.is_dir():
        raise UnreadableError(f"{data}: no such folder; get it from {LAYOUTS[layout].url}")
    known = LAYOUTS[layout]
    sources, whose, masks, notes = known.read(data)
    bare = [name for name in sources if not masks[name]]
    if bare:
        notes.append(f"{len(bare)} images without a mask left out, the first: {one_line(bare[0])}")
    kept = [name for name in sources if masks[name]]
    if not kept:
        raise DataError(f"{data}: has no masks; get {known.name} from {known.url}")
    legend, said = legend_of(survey(masks[name] for name in kept), ["lesion"])
    return Outlined(
        items=tuple(Item(n, sources[n], whose[n], tuple(masks[n])) for n in kept),
        classes=legend.classes,
        legend=legend,
        subjects=True,
        notes=(*notes, *said),
        name=known.name,
        url=known.url,
        citation=known.citation,
        licence=known.licence,
    )
