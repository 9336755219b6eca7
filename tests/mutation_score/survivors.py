"""Changes that no test needs to notice, each with its reason: `survivors.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import yaml

_FILE = Path(__file__).with_name("survivors.yaml")


class Excuse(NamedTuple):
    """Why a change may survive."""

    kind: Literal["equivalent", "accepted"]
    """`equivalent`: nothing that anyone can observe differs. `accepted`: it does, and it is not worth a test."""
    reason: str


def read_survivors() -> dict[str, Excuse]:
    """Return the excuse of each change by its identity."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8")) or {}
    return {
        identity: Excuse(kind, reason)
        for kind, groups in content.items()
        for reason, identities in groups.items()
        for identity in identities
    }
