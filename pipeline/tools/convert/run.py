"""A conversion from start to end: list the source, plan the shards, write those that are missing, report.

Runs on any `RunMap`: in this process, in processes of this machine, or as a Ray Data job. Killed anywhere, the same
command continues with the shards that have no record and produces the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa

from pipeline.index.scan import Checks
from pipeline.parallel.run_map import Progress, RunMap, run_serially
from pipeline.shards.storage import ShardStat, stat_shard
from pipeline.tools.convert.shard_job import (
    Account,
    ShardJob,
    ShardRecord,
    ShardTask,
    Skipped,
    read_record,
    read_records,
    remove_records,
    write_json,
)
from pipeline.tools.convert.shard_plan import Ids, ShardLimits, cut_shards, order_entries
from pipeline.tools.convert.source import Source

FORMAT = 5
"""Raised whenever the same source would give other bytes."""


class Conversion(NamedTuple):
    """What a conversion wrote."""

    shards: tuple[str, ...]
    """Paths in order; shards in which nothing was left are not among them."""
    num_entries: int
    num_samples: int
    size_bytes: int
    num_resumed: int
    """Shards that an earlier start of the same conversion had finished."""
    skipped: tuple[Skipped, ...]
    account: Account = Account()
    """Media found, written and refused."""

    def reasons(self) -> dict[str, int]:
        """Count skipped entries by reason, most frequent first."""
        return dict(Counter(entry.reason for entry in self.skipped).most_common())


def convert(
    source: Source,
    folder: str | Path,
    *,
    limits: ShardLimits,
    shuffle_seed: int | None = None,
    prefix: str = "train",
    checks: Checks = Checks(),  # noqa: B008
    run_map: RunMap = run_serially,
    progress: Progress | None = None,
) -> Conversion:
    """Write the samples of a source as verified shards, `PREFIX-000000.tar` and so on.

    In addition to the shards, `convert/` holds a record per shard, `manifest.json` and `skipped.jsonl`.

    Args:
        source: what to convert.
        folder: where the shards go, on storage that all workers share.
        limits: size of a shard.
        shuffle_seed: None keeps the order of the source.
        prefix: start of the shards' names.
        checks: what a sample must pass.
        run_map: how to run listing and writing.
        progress: called after every shard.

    Raises:
        ValueError: nothing to convert, or the folder holds another conversion.
        DataError: a source file cannot be read to its end.
        OSError: storage failed.
    """
    target = Path(folder)
    units = source.units()
    listing = list_entries(source, units, run_map)
    order = order_entries(_blocks(listing), shuffle_seed)
    cuts = cut_shards(listing["size_bytes"].to_numpy()[order], limits)
    settings = _settings(source, limits, shuffle_seed, prefix, checks)
    description = _without_place({"units": units, **settings}, target)
    plan = _fingerprint(listing, units, description)
    _claim(target, plan, description)
    names = [f"{prefix}-{number:06d}.tar" for number in range(len(cuts))]
    jobs = _Jobs(plan, names, [order[start:end] for start, end in cuts], listing)
    records, num_resumed = _write_missing(jobs, ShardTask(source, tuple(units), str(target), checks), run_map, progress)
    result = _summarize(target, records, num_resumed)
    _write_report(target, plan, description, result, records)
    return result


def unpacked_folder(folder: str | Path) -> Path:
    """Return where a conversion puts the files of archives."""
    return Path(folder) / "convert" / "unpacked"


def _without_place(description: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a description in which unpacked files have the same names whatever the folder of the conversion is."""
    place = json.dumps(str(unpacked_folder(folder)))[1:-1]
    text = json.dumps(description).replace(place, "unpacked")
    return dict(json.loads(text))


class _Jobs(Sequence[ShardJob]):
    """Planned shards; each gets its part of the listing when it is asked for, so that few parts exist at a time."""

    def __init__(self, plan: str, names: Sequence[str], parts: Sequence[Ids], listing: pa.Table) -> None:
        self.plan, self.names, self._parts, self._listing = plan, names, parts, listing

    def without(self, finished: Container[str]) -> _Jobs:
        """Return the jobs of the other shards."""
        left = [idx for idx, name in enumerate(self.names) if name not in finished]
        return _Jobs(self.plan, [self.names[idx] for idx in left], [self._parts[idx] for idx in left], self._listing)

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> ShardJob: ...
    @overload
    def __getitem__(self, place: slice) -> _Jobs: ...
    def __getitem__(self, place: int | slice) -> ShardJob | _Jobs:
        if isinstance(place, slice):
            return _Jobs(self.plan, self.names[place], self._parts[place], self._listing)
        return ShardJob(self.names[place], self.plan, self._listing.take(pa.array(self._parts[place])))


def list_entries(source: Source, units: Sequence[str], run_map: RunMap = run_serially) -> pa.Table:
    """Return the listings of all units as one table, with `unit` as the number of the source file.

    Raises:
        ValueError: there is no entry at all.
    """
    tables = []
    for number, table in enumerate(run_map(functools.partial(_list_unit, source=source), units)):
        tables.append(table.append_column("unit", pa.array(np.full(table.num_rows, number, np.int32))))
    listing = pa.concat_tables(tables, promote_options="default")  # a source may list columns of its own
    if listing.num_rows == 0:
        raise ValueError(f"nothing to convert: {', '.join(units[:3])} has no entry")
    return listing


