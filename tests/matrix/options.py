"""The options and the values of each that the matrix combines; one that is left out says why.

A value is what a config holds; `{...}` is filled in with paths of the parts (see `parts`).
"""

from __future__ import annotations

from typing import Any, Final, get_args

from model.backbones.registry import BACKBONES
from pipeline.config.data import TemplateName
from tests.model.tiny import TOWERS as SQUARE_TOWERS

OPTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "stage": ("finetune", "pretrain"),
    "data.shards": ("{chat}", "{captions}", "{images}", "{videos}", "{texts}"),
    "data.sources": ({}, {"a": {"shards": ["{shards}"], "weight": 1}, "b": {"shards": ["{others}"], "weight": 2}}),
    "data.mix_changes": ((), ({"from_step": 1, "weights": {"a": 2, "b": 1}},)),
    "data.feature_cache": (None, "{cache}"),
    "data.template": ("v1", *(name for name in get_args(TemplateName) if name != "v1")),
    "data.image_aspect_ratio": ("pad", "crop", "anyres", "anyres_max_2", "dynamic_1_4"),
    "data.image_grid_pinpoints": (None, "(1x1),...,(2x2)"),
    "data.check_images": ("decode", "header"),
    "data.on_bad_shard": ("fail", "quarantine"),
    "data.prepend_missing_placeholder": (False, True),
    "data.drop_leading_answer": (False, True),
    "model.language_model": tuple(f"{{{kind}}}" for kind in BACKBONES),
    "model.vision_tower": (
        *(f"{{{kind}}}" for kind in SQUARE_TOWERS), ["{clip_vision_model}", "{siglip_vision_model}"],
    ),
    "model.mm_projector_type": (
        "mlp2x_gelu", "linear", "ln_linear", "ln_mlp2x_gelu", "mlp2x_gelu_ln", "mlp1x_res1x_gelu", "identity",
        "pool2_mlp2x_gelu", "shuffle2_linear", "resampler4_1",
    ),
    "model.mm_vision_select_layer": (-2, [-1, -2]),
    "model.mm_vision_select_feature": ("patch", "cls_patch"),
    "model.mm_vision_scales": ([1], [1, 2]),
    "model.mm_use_im_start_end": (False, True),
    "model.mm_use_im_patch_token": (False, True),
    "model.mm_patch_merge_type": (None, "spatial", "spatial_unpad"),
    "model.attention": ("auto", "sdpa"),
    "training.mm_projector_lr": (None, 2e-3),
    "training.vision_tower_lr": (None, 1e-4),
    "training.weight_decay": (0.0, 0.1),
    "training.lr_schedule": ("cosine", "constant"),
    "training.precision": ("bfloat16", "float32"),
    "training.master_dtype": ("float32", "bfloat16"),
    "training.optimizer": ("adamw", "adamw_8bit"),
    "training.sharding": ("none", "fsdp"),
    "training.fsdp_group_size": (None, 2),
    "training.reduce_gradients": ("micro_batch", "step"),
    "training.reduce_dtype": ("float32", "bfloat16"),
    "training.gradient_checkpointing": (False, True, "selective"),
    "training.compile": (False, True),
    "training.cpu_offload": (False, True),
    "training.profile_steps": (None, [0, 0]),
    "lora.rank": (None, 2),
    "lora.dropout": (0.05, 0.0),
    "lora.targets": (None, ["down_proj"]),
    "lora.quantize_base": (None, "nf4", "int8"),
    "checkpoint.every_steps": (100, 1),
    "checkpoint.keep_last": (2, 1),
    "checkpoint.keep_best": (1, 0),
    "checkpoint.layout": ("sharded", "whole"),
    "checkpoint.folder": (None, "{checkpoints}", "{bucket}"),
    "evaluation.shards": ((), ("{chat}",)),
    "evaluation.metrics": (("exact_match",), ("perplexity",)),
    "cluster.num_workers": (1, 2, [1, 2]),
    "cluster.prefetch_steps": (2, 1),
    "tracking.enabled": (False, True),
    "tracking.uri": ("{database}", "{server}"),
}  # fmt: skip
"""Option -> values, the first is the one that cells take when nothing asks for another."""

