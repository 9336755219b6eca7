"""Building the index: every shard scanned once, all scans combined, the result written and found again.

Shards whose size and version are unchanged are not read again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Reason, ShardError
from pipeline.index import files
from pipeline.index.freshness import describe_changes
from pipeline.index.image_sandbox import ImageSandbox
from pipeline.index.index import INDEX_SCHEMA, ShardIndex, ShardInfo, fingerprint_of, usable_rows
from pipeline.index.scan import Checks, ShardScan, index_shard
from pipeline.parallel.run_map import Progress, RunMap, run_serially
from pipeline.shards.storage import ShardStat, stat_shards

log = logging.getLogger(__name__)

OnBadShard = Literal["fail", "quarantine"]
_MAX_NAMED = 3


def build_index(
    shard_urls: Sequence[str],
    index_dir: str | Path,
    *,
    checks: Checks = Checks(),  # noqa: B008
    on_bad_shard: OnBadShard = "fail",
    run_map: RunMap = run_serially,
    progress: Progress | None = None,
) -> ShardIndex:
    """Scan the shards that changed, combine all scans and write the index.

    Args:
        shard_urls: shards in their final order, as `expand_shards` returns them.
        index_dir: local folder; created when missing.
        checks: what to verify.
        on_bad_shard: `quarantine` uses the samples that a shard's defect leaves intact, and counts the defect.
        run_map: how to run the scans.
        progress: called after every shard.

    Raises:
        ShardError: a shard is defective and `on_bad_shard` is `fail`; the scans that succeeded are kept.
        FileNotFoundError: a shard does not exist.
        OSError: storage failed.
    """
    folder = Path(index_dir)
    scans = _scan_all(shard_urls, folder, checks, run_map, progress)
    defects = [scan.defect for scan in scans if scan.defect is not None]
    if defects and on_bad_shard == "fail":
        raise _refuse(defects)
    for defect in defects:
        log.warning("shard quarantined: %s; its intact samples are used", defect)
    index = _assemble(scans, checks)
    files.write_index(folder, index.fingerprint, index.samples, files.describe(index.shards, checks))
    return index


def load_index(index_dir: str | Path) -> ShardIndex:
    """Read an index.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    manifest, samples = files.read_index(Path(index_dir))
    shards, checks = files.parse_description(manifest)
    infos = tuple(ShardInfo(**shard) for shard in shards)
    index = ShardIndex(infos, samples, checks, fingerprint_of(infos, samples))
    if index.fingerprint != manifest["fingerprint"] or sum(info.num_samples for info in infos) != index.num_samples:
        raise ValueError(f"index {index_dir} is damaged: its table does not match its manifest; remove the folder")
    return index


def ensure_index(
    shard_urls: Sequence[str],
    index_dir: str | Path,
    *,
    checks: Checks = Checks(),  # noqa: B008
    on_bad_shard: OnBadShard = "fail",
    run_map: RunMap = run_serially,
    progress: Progress | None = None,
) -> ShardIndex:
    """Return the index of exactly these shards: the present one when it still matches, else a new one.

    Arguments and errors are those of `build_index`.
    """
    folder = Path(index_dir)
    if files.exists(folder):
        try:
            index = load_index(folder)
        except ValueError as error:
            log.warning("%s; building it again", error)
        else:
            if _matches(index, shard_urls, checks, on_bad_shard):
                return index
            changes = describe_changes(index, shard_urls) or ["other checks are asked for"]
            log.warning(
                "index %s is stale: %s; scanning what changed. A run begun on the old data will refuse to continue",
                folder,
                "; ".join(changes[:_MAX_NAMED]) + (f"; {len(changes)} changes in all" if changes[_MAX_NAMED:] else ""),
            )
    return build_index(shard_urls, folder, checks=checks, on_bad_shard=on_bad_shard, run_map=run_map, progress=progress)


def _matches(index: ShardIndex, shard_urls: Sequence[str], checks: Checks, on_bad_shard: OnBadShard) -> bool:
    if [info.url for info in index.shards] != list(shard_urls) or index.checks != checks:
        return False
    if on_bad_shard == "fail" and any(info.defect_reason for info in index.shards):
        return False
    return stat_shards(shard_urls) == [ShardStat(info.size_bytes, info.version) for info in index.shards]


