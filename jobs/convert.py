"""`ray-llava convert`: from annotation files, tables or downloads to verified WebDataset shards."""

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from jobs.console import output_console
from pipeline.config import ClusterConfig, ConfigError
from pipeline.errors import DataError, Reason
from pipeline.parallel.cpus import usable_cpus

if TYPE_CHECKING:  # torch takes seconds to load; usage errors need not wait for it
    from pipeline.index.scan import Checks
    from pipeline.parallel.run_map import RunMap
    from pipeline.tools.convert.run import Conversion
    from pipeline.tools.convert.source import Source

_MAX_LISTED = 10
_MEGABYTE = 1_000_000

SourceArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="LLaVA JSON, JSONL, Parquet, tar or COCO files, or a folder.")
]
# a string: a path would make `s3:/bucket` of a URL, and that a folder
OutOption = Annotated[str, typer.Option(help="Local folder for the shards; the same command continues in it.")]
FormatOption = Annotated[
    str, typer.Option("--format", help="llava, messages, parquet, img2dataset, coco, files, or auto.")
]
ImagesOption = Annotated[Path | None, typer.Option(help="Folder that relative image paths begin at.")]
ColumnOption = Annotated[str | None, typer.Option(help="Column of a table; found by its usual names when not given.")]
SeedOption = Annotated[int | None, typer.Option(help="Shuffle with this seed; the order of the source when not given.")]
CheckOption = Annotated[str, typer.Option(help="Images: `decode` every pixel, or read the `header` only.")]
LauncherOption = Annotated[str, typer.Option(help="`local`: processes of this machine; `ray`: Ray Data on a cluster.")]


