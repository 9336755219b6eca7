"""A conversion as a whole: the same bytes on every run map and after every kill, readable by webdataset, accounted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import webdataset

from pipeline.index.build import build_index
from pipeline.parallel.children import run_in_processes
from pipeline.parallel.run_map import RunMap, run_serially
from pipeline.tools.convert.formats import SourceOptions, open_source
from pipeline.tools.convert.run import Conversion, convert
from pipeline.tools.convert.shard_plan import ShardLimits
from tests.pipeline.tools.convert.datasets import llava_records, turns, write_llava

DEADLY = """
import ctypes, zlib
import simplejpeg
decode = simplejpeg.decode_jpeg
def decode_or_die(data, *arguments, **options):
    if zlib.crc32(data) == {crc32}:
        ctypes.string_at(0)  # a real segmentation fault
    return decode(data, *arguments, **options)
simplejpeg.decode_jpeg = decode_or_die
"""
LIMITS = ShardLimits(max_samples=5, max_bytes=10**9)
NUM_ENTRIES = 23


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    records = llava_records(tmp_path, NUM_ENTRIES)
    records[8]["conversations"] = turns("No place.")
    return write_llava(tmp_path, records)


def run(path: Path, out: Path, seed: int | None = 3, run_map: RunMap = run_serially) -> Conversion:
    source = open_source([str(path)], options=SourceOptions(str(path.parent / "images")))
    return convert(source, out, limits=LIMITS, shuffle_seed=seed, run_map=run_map)


def plan_of(folder: Path) -> str:
    plan: str = json.loads((folder / "convert" / "plan.json").read_text())["plan"]
    return plan


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def test_convert_in_processes_gives_the_same_bytes_as_in_one(tmp_path: Path, source_file: Path) -> None:
    first = run(source_file, tmp_path / "a")
    run(source_file, tmp_path / "b", run_map=run_in_processes(2))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == len(first.shards) == 5
    assert (first.num_entries, first.num_samples, first.reasons()) == (23, 22, {"image_token_mismatch": 1})


def test_image_that_ends_the_process_that_checks_it_is_skipped_by_name(tmp_path: Path, source_file: Path) -> None:
    calm = run(source_file, tmp_path / "calm", seed=None)
    deadly = zlib.crc32((source_file.parent / "images" / "coco" / "003.jpg").read_bytes())
    (tmp_path / "sitecustomize.py").write_text(DEADLY.format(crc32=deadly))
    script = ["-m", "jobs", "convert", str(source_file), "--images", str(source_file.parent / "images")]
    subprocess.run(
        [sys.executable, *script, "--out", str(tmp_path / "out"), "--max-samples", "5", "--workers", "2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        check=True,
    )
    skipped = [json.loads(line) for line in (tmp_path / "out" / "convert" / "skipped.jsonl").read_text().splitlines()]
    assert [(entry["row"], entry["reason"]) for entry in skipped] == [(3, "decoder_crash"), (8, "image_token_mismatch")]
    manifest = json.loads((tmp_path / "out" / "convert" / "manifest.json").read_text())
    assert manifest["num_samples"] == calm.num_samples - 1


def test_convert_again_rewrites_only_what_is_missing(tmp_path: Path, source_file: Path) -> None:
    out = tmp_path / "out"
    run(source_file, out)
    before = contents(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "train-000001.tar").unlink()  # lost after it was finished
    (out / "convert" / "train-000003.tar.json").unlink()  # killed between shard and record
    again = run(source_file, out)
    assert again.num_resumed == 3
    assert contents(out) == before
    unchanged = {path.name for path in out.glob("*.tar") if path.stat().st_mtime_ns == times[path.name]}
    assert unchanged == {"train-000000.tar", "train-000002.tar", "train-000004.tar"}
    assert again._replace(num_resumed=0) == run(source_file, tmp_path / "fresh")._replace(
        num_resumed=0, shards=again.shards
    )


KILLED = """
import os, signal, sys
from pathlib import Path
import pipeline.shards.writer as writer
from tests.pipeline.tools.convert.test_run import run
left = int(sys.argv[3])
real = os.replace
def replace(source, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
os.replace = replace
run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.chaos
@pytest.mark.parametrize("num_renames", [0, 3, 6])
def test_convert_killed_anywhere_and_run_again_gives_the_same_bytes(
    tmp_path: Path, source_file: Path, num_renames: int
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(source_file), str(out), str(num_renames)]
    ended = subprocess.run(command, check=False, cwd=Path(__file__).parents[4])
    assert ended.returncode == -9
    assert len(contents(out)) == (num_renames // 2 if num_renames else 0)
    again = run(source_file, out)
    assert again.num_resumed == max(0, (num_renames - 1) // 2)
    run(source_file, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == sorted(contents(out))


def test_convert_into_a_folder_of_another_conversion_is_refused(tmp_path: Path, source_file: Path) -> None:
    run(source_file, tmp_path / "out", seed=3)
    with pytest.raises(ValueError, match=r"another conversion .shuffle_seed differ"):
        run(source_file, tmp_path / "out", seed=5)
    os.utime(source_file, ns=(1, 1))
    with pytest.raises(ValueError, match=r"another conversion .source files differ"):
        run(source_file, tmp_path / "out", seed=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match="already holds tar files"):
        run(source_file, tmp_path / "other")


def test_two_conversions_are_indexed_together_without_duplicate_keys(tmp_path: Path, source_file: Path) -> None:
    first, second = run(source_file, tmp_path / "a", seed=3), run(source_file, tmp_path / "b", seed=5)
    index = build_index([*first.shards, *second.shards], tmp_path / "index")
    assert index.summary() == {}
    assert index.num_samples == first.num_samples + second.num_samples


def test_folder_of_a_conversion_that_wrote_nothing_is_given_to_the_next(tmp_path: Path, source_file: Path) -> None:
    out = tmp_path / "out"
    lost = tmp_path / "lost"
    lost.mkdir()
    source = open_source([str(source_file)], options=SourceOptions(str(lost)))
    assert convert(source, out, limits=ShardLimits(2, 10**9), prefix="x").num_samples == 0
    result = run(source_file, out, seed=None)
    assert (result.num_samples, result.num_resumed) == (22, 0)
    run(source_file, tmp_path / "fresh", seed=None)
    assert contents(out) == contents(tmp_path / "fresh")
    assert sorted(path.name for path in (out / "convert").iterdir()) == sorted(
        path.name for path in (tmp_path / "fresh" / "convert").iterdir()
    )


def test_folder_of_a_conversion_that_wrote_something_is_kept_with_advice(tmp_path: Path, source_file: Path) -> None:
    out = tmp_path / "out"
    run(source_file, out)
    advice = re.escape("remove train-*.tar and convert/ in this one")
    for record in out.glob("convert/*.tar.json"):
        record.unlink()  # killed between shard and record
    with pytest.raises(ValueError, match=advice):
        run(source_file, out, seed=5)
    run(source_file, out)
    for shard in out.glob("*.tar"):
        shard.unlink()  # moved elsewhere
    with pytest.raises(ValueError, match=advice):
        run(source_file, out, seed=5)


def test_convert_writes_report_and_manifest(tmp_path: Path, source_file: Path) -> None:
    out = tmp_path / "out"
    result = run(source_file, out, seed=None)
    (line,) = (out / "convert" / "skipped.jsonl").read_text().splitlines()
    manifest = json.loads((out / "convert" / "manifest.json").read_text())
    assert json.loads(line) == {
        "source": str(source_file),
        "row": 8,
        "shard": "train-000001.tar",
        "key": f"{manifest['plan'][:8]}-00000-000000008",
        "reason": "image_token_mismatch",
        "detail": "0 <image> placeholders but 1 image (`image`)",
        "media": 1,
    }
    assert [shard["num_samples"] for shard in manifest["shards"]] == [5, 4, 5, 5, 3]
    assert manifest["skipped"] == {"image_token_mismatch": 1}
    assert result.size_bytes == sum(path.stat().st_size for path in out.glob("*.tar"))


def test_converted_shards_are_read_by_webdataset_in_order(tmp_path: Path, source_file: Path) -> None:
    result = run(source_file, tmp_path / "out", seed=None)
    found = list(webdataset.WebDataset(list(result.shards), shardshuffle=False))
    start = f"{plan_of(tmp_path / 'out')[:8]}-00000"
    assert [item["__key__"] for item in found] == [f"{start}-{row:09d}" for row in range(NUM_ENTRIES) if row != 8]
    tree = json.loads(found[1]["json"])
    assert (tree["id"], tree["image"], tree["source_images"]) == ("a.1", ["0.png"], ["coco/001.jpg"])
    assert found[1]["0.png"] == (source_file.parent / "images" / "coco" / "001.jpg").read_bytes()


def test_convert_of_which_every_entry_is_skipped_writes_no_tar(tmp_path: Path) -> None:
    path = write_llava(tmp_path, [{"conversations": []}])
    (tmp_path / "images").mkdir()
    result = run(path, tmp_path / "out")
    assert (result.shards, result.num_samples, result.reasons()) == ((), 0, {"conversation_empty": 1})
    assert contents(tmp_path / "out") == {}
    assert run(path, tmp_path / "out").num_resumed == 1
