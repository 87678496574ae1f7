"""What licences ask of whoever uses weights, and which licence weights may carry.

The licences of the data, of the weights a run began from and of its teachers bind those that came
of them: each may ask for attribution, share-alike or non-commercial use, and weights have to pass
on all that any of them asks. This is how the zoo reads them, and no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: SPDX identifiers that ask for no more than attribution, besides those of Creative Commons.
_PERMISSIVE = ("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC")
#: What else they are called, in small letters.
_ALIASES = {
    "cc0": "CC0-1.0",
    "apache-license-2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "mit-license": "MIT",
    "the-mit-license": "MIT",
    **{name.lower(): name for name in (*_PERMISSIVE, "CC0-1.0")},
}
_CREATIVE_COMMONS = re.compile(r"cc-by(-nc)?(-sa|-nd)?-([1-4]\.[05])", re.IGNORECASE)


@dataclass(frozen=True)
class Terms:
    """What a licence asks for.

    Attributes:
        attribution: its authors have to be named, or its text kept.
        non_commercial: no commercial use.
        share_alike: what is made of it has to carry the same licence.
        no_derivatives: nothing may be made of it.
        version: oldest version of a share-alike licence that may be given on.
    """

    attribution: bool = False
    non_commercial: bool = False
    share_alike: bool = False
    no_derivatives: bool = False
    version: float = 0.0

    def __or__(self, other: Terms) -> Terms:
        """What both together ask for."""
        return Terms(
            self.attribution or other.attribution,
            self.non_commercial or other.non_commercial,
            self.share_alike or other.share_alike,
            self.no_derivatives or other.no_derivatives,
            max(self.version, other.version),
        )

    def __le__(self, other: Terms) -> bool:
        """Whether the other asks for all that this asks for."""
        return self | other == other


def spdx(wording: str) -> str | None:
    """Read a wording as SPDX writes it: `CC BY-NC -SA 3.0` is `CC-BY-NC-SA-3.0`.

    Args:
        wording: of one licence, or of several that all hold, joined by AND.

    Returns:
        The identifier, or an expression with AND; None for a licence that is not known here.
    """
    parts = re.split(r"\s+and\s+", wording.strip(), flags=re.IGNORECASE)
    known = [_identifier(part) for part in parts]
    if None in known:
        return None
    return " AND ".join(dict.fromkeys(name for name in known if name))


def _identifier(wording: str) -> str | None:
    name = re.sub(r"[\s-]+", "-", wording.strip().strip("()"))
    if _CREATIVE_COMMONS.fullmatch(name):
        return name.upper()
    return _ALIASES.get(name.lower())


def terms(wording: str | None) -> Terms | None:
    """What a licence asks for; None where it is not known, or none is stated."""
    expression = spdx(wording) if wording else None
    if expression is None:
        return None
    asked = Terms()
    for name in expression.split(" AND "):
        asked |= _terms(name)
    return asked


def _terms(name: str) -> Terms:
    match = _CREATIVE_COMMONS.fullmatch(name)
    if match is None:
        return Terms(attribution=name != "CC0-1.0")
    non_commercial, last, version = match.groups()
    share_alike = last == "-SA"
    return Terms(
        attribution=True,
        non_commercial=non_commercial is not None,
        share_alike=share_alike,
        no_derivatives=last == "-ND",
        version=float(version) if share_alike else 0.0,
    )


def unknown(wordings: Iterable[str | None]) -> list[str]:
    """Those of some licences that are not known here, sorted; None is shown as `not stated`."""
    return sorted({wording or "not stated" for wording in wordings if terms(wording) is None})


def loosest(wordings: Iterable[str | None]) -> str | None:
    """The loosest Creative Commons licence for what was made under all of some licences.

    Returns:
        Its SPDX identifier; None if nothing may be made, or a licence is not known.
    """
    asked = Terms()
    for wording in wordings:
        one = terms(wording)
        if one is None:
            return None
        asked |= one
    if asked.no_derivatives:
        return None
    if not asked.attribution:
        return "CC0-1.0"
    return f"CC-BY{'-NC' * asked.non_commercial}{'-SA' * asked.share_alike}-4.0"


def fault(licence: str, wordings: Iterable[str | None]) -> str | None:
    """Say why a licence is too loose for what was made under others.

    Wordings that are not known here are left aside: `unknown` lists them.

    Args:
        licence: of what was made.
        wordings: of all that it was made of.

    Returns:
        The reason and what to do, in a sentence; None if nothing is wrong.
    """
    given = terms(licence)
    if given is None:
        return f"{licence!r} is no licence that is known here; give an SPDX identifier"
    known = sorted({wording for wording in wordings if wording and terms(wording)})
    forbidding = [w for w in known if (t := terms(w)) and t.no_derivatives]
    if forbidding:
        return f"{', '.join(forbidding)} lets nothing be made of it; train without it"
    binding = [w for w in known if (t := terms(w)) and not t <= given]
    if binding:
        return (
            f"{licence} is looser than {', '.join(binding)}, which it was made under; "
            f"the loosest that may be given is {loosest(known)}"
        )
    return None


def in_a_product(licence: str | None) -> str:
    """Whether weights under a licence may go into a product, in plain words.

    Returns:
        A sentence that begins with `yes`, `no` or `ask`.
    """
    if licence is None:
        return "ask its authors: they state no licence"
    asked = terms(licence)
    if asked is None:
        return f"ask a lawyer: {licence} is not a licence that is known here"
    if asked.non_commercial:
        return f"no: {licence} forbids commercial use"
    if asked.no_derivatives:
        return f"no: {licence} forbids to give on what you make of it"
    kept = []
    if asked.attribution:
        kept.append("name its authors and its licence")
    if asked.share_alike:
        kept.append("give on what you make of it under the same licence")
    return f"yes, under {licence}" + (f": {' and '.join(kept)}" if kept else "")
