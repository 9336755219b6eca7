from pathlib import Path

import pytest
import torch

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IMAGE_TOKEN_INDEX
from model.fusion.packed import pack_samples
from model.hub.lora import add_lora, linear_layers_of_decoder, load_lora, merge_lora, save_lora
from model.hub.weights import LlavaModel, build_llava
from tests.model.conftest import NUM_PATCHES, random_images
from tests.model.tiny import KINDS, save_tiny_backbone

X = IMAGE_TOKEN_INDEX


def logits(model: LlavaModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.train(False)(torch.tensor([[1, X, 5, 7]]), images=random_images(1)).logits
    return out


def loss_of(model: LlavaModel) -> torch.Tensor:
    row = torch.tensor([1, X, 5, 7])
    batch = pack_samples([(row, row)], [NUM_PATCHES])
    return model.packed_loss(batch, model.encode_vision(random_images(1))[0])


def disturb(model: LlavaModel) -> None:
    """Give adapters and projector values as training would; new adapters add nothing."""
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_sit_in_the_language_model_only_and_merge_to_equal_logits(
    kind: str, tower_path: str, tmp_path: Path
) -> None:
    model = build_llava(save_tiny_backbone(kind, tmp_path), tower_path)
    names, plain = list(model.state_dict()), logits(model)
    add_lora(model, rank=3, alpha=7)
    assert torch.equal(logits(model), plain)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name in model.state_dict() if ".lora_" in name or "mm_projector" in name}
    assert not [name for name in learning if "vision_tower" in name or "lm_head" in name]
    disturb(model)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 1e-2
    merge_lora(model)
    assert list(model.state_dict()) == names
    assert torch.allclose(logits(model), adapted, atol=1e-4, rtol=1e-4)


def test_packed_training_reaches_adapters_and_projector_only(llava: LlavaLlamaForCausalLM) -> None:
    add_lora(llava, rank=2, alpha=4)
    disturb(llava)
    loss_of(llava).backward()
    for name, parameter in llava.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not parameter.requires_grad or parameter.grad.any(), name  # type: ignore[union-attr]


def test_saved_adapters_and_projector_load_into_a_fresh_model(
    llava: LlavaLlamaForCausalLM, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    add_lora(llava, rank=3, alpha=5)
    disturb(llava)
    save_lora(llava, tmp_path)
    torch.manual_seed(9)
    fresh = build_llava(llama_path, tower_path)
    load_lora(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(llava))


def test_original_folder_with_ambiguous_targets_loads(
    llava: LlavaLlamaForCausalLM, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    """As published: pickles, and targets by their last name, which the vision tower has too."""
    import json

    from safetensors.torch import load_file

    queries = [name for name in linear_layers_of_decoder(llava) if name.endswith("q_proj")]
    add_lora(llava, rank=3, alpha=5, targets=queries)
    disturb(llava)
    save_lora(llava, tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    projector = {
        f"base_model.model.model.mm_projector.{n}": t for n, t in llava.model.mm_projector.state_dict().items()
    }
    torch.save(projector, tmp_path / "non_lora_trainables.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "mm_projector.safetensors").unlink()
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "target_modules": ["q_proj"]}))
    fresh = build_llava(llama_path, tower_path)
    load_lora(fresh, tmp_path)
    assert torch.equal(logits(fresh), logits(llava))


def test_adapters_of_another_shape_are_named(
    llava: LlavaLlamaForCausalLM, llama_path: str, tower_path: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    add_lora(llava, rank=3, alpha=5, targets=["model.layers.0.mlp.up_proj"])
    save_lora(llava, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    save_file({name: tensor[:, :7].contiguous() for name, tensor in state.items()}, file)
    with pytest.raises(ValueError, match=r"up_proj.lora_A.weight has shape \[3, 7\], expected \[3, 32\]"):
        load_lora(build_llava(llama_path, tower_path), tmp_path)


def test_target_that_is_no_linear_layer_is_refused(llava: LlavaLlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"LoRA targets \['model.norm'\] do not match linear layers"):
        add_lora(llava, rank=2, alpha=2, targets=["model.norm"])


def test_folder_without_adapters_is_named(llava: LlavaLlamaForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a LoRA folder"):
        load_lora(llava, tmp_path)
