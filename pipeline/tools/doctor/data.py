"""Checks of the data side: shards against their index, and tokenizer against template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import ConfigError, DataConfig, ModelConfig
from pipeline.errors import DataError
from pipeline.index import files as index_files
from pipeline.index.budget import describe_excess
from pipeline.index.build import load_index
from pipeline.index.dataset import index_data, index_folder
from pipeline.index.freshness import describe_changes
from pipeline.shards.listing import expand_shards
from pipeline.tools.doctor.finding import Finding

_MAX_NAMED = 3


def check_index(parts: ModelConfig, data: DataConfig, run_dir: str | Path) -> Finding:
    """Compare the shards with their index."""
    try:
        num_shards, changes, missing = 0, list[str](), list[str]()
        for name, shards in data.shards_by_source.items():
            urls, folder = expand_shards(shards), index_folder(data, run_dir, name)
            num_shards += len(urls)
            if index_files.exists(folder):
                changes += describe_changes(load_index(folder), urls)
            else:
                missing.append(str(folder))
    except (ValueError, OSError) as error:
        return Finding("index", "error", f"{error}")
    if changes:
        more = f"; {len(changes) - _MAX_NAMED} more" if len(changes) > _MAX_NAMED else ""
        named = "; ".join(changes[:_MAX_NAMED]) + more
        return Finding(
            "index", "warning", f"{named}. They will be scanned again; a run that was begun on the old data is refused"
        )
    if missing:
        later = "the run does it, or `ray-llava index`"
        return Finding("index", "ok", f"{num_shards} shards, not indexed yet in {', '.join(missing)}; {later}")
    excess = _describe_excess(parts, data, run_dir)
    if excess is not None:
        return Finding("index", "error", f"the run would be refused: {excess}")
    return Finding("index", "ok", f"{num_shards} shards, unchanged since they were indexed")


def _describe_excess(parts: ModelConfig, data: DataConfig, run_dir: str | Path) -> str | None:
    """Judge the rejected samples of an index that is up to date; None when it is not complete, or fits the limits."""
    from pipeline.assembly.encoder import build_encoder  # transformers takes seconds to load

    try:
        encoder, folder = build_encoder(parts, data), index_folder(data, run_dir)
        indexed = index_data(data, folder, encoder, Console(quiet=True), read_nothing)
    except IncompleteError:
        return None  # the run counts the rest
    except (DataError, OSError) as error:  # a defective shard, or storage failed
        return str(error)
    except ConfigError:
        return None  # `check_encoder` reports it
    return describe_excess(indexed, data)


class IncompleteError(Exception):
    """Shards would have to be read."""


def read_nothing(function: Callable[[Any], Any], items: Sequence[Any], /) -> Iterable[Any]:
    """Stand for what reads shards, where an index that is not complete is to be left as it is.

    Raises:
        IncompleteError: there is something to read.
    """
    if items:
        raise IncompleteError
    return ()


def check_encoder(parts: ModelConfig, data: DataConfig) -> Finding:
    """Put tokenizer, template and image policy together."""
    from pipeline.assembly.encoder import build_encoder  # transformers takes seconds to load

    try:
        encoder = build_encoder(parts, data)
    except (ConfigError, OSError) as error:
        return Finding("tokenizer and template", "error", str(error))
    detail = f"template {data.template} fits the tokenizer of {parts.language_model}"
    return Finding("tokenizer and template", "ok", f"{detail}; encoding {encoder.fingerprint[:12]}")
