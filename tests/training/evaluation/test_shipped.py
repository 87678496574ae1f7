"""The figures on the cards, measured again from the shipped files by the documented commands."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import FULL

from uscl_zoo.cli import main
from uscl_zoo.inference import infer
from uscl_zoo.records import write_yaml
from uscl_zoo.training.downstream import regression
from uscl_zoo.training.downstream.bootstrap import Bootstrap, Task, make_task
from uscl_zoo.training.evaluation import evaluate, pictures
from uscl_zoo.training.evaluation.probe import balanced_accuracies
from uscl_zoo.training.learning.execution import precision_on
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo import weights_cache
from uscl_zoo.zoo.card import Card, Metric, read_card
from uscl_zoo.zoo.catalogue import model_info, packaged_cards
from uscl_zoo.zoo.registry import create_model

DOCUMENT = Path(__file__).parents[3] / "docs" / "training.md"
#: Weights that left the package, and are here to be measured.
KEPT = Path(__file__).parents[2] / "weights"
#: Those whose weights are at hand; the larger first, which takes a core minutes.
SHIPPED = sorted(
    (
        card
        for card in packaged_cards().values()
        if card.metrics
        and any((place / card.weights.file).is_file() for place in (weights_cache._BUNDLED, KEPT))
    ),
    key=lambda card: -(card.weights.bytes or 0),
)
PROBED = [card for card in SHIPPED if card.metrics[0].command.startswith("uscl probe")]
EVALUATED = [card for card in SHIPPED if card.metrics[0].command.startswith("uscl evaluate")]


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


@pytest.mark.parametrize("model", ["resnet18_uscl", "resnet50_uscl"])
def test_the_default_of_a_model_is_measured_beside_imagenet(model: str) -> None:
    card = model_info(model)
    assert card in EVALUATED
    assert card.name == f"{model}.open"
    assert {metric.compared_with for metric in card.metrics} == {None, "resnet18_imagenet.mit"}
    assert any("BUSI took part" in limit for limit in card.limits)


def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed in bf16 where a processor has instructions for it, which take half the minutes.

    The figures have to be the same.
    """
    precision = precision_on(torch.device("cpu"), "auto")
    monkeypatch.setattr(regression, "infer", partial(infer, precision=precision))


def thinned(task: Task, step: int) -> Task:
    """A task of every so manieth frame."""
    places = [field.name for field in fields(task) if field.name not in ("classes", "subjects")]
    return replace(task, **{place: getattr(task, place)[::step] for place in places})


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize("card", PROBED, ids=lambda card: card.name)
def test_a_probe_is_worth_what_the_card_says(
    card: Card, pocus: FrameStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicker(monkeypatch)
    if (KEPT / card.weights.file).is_file():
        (home / ".uscl_zoo").mkdir()
        shutil.copy(KEPT / card.weights.file, home / ".uscl_zoo")
    # the held-out subjects are those the card says no frame was trained on
    held_out = {video.subject for video in pocus.select("heldout")}
    assert held_out == set(card.training.held_out_subjects)
    source = card.training.sources[0]
    assert source.videos == len(pocus.select("train"))
    # the card counts what was trained on; sampling has been refined by a millisecond since
    frames = sum(video.count for video in pocus.select("train"))
    assert frames == pytest.approx(source.frames, rel=0.002)

    # the random networks beside it are no weights of ours, and three times as long; and as these
    # weights are no longer shipped, every third frame tells whether they are the card's
    task = make_task(pocus) if FULL else thinned(make_task(pocus), 3)
    bootstrap = Bootstrap.draw(task)
    network = create_model(card.name, pretrained=True)
    measured = bootstrap.score(balanced_accuracies([network], pocus, bootstrap, progress=False))
    (told,) = (m for m in card.metrics if m.model is None and m.compared_with is None)
    # another processor rounds otherwise, and a frame on the boundary may change sides
    assert measured.value == pytest.approx(told.value, abs=0.02)
    if FULL:
        assert (measured.low, measured.high) == pytest.approx(told.interval, abs=0.03)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What calls of `uscl evaluate` keep: frames, and features by weights, ImageNet's for all."""
    return tmp_path_factory.mktemp("kept") / "work"


@pytest.mark.first
@pytest.mark.slow
@pytest.mark.parametrize("card", EVALUATED, ids=lambda card: card.name)
def test_the_figures_of_a_card_are_what_its_command_prints(
    card: Card, data: Path, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicker(monkeypatch)
    # looked at in test_evaluate; of three thousand frames t-SNE and heat maps take a core a minute
    monkeypatch.setattr(pictures, "of", lambda evaluation: [])
    monkeypatch.setattr(evaluate, "_all_cases", lambda *given: {})
    (command,) = {metric.command for metric in card.metrics}
    words = [word.replace("shared/data", str(data)) for word in shlex.split(command)[1:]]
    report = tmp_path / "report"
    words[words.index("-o") + 1] = str(report)
    if kept.exists():
        report.mkdir()
        kept.rename(report / "work")
    # of the command's shares, the one that the goals are set by
    words[words.index("--shares") + 1] = "10,100"
    description = tmp_path / f"{card.name}.yaml"
    write_yaml(description, replace(card, metrics=()))
    main([*words, "--card", str(description)])
    (report / "work").rename(kept)

    def by_kind(of: Card) -> dict[tuple[str | None, ...], Metric]:
        return {(m.dataset, m.protocol, m.unit, m.model, m.compared_with): m for m in of.metrics}

    told, measured = by_kind(card), by_kind(read_card(description))
    assert len(measured) == 7 and measured.keys() <= told.keys()
    for kind, metric in measured.items():
        assert metric.value == pytest.approx(told[kind].value, abs=0.01)
        assert metric.interval == pytest.approx(told[kind].interval, abs=0.015)
