"""What a run is, in a few lines that a colleague reads on its page."""

import socket

from pipeline.config import ExperimentConfig
from pipeline.storage.urls import below

_LEARNS = {"pretrain": "the projector", "finetune": "projector and language model"}


def describe_run(config: ExperimentConfig) -> str:
    """Return the description of a run, as Markdown."""
    training, shards = config.training, config.data.shards
    learns = _LEARNS[config.stage] if config.lora.rank is None else f"LoRA adapters of rank {config.lora.rank}"
    extent = f"{training.num_epochs} epochs" if training.max_steps is None else f"at most {training.max_steps} steps"
    sources = ", ".join(f"`{name}`" for name in sorted({_folder(shard) for shard in shards})[:3])
    lines = [
        f"**{config.stage}** of `{config.name}`: trains {learns}.",
        "",
        f"- Language model `{config.model.language_model}`, vision tower `{config.model.vision_tower}`",
        f"- Data: {len(shards)} shard pattern(s) from {sources}, template `{config.data.template}`",
        f"- {extent}, {training.global_batch_size} samples per step, learning rate {training.learning_rate:g}, "
        f"seed {config.seed}",
        f"- Run folder `{config.run_dir}` on `{socket.gethostname()}`; resume with "
        f"`ray-llava {config.stage} --config {below(config.run_dir, 'config.yaml')}`",
    ]
    return "\n".join(lines)


def _folder(shard: str) -> str:
    return shard.split("?")[0].rpartition("/")[0] or "."
