import json
from pathlib import Path

import pytest
from webdataset import TarWriter

from tests.jobs.conftest import RunCommand, png

PNG_HEADER = b"\x89PNG\r\n\x1a\n"


def write_shard(path: Path, samples: list[dict[str, object]]) -> None:
    with TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def config_arguments(tmp_path: Path, shard: Path) -> list[str]:
    return ["-c", "nlvr_pretrain", f"data.shards=[{shard}]", f"run_dir={tmp_path / 'run'}"]


@pytest.fixture
def shard_with_defects(tmp_path: Path) -> Path:
    """Two good samples, an image that is none, and a sample without caption."""
    path = tmp_path / "train-000.tar"
    write_shard(
        path,
        [
            {"__key__": "good0", "png": png(3, 37, 41), "txt": b"A red cube."},
            {"__key__": "broken", "png": PNG_HEADER + b"x" * 40, "txt": b"A cube."},
            {"__key__": "[bold]mute", "png": PNG_HEADER + b"x" * 40},
            {"__key__": "good1", "png": png(5, 43, 31), "txt": b"A blue ball."},
        ],
    )
    return path


def test_index_counts_rejected_samples_by_reason_and_names_each(
    run_command: RunCommand, tmp_path: Path, shard_with_defects: Path
) -> None:
    report = tmp_path / "rejected.jsonl"
    ended = run_command("index", *config_arguments(tmp_path, shard_with_defects), "--report", str(report))
    rejected = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(row["shard"], row["key"]) for row in rejected] == [
        (str(shard_with_defects), "broken"),
        (str(shard_with_defects), "[bold]mute"),
    ]
    for row in rejected:
        assert f"rejected: {row['reason']}" in ended.output
        assert row["key"] in ended.output
    assert ended.exit_code in (None, 0)
    assert "usable" in ended.output


def test_index_without_any_usable_sample_ends_with_two(run_command: RunCommand, tmp_path: Path) -> None:
    shard = tmp_path / "bad.tar"
    write_shard(shard, [{"__key__": "broken", "png": PNG_HEADER, "txt": b"A cube."}])
    ended = run_command("index", *config_arguments(tmp_path, shard))
    assert ended.exit_code == 2
    assert "no usable sample" in ended.messages


def test_index_of_a_cut_shard_ends_with_three_and_says_where(
    run_command: RunCommand, tmp_path: Path, shard_with_defects: Path
) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard_with_defects.read_bytes()[:2100])
    ended = run_command("index", *config_arguments(tmp_path, cut))
    assert ended.exit_code == 3
    assert "cut.tar" in ended.messages


def test_index_of_a_missing_folder_ends_with_two(run_command: RunCommand, tmp_path: Path) -> None:
    ended = run_command("index", *config_arguments(tmp_path, tmp_path / "nowhere" / "a.tar"))
    assert ended.exit_code == 2
    assert str(tmp_path / "nowhere" / "a.tar") in ended.messages
