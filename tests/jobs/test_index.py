import json
import os
import tarfile
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


def test_index_of_relative_shards_is_the_index_of_every_command(
    run_command: RunCommand, tmp_path: Path, shard_with_defects: Path
) -> None:
    arguments = config_arguments(tmp_path, Path(os.path.relpath(shard_with_defects)))
    for command in ("index", "inspect", "index"):
        ended = run_command(command, *arguments)
        assert ended.exit_code in (None, 0)
        assert "stale" not in ended.messages


@pytest.mark.parametrize("command", ["index", "inspect"])
def test_shards_are_read_in_processes_that_may_die(
    run_command: RunCommand, tmp_path: Path, shard_with_defects: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.index.build.index_shard", None)  # of this process only
    ended = run_command(command, *config_arguments(tmp_path, shard_with_defects))
    assert ended.exit_code in (None, 0)
    assert "usable" in ended.output


def test_index_says_that_a_run_would_be_refused(
    run_command: RunCommand, tmp_path: Path, shard_with_defects: Path
) -> None:
    arguments = config_arguments(tmp_path, shard_with_defects)
    assert "would be refused" not in run_command("index", *arguments).output
    ended = run_command("index", *arguments, "data.max_rejected_in_a_row=1")
    assert ended.exit_code in (None, 0)
    assert "a run on these data would be refused: 2 of 4 samples are unusable" in " ".join(ended.output.split())


def test_index_shows_control_characters_of_names_as_escapes(run_command: RunCommand, tmp_path: Path) -> None:
    shard = tmp_path / "names.tar"
    write_shard(
        shard, [{"__key__": "good", "txt": b"A.", "png": png(3, 37, 41)}, {"__key__": "e\x1b[31m", "txt": b"A."}]
    )
    ended = run_command("index", *config_arguments(tmp_path, shard))
    assert "e\\x1b[31m" in ended.output
    assert "\x1b[31m" not in ended.output


def test_index_makes_the_folder_of_its_report_before_it_reads_shards(
    run_command: RunCommand, tmp_path: Path, shard_with_defects: Path
) -> None:
    report = tmp_path / "deep" / "er" / "report.jsonl"
    arguments = config_arguments(tmp_path, shard_with_defects)
    assert run_command("index", *arguments, "--report", str(report)).exit_code in (None, 0)
    assert len(report.read_text().splitlines()) == 2
    other = config_arguments(tmp_path / "other", shard_with_defects)
    assert run_command("index", *other, "--report", str(report / "file-as-folder")).exit_code == 2
    assert not (tmp_path / "other").exists()


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


def test_index_names_what_it_passes_over(run_command: RunCommand, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    (folder / "more").mkdir(parents=True)
    for name in ("t-00000-of-00003.tar", "T-00002-OF-00003.TAR"):
        write_shard(folder / name, [{"__key__": name[:7], "png": png(3, 37, 41), "txt": b"A red cube."}])
    with tarfile.open(folder / "t-00000-of-00003.tar", "a") as archive:
        archive.add(folder / "more", "more")
    (folder / "old.tar.gz").write_bytes(b"")
    (folder / "latest.tar").symlink_to("t-00000-of-00003.tar")
    for _ in range(2):  # also where nothing has to be read again
        output = run_command("index", *config_arguments(tmp_path, folder)).output
        assert "1 folder entries in the shards" in output
        assert "old.tar.gz: a compressed archive is not read" in output
        assert "latest.tar: another name of" in output
        assert "pieces 1, 2 of 3 not there" in output


def test_index_against_held_out_shards_lists_what_they_share(run_command: RunCommand, tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.tar", tmp_path / "eval.tar"
    pictures = [png(seed, 37, 41) for seed in (3, 5, 8)]
    texts = (b"A red cube on a table.", b"A blue ball.", b"Some grass.")
    write_shard(train, [{"__key__": f"k{n}", "png": pictures[n], "txt": texts[n]} for n in range(3)])
    others = [(pictures[0], b"Other words."), (png(9, 37, 41), b"a blue BALL")]
    write_shard(held_out, [{"__key__": f"h{n}", "png": image, "txt": text} for n, (image, text) in enumerate(others)])
    ended = run_command("index", *config_arguments(tmp_path, train), "--against", str(held_out))
    assert ended.exit_code == 0, ended.output
    assert "text 1, image 1, both 0 of 3 samples" in ended.output.replace("\n", " ")
    listed = (tmp_path / "run" / "index" / "overlap.jsonl").read_text().splitlines()
    assert [(row["key"], row["overlap"]) for row in map(json.loads, listed)] == [("k0", "image"), ("k1", "text")]
