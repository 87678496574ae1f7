from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from uscl_zoo.records import write_yaml
from uscl_zoo.training.evaluation import probe
from uscl_zoo.training.learning.frames import FrameStore
from uscl_zoo.zoo.card import Card, Input


@pytest.fixture
def small_card(installed: Callable[..., Card], home: Path) -> Card:
    """Random weights that take frames of 32x32."""
    card = installed()
    small = replace(card, input=Input((3, 32, 32), card.input.mean, card.input.std))
    write_yaml(home / ".uscl_zoo" / f"{card.name}.yaml", small)
    return small


def test_a_comparison(small_card: Card, small_store: FrameStore) -> None:
    settings = SimpleNamespace(random_seeds=2, resamples=200, seed=3)
    report = probe.compare(small_card.name, small_store, progress=False, **vars(settings))
    for score in (report.pretrained, report.random, report.difference):
        assert score.low <= score.value <= score.high
    assert report.difference.value == pytest.approx(
        report.pretrained.value - report.random.value, abs=1e-9
    )
    told = str(report)
    assert "3 held-out subjects" in told
    assert "random, mean of 2 seeds" in told
    again = probe.compare(small_card.name, small_store, progress=False, **vars(settings))
    assert str(again) == told
    metrics = report.metrics("uscl probe x")
    assert [metric.value for metric in metrics] == [
        round(s.value, 3) for s in (report.pretrained, report.random, report.difference)
    ]
    assert {metric.command for metric in metrics} == {"uscl probe x"}
    assert {metric.unit for metric in metrics} == {"frame"}
