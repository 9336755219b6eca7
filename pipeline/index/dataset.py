"""The data of a config, indexed: one index per source, joined so that a row number names a sample of the whole run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.config import ConfigError, DataConfig
from pipeline.index.build import ensure_index
from pipeline.index.held_out import held_out_rows
from pipeline.index.hygiene.table import hygiene_table, passes
from pipeline.index.index import ShardIndex
from pipeline.index.lengths import build_token_columns
from pipeline.index.scan import Checks
from pipeline.parallel.run_map import RunMap, run_serially
from pipeline.run_folder.place import fetch, push, working_folder
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.image import ImageLimits
from pipeline.samples.schema import SchemaPolicy
from pipeline.shards.listing import expand_shards

_COUNTED_HERE = 5000
"""Samples whose tokens are counted in this process: another one takes seconds to load the tokenizer."""


class SourceRows(NamedTuple):
    """Which rows of an index belong to a source."""

    name: str
    """Empty for the only source of a run without a mix."""
    first_row: int
    end_row: int


class SourceFacts(NamedTuple):
    """What a record of a run says of one source of its data."""

    name: str
    """Empty for the only source of a run without a mix."""
    fingerprint: str
    """Of its own index."""
    shards: tuple[str, ...]
    """Their URLs."""
    num_usable: int
    """Samples that the index does not reject."""


class Selection(NamedTuple):
    """Good samples that a config does not train on."""

    num_left_out: int
    fingerprint: str
    """SHA-256 over the conditions and the rows that they leave out."""


@dataclass(frozen=True, eq=False)
class IndexedData:
    """All samples of a config."""

    index: ShardIndex
    tokens: pa.Table
    """`TOKEN_SCHEMA`, row by row of the index."""
    sources: tuple[SourceRows, ...]
    """In the order of their rows, without gaps."""
    facts: tuple[SourceFacts, ...] = ()
    """The same sources, as others are told of them."""
    left_out: Selection | None = None
    """What `data.where` and `data.held_out` leave out; None without them."""


def index_data(
    data: DataConfig,
    folder: Path,
    encoder: SampleEncoder,
    console: Console,
    run_map: RunMap = run_serially,
    name: str = "data",
) -> IndexedData:
    """Bring the index of every source up to date, count tokens, and join the sources.

    Args:
        data: names the shards and what is checked.
        folder: of the index, see `index_folder`; each source of a mix has a folder in it.
        encoder: counts tokens.
        console: shows progress.
        run_map: reads shards.
        name: of the run, shown with the progress.

    Raises:
        ConfigError: a source matches no shard, or two sources share one.
        ShardError: a shard is defective and data.on_bad_shard is `fail`.
    """
    urls = {source: _expand(source, shards) for source, shards in data.shards_by_source.items()}
    _check_disjoint(urls)
    indexes: dict[str, ShardIndex] = {}
    tables: list[pa.Table] = []
    for source, own_urls in urls.items():
        own_folder = folder / source if source else folder
        title = f"{name}{f', {source}' if source else ''}"
        with _progress(console, f"{title}: indexing shards") as report:
            indexes[source] = ensure_index(
                own_urls,
                own_folder,
                checks=checks_of(data),
                on_bad_shard=data.on_bad_shard,
                run_map=run_map,
                progress=report,
            )
        with _progress(console, f"{title}: counting tokens") as report:
            count_map = run_map if indexes[source].num_samples > _COUNTED_HERE else run_serially
            tables.append(
                build_token_columns(indexes[source], encoder, cache_dir=own_folder, run_map=count_map, progress=report)
            )
    push(folder)
    index, sources = join_indexes(indexes)
    tokens = pa.concat_tables(tables)
    selection = None
    if data.where or data.held_out is not None:
        tokens, selection = _select(data, index, tokens, index_against(data, folder, run_map), folder)
    facts = tuple(
        SourceFacts(source, own.fingerprint, tuple(shard.url for shard in own.shards), int(own.usable.sum()))
        for source, own in indexes.items()
    )
    return IndexedData(index, tokens, sources, facts, selection)


def index_against(data: DataConfig, folder: Path, run_map: RunMap = run_serially) -> ShardIndex | None:
    """Return the index of `data.against`, brought up to date in a folder of its own; None without any.

    Raises:
        ConfigError: it matches no shard.
    """
    if not data.against:
        return None
    try:
        urls = list(expand_shards(data.against))
    except ValueError as error:
        raise ConfigError(f"data.against: {error}") from error
    return ensure_index(urls, folder / "_against", checks=checks_of(data), on_bad_shard="quarantine", run_map=run_map)


def _select(
    data: DataConfig, index: ShardIndex, tokens: pa.Table, against: ShardIndex | None, folder: Path
) -> tuple[pa.Table, Selection]:
    """Return the token table in which samples that are not trained on have 0 tokens, and no reason.

    Raises:
        ConfigError: none is left.
    """
    kept = np.ones(index.num_samples, np.bool_)
    if data.where:
        kept &= passes(hygiene_table(index, against, folder), data.conditions)
    if data.held_out is not None:
        kept &= ~held_out_rows(index, data.held_out)
    good = tokens["num_tokens"].to_numpy() > 0
    if not (kept & good).any():
        if not data.where:
            raise ConfigError(f"data.held_out {data.held_out} leaves none of {int(good.sum())} samples to train on")
        raise ConfigError(f"data.where leaves none of {int(good.sum())} samples: {'; '.join(data.where)}")
    for name in ("num_tokens", "num_supervised_tokens", "num_truncated_tokens"):
        field = tokens.schema.get_field_index(name)
        counts = np.where(kept, tokens[name].to_numpy(), 0).astype(np.int32)
        tokens = tokens.set_column(field, tokens.schema.field(field), pa.array(counts))
    facts = json.dumps(list(data.where)).encode() + np.packbits(kept).tobytes()
    return tokens, Selection(int((good & ~kept).sum()), hashlib.sha256(facts).hexdigest())


def checks_of(data: DataConfig) -> Checks:
    """Return what the index of a config verifies."""
    return Checks(
        images=data.check_images,
        limits=ImageLimits(max_pixels=data.max_image_pixels),
        policy=SchemaPolicy(data.prepend_missing_placeholder, data.drop_leading_answer),
        allow_duplicate_keys=data.allow_duplicate_keys,
        keys=data.sample_keys,
    )


def index_folder(data: DataConfig, run_dir: str | Path, source: str = "") -> Path:
    """Return the folder of a run's index, or of the index of one source of its mix."""
    folder = working_folder(data.index_dir, "data.index_dir") if data.index_dir else working_folder(run_dir) / "index"
    fetch(folder, "" if data.index_dir else "index/")
    return folder / source if source else folder


