"""Files that are numbered pieces of one whole: which of them are not there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_OF = re.compile(
    r"(?P<head>.*?)(?P<number>\d+)(?P<between>[-_. ]?of[-_. ]?)(?P<total>\d+)(?P<tail>\D.*|)", re.IGNORECASE
)
_NUMBERED = re.compile(r"(?P<head>.*?)(?P<number>\d{3,})(?P<tail>\D*)")
_MAX_NAMED = 5


def missing_pieces(names: Iterable[str]) -> list[str]:
    """Return a sentence for each numbered series in which pieces are missing.

    `train-00003-of-00005` states how many there are. With other numbers, only a gap between two of them is visible.

    Args:
        names: paths or URLs; numbers count in the last part, series are told apart by all the rest.
    """
    totals: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    plain: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for name in names:
        folder, slash, base = name.rpartition("/")
        if match := _OF.fullmatch(base):
            totals[folder + slash + match["head"], match["tail"], int(match["total"])].add(int(match["number"]))
        elif match := _NUMBERED.fullmatch(base):
            plain[folder + slash + match["head"], match["tail"], len(match["number"])].add(int(match["number"]))
    found = [_missing_of_total(head, tail, total, there) for (head, tail, total), there in totals.items()]
    found += [_gaps(head, tail, there) for (head, tail, _), there in plain.items()]
    return [sentence for sentence in found if sentence]


def _missing_of_total(head: str, tail: str, total: int, there: set[int]) -> str:
    # counted from 0, but for the few writers that count from 1 and so have a piece with the number of the total
    first = 1 if total in there and 0 not in there else 0
    missing = sorted(set(range(first, first + min(total, 1_000_000))) - there)
    return f"{head}N-of-{total}{tail}: {_named(missing)} of {total} not there" if missing else ""


def _gaps(head: str, tail: str, there: set[int]) -> str:
    missing = sorted(set(range(min(there), max(there))) - there) if max(there) - min(there) < 2 * len(there) + 8 else []
    return f"{head}N{tail}, {min(there)} to {max(there)}: {_named(missing)} not there" if missing else ""


def _named(missing: list[int]) -> str:
    shown = ", ".join(map(str, missing[:_MAX_NAMED]))
    more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
    return f"piece {shown}{more}" if len(missing) == 1 else f"pieces {shown}{more}"
