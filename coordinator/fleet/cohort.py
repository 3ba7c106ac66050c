"""Cohorts: a query over devices, written as text.

    all                         every enrolled device
    name=meter-1,meter-2        these
    tag:site=north              with this tag; several values as in tag:site=north,south
    class=x86-64                of this hardware class, or one of several

Several terms joined by `;` must all hold, for example `class=x86-64;tag:site=north`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.errors import InvalidError

_TAG = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_SYNTAX = "use `all`, `name=a,b`, `tag:key=value` or `class=x86-64`, joined by `;`"


@dataclass(frozen=True)
class Term:
    """One condition: `field` is `name`, `class` or `tag:KEY`; any of `values` will do."""

    field: str
    values: frozenset[str]


@dataclass(frozen=True)
class Cohort:
    """All of `terms` must hold; none means everybody."""

    terms: tuple[Term, ...]

    def matches(self, *, name: str, hardware_class: str, tags: Mapping[str, str]) -> bool:
        """Whether a device belongs."""
        facts = {"name": name, "class": hardware_class, **{f"tag:{key}": value for key, value in tags.items()}}
        return all(facts.get(term.field) in term.values for term in self.terms)


def parse(text: str) -> Cohort:
    """Read a query.

    Raises:
        InvalidError: not in the syntax above; the message says what is expected.
    """
    parts = [part.strip() for part in text.split(";")]
    return Cohort(tuple(_term(part) for part in parts if part != "all"))


def _term(text: str) -> Term:
    field, equals, values = text.partition("=")
    known = field in {"name", "class"} or (field.startswith("tag:") and _TAG.fullmatch(field.removeprefix("tag:")))
    wanted = frozenset(value.strip() for value in values.split(","))
    if not (known and equals) or "" in wanted:
        raise InvalidError(f"cohort {text[:120]!r}: {_SYNTAX}")
    return Term(field, wanted)


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags that a query can name.

    Raises:
        InvalidError: more than 32, or a key or value that does not fit.
    """
    if len(tags) > 32:
        raise InvalidError(f"{len(tags)} tags; at most 32")
    for key, value in tags.items():
        if not _TAG.fullmatch(key) or not _TAG.fullmatch(value):
            raise InvalidError(f"tag {key[:64]!r}: {value[:64]!r}: use 1 to 63 letters, digits, '_', '.', '-'")
    return dict(tags)
