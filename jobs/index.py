"""`ray-llava index`: check all shards before anything is trained, and say what is wrong with which sample."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from jobs.config_source import ConfigOption, OverridesArgument, read_config
from jobs.console import output_console
from pipeline.config import ConfigError

if TYPE_CHECKING:  # torch takes seconds to load; config errors need not wait for it
    import pyarrow as pa

    from pipeline.shards.index import ShardIndex

_MAX_LISTED = 20

ReportOption = Annotated[
    Path | None, typer.Option(help="Write every rejected sample to this file, one JSON object per line.")
]


class RejectedSample(NamedTuple):
    """A sample that cannot be trained on."""

    shard: str
    key: str
    reason: str
    detail: str


def run(config: ConfigOption, overrides: OverridesArgument = None, report: ReportOption = None) -> None:
    """Index the shards of a config, or verify that the index is up to date, and show what cannot be used."""
    experiment = read_config(config, overrides)
    console = output_console()

    from pipeline.indexed_data import index_data, index_folder
    from pipeline.prepare import build_encoder

    data = index_data(experiment, build_encoder(experiment), console=console)
    index, tokens = data.index, data.tokens
    rejected = list_rejected(index, tokens)
    console.print(summary_table(index, tokens))
    if rejected:
        console.print(rejected_table(rejected[:_MAX_LISTED], len(rejected)))
    console.print(f"index: {index_folder(experiment)}, fingerprint {index.fingerprint[:12]}")
    if report is not None:
        report.write_text("".join(json.dumps(row._asdict()) + "\n" for row in rejected), encoding="utf-8")
        console.print(f"{len(rejected)} rejected samples listed in {report}")
    if len(rejected) == index.num_samples:
        raise ConfigError("no usable sample in these shards; see the reasons above")


def list_rejected(index: "ShardIndex", tokens: "pa.Table") -> list[RejectedSample]:
    """Return every sample that the data or the tokenizer rules out, in index order."""
    columns = (index.samples["shard"], index.samples["key"], tokens["reason"], tokens["detail"])
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return [RejectedSample(index.shards[shard].url, *rest) for shard, *rest in rows if rest[1]]


def summary_table(index: "ShardIndex", tokens: "pa.Table") -> Table:
    """Render how much there is, and how much of it is lost to which reason."""
    reasons = Counter(tokens["reason"].to_pylist())
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
            table.add_row(f"defective: {Path(shard.url).name}", shard.defect_reason, "")
    table.add_row("tokens", f"{sum(tokens['num_tokens'].to_pylist())}", "")
    table.add_row("supervised tokens", f"{sum(tokens['num_supervised_tokens'].to_pylist())}", "")
    return table


def rejected_table(rows: list[RejectedSample], num_rejected: int) -> Table:
    """Render the first rejected samples."""
    more = f", {len(rows)} of {num_rejected}; --report FILE lists all" if num_rejected > len(rows) else ""
    table = Table("shard", "key", "reason", "detail", title=f"Rejected samples{more}")
    for row in rows:  # as Text: keys come from outside and must not be read as markup
        table.add_row(*(Text(cell) for cell in (Path(row.shard).name, row.key, row.reason, row.detail)))
    return table
