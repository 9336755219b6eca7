"""Samples refused for the rest of a run, and why. Part of the run's state: the same bytes always get the same verdict.

File `quarantine/decoder_crash.jsonl` of the run folder, a line per sample: `{"data_fingerprint", "sample_id", "shard",
"key", "reason", "detail"}`. It only grows, and a line counts for the data it was written for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import Reason
from pipeline.index.index import ShardIndex

REFUSED_FILE = "quarantine/decoder_crash.jsonl"


def read_refused(run_dir: Path, data_fingerprint: str) -> dict[int, str]:
    """Return what is known of each refused sample by its id; a last line without its end counts as none."""
    path = run_dir / REFUSED_FILE
    if not path.is_file():
        return {}
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    entries = [json.loads(line) for line in lines]
    return {entry["sample_id"]: entry["detail"] for entry in entries if entry["data_fingerprint"] == data_fingerprint}


def refuse(run_dir: Path, data_fingerprint: str, index: ShardIndex, verdicts: Mapping[int, str]) -> None:
    """Add samples to the file; they are refused from now on, also after a crash of this process.

    Args:
        run_dir: folder of the run.
        data_fingerprint: of the plan that the ids belong to.
        index: names them.
        verdicts: how each of them ended the process that decoded it.
    """
    known = read_refused(run_dir, data_fingerprint)
    path = run_dir / REFUSED_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.truncate(_complete_bytes(path))
        for sample_id, detail in verdicts.items():
            if sample_id in known:
                continue
            entry = {
                "data_fingerprint": data_fingerprint,
                "sample_id": sample_id,
                "shard": index.shard_of(sample_id).url,
                "key": index.samples["key"][sample_id].as_py(),
                "reason": Reason.DECODER_CRASH.value,
                "detail": detail,
            }
            file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _complete_bytes(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
