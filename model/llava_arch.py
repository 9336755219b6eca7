"""The LLaVA mixins: a language model becomes a vision-language model by inheriting from two classes.

`LlavaMetaModel` (in `llava_body`) holds the vision tower and the projector; `LlavaMetaForCausalLM` adds the image-aware
forward pass, generation and the packed training loss. It only wires: planning is in `fusion`, kernels in `attention`.

Shapes: B rows, T text length, S fused length, N images, U tiles (one or more per image), P features per tile, V vision
width, D language-model width.
"""

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.fusion.constants import IGNORE_INDEX
from model.fusion.embedding import (
    FusedInputs,
    FusionSettings,
    decoding_mask,
    embed_packed,
    fuse_inputs,
    refuse_long_prompts,
    refuse_placeholders,
)
from model.fusion.feature_layout import gather_features, join_layouts, sources_of
from model.fusion.fusion import PaddingSide
from model.fusion.image_slots import ImageSizes, slot_grids, slot_layouts, to_image_slots
from model.fusion.packed import PackedBatch
from model.llava.expert_balance import ExpertBalance
from model.llava.experts import enable_grouped_experts
from model.llava.llava_body import LlavaMetaModel
from model.llava.packed_decoder import decode_packed, logit_cap_of, sum_loss
from model.llava.vision_tokens import VisionTokenArgs, add_vision_tokens
from model.vision.native_encoders import Grids
from model.vision.pixels import pixel_stats_of
from model.vision.tile_encoding import encode_tiles
from model.vision.tower_builder import AnyTower

__all__ = ["LlavaForCausalLM", "LlavaMetaForCausalLM", "LlavaMetaModel"]

Images = Tensor | Sequence[Tensor]

if TYPE_CHECKING:  # what every class that uses the mixin is; at run time the mixin must come before it in the bases
    _LanguageModel = PreTrainedModel
else:
    _LanguageModel = object


