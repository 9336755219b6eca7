"""Evaluation while training: what it writes, what it decides, and that what is trained stays the same bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import ConfigError, load_config
from pipeline.launch.run import run_training
from pipeline.run_folder.metrics_log import METRICS_FILE
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, run, start, wait_for_steps


def figures(run_dir: Path) -> dict[int, dict[str, float]]:
    """Evaluations by the number of steps before them."""
    lines = map(json.loads, (run_dir / METRICS_FILE).read_text().splitlines())
    found = {line["step"] + 1: {k: v for k, v in line["metrics"].items() if k.startswith("eval/")} for line in lines}
    return {step: values for step, values in found.items() if values}


def test_evaluation_changes_no_bit_and_decides_which_checkpoint_stays(
    write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    overrides = [
        f"evaluation.shards={shards['held_out']}", "evaluation.every_steps=2", "evaluation.max_new_tokens=3",
        "evaluation.metrics=[exact_match,perplexity]", "checkpoint.keep_best_metric=eval/perplexity",
        "checkpoint.keep_last=1", "checkpoint.every_steps=100",
    ]  # fmt: skip
    run_training(load_config(write_config("calm", "finetune")))
    watched = write_config("watched", "finetune")
    process = start("jobs", "finetune", "--config", str(watched), *overrides)
    wait_for_steps(tmp_path / "watched", 4, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    run("jobs", "finetune", "--config", str(watched), *overrides)
    assert_same_run(tmp_path / "calm", tmp_path / "watched")

    found = figures(tmp_path / "watched")
    assert list(found) == [2, 4, 6, 7]
    for values in found.values():
        assert {
            "eval/exact_match",
            "eval/exact_match_blank",
            "eval/loss_blank",
            "eval/exact_match_low",
        } <= values.keys()
        assert values["eval/perplexity"] == pytest.approx(2.718281828 ** values["eval/loss"])
    best = min(found, key=lambda step: found[step]["eval/perplexity"])
    store = CheckpointStore(tmp_path / "watched" / "checkpoints", keep_last=1)
    assert {one.step for one in store.storage.generations()} == {best, 7}


def test_several_sets_and_an_early_end(write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path) -> None:
    sets = f"{{first: {{shards: {shards['pretrain']}, metrics: [loss], max_samples: 3}}, "
    sets += f"second: {{shards: {shards['pretrain']}, metrics: [perplexity], max_samples: 5}}}}"
    overrides = [
        f"evaluation.sets={sets}", "evaluation.every_steps=1", "evaluation.stop_after=2", "evaluation.at_end=false",
        # the wrong way round: perplexity falls, so no evaluation after the first is better
        "checkpoint.keep_best_metric=eval/second/perplexity", "checkpoint.keep_best_mode=max",
    ]  # fmt: skip
    config = load_config(write_config("early"), overrides)
    result = run_training(config)
    found = figures(tmp_path / "early")
    assert result.steps == max(found) == 1 + max(found, key=lambda step: found[step]["eval/second/perplexity"]) + 1
    assert {"eval/first/loss", "eval/second/loss", "eval/second/perplexity_blank"} <= found[1].keys()
    assert "eval/first/perplexity" not in found[1]
    assert result.output.is_file()
    again = run_training(config)
    assert again.steps == result.steps
    assert figures(tmp_path / "early") == found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint.keep_best_metric=eval/pope", "eval/pope.*measures eval/exact_match, eval/loss; choose one"),
        ("checkpoint.keep_best_mode=max", "keep_best_mode says which values of a metric are better"),
        ("evaluation.metrics=[accuracy]", "exact_match"),
        ("evaluation.metrics=[vqa_accuracy]", "evaluation: sample .* vqa_accuracy needs the answers of several people"),
        ("evaluation.shards=[nowhere-*.tar]", "nowhere"),
        ("evaluation.shards=[]", "every_steps and stop_after need samples"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_training(
    write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path, override: str, message: str
) -> None:
    own = [f"evaluation.shards={shards['held_out']}", "evaluation.every_steps=1", override]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        run_training(load_config(write_config("refused", "finetune"), own))
    assert not (tmp_path / "refused" / METRICS_FILE).exists()


def test_evaluation_on_what_the_data_holds_out(write_config: WriteConfig, tmp_path: Path) -> None:
    overrides = ["data.held_out=0.2", "evaluation.held_out=true", "evaluation.metrics=[loss]", "training.max_steps=2"]
    run_training(load_config(write_config("held", "finetune"), overrides))
    assert list(figures(tmp_path / "held")) == [2]
    with pytest.raises(ConfigError, match=r"evaluation\.held_out needs samples that are held out"):
        load_config(write_config("none", "finetune"), overrides[1:])
