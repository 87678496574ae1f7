"""A backbone as a function from images to vectors, and as a step of a scikit-learn pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.inputs import described, one_by_one, several, source_of
from ..errors import DataError
from ..inference import batched, infer
from ..network import Network, load
from ..ultrasound.sources import path_of

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
    of a clip is the mean over its frames: of a path to a video, a DICOM file or a folder of frames,
    of a `Clip`, and, in a list, of an array (T, H, W, C) or a list of frames.

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
        items = one_by_one(images)
        if several(images) is None:
            (one,) = self.transform(items)
            return np.asarray(one)
        return self.transform(items)

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
        items = several(X)
        if items is None:
            raise DataError(f"several images are wanted, a list for instance, not {described(X)}")
        network, counts = self.network, []
        look = network.look(self.rate, self.clean)
        sources = [source_of(item, f"image {number}") for number, item in enumerate(items)]

        def frames() -> Iterator[NDArray[np.uint8]]:
            for source in sources:
                count = 0
                for frame in look.at(source):
                    yield network.transform.resize(frame.image)
                    count += 1
                if not count:
                    raise DataError(f"{path_of(source)}: has no frames")
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

    def __getstate__(self) -> dict[str, Any]:
        # what is pickled is what it was made with; the network is loaded, and verified, again
        return {key: value for key, value in vars(self).items() if key not in ("_loaded", "_known")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __repr__(self, **_: Any) -> str:
        return f"Embedder({self.model!r})"
