"""What the data side must know of a model's parts: tokenizer, image processor, how many features an image has.

Read from configs and tokenizer files only, without weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import BaseImageProcessor, PreTrainedTokenizerFast

from model.backbones.registry import refuse_transformers_folder
from model.files.checkpoint_files import check_json_files, read_checkpoint_config, refuse_other_folders
from model.files.weight_files import check_not_pointer
from model.fusion.native_size import Sizing
from model.fusion.resolution import Pinpoints, Resolution, read_resolution
from model.hub.tokenizer_files import read_tokenizer
from model.hub.weights import read_llava_config
from model.llava.vision_tokens import extend_tokenizer
from model.vision.image_spec import ImageSpec
from model.vision.projector import keeps_grid, num_projected_features
from model.vision.tower_builder import AnyTower, VisionArgs, build_vision_tower
from pipeline.config import ModelConfig
from pipeline.samples.prompt.jinja_template import JinjaTemplate
from pipeline.samples.prompt.templates import Template
from pipeline.samples.prompt.text_tokenizer import IMAGE_TOKENS

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class TowerFacts(NamedTuple):
    """What the data side must know of a vision tower; read from its configs, no weights."""

    image_spec: ImageSpec
    """The square that every tile becomes."""
    num_features: int
    """Features per tile after selection."""
    feature_grid: int | None
    """Features per side of a tile; None where class tokens are among them, or a resampler leaves queries."""
    patch_merge: str
    """`mm_patch_merge_type` of the model that the tower belongs to, or is to belong to."""
    sizing: Sizing | None = None
    """How images of any shape are sized; None for a tower of squares."""

    def resolution(self, aspect_ratio: str, pinpoints: Pinpoints) -> Resolution:
        """Return how images become tiles and features.

        Raises:
            ValueError: see `read_resolution`.
        """
        return read_resolution(
            aspect_ratio,
            pinpoints,
            self.patch_merge,
            tile_size=self.image_spec.size,
            tile_features=self.num_features,
            tile_grid=self.feature_grid,
            sizing=self.sizing,
        )


def vision_args(parts: ModelConfig) -> VisionArgs:
    """Return the vision modules that a config names; it has a tower."""
    assert parts.vision_tower is not None
    return VisionArgs(
        vision_tower=parts.vision_tower,
        mm_vision_select_layer=parts.mm_vision_select_layer,
        mm_vision_select_feature=parts.mm_vision_select_feature,
        mm_vision_scales=parts.mm_vision_scales,
        mm_projector_type=parts.mm_projector_type,
        mm_patch_merge_type=parts.mm_patch_merge_type or "flat",
    )


def read_tower_facts(parts: ModelConfig) -> TowerFacts:
    """Read what the data side must know of the tower that a config names, which a LLaVA folder may hold inside.

    Raises:
        ValueError: the tower or its preprocessor_config.json is missing.
    """
    if parts.vision_tower is None:
        facts = read_llava_facts(parts.language_model)
        return facts._replace(patch_merge=parts.mm_patch_merge_type or facts.patch_merge)
    tower = build_vision_tower(vision_args(parts), delay_load=True)
    spec = read_image_spec(_first(parts.vision_tower)).scaled(max(parts.mm_vision_scales))
    return facts_of_tower(tower, spec, parts.mm_projector_type, parts.mm_patch_merge_type or "flat")


def read_llava_facts(folder: str, vision_tower: str | None = None) -> TowerFacts:
    """Read what the data side must know of the tower of a LLaVA folder.

    Args:
        folder: of the model.
        vision_tower: folder or hub id that takes the place of the one that its config names.

    Raises:
        ValueError: it is not a LLaVA folder, or has neither a preprocessor_config.json nor a tower that has one.
    """
    values = read_checkpoint_config(folder, "model.language_model")
    refuse_transformers_folder(values, folder)
    if not values.get("mm_vision_tower"):
        raise ValueError(
            f"{folder} is a language model without a vision tower; set model.vision_tower to a tower's folder or hub id"
        )
    config: Any = read_llava_config(folder, vision_tower)
    tower = build_vision_tower(config, delay_load=True)
    if (Path(folder) / "preprocessor_config.json").is_file():
        spec = read_image_spec(folder)
    else:
        spec = read_image_spec(_first(config.mm_vision_tower)).scaled(max(config.mm_vision_scales))
    return facts_of_tower(tower, spec, config.mm_projector_type, config.mm_patch_merge_type)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or hub id, never running code from it.

    Raises:
        ValueError: there is none, or none that can be written to another folder without loss.
    """
    check_json_files(name, _TOKENIZER_FILES)
    if (Path(name) / "tokenizer.model").is_file():
        check_not_pointer(Path(name) / "tokenizer.model")
    return read_tokenizer(name)


