"""Images that were embedded before: the nearest of them to another, and where they lie."""

from __future__ import annotations

import csv
import dataclasses
import io
import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.inputs import Inputs, find
from ..drawing import FAINT, Page, fitted, stamp
from ..errors import DataError, UnreadableError, UsclError, one_line, reason
from ..files import check_output, expanded, open_file, written
from ..names import plain
from ..network import Network, Reference, load
from ..ultrasound.sources import Look
from .embeddings import check_suffix
from .extraction import embed, embed_frames

#: Below this cosine to its own embedding a frame was embedded by another network, or otherwise.
SAME = 0.98

# Bytes of numbers that a byte of a file may stand for: of a clip that stands still, a hundred.
_BYTES_A_BYTE = 250


@dataclass(frozen=True)
class Neighbour:
    """An image of a collection, and how near it is.

    Attributes:
        source: its file, as it was named when it was embedded.
        subject: whose; None where nobody said.
        cosine: of the embeddings, -1 to 1.
        picture: small, RGB; None where the file is not in reach any more.
    """

    source: str
    subject: str | None
    cosine: float
    picture: Image.Image | None

    @property
    def name(self) -> str:
        """The file, and the folder that it is in, which is often its class."""
        return path_name(Path(self.source))

    def plain(self) -> dict[str, Any]:
        """What JSON holds."""
        return {"source": self.source, "subject": self.subject, "cosine": round(self.cosine, 6)}


@dataclass(frozen=True)
class Collection:
    """N embeddings that `uscl embed` wrote.

    Attributes:
        path: of the file.
        features: float32 (N, D), each of length 1.
        sources: the file of each.
        frames: int64 (N,), number of the frame, or of the first that was averaged.
        counts: int64 (N,), frames averaged.
        subjects: whose each is; None where nobody said.
        checked: whether one of its files was embedded again, and came out the same.
    """

    path: Path
    features: NDArray[np.float32]
    sources: Sequence[str]
    frames: NDArray[np.int64]
    counts: NDArray[np.int64]
    subjects: Sequence[str] | None = None
    checked: bool = False

    def __len__(self) -> int:
        return len(self.features)

    def nearest(
        self,
        vector: NDArray[Any],
        network: Network,
        count: int = 6,
        *,
        without: Path | None = None,
        pictures: bool = True,
    ) -> list[Neighbour]:
        """The files whose nearest frame is nearest to an embedding, by cosine.

        Args:
            vector: (D,).
            network: at whose rate clips are sampled for their pictures.
            count: how many at most, each file once.
            without: a file to leave out: the one that the embedding is of.
            pictures: whether they are wanted.
        """
        cosines = self.features @ _unit(vector.astype(np.float32)[None])[0]
        own = without.resolve() if without is not None else None
        nearest: dict[str, int] = {}
        for row in np.argsort(-cosines, kind="stable"):
            source = self.sources[row]
            if own is not None and source not in nearest:
                file = self.file(int(row))
                if file is not None and file.resolve() == own:
                    continue
            nearest.setdefault(source, int(row))
            if len(nearest) == count:
                break
        return [
            Neighbour(
                source,
                None if self.subjects is None else self.subjects[row],
                float(cosines[row]),
                self.picture(row, network.look()) if pictures else None,
            )
            for source, row in nearest.items()
        ]

    def file(self, row: int) -> Path | None:
        """Where the file of a row is now: as it was named, or from the folder of the features."""
        source = Path(self.sources[row])
        places = (source, self.path.parent / source)
        return next((place for place in places if place.exists()), None)

    def frame(self, row: int, look: Look) -> Image.Image | None:
        """The frame of a row, the first of those averaged; None where it is not in reach."""
        file, number = self.file(row), int(self.frames[row])
        if file is None:
            return None
        try:
            with closing(look.at(file, on_damage=lambda message: None)) as seen:
                return next((frame.image for frame in islice(seen, number, None)), None)
        except (UsclError, OSError):
            # damaged since, or of a kind whose library is not here: it is near all the same
            return None

    def picture(self, row: int, look: Look, longest: int = 224) -> Image.Image | None:
        """The frame of a row, reduced to so many pixels; None where it is not in reach."""
        image = self.frame(row, look)
        if image is not None:
            image = image.convert("RGB")
            image.thumbnail((longest, longest))
        return image


