"""Frozen language-model weights in 4 or 8 bits through bitsandbytes, for training adapters on top of them.

Tower, projector and output head stay as they are. Source: Dettmers et al., "QLoRA", NeurIPS 2023.
"""

import importlib.util
from typing import Final, Literal

import torch
from transformers import BitsAndBytesConfig

Quantization = Literal["nf4", "int8"]
_WHOLE: Final = ["lm_head", "mm_projector", "vision_tower"]
_PACKAGES: Final = ("accelerate", "bitsandbytes")


def quantization_config(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Describe the quantisation for `from_pretrained`.

    Args:
        kind: `nf4` is 4 bits with doubly quantised scales, `int8` LLM.int8.
        dtype: what the weights are brought back to for arithmetic.

    Raises:
        ValueError: a package it needs is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"quantized weights ({kind}) need {' and '.join(missing)}; install ray-llava[qlora], or leave the language "
            "model unquantized"
        )
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_WHOLE)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_WHOLE,
    )
