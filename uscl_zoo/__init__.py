"""Backbones pretrained on ultrasound video. Importing this registers them in timm.

Names are imported when they are first asked for, so that nobody waits for what they do not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register
from .release import release

if TYPE_CHECKING:
    from .card import Card
    from .catalogue import list_models, model_info
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
    "explain": "gradcam",
    "finetune": "training.downstream.finetune",
    "list_models": "catalogue",
    "model_info": "catalogue",
    "outline": "segmentation.prediction",
    "predict": "prediction",
    "shortcut": "shortcuts",
}

register()


def _found(name: str) -> Any:
    if name == "__version__":
        return release()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
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
    return sorted({*globals(), *__all__, "__version__"})
