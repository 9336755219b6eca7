"""`ray-llava demo`: generate shards, pretrain, finetune, and show on held-out samples what each stage achieved.

The stages run exactly as `ray-llava pretrain` and `ray-llava finetune` run them; only the data is made here.
"""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.config_source import read_config
from jobs.console import output_console
from pipeline.config import ExperimentConfig
from pipeline.tools.demo.backbone_folders import LANGUAGE_MODEL, TOWER

if TYPE_CHECKING:  # torch takes seconds to load; usage errors need not wait for it
    from pipeline.tools.demo.results import Point, Row
    from pipeline.tools.demo.session import DemoResult, DemoStage

Out = Annotated[Path, typer.Option(help="Folder for shards, runs and the report; the same folder continues a demo.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Changes to both stages' configs.")]


def run(out: Out = Path("runs/demo"), overrides: Overrides = None) -> None:
    """Train a small LLaVA on generated scenes and show what it has learnt; minutes on two CPU cores."""
    started = time.monotonic()
    console = output_console()
    pretrain, finetune = _configs(out, overrides or [])
    from pipeline.tools.demo.session import run_demo

    result = run_demo(_stage(pretrain, console), _stage(finetune, console), out, console)
    console.print(build_table(result.points, result.rows))
    _print_where_to_look(console, result, time.monotonic() - started)


def _stage(config: ExperimentConfig, console: Console) -> "DemoStage":
    from pipeline.launch.run import run_training
    from pipeline.launch.watch import tracked_run
    from pipeline.tools.demo.session import DemoStage

    return DemoStage(
        run_dir=Path(config.run_dir),
        seed=config.seed,
        model=config.model,
        data=config.data,
        train=lambda: run_training(config, console),
        tracked=tracked_run(config) if config.tracking.enabled else None,
    )


def build_table(points: "list[Point]", rows: "list[Row]") -> Table:
    """Show losses and accuracies, a column per evaluation."""
    from pipeline.tools.demo.results import GUESSING

    table = Table(title="Held-out samples")
    table.add_column("")
    for name in (*(point.name for point in points), GUESSING):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.label, *row.cells, style="bold" if row.is_headline else None)
    return table


def _configs(out: Path, overrides: list[str]) -> tuple[ExperimentConfig, ExperimentConfig]:
    """Read the included configs, with every path under `out` and the weights where the package is installed."""
    common = [f"model.language_model={LANGUAGE_MODEL}", f"model.vision_tower={TOWER}"]
    pretrain, finetune = (
        [f"run_dir={out / stage}", f"data.shards=[{out / 'shards' / stage}-*.tar]", *common]
        for stage in ("pretrain", "finetune")
    )
    adapter = f"model.pretrain_mm_mlp_adapter={out / 'pretrain'}"
    return (
        read_config("demo_pretrain", [*pretrain, *overrides], "pretrain"),
        read_config("demo_finetune", [*finetune, adapter, *overrides], "finetune"),
    )


def _print_where_to_look(console: Console, result: "DemoResult", seconds: float) -> None:
    console.print(f"Report: [bold]{result.report}[/]")
    if result.tracking_uri is not None:
        from pipeline.tracking import dashboard_command

        command = dashboard_command(result.tracking_uri)
        console.print(f"Curves, data, lineage and models in MLflow: [bold]{command}[/]")
    words = ("ray-llava", "generate", str(result.run_dir), result.example.question, "-i", str(result.example_picture))
    console.print(f"Ask it yourself: [bold]{shlex.join(words)}[/]")
    held_out = result.run_dir.parent / "shards" / "held_out-*.tar"
    chat = shlex.join(("ray-llava", "chat", str(result.run_dir), "--examples", str(held_out)))
    console.print(f"Talk to it in a browser: [bold]{chat}[/]", soft_wrap=True)
    console.print(f"Took {seconds / 60:.1f} minutes")
