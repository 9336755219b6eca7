"""What training refuses before its first worker, doctor, plan and --dry-run refuse too: same code, same words."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.integration.conftest import WEIGHTS, WriteConfig, shards, write_config
from tests.jobs.conftest import RunCommand

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
}


def one_line(text: str) -> str:
    return "".join(text.replace("\u2502", "").split())


@pytest.mark.parametrize("name", REFUSED)
def test_config_that_cannot_train_is_refused_by_every_command_in_the_same_words(
    run_command: RunCommand,
    write_config: WriteConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    stage, make, said = REFUSED[name]
    monkeypatch.setenv("COLUMNS", "900")  # the doctor's table keeps words in one line
    config, overrides = str(write_config("run", stage)), make(tmp_path)
    ended = {
        "train": run_command(stage, "-c", config, *overrides),
        "dry-run": run_command(stage, "--dry-run", "-c", config, *overrides),
        "plan": run_command("plan", "-c", config, *overrides),
        "doctor": run_command("doctor", "-c", config, *overrides),
    }
    assert {command: end.exit_code for command, end in ended.items()} == dict.fromkeys(ended, 2)
    words = ended["train"].messages.strip().splitlines()[-1].removeprefix("error: ")
    assert said in words
    for command, end in ended.items():
        assert one_line(words) in one_line(end.output + end.messages), command
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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
        language_model(tmp_path, max_position_embeddings=64),
    ]
    ended = run_command("finetune", "--dry-run", "-c", str(write_config("run", "finetune")), *odd)
    assert ended.exit_code in (None, 0), ended.messages
    told = caplog.text
    assert "cluster.num_workers is (2, 4), but launcher=local runs one worker" in told
    assert "profile_steps is [50, 60], but the run ends after step 6" in told
    assert "data.max_length is 512, but the language model was made for 64 positions" in told
    shown = one_line(run_command("doctor", "-c", str(write_config("run", "finetune")), *odd).output)
    assert "runsoneworker" in shown
    assert "64positions" in shown
