"""Labelled ultrasound for training loops of one's own: datasets whose splits share no subject.

As those of the package, its name is imported when it is first asked for: who only divides subjects
need not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .images import Images

__all__ = ["Images"]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "Images":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .images import Images

        globals()[name] = Images
        return Images


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
