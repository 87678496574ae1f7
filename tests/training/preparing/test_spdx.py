from __future__ import annotations

import pytest

from uscl_zoo.errors import DataError
from uscl_zoo.training.preparing.spdx import allows, canonical


@pytest.mark.parametrize(
    ("given", "spelt"),
    [
        ("cc-by-4.0", "CC-BY-4.0"),
        ("mit and CC0-1.0", "MIT AND CC0-1.0"),
        ("MIT OR (Apache-2.0 AND CC-BY-4.0)", "MIT OR (Apache-2.0 AND CC-BY-4.0)"),
        ("LicenseRef-ours", "LicenseRef-ours"),
    ],
)
def test_one_spelling(given: str, spelt: str) -> None:
    assert canonical(given) == spelt


@pytest.mark.parametrize("wrong", ["CC BY 4.0", "CC-BY-9.0", "", "MIT AND", "(MIT", "free to use"])
def test_what_is_no_expression(wrong: str) -> None:
    with pytest.raises(DataError, match="is no SPDX expression"):
        canonical(wrong)


@pytest.mark.parametrize(
    ("expression", "is_allowed"),
    [
        ("MIT", True),
        ("CC-BY-NC-4.0", False),
        ("CC0-1.0 AND CC-BY-4.0", True),
        ("CC0-1.0 AND CC-BY-NC-4.0", False),
        ("CC-BY-NC-4.0 OR MIT", True),
        ("CC-BY-4.0 AND (MIT OR CC-BY-NC-4.0)", True),
        ("CC-BY-4.0 AND (CC-BY-SA-4.0 OR CC-BY-NC-4.0)", False),
        ("CC-BY-NC-4.0 OR (MIT AND CC-BY-SA-4.0)", False),
        # an exception is another licence
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
    ],
)
def test_a_list_is_enough_for_an_expression(expression: str, is_allowed: bool) -> None:
    allowed = ["mit", "CC-BY-4.0", "CC0-1.0", "GPL-2.0-only"]
    assert allows(allowed, expression) is is_allowed


def test_a_misspelt_licence_on_the_list() -> None:
    with pytest.raises(DataError, match="'CC-BY' is no SPDX"):
        allows(["CC-BY"], "MIT")
