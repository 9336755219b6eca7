"""`ray-llava evaluate`: a trained model in published metrics, each next to what it reaches without seeing images."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from jobs.console import output_console
from jobs.generate import tokenizer_source
from jobs.model_place import folder_here
from pipeline.config import ConfigError
from pipeline.config.evaluation import BENCHMARK_NAMES, METRIC_NAMES

if TYPE_CHECKING:  # torch takes seconds to load; usage errors need not wait for it
    from pipeline.evaluation.results import Scored, SetResult

BLIND = ("blank", "shuffled", "majority")
CAPTION_METRICS = frozenset({"cider", "bleu", "rouge"})

Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", parser=folder_here, help="Folder or URL of a finished run, or a model folder."),
]
Shards = Annotated[
    list[str] | None, typer.Argument(metavar="[SHARDS...]", help="Held-out instruction shards: paths or URLs.")
]
BenchmarkFile = Annotated[
    tuple[str, Path] | None,
    typer.Option(
        metavar="KIND FILE", help=f"Instead of shards, a benchmark as it is published: {', '.join(BENCHMARK_NAMES)}."
    ),
]
ImageFolder = Annotated[Path | None, typer.Option(help="Where the pictures of the benchmark are.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", "-m", help=f"Once for each: {', '.join(METRIC_NAMES)}. Without it, exact_match."),
]
MaxSamples = Annotated[int | None, typer.Option(min=1, help="Evaluate no more than this many samples.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per forward pass.")]
MaxNewTokens = Annotated[
    int | None, typer.Option(min=1, help="Longest answer, tokens; 64 with a caption metric, else 16.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")]
Report = Annotated[Path | None, typer.Option(help="Write figures and every answer to this JSON file.")]


def run(
    model: Model,
    shards: Shards = None,
    metric: Metrics = None,
    benchmark: BenchmarkFile = None,
    images: ImageFolder = None,
    max_samples: MaxSamples = None,
    batch_size: BatchSize = 32,
    max_new_tokens: MaxNewTokens = None,
    device: Device = "auto",
    report: Report = None,
) -> None:
    """Measure a model, also with blanked and shuffled images: what stays right does not depend on the image."""
    if bool(shards) == (benchmark is not None):
        raise ConfigError("name SHARDS..., or --benchmark KIND FILE; one of them")
    if benchmark is not None and benchmark[0] not in BENCHMARK_NAMES:
        raise ConfigError(f"--benchmark {benchmark[0]}: unknown; choose among {', '.join(BENCHMARK_NAMES)}")
    names = metric or ["exact_match"]
    unknown = [name for name in names if name not in METRIC_NAMES]
    if unknown:
        raise ConfigError(f"--metric {unknown[0]}: unknown; choose among {', '.join(METRIC_NAMES)}")

    from pipeline.assembly.facts import load_tokenizer
    from pipeline.assembly.folder import open_model
    from pipeline.evaluation.benchmarks.load import BENCHMARKS, load_benchmark
    from pipeline.evaluation.metrics.registry import find_metrics
    from pipeline.evaluation.questions import read_evaluation_samples
    from pipeline.evaluation.results import check_metrics, evaluate_set
    from pipeline.evaluation.run import EvaluationSettings
    from pipeline.index.build import build_index
    from pipeline.shards.listing import expand_shards

    # 1. The samples, which must have what the metrics need.
    longest = max_new_tokens or (64 if CAPTION_METRICS & set(names) else 16)
    if benchmark is not None:
        kind, file = benchmark
        samples = load_benchmark(kind, file, images, max_samples)
        names, longest = metric or list(BENCHMARKS[kind].metrics), max_new_tokens or BENCHMARKS[kind].max_new_tokens
    else:
        with tempfile.TemporaryDirectory() as folder:
            samples = read_evaluation_samples(build_index(expand_shards(shards or []), folder), max_samples)
    metrics = find_metrics([*names, "loss"])
    try:
        check_metrics(samples, metrics)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # 2. Answers and figures.
    opened = open_model(model, choose_device(device))
    settings = EvaluationSettings(batch_size=batch_size, max_new_tokens=longest)
    result = evaluate_set(opened, load_tokenizer(tokenizer_source(model)), samples, metrics, settings)
    # 3. What is shown and written.
    console = output_console()
    console.print(f"{result.num_samples} samples on {opened.model.device}")
    for table in build_tables(result):
        console.print(table)
    if report is not None:
        report.write_text(json.dumps(to_json(result), indent=1, allow_nan=False))


def choose_device(name: str) -> str:
    """Return the device to compute on; `auto` is the first GPU, or the CPU."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_tables(result: "SetResult") -> list[Table]:
    """Show every metric next to its blind baselines, then per category."""
    table = Table(title="Seeing and blind", caption="* overlaps the interval of a blind score")
    for head in ("metric", "score", "95 % interval", *BLIND):
        table.add_column(head, no_wrap=head == "metric")
    for scored in result.scored:
        low, high = scored.seeing.interval
        blind = [scored.blind.get(name) for name in BLIND]
        cells = ["" if figure is None else f"{figure.value:.4f}" for figure in blind]
        mark = " *" if scored.may_be_blind else ""
        table.add_row(scored.metric.name, f"{scored.seeing.value:.4f}{mark}", f"{low:.4f} to {high:.4f}", *cells)
        for name, value in scored.further.items():
            table.add_row(f"  {name}", f"{value:.4f}")
    categories = [_categories(scored) for scored in result.scored if len(scored.by_category) > 1]
    return [table, *categories]


def _categories(scored: "Scored") -> Table:
    table = Table("category", "number", scored.metric.name, title=f"{scored.metric.name} per category")
    for name, (number, value) in scored.by_category.items():
        table.add_row(name, str(number), f"{value:.4f}")
    return table


def to_json(result: "SetResult") -> dict[str, Any]:
    """Return one key per figure, then `details` with intervals and categories, and every answer."""
    return {
        **result.flat(),
        "num_samples": result.num_samples,
        "details": {scored.metric.name: scored.to_json() for scored in result.scored},
        "answers": {name: [answer._asdict() for answer in given] for name, given in result.answers.items()},
    }
