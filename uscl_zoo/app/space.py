"""The page as a Space of the Hugging Face Hub: a folder to push there."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..files import check_folder, expanded, written_folder
from ..modelcard import hub_licence
from ..network import Network, load
from ..publish import copy_model
from ..records import write_text
from ..release import release
from ..zoo.card import Card
from ..zoo.places import BUNDLED
from ..zoo.weights_cache import places
from .page import gradio_version

_APP = '''"""What {name} sees and says: the page of `uscl app`."""

from pathlib import Path

from uscl_zoo.app.page import serve

# where it listens is said by the environment
serve({model}, host=None)
'''
_README = """---
title: {title}
sdk: gradio
sdk_version: {sdk}
app_file: app.py
{licence}---

What `{name}` sees in an image, a clip or a DICOM file, and what it says of it: the page of
`uscl app`, of uscl-zoo {release}. For research; not a medical device, and not for diagnosis or
treatment. What is uploaded is deleted when the tab is closed. Whoever puts this page where others
reach it answers for what they upload.
"""


def write_space(model: str | Path, folder: str | Path) -> Path:
    """Write the folder of a Space: `app.py`, `requirements.txt`, `README.md`, and the model.

    Of a model of `uscl finetune` what answers is copied, and nothing else: its report may show
    images, and its card names of subjects, that are nobody else's business.

    Args:
        model: a checkpoint whose weights come with the package, or a folder of `uscl finetune`.
        folder: absent, or empty.

    Returns:
        The folder.

    Raises:
        DataError: if the model would not be in reach there, or the folder holds something.
        MissingDependencyError: if Gradio is not installed.
        UsclError: as `network.load`.
    """
    sdk = gradio_version()
    folder = check_folder(expanded(folder))
    network = load(model, "cpu")
    card, own = network.card, network.folder if network.kind == "model" else None
    if card is not None and own is not None:
        reference = 'Path(__file__).parent / "model"'
    elif card is not None and network.kind == "zoo" and _is_bundled(card):
        reference = repr(card.name)
    else:
        raise DataError(
            f"{network.name}: would not be in reach of a Space; name a checkpoint whose weights "
            "come with the package, or a folder of `uscl finetune`"
        )
    with written_folder(folder) as partial:
        app = _APP.format(name=_title(network), model=reference)
        if own is None:
            app = app.replace("from pathlib import Path\n\n", "")
        write_text(partial / "app.py", app)
        write_text(partial / "requirements.txt", f"uscl-zoo[app]=={release()}\n")
        write_text(partial / "README.md", _readme(network, card, sdk))
        if own is not None:
            copy_model(own, partial / "model")
    return folder


def _is_bundled(card: Card) -> bool:
    return any(place.source == BUNDLED and place.present for place in places(card))


def _readme(network: Network, card: Card, sdk: str) -> str:
    # the Hub knows some names only, and takes `other` for the rest
    licence = f"license: {hub_licence(card.licence)}\n" if card.licence else ""
    title = _title(network)
    return _README.format(title=title, sdk=sdk, licence=licence, name=title, release=release())


def _title(network: Network) -> str:
    """The name of a model, which may be that of any folder, as no code and no markup."""
    return "".join(char if char.isalnum() or char in "._- " else "-" for char in network.name)
