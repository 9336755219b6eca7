"""Turns that are hard to read stay out of docs, docstrings, comments and messages."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READ = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ray_cluster.yaml", "Makefile", "pyproject.toml", "mkdocs.yml",
    "docs", "model", "pipeline", "jobs", "benchmarks", "tests",
)  # fmt: skip
ENDINGS = {".md", ".py", ".yaml", ".yml", ".toml", ".j2", ".css", ""}
INSTEAD = {
    r"for ever\b": "forever, endlessly, or what never ends",
    r"anew\b": "again",
    r"(?<!there )(is|are|was|were) no (?!longer|more|less|fewer|better)": "is not a ..., or invalid ...",
    r"beside\b": "next to, besides, in addition to, or during",
    r"(without|no|of) a word\b": "without a message",
    r"as ever\b": "as before",
    r"nobody\b": "no one, or no process",
    r"who(so)?ever\b": "a process that, or anyone who",
    r"lies?\b": "is, or is stored",
    r"stands? (?!for\b)": "is",
    r"hence\b": "so, therefore",
    r"deaf to": "ignores",
    r"falsif": "invalidate",
    r"wants? (?!to\b)": "needs, expects or requires",
    r"heard? of": "be notified of",
}


def texts() -> Iterator[Path]:
    for name in READ:
        place = ROOT / name
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (path for path in paths if path.is_file() and path.suffix in ENDINGS and path != Path(__file__))


@pytest.mark.parametrize("turn", INSTEAD)
def test_text_has_no_turn_that_is_hard_to_read(turn: str) -> None:
    pattern = re.compile(rf"\b{turn}", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        if "__pycache__" not in path.parts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"write {INSTEAD[turn]} in:\n" + "\n".join(found)


def test_turns_match_what_they_are_meant_to() -> None:
    """A sentence of each kind, and sentences that are fine."""
    bad = "waits for ever; made anew; it is no file; a log beside it; died without a word; as ever; nobody; whoever"
    fine = "there is no file; it is no longer used; anybody; a row stands for a step; it wants to stop"
    patterns = [re.compile(rf"\b{turn}", re.IGNORECASE) for turn in INSTEAD]
    assert all(any(pattern.search(part) for pattern in patterns) for part in bad.split("; "))
    assert not [part for part in fine.split("; ") if any(pattern.search(part) for pattern in patterns)]
