"""A run that was begun before the modules moved into folders, stopped after step 4, goes on bit for bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from pipeline.checkpoint.manifest import MANIFEST_NAME, decode_manifest, encode_manifest
from tests.integration.conftest import WEIGHTS
from tests.integration.runs import losses, run, weights

OLD = Path(__file__).parent / "run_of_0_1_0"
"""Written by the code of commit 80dd09b (0.1.0); its checkpoint is of step 3."""
PLACES = {"/old/fixture": None, "/old/weights": str(WEIGHTS)}


def test_run_folder_and_checkpoint_of_the_code_before_continue_with_the_same_bits(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    undisturbed = losses_of(OLD / "undisturbed.jsonl")
    assert losses(tmp_path / "run") == undisturbed[:4]
    move(tmp_path)
    run("jobs", "pretrain", "--config", str(tmp_path / "run" / "config.yaml"))
    assert losses(tmp_path / "run") == undisturbed
    (tmp_path / "calm" / "projector").mkdir(parents=True)
    shutil.copy(OLD / "undisturbed.safetensors", tmp_path / "calm" / "projector")
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "calm")
    assert {name: tensor.tolist() for name, tensor in ours.items()} == {
        name: tensor.tolist() for name, tensor in theirs.items()
    }


def losses_of(path: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["metrics"]["train/loss"]) for entry in map(json.loads, path.open())]


def move(folder: Path) -> None:
    """Let the run find its data and its model where they are here; the checkpoint names both."""
    config = folder / "run" / "config.yaml"
    config.write_text(here(config.read_text(), folder))
    (path,) = (folder / "run" / "checkpoints").glob(f"*/{MANIFEST_NAME}")
    manifest = decode_manifest(path.read_bytes(), str(path))
    state = json.loads(here(json.dumps(manifest.state), folder))
    path.write_bytes(encode_manifest(dataclasses.replace(manifest, state=state)))


def here(text: str, folder: Path) -> str:
    for old, new in PLACES.items():
        text = text.replace(old, new or str(folder))
    return text
