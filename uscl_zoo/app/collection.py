"""Images that were embedded before, to look for the like of another among them."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..embedding import embed_frames
from ..embeddings import check_suffix
from ..errors import DataError, UnreadableError, UsclError, reason
from ..files import open_file
from ..network import Network

#: Below this cosine to its own embedding a frame was embedded by another network, or otherwise.
SAME = 0.98

_PICTURE = (224, 224)


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
        return "/".join(Path(self.source).parts[-2:])


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

    def nearest(self, vector: NDArray[Any], network: Network, count: int = 6) -> list[Neighbour]:
        """The files whose nearest frame is nearest to an embedding, by cosine.

        Args:
            vector: (D,).
            network: at whose rate clips are sampled for their pictures.
            count: how many at most, each file once.
        """
        cosines = self.features @ _unit(vector.astype(np.float32)[None])[0]
        found: dict[str, int] = {}
        for row in np.argsort(-cosines, kind="stable"):
            found.setdefault(self.sources[row], int(row))
            if len(found) == count:
                break
        return [
            Neighbour(
                source,
                None if self.subjects is None else self.subjects[row],
                float(cosines[row]),
                self._picture(row, network),
            )
            for source, row in found.items()
        ]

    def _file(self, row: int) -> Path | None:
        """Where the file of a row is now: as it was named, or from the folder of the features."""
        source = Path(self.sources[row])
        places = (source, self.path.parent / source)
        return next((place for place in places if place.exists()), None)

    def _frame(self, row: int, network: Network) -> Image.Image | None:
        file, number = self._file(row), int(self.frames[row])
        if file is None:
            return None
        look = network.look()
        try:
            seen = look.at(file, on_damage=lambda message: None)
            return next((frame.image for frame in islice(seen, number, None)), None)
        except (UsclError, OSError):
            # damaged since, or of a kind whose library is not here: it is near all the same
            return None

    def _picture(self, row: int, network: Network) -> Image.Image | None:
        image = self._frame(row, network)
        if image is not None:
            image = image.convert("RGB")
            image.thumbnail(_PICTURE)
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
    path = check_suffix(path)
    try:
        found = _READERS[path.suffix.lower()](path)
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile, csv.Error) as error:
        if isinstance(error, UsclError):
            raise
        raise UnreadableError(
            f"{path}: holds no embeddings of `uscl embed` ({reason(error)})"
        ) from error
    width = int(network.module.num_features)  # type: ignore[arg-type]
    features = found.features
    if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
        raise UnreadableError(f"{path}: holds no embeddings of `uscl embed`")
    if features.shape[1] != width:
        raise DataError(
            f"{path}: has {features.shape[1]} numbers an image, and {network.name} makes {width}; "
            f"embed the collection with {network.name}"
        )
    known = Collection(
        path, _unit(features), found.sources, found.frames, found.counts, found.subjects
    )
    return Collection(**{**vars(known), "checked": _is_of(known, network)})


def _is_of(collection: Collection, network: Network) -> bool:
    """Whether the first single frame that is in reach has the embedding that it had."""
    for row in np.flatnonzero((collection.frames == 0) & (collection.counts == 1))[:50]:
        image = collection._frame(row, network)
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
    with open_file(path) as stream, np.load(stream, allow_pickle=False) as content:
        return Collection(
            path,
            content["features"].astype(np.float32),
            [str(name) for name in content["sources"]],
            content["frames"],
            content["counts"],
            [str(name) for name in content["subjects"]] if "subjects" in content else None,
        )


def _of_csv(path: Path) -> Collection:
    with path.open(newline="", encoding="utf-8") as stream:
        lines = csv.reader(stream)
        head = next(lines, [])
        first = head.index("feature_0")
        at = {name: head.index(name) for name in head[:first]}
        rows = list(lines)
    return Collection(
        path,
        np.array([row[first:] for row in rows], np.float32),
        [_plain(row[at["source"]]) for row in rows],
        np.array([row[at["frame"]] for row in rows], np.int64),
        np.array([row[at["frames_averaged"]] for row in rows], np.int64),
        [_plain(row[at["subject"]]) for row in rows] if "subject" in at else None,
    )


def _plain(cell: str) -> str:
    """A cell without the quote that keeps spreadsheets from calculating it."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in "=+-@" else cell


def _of_parquet(path: Path) -> Collection:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise UnreadableError(f"{path}: is no Parquet file ({reason(error)})") from error
    names = [name for name in table.column_names if name.startswith("feature_")]
    return Collection(
        path,
        np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32),
        table["source"].to_pylist(),
        table["frame"].to_numpy().astype(np.int64),
        table["frames_averaged"].to_numpy().astype(np.int64),
        table["subject"].to_pylist() if "subject" in table.column_names else None,
    )


_READERS = {".npz": _of_npz, ".csv": _of_csv, ".parquet": _of_parquet}