def _scan_all(
    urls: Sequence[str], folder: Path, checks: Checks, run_map: RunMap, progress: Progress | None
) -> list[ShardScan]:
    """Return one scan per shard in order; only shards without a stored scan are read."""
    stats = stat_shards(urls)
    scans = {
        url: scan
        for url, stat in zip(urls, stats, strict=True)
        if (scan := files.read_scan(folder, url, stat, checks)) is not None
    }
    missing = [(url, stat) for url, stat in zip(urls, stats, strict=True) if url not in scans]
    done = len(scans)
    for scan in run_map(ScanShard(checks), missing):
        files.write_scan(folder, scan, checks)
        scans[scan.url] = scan
        done += 1
        if progress is not None:
            progress(done, len(urls))
    return [scans[url] for url in urls]


@dataclass(frozen=True)
class ScanShard:
    """Scans a shard in a process that an image may end (`Survivable` in `pipeline.parallel.children`)."""

    checks: Checks

    def __call__(self, shard: tuple[str, ShardStat], /) -> ShardScan:
        """Scan a shard."""
        return index_shard(*shard, self.checks)

    def after_death(self, shard: tuple[str, ShardStat], how: str, /) -> ShardScan:
        """Scan a shard again with every image decoded apart; one that ends its process is rejected."""
        log.warning("the process that read %s %s; reading it again, its images in a sandbox", shard[0], how)
        with ImageSandbox(self.checks) as sandbox:
            return index_shard(*shard, self.checks, sandbox.image_facts)


def _assemble(scans: Sequence[ShardScan], checks: Checks) -> ShardIndex:
    tables = [
        scan.samples.add_column(0, INDEX_SCHEMA.field("shard"), pa.array(np.full(scan.samples.num_rows, idx, np.int32)))
        for idx, scan in enumerate(scans)
    ]
    samples = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables]).combine_chunks()
    if not checks.allow_duplicate_keys:
        samples = _reject_keys_of_earlier_shards(samples)
    shards = tuple(_info(scan) for scan in scans)
    return ShardIndex(shards, samples, checks, fingerprint_of(shards, samples))


def _reject_keys_of_earlier_shards(samples: pa.Table) -> pa.Table:
    """Mark samples whose key an earlier shard has already used."""
    if samples.num_rows == 0:
        return samples
    codes = pc.dictionary_encode(samples["key"].combine_chunks()).indices.to_numpy()
    shard = samples["shard"].to_numpy()
    _, first_rows = np.unique(codes, return_index=True)
    first_shard = shard[first_rows][codes]
    repeated = (first_shard != shard) & usable_rows(samples)
    if not repeated.any():
        return samples
    where = pa.array(repeated)
    detail = pa.array(
        [
            f"shard {number} of the list has the same key" if bad else ""
            for number, bad in zip(first_shard.tolist(), repeated.tolist(), strict=True)
        ]
    )
    reasons = pc.if_else(where, Reason.DUPLICATE_KEY.value, samples["reason"])
    details = pc.if_else(where, detail, samples["detail"])
    samples = samples.set_column(INDEX_SCHEMA.get_field_index("reason"), INDEX_SCHEMA.field("reason"), reasons)
    return samples.set_column(INDEX_SCHEMA.get_field_index("detail"), INDEX_SCHEMA.field("detail"), details)


def _info(scan: ShardScan) -> ShardInfo:
    return ShardInfo(
        url=scan.url,
        size_bytes=scan.stat.size_bytes,
        version=scan.stat.version,
        sha256=scan.sha256,
        num_samples=scan.samples.num_rows,
        defect_reason="" if scan.defect is None else scan.defect.reason.value,
        defect_detail="" if scan.defect is None else scan.defect.what,
        passed_over=dict(scan.passed_over),
    )


def _refuse(defects: Sequence[ShardError]) -> ShardError:
    first = defects[0]
    if len(defects) == 1:
        return first
    others = ", ".join(f"{defect.shard} ({defect.reason})" for defect in defects[1:10])
    more = f" and {len(defects) - 10} more" if len(defects) > 10 else ""
    return ShardError(first.reason, f"{first.what} (also defective: {others}{more})", shard=first.shard)
