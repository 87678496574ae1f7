from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import make_card

from uscl_zoo.zoo import licences
from uscl_zoo.zoo.card import Card, Metric, Source
from uscl_zoo.zoo.catalogue import packaged_cards
from uscl_zoo.zoo.descriptions import describe, seen, standing, table


def test_a_card_as_people_read_it() -> None:
    source = Source("Lungs", None, None, 3, 30, 2, {"Cov": 3}, {"CC BY 4.0": 3})
    metric = Metric(
        "Lungs", "probe", "frame", "accuracy", 0.51, (0.4, 0.6), "95 %", None, "uscl x", None
    )
    card = make_card(metrics=(metric,))
    card = replace(
        card,
        limits=("Not for diagnosis.",),
        training=replace(card.training, sources=(source,), held_out_subjects=("a", "b")),
        weights=replace(card.weights, sha256="a" * 64, bytes=2_500_000),
    )
    told = describe(card)
    for fact in (
        "resnet18_uscl.trial",
        "3 videos, 30 frames, 2 subjects",
        "CC BY 4.0 3",
        "held out           2 subjects",
        "0.510 [0.400, 0.600]",
        "uscl x",
        "2.5 MB",
        "a" * 64,
        "Not for diagnosis.",
    ):
        assert fact in told


@pytest.mark.parametrize("card", packaged_cards().values(), ids=lambda card: card.name)
def test_every_packaged_card_can_be_read_by_people(card: Card) -> None:
    told = describe(card)
    assert card.summary in told
    assert (card.licence or "not stated by the authors") in told


def test_what_it_has_seen() -> None:
    card = make_card()
    assert seen(card) == "nothing is known of it"
    clips = Source("Lungs", None, None, 1200, 30000, 2, {}, {}, ("lung",))
    stills = Source("BUS-BRA", None, None, 1875, 1875, None, {}, {}, ("breast",))
    photographs = Source("ImageNet-1k", None, None, None, None, None, {}, {})
    card = replace(card, training=replace(card.training, sources=(clips, stills, photographs)))
    assert seen(card) == (
        "Lungs (lung; 1,200 videos, 30,000 frames, 2 subjects), "
        "BUS-BRA (breast; 1,875 images), ImageNet-1k"
    )
    assert "| Lungs: 1,200 videos; BUS-BRA: 1,875 images; ImageNet-1k |" in table([card])


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.01, 0.03), "ahead of in18: +0.020 [+0.010, +0.030] AUROC, by subject; BUSI"),
        ((-0.01, 0.03), "level with in18: +0.020 [-0.010, +0.030]"),
        ((0.0, 0.03), "level with in18"),
        ((-0.03, -0.01), "behind in18"),
        (None, "beside in18: +0.020 AUROC"),
    ],
)
def test_where_it_stands(interval: tuple[float, float] | None, expected: str) -> None:
    metric = Metric(
        "BUSI",
        "neighbours, 20 of them; frozen",
        "subject",
        "AUROC",
        0.02,
        interval,
        "95 %",
        "in18",
        "uscl x",
        None,
    )
    alone = replace(metric, compared_with=None)
    card = make_card(metrics=(metric, alone))
    first, last = standing(card)
    assert first.startswith(expected)
    assert first.endswith("; neighbours, 20 of them; frozen")
    assert last == "beside ImageNet: no figure on this card"
    # of how it was measured the first clause
    assert standing(card, brief=True)[0] == first.removesuffix(", 20 of them; frozen")
    assert first in describe(card)
    named = replace(metric, compared_with="ImageNet (resnet18_imagenet.mit)")
    assert len(standing(replace(card, metrics=(named, alone)))) == 1


@pytest.mark.parametrize("card", packaged_cards().values(), ids=lambda card: card.name)
def test_every_packaged_card_says_who_may_use_it(card: Card) -> None:
    told = describe(card)
    assert f"in a product       {licences.in_a_product(card.licence)}" in told
    assert f"has seen           {seen(card)}" in told
