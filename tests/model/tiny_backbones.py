"""Tiny configs of every backbone: the fields that published configs set, with small sizes and short windows.

Windows are wider than most test samples and narrower than one image; rope scalings take effect inside a test sample.
"""

from __future__ import annotations

from typing import Any, Final

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GptOssConfig,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    SmolLM3Config,
)

WIDTH = 32
VOCAB = 97

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 58, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
_IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MIXED: dict[str, Any] = {"sliding_window": 11, "layer_types": ["sliding_attention", "full_attention"]}

_LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 8,
    "max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip
_HALF_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
# Sizes of experts are multiples of 8: grouped matrix products need rows of 16 bytes, in bfloat16 too.
_LINEAR: dict[str, Any] = {
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8, "linear_value_head_dim": 6, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
}  # fmt: skip

CONFIGS: Final[dict[str, tuple[type[PretrainedConfig], dict[str, Any]]]] = {
    "llama": (LlamaConfig, {"rope_parameters": _LLAMA3_ROPE}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "ministral": (MinistralConfig, {"head_dim": 8, "sliding_window": 11, "layer_types": ["sliding_attention"] * 2}),
    "ministral3": (Ministral3Config, {"head_dim": 8, "rope_parameters": _YARN, "sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 6}),
    "gemma": (GemmaConfig, {"head_dim": 6}),
    "gemma2": (
        Gemma2Config,
        {
            **_MIXED, "head_dim": 6, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3_text": (Gemma3TextConfig, {**_MIXED, "head_dim": 6}),
    "phi": (PhiConfig, {"num_key_value_heads": 4, "rope_parameters": _HALF_ROPE, "qk_layernorm": True}),
    "phi3": (Phi3Config, {}),
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2}),
    "olmo2": (Olmo2Config, {}),
    "olmo3": (Olmo3Config, _MIXED),
    "glm": (GlmConfig, {"head_dim": 8, "rope_parameters": _HALF_ROPE, "attention_bias": True}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        {
            "head_dim": 8, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 24,
            "num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True, "router_aux_loss_coef": 0.001,
        },
    ),
    "glm4_moe": (
        Glm4MoeConfig,
        {
            "head_dim": 8, "rope_parameters": _HALF_ROPE, "attention_bias": True, "use_qk_norm": True,
            "moe_intermediate_size": 24, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
        },
    ),
    "gpt_oss": (
        GptOssConfig,
        {
            **_MIXED, "head_dim": 8, "intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 2,
            "swiglu_limit": 7.0,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "truncate": False, "original_max_position_embeddings": 4,
            },
        },
    ),
    "qwen3_next": (
        Qwen3NextConfig,
        {
            **_LINEAR, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 14, "num_experts": 5,
            "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        },
    ),
    "qwen3_5_text": (Qwen3_5TextConfig, _LINEAR),
    "glm4": (Glm4Config, {"head_dim": 8, "rope_parameters": _HALF_ROPE, "attention_bias": True}),
}  # fmt: skip
"""`model_type` -> config class and the fields that are not of every family; MPT has names of its own."""


def tiny_backbone_config(kind: str, *, tied: bool = False) -> PretrainedConfig:
    """Two layers of a family."""
    if kind == "mpt":
        return MptConfig(
            vocab_size=VOCAB, d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=128, initializer_range=0.2,
            tie_word_embeddings=tied, **_IDS,
        )  # fmt: skip
    config_class, own = CONFIGS[kind]
    return config_class(**{**_SHAPE, **_IDS, "tie_word_embeddings": tied, **own})
