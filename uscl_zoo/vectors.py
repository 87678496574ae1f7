"""A backbone as a function from images to vectors, and as a step of a scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError
from .files import expanded
from .inference import batched, infer
from .network import Network, load

try:  # what scikit-learn asks of its own, where it is installed
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError:  # it is no core dependency, and vectors need none of it

    class BaseEstimator:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""

    class TransformerMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""


class Embedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """From images, clips and files to embeddings.

    One image, file or clip gives a vector, several give a matrix with a row each:

        embed = uscl_zoo.Embedder("resnet18_uscl")
        embed("still.png").shape            # (512,)
        embed(["still.png", "clip.mp4"]).shape  # (2, 512)

    An image is a path, a Pillow image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a
    tensor (H, W), (1, H, W) or (3, H, W); of bool, uint8, uint16 or floats in 0-1. Several are a
    list of these, an array (N, H, W, C), grey ones (N, H, W), or a tensor (N, C, H, W). The vector
    of a clip, a path to a video, a DICOM file or a folder of frames, is the mean over its frames.

    It is a transformer of scikit-learn: `make_pipeline(Embedder(), LogisticRegression())` fits,
    clones, pickles and cross-validates.

    Args:
        model: whatever `uscl_zoo.network.load` takes: a name, a model folder, a network.
        rate: frames a second of videos; None for those of the model.
        clean: whether frames are cut to the beam and cleaned; None for as the model was made.
        batch_size: frames at a time.
        device: to compute on; None for CUDA where there is one.
    """

    def __init__(
        self,
        model: Any = "resnet18_uscl",
        *,
        rate: float | None = None,
        clean: bool | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> None:
        self.model, self.rate, self.clean = model, rate, clean
        self.batch_size, self.device = batch_size, device

    @property
    def network(self) -> Network:
        """The network, loaded and verified when it is first needed.

        Raises:
            UnknownModelError: if no model is of that name.
            UsclError: if it cannot be loaded or verified.
        """
        known = (self.model, self.device)
        if getattr(self, "_known", None) != known:
            self._loaded, self._known = load(self.model, self.device), known
        return self._loaded

    def __call__(self, images: Any) -> NDArray[np.float32]:
        """Embed one image, file or clip, or several.

        Args:
            images: see the class.

        Returns:
            float32 (D,) of one, (N, D) of several.

        Raises:
            DataError: if there is none, or one is no image.
            UnreadableError: if a file cannot be read.
        """
        several = _several(images)
        if several is None:
            (one,) = self.transform([images])
            return np.asarray(one)
        return self.transform(several)

    def fit(self, X: Any, y: Any = None) -> Embedder:
        """Do nothing: the backbone is trained.

        Args:
            X: ignored.
            y: ignored.
        """
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Embed several images, files or clips.

        Args:
            X: a list, an array, a tensor, or a column of a table.

        Returns:
            float32 (N, D).

        Raises:
            DataError: if there is none, or one is no image.
            UnreadableError: if a file cannot be read.
        """
        items = _several(X)
        if items is None:
            raise DataError(f"several images are wanted, a list for instance, not {_named(X)}")
        network, counts = self.network, []

        def frames() -> Iterator[NDArray[np.uint8]]:
            for item in items:
                count = 0
                for frame in self._frames(item):
                    yield network.transform.resize(frame)
                    count += 1
                if not count:
                    raise DataError(f"{_named(item)}: has no frames")
                counts.append(count)

        batches = batched(frames(), self.batch_size)
        rows = list(infer(network.module, network.transform.normalise, batches))
        if not rows:
            raise DataError("there are no images to embed")
        ends = np.cumsum(counts)[:-1]
        parts = np.split(np.concatenate(rows), ends)
        return np.stack([part.mean(axis=0) for part in parts])

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns, for `set_output(transform="pandas")`.

        Args:
            input_features: ignored.
        """
        width = int(self.network.module.num_features)  # type: ignore[arg-type]
        return np.array([f"e{number}" for number in range(width)], dtype=object)

    def _frames(self, item: Any) -> Iterable[Any]:
        if isinstance(item, (str, Path)):
            look = self.network.look(self.rate, self.clean)
            return (frame.image for frame in look.at(expanded(item)))
        return [_image(item)]

    def __getstate__(self) -> dict[str, Any]:
        # what is pickled is what it was made with; the network is loaded, and verified, again
        return {key: value for key, value in vars(self).items() if key not in ("_loaded", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __repr__(self, **_: Any) -> str:
        return f"Embedder({self.model!r})"


def _several(images: Any) -> Sequence[Any] | None:
    """The images one by one; None of one."""
    if isinstance(images, (str, Path, Image.Image)):
        return None
    if isinstance(images, torch.Tensor):
        return images if images.ndim > 3 else None  # type: ignore[return-value]
    if hasattr(images, "to_numpy"):  # a column of pandas or Polars
        images = images.to_numpy()
    if isinstance(images, np.ndarray):
        if images.dtype.kind in "OU":
            return list(images.reshape(-1))
        grey = images.ndim == 3 and images.shape[2] not in (1, 3, 4)
        return images if images.ndim > 3 or grey else None  # type: ignore[return-value]
    if isinstance(images, Iterable):
        return list(images)
    raise DataError(
        f"an image is a path, a Pillow image, an array or a tensor, not {_named(images)}"
    )


def _image(item: Any) -> Any:
    if isinstance(item, torch.Tensor):
        array = (
            item.detach().cpu().float().numpy() if item.is_floating_point() else item.cpu().numpy()
        )
        return array if array.ndim == 2 else np.moveaxis(array, 0, -1)
    if isinstance(item, (Image.Image, np.ndarray)):
        return item
    raise DataError(f"an image is a path, a Pillow image, an array or a tensor, not {_named(item)}")


def _named(item: Any) -> str:
    if isinstance(item, (str, Path)):
        return str(item)
    shape = getattr(item, "shape", None)
    return type(item).__name__ if shape is None else f"{type(item).__name__} {tuple(shape)}"
