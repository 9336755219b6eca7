"""All benchmarks by name: how they are read, and what is measured on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ConfigError
from pipeline.config.evaluation import BENCHMARK_NAMES
from pipeline.evaluation.benchmarks import answers, choices
from pipeline.evaluation.benchmarks.item import Item, to_sample
from pipeline.evaluation.questions import EvaluationSample


class Benchmark(NamedTuple):
    """A published benchmark."""

    read: Callable[[Path], Iterator[Item]]
    metrics: tuple[str, ...]
    """What its authors report."""
    max_new_tokens: int = 16


_CAPTIONS = Benchmark(answers.read_captions, ("cider", "bleu", "rouge"), 64)
BENCHMARKS = {
    "vqav2": Benchmark(answers.read_vqav2, ("vqa_accuracy",)),
    "gqa": Benchmark(answers.read_gqa, ("exact_match",)),
    "textvqa": Benchmark(answers.read_textvqa, ("vqa_accuracy",)),
    "docvqa": Benchmark(answers.read_docvqa, ("anls",), 32),
    "chartqa": Benchmark(answers.read_chartqa, ("relaxed_accuracy",)),
    "ai2d": Benchmark(choices.read_ai2d, ("multiple_choice",)),
    "pope": Benchmark(choices.read_pope, ("pope",)),
    "mme": Benchmark(choices.read_mme, ("mme",)),
    "mmbench": Benchmark(choices.read_mmbench, ("multiple_choice", "multiple_choice_circular")),
    "scienceqa": Benchmark(choices.read_scienceqa, ("multiple_choice",)),
    "mmmu": Benchmark(choices.read_mmmu, ("multiple_choice",)),
    "seed": Benchmark(choices.read_seed, ("multiple_choice",)),
    "refcoco": Benchmark(answers.read_refcoco, ("box_accuracy",), 48),
    "coco_captions": _CAPTIONS,
    "nocaps": _CAPTIONS,
}
assert tuple(BENCHMARKS) == BENCHMARK_NAMES


def load_benchmark(kind: str, path: Path, images: Path | None, max_samples: int | None) -> list[EvaluationSample]:
    """Read a benchmark.

    Args:
        kind: one of `BENCHMARKS`.
        path: the file, or folder, that its authors publish.
        images: where its pictures are; None where the file holds them.
        max_samples: read no more than the first so many questions.

    Raises:
        ConfigError: the file is not of that form, or a picture is missing.
    """
    if not path.exists():
        raise ConfigError(f"--benchmark {kind} {path}: no such file or folder")
    try:
        items = list(islice(BENCHMARKS[kind].read(path), max_samples))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        missing = f"field {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path} is not a file of {kind} as published: {missing}") from error
    if not items:
        raise ConfigError(f"{path} has no question that {kind} asks")
    return [to_sample(item, images) for item in items]