def _list_unit(unit: str, *, source: Source) -> pa.Table:
    return source.list_unit(unit)


def _blocks(listing: pa.Table) -> Ids:
    """Return block numbers that are unique over all units, ascending."""
    blocks: Ids = (listing["unit"].to_numpy().astype(np.int64) << 40) + listing["block"].to_numpy()
    return blocks


def _settings(
    source: Source, limits: ShardLimits, shuffle_seed: int | None, prefix: str, checks: Checks
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "kind": source.kind,
        "source": repr(source),
        "limits": limits._asdict(),
        "shuffle_seed": shuffle_seed,
        "prefix": prefix,
        "checks": dataclasses.asdict(checks),
    }


def _fingerprint(listing: pa.Table, units: Sequence[str], settings: dict[str, Any]) -> str:
    """Hash what decides the content of every shard: source files in their state, their listing, the settings."""
    digest = hashlib.sha256(json.dumps([settings, [list(_state(unit)) for unit in units]]).encode())
    for name in ("row", "block", "size_bytes"):
        digest.update(listing[name].to_numpy().tobytes())
    for chunk in listing["reason"].chunks:  # not as Python texts: there may be ten million
        digest.update(json.dumps(chunk.dictionary_encode().dictionary.to_pylist()).encode())
        digest.update(chunk.dictionary_encode().indices.to_numpy().tobytes())
    return digest.hexdigest()


def _state(unit: str) -> ShardStat:
    """Return what tells whether a unit changed; the files of a folder are in its listing."""
    return ShardStat(0, "") if os.path.isdir(unit) else stat_shard(unit)


def _claim(folder: Path, plan: str, description: dict[str, Any]) -> None:
    """Note in the folder which conversion it belongs to; another one that wrote no sample gives way.

    Raises:
        ValueError: it holds another one.
    """
    for leftover in [*folder.glob(".*.tmp"), *(folder / "convert").glob(".*.tmp")]:
        leftover.unlink()  # of a conversion that was killed
    path = folder / "convert" / "plan.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["plan"] == plan:
            return
        if any(folder.glob("*.tar")) or any(record.num_samples for record in read_records(folder)):
            changed = [name for name, value in description.items() if found.get(name) != value] or ["source files"]
            raise ValueError(
                f"{folder} holds the shards of another conversion ({', '.join(changed)} differ): a resumed conversion "
                f"must see the same source and settings; choose another folder, or remove {found['prefix']}-*.tar and "
                "convert/ in this one"
            )
        remove_records(folder)
    elif any(folder.glob("*.tar")):
        raise ValueError(f"{folder} already holds tar files that no conversion wrote; choose another folder")
    write_json(path, {"plan": plan, **description})


def _write_missing(
    jobs: _Jobs, task: ShardTask, run_map: RunMap, progress: Progress | None
) -> tuple[list[ShardRecord], int]:
    """Return the record of every shard in order, and how many were there already."""
    found = {name: read_record(task.folder, name, jobs.plan) for name in jobs.names}
    records = {name: record for name, record in found.items() if record is not None}
    num_resumed = len(records)
    for record in run_map(task, jobs.without(records)):
        records[record.name] = record
        if progress is not None:
            progress(len(records), len(jobs.names))
    return [records[name] for name in jobs.names], num_resumed


def _summarize(folder: Path, records: Sequence[ShardRecord], num_resumed: int) -> Conversion:
    return Conversion(
        shards=tuple(str(folder / record.name) for record in records if record.num_samples),
        num_entries=sum(record.num_entries for record in records),
        num_samples=sum(record.num_samples for record in records),
        size_bytes=sum(record.size_bytes for record in records),
        num_resumed=num_resumed,
        skipped=tuple(entry for record in records for entry in record.skipped),
        account=functools.reduce(Account.plus, (record.account for record in records), Account()),
    )


def _write_report(
    folder: Path, plan: str, description: dict[str, Any], result: Conversion, records: Sequence[ShardRecord]
) -> None:
    if result.num_entries != result.num_samples + len(result.skipped):
        raise AssertionError(
            f"{result.num_entries} entries, {result.num_samples} samples, {len(result.skipped)} skipped"
        )
    result.account.check()
    lines = "".join(json.dumps(entry._asdict()) + "\n" for entry in result.skipped)
    (folder / "convert" / "skipped.jsonl").write_text(lines, encoding="utf-8")
    shards = [
        {"name": one.name, "sha256": one.sha256, "size_bytes": one.size_bytes, "num_samples": one.num_samples}
        for one in records
    ]
    counts: dict[str, Any] = {
        "num_entries": result.num_entries,
        "num_samples": result.num_samples,
        "skipped": result.reasons(),
    }
    counts["account"] = result.account._asdict()
    write_json(folder / "convert" / "manifest.json", {"plan": plan, **description, **counts, "shards": shards})
