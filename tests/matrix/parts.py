"""The small parts that every cell trains on, of each kind that is known, and the config of a cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.models.clip import CLIPImageProcessor

from model.backbones.registry import BACKBONES
from model.vision.tower_kinds import TOWER_KINDS
from pipeline.config import ExperimentConfig, parse_config
from pipeline.samples.prompt.templates import TEMPLATES
from pipeline.shards.writer import write_shards
from pipeline.tools.demo.shards import DemoSizes, caption_member_files, conversation_member_files, write_demo_shards
from tests.model.tiny import TOWERS as SQUARE_TOWERS
from tests.model.tiny import tiny_backbone_config, tiny_tower_config

_TOKENIZER = Path(__file__).parents[2] / "pipeline" / "tools" / "demo" / "weights" / "language_model"
_SIZES = DemoSizes(pretrain=13, finetune=13, held_out=1)
_POSITIONS = 2048
_TOWER = {"image_size": 96, "patch_size": 16, "hidden_size": 16, "num_attention_heads": 2}
"""36 patches, which merge by twos; two layers are as wide as the language models, for the projector `identity`."""
_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_parts(folder: Path) -> dict[str, str]:
    """Write shards, language models and towers; returns what `{...}` in options stands for."""
    shards = write_demo_shards(folder / "shards", _SIZES)
    parts = {"chat": shards["finetune"][0], "captions": shards["pretrain"][0], "cache": str(folder / "cache")}
    others = (caption_member_files("pretrain", index) for index in range(_SIZES.pretrain, 2 * _SIZES.pretrain))
    parts["others"] = write_shards(others, folder / "shards" / "others-%06d.tar")[0]
    parts |= {name: _write_shard(folder / "shards", name) for name in ("images", "videos", "texts")}
    parts |= {kind: _write_language_model(kind, folder / "language_models" / kind) for kind in BACKBONES}
    return parts | {kind: _write_tower(kind, folder / "towers" / kind) for kind in SQUARE_TOWERS}


def _write_shard(folder: Path, kind: str) -> str:
    """Write conversations of which every second one has two images, a video of two frames, or none."""
    samples = (conversation_member_files("finetune", index) for index in range(_SIZES.finetune))
    changed = (_change(sample, kind) if index % 2 else sample for index, sample in enumerate(samples))
    return write_shards(changed, folder / f"{kind}-%06d.tar")[0]


def _change(sample: Mapping[str, str | bytes], kind: str) -> dict[str, str | bytes]:
    tree = json.loads(sample["json"])
    (name, picture), *_ = ((name, value) for name, value in sample.items() if isinstance(value, bytes))
    first, second = f"0.{name.partition('.')[2]}", f"1.{name.partition('.')[2]}"
    place = {"images": "<image>\n<image>\n", "videos": "<video>\n", "texts": ""}[kind]
    question = tree["conversations"][0]["value"].replace("<image>", "").strip()
    turns = [{"from": "human", "value": place + question}, *tree["conversations"][1:]]
    for turn in turns[1:]:
        turn["value"] = turn["value"].replace("<image>", "").strip()
    names = {"images": {"image": [first, second]}, "videos": {"video": [first, second]}, "texts": {}}[kind]
    shown = {} if kind == "texts" else {first: picture, second: picture}
    record = {"id": tree["id"], "conversations": turns, **names}
    return {"__key__": sample["__key__"], **shown, "json": json.dumps(record)}


def _write_language_model(kind: str, folder: Path) -> str:
    """Write a model of two layers whose tokenizer has the control tokens of every template."""
    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER)
    controls = sorted(set().union(*(template.controls for template in TEMPLATES.values())))
    new = [AddedToken(text, special=True, normalized=False) for text in controls if text not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.chat_template = _CHAT
    config = tiny_backbone_config(kind)
    length = "max_seq_len" if hasattr(config, "max_seq_len") else "max_position_embeddings"
    config = _changed_config(config, vocab_size=len(tokenizer), **{length: _POSITIONS})
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _write_tower(kind: str, folder: Path) -> str:
    torch.manual_seed(4)
    model: Any = TOWER_KINDS[kind].model_class(_changed_config(tiny_tower_config(kind), **_TOWER))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    model.save_pretrained(folder)
    side = _TOWER["image_size"]
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(folder)
    return str(folder)


def _changed_config(config: PretrainedConfig, **fields: Any) -> PretrainedConfig:
    return type(config).from_dict({**config.to_dict(), **fields})


def cell_config(values: Mapping[str, Any], run_dir: Path, parts: Mapping[str, str], launcher: str) -> ExperimentConfig:
    """Return the config of a cell.

    Raises:
        ConfigError: its values exclude each other.
    """
    # 1. What every cell has.
    places = {
        **parts,
        "checkpoints": str(run_dir.parent / f"{run_dir.name}-checkpoints"),
        "bucket": parts.get("bucket", "s3://{}").format(f"{run_dir.parent.name}-{run_dir.name}"),
        "database": f"sqlite:///{run_dir.parent / run_dir.name}.db",
    }
    places["shards"] = _fill(values["data.shards"], places)
    tree: dict[str, Any] = {
        "name": run_dir.name, "run_dir": str(run_dir),
        "data": {"max_length": 1024, "max_rejected_fraction": 1.0},
        "training": {"global_batch_size": 5, "micro_batch_tokens": 1500, "learning_rate": 1e-3, "max_steps": 2},
        "cluster": {
            "launcher": launcher, "data_workers": 1 if launcher == "ray" else 0, "torch_threads": 1,
            "cpus_per_worker": 0.5,
        },
    }  # fmt: skip
    # 2. Its own values.
    for path, value in values.items():
        *sections, leaf = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = _fill(value, places)
    tree["data"]["shards"] = [] if tree["data"]["sources"] else [places["shards"]]
    return parse_config(tree, where=run_dir.name)


def _fill(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        return places[value.strip("{}")]
    if isinstance(value, dict):
        return {key: _fill(own, places) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_fill(own, places) for own in value]
    return value
