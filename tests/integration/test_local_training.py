"""Training without Ray: same batches on any number of ranks, and nothing changes when the process is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from pipeline.assembly.parts import join_parts
from pipeline.checkpoint.manifest import CheckpointError
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import ConfigError, load_config
from pipeline.launch.prepare import prepare_source
from pipeline.launch.run import run_training
from pipeline.tools.demo.shards import DemoSizes, write_demo_shards
from pipeline.training.loop import NonFiniteError
from tests.integration.conftest import WriteConfig
from tests.integration.runs import assert_same_run, losses, run, start, wait_for_steps, weights


def test_run_training_pretrain_changes_only_the_projector_and_finetune_starts_from_it(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    pretrained = run_training(load_config(write_config("pre")))
    assert pretrained.output == tmp_path / "pre" / "projector" / "mm_projector.safetensors"
    assert [step for step, _ in losses(tmp_path / "pre")] == list(range(7))
    assert all("mm_projector" in name for name in weights(tmp_path / "pre"))
    overrides = [f"model.pretrain_mm_mlp_adapter={tmp_path / 'pre'}"]
    finetuned = run_training(load_config(write_config("fine", "finetune"), overrides))
    assert (finetuned.output / "tokenizer.json").is_file()
    assert losses(tmp_path / "fine")[-1][1] < losses(tmp_path / "fine")[0][1]


@pytest.mark.chaos
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_run_killed_twice_and_started_again_equals_undisturbed_run_bitwise(
    write_config: WriteConfig, tmp_path: Path, stage: str
) -> None:
    run_training(load_config(write_config("calm", stage)))
    config = write_config("killed", stage)
    for num_steps in (3, 6):
        process = start("jobs", stage, "--config", str(config))
        wait_for_steps(tmp_path / "killed", num_steps, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    run("jobs", stage, "--config", str(config))
    assert_same_run(tmp_path / "calm", tmp_path / "killed")


@pytest.mark.chaos
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_stop_signal_finishes_the_step_saves_and_exits_with_its_code(
    write_config: WriteConfig, tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    run_training(load_config(write_config("calm")))
    config = write_config("stopped")
    process = start("jobs", "pretrain", "--config", str(config), "checkpoint.every_steps=1000")
    wait_for_steps(tmp_path / "stopped", 2, process)
    process.send_signal(signum)
    output, _ = process.communicate()
    assert process.returncode == exit_code, output
    done = len(losses(tmp_path / "stopped"))
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    run("jobs", "pretrain", "--config", str(config))
    assert_same_run(tmp_path / "calm", tmp_path / "stopped")


SLOW_INDEX = """
import time
from pathlib import Path
from pipeline.index import build
index_shard = build.index_shard
def index_behind_gate(*arguments, **options):
    Path({gate!r}).touch()
    time.sleep(60)
    return index_shard(*arguments, **options)
build.index_shard = index_behind_gate
"""


@pytest.mark.chaos
def test_sigterm_to_all_processes_while_the_run_indexes_ends_it_and_blames_no_shard(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "sitecustomize.py").write_text(SLOW_INDEX.format(gate=str(gate)))
    process = start("jobs", "pretrain", "--config", str(write_config("stopped")), PYTHONPATH=str(tmp_path))
    while not gate.exists():
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()[0]
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    for child in children:
        child.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert psutil.wait_procs(children, timeout=60)[1] == []
    run("jobs", "pretrain", "--config", str(write_config("stopped")))
    run_training(load_config(write_config("calm")))
    assert_same_run(tmp_path / "calm", tmp_path / "stopped")


SLOW_DATA = """
import time
from pathlib import Path
from pipeline.stream import rank_step
build = rank_step._build
def build_behind_gate(source, plan, ids):
    while plan.step >= 3 and not Path({gate!r}).exists():
        time.sleep(0.05)
    return build(source, plan, ids)
rank_step._build = build_behind_gate
"""


@pytest.mark.chaos
@pytest.mark.parametrize("is_job_wide", [False, True], ids=["launcher_alone", "every_process"])
def test_sigterm_under_torchrun_while_ranks_wait_for_data_saves_once_these_come(
    write_config: WriteConfig, tmp_path: Path, is_job_wide: bool
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "sitecustomize.py").write_text(SLOW_DATA.format(gate=str(gate)))
    settings = ["checkpoint.every_steps=1000", "cluster.data_workers=1", "cluster.prefetch_steps=1"]
    command = ["--nproc-per-node=2", "-m", "jobs", "pretrain", "--config", str(write_config("stopped")), *settings]
    torchrun = start("torch.distributed.run", *command, PYTHONPATH=str(tmp_path))
    wait_for_steps(tmp_path / "stopped", 3, torchrun)
    for process in psutil.Process(torchrun.pid).children(recursive=True) if is_job_wide else []:
        process.send_signal(signal.SIGTERM)
    torchrun.send_signal(signal.SIGTERM)
    assert torchrun.stdout is not None
    lines: list[str] = []
    while sum("closing signal SIGTERM" in line for line in lines) < 2:
        lines.append(torchrun.stdout.readline())
        assert lines[-1], f"torchrun ended without signalling its ranks: {lines}"
    gate.touch()
    output = "".join(lines) + torchrun.communicate()[0]
    assert torchrun.returncode == 1, output  # it reports its own signal, whatever its ranks ended with
    assert output.count("stopped after step") == 2, output
    assert "exited unexpectedly" not in output
    done = len(losses(tmp_path / "stopped"))
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == [f"step-{done:08d}"]


FULL_DISK = """
import os
from contextlib import contextmanager
from pipeline.checkpoint.storage import FolderStorage
create = FolderStorage.create
@contextmanager
def create_or_fail(self, place, name):
    if os.environ.get("RANK") == "1" and "step-00000004" in place and name.endswith(".safetensors"):
        raise OSError(28, "No space left on device", name)
    with create(self, place, name) as file:
        yield file