_SAME_PATH = "decides no path of the code, only an amount"
LEFT_OUT: Final[dict[str, str]] = {
    "name": "a name",
    "run_dir": "each cell has its own",
    "seed": _SAME_PATH,
    "data.index_dir": "each cell has its own",
    "data.mix_temperature": "excludes the weights of the sources; tests/pipeline/plan/test_mix.py",
    "data.max_length": _SAME_PATH,
    "data.max_image_pixels": _SAME_PATH,
    "data.video_fps": _SAME_PATH,
    "data.video_max_frames": _SAME_PATH,
    "data.video_times": "changes the text of samples with video files; tests/pipeline/samples/test_film.py",
    "data.held_out": "decides which samples are planned; tests/pipeline/index/test_held_out.py",
    "data.where": "decides which samples are planned; tests/pipeline/index/test_hygiene.py",
    "data.against": "read by data.where only; tests/pipeline/index/test_hygiene.py",
    "data.allow_duplicate_keys": "decides about the index only; tests/pipeline/index",
    "data.sample_keys": "decides about the index only; tests/pipeline/index",
    "data.max_rejected_fraction": _SAME_PATH,
    "data.max_rejected_per_shard": _SAME_PATH,
    "data.max_rejected_in_a_row": _SAME_PATH,
    "model.pretrain_mm_mlp_adapter": "tests/integration/test_pairs_training.py and tests/jobs/test_refusals.py",
    "model.accept_projector": "tests/pipeline/assembly/test_provenance.py",
    "training.num_epochs": _SAME_PATH,
    "training.max_steps": _SAME_PATH,
    "training.global_batch_size": _SAME_PATH,
    "training.micro_batch_tokens": _SAME_PATH,
    "training.cost.token_ns": "decides packing only; tests/pipeline/plan/test_balance.py",
    "training.cost.token_pair_ns": "with training.cost.token_ns",
    "training.cost.tile_ns": "with training.cost.token_ns",
    "training.cost.megapixel_ns": "with training.cost.token_ns",
    "training.vision_batch_size": _SAME_PATH,
    "training.learning_rate": _SAME_PATH,
    "training.warmup_ratio": _SAME_PATH,
    "training.max_grad_norm": _SAME_PATH,
    "training.expert_balance": "tests/integration/test_experts_training.py",
    "training.loss_spike_deviations": _SAME_PATH,
    "training.linear_precision": "fp8 needs a Hopper GPU",
    "lora.alpha": _SAME_PATH,
    "cluster.launcher": "both are run for every cell",
    "cluster.resize_interval_s": _SAME_PATH,
    "cluster.use_gpu": "the matrix runs on CPUs",
    "cluster.cpus_per_worker": _SAME_PATH,
    "cluster.data_workers": "1 on Ray, 0 without",
    "cluster.torch_threads": "equal sums need equal numbers",
    "cluster.max_failures": _SAME_PATH,
    "tracking.experiment": "a name",
    "checkpoint.keep_best_metric": "tests/integration/test_evaluation_training.py",
    "checkpoint.keep_best_mode": "tests/integration/test_evaluation_training.py",
    "evaluation.sets": "tests/integration/test_evaluation_training.py",
    "evaluation.held_out": "tests/integration/test_evaluation_training.py",
    "evaluation.every_steps": "each cell evaluates at its end; tests/integration/test_evaluation_training.py",
    "evaluation.at_end": "tests/integration/test_evaluation_training.py",
    "evaluation.where": "tests/integration/test_evaluation_training.py",
    "evaluation.max_samples": _SAME_PATH,
    "evaluation.batch_size": _SAME_PATH,
    "evaluation.max_new_tokens": _SAME_PATH,
    "evaluation.stop_after": "tests/integration/test_evaluation_training.py",
    "tracking.log_model": _SAME_PATH,
}
"""Option -> why no row of the matrix has it."""

