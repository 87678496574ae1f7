"""Backbones pretrained on ultrasound video. Importing this registers them in timm.

Names are imported when they are first asked for, so that nobody waits for what they do not use.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register
from .release import release

if TYPE_CHECKING:
    from . import data as data
    from .card import Card
    from .catalogue import list_models, model_info
    from .embedding import embed
    from .errors import UsclError
    from .gradcam import explain
    from .prediction import predict
    from .registry import create_model
    from .segmentation.prediction import outline
    from .shortcuts import shortcut
    from .training.downstream.finetune import finetune
    from .ultrasound.transforms import create_transform
    from .vectors import Embedder

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
    "Card": "card",
    "Embedder": "vectors",
    "UsclError": "errors",
    "create_model": "registry",
    "create_transform": "ultrasound.transforms",
    "embed": "embedding",
    "explain": "gradcam",
    "finetune": "training.downstream.finetune",
    "list_models": "catalogue",
    "model_info": "catalogue",
    "outline": "segmentation.prediction",
    "predict": "prediction",
    "shortcut": "shortcuts",
}

#: Parts of the package that are asked for by name, as `uscl_zoo.data.Images`.
_PARTS = ("data",)
#: What is somewhere else than people look for it.
_ELSEWHERE = {
    "Images": "data.Images",
    "embed_to": "embedding.embed_to",
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