FolderStorage.create = create_or_fail
"""


@pytest.mark.chaos
def test_share_of_a_rank_that_cannot_be_written_ends_the_run_with_the_error_of_that_rank(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    command = ["--nproc-per-node=2", "-m", "jobs", "finetune", "--config", str(write_config("run", "finetune"))]
    process = start("torch.distributed.run", *command, "training.sharding=fsdp", PYTHONPATH=str(tmp_path))
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert "error: checkpoint not written: rank 1: [Errno 28] No space left on device" in output
    assert "did not write its share" not in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_two_ranks_train_the_same_batches_with_the_same_loss(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(load_config(write_config("one", "finetune")))
    config = write_config("two", "finetune")
    run("torch.distributed.run", "--nproc-per-node=2", "-m", "jobs", "finetune", "--config", str(config))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], rel=2e-5)


def test_checkpoints_of_another_run_or_config_are_never_continued(write_config: WriteConfig, tmp_path: Path) -> None:
    folder = f"checkpoint.folder={tmp_path / 'shared'}"
    run_training(load_config(write_config("a"), [folder]))
    kept = sorted(path.name for path in (tmp_path / "shared").iterdir())
    with pytest.raises(ConfigError, match=rf"holds the checkpoints of the run in {tmp_path / 'a'}, and run_dir is"):
        run_training(load_config(write_config("b"), [folder]))
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == kept
    shutil.rmtree(tmp_path / "a")  # a lost machine: the checkpoints are elsewhere, the same command goes on
    with pytest.raises(ConfigError, match=r"training\.learning_rate: the run was started with 0\.001, now 0\.5"):
        run_training(load_config(write_config("a"), [folder, "training.learning_rate=0.5"]))
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "shared" / "step-00000007")
    run_training(load_config(write_config("a"), [folder]))
    assert [step for step, _ in losses(tmp_path / "a")] == [6]


def test_records_of_steps_that_are_computed_again_are_dropped(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(load_config(write_config("run")))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000007")
    spikes = tmp_path / "run" / "loss_spikes.jsonl"
    spikes.write_text("".join(json.dumps({"step": step}) + "\n" for step in (4, 5, 6)))
    run_training(load_config(write_config("run")))
    assert [json.loads(line)["step"] for line in spikes.read_text().splitlines()] == [4, 5]


def test_run_whose_shards_were_written_anew_is_not_continued(
    write_config: WriteConfig, shards: dict[str, list[str]], tmp_path: Path
) -> None:
    shard = tmp_path / "mine.tar"
    shutil.copy(shards["pretrain"][0], shard)
    overrides = [f"data.shards=[{shard}]"]
    run_training(load_config(write_config("run"), overrides))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000007")
    write_demo_shards(tmp_path / "other", DemoSizes(pretrain=53, finetune=1, held_out=1))
    shutil.copy(next((tmp_path / "other").glob("pretrain-*.tar")), shard)
    with pytest.raises(ConfigError, match=r"was trained on plan .* the data now give plan .*\(not by the config\)"):
        run_training(load_config(write_config("run"), overrides))
    assert len(losses(tmp_path / "run")) == 7


def test_finished_run_started_again_trains_nothing(write_config: WriteConfig, tmp_path: Path) -> None:
    config = load_config(write_config("once"))
    run_training(config)
    before = losses(tmp_path / "once")
    assert run_training(config).metrics == {}
    assert losses(tmp_path / "once") == before


def test_resume_with_changed_seed_is_refused_naming_both_values(write_config: WriteConfig) -> None:
    path = write_config("once")
    run_training(load_config(path))
    with pytest.raises(ConfigError, match="seed: the run was started with 3, now 4"):
        run_training(load_config(path, ["seed=4"]))


def test_resume_with_changed_tokens_budget_keeps_batches_and_loss(write_config: WriteConfig, tmp_path: Path) -> None:
    run_training(load_config(write_config("wide"), ["training.micro_batch_tokens=2003"]))
    run_training(load_config(write_config("narrow")))
    wide, narrow = losses(tmp_path / "wide"), losses(tmp_path / "narrow")
    assert [loss for _, loss in wide] == pytest.approx([loss for _, loss in narrow], rel=2e-5)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_two_sharded_ranks_train_like_one_and_resume_unsharded(
    write_config: WriteConfig, tmp_path: Path, stage: str
) -> None:
    run_training(load_config(write_config("whole", stage)))
    path, run_dir = write_config("sharded", stage), tmp_path / "sharded"
    sharded = ["training.sharding=fsdp", "checkpoint.keep_last=9"]
    run("torch.distributed.run", "--nproc-per-node=2", "-m", "jobs", stage, "--config", str(path), *sharded)
    whole = [loss for _, loss in losses(tmp_path / "whole")]
    assert [loss for _, loss in losses(run_dir)] == pytest.approx(whole, rel=2e-4)
    ours, theirs = weights(run_dir), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 2e-3
    for late in ("step-00000006", "step-00000007"):
        shutil.rmtree(run_dir / "checkpoints" / late)
    (run_dir / "metrics.jsonl").unlink()
    run_training(load_config(path))
    assert [step for step, _ in losses(run_dir)] == [4, 5, 6]
    assert [loss for _, loss in losses(run_dir)] == pytest.approx(whole[4:], rel=2e-4)


def test_sample_damaged_after_indexing_is_quarantined_counted_and_never_replaced(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = load_config(write_config("run"))
    shard = Path(shutil.copy(config.data.shards[0], tmp_path / "copy.tar"))
    config = load_config(write_config("run"), [f"data.shards=[{shard}]"])
    source = prepare_source(config.with_absolute_paths(), console=Console(quiet=True))
    member = source.index.samples["members"][29].as_py()[0]
    stat = shard.stat()
    with shard.open("r+b") as file:
        file.seek(member["offset"] + member["size"] - 9)
        file.write(b"\x00\xff\x00\xff")
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # so that the index takes the shard for unchanged
    metrics = run_training(config).metrics
    lines = [json.loads(line) for line in (tmp_path / "run/quarantine/rank-00000.jsonl").read_text().splitlines()]
    assert {(entry["sample_id"], entry["reason"]) for entry in lines} == {(29, "content_hash_mismatch")}
    assert metrics["data/quarantined/content_hash_mismatch"] == metrics["data/samples_quarantined"] == len(lines)
    assert metrics["data/samples_trained"] + metrics["data/samples_quarantined"] == source.plan.num_planned(7)


def test_loss_that_is_not_finite_stops_before_the_update_and_names_the_samples(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = load_config(
        write_config("run", "finetune"), ["training.learning_rate=1.0e+30", "checkpoint.every_steps=1000"]
    )
    with pytest.raises(NonFiniteError, match=r"step \d: loss (nan|inf).* nothing was updated. Samples of the step: \["):
        run_training(config)
    checkpoint = CheckpointStore(tmp_path / "run" / "checkpoints", keep_last=2).latest()
    assert checkpoint is not None
    assert checkpoint.step == len(losses(tmp_path / "run")) > 0  # the last good weights, though no checkpoint was due
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors("model").values())


def test_run_that_failed_before_it_began_may_begin_with_another_config(write_config: WriteConfig) -> None:
    path = write_config("run", "finetune")
    with pytest.raises(ConfigError, match="pretrain_mm_mlp_adapter"):
        run_training(load_config(path, ["model.pretrain_mm_mlp_adapter=/no/projector", "training.max_steps=1"]))
    run_training(load_config(path, ["training.max_steps=1"]))
    with pytest.raises(ConfigError, match="seed"):
        run_training(load_config(path, ["training.max_steps=1", "seed=9"]))


def test_run_without_a_sound_checkpoint_does_not_begin_again_by_itself(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = load_config(write_config("run"), ["training.max_steps=3", "checkpoint.keep_last=1"])
    run_training(config)
    (damaged,) = (tmp_path / "run" / "checkpoints").glob("*/model.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"all 1 checkpoints .* failed verification"):
        run_training(config)
    assert damaged.exists()


def test_finetune_from_a_llava_folder_takes_the_projector_that_is_named(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    run_training(load_config(write_config("pre"), ["training.max_steps=2"]))
    run_training(load_config(write_config("fine", "finetune"), ["training.max_steps=1"]))
    folder = [f"model.language_model={tmp_path / 'fine' / 'model'}", "model.vision_tower=null"]
    parts = load_config(write_config("next", "finetune"), folder).model
    own = join_parts(parts, None, torch.float32).get_model().mm_projector.state_dict()
    named = tmp_path / "pre" / "projector" / "mm_projector.safetensors"
    replaced = join_parts(parts, named, torch.float32).get_model().mm_projector.state_dict()
    expected = {name.removeprefix("model.mm_projector."): tensor for name, tensor in weights(tmp_path / "pre").items()}
    assert replaced.keys() == expected.keys()
    assert all(torch.equal(replaced[name], expected[name]) for name in expected)
    assert any(not torch.equal(own[name], expected[name]) for name in expected)
