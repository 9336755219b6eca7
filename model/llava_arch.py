"""The LLaVA mixins: a language model becomes a vision-language model by inheriting from these two classes.

`LlavaMetaModel` holds the vision tower and the projector; `LlavaMetaForCausalLM` adds the image-aware forward pass,
generation and the packed training loss. Both only wire: planning is in `fusion`, kernels in `attention` and `loss`.

Shapes: B rows, T text length, S fused length, N images, P features per image, V vision width, D language-model width.
"""

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.adapter import load_projector
from model.attention import no_mask, packed_kernel, segments_of
from model.constants import IGNORE_INDEX
from model.embedding import (
    FusedInputs,
    FusionSettings,
    decoding_mask,
    embed_packed,
    fuse_inputs,
    refuse_placeholders,
)
from model.fusion import PaddingSide
from model.image_slots import to_image_slots
from model.loss import cross_entropy_sum
from model.packed import PackedBatch
from model.pixels import normalize_pixels, pixel_stats_of, read_pixel_stats
from model.projector import build_vision_projector
from model.vision_tokens import VisionTokenArgs, add_vision_tokens
from model.vision_tower import ClipVisionTower, build_vision_tower

Images = Tensor | Sequence[Tensor]


class LlavaMetaModel:
    """Mixin for the decoder body: owns `vision_tower` and `mm_projector`. Place it before the body in the bases."""

    config: Any

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)  # type: ignore[call-arg]
        if hasattr(config, "mm_vision_tower") and config.mm_vision_tower:
            tower = build_vision_tower(config, delay_load=True)
            if hasattr(config, "mm_vision_weights") and config.mm_vision_weights == "checkpoint":
                tower.build()
            self.vision_tower: ClipVisionTower | list[ClipVisionTower] = tower
            self.mm_projector = build_vision_projector(cast(Any, config))

    def get_vision_tower(self) -> ClipVisionTower | None:
        """Return the tower, or None when the model has none yet."""
        if not hasattr(self, "vision_tower"):
            return None
        return self.vision_tower[0] if isinstance(self.vision_tower, list) else self.vision_tower

    def initialize_vision_modules(self, model_args: Any, fsdp: Sequence[str] | str | None = None) -> None:
        """Attach tower and projector, keeping those that exist already.

        Args:
            model_args: `vision_tower`, `mm_vision_select_layer`, `mm_vision_select_feature`,
                `pretrain_mm_mlp_adapter` (path or None) and optionally `mm_projector_type` (default `linear`).
            fsdp: when not empty the tower is kept in a list, out of parameters() and of sharding.

        Raises:
            ValueError: the tower or adapter cannot be read, or another projector type exists already.
        """
        tower = self.get_vision_tower()
        if tower is None:
            tower = build_vision_tower(model_args)
        tower.load_model()
        self._place_tower(tower, in_list=bool(fsdp))
        requested = model_args.mm_projector_type if hasattr(model_args, "mm_projector_type") else "linear"
        has_projector = hasattr(self, "mm_projector")
        if has_projector and requested != self.config.mm_projector_type:
            raise ValueError(
                f"mm_projector_type {requested!r} is requested, but the model already has a trained "
                f"{self.config.mm_projector_type!r} projector; ask for that type or start from the language model"
            )
        self._describe_in_config(tower, requested, in_list=bool(fsdp))
        if not has_projector:
            self.mm_projector = build_vision_projector(self.config)
        self.mm_projector.requires_grad_(True)
        if model_args.pretrain_mm_mlp_adapter:
            load_projector(self.mm_projector, model_args.pretrain_mm_mlp_adapter)

    def _place_tower(self, tower: ClipVisionTower, in_list: bool) -> None:
        if hasattr(self, "vision_tower"):
            del self.vision_tower  # nn.Module refuses to replace a registered module by a list
        self.vision_tower = [tower] if in_list else tower

    def _describe_in_config(self, tower: ClipVisionTower, projector_type: str, in_list: bool) -> None:
        config = self.config
        config.use_mm_proj = True
        config.mm_projector_type = projector_type
        config.mm_hidden_size = tower.hidden_size
        config.mm_vision_tower = tower.spec.name
        config.mm_vision_select_layer = tower.spec.select_layer
        config.mm_vision_select_feature = tower.spec.select_feature
        config.mm_vision_config = tower.config.to_dict()
        config.mm_vision_weights = "external" if in_list else "checkpoint"
        stats = read_pixel_stats(tower.spec.name)
        if stats is not None:
            config.mm_image_mean, config.mm_image_std = list(stats.mean), list(stats.std)


