"""Copies among up to 100 million pictures on generated hashes: time, memory, and how many planted ones are found.

    python -m benchmarks.data.hygiene_scale 1000000 10000000

One in a thousand pictures is a copy of another with up to three bits of its hash and two grey levels changed.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np

from pipeline.index.hygiene.duplicates import Prints, group_pictures
from pipeline.index.hygiene.near import Places

_COPIES = 1000
_CHANGED_BITS = 3


def generated(number: int) -> tuple[Prints, Places, Places]:
    """Return random prints with planted copies, and which is a copy of which."""
    rng = np.random.default_rng(7)
    hashes = rng.integers(1, 2**63, number, dtype=np.uint64)
    colours = rng.integers(0, 256, (number, 48), dtype=np.uint8)
    copies = rng.choice(np.arange(1, number), max(1, number // _COPIES), replace=False)
    originals = copies - 1
    flips = np.zeros(len(copies), np.uint64)
    for _ in range(_CHANGED_BITS):
        flips |= np.uint64(1) << rng.integers(0, 64, len(copies)).astype(np.uint64)
    hashes[copies] = hashes[originals] ^ flips
    colours[copies] = np.clip(colours[originals].astype(np.int16) + rng.integers(-2, 3, (len(copies), 48)), 0, 255)
    places = np.arange(number)
    return Prints(places, np.zeros(number, np.int64), hashes, colours), copies, originals


def main(numbers: list[int]) -> None:
    """Print a line per number of pictures."""
    for number in numbers:
        prints, copies, originals = generated(number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        groups = group_pictures(prints)
        took = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chained = np.isin(originals, copies)  # an original that was changed itself, after its copy was taken
        found = groups[copies] == groups[originals]
        others = len(groups) - len(np.unique(groups)) - int(found.sum())
        row = {
            "pictures": number,
            "seconds": round(took, 1),
            "input_gb": round((prints.colours.nbytes + prints.hash.nbytes) / 1e9, 2),
            "peak_gb": round(peak / 1e6, 2),
            "more_than_input_gb": round((peak - before) / 1e6, 2),
            "planted": len(copies),
            "found": int(found[~chained].sum()) + int(found[chained].sum()),
            "joined by chance": others,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main([int(one) for one in sys.argv[1:]] or [1_000_000, 10_000_000])
