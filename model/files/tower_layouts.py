"""Older names of encoder weights and config fields, brought to those of transformers' classes.

CLIP and SigLIP had one level more (`vision_model.`); InternViT-6B was published with code of its own, with queries,
keys and values in one tensor (`modeling_intern_vit.py` of OpenGVLab/InternViT-6B-224px).
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

_OUTSIDE_ENCODER: Final = r"(?:text_model|visual_projection|text_projection|classifier)\..+|logit_scale|logit_bias"
"""Tensors in addition to the encoder's, in checkpoints that pair it with a text encoder or a classifier."""
ORIGINAL_INTERNVIT: Final = "intern_vit_6b"
"""`model_type` of InternViT checkpoints in their original layout, of any size."""
_INTERNVIT_FIELDS: Final = {
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "dropout": "hidden_dropout_prob",
}
_SAME_FIELDS: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "attention_dropout",
    "initializer_range",
    "norm_type",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
_INTERNVIT_DEFAULTS: Final[dict[str, Any]] = {
    "num_channels": 3, "patch_size": 14, "image_size": 224, "qkv_bias": False, "hidden_size": 3200,
    "num_attention_heads": 25, "intermediate_size": 12800, "qk_normalization": True, "num_hidden_layers": 48,
    "hidden_act": "gelu", "norm_type": "rms_norm", "layer_norm_eps": 1e-6, "dropout": 0.0, "attention_dropout": 0.0,
    "initializer_range": 0.02,
}  # fmt: skip
"""What the published class (`configuration_intern_vit.py`) takes where a config.json says nothing; transformers' class
has other normalisations and sizes."""
_INTERNVIT_NAMES: Final = (
    (r"embeddings\.class_embedding", "embeddings.cls_token"),
    (r"embeddings\.position_embedding", "embeddings.position_embeddings"),
    (r"embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"encoder\.layers\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.projection_layer."),
    (r"encoder\.layers\.(\d+)\.attn\.([qk])_norm\.", r"encoder.layer.\1.attention.\2_norm."),
    (r"encoder\.layers\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"encoder\.layers\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"encoder\.layers\.(\d+)\.ls([12])$", r"encoder.layer.\1.lambda_\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.", r"encoder.layer.\1.mlp."),
)
_JOINED_QKV: Final = r"encoder\.layers\.(\d+)\.attn\.qkv\.(weight|bias)"


def internvit_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the config.json of an original InternViT to the fields of `InternVLVisionConfig`.

    Fields that it leaves out have the defaults of the published class.
    """
    values = _INTERNVIT_DEFAULTS | dict(values)
    fields = {name: values[name] for name in _SAME_FIELDS if name in values}
    return fields | {new: values[old] for old, new in _INTERNVIT_FIELDS.items() if old in values}


def current_names(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Rename an encoder's tensors to the names of transformers' classes; those that have them stay as they are.

    Buffers of positions that old files carry (`position_ids`) are left out: they are computed.

    Args:
        state: without a prefix.
        model_type: of the encoder; only InternViT was published under names of its own.
    """
    renamed: dict[str, Tensor] = {}
    for old_name, tensor in state.items():
        name = old_name.removeprefix("vision_model.").removeprefix("dinov2.").removeprefix("dinov2_with_registers.")
        if name.endswith("position_ids"):
            continue
        if model_type != "internvl_vision":
            renamed[name] = tensor
            continue
        joined = re.fullmatch(_JOINED_QKV, name)
        if joined:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{joined[1]}.attention.{part}_proj.{joined[2]}"] = rows
            continue
        for pattern, new in _INTERNVIT_NAMES:
            name, changed = re.subn(f"^{pattern}" if pattern.endswith(("$", r"\.")) else f"^{pattern}$", new, name)
            if changed:
                break
        renamed[name] = tensor
    return renamed


def is_in_encoder(name: str) -> bool:
    """Whether a tensor of a tower's folder belongs to the image encoder, not to a text encoder or a classifier."""
    return re.fullmatch(_OUTSIDE_ENCODER, name) is None


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Describe what is missing, unexpected or misshaped in `found`, one clause per tensor."""
    problems = [f"missing {name} {list(expected[name].shape)}" for name in expected if name not in found]
    problems += [f"unexpected {name} {list(found[name].shape)}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    return problems
