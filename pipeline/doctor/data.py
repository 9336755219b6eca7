"""Checks of the data side: shards against their index, and tokenizer against template."""

from __future__ import annotations

from pipeline.config import ConfigError, ExperimentConfig
from pipeline.doctor.finding import Finding
from pipeline.indexed_data import index_folder
from pipeline.shards import index_files
from pipeline.shards.freshness import describe_changes
from pipeline.shards.index import load_index
from pipeline.shards.storage import expand_shards

_MAX_NAMED = 3


def check_index(config: ExperimentConfig) -> Finding:
    """Compare the shards with their index."""
    try:
        num_shards, changes, missing = 0, list[str](), list[str]()
        for name, shards in config.data.shards_by_source.items():
            urls, folder = expand_shards(shards), index_folder(config, name)
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
    return Finding("index", "ok", f"{num_shards} shards, unchanged since they were indexed")


def check_encoder(config: ExperimentConfig) -> Finding:
    """Put tokenizer, template and image policy together."""
    from pipeline.prepare import build_encoder  # transformers takes seconds to load

    try:
        encoder = build_encoder(config)
    except (ConfigError, OSError) as error:
        return Finding("tokenizer and template", "error", str(error))
    detail = f"template {config.data.template} fits the tokenizer of {config.model.language_model}"
    return Finding("tokenizer and template", "ok", f"{detail}; encoding {encoder.fingerprint[:12]}")
