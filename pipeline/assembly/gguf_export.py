"""A finetuned model as two GGUF files for llama.cpp: the language model, and tower with projector (`mmproj`).

What llama.cpp's LLaVA graph computes otherwise is refused; what its reading of texts and images may change is noted.
Every tensor is read back and compared. Layout: the `gguf` package, and llama.cpp's tools/mtmd/models/llava.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.hub.export import is_tied, language_model_type
from model.hub.weights import LlavaModel
from model.vision.image_spec import ImageSpec
from pipeline.assembly.folder import read_folder_facts, read_folder_prompt
from pipeline.assembly.merge import find_model_folder, load_merged, require_empty
from pipeline.samples.prompt.served_prompt import served_tokenizer

LANGUAGE_FILE, PROJECTOR_FILE = "language.gguf", "mmproj.gguf"
TYPES = {
    "float32": gguf.GGMLQuantizationType.F32,
    "float16": gguf.GGMLQuantizationType.F16,
    "bfloat16": gguf.GGMLQuantizationType.BF16,
}
_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_TOWER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_PAD_COLOR = (122, 116, 104)
"""That llama.cpp pads with."""
_ADVICE = "export it for transformers (without --format gguf)"


class Gguf(NamedTuple):
    """What was written."""

    num_tensors: int
    """All read back equal."""
    notes: tuple[str, ...]
    """What llama.cpp may read otherwise than the model was trained."""


def export_gguf(source: str | Path, target: str | Path, dtype: str) -> Gguf:
    """Write `language.gguf` and `mmproj.gguf`; adapters are folded in.

    Args:
        source: folder of a finished finetuning run, or a model folder.
        target: folder to write; must be empty or not exist.
        dtype: of matrices, one of `TYPES`; vectors and the patch embedding are float32.

    Raises:
        ConfigError: source holds no model, or target holds files.
        ValueError: llama.cpp does not compute this model; names what and why.
        OSError: a tensor was read back otherwise than it was written.
    """
    folder, out = find_model_folder(source), require_empty(target)
    model = load_merged(folder, torch.float32)
    _check(model)
    tokenizer, template = read_folder_prompt(folder)
    spec = read_folder_facts(folder).image_spec
    out.mkdir(parents=True, exist_ok=True)
    language, tower = dict(_language_tensors(model)), dict(_tower_tensors(model))
    _write(out / LANGUAGE_FILE, _language_writer(model, served_tokenizer(tokenizer, template)), language, TYPES[dtype])
    _write(out / PROJECTOR_FILE, _tower_writer(model, spec), tower, TYPES[dtype])
    return Gguf(len(language) + len(tower), tuple(_notes(model, tokenizer, spec)))


def _check(model: LlavaModel) -> None:
    """Refuse what llama.cpp computes otherwise."""
    config, kind, tower = model.config, language_model_type(model), cast(Any, model.get_vision_tower())
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    problems = {
        f"language model {kind}": kind not in _ARCHITECTURES,
        f"rope scaling {rope}": rope != "default",
        "a sliding window": bool(getattr(config, "sliding_window", None))
        and getattr(config, "use_sliding_window", True),
        f"vision tower {tower.config.model_type}": tower.config.model_type != "clip_vision_model",
        f"features {tower.spec.select_feature}": tower.spec.select_feature != "patch",
        f"features of layer {tower.spec.select_layer}": not _num_layers(tower) < tower.config.num_hidden_layers,
        f"projector {config.mm_projector_type}": config.mm_projector_type != "mlp2x_gelu",
        f"images as {config.image_aspect_ratio}": str(config.image_aspect_ratio).startswith("anyres"),
        "tokens around images": bool(config.mm_use_im_start_end),
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise ValueError(f"llama.cpp's LLaVA does not have {', '.join(found)}; {_ADVICE}")


def _num_layers(tower: Any) -> int:
    """Return the layers that run; llama.cpp leaves out the last of those in the file."""
    layer = tower.spec.select_layer
    if not isinstance(layer, int):
        return int(tower.config.num_hidden_layers)
    return layer if layer >= 0 else int(tower.config.num_hidden_layers) + 1 + layer


def _language_tensors(model: LlavaModel) -> Iterator[tuple[str, Tensor]]:
    config: Any = model.config
    arch = _ARCHITECTURES[language_model_type(model)]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "vision_tower" in name or "mm_projector" in name or (name == "lm_head.weight" and is_tied(model)):
            continue
        stem, _, ending = name.rpartition(".")
        if arch is gguf.MODEL_ARCH.LLAMA and stem.endswith(("q_proj", "k_proj")):
            is_query = stem.endswith("q_proj")
            tensor = _interleaved(tensor, config.num_attention_heads if is_query else config.num_key_value_heads)
        found = names.get_name(stem)
        if found is None:
            raise ValueError(f"llama.cpp has no tensor for {name}; {_ADVICE}")
        yield f"{found}.{ending}", tensor


def _interleaved(tensor: Tensor, num_heads: int) -> Tensor:
    """Reorder the rows of a query or key layer: llama.cpp rotates neighbours, transformers rotates halves."""
    halves = tensor.reshape(num_heads, 2, tensor.shape[0] // num_heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _tower_tensors(model: LlavaModel) -> Iterator[tuple[str, Tensor]]:
    tower: Any = model.get_vision_tower()
    num_layers = _num_layers(tower)
    for full, tensor in model.state_dict().items():
        name = full.removeprefix("model.vision_tower.vision_tower.").removeprefix("vision_model.")
        stem, _, ending = name.rpartition(".")
        if full.startswith("model.mm_projector."):
            yield full.replace("model.mm_projector", "mm"), tensor
        elif name == "embeddings.class_embedding":
            yield "v.class_embd", tensor
        elif stem in ("embeddings.patch_embedding", "embeddings.position_embedding"):
            yield f"v.{'patch' if 'patch' in stem else 'position'}_embd.{ending}", tensor
        elif stem == "pre_layrnorm":
            yield f"v.pre_ln.{ending}", tensor
        elif stem.startswith("encoder.layers."):
            number, _, part = stem.removeprefix("encoder.layers.").partition(".")
            if int(number) <= num_layers:
                yield f"v.blk.{number}.{_TOWER_NAMES[part]}.{ending}", tensor


def _language_writer(model: LlavaModel, tokenizer: PreTrainedTokenizerFast) -> gguf.GGUFWriter:
    config: Any = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter("", gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[language_model_type(model)]])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10000.0)))
    num_rows = len(model.state_dict()["model.embed_tokens.weight"])
    writer.add_vocab_size(num_rows)
    _add_tokenizer(writer, tokenizer, num_rows, model)
    return writer


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, num_rows: int, model: LlavaModel
) -> None:
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in definition["model"]["merges"]]
    is_bytes = bool(definition["model"].get("byte_fallback"))
    ranks = {"".join(pair): float(-rank) for rank, pair in reversed(list(enumerate(merges)))}
    by_id = {token_id: text for text, token_id in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, scores, types = [], [], []
    for token_id in range(num_rows):
        text = by_id.get(token_id)
        tokens.append(f"[PAD{token_id}]" if text is None else text)
        scores.append(ranks.get(tokens[-1], -1e6))
        types.append(_token_type(text, added.get(token_id), tokenizer.unk_token))
    writer.add_tokenizer_model("llama" if is_bytes else "gpt2")
    if not is_bytes:
        writer.add_tokenizer_pre("qwen2" if language_model_type(model).startswith("qwen") else "default")
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token_id is not None:
            add(int(token_id))
    # the chat template writes what comes before the first word
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _token_type(text: str | None, added: Any, unknown: Any) -> gguf.TokenType:
    if text is None:
        return gguf.TokenType.UNUSED
    if text == unknown:
        return gguf.TokenType.UNKNOWN
    if added is not None:
        return gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
    return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL


def _tower_writer(model: LlavaModel, spec: ImageSpec) -> gguf.GGUFWriter:
    config: Any = cast(Any, model.get_vision_tower()).config
    values = spec.to_preprocessor_config()
    writer = gguf.GGUFWriter("", "clip")
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(spec.size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_projection_dim(cast(Any, model.config).hidden_size)
    writer.add_vision_block_count(_num_layers(cast(Any, model.get_vision_tower())) + 1)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_image_mean([float(value) for value in values["image_mean"]])
    writer.add_vision_image_std([float(value) for value in values["image_std"]])
    writer.add_vision_use_gelu(config.hidden_act == "gelu")
    return writer


def _write(path: Path, writer: gguf.GGUFWriter, tensors: dict[str, Tensor], kind: gguf.GGMLQuantizationType) -> None:
    """Write a file and read it back, tensor by tensor."""
    written = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float().numpy()
        own = kind if values.ndim == 2 and not name.startswith("v.position") else gguf.GGMLQuantizationType.F32
        written[name] = (np.ascontiguousarray(quantize(values, own)), own, values.shape)
        writer.add_tensor(name, written[name][0], raw_dtype=own)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {one.name: one for one in gguf.GGUFReader(path).tensors}
    for name, (data, own, shape) in written.items():
        one = found.get(name)
        is_same = one is not None and one.tensor_type == own and tuple(reversed(one.shape.tolist())) == shape
        if one is None or not is_same or not np.array_equal(dequantize(one.data, own), dequantize(data, own)):
            raise OSError(f"{path}: tensor {name} was read back otherwise than it was written")


def _notes(model: LlavaModel, tokenizer: PreTrainedTokenizerFast, spec: ImageSpec) -> Iterator[str]:
    splits = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"])
    if tokenizer.backend_tokenizer.model.__class__.__name__ == "BPE" and ("Split" in splits or "Punctuation" in splits):
        yield "the tokenizer splits texts by rules of its own, which llama.cpp replaces by those of its family"
    if cast(Any, model.config).image_aspect_ratio != "pad":
        yield f"images were trained as {cast(Any, model.config).image_aspect_ratio}; llama.cpp pads them to a square"
    elif any(abs(own - theirs) > 1 for own, theirs in zip(spec.background, _PAD_COLOR, strict=True)):
        yield f"images were padded with the colour {spec.background}; llama.cpp pads with {_PAD_COLOR}"
