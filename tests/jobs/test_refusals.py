"""What training refuses before its first worker, doctor, plan and --dry-run refuse too: same code, same words."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from pipeline.shards.writer import write_shards
from tests.integration.conftest import WEIGHTS, WriteConfig, shards, write_config
from tests.jobs.conftest import Ended, RunCommand
from tests.model.tiny_backbones import tiny_backbone_config

__all__ = ["shards", "write_config"]

LANGUAGE_MODEL = WEIGHTS / "language_model"


def projector(folder: Path, name: str, width: int) -> str:
    path = folder / "projector.safetensors"
    save_file({f"model.{name}.{part}": torch.zeros(width, 3) for part in ("0.weight", "2.weight")}, path)
    return f"model.pretrain_mm_mlp_adapter={path}"


def language_model(folder: Path, **fields: object) -> str:
    copy = folder / "language_model"
    shutil.copytree(LANGUAGE_MODEL, copy)
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | fields))
    return f"model.language_model={copy}"


def file_in_the_way(folder: Path) -> str:
    (folder / "file").write_text("")
    return f"checkpoint.folder={folder / 'file' / 'checkpoints'}"


def copy(folder: Path, part: str, without: str | None = None) -> str:
    shutil.copytree(WEIGHTS / part, folder / part)
    if without is not None:
        (folder / part / without).unlink()
    return f"model.{'vision_tower' if part == 'tower' else part}={folder / part}"


def cut(folder: Path, part: str) -> str:
    override = copy(folder, part)
    weights = folder / part / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return override


def mpt(folder: Path) -> str:
    config = tiny_backbone_config("mpt")
    config.vocab_size = json.loads((LANGUAGE_MODEL / "config.json").read_text())["vocab_size"]
    copy(folder, "language_model")
    (folder / "language_model" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "language_model")
    return f"model.language_model={folder / 'language_model'}"


def texts(folder: Path, num_bad: int = 0) -> str:
    turns = [{"from": "human", "value": "Which fruit is it?"}, {"from": "gpt", "value": "a pear"}]
    good = [{"__key__": f"s{number}", "json": json.dumps({"conversations": turns})} for number in range(31)]
    bad = [{"__key__": f"bad{number}", "json": "{"} for number in range(num_bad)]
    return f"data.shards={write_shards([*good, *bad], folder / 'texts-%06d.tar')}"


def cut_shard(folder: Path) -> str:
    path = folder / "texts-000000.tar"
    texts(folder)
    path.write_bytes(path.read_bytes()[:-20_000])
    return f"data.shards=[{path}]"


REFUSED: dict[str, tuple[str, Callable[[Path], list[str]], str]] = {  # name: (stage, overrides, what is said)
    "projector of another shape": (
        "finetune",
        lambda at: [projector(at, "mm_projector", 7)],
        "has shape [7, 3], expected",
    ),
    "projector with a misspelt name": (
        "pretrain",
        lambda at: [projector(at, "mm_projctor", 7)],
        "unexpected model.mm_projctor",
    ),
    "projector that is not there": (
        "finetune",
        lambda at: [f"model.pretrain_mm_mlp_adapter={at / 'none'}"],
        "expected a projector file",
    ),
    "kernel without a backward here": (
        "finetune",
        lambda _: ["model.attention=flex"],
        "'flex' trains on CUDA devices only",
    ),
    "kernel of another device": (
        "finetune",
        lambda _: ["model.attention=varlen"],
        "needs CUDA devices and half precision",
    ),
    "dropout in attention": (
        "finetune",
        lambda at: [language_model(at, attention_dropout=0.25)],
        "attention_dropout is 0.25",
    ),
    "LoRA target misspelt": ("finetune", lambda _: ["lora.rank=2", "lora.targets=[q_porj]"], "LoRA targets ['q_porj']"),
    "identity between widths": (
        "finetune",
        lambda _: ["model.mm_projector_type=identity"],
        "'identity' needs equal widths",
    ),
    "tied tables, one to learn": (
        "pretrain",
        lambda at: [language_model(at, tie_word_embeddings=True), "model.mm_use_im_start_end=true"],
        "ties them into one tensor",
    ),
    "newlines of a resampler": (
        "finetune",
        lambda _: [
            "model.mm_projector_type=resampler16_1",
            "data.image_aspect_ratio=anyres",
            "model.mm_patch_merge_type=spatial_unpad",
        ],
        "the queries of a resampler",
    ),
    "checkpoints below a file": ("finetune", lambda at: [file_in_the_way(at)], "is a file, expected a folder"),
    "index below a file": (
        "finetune",
        lambda at: [file_in_the_way(at).replace("checkpoint.folder", "data.index_dir")],
        "is a file, expected a folder",
    ),
    "samples longer than the decoder computes": (
        "finetune",
        lambda at: [mpt(at)],
        "computes no more than 128 tokens of a sample",
    ),
    "weights cut": ("finetune", lambda at: [cut(at, "language_model")], "model.safetensors is cut"),
    "weights of the tower cut": ("finetune", lambda at: [cut(at, "tower")], "model.safetensors is cut"),
    "tower that does not say how to see": (
        "finetune",
        lambda at: [copy(at, "tower", without="preprocessor_config.json")],
        "no preprocessor_config.json found",
    ),
    "model without a tokenizer": (
        "finetune",
        lambda at: [copy(at, "language_model", without="tokenizer.json")],
        "tokenizer",
    ),
    "layer beyond the tower": ("finetune", lambda _: ["model.mm_vision_select_layer=7"], "legal are -5 to 4"),
    "projector of no kind": ("finetune", lambda _: ["model.mm_projector_type=mlp2_gelu"], "unknown mm_projector_type"),
    "no shards": ("finetune", lambda at: [f"data.shards=[{at}/none-*.tar]"], "none-*.tar"),
    "template of other tokens": ("finetune", lambda _: ["data.template=gemma"], "gemma"),
    "merging of class tokens": (
        "finetune",
        lambda _: ["model.mm_vision_select_feature=cls_patch", "model.mm_patch_merge_type=spatial"],
        "needs features on a square grid",
    ),
}


AFTER_SHARDS: dict[str, tuple[str, Callable[[Path], list[str]], str, int]] = {  # and the exit code
    "too many unusable samples": (
        "finetune",
        lambda at: [texts(at, num_bad=1), "data.max_rejected_in_a_row=0"],
        "1 of 32 samples are unusable",
        2,
    ),
    "no image to learn from": (
        "pretrain",
        lambda at: [texts(at), "data.template=v1"],
        "so nothing would be learned",
        2,
    ),
    "shard that ends early": ("finetune", lambda at: [cut_shard(at)], "the file ends at byte", 3),
}
"""What only the shards tell."""


def one_line(text: str) -> str:
    return "".join(text.replace("\u2502", "").split())


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "900")  # the doctor's table keeps words in one line


def assert_refused_alike(ended: dict[str, Ended], said: str, exit_code: int) -> None:
    """Every command ends with the same code and the words of the first, without a traceback."""
    assert {command: end.exit_code for command, end in ended.items()} == dict.fromkeys(ended, exit_code)
    words = ended["train"].messages.strip().splitlines()[-1].removeprefix("error: ")
    assert said in words
    for command, end in ended.items():
        assert one_line(words) in one_line(end.output + end.messages), command
        assert "Traceback" not in end.output + end.messages, command


@pytest.mark.parametrize("name", REFUSED)
def test_config_that_cannot_train_is_refused_by_every_command_in_the_same_words(
    run_command: RunCommand, write_config: WriteConfig, tmp_path: Path, name: str
) -> None:
    stage, make, said = REFUSED[name]
    config, overrides = str(write_config("run", stage)), make(tmp_path)
    on_ray = ["cluster.launcher=ray", "cluster.data_workers=1"]
    ended = {
        "train": run_command(stage, "-c", config, *overrides),
        "train on Ray": run_command(stage, "-c", config, *overrides, *on_ray),
        "dry-run": run_command(stage, "--dry-run", "-c", config, *overrides),
        "plan": run_command("plan", "-c", config, *overrides),
        "doctor": run_command("doctor", "-c", config, *overrides),
    }
    assert_refused_alike(ended, said, 2)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", AFTER_SHARDS)
def test_data_that_cannot_be_trained_on_are_refused_by_every_command_in_the_same_words(
    run_command: RunCommand, write_config: WriteConfig, tmp_path: Path, name: str
) -> None:
    stage, make, said, exit_code = AFTER_SHARDS[name]
    config, overrides = str(write_config("run", stage)), make(tmp_path)
    ended = {
        "train": run_command(stage, "-c", config, *overrides),
        "dry-run": run_command(stage, "--dry-run", "-c", config, *overrides),
        "plan": run_command("plan", "-c", config, *overrides),
        "doctor": run_command("doctor", "-c", config, *overrides),
    }
    assert_refused_alike(ended, said, exit_code)


def test_disk_without_room_for_checkpoints_is_refused_by_every_command_in_the_same_words(
    run_command: RunCommand, write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(write_config("run", "finetune"))
    monkeypatch.setattr("pipeline.checkpoint.room.shutil.disk_usage", lambda _: Usage(10_000_000))
    ended = {
        "train": run_command("finetune", "-c", config),
        "train on Ray": run_command("finetune", "-c", config, "cluster.launcher=ray", "cluster.data_workers=1"),
        "dry-run": run_command("finetune", "--dry-run", "-c", config),
        "plan": run_command("plan", "-c", config),
        "doctor": run_command("doctor", "-c", config),
    }
    assert_refused_alike(ended, "expected room for 2.5; make room, or set checkpoint.folder", 2)
    planned_elsewhere = run_command("plan", "-c", config, "--device", "H200", "training.precision=bfloat16")
    assert planned_elsewhere.exit_code in (None, 0), planned_elsewhere.messages


class Usage(NamedTuple):
    """Of a disk."""

    free: int


@pytest.mark.parametrize(
    ("package", "overrides", "said"),
    [
        ("peft", ["lora.rank=2"], "LoRA needs the peft package"),
        ("bitsandbytes", ["training.optimizer=adamw_8bit"], "needs bitsandbytes, which is not installed"),
        ("bitsandbytes", ["lora.rank=2", "lora.quantize_base=nf4"], "quantized weights (nf4) need"),
    ],
)
def test_option_whose_package_is_missing_is_refused_before_training(
    run_command: RunCommand,
    write_config: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    overrides: list[str],
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for command in (["finetune"], ["finetune", "--dry-run"], ["plan"]):
        ended = run_command(*command, "-c", str(write_config("run", "finetune")), *overrides)
        assert ended.exit_code == 2
        assert said in ended.messages


def test_options_without_effect_are_named_but_train(
    run_command: RunCommand, write_config: WriteConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [
        "training.profile_steps=[50,60]",
        "cluster.num_workers=[2,4]",
        "lora.targets=[q_proj]",
        language_model(tmp_path, max_position_embeddings=64),
    ]
    ended = run_command("finetune", "--dry-run", "-c", str(write_config("run", "finetune")), *odd)
    assert ended.exit_code in (None, 0), ended.messages
    told = caplog.text
    assert "cluster.num_workers is (2, 4), but launcher=local runs one worker" in told
    assert "lora.targets without lora.rank: there are no adapters" in told
    assert "profile_steps is [50, 60], but the run ends after step 6" in told
    assert "data.max_length is 512, but the language model was made for 64 positions" in told
    shown = one_line(run_command("doctor", "-c", str(write_config("run", "finetune")), *odd).output)
    assert "runsoneworker" in shown
    assert "64positions" in shown
