"""docs/threat-model.md against the tests: each one that it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in sources for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)}
    assert named - there == set()
    assert len(named) > 50
    assert [path for path in re.findall(r"`(tests/\w+)`", PAGE) if not (ROOT / path).is_dir()] == []


def test_every_attacker_has_what_holds_and_what_does_not() -> None:
    attackers = re.split(r"^### ", PAGE.partition("## Attackers")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]
    assert len(attackers) >= 8
    assert [text.splitlines()[0] for text in attackers if "Holds:" not in text or "Does not:" not in text] == []
