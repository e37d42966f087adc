# SPDX-License-Identifier: Apache-2.0
"""The specification, the code and the tests speak of the same rules.

A rule is an id such as `ATT-3` at the start of a heading, a list item, a bold phrase or a table row in docs/spec.
Each is cited by a test, or stands in uncovered_rules.txt with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RULE = re.compile(
    r"^\s*(?:#+\s+|[-*]\s+|\d+\.\s+|\|\s*)?(?:<a id=\"[^\"]*\"></a>\s*)?[*`\[]*((?:X402|[A-Z]{2,10})-\d+)\b",
    re.MULTILINE,
)
OTHERS = frozenset({"SHA", "RFC", "EIP", "ERC", "AES"})  # standards a line of prose may begin with
CITED = re.compile(r"\b((?:X402|[A-Z]{2,10})-\d+)\b")
RANGE = re.compile(r"\b(X402|[A-Z]{2,10})-(\d+)\s*(?:\.\.|to|through)\s*(?:\1-)?(\d+)\b")
TEST_NAMED = re.compile(r"(?:(tests/[\w/.-]+\.py)(?:::))?\b(test_\w+)")


def _rules(repo: Path) -> dict[str, str]:
    """Every rule id of the specification, and the file that states it."""
    found: dict[str, str] = {}
    for page in sorted((repo / "docs" / "spec").glob("**/*.md")):
        for rule in RULE.findall(page.read_text(encoding="utf-8")):
            if rule.partition("-")[0] not in OTHERS:
                found.setdefault(rule, page.name)
    return found


def _cited(*folders: Path) -> set[str]:
    """Every rule id that Python files below these folders cite; `ATT-1 .. ATT-6` cites six."""
    cited: set[str] = set()
    for folder in folders:
        for path in folder.glob("**/*.py"):
            text = path.read_text(encoding="utf-8")
            cited.update(CITED.findall(text))
            for family, first, last in RANGE.findall(text):
                cited.update(f"{family}-{number}" for number in range(int(first), int(last) + 1))
    return cited


def _excused(repo: Path) -> dict[str, str]:
    lines = (repo / "tests" / "repo" / "uncovered_rules.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(":") for line in lines if line.strip() and not line.startswith("#"))
    return {rule.strip(): reason.strip() for rule, _, reason in pairs}


def _test_folders(repo: Path) -> list[Path]:
    return [folder for folder in (repo / "tests").iterdir() if folder.is_dir() and folder.name != "repo"]


def test_every_rule_has_a_test(repo: Path) -> None:
    """A rule without a test is a wish."""
    rules = _rules(repo)
    if not rules:
        pytest.skip("docs/spec states no rules yet")
    missing = sorted(set(rules) - _cited(*_test_folders(repo)) - set(_excused(repo)))
    assert not missing, f"{len(missing)} of {len(rules)} rules are cited by no test: " + ", ".join(
        f"{rule} ({rules[rule]})" for rule in missing
    )


def test_every_excuse_still_holds(repo: Path) -> None:
    """An excuse has a reason, names a rule that exists, and goes when the test comes."""
    rules, excused = _rules(repo), _excused(repo)
    assert all(excused.values()), f"no reason given: {[rule for rule, reason in excused.items() if not reason]}"
    if rules:
        assert not set(excused) - set(rules), f"not in docs/spec: {sorted(set(excused) - set(rules))}"
    tested = set(excused) & _cited(*_test_folders(repo))
    assert not tested, f"these have a test by now: {sorted(tested)}"


def test_a_blame_names_a_rule_that_can_be_looked_up(repo: Path) -> None:
    """Every rule that the code cites stands in the specification, once its family is written."""
    rules = _rules(repo)
    families = {rule.rpartition("-")[0] for rule in rules}
    cited = {rule for rule in _cited(repo / "src") if rule.rpartition("-")[0] in families}
    assert not cited - set(rules), f"cited in src, not stated in docs/spec: {sorted(cited - set(rules))}"


def test_every_claim_of_the_threat_model_names_a_test_that_exists(repo: Path) -> None:
    """A promise points to the test that shows it."""
    page = repo / "docs" / "threat-model.md"
    if not page.exists():
        pytest.skip("no threat model yet")
    sources = {
        str(path.relative_to(repo)): path.read_text(encoding="utf-8") for path in (repo / "tests").glob("**/*.py")
    }
    everything = "\n".join(sources.values())
    absent = []
    for path, name in TEST_NAMED.findall(page.read_text(encoding="utf-8")):
        if name.endswith("_") or f"{name}.py" in page.read_text(encoding="utf-8"):  # a file or a family, not one test
            continue
        if f"def {name}(" not in (sources.get(path, "") if path else everything):
            absent.append(f"{path}::{name}" if path else name)
    assert not absent, f"the threat model names tests that do not exist: {absent}"
