"""Backbones pretrained on ultrasound video. Importing this registers them in timm.

Names are imported when they are first asked for, so that nobody waits for what they do not use.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .release import release
from .zoo.registration import register

if TYPE_CHECKING:
    from . import data as data
    from .classifier.gradcam import explain
    from .classifier.prediction import predict
    from .classifier.shortcuts import shortcut
    from .embedding.embedder import Embedder
    from .embedding.extraction import embed
    from .errors import UsclError
    from .segmentation.prediction import outline
    from .training.finetuning.finetune import finetune
    from .ultrasound.transforms import create_transform
    from .zoo.card import Card
    from .zoo.catalogue import list_models, model_info
    from .zoo.registry import create_model

    __version__: str

__all__ = [
    "Card",
    "Embedder",
    "UsclError",
    "create_model",
    "create_transform",
    "embed",
    "explain",
    "finetune",
    "list_models",
    "model_info",
    "outline",
    "predict",
    "shortcut",
]

#: Where the public names are. No module of this package may have one of these names: importing it
#: would put it in the function's place.
_HOMES = {
    "Card": "zoo.card",
    "Embedder": "embedding.embedder",
    "UsclError": "errors",
    "create_model": "zoo.registry",
    "create_transform": "ultrasound.transforms",
    "embed": "embedding.extraction",
    "explain": "classifier.gradcam",
    "finetune": "training.finetuning.finetune",
    "list_models": "zoo.catalogue",
    "model_info": "zoo.catalogue",
    "outline": "segmentation.prediction",
    "predict": "classifier.prediction",
    "shortcut": "classifier.shortcuts",
}

#: Parts of the package that are asked for by name, as `uscl_zoo.data.Images`.
_PARTS = ("data",)
#: What is somewhere else than people look for it.
_ELSEWHERE = {
    "Images": "data.Images",
    "embed_to": "embedding.extraction.embed_to",
    "load": "network.load",
    "read": "ultrasound.reading.read",
}

register()


def _found(name: str) -> Any:
    if name == "__version__":
        return release()
    if name in _PARTS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        hint = f"; it is {__name__}.{_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        # from the name and the module Python makes its `Did you mean`
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}{hint}",
            name=name,
            obj=sys.modules[__name__],
        )
    module = f"{__name__}.{_HOMES[name]}"
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if ".training." not in module:
            raise
        from .errors import MissingDependencyError

        missing = (error.name or "").partition(".")[0]
        raise MissingDependencyError(
            f"{name} needs {missing}: pip install 'uscl-zoo[training]'"
        ) from error


if not TYPE_CHECKING:  # to a type checker it would say that there is any name

    def __getattr__(name: str) -> Any:
        value = globals()[name] = _found(name)
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS, "__version__", "__doc__", "__file__"})
