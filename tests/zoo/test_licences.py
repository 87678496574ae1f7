from __future__ import annotations

from itertools import product

import pytest

from uscl_zoo.zoo.licences import Terms, fault, in_a_product, loosest, spdx, terms, unknown

#: From loose to strict.
CHAIN = ["CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"]


@pytest.mark.parametrize(
    ("wording", "expected"),
    [
        ("CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"),
        ("CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0"),
        ("CC BY-NC -SA 3.0", "CC-BY-NC-SA-3.0"),
        ("cc by 2.0", "CC-BY-2.0"),
        (" CC-BY 2.5 ", "CC-BY-2.5"),
        ("CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0"),
        ("CC0 1.0", "CC0-1.0"),
        ("CC0", "CC0-1.0"),
        ("mit", "MIT"),
        ("MIT License", "MIT"),
        ("Apache 2.0", "Apache-2.0"),
        ("Apache License 2.0", "Apache-2.0"),
        ("BSD 3-Clause", "BSD-3-Clause"),
        ("CC0 1.0 and CC BY 4.0", "CC0-1.0 AND CC-BY-4.0"),
        ("CC BY 4.0 AND CC-BY-4.0", "CC-BY-4.0"),
        ("CC BY", None),
        ("CC BY-SA-NC 4.0", None),
        ("CC BY 4.0 OR MIT", None),
        ("CC BY 4.0 and something else", None),
        ("COVID-19 emergency license", None),
        ("MIT-like, cite (LICENSE.txt of the data set)", None),
        ("not stated", None),
        ("", None),
    ],
)
def test_wordings_are_read_as_spdx(wording: str, expected: str | None) -> None:
    assert spdx(wording) == expected
    assert (terms(wording) is None) == (expected is None)
    if expected:
        assert spdx(expected) == expected


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC0-1.0", Terms()),
        ("MIT", Terms(attribution=True)),
        ("Apache-2.0", Terms(attribution=True)),
        ("CC-BY-4.0", Terms(attribution=True)),
        ("CC-BY-SA-4.0", Terms(attribution=True, share_alike=True, version=4.0)),
        ("CC-BY-NC-2.0", Terms(attribution=True, non_commercial=True)),
        ("CC-BY-NC-SA-3.0", Terms(True, True, True, False, 3.0)),
        ("CC-BY-ND-4.0", Terms(attribution=True, no_derivatives=True)),
        ("CC0-1.0 AND CC-BY-NC-4.0", Terms(attribution=True, non_commercial=True)),
        ("CC-BY-SA-3.0 AND CC-BY-NC-4.0", Terms(True, True, True, False, 3.0)),
    ],
)
def test_what_a_licence_asks_for(licence: str, expected: Terms) -> None:
    assert terms(licence) == expected


@pytest.mark.parametrize(("source", "given"), [*product(CHAIN, CHAIN)])
def test_no_licence_is_looser_than_its_source(source: str, given: str) -> None:
    looser = CHAIN.index(given) < CHAIN.index(source)
    told = fault(given, [source])
    assert (told is not None) == looser
    if told:
        assert f"the loosest that may be given is {source}" in told


@pytest.mark.parametrize(
    ("given", "sources", "right"),
    [
        ("MIT", ["CC BY 4.0", "Apache-2.0", "CC0 1.0"], True),
        ("CC0-1.0", ["MIT"], False),
        # each forbids what the other allows: only both together will do
        ("CC-BY-SA-4.0", ["CC-BY-NC-4.0"], False),
        ("CC-BY-NC-4.0", ["CC-BY-SA-4.0"], False),
        ("CC-BY-NC-SA-4.0", ["CC-BY-SA-4.0", "CC-BY-NC-4.0"], True),
        ("CC-BY-NC-SA-3.0", ["CC-BY-NC-SA-4.0"], False),
        ("CC-BY-NC-SA-4.0", ["CC-BY-NC-SA-3.0"], True),
        ("CC-BY-NC-4.0", ["CC-BY-4.0 AND CC-BY-NC-4.0"], True),
        ("CC-BY-4.0", ["CC-BY-4.0 AND CC-BY-NC-4.0"], False),
        ("CC-BY-NC-ND-4.0", ["CC-BY-NC-ND-4.0"], False),
        ("CC-BY-4.0", [], True),
        ("CC-BY-4.0", ["COVID-19 emergency license"], True),
        ("ours alone", ["MIT"], False),
    ],
)
def test_several_sources_bind_together(given: str, sources: list[str], right: bool) -> None:
    assert (fault(given, sources) is None) == right


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([], "CC0-1.0"),
        (["CC0 1.0"], "CC0-1.0"),
        (["MIT", "CC BY 2.0"], "CC-BY-4.0"),
        (["CC BY-SA 3.0", "MIT"], "CC-BY-SA-4.0"),
        (["CC BY-NC 4.0"], "CC-BY-NC-4.0"),
        (["CC BY-NC 4.0", "CC BY-SA 4.0"], "CC-BY-NC-SA-4.0"),
        (["CC BY-ND 4.0", "MIT"], None),
        (["MIT", "not stated"], None),
        (["MIT", None], None),
    ],
)
def test_the_loosest_licence(sources: list[str | None], expected: str | None) -> None:
    assert loosest(sources) == expected
    if expected:
        assert fault(expected, sources) is None


def test_what_is_not_known_is_listed() -> None:
    assert unknown(["MIT", "COVID-19 emergency license", None, "CC BY 4.0"]) == [
        "COVID-19 emergency license",
        "not stated",
    ]


@pytest.mark.parametrize(
    ("licence", "answer"),
    [
        ("CC0-1.0", "yes, under CC0-1.0"),
        ("MIT", "yes, under MIT: name its authors"),
        ("CC-BY-SA-4.0", "yes, under CC-BY-SA-4.0: name its authors and its licence and give on"),
        ("CC-BY-NC-SA-4.0", "no: "),
        ("CC-BY-ND-4.0", "no: "),
        ("somebody's own", "ask a lawyer"),
        (None, "ask its authors"),
    ],
)
def test_may_it_go_into_a_product(licence: str | None, answer: str) -> None:
    assert in_a_product(licence).startswith(answer)
