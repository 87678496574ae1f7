"""The page as Gradio has it: what is on it, and what happens."""

# Gradio reads the annotations of what it calls, which have to be more than text
import warnings
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio

from ..classifier.gradcam import explain
from ..embedding.neighbours import Collection
from ..errors import UsclError
from ..network import Network
from . import panels
from .examination import examine
from .sessions import Sessions

# Seconds after which what was uploaded goes in any case, and between two looks.
_LIFE, _EVERY = 3600, 300


def build(network: Network, collection: Collection | None, folder: Path) -> Any:
    """The page of a network, a `gradio.Blocks`.

    Args:
        network: who sees.
        collection: in which neighbours are looked for.
        folder: of uploads.
    """
    sessions = Sessions(folder)
    classes = list(network.classes) if network.answers is not None else []

    def look(file: str | None, request: gradio.Request) -> Iterator[tuple[Any, ...]]:
        sessions.keep(request.session_hash, file)
        nothing = ("",) * 5
        if file is None:
            yield *nothing, gradio.update(visible=False, value=None)
            return
        path = Path(file)
        # of another file nothing stays
        waiting = panels.wrapped('<p class="faint">Looking …</p>')
        yield waiting, *nothing[1:], gradio.update(visible=False, value=None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seen = examine(network, path, collection)
                shown = (
                    panels.answered(seen),
                    panels.frames(seen),
                    panels.beam(seen),
                    panels.neighbours(seen, collection),
                )
                # of several labels, and of a number, none is the one to explain
                best = seen.clip.best if seen.clip and seen.clip.best in classes else None
                choice = gradio.update(visible=bool(classes), value=best)
                waiting = panels.wrapped('<p class="faint">Looking for the evidence …</p>')
                yield *shown[:1], waiting, *shown[1:], choice
                evidence = panels.evidence(explain(network, path, best, progress=False))
                yield *shown[:1], evidence, *shown[1:], choice
        except (UsclError, OSError) as error:
            yield (
                panels.refused(str(error), path.parent),
                *nothing[1:],
                gradio.update(visible=False),
            )

    def explained(file: str | None, label: str | None) -> str:
        if file is None or label is None:
            return ""
        path = Path(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return panels.evidence(explain(network, path, label, progress=False))
        except (UsclError, OSError) as error:
            return panels.refused(str(error), path.parent)

    def leave(request: gradio.Request) -> None:
        sessions.end(request.session_hash)

    with gradio.Blocks(
        title=f"{network.name}: what it sees",
        analytics_enabled=False,
        delete_cache=(_EVERY, _LIFE),
    ) as page:
        gradio.HTML(panels.wrapped(_head(network)))
        with gradio.Row():
            with gradio.Column(scale=2):
                file = gradio.File(
                    label="An image, a clip or a DICOM file", type="filepath", elem_id="file"
                )
                choice = gradio.Radio(
                    classes, label="Evidence for", visible=False, elem_id="choice"
                )
            with gradio.Column(scale=3):
                answer = gradio.HTML(elem_id="answer")
        shown = [gradio.HTML(elem_id=name) for name in ("evidence", "frames", "beam", "near")]
        file.change(
            look, file, [answer, *shown, choice], api_visibility="private", show_progress="minimal"
        )
        choice.input(explained, [file, choice], shown[0], api_visibility="private")
        page.unload(leave)
    # one at a time: it has all cores already
    page.queue(default_concurrency_limit=1)
    return page


def looks() -> dict[str, Any]:
    """Theme and style; of fonts those of the system, as others would be fetched."""
    fonts = ["system-ui", "sans-serif"]
    theme = gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css_paths": Path(__file__).with_name("page.css")}


def _head(network: Network) -> str:
    kind = "A model of" if network.answers is not None else "The backbone"
    licence = f" Its weights are under {escape(network.licence)}." if network.licence else ""
    return (
        f"<h2>{escape(network.name)}</h2>"
        f'<p class="faint">{kind} uscl-zoo. Drop an image, a clip or a DICOM file: this is what it '
        "sees and says. Files stay on the machine that serves this page, and are deleted when the "
        f"tab is closed.{licence}</p>"
    )
