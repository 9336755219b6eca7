"""What a row of any dialect is read into: rules of the user, places of pictures, and what was found in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.errors import DataError
from pipeline.samples.schema import SchemaPolicy
from pipeline.tools.convert.row_media import Found

UNREAD = {
    "film": "holds a film, which is read as the only picture of a row: split the row, or leave one of them out",
    "sound": "holds a sound, which is not read",
    "data": "holds data that may be media and is not read",
}
"""What a field holds that is not read, by kind."""


class Slot(NamedTuple):
    """A place in a turn where a picture stands; which one is settled after all turns were read."""

    media: Found | None = None
    number: int | None = None


Part = str | Slot


class Tally(NamedTuple):
    """What was found in an entry, to be accounted for in every case."""

    media: int = 0
    """Pictures, films and sounds that a sample would have to show."""
    marks: int = 0
    """Marks in texts that stand for pictures."""
    implied: int = 0
    """Places that the form implies without a mark, as a caption does."""
    turns: int = 0
    """Turns of the conversation; 0 for a caption."""
    set_aside: int = 0
    """Other names of pictures that are shown, links to them, and what --ignore-field names."""


class Reading(NamedTuple):
    """A row that shows all of its media."""

    turns: list[tuple[str, list[Part]]]
    """(role, parts); empty for a caption."""
    caption: str | None
    media: tuple[Found, ...]
    """In the order of their places."""
    plain_turns: list[dict[str, Any]] | None
    """Turns that can be written as they are, with `<image>` or parts where the pictures are; None: write `turns`."""
    used: frozenset[str]
    """Fields at the top that hold media or texts which were read."""
    tally: Tally
    is_film: bool = False
    """Whether its only media are a film."""


class RowError(DataError):
    """A row that makes no sample, with what was found in it."""

    tally: Tally = Tally()


class FieldNames(NamedTuple):
    """What the fields of a source are called, where a list of data sets says so."""

    renamed: tuple[tuple[str, str], ...] = ()
    """(name in the source, name that `read_said` knows)."""
    role: str = ""
    """Field of a turn that names the speaker; empty where turns are as usual."""
    content: str = ""
    roles: tuple[tuple[str, str], ...] = ()
    """(speaker in the source, speaker)."""

    def apply(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row with the usual names; one that has them stays as it is."""
        names = dict(self.renamed)
        usual = {names.get(name, name): value for name, value in row.items()}
        turns = usual.get("conversations")
        if self.role and isinstance(turns, list):
            usual["conversations"] = [self._turn(turn) if isinstance(turn, dict) else turn for turn in turns]
        return usual

    def _turn(self, turn: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.role not in turn or self.content not in turn:  # has the usual names already
            return turn
        rest = {name: value for name, value in turn.items() if name not in (self.role, self.content)}
        speaker = turn.get(self.role)
        return {**rest, "from": dict(self.roles).get(str(speaker), speaker), "value": turn.get(self.content)}


@dataclass(frozen=True)
class RowRules:
    """What a user says about the rows of a source."""

    image_field: str | None = None
    """The field whose pictures belong to the texts; found by name, type and content when not given."""
    text_field: str | None = None
    ignored: frozenset[str] = field(default_factory=frozenset)
    """Fields that are neither media nor text of the sample."""
    policy: SchemaPolicy = field(default_factory=SchemaPolicy)
    """Repairs that are applied to what is written, so that the shards need none."""
    fields: FieldNames = field(default_factory=FieldNames)
    """What the fields of its rows are called."""
