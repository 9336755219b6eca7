"""The plan command on a small real data set: figures add up, and a probe trains without leaving anything behind."""

import json
import re
from pathlib import Path

import pytest
import yaml
from webdataset import TarWriter

from tests.integration.conftest import WriteConfig, shards, write_config
from tests.jobs.conftest import RunCommand

__all__ = ["shards", "write_config"]


def test_plan_prints_steps_memory_and_what_to_change_on_a_device(
    run_command: RunCommand, write_config: WriteConfig
) -> None:
    ended = run_command("plan", "-c", str(write_config("run")), "--workers", "2", "--device", "L4")
    assert ended.exit_code in (None, 0)
    shown = " ".join(ended.output.split())
    assert "steps \u2502 7 (1.4 epochs)" in shown
    assert "samples trained \u2502 87" in shown  # an epoch of 61 and two steps of 13
    assert "1 workers \u2503 2 workers" in shown
    assert "memory per worker, peak" in shown
    assert "a feature cache would save about" in shown


def test_plan_measured_times_steps_and_leaves_the_run_folder_alone(
    run_command: RunCommand, write_config: WriteConfig, tmp_path: Path
) -> None:
    ended = run_command("plan", "-c", str(write_config("run")), "--measure")
    assert ended.exit_code in (None, 0)
    assert "measured on this machine, one worker of 1" in " ".join(ended.output.split())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["index"]


def test_plan_says_what_never_takes_effect_and_ends_with_two_where_the_run_would_be_refused(
    run_command: RunCommand,
    shards: dict[str, list[str]],
    write_config: WriteConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "broken.tar"
    with TarWriter(str(broken)) as writer:
        writer.write({"__key__": "mute", "txt": b"A cube."})
    sources = {
        "good": {"shards": shards["pretrain"], "weight": 1},
        "bad": {"shards": [str(broken), *shards["finetune"]], "weight": 1},
    }
    change = "data.mix_changes=[{from_step: 7, weights: {good: 1, bad: 2}}]"
    overrides = [
        "data.shards=[]",
        f"data.sources={json.dumps(sources)}",
        "data.template=v1",
        change,
    ]
    refused = run_command("plan", "-c", str(write_config("run")), *overrides, "data.max_rejected_in_a_row=0")
    assert refused.exit_code == 2
    assert "1 of 123 samples are unusable" in refused.messages
    ended = run_command("plan", "-c", str(write_config("run")), *overrides)
    assert ended.exit_code in (None, 0)
    assert "the run ends after step 6, so these changes never take effect: from 7" in caplog.text


@pytest.mark.parametrize("options", [("--device", "Z9")])
def test_plan_for_an_unknown_device_ends_with_two(
    run_command: RunCommand, write_config: WriteConfig, options: tuple[str, ...]
) -> None:
    ended = run_command("plan", "-c", str(write_config("run")), *options)
    assert ended.exit_code == 2
    assert "device 'Z9' is not known" in ended.messages


def test_plan_prints_costs_that_a_config_takes(run_command: RunCommand, write_config: WriteConfig) -> None:
    config = str(write_config("run"))
    ended = run_command("plan", "-c", config, "--device", "L4")
    found = re.search(r"'(training\.cost=\{.*?\})'", " ".join(ended.output.split()))
    assert found is not None, ended.output
    costs = yaml.safe_load(found[1].partition("=")[2])
    assert set(costs) == {"token_ns", "token_pair_ns", "tile_ns"}
    assert all(number > 0 for number in costs.values())
    again = run_command("plan", "-c", config, found[1])
    assert again.exit_code in (None, 0), again.output
