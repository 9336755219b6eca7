"""The held-out sets of a run: indexed next to the run's own data, and checked before any worker starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ConfigError, EvaluationConfig
from pipeline.errors import DataError
from pipeline.evaluation.metrics.measured import Metric
from pipeline.evaluation.metrics.registry import find_metrics
from pipeline.evaluation.questions import EvaluationSample, read_evaluation_samples
from pipeline.evaluation.results import check_metrics
from pipeline.index.build import ensure_index
from pipeline.index.held_out import held_out_rows
from pipeline.index.index import ShardIndex
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.prompt.conversation import Conversation
from pipeline.shards.listing import expand_shards

FOLDER = "evaluation"
"""In the run folder: indexes of the sets."""


class HeldOutSet(NamedTuple):
    """Samples and what is measured on them."""

    name: str
    """Empty for the only set."""
    samples: tuple[EvaluationSample, ...]
    metrics: tuple[Metric, ...]

    @property
    def prefix(self) -> str:
        """What the names of its figures begin with."""
        return f"eval/{self.name}/" if self.name else "eval/"


def read_sets(
    config: EvaluationConfig, run_dir: Path, own: ShardIndex, held_out: float | str | None
) -> tuple[HeldOutSet, ...]:
    """Read the samples of every set; shards that were indexed before are not scanned again.

    Args:
        config: names the sets.
        run_dir: keeps their indexes.
        own: of the run's data.
        held_out: which of it is not trained on, as in `data.held_out`.

    Raises:
        ConfigError: a set has no shards, or none of its samples can be used.
        DataError: a shard is defective.
        ValueError: a field of a sample does not fit its conversation.
    """
    found = []
    for name, one in config.named_sets.items():
        if config.held_out and held_out is not None:
            samples = read_evaluation_samples(own, one.max_samples, held_out_rows(own, held_out))
        else:
            index = ensure_index(expand_shards(one.shards), run_dir / FOLDER / (name or "only"))
            samples = read_evaluation_samples(index, one.max_samples)
        if not samples and config.held_out:
            raise ConfigError(f"data.held_out {held_out} holds out no usable sample; name a larger share")
        if not samples:
            where = f"evaluation.sets.{name}" if name else "evaluation"
            raise ConfigError(f"{where}: {', '.join(one.shards)} hold no usable sample; name shards with held-out data")
        found.append(HeldOutSet(name, tuple(samples), find_metrics((*one.metrics, "loss"))))
    return tuple(found)


def check_sets(
    config: EvaluationConfig, run_dir: Path, own: ShardIndex, held_out: float | str | None, encoder: SampleEncoder
) -> tuple[HeldOutSet, ...]:
    """Read the sets, as `read_sets` does, and see whether every sample can be asked and measured.

    Raises:
        ConfigError: one cannot; names the sample.
        DataError: a shard is defective.
    """
    try:
        sets = read_sets(config, run_dir, own, held_out)
        for one in sets:
            check_metrics(one.samples, one.metrics)
            _check_prompts(one.samples, encoder)
    except DataError as error:
        raise ConfigError(f"evaluation: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"evaluation: {error}") from error
    return sets


def _check_prompts(samples: Sequence[EvaluationSample], encoder: SampleEncoder) -> None:
    """Encode every sample once; the last question of a conversation is its longest prompt."""
    for entry in samples:
        images = encoder.encode(entry.sample).images
        question = Conversation(entry.sample.conversation.turns[:-1])
        try:
            encoder.encode_prompt(question, [image.view for image in images[: question.num_images]])
        except DataError as error:
            raise error.at(key=entry.sample.key) from None