def join_indexes(indexes: Mapping[str, ShardIndex]) -> tuple[ShardIndex, tuple[SourceRows, ...]]:
    """Put the rows of several indexes one after the other; a single one is unchanged.

    Keys need to be unique within a source only: sources come from different people.
    """
    first_row, first_shard = 0, 0
    sources, tables = [], []
    for name, index in indexes.items():
        sources.append(SourceRows(name, first_row, first_row + index.num_samples))
        field = index.samples.schema.get_field_index("shard")
        moved = pc.add(index.samples["shard"], pa.scalar(first_shard, pa.int32()))
        tables.append(index.samples.set_column(field, index.samples.schema.field(field), moved))
        first_row, first_shard = first_row + index.num_samples, first_shard + len(index.shards)
    parts = list(indexes.values())
    if len(parts) == 1:
        return parts[0], tuple(sources)
    facts = json.dumps([[name, index.fingerprint] for name, index in indexes.items()])
    joined = ShardIndex(
        shards=tuple(shard for index in parts for shard in index.shards),
        samples=pa.concat_tables(tables),
        checks=parts[0].checks,
        fingerprint=hashlib.sha256(facts.encode()).hexdigest(),
    )
    return joined, tuple(sources)


def _expand(name: str, shards: tuple[str, ...]) -> list[str]:
    try:
        return list(expand_shards(shards))
    except ValueError as error:
        raise ConfigError(f"data.{f'sources.{name}.' if name else ''}shards: {error}") from error


def _check_disjoint(urls: Mapping[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for name, own in urls.items():
        for url in own:
            if owner.setdefault(url, name) != name:
                raise ConfigError(
                    f"data.sources: {url} belongs to {owner[url]} and to {name}; a shard has one source: raise its "
                    "weight instead"
                )


@contextmanager
def _progress(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar that appears with the first report, so that finding everything up to date prints nothing."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("eta"), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task(title, total=None)

    def report(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        progress.stop()
