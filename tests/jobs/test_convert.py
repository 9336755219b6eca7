import json
import shlex
from pathlib import Path

import pytest

from jobs.config_source import read_config
from tests.jobs.conftest import RunCommand
from tests.pipeline.tools.convert.datasets import llava_records, turns, write_llava


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


def test_convert_whose_images_are_elsewhere_names_the_folder_and_the_option(
    run_command: RunCommand, tmp_path: Path
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    arguments = ["convert", str(write_llava(lists, llava_records(tmp_path, 3))), "--out", str(tmp_path / "out")]
    ended = run_command(*arguments, "--workers", "1")
    assert ended.exit_code == 2
    assert f"3 of 3 name an image that is not in {lists}" in ended.messages
    assert "with --images" in ended.messages
    skipped = (tmp_path / "out" / "convert" / "skipped.jsonl").read_text()
    assert json.loads(skipped.splitlines()[1])["detail"].endswith("not in the image folder: 'coco/001.jpg'")
    assert run_command(*arguments, "--workers", "1", "--images", str(tmp_path / "images")).exit_code in (None, 0)


def test_convert_ends_with_an_argument_that_names_any_folder(run_command: RunCommand, tmp_path: Path) -> None:
    out = tmp_path / "it's [a], b"
    path = write_llava(tmp_path, [*llava_records(tmp_path, 1), {"conversations": []}])
    arguments = ["convert", str(path), "--images", str(tmp_path / "images"), "--out", str(out), "--workers", "1"]
    lines = run_command(*arguments).output.splitlines()
    assert f"1 skipped entries listed in {out}/convert/skipped.jsonl" in lines
    (hint,) = [line for line in lines if line.startswith("to train on them: ")]
    overrides = shlex.split(hint.removeprefix("to train on them: "))
    assert read_config("nlvr_pretrain", overrides).data.shards == (str(out),)


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


def test_convert_ends_with_equations_and_strict_with_three(run_command: RunCommand, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A ball."}]
    rows = [{"messages": turns}, {"messages": turns, "videos": ["a.mp4", "b.mp4"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("convert", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1")
    ended = run_command(*arguments)
    assert ended.exit_code in (None, 0)
    assert "rows: 2 read = 1 written + 1 refused (media_unread 1)" in ended.output
    assert "media: 2 found = 0 written + 2 refused" in ended.output
    assert "places of media in the written texts: 0 = 0 marks + 0 implied" in ended.output
    ended = run_command(*arguments, "--strict")
    assert ended.exit_code == 3
    ignoring = (*arguments[:3], str(tmp_path / "out2"), "--strict", "--ignore-field", "videos")
    ended = run_command(*ignoring)
    assert ended.exit_code in (None, 0)
    assert "set aside: 2" in ended.output


def test_convert_dry_run_shows_the_first_samples_and_writes_no_shard(run_command: RunCommand, tmp_path: Path) -> None:
    records = llava_records(tmp_path, 3)
    records[1]["image"] = "gone.jpg"
    records[2]["conversations"] = turns("Is <image> a <b>ball</b>?")
    out = tmp_path / "out"
    arguments = [
        "convert",
        str(write_llava(tmp_path, records)),
        "--images",
        str(tmp_path / "images"),
        "--out",
        str(out),
    ]
    ended = run_command(*arguments, "--dry-run", "5")
    assert ended.exit_code in (None, 0)
    assert "row 0: user: [picture 17 x 11]" in ended.output
    assert "row 1: refused: missing_image" in ended.output
    assert "row 2: user: Is [picture 17 x 13] a <b>ball</b>?" in ended.output
    page = (out / "first-samples.html").read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert "&lt;b&gt;ball&lt;/b&gt;" in page
    assert "<script" not in page
    assert not list(out.glob("*.tar"))
    assert run_command(*arguments, "--workers", "1").exit_code in (None, 0)
