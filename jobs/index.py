"""`ray-llava index`: check all shards before anything is trained, and report which samples are unusable and why."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from pipeline.config import ConfigError
from pipeline.run_folder.links import check_links
from pipeline.run_folder.place import shown, working_folder

if TYPE_CHECKING:  # torch takes seconds to load; config errors need not wait for it
    import pyarrow as pa

    from pipeline.config import DataConfig
    from pipeline.index.dataset import IndexedData
    from pipeline.index.index import ShardIndex
    from pipeline.index.rejected import RejectedSample
    from pipeline.parallel.run_map import RunMap

_MAX_LISTED = 20

ReportOption = Annotated[
    Path | None, typer.Option(help="Write every rejected sample to this file, one JSON object per line.")
]


AgainstOption = Annotated[
    list[str] | None, typer.Option(metavar="SHARDS", help="Held-out shards: say which samples occur there too.")
]


def run(
    config: ConfigOption,
    overrides: OverridesArgument = None,
    report: ReportOption = None,
    against: AgainstOption = None,
) -> None:
    """Index the shards of a config, or verify that the index is up to date, and show what cannot be used."""
    if against:
        named = json.dumps([one if "://" in one else os.path.abspath(one) for one in against], ensure_ascii=False)
        overrides = [*(overrides or []), f"data.against={named}"]
    experiment = read_config(config, overrides).with_absolute_paths()
    console = output_console()

    from pipeline.assembly.encoder import build_encoder
    from pipeline.index.budget import describe_excess
    from pipeline.index.dataset import index_folder
    from pipeline.index.rejected import list_rejected
    from pipeline.launch.prepare import index_run
    from pipeline.launch.run_maps import choose_run_map
    from pipeline.tools.inspect.locate import short_names
    from pipeline.tools.inspect.prompt import visible

    if report is not None:
        _check_report(report)

    # 1. Read what is new.
    check_links(working_folder(experiment.run_dir))
    run_map = choose_run_map(experiment.cluster)
    data = index_run(experiment, build_encoder(experiment.model, experiment.data), console, run_map)
    # 2. Say what is there, what is rejected and what was passed over.
    index, tokens = data.index, data.tokens
    rejected = list_rejected(index, tokens)
    console.print(summary_table(index, tokens))
    if rejected:
        console.print(rejected_table(rejected[:_MAX_LISTED], len(rejected), short_names(index)))
    for sentence in passed_over(experiment.data.shards_by_source, index.passed_over()):
        console.print(Text(f"passed over: {visible(sentence)}", style="yellow"), soft_wrap=True)
    place = shown(index_folder(experiment.data, experiment.run_dir))
    console.print(f"index: {place}, fingerprint {index.fingerprint[:12]}")
    if data.left_out is not None:
        console.print(f"left out by data.where and data.held_out: {data.left_out.num_left_out} samples")
    if experiment.data.against:
        report_overlap(console, data, experiment.data, index_folder(experiment.data, experiment.run_dir), run_map)
    # 3. Write the report, and say whether a run would start.
    if report is not None:
        report.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rejected), encoding="utf-8")
        console.print(f"{len(rejected)} rejected samples listed in {report}")
    if len(rejected) == index.num_samples:
        raise ConfigError("no usable sample in these shards; see the reasons above")
    warn_of_refusal(console, describe_excess(data, experiment.data))


def report_overlap(
    console: Console, data: "IndexedData", config: "DataConfig", folder: Path, run_map: "RunMap"
) -> None:
    """Say how many samples also occur in `data.against`, and list them in a file."""
    from pipeline.index.dataset import index_against
    from pipeline.index.hygiene.table import hygiene_table

    table = hygiene_table(data.index, index_against(config, folder, run_map), folder)
    found = [(row, kind) for row, kind in enumerate(table["overlap"].to_pylist()) if kind != "none"]
    counts = Counter(kind for _, kind in found)
    listed = ", ".join(f"{kind} {counts[kind]}" for kind in ("text", "image", "both"))
    console.print(f"overlap with {', '.join(config.against)}: {listed} of {data.index.num_samples} samples")
    if found:
        rows = data.index.samples.take([row for row, _ in found])
        path = folder / "overlap.jsonl"
        lines = [
            json.dumps({"shard": data.index.shards[shard].url, "key": key, "sample_id": row, "overlap": kind})
            for (row, kind), shard, key in zip(found, rows["shard"].to_pylist(), rows["key"].to_pylist(), strict=True)
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        console.print(f"listed in {path}; `data.where` with `overlap == none` leaves them out", markup=False)


def passed_over(shards_by_source: "Mapping[str, Sequence[str]]", members: "Mapping[str, int]") -> list[str]:
    """Return sentences about files and members that are not part of the index."""
    from pipeline.shards.listing import describe_passed_over

    inside = ", ".join(f"{number} {what}" for what, number in members.items())
    found = [sentence for shards in shards_by_source.values() for sentence in describe_passed_over(shards)]
    return [*([f"{inside} in the shards, which hold nothing of a sample"] if inside else []), *found]


def _check_report(report: Path) -> None:
    """Make the folder of a report before the shards are read, which may take hours."""
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--report {report}: its folder cannot be made ({error}); name another file") from error
    if report.is_dir():
        raise ConfigError(f"--report {report}: is a folder; name a file")


def warn_of_refusal(console: Console, excess: str | None) -> None:
    """Say that training would be refused with these data, and why."""
    if excess is not None:
        console.print(Text(f"a run on these data would be refused: {excess}", style="bold red"))


def summary_table(index: "ShardIndex", tokens: "pa.Table") -> Table:
    """Render how much there is, and how much of it is lost to which reason."""
    import pyarrow.compute as pc

    from pipeline.tools.inspect.prompt import visible

    def total_of(column: str) -> int:
        return pc.sum(tokens[column]).as_py() or 0

    reasons = Counter({entry["values"]: entry["counts"] for entry in tokens["reason"].value_counts().to_pylist()})
    num_usable = reasons.pop("", 0)
    table = Table("", "number", "share", title="Samples")
    table.columns[1].justify = table.columns[2].justify = "right"
    total = max(1, index.num_samples)
    table.add_row("usable", str(num_usable), f"{num_usable / total:.2%}")
    for reason, number in reasons.most_common():
        table.add_row(f"rejected: {reason}", str(number), f"{number / total:.2%}")
    table.add_section()
    num_bytes = sum(shard.size_bytes for shard in index.shards)
    table.add_row("shards", str(len(index.shards)), f"{num_bytes / 1e9:.2f} GB")
    for shard in index.shards:
        if shard.defect_reason:
            table.add_row(Text(visible(f"defective: {Path(shard.url).name}")), shard.defect_reason, "")
    num_tokens, num_cut = total_of("num_tokens"), total_of("num_truncated_tokens")
    table.add_row("tokens", str(num_tokens), "")
    table.add_row("supervised tokens", str(total_of("num_supervised_tokens")), "")
    if num_cut:
        table.add_row("cut off the end", str(num_cut), f"{num_cut / (num_tokens + num_cut):.2%}")
    return table


def rejected_table(rows: "list[RejectedSample]", num_rejected: int, shards: "dict[str, str]") -> Table:
    """Render the first rejected samples; `shards` is what to call each shard."""
    from pipeline.tools.inspect.prompt import visible

    more = f", {len(rows)} of {num_rejected}; --report FILE lists all" if num_rejected > len(rows) else ""
    table = Table("shard", "key", "reason", "detail", title=f"Rejected samples{more}")
    for row in rows:  # as Text: keys come from outside and must not be read as markup
        table.add_row(*(Text(visible(cell)) for cell in (shards[row.shard], row.key, row.reason, row.detail)))
    return table
