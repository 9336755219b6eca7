"""The index: ids that never shift, only changed shards are read, nothing half-written, nothing silent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import Reason, ShardError
from pipeline.index.build import build_index, ensure_index, load_index
from pipeline.index.index import INDEX_SCHEMA, ShardIndex
from pipeline.index.scan import Checks, index_shard
from pipeline.shards.listing import expand_shards
from tests.pipeline.shards.archives import caption_files, instruction_files, tar_bytes, write_tar

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "nlvr"


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    first = write_tar(tmp_path / "s0.tar", [*caption_files("a"), ("bad.txt", b"x"), *caption_files("b")])
    second = write_tar(tmp_path / "s1.tar", [*instruction_files("c"), *instruction_files("d", 0)])
    return [first, second]


def verdicts(index: ShardIndex) -> list[tuple[int, int, str, str]]:
    columns = [index.samples[name].to_pylist() for name in ("shard", "ordinal", "key", "reason")]
    return list(zip(*columns, strict=True))


def count_scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scanned: list[str] = []

    def counting(url: str, *args: Any) -> Any:
        scanned.append(os.path.basename(url))
        return index_shard(url, *args)

    monkeypatch.setattr("pipeline.index.build.index_shard", counting)
    return scanned


def test_build_index_numbers_samples_over_shards_and_keeps_rejected_rows(tmp_path: Path, shards: list[str]) -> None:
    calls: list[tuple[int, int]] = []
    index = build_index(shards, tmp_path / "index", progress=lambda done, total: calls.append((done, total)))
    assert index.samples.schema == INDEX_SCHEMA
    assert verdicts(index) == [
        (0, 0, "a", ""),
        (0, 1, "bad", "missing_image"),
        (0, 2, "b", ""),
        (1, 0, "c", ""),
        (1, 1, "d", ""),
    ]
    assert index.usable.tolist() == [True, False, True, True, True]
    assert [(info.num_samples, info.size_bytes) for info in index.shards] == [(3, 10240), (2, 10240)]
    assert index.summary() == {"missing_image": 1}
    assert calls == [(1, 2), (2, 2)]


def test_load_index_returns_what_was_built_and_survives_pickling(tmp_path: Path, shards: list[str]) -> None:
    built = build_index(shards, tmp_path / "index", checks=Checks(images="header"))
    loaded = load_index(tmp_path / "index")
    for again in (loaded, pickle.loads(pickle.dumps(built)), pickle.loads(pickle.dumps(loaded))):
        assert again.samples.equals(built.samples)
        assert (again.shards, again.checks, again.fingerprint) == (built.shards, built.checks, built.fingerprint)


def test_load_index_leaves_the_table_on_disk(tmp_path: Path, shards: list[str]) -> None:
    built = build_index(shards, tmp_path / "index")
    before = pa.total_allocated_bytes()
    loaded = load_index(tmp_path / "index")
    assert pa.total_allocated_bytes() == before
    assert loaded.samples.nbytes == built.samples.nbytes
    assert loaded.samples["key"].num_chunks == 1


def test_fingerprint_depends_on_content_and_order_only(tmp_path: Path, shards: list[str]) -> None:
    first = build_index(shards, tmp_path / "i0").fingerprint
    copies = []
    for idx, shard in enumerate(shards):
        copy = tmp_path / f"copy{idx}.tar"
        copy.write_bytes(Path(shard).read_bytes())
        copies.append(str(copy))
    assert build_index(copies, tmp_path / "i1").fingerprint == first
    assert build_index(copies[::-1], tmp_path / "i2").fingerprint != first
    write_tar(tmp_path / "copy1.tar", [*instruction_files("c"), *instruction_files("e", 0)])
    assert build_index(copies, tmp_path / "i1").fingerprint != first


def test_fingerprint_changes_when_a_check_rejects_other_samples(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [*caption_files("a"), *caption_files("b"), *caption_files("a")])
    strict = build_index([shard], tmp_path / "i0")
    allowing = build_index([shard], tmp_path / "i0", checks=Checks(allow_duplicate_keys=True))
    assert strict.num_samples == allowing.num_samples
    assert strict.fingerprint != allowing.fingerprint


def test_ensure_index_of_unchanged_shards_reads_none(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = count_scans(monkeypatch)
    built = ensure_index(shards, tmp_path / "index")
    assert scanned == ["s0.tar", "s1.tar"]
    assert ensure_index(shards, tmp_path / "index").fingerprint == built.fingerprint
    assert scanned == ["s0.tar", "s1.tar"]


def test_ensure_index_of_changed_and_added_shards_reads_only_those(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = ensure_index(shards, tmp_path / "index")
    scanned = count_scans(monkeypatch)
    write_tar(tmp_path / "s1.tar", instruction_files("changed"))
    added = write_tar(tmp_path / "s2.tar", caption_files("z"))
    index = ensure_index([added, *shards], tmp_path / "index")
    assert scanned == ["s2.tar", "s1.tar"]
    assert [row[:3] for row in verdicts(index)] == [
        (0, 0, "z"),
        (1, 0, "a"),
        (1, 1, "bad"),
        (1, 2, "b"),
        (2, 0, "changed"),
    ]
    assert index.fingerprint != built.fingerprint


def test_ensure_index_with_other_checks_scans_again(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_index(shards, tmp_path / "index", checks=Checks(images="header"))
    scanned = count_scans(monkeypatch)
    ensure_index(shards, tmp_path / "index", checks=Checks(images="decode"))
    assert scanned == ["s0.tar", "s1.tar"]


def test_ensure_index_resumes_an_interrupted_build(
    tmp_path: Path, shards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_after_one(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        yield function(items[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_index(shards, tmp_path / "index", run_map=stop_after_one)
    with pytest.raises(ValueError, match=r"no index\.json"):
        load_index(tmp_path / "index")
    scanned = count_scans(monkeypatch)
    assert ensure_index(shards, tmp_path / "index").num_samples == 5
    assert scanned == ["s1.tar"]


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", [damage_empty, damage_half, Path.unlink])
@pytest.mark.parametrize("pattern", ["index.json", "samples-*.arrow", "scans/*.parquet"])
def test_ensure_index_with_damaged_files_builds_it_again(
    tmp_path: Path, shards: list[str], pattern: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "index"
    built = ensure_index(shards, folder)
    (target, *_) = sorted(folder.glob(pattern))
    damage(target)
    if pattern != "scans/*.parquet":
        with pytest.raises(ValueError, match=r"damaged|no index\.json"):
            load_index(folder)
    assert ensure_index(shards, folder).samples.equals(built.samples)
    assert list(folder.rglob(".*")) == []


def test_build_index_of_cut_shard_fails_by_default_and_names_all(tmp_path: Path, shards: list[str]) -> None:
    cut, empty = tmp_path / "cut.tar", tmp_path / "empty.tar"
    cut.write_bytes(tar_bytes([*caption_files("e"), *caption_files("f")])[: 7 * 512])
    empty.write_bytes(b"")
    with pytest.raises(
        ShardError, match=r"cut\.tar: the file ends at byte 3584.*also defective: .*empty\.tar"
    ) as caught:
        build_index([*shards, str(cut), str(empty)], tmp_path / "index")
    assert caught.value.reason == Reason.SHARD_TRUNCATED


def test_build_index_of_cut_shard_in_quarantine_uses_what_precedes_and_counts_it(
    tmp_path: Path, shards: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar_bytes([*caption_files("e"), *caption_files("f")])[: 7 * 512])
    index = build_index([str(cut), *shards], tmp_path / "index", on_bad_shard="quarantine")
    assert verdicts(index)[:2] == [(0, 0, "e", ""), (0, 1, "f", "shard_truncated")]
    assert index.summary() == {"shard_truncated": 2, "missing_image": 1}
    assert index.shards[0].defect_reason == "shard_truncated"
    assert "shard quarantined" in caplog.text
    assert load_index(tmp_path / "index").shards == index.shards
    with pytest.raises(ShardError):
        ensure_index([str(cut), *shards], tmp_path / "index", on_bad_shard="fail")


def test_build_index_of_keys_repeated_across_shards_keeps_the_first(tmp_path: Path) -> None:
    shards = [
        write_tar(tmp_path / f"{idx}.tar", [*caption_files("same"), *caption_files(f"own{idx}")]) for idx in range(3)
    ]
    index = build_index(shards, tmp_path / "index")
    assert [row[3] for row in verdicts(index)] == ["", "", "duplicate_key", "", "duplicate_key", ""]
    assert index.samples["detail"][4].as_py() == "shard 0 of the list has the same key"
    allowing = build_index(shards, tmp_path / "index", checks=Checks(allow_duplicate_keys=True))
    assert allowing.usable.all()


def test_build_index_of_missing_shard_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.tar"):
        build_index([str(tmp_path / "none.tar")], tmp_path / "index")


def test_build_index_in_a_process_pool_equals_the_serial_one(tmp_path: Path, shards: list[str]) -> None:
    serial = build_index(shards, tmp_path / "i0")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("forkserver")) as pool:
        parallel = build_index(shards, tmp_path / "i1", run_map=pool.map)
    assert parallel.samples.equals(serial.samples)
    assert parallel.fingerprint == serial.fingerprint


def test_build_index_of_real_shards_finds_every_sample_good(tmp_path: Path, shards: list[str]) -> None:
    """Human-written sentences and pictures where they are at hand, generated shards everywhere."""
    real = {"train-captions-000000.tar": 500, "dev-instruct-000000.tar": 300}
    present = {str(REAL / name): count for name, count in real.items() if (REAL / name).is_file()}
    index = build_index(expand_shards([*present, shards[1]]), tmp_path / "index")
    assert [info.num_samples for info in index.shards] == [*present.values(), 2]
    assert index.summary() == {}
    assert sum(index.samples["text_bytes"].to_pylist()) > 0