# ABCMeta, not the base class ABC: ABC has __slots__, which makes fully_shard's exchange of an instance's class fail.
class LlavaMetaForCausalLM(_LanguageModel, metaclass=ABCMeta):
    """Mixin for the causal language model. Place it before the language model in the bases."""

    config: Any
    lm_head: nn.Linear
    packs_rows: ClassVar[bool] = True
    """Whether attention goes through transformers' attention interface; else packed rows are padded for the body."""
    has_sinks: ClassVar[bool] = False
    """Whether its attention has sinks."""

    @property
    def last_position(self) -> int | None:
        """Tokens of a sample beyond which the decoder computes nothing at all; None where there is no such end."""
        return None

    @abstractmethod
    def get_model(self) -> Any:
        """Return the decoder body, a `LlavaMetaModel` with `embed_tokens` and `layers`."""

    def get_vision_tower(self) -> AnyTower | None:
        """Return the tower, or None when the model has none."""
        return cast(LlavaMetaModel, self.get_model()).get_vision_tower()

    def encode_images(self, images: Tensor, grids: Grids | None = None) -> Tensor:
        """Encode normalised images or tiles [U, 3, H, W] to language-model features [U, P, D].

        `grids` are those of images of native resolution, see `encode_vision`.
        """
        tower = self.get_model().get_vision_tower()
        return self._project(tower(images) if grids is None else tower(images, grids))

    def encode_vision(self, pixels: Tensor, micro_batch_size: int | None = None, grids: Grids | None = None) -> Tensor:
        """Compute tower features, before the projector; without a graph while the tower is frozen.

        Args:
            pixels: uint8 [U, H, W, 3] as decoded (normalised here, on the tower's device, in float32), or already
                normalised floats [U, 3, H, W].
            micro_batch_size: tiles per tower call; None for all at once.
            grids: rows and columns of the tiles of each image; only for a tower of native resolution, where
                `micro_batch_size` counts images.

        Returns:
            [U, P, V] in the tower's type for uint8 pixels, else in the pixels' type.

        Raises:
            ValueError: there is no tower, or pixels are uint8 and the tower came without preprocessor_config.json.
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError("the model has no vision tower; call initialize_vision_modules first")
        stats = pixel_stats_of(self.config) if pixels.dtype == torch.uint8 else None
        return encode_tiles(tower, pixels, stats, micro_batch_size, grids)

    def packed_loss(
        self,
        batch: PackedBatch,
        image_features: Tensor | None,
        target_losses: Tensor | None = None,
        balance: ExpertBalance | None = None,
    ) -> Tensor:
        """Sum the cross-entropy over the targets of a packed micro-batch; float32 scalar.

        Also without targets or images the result stays attached to projector and language model, so that every rank
        of a sharded run takes part in the same collectives.

        Args:
            batch: on the model's device.
            image_features: [U, P, V] tower features of the tiles that the batch's images are made of, or their rows
                [U * P, V]; None when it has no image.
            target_losses: [K] float32 without gradient; filled with the cross-entropy of each target.
            balance: adds its loss to the sum, and notes the loads of the experts.

        Raises:
            ValueError: the features do not match the batch, packed attention is not enabled, or the output head is
                sharded on its own.
        """
        embeds = self._embed_packed(batch, image_features)
        if torch.is_autocast_enabled(embeds.device.type):
            # A float32 embedding would keep the whole residual stream in float32: twice the memory traffic.
            embeds = embeds.to(torch.get_autocast_dtype(embeds.device.type))
        routers: list[Tensor] | None = None if balance is None else []
        hidden = decode_packed(self, embeds, batch, routers)
        loss = sum_loss(hidden, self.lm_head, batch, target_losses, logit_cap_of(self.config))
        return loss if balance is None or routers is None else loss + balance.add(routers, batch)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: ImageSizes | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Cache | None, Tensor | None, Tensor | None]:
        """Replace placeholders by image features.

        There must be one image slot per placeholder, or additionally one dummy per row without placeholders. During
        decoding (a filled cache), and without images, ids pass through and embeddings are None.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T], or None when every token counts.
            past_key_values: cache of earlier steps.
            labels: [B, T] int64.
            images: see `to_image_slots`.
            image_sizes: see `slot_layouts`.

        Returns:
            `(None, attention_mask [B, S], past_key_values, inputs_embeds [B, S, D], labels [B, S])`. The mask keeps
            its type, and stays None if it was None and no row is padded.

        Raises:
            ValueError: slots and placeholders do not fit, or placeholders come without images.
        """
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past_length > 0:
            mask = decoding_mask(attention_mask, past_length, input_ids.shape[1])
            return input_ids, mask, past_key_values, None, labels
        if images is None or self.get_vision_tower() is None:
            refuse_placeholders(input_ids)
            return input_ids, attention_mask, past_key_values, None, labels
        fused = self._fuse(input_ids, attention_mask, labels, images, image_sizes)
        fused_mask: Tensor | None = fused.attention_mask
        if attention_mask is not None:
            fused_mask = fused.attention_mask.to(attention_mask.dtype)
        elif not fused.is_padded:
            fused_mask = None
        return None, fused_mask, past_key_values, fused.inputs_embeds, fused.labels

    def initialize_vision_tokenizer(self, model_args: VisionTokenArgs, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add `<im_patch>`, `<im_start>`, `<im_end>` as `model_args` asks; see `add_vision_tokens`."""
        add_vision_tokens(self, model_args, tokenizer)
        self.config.mm_use_im_patch_token = model_args.mm_use_im_patch_token
        self.config.mm_use_im_start_end = model_args.mm_use_im_start_end
        self.config.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Run the language model on text, on text with `images`, or on ready-made `inputs_embeds`.

        Images cut into tiles are given as a list of tiles [n, 3, H, W], with their `image_sizes` (height, width).
        The loss is the sum over supervised tokens divided by `num_items_in_batch`, by default their own number; a
        batch without supervised tokens has loss 0. Other keywords go to the language model.
        """
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if input_ids is not None and images is not None and past_length == 0:
            if position_ids is not None:
                raise ValueError("position_ids cannot be combined with images; they follow from the fused lengths")
            fused = self._fuse(input_ids, attention_mask, labels, images, image_sizes)
            input_ids, (inputs_embeds, attention_mask, position_ids, labels, _) = None, fused
        elif input_ids is not None and past_length == 0:
            refuse_placeholders(input_ids)
        outputs: CausalLMOutputWithPast = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        if labels is not None:
            if num_items_in_batch is None:
                num_items_in_batch = (labels[:, 1:] != IGNORE_INDEX).sum().clamp(min=1)
            loss = self.loss_function(
                outputs.logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
            outputs = CausalLMOutputWithPast(**{**outputs, "loss": loss})
        return outputs.to_tuple() if return_dict is False else outputs

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Images | None = None,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        image_sizes: ImageSizes | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts [B, T], with or without images; see `transformers.GenerationMixin.generate` for the rest.

        Prompts are fused once and padded on the left, on whichever side they were padded before.

        Returns:
            New token ids only, without the prompt.

        Raises:
            ValueError: a prompt is longer than `tokenizer_model_max_length`; it is never cut.
        """
        prompt = inputs if inputs is not None else input_ids
        if prompt is None:
            return super().generate(attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        fused = self.fuse_prompts(prompt, attention_mask, images, image_sizes)
        return super().generate(  # type: ignore[misc]
            inputs_embeds=fused.inputs_embeds, attention_mask=fused.attention_mask.long(), **kwargs
        )

    def fuse_prompts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        images: Images | None = None,
        image_sizes: ImageSizes | None = None,
    ) -> FusedInputs:
        """Embed prompts [B, T], with or without images, uncut and padded on the left, as decoding starts from them.

        Raises:
            ValueError: placeholders and images do not fit, or a prompt is longer than `tokenizer_model_max_length`.
        """
        if images is None:
            refuse_placeholders(input_ids)
        fused = self._fuse(input_ids, attention_mask, None, images, image_sizes, padding_side="left")
        refuse_long_prompts(fused, FusionSettings.of(self.config).max_length)
        return fused

    def _fuse(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: ImageSizes | None,
        padding_side: PaddingSide | None = None,
    ) -> FusedInputs:
        """Fuse as the config says, or for generation: nothing is cut, padding goes to `padding_side`."""
        features: Tensor | None = None
        slot_sizes: list[int] = []
        if images is not None:
            pixels, images_per_slot = to_image_slots(images)
            features, slot_sizes = self._encode_slots(pixels, images_per_slot, image_sizes)
        settings = FusionSettings.of(self.config)
        if padding_side is not None:
            settings = settings._replace(padding_side=padding_side, max_length=None)
        embed = self.get_model().embed_tokens
        return fuse_inputs(embed, input_ids, attention_mask, labels, features, slot_sizes, settings)

    def _encode_slots(
        self, pixels: Tensor, images_per_slot: Sequence[int], image_sizes: ImageSizes | None
    ) -> tuple[Tensor, list[int]]:
        """Return the features of all slots in reading order [M, D], and how many each has."""
        tower = self.get_model().get_vision_tower()
        if tower.sizing is None:
            features = self.encode_images(pixels)
            resolution = self.get_model().resolution_at(pixels.shape[-1], features.shape[1])
        else:
            resolution = self.get_model().resolution_at(pixels.shape[-1], tower.num_features)
            features = self.encode_images(pixels, slot_grids(image_sizes, resolution))
        layouts = slot_layouts(images_per_slot, image_sizes, resolution)
        first_tiles = [sum(images_per_slot[:slot]) for slot in range(len(images_per_slot))]
        rows = features.flatten(0, 1)
        joined = join_layouts(layouts, first_tiles, resolution.tile_features)
        sources, places = sources_of(joined, len(rows))
        newline = self.get_model().image_newline
        gathered = gather_features(rows, newline, None if sources is None else sources.to(rows.device))
        if sources is not None:
            gathered = gathered.index_select(0, places.argsort().to(rows.device))
        return gathered, [layout.num_features for layout in layouts]

    def _embed_packed(self, batch: PackedBatch, image_features: Tensor | None) -> Tensor:
        sources = batch.image_sources
        num_rows = batch.image_positions.shape[0] if sources is None else sources.num_rows
        if image_features is not None and image_features.numel():
            projected = self._project(image_features).flatten(0, -2)
        else:
            # One dummy row, then none of it: the projector takes part in forward and backward with zero gradients.
            weight = self.lm_head.weight
            dummy = torch.zeros(1, 1, self.config.mm_hidden_size, dtype=weight.dtype, device=weight.device)
            if image_features is not None:  # keeps a trainable tower attached too
                dummy = dummy + image_features.sum().to(dummy)
            projected = self._project(dummy).flatten(0, 1)[:0]
        if projected.shape[0] != num_rows:
            found = [0] if image_features is None else list(image_features.shape)
            raise ValueError(f"expected image_features [{num_rows}, V] for this batch, or as tiles, found {found}")
        features = gather_features(projected, self.get_model().image_newline, sources)
        wrapping_only = FusionSettings.of(self.config).train_wrapping_only
        return embed_packed(self.get_model().embed_tokens, batch, features, wrapping_only)

    def _project(self, features: Tensor) -> Tensor:
        """Apply the projector [U, P, V] -> [U, P, D], or to rows [M, V], in its own type and on its own device."""
        projector: nn.Module = self.get_model().mm_projector
        for parameter in projector.parameters():
            features = features.to(parameter.device, parameter.dtype)
            break
        projected: Tensor = projector(features)
        return projected


class LlavaForCausalLM(LlavaMetaForCausalLM):
    """The second mixin made concrete: how a backbone's language model is put together. Place it before that model."""

    vocab_size: int
    body_class: ClassVar[type[PreTrainedModel]]
    """The backbone's decoder body with `LlavaMetaModel` mixed in."""
    head_bias: ClassVar[bool] = False
    """Whether the output head has a bias."""

    def __init__(self, config: PretrainedConfig):
        # Past the language model's own constructor, which would first build a body without vision modules.
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.body_class(config))
        self.vocab_size = self.config.vocab_size
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=self.head_bias)
        self.post_init()
        enable_grouped_experts(self)

    def get_model(self) -> Any:
        """Return the decoder body."""
        return self.base_model
