"""What is counted of each step, and the account of the run's samples."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.training.measures.sources import SourceNumbers

logger = logging.getLogger(__name__)


@dataclass
class StepCounts:
    """What all ranks did in one optimizer step."""

    samples: float = 0.0
    images: float = 0.0
    tiles: float = 0.0
    """Squares that went through the vision tower: distinct images, or their parts."""
    tokens: float = 0.0
    """Fused tokens of the samples, image features included."""
    pairs: float = 0.0
    """(Query, key) pairs of causal attention: n (n + 1) / 2 for a sample of n tokens."""
    targets: float = 0.0
    """Supervised tokens."""
    rejected: float = 0.0
    """Planned samples that could not be used."""

    def plus(self, other: StepCounts) -> StepCounts:
        """Return the counts of both together."""
        return StepCounts(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclass
class Ledger:
    """Exact account of the samples of a run: planned = trained + quarantined, at every step."""

    trained: int = 0
    quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    """`trained` and `quarantined` of each source of a mix; empty without one."""

    def add(self, counts: StepCounts, reasons: Mapping[str, int], by_source: Mapping[str, SourceNumbers]) -> None:
        """Book one optimizer step."""
        self.trained += int(counts.samples)
        self.quarantined += int(counts.rejected)
        for reason, number in reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + number
        for name, numbers in by_source.items():
            account = self.by_source.setdefault(name, {"trained": 0, "quarantined": 0})
            account["trained"] += numbers.trained
            account["quarantined"] += numbers.rejected

    def check(self, planned: int, by_source: Mapping[str, int]) -> None:
        """Verify the account, as a whole and for each source of a mix.

        Raises:
            LedgerError: a sample is missing or was counted twice.
        """
        _check_account("", planned, self.trained, self.quarantined)
        for name, number in by_source.items():
            account = self.by_source.get(name, {"trained": 0, "quarantined": 0})
            _check_account(f" of source {name}", number, account["trained"], account["quarantined"])

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON-serialisable facts."""
        return dataclasses.asdict(self)


class LedgerError(RuntimeError):
    """Samples planned and samples accounted for differ."""


def _check_account(whose: str, planned: int, trained: int, quarantined: int) -> None:
    if trained + quarantined != planned:
        raise LedgerError(
            f"ledger mismatch: {planned} samples{whose} planned so far, but {trained} trained + {quarantined} "
            "quarantined; this is a bug in the pipeline, please report it with the run folder"
        )
