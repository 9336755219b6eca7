"""Single bits turned in files that runs read: what is then trained on is the same, or an error names the file.

Nothing is trained here: a case reads what a run would, and compares it with what the intact files give.
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from jobs.failures import classify
from model.files.adapter import read_adapter
from model.hub.lora import load_lora
from pipeline.assembly.encoder import build_encoder
from pipeline.assembly.part_files import check_projector_file
from pipeline.assembly.provenance import check_provenance
from pipeline.assembly.skeleton import build_skeleton
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config import ExperimentConfig, parse_config
from pipeline.features.filling import fill_cache
from pipeline.features.opening import with_cached_features
from pipeline.launch.prepare import prepare_run
from pipeline.launch.run import run_training
from pipeline.stream.rank_step import BatchSource, build_rank_step
from pipeline.tools.demo.shards import DemoSizes, write_demo_shards

_WEIGHTS = Path(__file__).parents[2] / "pipeline" / "tools" / "demo" / "weights"
_QUIET = Console(quiet=True)
_STEPS = 3


class World(NamedTuple):
    """Finished runs, and what they left."""

    folder: Path
    config: ExperimentConfig
    """Finetunes adapters from a projector, on cached features."""
    source: BatchSource
    """Of intact files."""


class Outcome(NamedTuple):
    """What flips in one kind of file came to."""

    equal: int
    """The file's meaning was not changed, or it was made again from its source."""
    refused: int
    silent: tuple[str, ...]
    """Files and places: other numbers, an error that does not explain itself, or one that names no file."""


def prepare_world(folder: Path) -> World:
    """Train a projector, then adapters on cached features."""
    shards = write_demo_shards(folder / "shards", DemoSizes(pretrain=11, finetune=11, held_out=1))
    pretrained = _config(folder, "pretrain", shards["pretrain"])
    run_training(pretrained, _QUIET)
    config = _config(folder, "finetune", shards["finetune"])
    encoder = build_encoder(config.model, config.data)
    source, data = prepare_run(config, encoder, console=_QUIET)
    fill_cache(config.recipe, data.index, encoder, use_gpu=False)
    run_training(config, _QUIET)
    return World(folder, config, source)


def _config(folder: Path, stage: str, shards: list[str]) -> ExperimentConfig:
    is_last = stage == "finetune"
    tree = {
        "name": stage, "run_dir": str(folder / stage), "stage": stage,
        "data": {
            "shards": shards, "max_length": 512, "template": "v1" if is_last else "plain",
            **({"feature_cache": str(folder / "cache")} if is_last else {}),
        },
        "model": {
            "language_model": str(_WEIGHTS / "language_model"), "vision_tower": str(_WEIGHTS / "tower"),
            **({"pretrain_mm_mlp_adapter": str(folder / "pretrain")} if is_last else {}),
        },
        "training": {"global_batch_size": 5, "micro_batch_tokens": 600, "learning_rate": 1e-3, "max_steps": _STEPS},
        "lora": {"rank": 2} if is_last else {},
        "checkpoint": {"every_steps": 1, "keep_last": 2, "keep_best": 0},
        "cluster": {"launcher": "local", "data_workers": 0, "torch_threads": 1},
        "tracking": {"enabled": False},
    }  # fmt: skip
    return parse_config(tree, where=stage).with_absolute_paths()


