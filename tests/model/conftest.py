"""Tiny random CLIP tower, LLaMA and tokenizer, as folders and as models. Widths differ so that mix-ups show."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.clip import CLIPImageProcessor

from model.backbones.llama import LlavaConfig, LlavaLlamaForCausalLM
from model.hub.weights import build_llava

NUM_PATCHES = 9  # (21 / 7) ** 2
IMAGE_SIDE = 21
VISION_WIDTH = 22
WIDTH = 32
VOCAB = 97


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tower_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("tower")
    config = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=26, num_hidden_layers=3, num_attention_heads=2,
        image_size=IMAGE_SIDE, patch_size=7,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIDE}, crop_size=IMAGE_SIDE).save_pretrained(path)
    return str(path)


def tiny_llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=58, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip


@pytest.fixture
def llama_config() -> LlamaConfig:
    return tiny_llama_config()


@pytest.fixture(scope="session")
def llama_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(tiny_llama_config()).save_pretrained(path)
    return str(path)


@pytest.fixture
def make_llava(llama_path: str, tower_path: str) -> Callable[..., LlavaLlamaForCausalLM]:
    def make(projector_type: str = "mlp2x_gelu", attention: str = "sdpa") -> LlavaLlamaForCausalLM:
        torch.manual_seed(3)
        model = build_llava(llama_path, tower_path, projector_type, attention=attention)  # type: ignore[arg-type]
        model.train(False)
        assert isinstance(model, LlavaLlamaForCausalLM)
        return model

    return make


@pytest.fixture
def llava(make_llava: Callable[..., LlavaLlamaForCausalLM]) -> LlavaLlamaForCausalLM:
    return make_llava()


@pytest.fixture
def bare_llava(llama_path: str) -> LlavaLlamaForCausalLM:
    """A LLaVA class around a language model, before vision modules are attached."""
    config = LlavaConfig.from_pretrained(llama_path)
    return LlavaLlamaForCausalLM.from_pretrained(llama_path, config=config)


@pytest.fixture
def vision_args(tower_path: str) -> SimpleNamespace:
    return SimpleNamespace(
        vision_tower=tower_path,
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type="mlp2x_gelu",
        pretrain_mm_mlp_adapter=None,
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>"] + [f"w{i}" for i in range(3, VOCAB)]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def random_images(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, IMAGE_SIDE, IMAGE_SIDE, generator=torch.Generator().manual_seed(seed))