# ABCMeta, not the base class ABC: ABC has __slots__, which makes fully_shard's exchange of an instance's class fail.
class LlavaMetaForCausalLM(metaclass=ABCMeta):
    """Mixin for the causal language model. Place it before the language model in the bases."""

    config: Any
    lm_head: nn.Linear

    @abstractmethod
    def get_model(self) -> Any:
        """Return the decoder body, a `LlavaMetaModel` with `embed_tokens`."""

    def get_vision_tower(self) -> ClipVisionTower | None:
        """Return the tower, or None when the model has none."""
        return cast(LlavaMetaModel, self.get_model()).get_vision_tower()

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode normalised images [N, 3, H, W] to language-model features [N, P, D]."""
        return self._project(self.get_model().get_vision_tower()(images))

    @torch.no_grad()
    def encode_vision(self, pixels: Tensor, micro_batch_size: int | None = None) -> Tensor:
        """Compute tower features, before the projector and without a graph.

        Args:
            pixels: [N, 3, H, W], uint8 as decoded (normalised here, on the tower's device, in float32) or already
                normalised floats.
            micro_batch_size: images per tower call; None for all at once.

        Returns:
            [N, P, V] in the tower's type for uint8 pixels, else in the pixels' type.

        Raises:
            ValueError: there is no tower, or pixels are uint8 and the tower came without preprocessor_config.json.
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise ValueError("the model has no vision tower; call initialize_vision_modules first")
        parts = []
        for part in torch.split(pixels, micro_batch_size or max(1, pixels.shape[0])):
            part = part.to(tower.device, non_blocking=True)
            if part.dtype == torch.uint8:
                part = normalize_pixels(part, pixel_stats_of(self.config), tower.dtype)
            parts.append(cast(Tensor, tower(part)))
        return torch.cat(parts)

    def packed_loss(self, batch: PackedBatch, image_features: Tensor | None) -> Tensor:
        """Sum the cross-entropy over the targets of a packed micro-batch; float32 scalar.

        Also without targets or images the result stays attached to projector and language model, so that every rank
        of a sharded run takes part in the same collectives.

        Args:
            batch: on the model's device.
            image_features: [M, V] tower features of the batch's images in reading order; None when it has none.

        Raises:
            ValueError: the features do not match the batch, packed attention is not enabled, or the output head is
                sharded on its own.
        """
        kernel = packed_kernel(cast(PreTrainedModel, self))
        if kernel is None:
            raise ValueError("packed rows need packed attention; call model.attention.enable_packed_attention(model)")
        if isinstance(self.lm_head.weight, DTensor):
            raise ValueError("lm_head must not be sharded on its own: leave it in the root group of fully_shard")
        embeds = self._embed_packed(batch, image_features)
        if torch.is_autocast_enabled(embeds.device.type):
            # A float32 embedding would keep the whole residual stream in float32: twice the memory traffic.
            embeds = embeds.to(torch.get_autocast_dtype(embeds.device.type))
        hidden: Tensor = self.get_model()(
            inputs_embeds=torch.stack([embeds]),  # a view would make torch.compile build the first layer on its own
            position_ids=batch.position_ids[None],
            attention_mask=no_mask(embeds.device),
            use_cache=False,
            segments=segments_of(batch, kernel, embeds.dtype),
        ).last_hidden_state[0]
        rows = hidden.index_select(0, batch.target_positions)
        return cross_entropy_sum(rows, self.lm_head.weight, batch.targets)

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        labels: Tensor | None,
        images: Images | None,
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
        fused = self._fuse(input_ids, attention_mask, labels, images)
        fused_mask: Tensor | None = fused.attention_mask
        if attention_mask is not None:
            fused_mask = fused.attention_mask.to(attention_mask.dtype)
        elif not fused.is_padded:
            fused_mask = None
        return None, fused_mask, past_key_values, fused.inputs_embeds, fused.labels

    def initialize_vision_tokenizer(self, model_args: VisionTokenArgs, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add `<im_patch>`, `<im_start>`, `<im_end>` as `model_args` asks; see `add_vision_tokens`."""
        add_vision_tokens(cast(PreTrainedModel, self), model_args, tokenizer)
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
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Run the language model on text, on text with `images`, or on ready-made `inputs_embeds`.

        The loss is the sum over supervised tokens divided by `num_items_in_batch`, by default their own number; a
        batch without supervised tokens has loss 0. Other keywords go to the language model.
        """
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if input_ids is not None and images is not None and past_length == 0:
            if position_ids is not None:
                raise ValueError("position_ids cannot be combined with images; they follow from the fused lengths")
            fused = self._fuse(input_ids, attention_mask, labels, images)
            input_ids, (inputs_embeds, attention_mask, position_ids, labels, _) = None, fused
        elif input_ids is not None and past_length == 0:
            refuse_placeholders(input_ids)
        outputs: CausalLMOutputWithPast = super().forward(  # type: ignore[misc]
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
            loss = cast(Any, self).loss_function(
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
        **kwargs: Any,
    ) -> Any:
        """Continue prompts [B, T], with or without images; see `transformers.GenerationMixin.generate` for the rest.

        Prompts are fused once and padded on the left, whatever side they came padded on.

        Returns:
            New token ids only, without the prompt.
        """
        prompt = inputs if inputs is not None else input_ids
        if prompt is None:
            return super().generate(attention_mask=attention_mask, **kwargs)  # type: ignore[misc]
        if images is None:
            refuse_placeholders(prompt)
        fused = self._fuse(prompt, attention_mask, None, images, padding_side="left")
        return super().generate(  # type: ignore[misc]
            inputs_embeds=fused.inputs_embeds, attention_mask=fused.attention_mask.long(), **kwargs
        )

    def _fuse(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        images: Images | None,
        padding_side: PaddingSide | None = None,
    ) -> FusedInputs:
        features: Tensor | None = None
        images_per_slot: tuple[int, ...] = ()
        if images is not None:
            pixels, images_per_slot = to_image_slots(images)
            features = self.encode_images(pixels)
        settings = FusionSettings.of(self.config)
        if padding_side is not None:
            settings = settings._replace(padding_side=padding_side)
        embed = self.get_model().embed_tokens
        return fuse_inputs(embed, input_ids, attention_mask, labels, features, images_per_slot, settings)

    def _embed_packed(self, batch: PackedBatch, image_features: Tensor | None) -> Tensor:
        embed = self.get_model().embed_tokens
        num_features = batch.image_positions.shape[0]
        found = (0,) if image_features is None else tuple(image_features.shape)
        if found[0] != num_features or (image_features is not None and image_features.ndim != 2):
            raise ValueError(f"expected image_features [{num_features}, V] for this batch, found {list(found)}")
        if num_features and image_features is not None:
            projected = self._project(image_features)
        else:
            # One dummy row, then none of it: the projector takes part in forward and backward with zero gradients.
            weight = self.lm_head.weight
            dummy = torch.zeros(1, self.config.mm_hidden_size, dtype=weight.dtype, device=weight.device)
            projected = self._project(dummy)[:0]
        wrapping_only = FusionSettings.of(self.config).train_wrapping_only
        return embed_packed(embed, batch, projected, wrapping_only)

    def _project(self, features: Tensor) -> Tensor:
        """Apply the projector [..., V] -> [..., D] in the type and on the device of its own weights."""
        projector: nn.Module = self.get_model().mm_projector
        for parameter in projector.parameters():
            features = features.to(parameter.device, parameter.dtype)
            break
        projected: Tensor = projector(features)
        return projected
