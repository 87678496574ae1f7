"""The figures on the cards, measured again from the shipped files by the documented commands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from uscl_zoo.card import Card, packaged_cards
from uscl_zoo.cli import main
from uscl_zoo.training.downstream.probe import compare
from uscl_zoo.training.frames import FrameStore

DOCUMENT = Path(__file__).parents[3] / "docs" / "training.md"
#: The larger first: a ResNet-50 takes a core a quarter of an hour.
MEASURED = sorted(
    (
        card
        for card in packaged_cards().values()
        if any(metric.command.startswith("uscl probe") for metric in card.metrics)
    ),
    key=lambda card: -(card.weights.bytes or 0),
)


def documented(beginning: str) -> list[str]:
    """The words of the first command of the bundled weights that begins so."""
    section = DOCUMENT.read_text().split("## The bundled weights, again")[1]
    block = section.split("```sh\n")[1].split("```")[0]
    lines = block.replace("\\\n", " ").splitlines()
    return shlex.split(next(line for line in lines if line.startswith(beginning)))


@pytest.fixture(scope="module")
def pocus(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """The store of POCUS, prepared by the documented command."""
    folder = tmp_path_factory.mktemp("pocus") / "store"
    places = {"stores/pocus": str(folder)}
    words = [places.get(w, w.replace("shared/data", str(data))) for w in documented("uscl prepare")]
    main(words[1:])
    return FrameStore(folder)


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize("card", MEASURED, ids=lambda card: card.name)
def test_the_figures_of_a_card_are_what_its_command_prints(card: Card, pocus: FrameStore) -> None:
    # the held-out subjects are those the card says no frame was trained on
    held_out = {video.subject for video in pocus.select("heldout")}
    assert held_out == set(card.training.held_out_subjects)
    source = card.training.sources[0]
    assert source.videos == len(pocus.select("train"))
    # the card counts what was trained on; sampling has been refined by a millisecond since
    frames = sum(video.count for video in pocus.select("train"))
    assert frames == pytest.approx(source.frames, rel=0.002)

    measured = compare(card.name, pocus, progress=False).metrics("")
    on_card = {(metric.metric, metric.model): metric for metric in card.metrics}
    for metric in measured:
        told = on_card[metric.metric, metric.model]
        # another processor rounds otherwise, and a frame on the boundary may change sides
        assert metric.value == pytest.approx(told.value, abs=0.02)
        assert metric.interval is not None
        assert told.interval is not None
        assert metric.interval == pytest.approx(told.interval, abs=0.03)
        assert metric.dataset == told.dataset
