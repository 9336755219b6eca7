"""`ray-llava inspect`: look at the data as the model gets it, on the terminal and as one HTML page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from jobs.index import summary_table, warn_of_refusal
from pipeline.config import ConfigError, DataConfig, ExperimentConfig
from pipeline.run_folder.place import mirror_of, working_folder

if TYPE_CHECKING:  # torch takes seconds to load; config errors need not wait for it
    from pipeline.plan.efficiency import PackingReport
    from pipeline.tools.inspect.histograms import Histogram
    from pipeline.tools.inspect.sample_view import SampleView
    from pipeline.tools.inspect.session import Inspection

SampleOption = Annotated[
    str | None,
    typer.Option(metavar="SHARD:INDEX", help="One sample: shard by number, file name or URL; sample by number or key."),
]
StepOption = Annotated[int | None, typer.Option(help="What exactly is in this global step, per rank and micro-batch.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Number of workers; by default that of the config.")]
OutOption = Annotated[
    Path | None, typer.Option(help="HTML file; by default in the run folder, or here if that is a URL.")
]
CountOption = Annotated[int, typer.Option(min=0, help="Samples on the overview page.")]

_STEP_COLUMNS = ("rank", "micro-batch", "tokens", "sample", "shard:index", "key", "images", "rejected")
_SPARKLINE_WIDTH = 20
_STYLES = {
    ("text", False): "",
    ("text", True): "black on green",
    ("special", False): "magenta",
    ("special", True): "magenta on green",
    ("image", False): "black on yellow",
}
"""Kind of a piece, whether it is trained on -> how it looks."""


def run(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    sample: SampleOption = None,
    step: StepOption = None,
    workers: WorkersOption = None,
    num_samples: CountOption = 32,
    hygiene: Annotated[bool, typer.Option(help="Copies, overlap with data.against, outliers, broken texts.")] = False,
    out: OutOption = None,
) -> None:
    """Show what is in the shards of a config: pictures and tokens as the model gets them, lengths, rejections."""
    experiment = read_config(config, overrides)
    if (sample is not None) + (step is not None) + hygiene > 1:
        raise ConfigError("--sample, --step and --hygiene show different things; give one of them")
    console = output_console()

    inspection = open_inspection(experiment, console=console, num_ranks=workers or experiment.cluster.max_workers)
    if sample is not None:
        name, html = _show_sample(inspection, sample, console)
    elif step is not None:
        name, html = _show_step(inspection, step, console)
    elif hygiene:
        absolute = experiment.with_absolute_paths()
        name, html = _show_hygiene(inspection, absolute.data, absolute.run_dir, console)
    else:
        name, html = _show_overview(inspection, num_samples, console)
    folder = working_folder(experiment.run_dir)
    path = out or (folder if mirror_of(folder) is None else Path.cwd()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    console.print(f"page: {path} ({path.stat().st_size / 1e6:.1f} MB, one file)", highlight=False)


def open_inspection(config: ExperimentConfig, *, console: Console, num_ranks: int) -> "Inspection":
    """Index what is not indexed yet, plan, and return both for looking at.

    Raises:
        ConfigError: model parts or shards do not exist.
        OSError: storage failed.
    """
    from pipeline.assembly.encoder import build_encoder
    from pipeline.launch.prepare import index_run
    from pipeline.launch.run_maps import choose_run_map
    from pipeline.stream.prepare import plan_run
    from pipeline.stream.refused import read_refused
    from pipeline.tools.inspect.page import RunLabel
    from pipeline.tools.inspect.sample_view import Inspected
    from pipeline.tools.inspect.session import Inspection

    config = config.with_absolute_paths()
    encoder = build_encoder(config.model, config.data)
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"on_bad_shard": "quarantine"})})
    data = index_run(lenient, encoder, console, choose_run_map(config.cluster))
    plan, no_plan = None, ""
    try:
        plan = plan_run(config.data, config.training, config.seed, data, encoder)
    except ValueError as error:  # of the data, which is what to look at
        no_plan = str(error)
    run_dir = working_folder(config.run_dir)
    refused = {} if plan is None else read_refused(run_dir, plan.data_fingerprint)
    inspected = Inspected(data.index, data.tokens, encoder, refused)
    label = RunLabel(config.name, config.stage, config.data.template, config.training.micro_batch_tokens)
    return Inspection(label, run_dir, config.checkpoint, config.to_record(), inspected, plan, num_ranks, no_plan)


def _show_overview(inspection: "Inspection", num_samples: int, console: Console) -> tuple[str, str]:
    from pipeline.tools.inspect.page import render_overview

    overview = inspection.overview(num_samples)
    console.print(summary_table(inspection.data.index, inspection.data.tokens))
    console.print(distribution_table(overview.histograms))
    warn_of_refusal(console, inspection.no_plan or None)
    if overview.packing is not None:
        console.print(packing_table(overview.packing, inspection.run.micro_batch_tokens))
    return "inspect.html", render_overview(inspection.run, overview)


def _show_hygiene(inspection: "Inspection", data: DataConfig, run_dir: str, console: Console) -> tuple[str, str]:
    from pipeline.index.dataset import index_against, index_folder
    from pipeline.index.hygiene.table import hygiene_table
    from pipeline.tools.inspect.hygiene_view import view_hygiene
    from pipeline.tools.inspect.page import render_hygiene

    folder = index_folder(data, run_dir)
    page = view_hygiene(inspection.data, hygiene_table(inspection.data.index, index_against(data, folder), folder))
    table = Table("what", Column("samples", justify="right"), "data.where", title="Odd samples")
    for group in page.groups:
        table.add_row(group.title, str(group.num_samples), group.condition)
    console.print(table)
    console.print(distribution_table(page.histograms))
    return "inspect-hygiene.html", render_hygiene(inspection.run, page)


def _show_sample(inspection: "Inspection", name: str, console: Console) -> tuple[str, str]:
    from pipeline.tools.inspect.page import render_sample

    view = inspection.sample(name)
    console.print(sample_text(view), highlight=False)
    return f"inspect-sample-{view.sample_id}.html", render_sample(inspection.run, view)


def _show_step(inspection: "Inspection", step: int, console: Console) -> tuple[str, str]:
    from pipeline.tools.inspect.locate import short_names
    from pipeline.tools.inspect.page import render_step
    from pipeline.tools.inspect.prompt import visible

    view = inspection.step(step)
    shards = short_names(inspection.data.index)
    columns = [Column(name, overflow="fold") for name in _STEP_COLUMNS]
    table = Table(*columns, title=f"Step {step}")
    for rank in view.ranks:
        for number, batch in enumerate(rank.micro_batches):
            for shown in batch.samples:
                place = f"{shards[shown.shard]}:{shown.ordinal}"
                reason = view.quarantined.get(shown.sample_id, shown.reason)
                cells = (rank.rank, number, shown.num_tokens, shown.sample_id, place, shown.key, len(shown.pictures))
                table.add_row(*(Text(visible(str(cell))) for cell in (*cells, reason)))
    console.print(table)
    for name in ("train/loss", "train/grad_norm"):
        if name in view.metrics:
            console.print(f"{name}: {view.metrics[name]:.6g}")
    return f"inspect-step-{step}.html", render_step(inspection.run, view)


def distribution_table(histograms: "tuple[Histogram, ...]") -> Table:
    """Render each distribution as a row: a sparkline and its summary."""
    table = Table("", Column("distribution", no_wrap=True), "", title="Usable samples")
    for shown in histograms:
        table.add_row(shown.title, _sparkline([bar.num_values for bar in shown.bars]), shown.summary)
    return table


def packing_table(packing: "PackingReport", micro_batch_tokens: int) -> Table:
    """Render what the packing makes of the token budget."""
    table = Table("", "", title=f"Plan on {packing.num_ranks} workers, {packing.num_steps} steps looked at")
    table.columns[1].justify = "right"
    table.add_row(f"filled of training.micro_batch_tokens={micro_batch_tokens}", f"{packing.fill:.1%}")
    table.add_row("padding avoided by packing", f"{packing.padding_avoided:.1%}")
    table.add_row("load of the mean rank / the busiest", f"{packing.balance:.1%}")
    table.add_row("micro-batches per step and rank", f"{packing.micro_batches_per_step:.1f}")
    table.add_row("fused tokens per step", f"{packing.tokens_per_step:,.0f}")
    return table


def sample_text(view: "SampleView") -> Text:
    """Render a sample for the terminal; as Text, since nothing in it may be read as markup."""
    text = Text(f"sample {view.sample_id}, {view.shard}:{view.ordinal}, key {view.key}\n", style="bold")
    for picture in view.pictures:
        text.append(f"{picture.caption}{': ' + picture.problem if picture.problem else ''}\n", style="dim")
    if view.reason:
        text.append(f"rejected, {view.reason}", style="bold red").append(f": {view.detail}; {view.advice}\n")
    for raw in view.raw:
        text.append(f"{raw.name}, as stored:\n", style="dim").append(f"{raw.text}\n")
    if view.pieces:
        text.append(f"{view.num_tokens} fused tokens, {view.num_supervised_tokens} trained on:", style="dim")
        for name, kind in (("trained on", ("text", True)), ("control token", ("special", False))):
            text.append(" ").append(name, style=_STYLES[kind])
        text.append("\n")
    num_images = 0
    for piece in view.pieces:
        num_images += piece.kind == "image"
        shown = f"<image {num_images}>" if piece.kind == "image" else piece.text
        text.append(shown, style=_STYLES[piece.kind, piece.trained])
    return text


def _sparkline(counts: list[int]) -> str:
    """Draw counts with block characters, neighbours added up where there are too many of them."""
    per_letter = -(-len(counts) // _SPARKLINE_WIDTH)
    counts = [sum(counts[start : start + per_letter]) for start in range(0, len(counts), per_letter)]
    most = max(counts)
    return "".join(" " if not count else chr(0x2581 + round(7 * count / most)) for count in counts)
