"""The packages' weights as folders that transformers reads.

SmolLM2 is a GGUF of 4 bits a weight. DINOv2-small is inside an ONNX graph, whose matrices have no names of their own:
each takes the name of the node that uses it.

Shapes: P position embeddings with that of the class token, V vision width.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

_NETWORK: Final = "backbone."
_WIDTH, _PATCH, _TRAINED_SIZE = 384, 14, 518
_POSITIONS: Final = "embeddings.position_embeddings"


def convert_language_model(gguf: Path, target: Path) -> None:
    """Write SmolLM2-135M-Instruct with its tokenizer and chat template, in float32."""
    if (target / "config.json").is_file():
        return
    options: dict[str, Any] = {"gguf_file": gguf.name}
    read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    settings = read.config.to_dict()
    settings.pop("quantization_config", None)  # it is not quantized any more
    model = LlamaForCausalLM(LlamaConfig(**settings)).float()
    model.load_state_dict(read.state_dict())
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **options)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def convert_tower(onnx_file: Path, target: Path, size: int) -> None:
    """Write DINOv2-small for images of a size in pixels, with an image processor that makes them."""
    if (target / "preprocessor_config.json").is_file():
        return
    target.mkdir(parents=True, exist_ok=True)
    state = _read_tensors(onnx_file)
    state[_POSITIONS] = _resized(state[_POSITIONS], size // _PATCH)
    config = Dinov2Config(
        hidden_size=_WIDTH,
        num_attention_heads=6,
        num_hidden_layers=12,
        mlp_ratio=4,
        patch_size=_PATCH,
        image_size=size,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(target)
    save_file(state, target / "model.safetensors", {"format": "pt"})
    loader: Any = Dinov2Model
    _, report = loader.from_pretrained(target, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise SystemExit(f"{onnx_file} is not the network that this was written for: {report}")
    processor = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (target / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors under DINOv2's published names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    stored = {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    # 1. What kept its name: norms, biases, the patch embedding.
    named = {name: value for name, value in stored.items() if name.startswith(_NETWORK)}
    state = {name.removeprefix(_NETWORK): value for name, value in named.items()}
    # 2. Matrices, transposed, by the path of the node that multiplies by them: /network/encoder/.../MatMul.
    for node in graph.node:
        matrices = [name for name in node.input if name in stored and name.startswith("onnx::MatMul")]
        if node.op_type == "MatMul" and matrices:
            state[".".join(node.name.split("/")[2:-1]) + ".weight"] = stored[matrices[0]].T
    # 3. Position embeddings, by their shapes.
    by_shape = {value.shape: value for name, value in stored.items() if name.startswith("onnx::")}
    patches = (_TRAINED_SIZE // _PATCH) ** 2
    state[_POSITIONS] = np.concatenate([by_shape[1, 1, _WIDTH], by_shape[1, patches, _WIDTH]], axis=1)
    state["embeddings.mask_token"] = np.zeros((1, _WIDTH), np.float32)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def _resized(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Resize position embeddings [1, P, V] to `side` patches a side, bicubically."""
    own, patches = positions[:, :1], positions[:, 1:]
    grid = int(patches.shape[1] ** 0.5)
    image = patches.reshape(1, grid, grid, _WIDTH).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([own, resized.permute(0, 2, 3, 1).reshape(1, side * side, _WIDTH)], dim=1).contiguous()
