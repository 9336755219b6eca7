"""Low-rank adapters in the language model through peft, saved together with the projector.

The model class does not change: adapters are injected into its linear layers, so packed training, generation etc.
work unchanged. Vision tower, projector and output head get none. Source: Hu et al., "LoRA", ICLR 2022.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.files.adapter import load_projector, load_verified, read_adapter, read_metadata, with_digest, write_projector
from model.files.checkpoint_files import read_pickled_tensors
from model.files.file_mode import follow_umask
from model.files.tower_layouts import misfits
from model.files.weight_files import read_shapes
from model.hub.weights import LlavaModel, pretrained_state, projector_parameters
from model.llava.vision_tokens import load_wrapping_rows

if TYPE_CHECKING:
    from peft import LoraConfig

_WEIGHTS: Final = "adapter_model.safetensors"
_LEGACY_WEIGHTS: Final = "adapter_model.bin"
_LEGACY_PROJECTOR: Final = "non_lora_trainables.bin"
_CONFIG: Final = "adapter_config.json"
_SCALE_KEY: Final = "ray_llava.scale"
"""In the metadata of the weights: the fields of the config that decide their scale."""
_SCALE_FIELDS: Final = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
_PREFIX: Final = "base_model.model."
"""What peft puts before the names of the adapted model."""


def add_lora(
    model: LlavaModel, rank: int, alpha: float, dropout: float = 0.0, targets: Sequence[str] | None = None
) -> None:
    """Inject new adapters in place and let only them and the projector learn; the model computes the same as before.

    Args:
        model: any LLaVA model.
        rank: of the adapters; LLaVA-1.5 uses 128.
        alpha: their scale is alpha / rank; LLaVA-1.5 uses 256.
        dropout: on the adapters' input.
        targets: see `resolve_targets`.

    Raises:
        ValueError: a target is not a linear layer, or peft is not installed.
    """
    names = resolve_targets(model, targets)
    config = _peft().LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM"
    )
    _inject(model, config)


def resolve_targets(model: LlavaModel, targets: Sequence[str] | None) -> list[str]:
    """Return the full names of the linear layers that `targets` mean; None means all in the decoder layers.

    A target is the end of a name inside the decoder layers (`q_proj`, `mlp.up_proj`): the vision tower has layers of
    the same names, and gets no adapters: it runs without a graph, so they would never learn.

    Raises:
        ValueError: a target means no linear layer of the decoder.
    """
    inside = linear_layers_of_decoder(model)
    if targets is None:
        return inside
    unknown = [target for target in targets if not any(_means(target, name) for name in inside)]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in inside}))
        raise ValueError(f"LoRA targets {unknown} do not match linear layers of the decoder; known: {known}")
    return [name for name in inside if any(_means(target, name) for target in targets)]


def linear_layers_of_decoder(model: LlavaModel) -> list[str]:
    """Return the full names of all linear layers inside the decoder layers."""
    inside = {module for layer in model.get_model().layers for module in layer.modules()}
    return [name for name, module in model.named_modules() if module in inside and isinstance(module, nn.Linear)]


def adapter_state(model: LlavaModel) -> dict[str, Tensor]:
    """Return the adapters' weights, possibly sharded, under the names that peft gives them on disk."""
    return {
        _PREFIX + name.replace(".default.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" in name
    }


def save_lora(
    model: LlavaModel,
    folder: str | Path,
    state: Mapping[str, Tensor] | None = None,
    projector: Mapping[str, Tensor] | None = None,
    base: str | None = None,
) -> None:
    """Write adapters in peft's format, and the projector into the same folder.

    Args:
        model: with adapters.
        folder: target.
        state: whole tensors of `adapter_state`; None takes the model's own.
        projector: whole tensors of `pretrained_state`; None takes the model's own.
        base: folder or hub id of the adapted language model, noted in adapter_config.json.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    found = adapter_state(model) if state is None else state
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    configs: Any = model.peft_config
    save_file(tensors, target / _WEIGHTS, metadata=with_digest(tensors, {_SCALE_KEY: _scale_of(configs["default"])}))
    follow_umask(target / _WEIGHTS)
    configs["default"].base_model_name_or_path = base
    configs["default"].save_pretrained(str(target))
    write_projector(pretrained_state(model) if projector is None else projector, target, model.config.im_start_end_ids)


def holds_adapters(folder: str | Path) -> bool:
    """Whether a folder is one of `save_lora`, or an original LLaVA one with adapters."""
    return any((Path(folder) / name).is_file() for name in (_WEIGHTS, _LEGACY_WEIGHTS))


def load_lora(model: LlavaModel, folder: str | Path) -> None:
    """Inject saved adapters in place and load the projector from the same folder.

    Reads folders of `save_lora`, and original LLaVA ones (`adapter_model.bin`, `non_lora_trainables.bin`). Which
    modules are adapted is taken from the tensors: original configs name targets that also exist in the vision tower.

    Raises:
        ValueError: files are missing, or tensors do not fit this model; all are named.
    """
    source = Path(folder)
    state = _read_adapters(source)
    config = _read_config(source)
    config.target_modules = sorted({name.split(".lora_")[0] for name in state})
    _inject(model, config)
    own = {name.replace(".default.", "."): t for name, t in model.state_dict().items() if ".lora_" in name}
    if problems := misfits(own, state):
        raise ValueError(f"{source} does not fit this model: " + "; ".join(sorted(problems)))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    legacy = source / _LEGACY_PROJECTOR
    projector = legacy if legacy.is_file() else source
    load_projector(model.get_model(), projector)
    if model.config.im_start_end_ids:
        load_wrapping_rows(model, read_adapter(projector), projector)


def merge_lora(model: LlavaModel) -> None:
    """Add the adapters to the weights they adapt and remove them, in place; outputs stay the same."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "get_base_layer") and hasattr(module, "merge"):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config


def _means(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _inject(model: LlavaModel, config: "LoraConfig") -> None:
    _peft().inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for parameter in projector_parameters(model):
        parameter.requires_grad_(True)


def _read_adapters(source: Path) -> dict[str, Tensor]:
    for file in (source / _WEIGHTS, source / _LEGACY_WEIGHTS):
        if file.is_file():
            read_shapes(file)
    if (source / _WEIGHTS).is_file():
        state = load_verified(source / _WEIGHTS)
    elif (source / _LEGACY_WEIGHTS).is_file():
        state = read_pickled_tensors(source / _LEGACY_WEIGHTS)
    else:
        raise ValueError(f"{source} holds neither {_WEIGHTS} nor {_LEGACY_WEIGHTS}; expected a LoRA folder")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def _read_config(source: Path) -> "LoraConfig":
    """Read the config of adapters, and compare what scales them with what their weights were written with.

    Raises:
        ValueError: it is damaged, of another kind, or not the one that belongs to the weights.
    """
    lora, file = _peft().LoraConfig, source / _CONFIG
    try:
        config: LoraConfig = lora.from_pretrained(str(source))
        if config.bias not in ("none", "all", "lora_only"):
            raise ValueError(f"bias is {config.bias!r}")
    except Exception as error:  # peft raises many types over a file that is not what it wrote
        raise ValueError(f"{file} cannot be used ({type(error).__name__}: {error}); copy it again") from error
    written = read_metadata(source / _WEIGHTS).get(_SCALE_KEY) if (source / _WEIGHTS).is_file() else None
    if written is not None and written != (found := _scale_of(config)):
        raise ValueError(
            f"{file} is not the one that was written with {_WEIGHTS}: it says {found}, those were trained with "
            f"{written}; copy it again"
        )
    return config


def _scale_of(config: "LoraConfig") -> str:
    return json.dumps({name: getattr(config, name, None) for name in _SCALE_FIELDS}, sort_keys=True)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("LoRA needs the peft package; install ray-llava[lora]") from error
    return peft
