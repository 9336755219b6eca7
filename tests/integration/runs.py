"""Reading what runs left behind, and starting them as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Loss of every step, in the order written."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["metrics"]["train/loss"]) for entry in map(json.loads, lines)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Final weights: of the projector after pretraining, of the whole model after finetuning."""
    files = sorted([*run_dir.glob("projector/*.safetensors"), *run_dir.glob("model/*.safetensors")])
    assert files, f"{run_dir} has no result"
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    return tensors


def assert_same_run(first: Path, second: Path) -> None:
    """Bitwise: same losses step by step, same final weights."""
    assert losses(first) == losses(second)
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


def wait_for_steps(run_dir: Path, num_steps: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run that was started as `process` has logged so many steps."""
    path = run_dir / "metrics.jsonl"
    while not path.exists() or len(path.read_bytes().splitlines()) < num_steps:
        time.sleep(0.02)
        assert process.poll() is None, f"the run ended before it could be disturbed: {process.communicate()[0]}"


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command line in the repository, output joined."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: str, **environment: str) -> str:
    """Run a command line in the repository to a successful end; returns what it printed."""
    process = start(*arguments, **environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output