def read_collection(path: str | Path, network: Network) -> Collection:
    """Read what `uscl embed` wrote, and make sure that it is of this network.

    One of its files that is still in reach is embedded again: nothing in the numbers would tell
    that they are another network's, and its neighbours would be anybody.

    Args:
        path: `.npz`, `.csv` or `.parquet`.
        network: whose embeddings will be compared with these.

    Raises:
        UnreadableError: if it cannot be read.
        DataError: if it holds no embeddings, or those of another network.
        MissingDependencyError: for Parquet without pyarrow.
    """
    known = read_embeddings(path)
    width = int(network.module.num_features)  # type: ignore[arg-type]
    if known.features.shape[1] != width:
        raise DataError(
            f"{known.path}: has {known.features.shape[1]} numbers an image, and {network.name} "
            f"makes {width}; embed the collection with {network.name}"
        )
    return dataclasses.replace(known, checked=_is_of(known, network))


def read_embeddings(path: str | Path) -> Collection:
    """Read what `uscl embed` wrote, whichever network it is of.

    Args:
        path: `.npz`, `.csv` or `.parquet`.

    Raises:
        UnreadableError: if it cannot be read, or holds no embeddings.
        MissingDependencyError: for Parquet without pyarrow.
    """
    path = check_suffix(path)
    try:
        embedded = _READERS[path.suffix.lower()](path)
    except (
        *(OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, csv.Error),
        MemoryError,  # of what claims to be larger than it is
    ) as error:
        if isinstance(error, UsclError):
            raise
        raise UnreadableError(
            f"{path}: holds no embeddings of `uscl embed` ({reason(error)})"
        ) from error
    features, count = embedded.features, len(embedded.sources)
    columns = (features, embedded.frames, embedded.counts, embedded.subjects or embedded.sources)
    if features.ndim != 2 or not count or {len(column) for column in columns} != {count}:
        raise UnreadableError(f"{path}: holds no embeddings of `uscl embed`")
    if embedded.frames.min() < 0 or embedded.counts.min() < 1:
        raise UnreadableError(f"{path}: some of its frames have numbers that none can have")
    if not np.isfinite(features).all():
        raise UnreadableError(f"{path}: some of its embeddings are no numbers; embed again")
    return dataclasses.replace(embedded, features=_unit(features))


def _is_of(collection: Collection, network: Network) -> bool:
    """Whether the first single frame that is in reach has the embedding that it had."""
    for row in np.flatnonzero((collection.frames == 0) & (collection.counts == 1))[:50]:
        image = collection.frame(int(row), network.look())
        if image is None:
            continue
        again = _unit(embed_frames(network.module, [image]))[0]
        cosine = float(again @ collection.features[row])
        if cosine < SAME:
            raise DataError(
                f"{collection.path}: was not embedded by {network.name}, or not as it looks at "
                f"images ({collection.sources[row]} has a cosine of {cosine:.2f} to itself); embed "
                "the collection again"
            )
        return True
    return False


def _unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), np.float32)


def _of_npz(path: Path) -> Collection:
    with open_file(path) as stream:
        if stream.read(2) != b"PK":
            raise ValueError("not an archive of NumPy")
        with zipfile.ZipFile(stream) as archive:
            _check_size(path, sum(held.file_size for held in archive.infolist()))
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as content:
            features = content["features"]
            if features.dtype.kind not in "fiu":
                raise ValueError("its features are no numbers")
            return Collection(
                path,
                features.astype(np.float32),
                [str(name) for name in content["sources"]],
                content["frames"].astype(np.int64),
                content["counts"].astype(np.int64),
                [str(name) for name in content["subjects"]] if "subjects" in content else None,
            )


def _of_csv(path: Path) -> Collection:
    # spreadsheets mark UTF-8 at the beginning
    with open_file(path) as held, io.TextIOWrapper(held, "utf-8-sig", newline="") as stream:
        lines = csv.reader(stream)
        head = next(lines, [])
        first = head.index("feature_0")
        at = {name: head.index(name) for name in head[:first]}
        rows = []
        for row in lines:
            if len(row) != len(head):
                raise ValueError(f"line {lines.line_num} has {len(row)} cells, not {len(head)}")
            rows.append(row)
    return Collection(
        path,
        np.array([row[first:] for row in rows], np.float32),
        [plain(row[at["source"]]) for row in rows],
        np.array([row[at["frame"]] for row in rows], np.int64),
        np.array([row[at["frames_averaged"]] for row in rows], np.int64),
        [plain(row[at["subject"]]) for row in rows] if "subject" in at else None,
    )


