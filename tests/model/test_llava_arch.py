"""Model behaviour where published implementations go wrong or leave it open; features per image are 9."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from model.backbones.llama import LlavaLlamaForCausalLM
from model.fusion.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from tests.model.conftest import IMAGE_SIDE, NUM_PATCHES, VISION_WIDTH, WIDTH, random_images

X = IMAGE_TOKEN_INDEX
P = NUM_PATCHES


def prepare(
    model: LlavaLlamaForCausalLM,
    ids: list[list[int]],
    images: Tensor | list[Tensor] | None,
    mask: list[list[int]] | None = None,
    labels: list[list[int]] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    none, out_mask, past, embeds, out_labels = model.prepare_inputs_labels_for_multimodal(
        torch.tensor(ids),
        None if mask is None else torch.tensor(mask),
        None,
        None if labels is None else torch.tensor(labels),
        images,
    )
    assert none is None
    assert past is None
    assert embeds is not None
    return embeds, out_mask, out_labels


def test_interface_is_abstract_and_published() -> None:
    assert LlavaMetaForCausalLM.__abstractmethods__ == {"get_model"}
    assert hasattr(LlavaMetaModel, "initialize_vision_modules")


def test_model_without_tower_has_neither_tower_nor_projector(bare_llava: LlavaLlamaForCausalLM) -> None:
    assert bare_llava.get_vision_tower() is None
    assert not hasattr(bare_llava.get_model(), "vision_tower")
    assert not hasattr(bare_llava.get_model(), "mm_projector")


def test_initialize_attaches_tower_and_projector_and_describes_them(
    bare_llava: LlavaLlamaForCausalLM, vision_args: SimpleNamespace
) -> None:
    bare_llava.get_model().initialize_vision_modules(vision_args)
    config = bare_llava.config
    assert (config.use_mm_proj, config.mm_hidden_size, config.mm_vision_tower) == (
        True,
        VISION_WIDTH,
        vision_args.vision_tower,
    )
    assert bare_llava.encode_images(random_images(2)).shape == (2, P, WIDTH)


def test_initialize_twice_keeps_trained_projector_and_tower(
    bare_llava: LlavaLlamaForCausalLM, vision_args: SimpleNamespace
) -> None:
    body = bare_llava.get_model()
    body.initialize_vision_modules(vision_args)
    projector, tower = body.mm_projector, body.get_vision_tower()
    projector.requires_grad_(False)
    weight = projector[0].weight.clone()
    body.initialize_vision_modules(vision_args)
    assert body.mm_projector is projector
    assert body.get_vision_tower() is tower
    assert torch.equal(projector[0].weight, weight)
    assert all(parameter.requires_grad for parameter in projector.parameters())


def test_initialize_with_another_projector_type_refuses(
    bare_llava: LlavaLlamaForCausalLM, vision_args: SimpleNamespace
) -> None:
    bare_llava.get_model().initialize_vision_modules(vision_args)
    vision_args.mm_projector_type = "linear"
    with pytest.raises(ValueError, match=r"'linear' is requested.*'mlp2x_gelu' projector"):
        bare_llava.get_model().initialize_vision_modules(vision_args)


def test_fsdp_list_hides_the_tower_from_the_module_tree(
    bare_llava: LlavaLlamaForCausalLM, vision_args: SimpleNamespace
) -> None:
    body = bare_llava.get_model()
    body.initialize_vision_modules(vision_args)
    assert any("vision_tower" in name for name in bare_llava.state_dict())
    body.initialize_vision_modules(vision_args, fsdp=["full_shard"])
    assert isinstance(body.vision_tower, list)
    assert body.get_vision_tower() is body.vision_tower[0]
    assert not any("vision_tower" in name for name in bare_llava.state_dict())
    assert bare_llava.encode_images(random_images(1)).shape == (1, P, WIDTH)


def test_unequal_rows_without_labels_are_padded(llava: LlavaLlamaForCausalLM) -> None:
    embeds, mask, labels = prepare(llava, [[1, X, 2], [1, 2, 3]], random_images(2), mask=[[1] * 3] * 2)
    assert embeds.shape == (2, P + 2, WIDTH)
    assert labels is None
    assert mask is not None
    assert mask.tolist() == [[1] * (P + 2), [1] * 3 + [0] * (P - 1)]


def test_left_padded_prompt_hides_padding_and_nothing_else(llava: LlavaLlamaForCausalLM) -> None:
    llava.config.tokenizer_padding_side = "left"
    embeds, mask, _ = prepare(llava, [[0, 0, 5, X], [5, X, 6, X]], random_images(3), mask=[[0, 0, 1, 1], [1, 1, 1, 1]])
    assert mask is not None
    assert mask.tolist() == [[0] * (P + 1) + [1] * (P + 1), [1] * (2 * P + 2)]
    assert torch.equal(embeds[0, P + 1], llava.model.embed_tokens.weight[5])


def test_no_mask_stays_none_when_nothing_is_padded(llava: LlavaLlamaForCausalLM) -> None:
    assert prepare(llava, [[1, X], [X, 2]], random_images(2))[1] is None


def test_no_mask_gets_one_when_padding_is_added(llava: LlavaLlamaForCausalLM) -> None:
    _, mask, _ = prepare(llava, [[1, X], [1, 2]], random_images(1))
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [P + 1, 2]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_keeps_its_type(llava: LlavaLlamaForCausalLM, dtype: torch.dtype) -> None:
    ids = torch.tensor([[1, X], [1, 2]])
    result = llava.prepare_inputs_labels_for_multimodal(
        ids, torch.ones(2, 2, dtype=dtype), None, None, random_images(1)
    )
    assert result[1] is not None
    assert result[1].dtype == dtype


def wrap_images(model: LlavaLlamaForCausalLM) -> None:
    model.config.tune_mm_mlp_adapter = True
    model.config.mm_use_im_start_end = True


def test_start_end_keep_the_label_of_end_and_drop_the_placeholders(llava: LlavaLlamaForCausalLM) -> None:
    wrap_images(llava)
    _, _, labels = prepare(llava, [[1, 90, X, 91, 7]], random_images(1), labels=[[1, 90, 377, 19, 7]])
    assert labels is not None
    assert labels.tolist() == [[1, 90] + [IGNORE_INDEX] * P + [19, 7]]


def test_start_end_let_a_gradient_through_to_their_own_rows_only(llava: LlavaLlamaForCausalLM) -> None:
    wrap_images(llava)
    embeds, _, _ = prepare(llava, [[1, 90, X, 91, 7], [5, 6, 7, 8, 9]], random_images(1))
    embeds.sum().backward()
    gradient = llava.model.embed_tokens.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).nonzero().flatten().tolist() == [90, 91]


def test_start_end_with_placeholder_first_names_the_row(llava: LlavaLlamaForCausalLM) -> None:
    wrap_images(llava)
    with pytest.raises(ValueError, match="row 0: the image placeholder at token 0 is not wrapped"):
        prepare(llava, [[X, 91, 5]], random_images(1))


@pytest.mark.parametrize(
    ("ids", "num_images", "message"),
    [
        ([[X, X]], 1, "1 image slots for 2 placeholders .row 0"),
        ([[1, X]], 3, "3 image slots for 1 placeholders"),
        ([[1, 2], [X, X], [X, 1]], 2, r"2 image slots for 3 placeholders .row 2.*\[0, 2, 1\]"),
    ],
)
def test_wrong_number_of_images_names_row_and_counts(
    llava: LlavaLlamaForCausalLM, ids: list[list[int]], num_images: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(llava, ids, random_images(num_images))


def test_text_row_neither_needs_nor_eats_a_neighbours_image(llava: LlavaLlamaForCausalLM) -> None:
    images = random_images(2)
    plain, _, _ = prepare(llava, [[1, 2], [X, 3], [X, 4]], images)
    with_dummy, _, _ = prepare(llava, [[1, 2], [X, 3], [X, 4]], torch.cat([torch.zeros_like(images[:1]), images]))
    assert torch.allclose(plain, with_dummy, atol=1e-6)
    assert torch.allclose(plain[2, :P], llava.encode_images(images[1:])[0], atol=1e-6)


def test_list_of_three_dimensional_images_equals_the_stack(llava: LlavaLlamaForCausalLM) -> None:
    images = random_images(2)
    stacked, _, _ = prepare(llava, [[X, X, 1]], images)
    listed, _, _ = prepare(llava, [[X, X, 1]], list(images))
    assert torch.equal(stacked, listed)


def test_list_item_of_several_images_fills_one_placeholder(llava: LlavaLlamaForCausalLM) -> None:
    images = random_images(3)
    embeds, _, _ = prepare(llava, [[X, 1, X]], [images[:2], images[2]])
    assert embeds.shape[1] == 3 * P + 1
    assert torch.allclose(embeds[0, 2 * P + 1 :], llava.encode_images(images[2:])[0], atol=1e-6)


def test_five_dimensional_images_fill_one_placeholder_each(llava: LlavaLlamaForCausalLM) -> None:
    images = random_images(4).view(2, 2, 3, IMAGE_SIDE, IMAGE_SIDE)
    embeds, _, _ = prepare(llava, [[X, 1], [2, X]], images)
    assert embeds.shape[1] == 2 * P + 1
    assert torch.allclose(embeds[1, 1:], llava.encode_images(images[1]).flatten(0, 1), atol=1e-6)


def test_maximum_length_counts_fused_tokens(llava: LlavaLlamaForCausalLM) -> None:
    llava.config.tokenizer_model_max_length = P + 2
    embeds, _, labels = prepare(llava, [[1, X, 5, 6, 7]], random_images(1), labels=[[1, 0, 5, 6, 7]])
    assert embeds.shape[1] == P + 2
    assert labels is not None
    assert labels[0, -1] == 5


def test_image_is_never_cut_or_lost_by_the_maximum_length(llava: LlavaLlamaForCausalLM) -> None:
    llava.config.tokenizer_model_max_length = P
    with pytest.raises(ValueError, match=f"row 0: an image does not fit.*{P + 1} fused tokens, maximum {P}"):
        prepare(llava, [[1, X]], random_images(1))


def test_all_labels_ignored_gives_zero_loss_with_graph(llava: LlavaLlamaForCausalLM) -> None:
    ids = torch.tensor([[1, X, 2]])
    out = llava(ids, images=random_images(1), labels=torch.full_like(ids, IGNORE_INDEX))
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert llava.model.mm_projector[0].weight.grad is not None


def test_loss_is_divided_by_the_given_global_count(llava: LlavaLlamaForCausalLM) -> None:
    ids = torch.tensor([[1, X, 2, 3]])
    labels = torch.tensor([[IGNORE_INDEX, IGNORE_INDEX, 2, 3]])
    own = llava(ids, images=random_images(1), labels=labels).loss
    shared = llava(ids, images=random_images(1), labels=labels, num_items_in_batch=10).loss
    assert torch.allclose(shared * 10, own * 2)


def test_decoding_step_extends_the_fused_mask_by_one(llava: LlavaLlamaForCausalLM) -> None:
    cache = DynamicCache(config=llava.config)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    llava(torch.tensor([[0, 2, 3], [4, 5, 6]]), attention_mask=mask, past_key_values=cache)
    ids, extended, past, embeds, _ = llava.prepare_inputs_labels_for_multimodal(
        torch.tensor([[7], [8]]), mask, cache, None, random_images(1)
    )
    assert embeds is None
    assert past is cache
    assert ids is not None
    assert extended is not None
    assert ids.tolist() == [[7], [8]]
    assert extended.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_decoding_step_with_a_mask_of_another_length_refuses(llava: LlavaLlamaForCausalLM) -> None:
    cache = DynamicCache(config=llava.config)
    llava(torch.tensor([[2, 3, 4]]), past_key_values=cache)
    with pytest.raises(ValueError, match="covers 2 positions, but the cache holds 3 and 1 are new"):
        llava.prepare_inputs_labels_for_multimodal(torch.tensor([[7]]), torch.ones(1, 2), cache, None, None)


def test_prompt_of_one_placeholder_is_a_prompt(llava: LlavaLlamaForCausalLM) -> None:
    assert prepare(llava, [[X]], random_images(1))[0].shape == (1, P, WIDTH)


def test_empty_cache_is_no_decoding(llava: LlavaLlamaForCausalLM) -> None:
    result = llava.prepare_inputs_labels_for_multimodal(
        torch.tensor([[1, X]]), None, DynamicCache(config=llava.config), None, random_images(1)
    )
    assert result[3] is not None


def test_placeholder_without_images_refuses(llava: LlavaLlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="row 1 has 2 image placeholders but no images"):
        llava.prepare_inputs_labels_for_multimodal(torch.tensor([[1, 2], [X, X]]), None, None, None, None)
    with pytest.raises(ValueError, match="row 0 has 1 image placeholders"):
        llava(torch.tensor([[1, X]]))


def test_text_without_images_passes_through(llava: LlavaLlamaForCausalLM) -> None:
    ids, mask, labels = torch.tensor([[1, 2]]), torch.ones(1, 2), torch.tensor([[1, 2]])
    result = llava.prepare_inputs_labels_for_multimodal(ids, mask, None, labels, None)
    assert result[0] is ids
    assert result[1] is mask
    assert result[2:4] == (None, None)
    assert result[4] is labels


def test_text_batch_with_dummies_reaches_the_projector_with_zero_gradient(llava: LlavaLlamaForCausalLM) -> None:
    embeds, _, _ = prepare(llava, [[1, 2], [3, 4]], torch.zeros_like(random_images(2)))
    embeds.sum().backward()
    gradient = llava.model.mm_projector[0].weight.grad
    assert gradient is not None
    assert not gradient.any()


def test_token_beyond_the_vocabulary_side_is_refused(llava: LlavaLlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="row 0: input id -5 is neither"):
        prepare(llava, [[X, -5]], random_images(1))


def test_position_ids_with_images_refuse(llava: LlavaLlamaForCausalLM) -> None:
    with pytest.raises(ValueError, match="position_ids cannot be combined with images"):
        llava(torch.tensor([[1, X]]), images=random_images(1), position_ids=torch.tensor([[0, 1]]))


def test_encode_vision_without_tiles_gives_no_features(llava: LlavaLlamaForCausalLM) -> None:
    pixels = torch.zeros(0, IMAGE_SIDE, IMAGE_SIDE, 3, dtype=torch.uint8)
    assert llava.encode_vision(pixels, micro_batch_size=2).shape == (0, P, VISION_WIDTH)


def test_encode_vision_normalises_bytes_and_cuts_into_parts(llava: LlavaLlamaForCausalLM) -> None:
    pixels = torch.randint(0, 256, (5, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=torch.uint8)
    mean, std = torch.tensor(llava.config.mm_image_mean), torch.tensor(llava.config.mm_image_std)
    whole = llava.encode_vision(((pixels / 255 - mean) / std).movedim(-1, 1))
    parts = llava.encode_vision(pixels, micro_batch_size=2)
    assert parts.shape == (5, P, VISION_WIDTH)
    assert not parts.requires_grad
    assert torch.allclose(parts, whole, atol=1e-5)


def test_return_dict_false_gives_a_tuple_with_loss_first(llava: LlavaLlamaForCausalLM) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with_dict = llava(ids, labels=ids)
    as_tuple = llava(ids, labels=ids, return_dict=False)
    assert torch.equal(as_tuple[0], with_dict.loss)
    assert torch.equal(as_tuple[1], with_dict.logits)
