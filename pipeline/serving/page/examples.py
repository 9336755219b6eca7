"""Held-out samples that a chat page offers: from shards that were named, or those that the run evaluates on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline.checkpoint.manifest import MANIFEST_NAME
from pipeline.evaluation.questions import EvaluationSample, read_evaluation_samples
from pipeline.index.build import build_index
from pipeline.shards.listing import expand_shards

_MAX_SAMPLES = 200


def read_examples(shards: Sequence[str]) -> list[EvaluationSample]:
    """Read the first held-out samples of shards.

    Raises:
        DataError: a shard or sample is damaged.
        ValueError: nothing is at these addresses.
    """
    if not shards:
        return []
    with tempfile.TemporaryDirectory() as folder:
        return read_evaluation_samples(build_index(expand_shards(list(shards)), folder), _MAX_SAMPLES)


def held_out_shards(model: str | Path) -> list[str]:
    """Return the shards that the run of a model evaluates on; none where it names none."""
    folder = Path(model)
    values: object = None
    if (folder / MANIFEST_NAME).is_file():
        values = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8")).get("state", {}).get("config")
    for place in (folder, folder.parent):
        if values is None and (place / "config.yaml").is_file():
            values = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
    section = values.get("evaluation") if isinstance(values, dict) else None
    shards = section.get("shards") if isinstance(section, dict) else None
    return [str(one) for one in shards] if isinstance(shards, list) else []
