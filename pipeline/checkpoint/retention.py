"""Which checkpoints stay: the newest ones, and the best ones. A pure function of their manifests."""

from __future__ import annotations

from collections.abc import Mapping


def superseded(scores: Mapping[str, float | None], keep_last: int, keep_best: int) -> list[str]:
    """Return the names of checkpoints that may go, oldest first.

    Args:
        scores: score of every valid checkpoint by name, oldest first; lower is better, None was not measured.
        keep_last: newest checkpoints kept, at least 1.
        keep_best: checkpoints with the lowest scores kept besides; of equal ones the newest.
    """
    names = list(scores)
    measured = [(score, -idx, name) for idx, (name, score) in enumerate(scores.items()) if score is not None]
    kept = {*names[-keep_last:], *(name for _, _, name in sorted(measured)[:keep_best])}
    return [name for name in names if name not in kept]
