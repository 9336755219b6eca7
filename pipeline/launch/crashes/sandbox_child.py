"""The process that decodes suspicious samples and may die of it: `sandbox_child CONFIG_FILE SAMPLE_ID ...`.

Prints READY, then each sample id before it is decoded, then DONE. Memory is limited, so that a sample that asks for too
much ends this process rather than the machine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from pipeline.parallel.exits import OUT_OF_MEMORY_EXIT, READY, limit_memory

DONE: Final = "done"


def main(arguments: Sequence[str]) -> None:
    """Decode samples until done or dead."""
    from rich.console import Console

    from pipeline.config import load_config
    from pipeline.errors import DataError
    from pipeline.index.read import read_sample
    from pipeline.launch.prepare import prepare_source

    source = prepare_source(load_config(arguments[0]), console=Console(quiet=True))
    limit_memory()
    _say(READY)
    for sample_id in map(int, arguments[1:]):
        _say(str(sample_id))
        try:
            source.encoder.encode(read_sample(source.index, sample_id))
        except DataError:
            continue  # refused in the ordinary way
        except MemoryError:
            os._exit(OUT_OF_MEMORY_EXIT)
    _say(DONE)


def _say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