def run(
    source: SourceArgument,
    out: OutOption,
    source_format: FormatOption = "auto",
    images: ImagesOption = None,
    max_samples: Annotated[int, typer.Option(min=1, help="Most samples in a shard.")] = 10_000,
    max_mb: Annotated[int, typer.Option(min=1, help="Most megabytes in a shard.")] = 500,
    shuffle_seed: SeedOption = None,
    prefix: Annotated[str, typer.Option(help="Start of the shards' names.")] = "train",
    image_column: ColumnOption = None,
    text_column: ColumnOption = None,
    first_caption: Annotated[bool, typer.Option(help="COCO: one caption per image instead of a sample each.")] = False,
    add_placeholder: Annotated[
        bool, typer.Option(help="Write a missing <image> before a single image's text.")
    ] = False,
    drop_leading_answer: Annotated[bool, typer.Option(help="Drop a first turn by the assistant.")] = False,
    ignore_field: Annotated[
        list[str] | None, typer.Option(help="A field that is neither media nor text of the sample; may be repeated.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="End with 3 when any entry becomes no sample.")] = False,
    dry_run: Annotated[
        int | None, typer.Option(min=1, help="Write no shards: show so many first samples as text and in a page.")
    ] = None,
    check: CheckOption = "decode",
    launcher: LauncherOption = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel shards; one per core by default.")] = None,
) -> None:
    """Convert a data set into WebDataset shards that pass the index; after a kill, the same command continues."""
    # 1. Refuse options that do not fit.
    if check not in ("decode", "header") or launcher not in ("local", "ray"):
        raise ConfigError(f"--check {check} --launcher {launcher}: expected decode or header, and local or ray")
    if not prefix or not prefix.replace("-", "").replace("_", "").isalnum():
        raise ConfigError(f"--prefix {prefix!r}: expected letters, digits, dashes and underscores")
    if "://" in out:
        raise ConfigError(f"--out {out}: expected a local folder; write the shards there, then copy them to the URL")
    from pipeline.index.scan import Checks
    from pipeline.samples.schema import SchemaPolicy
    from pipeline.tools.convert.formats import SourceOptions, look_for_source, searched_folder
    from pipeline.tools.convert.run import convert, unpacked_folder
    from pipeline.tools.convert.shard_plan import ShardLimits
    from pipeline.tools.inspect.prompt import visible

    # 2. Look at the source, and say what was decided.
    policy = SchemaPolicy(prepend_missing_placeholder=add_placeholder, drop_leading_answer=drop_leading_answer)
    folder = None if images is None else str(images)
    unpacked = unpacked_folder(Path(out).absolute())
    ignored = frozenset(ignore_field or ())
    options = SourceOptions(folder, image_column, text_column, first_caption, policy, ignored, str(unpacked))
    console = output_console()
    opened, notes = look_for_source(
        [os.path.abspath(path) if "://" not in path else path for path in source], source_format, options
    )
    for note in notes:
        console.print(Text(visible(note)), soft_wrap=True)
    checks = Checks(images="decode" if check == "decode" else "header")
    if dry_run is not None:
        _show_first(opened, dry_run, checks, notes, Path(out).absolute())
        shutil.rmtree(unpacked, ignore_errors=True)
        return
    # 3. Write the shards that are missing.
    columns = (
        TextColumn("writing shards"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("shards", total=None)
        result = convert(
            opened,
            Path(out).absolute(),
            limits=ShardLimits(max_samples, max_mb * _MEGABYTE),
            shuffle_seed=shuffle_seed,
            prefix=prefix,
            checks=checks,
            run_map=_run_map(launcher, workers or usable_cpus()),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    shutil.rmtree(unpacked, ignore_errors=True)  # all that it held is in the shards or in the report
    # 4. Account for every row.
    console.print(summary_table(result))
    for line in equations(result):
        console.print(line, markup=False, soft_wrap=True)
    if result.skipped:
        console.print(skipped_table(result))
        listed = f"{len(result.skipped)} skipped entries listed in {Path(out) / 'convert' / 'skipped.jsonl'}"
        console.print(listed, markup=False, soft_wrap=True)
    if not result.num_samples:
        raise ConfigError(f"nothing was written: every entry was skipped; {_advice(result, searched_folder(opened))}")
    # 5. With --strict, any refusal is an error.
    missing = [note for note in notes if note.startswith("missing:")]
    if strict and missing:
        raise DataError(Reason.MISSING_FILES, f"--strict: {'; '.join(missing)}")
    if strict and result.skipped:
        first = result.skipped[0]
        raise DataError(
            Reason(first.reason), f"--strict: {len(result.skipped)} of {result.num_entries} entries refused"
        )
    console.print(f"to train on them: {shards_override(out)}", markup=False, soft_wrap=True)


def _show_first(source: "Source", number: int, checks: "Checks", notes: Sequence[str], folder: Path) -> None:
    """Print the first samples, and write a page that shows their pictures."""
    from pipeline.tools.convert.preview import first_samples, render_page
    from pipeline.tools.inspect.prompt import visible

    console = output_console()
    samples = first_samples(source, number, checks)
    for one in samples:
        for line in one.lines():
            console.print(Text(visible(line)), soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "first-samples.html"
    page.write_text(render_page(samples, tuple(notes)), encoding="utf-8")
    console.print(f"nothing was written but {page}, which shows the pictures", markup=False, soft_wrap=True)


def equations(result: "Conversion") -> list[str]:
    """Return how everything that was found is accounted for."""
    account = result.account
    reasons = ", ".join(f"{reason} {number}" for reason, number in result.reasons().items())
    rows = f"rows: {result.num_entries} read = {result.num_samples} written + {len(result.skipped)} refused"
    lines = [
        f"{rows} ({reasons})" if reasons else rows,
        f"media: {account.media_found} found = {account.media_written} written + {account.media_refused} refused",
        f"places of media in the written texts: {account.places} = {account.marks} marks + {account.implied} implied",
    ]
    if account.set_aside:
        lines.append(f"set aside: {account.set_aside} other names of shown media, links to them, or fields ignored")
    return lines


def shards_override(folder: str) -> str:
    """Return the argument that names a folder of shards, quoted for YAML and for the shell."""
    return shlex.quote(f"data.shards=[{json.dumps(folder, ensure_ascii=False)}]")


def _advice(result: "Conversion", folder: str | None) -> str:
    """Return what to do about a conversion that wrote nothing; `folder` is where it looked for images."""
    reason, number = next(iter(result.reasons().items()))
    if reason != Reason.MISSING_IMAGE or folder is None:
        return "see the reasons above"
    return (
        f"{number} of {result.num_entries} name an image that is not in {folder}; pass the folder that the image paths "
        "begin at with --images"
    )


def summary_table(result: "Conversion") -> Table:
    """Render what was written and what was left out, by reason."""
    table = Table("", "number", "share", title="Conversion")
    table.columns[1].justify = table.columns[2].justify = "right"
    total = max(1, result.num_entries)
    table.add_row("written", str(result.num_samples), f"{result.num_samples / total:.2%}")
    for reason, number in result.reasons().items():
        table.add_row(f"skipped: {reason}", str(number), f"{number / total:.2%}")
    table.add_section()
    table.add_row("shards", str(len(result.shards)), f"{result.size_bytes / 1e9:.2f} GB")
    if result.num_resumed:
        table.add_row("of them finished before", str(result.num_resumed), "")
    return table


def skipped_table(result: "Conversion") -> Table:
    """Render the first skipped entries."""
    rows = result.skipped[:_MAX_LISTED]
    more = f", {len(rows)} of {len(result.skipped)}" if len(result.skipped) > len(rows) else ""
    table = Table("source", "row", "reason", "detail", title=f"Skipped entries{more}")
    for row in rows:  # as Text: what comes from outside must not be read as markup
        table.add_row(*(Text(cell) for cell in (Path(row.source).name, str(row.row), row.reason, row.detail)))
    return table


def _run_map(launcher: str, num_workers: int) -> "RunMap":
    from pipeline.parallel.children import run_in_processes, survive_in_tasks

    if launcher == "local":
        return run_in_processes(num_workers)
    from pipeline.launch.on_ray.cluster import join_cluster
    from pipeline.parallel.ray_map import map_on_cluster

    join_cluster(ClusterConfig(data_workers=num_workers))
    return survive_in_tasks(map_on_cluster)
