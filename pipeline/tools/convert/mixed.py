"""Several sources as one: each unit is read by the source it belongs to, so that one conversion holds all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.tools.convert.source import Outcome, Source


@dataclass(frozen=True)
class MixedSource:
    """Sources of several formats, in the order in which their samples are written."""

    parts: tuple[Source, ...]
    kind: str = "mixed"

    def units(self) -> list[str]:
        """Return the units of all sources."""
        return [unit for part in self.parts for unit in part.units()]

    def list_unit(self, unit: str) -> pa.Table:
        """List a unit as its own source does."""
        return self._of(unit).list_unit(unit)

    def read(self, unit: str, entries: pa.Table) -> Iterator[Outcome]:
        """Read entries of a unit as its own source does."""
        return self._of(unit).read(unit, entries)

    def _of(self, unit: str) -> Source:
        return next(part for part in self.parts if unit in part.units())
