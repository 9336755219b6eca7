"""Every command that a run begins with refuses a tokenizer with more tokens than the model has rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model.hub.tokenizer_files import read_tokenizer, write_tokenizer
from tests.integration.conftest import WEIGHTS, WriteConfig, shards, write_config
from tests.jobs.conftest import RunCommand

__all__ = ["shards", "write_config"]


@pytest.mark.parametrize(
    "command", [("plan",), ("index",), ("doctor",), ("finetune", "--dry-run"), ("finetune",)], ids=" ".join
)
def test_token_without_a_row_is_refused_by_every_command(
    command: tuple[str, ...],
    run_command: RunCommand,
    write_config: WriteConfig,
    tmp_path: Path,
) -> None:
    base = tmp_path / "lm"
    shutil.copytree(WEIGHTS / "language_model", base)
    tokenizer = read_tokenizer(str(base))
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"[loc{number}]" for number in range(len(tokenizer), rows + 1)])
    write_tokenizer(tokenizer, base)
    ended = run_command(*command, "-c", str(write_config("run", "finetune")), f"model.language_model={base}")
    said = " ".join((ended.output + ended.messages).replace("\u2502", " ").split())
    assert ended.exit_code == 2
    assert f"embedding rows: {rows} (vocab_size in config.json)" in said
    assert f"'[loc{rows}]' (id {rows})" in said
