"""Configuration fields that make a language-model config a LLaVA config. Names follow published checkpoints."""

from typing import Any, Literal

from model.fusion.resolution import PatchMerge


class LlavaFields:
    """Mixin for a backbone's config class; values set on an instance are saved in config.json."""

    use_mm_proj: bool = False
    """Whether a projector exists."""
    mm_vision_tower: str | list[str] | None = None
    """Folder or hub id of the tower, or of several that are joined; None for a plain language model."""
    mm_vision_select_layer: int | list[int] = -2
    """Hidden state that features are taken from; -1 is the last. Several are joined along the width."""
    mm_vision_select_feature: Literal["patch", "cls_patch"] = "patch"
    """Without or with the class token."""
    mm_vision_scales: list[int] | tuple[int, ...] = (1,)
    """Multiples of the encoder's size at which it sees an image, see `multi_scale`."""
    mm_vision_config: dict[str, Any] | list[dict[str, Any]] | None = None
    """The tower's own config.json (one for each of several), so that a saved model can be built without its folder."""
    mm_tower_pixels: list[list[list[float]] | None] | None = None
    """Mean and standard deviation of the pixels of each of several towers."""
    mm_vision_weights: Literal["external", "checkpoint"] = "external"
    """Whether the tower's weights come from `mm_vision_tower` or are inside this checkpoint."""
    mm_image_mean: list[float] | None = None
    """Per-channel mean of pixels scaled to 0..1."""
    mm_image_std: list[float] | None = None
    """Per-channel standard deviation of pixels scaled to 0..1."""
    mm_projector_type: str = "linear"
    """See `build_vision_projector`; may begin with what the tower merges, see `feature_merge`."""
    mm_hidden_size: int | None = None
    """Width of the tower's features."""
    mm_patch_merge_type: PatchMerge = "flat"
    """How the features of an image's tiles are laid out; see `resolution`."""
    image_aspect_ratio: str | None = "pad"
    """How an image becomes tiles; see `read_resolution`."""
    image_grid_pinpoints: str | list[list[int]] | None = None
    """Sizes that `anyres` may choose; see `read_resolution`."""
    mm_use_im_patch_token: bool = False
    """Whether the tokenizer has `<im_patch>`."""
    mm_use_im_start_end: bool = False
    """Whether each image is wrapped in `<im_start>` and `<im_end>`."""
    im_start_end_ids: list[int] | None = None
    """Token ids of those two."""
    tune_mm_mlp_adapter: bool = False
    """Whether this is projector pretraining."""
    tokenizer_padding_side: Literal["left", "right"] = "right"
    """Where fused rows are filled up."""
    tokenizer_model_max_length: int | None = None
    """Longest fused row, tokens; None for no limit."""
