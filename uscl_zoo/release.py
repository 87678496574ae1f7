"""Which release this is."""

from __future__ import annotations


def release() -> str:
    """The version of the installed package; of a checkout that is not installed `0+checkout`."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("uscl-zoo")
    except PackageNotFoundError:  # as torch.hub makes it
        return "0+checkout"
