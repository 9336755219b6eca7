"""The tables in docs/models.md are those of the registries."""

from model.backbones.registry import BACKBONES
from model.vision.tower_kinds import TOWER_KINDS
from tests.model.docs_matrix import DOCS, with_tables


def test_tables_of_backbones_and_towers_are_those_of_the_registries() -> None:
    text = DOCS.read_text()
    assert with_tables(text) == text, "run `python -m tests.model.docs_matrix`"
    assert all(f"| `{kind}` |" in text for kind in BACKBONES)
    assert all(f"`{kind}` |" in text for kind in TOWER_KINDS)