EXCLUDED: Final[tuple[tuple[str, Any, str, tuple[Any, ...]], ...]] = (
    ("stage", "pretrain", "lora.rank", (2,)),
    ("stage", "pretrain", "lora.quantize_base", ("nf4", "int8")),
    ("stage", "pretrain", "training.vision_tower_lr", (1e-4,)),
    ("stage", "pretrain", "model.mm_projector_type", ("identity",)),
    ("data.feature_cache", "{cache}", "training.vision_tower_lr", (1e-4,)),
    ("data.sources", {}, "data.mix_changes", OPTIONS["data.mix_changes"][1:]),
    ("data.template", "plain", "data.shards", ("{chat}", "{images}", "{videos}", "{texts}")),
    ("data.template", "plain", "evaluation.shards", (("{chat}",),)),
    ("data.shards", "{videos}", "model.mm_projector_type", ("resampler4_1",)),
    ("data.shards", "{videos}", "model.mm_vision_select_feature", ("cls_patch",)),
    ("training.sharding", "none", "training.cpu_offload", (True,)),
    ("training.sharding", "none", "training.fsdp_group_size", (2,)),
    ("training.sharding", "none", "training.reduce_gradients", ("step",)),
    ("training.sharding", "none", "training.reduce_dtype", ("bfloat16",)),
    ("training.sharding", "fsdp", "training.optimizer", ("adamw_8bit",)),
    ("training.master_dtype", "bfloat16", "training.optimizer", ("adamw_8bit",)),
    ("lora.quantize_base", "nf4", "lora.rank", (None,)),
    ("lora.quantize_base", "int8", "lora.rank", (None,)),
    ("lora.quantize_base", "nf4", "training.sharding", ("fsdp",)),
    ("lora.quantize_base", "int8", "training.sharding", ("fsdp",)),
    ("lora.targets", ["down_proj"], "model.language_model", ("{phi}",)),
    ("data.image_grid_pinpoints", "(1x1),...,(2x2)", "data.image_aspect_ratio", ("pad", "crop", "dynamic_1_4")),
    ("data.image_aspect_ratio", "anyres_max_2", "model.mm_patch_merge_type", (None,)),
    ("model.mm_projector_type", "identity", "model.mm_vision_select_layer", (-2,)),
    ("model.mm_projector_type", "identity", "model.mm_vision_scales", ([1, 2],)),
    ("model.mm_projector_type", "identity", "model.vision_tower", (["{clip_vision_model}", "{siglip_vision_model}"],)),
    ("model.mm_projector_type", "resampler4_1", "model.mm_patch_merge_type", ("spatial", "spatial_unpad")),
    ("model.mm_projector_type", "resampler4_1", "data.image_aspect_ratio", ("anyres_max_2",)),
    ("model.mm_vision_select_feature", "cls_patch", "model.mm_patch_merge_type", ("spatial", "spatial_unpad")),
    ("model.mm_vision_select_feature", "cls_patch", "model.mm_projector_type", ("pool2_mlp2x_gelu", "shuffle2_linear")),
    ("model.mm_vision_select_feature", "cls_patch", "model.mm_vision_scales", ([1, 2],)),
    ("model.mm_vision_select_feature", "cls_patch", "data.image_aspect_ratio", ("anyres_max_2",)),
    (
        "model.mm_vision_select_feature",
        "cls_patch",
        "model.vision_tower",
        (["{clip_vision_model}", "{siglip_vision_model}"],),
    ),
)
"""Option, value, and the values of another option that a config refuses with it; no row combines them."""

ACTS_WITH: Final[dict[str, tuple[str, Any]]] = {"lora.targets": ("lora.rank", 2)}
"""Option -> another option and the value without which it does nothing, and is therefore not refused either."""

INDEPENDENT: Final[tuple[tuple[str, str], ...]] = (
    ("data.template", "model.language_model"),  # all have the same tokenizer here
    ("data.template", "model.vision_tower"),
    ("data.template", "model.mm_projector_type"),
    ("model.language_model", "model.vision_tower"),  # tests/model/test_pairs.py
    ("model.language_model", "model.mm_projector_type"),  # which meet in a width only
)
"""Options of many values that never meet in the code: their pairs occur in rows by chance."""

SLOW: Final = frozenset({"training.compile", "training.profile_steps", "lora.quantize_base", "tracking.uri"})
"""Options whose first value is taken wherever another one would add no pair."""

NEEDS: Final[dict[tuple[str, Any], str]] = {
    ("training.optimizer", "adamw_8bit"): "bitsandbytes",
    ("lora.quantize_base", "nf4"): "bitsandbytes",
    ("lora.quantize_base", "int8"): "bitsandbytes",
}
"""Option and value -> the package without which `make matrix` leaves it out; `make test-extras` installs it."""
