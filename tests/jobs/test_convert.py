from pathlib import Path

import pytest

from tests.jobs.conftest import RunCommand
from tests.pipeline.convert.datasets import llava_records, turns, write_llava


def test_convert_shows_what_was_written_and_why_the_rest_was_not(run_command: RunCommand, tmp_path: Path) -> None:
    records = [*llava_records(tmp_path, 7), {"image": "[bold]", "conversations": turns()}]
    arguments = ["convert", str(write_llava(tmp_path, records)), "--images", str(tmp_path / "images")]
    arguments += ["--out", str(tmp_path / "out"), "--max-samples", "3", "--shuffle-seed", "5", "--workers", "1"]
    ended = run_command(*arguments)
    assert ended.exit_code in (None, 0)
    assert "skipped: missing_image" in ended.output
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3
    assert "of them finished before" in run_command(*arguments).output
    shuffled = run_command(*arguments[:-3], "11", "--workers", "1")
    assert shuffled.exit_code == 2
    assert "shuffle_seed differ" in shuffled.messages


def test_convert_of_which_nothing_is_left_ends_with_two(run_command: RunCommand, tmp_path: Path) -> None:
    path = write_llava(tmp_path, [{"conversations": []}])
    ended = run_command("convert", str(path), "--out", str(tmp_path / "out"), "--workers", "1")
    assert ended.exit_code == 2
    assert "every entry was skipped" in ended.messages


def test_convert_with_wrong_option_or_source_ends_with_two(run_command: RunCommand, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    for arguments in (["x.json", "--check", "none"], ["x.json", "--prefix", "a/b"], ["x.json"]):
        assert run_command("convert", *arguments, *out).exit_code == 2


def test_convert_to_a_url_is_refused_and_makes_no_folder(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llava(tmp_path, llava_records(tmp_path, 1))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    ended = run_command("convert", str(path), "--out", "s3://bucket/x", "--images", "images", "--workers", "1")
    assert ended.exit_code == 2
    assert "s3://bucket/x: expected a local folder" in ended.messages
    assert sorted(tmp_path.iterdir()) == before
