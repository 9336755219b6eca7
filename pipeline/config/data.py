"""Config section `data`: which shards, and how a sample becomes tokens and pixels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from model.fusion.resolution import ASPECT_RATIO_PATTERN
from pipeline.config.mix import MixChange, SourceConfig, SourceName, check_mix
from pipeline.config.section import Fixed, Free, Section
from pipeline.config.where import Condition, parse_condition
from pipeline.storage.urls import check_local, check_run_dir, check_shard_urls

TemplateName = Literal[
    "plain", "v0", "v1", "llama_2", "llama_3", "mistral_instruct", "mpt", "chatml", "qwen", "gemma", "phi", "tokenizer"
]


class DataConfig(Section):
    """Which shards, and how a sample becomes tokens and pixels."""

    shards: Annotated[tuple[str, ...], Fixed] = ()
    """Shard paths or URLs (file, s3, gs); globs, `{000000..000007}` ranges and folders of *.tar are expanded."""
    sources: Annotated[dict[SourceName, SourceConfig], Fixed] = Field(default_factory=dict)
    """Instead of `shards`, a mix: name -> {shards, weight or epochs}. Without either, shares follow the sizes."""
    mix_temperature: Annotated[float, Fixed, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Shares proportional to size ** (1 / temperature): 1 follows the sizes, larger values favour small sources."""
    mix_changes: Annotated[tuple[MixChange, ...], Free] = ()
    """[{from_step, weights}]: other weights from announced steps on; on resume only steps to come may change."""
    index_dir: Annotated[str | None, Free] = None
    """Folder of the Parquet index; null puts it under the run folder."""
    feature_cache: Annotated[str | None, Free] = None
    """Folder, seen by all machines, that `cache-features` filled with a frozen tower's features; null computes them."""
    template: Annotated[TemplateName, Fixed] = "v1"
    """`plain` for projector pretraining on captions; for instructions the language model's, or `tokenizer`: its own."""
    image_aspect_ratio: Annotated[str, Fixed, Field(pattern=rf"^({ASPECT_RATIO_PATTERN})$")] = "pad"
    """One square, `pad` (all of the image) or `crop`; or tiles: `anyres`, `anyres_max_N`, `dynamic_MIN_MAX`;
    or `native_MIN_MAX`, limits in pixels, for a tower that takes any shape."""
    image_grid_pinpoints: Annotated[str | tuple[tuple[int, int], ...] | None, Fixed] = None
    """Sizes for `anyres`: [[width, height], ...] in pixels, or tiles `(1x1),...,(6x6)`; null takes the published."""
    max_length: Annotated[int, Fixed, Field(gt=1)] = 2048
    """Longest fused sample in tokens, image features included; text beyond it is cut, an image never is."""
    on_bad_shard: Annotated[Literal["fail", "quarantine"], Free] = "fail"
    """A defective shard stops the run, or its readable samples are used and the rest is counted."""
    check_images: Annotated[Literal["decode", "header"], Free] = "decode"
    """How the index verifies images: decode every pixel (finds all broken files), or parse headers only."""
    max_image_pixels: Annotated[int, Fixed, Field(gt=0, le=1_000_000_000)] = 50_000_000
    """Largest image, width times height; a larger one is refused from its header, before it is decoded."""
    video_fps: Annotated[float, Fixed, Field(gt=0, le=60)] = 1.0
    """Frames shown for each second of a video file; frames that are stored as images are all shown."""
    video_max_frames: Annotated[int, Fixed, Field(ge=1, le=1024)] = 32
    """Most frames of a video file; a longer one is sampled more thinly."""
    video_times: Annotated[Literal["none", "frames", "sentence"], Fixed] = "none"
    """Times in the prompt: `frames` writes `<1.5 seconds>` before each frame, `sentence` one before the question."""
    where: Annotated[tuple[str, ...], Fixed] = ()
    """Which samples are trained on: `answer_chars >= 5`, `language in en, de`, `not is_duplicate`; all must hold."""
    against: Annotated[tuple[str, ...], Fixed] = ()
    """Shards of held-out data, as in `shards`: the column `overlap` of `where` says what samples share with them."""
    held_out: Annotated[Annotated[float, Field(gt=0, lt=1)] | str | None, Fixed] = None
    """Never trained on: a share of the samples chosen by a hash of their picture, or a file with a key per line."""
    allow_duplicate_keys: Annotated[bool, Fixed] = False
    """Use samples that share a key with an earlier one; nothing but labels depends on keys."""
    sample_keys: Annotated[Literal["first_dot", "extension"], Fixed] = "first_dot"
    """Where a key ends in a member's name: `first_dot`, as `webdataset` reads; `extension`, for keys that hold dots."""
    prepend_missing_placeholder: Annotated[bool, Fixed] = False
    """Show the image of a sample with one image and no `<image>` at the start of its first question, as LLaVA does."""
    drop_leading_answer: Annotated[bool, Fixed] = False
    """Leave out the first turn of a conversation that begins with the assistant, as LLaVA does."""
    max_rejected_fraction: Annotated[float, Free, Field(ge=0, le=1)] = 0.001
    """The run stops when more than max(20, this share) of the samples, or max(1, this share) of the shards, are bad.

    While training, that many of each epoch.
    """
    max_rejected_per_shard: Annotated[int | None, Free, Field(ge=0)] = 50
    """The run does not start when more samples of one shard are unusable; null for no limit."""
    max_rejected_in_a_row: Annotated[int | None, Free, Field(ge=0)] = 100
    """The run does not start when more samples one after the other are unusable; null for no limit."""

    @field_validator("feature_cache")
    @classmethod
    def _check_folder(cls, folder: str | None) -> str | None:
        return folder and check_local(folder, "feature_cache", "features are memory-mapped; choose a folder")

    @field_validator("index_dir")
    @classmethod
    def _check_index_dir(cls, folder: str | None) -> str | None:
        return folder and check_run_dir(folder, "index_dir")

    @field_validator("shards")
    @classmethod
    def _check_shards(cls, shards: tuple[str, ...]) -> tuple[str, ...]:
        return check_shard_urls(shards)

    @field_validator("sources")
    @classmethod
    def _sort_sources(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        return dict(sorted(sources.items()))  # their order decides sample ids; that of a YAML file must not

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if bool(self.shards) == bool(self.sources):
            found = "both" if self.shards else "neither"
            raise ValueError(f"data.shards is required, or data.sources for a mix of several; found {found}")
        if not self.sources and (self.mix_changes or self.mix_temperature != 1):
            raise ValueError("mix_changes and mix_temperature need data.sources: there is only one source")
        check_mix(self.sources, self.mix_temperature, self.mix_changes)
        return self

    @field_validator("against")
    @classmethod
    def _check_against(cls, shards: tuple[str, ...]) -> tuple[str, ...]:
        return check_shard_urls(shards)

    @model_validator(mode="after")
    def _check_where(self) -> Self:
        if any(one.column == "overlap" for one in self.conditions) and not self.against:
            raise ValueError("where: `overlap` needs data.against, the shards that samples are compared with")
        return self

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What `where` says."""
        return tuple(map(parse_condition, self.where))

    @property
    def shards_by_source(self) -> dict[str, tuple[str, ...]]:
        """Shards of each source; the only one of a run without a mix has the name ""."""
        return {name: source.shards for name, source in self.sources.items()} or {"": self.shards}

    def draws_from(self, name: str) -> bool:
        """Whether a source of the mix gives samples to the run at any step."""
        return self.sources[name].weight != 0 or any(change.weights[name] for change in self.mix_changes)

    def allowed_rejected(self, num_samples: int) -> int:
        """Return how many of `num_samples` may be rejected; a small data set may lose 20, whatever share that is."""
        return max(20, int(self.max_rejected_fraction * num_samples))

    def allowed_defective(self, num_shards: int) -> int:
        """Return how many of `num_shards` may be defective where `on_bad_shard` is `quarantine`; one always may."""
        return max(1, int(self.max_rejected_fraction * num_shards))
