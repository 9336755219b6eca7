"""What a user sees: the verbs, and one clear message with the right exit code for each mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from webdataset import TarWriter

from tests.jobs.conftest import RunCommand, png

SHARDS = "data.shards=[a.tar]"


def test_command_without_a_verb_lists_the_verbs(run_command: RunCommand) -> None:
    ended = run_command()
    for verb in ("pretrain", "finetune", "index", "generate", "export", "submit", "mlflow-replay"):
        assert verb in ended.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "-c", "nope"), "config nope: no such file, and the included ones are"),
        (("finetune", "-c", "nlvr_pretrain", SHARDS), "is for stage 'pretrain': run `ray-llava pretrain` with it"),
        (("pretrain", "-c", "nlvr_pretrain"), "data.shards is required"),
        (
            ("pretrain", "-c", "nlvr_pretrain", SHARDS, "training.learning_rat=1"),
            "unknown key training.learning_rat; did you mean 'learning_rate'?",
        ),
        (("pretrain", "-c", "nlvr_pretrain", SHARDS, "training.learning_rate=fast"), "training.learning_rate"),
        (("pretrain", "-c", "nlvr_pretrain", SHARDS, "seed"), "expected section.key=value"),
        (("generate", "/no/such/model", "Why?"), "/no/such/model"),
        (("generate", "/no/such/model", "Why?", "-i", "/no/image.png"), "--image /no/image.png: no such file"),
        (("submit", "--", "reticulate"), "'reticulate' cannot be submitted; expected one of: pretrain"),
        (
            ("submit", "--address", "http://10.1.2.3:8265", "--", "index"),
            "the token would cross the network unencrypted",
        ),
        (("mlflow-replay", "/no/such/run"), "/no/such/run: no tracked run here"),
    ],
)
def test_mistake_ends_with_two_and_one_message(
    run_command: RunCommand, arguments: tuple[str, ...], message: str
) -> None:
    ended = run_command(*arguments)
    assert ended.exit_code == 2
    assert message in ended.messages
    assert ended.messages.startswith("error: ")
    assert "Traceback" not in ended.messages


def test_mistake_at_debug_level_shows_where_it_was_found(run_command: RunCommand) -> None:
    ended = run_command("--log-level", "debug", "pretrain", "-c", "nope")
    assert ended.exit_code == 2
    assert "Traceback" in ended.messages


def test_defect_of_the_program_ends_with_one_and_a_traceback(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of order [red]")

    monkeypatch.setattr("jobs.pretrain.read_config", broken)
    ended = run_command("pretrain", "-c", "nlvr_pretrain", SHARDS)
    assert ended.exit_code == 1
    assert "Traceback" in ended.messages
    assert "error: out of order [red]" in ended.messages


@pytest.mark.parametrize("arguments", [("pretrain",), ("pretrain", "--bogus"), ("--log-level", "loud", "pretrain")])
def test_wrong_usage_ends_with_two(run_command: RunCommand, arguments: tuple[str, ...]) -> None:
    assert run_command(*arguments).exit_code == 2


def test_dry_run_prints_config_and_plan_and_starts_no_run(run_command: RunCommand, tmp_path: Path) -> None:
    run_dir, shard = tmp_path / "run", tmp_path / "captions.tar"
    with TarWriter(str(shard)) as writer:
        for idx in range(23):
            writer.write({"__key__": f"{idx:05}", "png": png(idx, 13, 17), "txt": f"Caption {idx}."})
    ended = run_command(
        "pretrain", "--dry-run", "-c", "nlvr_pretrain", f"data.shards=[{shard}]", f"run_dir={run_dir}",
        "training.global_batch_size=7", "training.num_epochs=1",
    )  # fmt: skip
    assert ended.exit_code in (None, 0)
    assert "global_batch_size: 7" in ended.output
    assert "23 of 23 samples in 1 shards" in ended.output
    assert "4 steps of 7 samples" in ended.output
    assert not (run_dir / "config.yaml").exists()


def test_json_log_is_one_object_per_line_of_both_outputs(tmp_path: Path) -> None:
    shard = tmp_path / "captions.tar"
    with TarWriter(str(shard)) as writer:
        for idx in range(11):
            writer.write({"__key__": f"{idx:05}", "png": png(idx, 13, 17), "txt": f"Caption {idx}."})
    command = [sys.executable, "-m", "jobs", "--log-format", "json", "pretrain", "-c"]
    dry_run = [
        "nlvr_pretrain", "--dry-run", f"data.shards=[{shard}]", f"run_dir={tmp_path / 'run'}",
        "training.global_batch_size=7", "training.num_epochs=1", "training.profile_steps=[100,101]",
    ]  # fmt: skip
    ended = subprocess.run([*command, *dry_run], capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines()]
    assert any("11 of 11 samples in 1 shards" in entry["message"] for entry in entries)
    assert [entry["logger"][:9] for entry in entries if entry["level"] == "WARNING"] == ["pipeline."]
    assert {"time", "level", "logger", "message"} == entries[0].keys()

    wrong = subprocess.run([*command, "nope"], capture_output=True, text=True, check=False)
    (entry,) = [json.loads(line) for line in wrong.stderr.splitlines()]
    assert (wrong.returncode, entry["level"]) == (2, "ERROR")
    assert entry["message"].startswith("error: config nope: no such file")


PROGRAM = """
import atexit, sys
import jobs.cli

class Last:
    def __del__(self):
        print("taken apart")

def app():
    atexit.register(print, "exit handler")
    sys.exit(143)

last = Last()
jobs.cli.app = app
jobs.cli.main()
"""


def test_process_ends_before_python_takes_itself_apart_under_threads_that_still_work() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (143, "exit handler\n")