def _of_parquet(path: Path) -> Collection:
    import pyarrow
    from pyarrow import parquet

    try:
        with open_file(path) as stream:
            held = parquet.ParquetFile(stream)
            _check_size(path, 4 * held.metadata.num_rows * held.metadata.num_columns)
            table = held.read()
        names = [name for name in table.column_names if name.startswith("feature_")]
        columns = [table[name].to_numpy() for name in names]
    except pyarrow.ArrowException as error:
        raise UnreadableError(f"{path}: is no Parquet file ({reason(error)})") from error
    return Collection(
        path,
        np.stack(columns, axis=1).astype(np.float32),
        [str(name) for name in table["source"].to_pylist()],
        table["frame"].to_numpy().astype(np.int64),
        table["frames_averaged"].to_numpy().astype(np.int64),
        table["subject"].to_pylist() if "subject" in table.column_names else None,
    )


def _check_size(path: Path, size: int) -> None:
    """Refuse what is small to send and long to read.

    Raises:
        ValueError: if so many bytes cannot be in that file.
    """
    if size > _BYTES_A_BYTE * path.stat().st_size + 2**26:
        raise ValueError("many more numbers than a file of its size should hold")


_READERS = {".npz": _of_npz, ".csv": _of_csv, ".parquet": _of_parquet}


@dataclass(frozen=True)
class Nearest:
    """What of a collection is nearest to an image or clip.

    Attributes:
        nearest: the nearest first.
        checked: as of `Collection`.
    """

    nearest: list[Neighbour]
    checked: bool


def neighbours(
    features: str | Path,
    image: Inputs,
    model: Reference = "resnet18_uscl",
    *,
    count: int = 10,
    output: str | Path | None = None,
    rate: float | None = None,
    clean: bool | None = None,
    device: str | torch.device | None = None,
) -> Nearest:
    """Find what of an embedded collection is nearest to an image or clip.

    Args:
        features: what `uscl embed` wrote: `.npz`, `.csv` or `.parquet`.
        image: one, as for `embed`; of a clip the mean over its frames is compared.
        model: that the features are of, see `network.load`.
        count: how many at most, each file once, and the image itself not.
        output: draw them there, ends in `.png`.
        rate: frames a second of a clip; None for those of the model.
        clean: see `embed`.
        device: see `embed`.

    Raises:
        DataError: if the features are of another model, or it is more than one image.
        UnreadableError: if a file cannot be read.
    """
    path = image if isinstance(image, (str, Path)) else None
    if output is not None:
        output = expanded(output)
        if output.suffix.lower() != ".png":
            raise DataError(f"{output}: the name should end in .png")
        own = [] if path is None else [path]
        check_output(output, [expanded(features), *own], begins=b"\x89PNG", picture=True)
    network = load(model, device)
    known = read_collection(features, network)
    embedded = embed(network, image, "clip", progress=False, rate=rate, clean=clean, device=device)
    if len(embedded) != 1:
        raise DataError(f"one image or clip is wanted, and these are {len(embedded)}")
    without = None if path is None else embedded.sources[0]
    (vector,) = embedded.features
    drawn = output is not None
    nearest = known.nearest(vector, network, count, without=without, pictures=drawn)
    if output is not None:
        seen = network.look(rate, clean).at(find(image).sources[0])
        with closing(seen):
            first = next(seen).image
        with written(output) as partial:
            drawing = _picture(first, path_name(embedded.sources[0]), nearest)
            drawing.save(partial, "PNG", **stamp("PNG"))
    return Nearest(nearest, known.checked)


def path_name(path: Path) -> str:
    """The file, and the folder that it is in."""
    return "/".join(path.parts[-2:])


def _picture(image: Image.Image, name: str, nearest: Sequence[Neighbour]) -> Image.Image:
    """The image, and the nearest to it in rows of five."""
    across, size, step, left, top = 5, 176, 204, 28, 48
    lines = -(-len(nearest) // across)
    page = Page(2 * left + across * size + (across - 1) * (step - size), top + 250 + lines * 232)
    page.text((left, 26), "nearest images, by the cosine of their embeddings", 20)

    def put(picture: Image.Image | None, x: float, y: float, words: str, less: str) -> None:
        box = (x, y, x + size, y + size)
        if picture is None:
            page.frame(box)
            page.text((x + size / 2, y + size / 2), "not in reach", 12, FAINT, "mm")
        else:
            page.image(fitted(box, picture.size), picture)
        page.text((x, y + size + 12), _short(words), 12)
        page.text((x, y + size + 28), _short(less), 12, FAINT)

    put(image, left, top, name, "the image that was given")
    for number, one in enumerate(nearest):
        x, y = left + number % across * step, top + 242 + number // across * 232
        whose = f", {one.subject}" if one.subject and one.subject not in one.name else ""
        put(one.picture, x, y, one.name, f"{one.cosine:.3f}{whose}")
    return page.finish()


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= 28 else f"{name[:12]}…{name[-15:]}"