def read_model_tokenizer(parts: ModelConfig) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model, with the special tokens around images that the model is to have.

    Raises:
        ValueError: there is none.
    """
    refuse_other_folders(parts.language_model, "model.language_model")
    tokenizer = load_tokenizer(parts.language_model)
    extend_tokenizer(tokenizer, with_patch=parts.mm_use_im_patch_token, with_start_end=has_wrapped_images(parts))
    return tokenizer


def check_rows(tokenizer: PreTrainedTokenizerFast, template: Template | JinjaTemplate, folder: str) -> None:
    """Verify that each token that a text, the template or the tokenizer itself can produce has an embedding row.

    Other control tokens may lack one, such as Gemma 3's for images in a model for text. Those around images get theirs
    when the model is put together.

    Raises:
        ValueError: tokens without a row.
    """
    num_rows = read_checkpoint_config(folder, "model.language_model").get("vocab_size")
    if not isinstance(num_rows, int):
        return
    written = template.source if isinstance(template, JinjaTemplate) else " ".join(template.controls)
    special = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = set(tokenizer.all_special_ids)
    unused = {token_id for token_id, text in special.items() if token_id not in roles and text not in written}
    unused |= {token_id for token_id, text in special.items() if text in IMAGE_TOKENS}
    lacking = {token_id: text for text, token_id in tokenizer.get_vocab().items() if token_id >= num_rows}
    wrong = sorted(lacking.keys() - unused)
    if wrong:
        named = ", ".join(f"{lacking[token_id]!r} (id {token_id})" for token_id in wrong[:3])
        raise ValueError(
            f"{folder}: the tokenizer has more tokens than the model has embedding rows: {num_rows} (vocab_size in "
            f"config.json), none for {named}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}; give the "
            "model rows with resize_token_embeddings, or take the tokens out of the tokenizer"
        )


def has_wrapped_images(parts: ModelConfig) -> bool:
    """Whether every image is between `<im_start>` and `<im_end>`, by the config or by a LLaVA folder."""
    if parts.mm_use_im_start_end or parts.vision_tower is not None:
        return parts.mm_use_im_start_end
    return folder_wraps_images(parts.language_model)


def folder_wraps_images(folder: str) -> bool:
    """Whether a LLaVA folder's model expects images between `<im_start>` and `<im_end>`."""
    return bool(read_checkpoint_config(folder, "model.language_model").get("mm_use_im_start_end", False))


def facts_of_tower(tower: AnyTower, spec: ImageSpec, projector_type: str, patch_merge: str) -> TowerFacts:
    """Return what the data side must know of a tower that is built."""
    if tower.sizing is not None:  # tiles are the tower's cells; the processor decides the filter and normalisation
        spec = replace(spec, size=tower.input_size, resize_edge=None)
    from_tower = tower.num_features_at(spec.size)
    count = num_projected_features(projector_type, from_tower)
    return TowerFacts(
        spec,
        count,
        tower.feature_grid_at(spec.size) if keeps_grid(projector_type) else None,
        patch_merge,
        tower.sizing,
    )


def _first(names: str | tuple[str, ...] | list[str]) -> str:
    """Return the tower whose image processor counts."""
    return names if isinstance(names, str) else names[0]


def read_image_spec(name: str) -> ImageSpec:
    """Read what the image processor of a folder or hub id does.

    Raises:
        ValueError: there is none, or its steps are not supported.
    """
    check_json_files(name, ("preprocessor_config.json", "processor_config.json"))
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError as error:
        raise ValueError(
            f"{name}: no preprocessor_config.json found, which says how images are sized and normalised; copy it into "
            "that folder"
        ) from error
    try:
        return ImageSpec.from_preprocessor_config(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
