"""Index files on disk: one Arrow table, one manifest that commits it, and one Parquet file per scanned shard.

The table is mapped into memory, not read: a plan needs few of its columns, and a sample one row of the others, so that
a hundred million rows (12 GB) take no more memory than what is looked at.
Every file is written under a temporary name, synced and renamed, so that a killed build leaves the previous index or
the scans it had finished, never half a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.files.atomic import replacing
from pipeline.errors import Reason, ShardError
from pipeline.index.scan import Checks, ShardScan
from pipeline.samples.image import ImageLimits
from pipeline.samples.schema import SchemaPolicy
from pipeline.shards.storage import ShardStat

FORMAT = 6
"""Raised whenever the meaning of a stored column or a verdict changes; other versions are built again."""
_MANIFEST = "index.json"
_SCANS = "scans"
_FACTS = b"ray_llava"
_DIGEST = b"ray_llava.sha256"


def exists(folder: Path) -> bool:
    """Whether the folder holds a finished index."""
    return (folder / _MANIFEST).is_file()


def describe(shards: Sequence[Any], checks: Checks) -> dict[str, Any]:
    """Return the manifest's description of shards (named tuples) and checks."""
    return {"shards": [shard._asdict() for shard in shards], "checks": dataclasses.asdict(checks)}


def parse_description(manifest: Mapping[str, Any]) -> tuple[list[dict[str, Any]], Checks]:
    """Read what `describe` wrote."""
    checks = dict(manifest["checks"])
    limits, policy = ImageLimits(**checks.pop("limits")), SchemaPolicy(**checks.pop("policy"))
    return manifest["shards"], Checks(**checks, limits=limits, policy=policy)


def write_index(folder: Path, fingerprint: str, samples: pa.Table, description: Mapping[str, Any]) -> None:
    """Write the table, then the manifest that makes it the index."""
    folder.mkdir(parents=True, exist_ok=True)
    table_name = f"samples-{fingerprint[:16]}.arrow"
    with replacing(folder / table_name) as temporary:
        _write_arrow(temporary, samples)
        table_digest = _file_digest(temporary)
    manifest = {"format": FORMAT, "fingerprint": fingerprint, "samples": table_name, "samples_sha256": table_digest}
    manifest |= description
    content = json.dumps({**manifest, "sha256": _manifest_digest(manifest)}, indent=1).encode()
    with replacing(folder / _MANIFEST) as temporary:
        temporary.write_bytes(content)


def read_index(folder: Path) -> tuple[dict[str, Any], pa.Table]:
    """Return manifest and table, of which every byte was compared with its digest.

    That reads the table once; its values stay on disk until they are asked for.

    Raises:
        ValueError: no index, one of another format, or a damaged one.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise ValueError(f"index {folder}: no {_MANIFEST}; build it with `ray-llava index`")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"index {folder} has format {manifest['format']}, this version reads {FORMAT}")
        if manifest.pop("sha256") != _manifest_digest(manifest):
            raise ValueError(f"index {folder} is damaged: {_MANIFEST} is not as it was written; remove the folder")
        if _file_digest(folder / manifest["samples"]) != manifest["samples_sha256"]:
            raise ValueError(f"index {folder} is damaged: its table is not as it was written; remove the folder")
        return manifest, pa.ipc.open_file(pa.memory_map(str(folder / manifest["samples"]))).read_all()
    except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, pa.ArrowException) as error:
        raise ValueError(f"index {folder} is damaged ({type(error).__name__}); remove the folder") from error


def write_scan(folder: Path, scan: ShardScan, checks: Checks) -> None:
    """Store the scan of one shard."""
    (folder / _SCANS).mkdir(parents=True, exist_ok=True)
    defect = None if scan.defect is None else [scan.defect.reason.value, scan.defect.what]
    facts = json.dumps(
        {"url": scan.url, "sha256": scan.sha256, "defect": defect, "passed_over": dict(scan.passed_over)}
    ).encode()
    table = scan.samples.replace_schema_metadata({_FACTS: facts})
    write_table(_scan_path(folder, scan.url, scan.stat, checks), table)


def read_scan(folder: Path, url: str, stat: ShardStat, checks: Checks) -> ShardScan | None:
    """Return the stored scan of a shard in this very state, or None; a damaged one counts as none."""
    path = _scan_path(folder, url, stat, checks)
    if not path.is_file():
        return None
    try:
        table = read_table(path)
        facts = json.loads(table.schema.metadata[_FACTS])
        found = facts["defect"]
        defect = None if found is None else ShardError(Reason(found[0]), found[1], shard=url)
        samples = table.replace_schema_metadata(None)
        return ShardScan(url, stat, facts["sha256"], defect, samples, facts["passed_over"])
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return None


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file with a digest of its values, atomically; `path.parent` exists."""
    metadata = {**(table.schema.metadata or {}), _DIGEST: _values_digest(table)}
    with replacing(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Read what `write_table` wrote; the schema's metadata are those that were given to it.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        table = pq.read_table(path)
        metadata = dict(table.schema.metadata or {})
        found = metadata.pop(_DIGEST, b"")
        table = table.replace_schema_metadata(metadata or None)
        if schema is not None:
            table = table.cast(schema)
    except (pa.ArrowException, MemoryError) as error:  # damaged lengths ask for any amount
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error
    if found != _values_digest(table):
        raise ValueError(f"{path} is damaged: its values are not those that were written")
    return table


def _values_digest(table: pa.Table) -> bytes:
    """Return a digest of a table's columns and the facts in its metadata, whatever its chunks."""
    digest = hashlib.sha256((table.schema.metadata or {}).get(_FACTS, b""))
    for batch in table.replace_schema_metadata(None).combine_chunks().to_batches():
        digest.update(memoryview(batch.serialize()))
    return digest.hexdigest().encode()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _scan_path(folder: Path, url: str, stat: ShardStat, checks: Checks) -> Path:
    state = json.dumps([FORMAT, url, *stat, dataclasses.asdict(checks)], sort_keys=True)
    return folder / _SCANS / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.parquet"


def _write_arrow(path: Path, table: pa.Table) -> None:
    """Write an Arrow file of one batch, uncompressed, which can be memory-mapped."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())