def turn_bits(world: World, kind: str, rng: random.Random, number: int) -> Outcome:
    """Turn one bit at a time in the files of a kind, each as often as the others; they are intact afterwards."""
    place, read = KINDS[kind]
    root = world.folder / place
    intact = root.with_name(f"{root.name}-intact")
    shutil.copytree(root, intact)
    expected, names = read(world), sorted(path.relative_to(root) for path in _files(root, kind))
    equal = refused = 0
    silent = []
    for _ in range(number):
        name = rng.choice(names)
        _hide_what_is_made_of(root / name)
        content = bytearray((root / name).read_bytes())
        byte, bit = rng.randrange(len(content)), rng.randrange(8)
        content[byte] ^= 1 << bit
        (root / name).write_bytes(content)
        told = ""
        try:
            if read(world) == expected:
                equal += 1
            else:
                told = "other numbers"
        except Exception as error:  # damaged files make libraries raise many types
            explained = classify(error).is_explained and any(part in str(error) for part in (root.name, name.name))
            refused += explained
            told = "" if explained else f"{type(error).__name__}: {error}"
        if told:
            silent.append(f"{name}, bit {bit} of byte {byte}: {told}"[:400])
        shutil.rmtree(root)
        shutil.copytree(intact, root)
    shutil.rmtree(intact)
    return Outcome(equal, refused, tuple(silent))


def _files(root: Path, kind: str) -> Iterable[Path]:
    unread = {"adapter": ("config.json", "README.md", "tokenizer", "preprocessor", "ray_llava", "generation", "chat")}
    own = unread.get(kind, ())
    return (
        path for path in root.rglob("*") if path.is_file() and path.stat().st_size and not path.name.startswith(own)
    )


def _hide_what_is_made_of(file: Path) -> None:
    """Remove what would be read in the place of a file: an index stands for the scans and counts it was made from."""
    root = file.parents[1]
    if file.parent.name == "scans":
        (root / "index.json").unlink()
    if file.parent.name in ("scans", "token_counts"):
        for table in root.glob("tokens-*.parquet"):
            table.unlink()


def _read_cache(world: World) -> str:
    return _digest_of_steps(with_cached_features(world.config.recipe, world.source))


def _read_index(world: World) -> str:
    bare = world.config.model_copy(update={"data": world.config.data.model_copy(update={"feature_cache": None})})
    return _digest_of_steps(prepare_run(bare, world.source.encoder, console=_QUIET)[0])


def _read_projector(world: World) -> str:
    check_provenance(world.config.model)
    check_projector_file(world.config.model)
    return _digest(read_adapter(world.folder / "pretrain" / "projector"))


def _read_adapter(world: World) -> str:
    bare = world.config.recipe._replace(lora=world.config.lora.model_copy(update={"rank": None}))
    model = build_skeleton(bare).to_empty(device="cpu")
    load_lora(model, world.folder / "finetune" / "model")
    own = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name or "mm_projector" in name}
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
    scales = [layer.scaling["default"] for layer in layers]
    return _digest({**own, "scales": torch.tensor(scales)})


def _read_checkpoint(world: World) -> str:
    """Continue from the newest checkpoint that is whole, which is not the damaged one and is told."""
    told = _Told()
    log = logging.getLogger("pipeline")
    log.addHandler(told)
    try:
        found = CheckpointStore(world.folder / "finetune" / "checkpoints", 2).latest()
    finally:
        log.removeHandler(told)
    assert found is not None
    if found.step != _STEPS:
        raise ValueError(f"went back to step {found.step}: {told.messages}")
    return _digest(
        {f"{group}.{name}": own for group in ("model", "optimizer") for name, own in found.tensors(group).items()}
    )


class _Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _digest_of_steps(source: BatchSource) -> str:
    digest = hashlib.sha256()
    for step in range(source.plan.total_steps):
        rank_step = build_rank_step(source, source.plan.split(step, 1)[0])
        digest.update(repr(rank_step.rejected).encode())
        tensors = {name: own for name, own in rank_step._asdict().items() if isinstance(own, Tensor)}
        digest.update(_digest(tensors).encode())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


KINDS: dict[str, tuple[str, Callable[[World], str]]] = {
    "cache": ("cache", _read_cache),
    "index": ("finetune/index", _read_index),
    "projector": ("pretrain/projector", _read_projector),
    "adapter": ("finetune/model", _read_adapter),
    "checkpoint": ("finetune/checkpoints", _read_checkpoint),
}
"""Kind of file -> its folder, and how a run reads it."""
