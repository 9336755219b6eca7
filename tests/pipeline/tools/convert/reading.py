"""Converting a source, and reading back what was written."""

from __future__ import annotations

from pathlib import Path

from pipeline.index.build import build_index
from pipeline.index.read import read_sample
from pipeline.samples.schema import Sample
from pipeline.tools.convert.formats import SourceOptions, open_source
from pipeline.tools.convert.run import Conversion, convert
from pipeline.tools.convert.shard_plan import ShardLimits

ROOMY = ShardLimits(1000, 10**9)
NO_OPTIONS = SourceOptions()


def converted(
    tmp_path: Path,
    *paths: Path,
    options: SourceOptions = NO_OPTIONS,
    kind: str = "auto",
) -> tuple[Conversion, list[Sample]]:
    """Convert, index what was written, and read every sample back; the index must reject none."""
    result = convert(open_source([str(path) for path in paths], kind, options), tmp_path / "out", limits=ROOMY)
    return result, samples_of(result, tmp_path / "index")


def samples_of(result: Conversion, index_dir: Path) -> list[Sample]:
    """Index what was written, and read every sample back; the index must reject none."""
    if not result.shards:
        return []
    index = build_index(result.shards, index_dir)
    assert index.summary() == {}
    assert index.num_samples == result.num_samples
    return [read_sample(index, idx) for idx in range(index.num_samples)]


def answers(samples: list[Sample]) -> list[str]:
    return [sample.conversation.turns[-1].text for sample in samples]


def skipped(result: Conversion) -> list[tuple[int, str]]:
    return [(entry.row, entry.reason) for entry in result.skipped]
