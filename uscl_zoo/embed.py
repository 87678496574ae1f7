"""Embeddings of images and videos: one vector a frame or a clip."""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from .errors import DataError, UnreadableError
from .registry import create_model
from .ultrasound.reading import find, sample
from .ultrasound.transforms import FrameTransform, create_transform

#: What `Embeddings.save` can write.
SUFFIXES = (".npz", ".csv")


@dataclass(frozen=True)
class Embeddings:
    """N embeddings of D numbers, and where each came from.

    Attributes:
        features: float32 (N, D), as the global pooling leaves them.
        sources: the file or folder of each, N.
        frames: int64 (N,), number of the frame among those sampled from its source, from 0; of a
            clip, that of its first.
        times: float64 (N,), seconds since the source's first frame, NaN where it does not say; of a
            clip, that of its first frame.
        counts: int64 (N,), frames averaged: 1 for a frame.
        skipped: sources that could not be read, and why.
    """

    features: NDArray[np.float32]
    sources: list[Path]
    frames: NDArray[np.int64]
    times: NDArray[np.float64]
    counts: NDArray[np.int64]
    skipped: list[tuple[Path, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: str | Path) -> Path:
        """Write one row a frame or clip, whole or not at all.

        `.npz` holds the attributes under their names, paths as text, and loads without pickle.
        `.csv` has the columns source, frame, time_s, frames_averaged and feature_0 …, with the
        digits that give back the same float32; an unknown time is left empty.

        Args:
            path: ends in `.npz` or `.csv`; its folder is made if need be.

        Returns:
            The path.

        Raises:
            DataError: if the suffix is another, or the file cannot be written.
        """
        path = check_suffix(path)
        with written_whole(path) as partial:
            (self._write_npz if path.suffix.lower() == ".npz" else self._write_csv)(partial)
        return path

    def _write_npz(self, path: Path) -> None:
        with path.open("wb") as stream:  # by name, numpy would add a suffix
            np.savez_compressed(
                stream,
                features=self.features,
                sources=np.array([str(source) for source in self.sources], dtype=np.str_),
                frames=self.frames,
                times=self.times,
                counts=self.counts,
                skipped=np.array(
                    [(str(source), reason) for source, reason in self.skipped], dtype=np.str_
                ).reshape(-1, 2),
            )

    def _write_csv(self, path: Path) -> None:
        width = self.features.shape[1]
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            names = (f"feature_{i}" for i in range(width))
            writer.writerow(["source", "frame", "time_s", "frames_averaged", *names])
            for source, frame, time, count, vector in zip(
                self.sources, self.frames, self.times, self.counts, self.features, strict=True
            ):
                seconds = "" if math.isnan(time) else f"{time:.6g}"
                numbers = (f"{value:.9g}" for value in vector)
                writer.writerow([source, frame, seconds, count, *numbers])


def embed(
    model: nn.Module | str,
    paths: str | Path | Iterable[str | Path],
    pool: Literal["frame", "clip"] = "frame",
    rate: float = 3.0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Embeddings:
    """Embed images, videos and folders of them.

    Batches run on across sources, so a thousand stills take no longer than a thousand frames.
    What cannot be read is skipped and named; a video that breaks off early gives the frames before
    that and a `DamageWarning`.

    Args:
        model: a checkpoint of the zoo by name, e.g. `resnet18_uscl.pocus`, or a timm network, with
            or without a classifier. Its input size and normalisation are its own.
        paths: files and folders, as for `ultrasound.reading.find`.
        pool: `frame` for one row a sampled frame, `clip` for the mean over those of a source.
        rate: frames a second to sample from videos.
        batch_size: frames at a time.
        device: to compute on. If None, a network stays where it is, and one named goes to a GPU
            where there is one. A network given is left on the device.
        progress: show a bar.

    Raises:
        DataError: if nothing can be read, or an argument is out of range.
        UnreadableError: if a path does not exist.
        UnknownModelError: if no model is of that name.
        MissingDependencyError: if there are videos or DICOM files whose library is not installed.
    """
    if pool not in ("frame", "clip"):
        raise DataError(f"pool should be 'frame' or 'clip', not {pool!r}")
    sources = find(paths)
    if not sources:
        raise DataError("there is nothing to embed: name a file or folder")
    network, transform = _prepare(model, device)
    origins: list[tuple[int, int, float]] = []
    skipped: list[tuple[Path, str]] = []

    def frames() -> Iterator[Image.Image]:
        for index, source in enumerate(tqdm(sources, unit="source", disable=not progress)):
            try:
                for number, (time, image) in enumerate(sample(source, rate)):
                    origins.append((index, number, time))
                    yield image
            except UnreadableError as error:
                skipped.append((source, str(error).removeprefix(f"{source}: ")))

    features = _run(network, transform, frames(), batch_size)
    if not origins:
        raise DataError(
            f"none of {len(sources)} sources can be read; {skipped[0][0]}: {skipped[0][1]}"
        )
    owner, numbers, times = (np.array(column) for column in zip(*origins, strict=True))
    counts = np.ones(len(owner), np.int64)
    if pool == "clip":
        # the frames of a source are neighbours
        _, first, counts = np.unique(owner, return_index=True, return_counts=True)
        sums = np.add.reduceat(features, first, axis=0, dtype=np.float64)
        features = (sums / counts[:, None]).astype(np.float32)
        owner, numbers, times = owner[first], numbers[first], times[first]
    return Embeddings(
        features=features,
        sources=[sources[index] for index in owner],
        frames=numbers.astype(np.int64),
        times=times.astype(np.float64),
        counts=counts.astype(np.int64),
        skipped=skipped,
    )


def embed_frames(
    model: nn.Module | str,
    frames: Iterable[Image.Image | NDArray[Any]],
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> NDArray[np.float32]:
    """Embed frames that are in memory, or that an iterator gives.

    Args:
        model: as for `embed`.
        frames: anything that `ultrasound.transforms.to_frame` takes, e.g. uint8 (N, H, W, 3).
        batch_size: as for `embed`.
        device: as for `embed`.

    Returns:
        float32 (N, D).

    Raises:
        DataError: if there are no frames, or one is not an image.
    """
    network, transform = _prepare(model, device)
    features = _run(network, transform, frames, batch_size)
    if not len(features):
        raise DataError("there are no frames to embed")
    return features


def _prepare(
    model: nn.Module | str, device: str | torch.device | None
) -> tuple[nn.Module, FrameTransform]:
    if isinstance(model, str):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = create_model(model, pretrained=True)
    if device is not None:
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"device {str(device)!r} cannot be used ({reason})") from error
    return model, create_transform(model)


@torch.inference_mode()
def _run(
    model: nn.Module,
    transform: FrameTransform,
    frames: Iterable[Image.Image | NDArray[Any]],
    batch_size: int,
) -> NDArray[np.float32]:
    if batch_size < 1:
        raise DataError(f"batch_size should be at least 1, not {batch_size}")
    tensors = (transform(frame) for frame in frames)
    parameter = next(model.parameters())
    chunks = []
    with _evaluating(model):
        while batch := list(islice(tensors, batch_size)):
            inputs = torch.stack(batch).to(parameter.device, parameter.dtype)
            chunks.append(_pooled(model, inputs).float().cpu().numpy())
    return np.concatenate(chunks) if chunks else np.empty((0, 0), np.float32)


def _pooled(model: Any, inputs: Tensor) -> Tensor:
    # past the classifier, if there is one
    if hasattr(model, "forward_head"):
        features = model.forward_head(model.forward_features(inputs), pre_logits=True)
    else:
        features = model(inputs)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise DataError(
            f"{type(model).__name__} does not give one vector a frame; "
            "create it without features_only and with its global pooling"
        )
    return features


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_suffix(path: str | Path) -> Path:
    """Make sure, before the work is done, that `Embeddings.save` can write to a path.

    Raises:
        DataError: naming the suffixes it can.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: the name should end in {' or '.join(SUFFIXES)}")
    return path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path, and rename it to `path` if all goes well.

    Raises:
        DataError: if the file cannot be written.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
