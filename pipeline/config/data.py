"""Config section `data`: which shards, and how a sample becomes tokens and pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model.resolution import ASPECT_RATIO_PATTERN
from pipeline.config.section import Fixed, Free, Section

TemplateName = Literal[
    "plain", "v0", "v1", "llama_2", "llama_3", "mistral_instruct", "mpt", "chatml", "qwen", "gemma", "phi", "tokenizer"
]


class DataConfig(Section):
    """Which shards, and how a sample becomes tokens and pixels."""

    shards: Annotated[tuple[str, ...], Fixed, Field(min_length=1)]
    """Shard paths or URLs (file, s3, gs); globs, `{000000..000007}` ranges and folders of *.tar are expanded."""
    index_dir: Annotated[str | None, Free] = None
    """Folder of the Parquet index; null puts it under the run folder."""
    template: Annotated[TemplateName, Fixed] = "v1"
    """`plain` for projector pretraining on captions; for instructions the language model's, or `tokenizer`: its own."""
    image_aspect_ratio: Annotated[str, Fixed, Field(pattern=rf"^({ASPECT_RATIO_PATTERN})$")] = "pad"
    """One square, `pad` (all of the image) or `crop`; or tiles: `anyres`, `anyres_max_N`, `dynamic_MIN_MAX`."""
    image_grid_pinpoints: Annotated[str | tuple[tuple[int, int], ...] | None, Fixed] = None
    """Sizes for `anyres`: [[width, height], ...] in pixels, or tiles `(1x1),...,(6x6)`; null takes the published."""
    max_length: Annotated[int, Fixed, Field(gt=1)] = 2048
    """Longest fused sample in tokens, image features included; text beyond it is cut, an image never is."""
    on_bad_shard: Annotated[Literal["fail", "quarantine"], Free] = "fail"
    """A defective shard stops the run, or its readable samples are used and the rest is counted."""
    check_images: Annotated[Literal["decode", "header"], Free] = "decode"
    """How the index verifies images: decode every pixel (finds all broken files), or parse headers only."""
    max_rejected_fraction: Annotated[float, Free, Field(ge=0, le=1)] = 0.001
    """The run stops when more than max(20, this share) of the samples were rejected."""

    def allowed_rejected(self, num_samples: int) -> int:
        """Return how many of `num_samples` may be rejected; a small data set may lose 20 whatever their share."""
        return max(20, int(self.max_rejected_fraction * num_samples))
