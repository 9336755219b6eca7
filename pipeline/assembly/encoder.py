"""The encoder of a config: from its tokenizer, its template, and what its tower says about images."""

from __future__ import annotations

from model.files.checkpoint_files import refuse_exported
from pipeline.assembly.facts import check_rows, has_wrapped_images, read_model_tokenizer, read_tower_facts
from pipeline.config import ConfigError, DataConfig, ModelConfig
from pipeline.samples.encode import SampleEncoder
from pipeline.samples.image import ImageLimits
from pipeline.samples.prompt.rendering import choose_template
from pipeline.samples.prompt.served_prompt import check_served
from pipeline.samples.sampling import FrameSampling


def build_encoder(parts: ModelConfig, data: DataConfig) -> SampleEncoder:
    """Build the encoder that a config describes, from configs and tokenizer only.

    Raises:
        ConfigError: a model part is missing or cannot be read.
    """
    try:
        refuse_exported(parts.language_model, "model.language_model")
        facts = read_tower_facts(parts)
        resolution = facts.resolution(data.image_aspect_ratio, data.image_grid_pinpoints)
        tokenizer = read_model_tokenizer(parts)
        template = choose_template(data.template, tokenizer, wraps_images=has_wrapped_images(parts))
        check_rows(tokenizer, template, parts.language_model)
        limits = ImageLimits(max_pixels=data.max_image_pixels)
        sampling = FrameSampling(data.video_fps, data.video_max_frames, data.video_times)
        encoder = SampleEncoder(tokenizer, template, facts.image_spec, resolution, data.max_length, limits, sampling)
        check_served(tokenizer, template, encoder.tokenizer)
        return encoder
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
