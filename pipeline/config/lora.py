"""Config section `lora`: finetuning with low-rank adapters instead of all weights of the language model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Fixed, Section


class LoraConfig(Section):
    """Low-rank adapters; they learn with training.learning_rate (LLaVA-1.5: 2e-4, and mm_projector_lr 2e-5)."""

    rank: Annotated[int | None, Fixed, Field(ge=1)] = None
    """Rank of the adapters, LLaVA-1.5 uses 128; null has none and finetunes all weights."""
    alpha: Annotated[float | None, Fixed, Field(gt=0)] = None
    """Adapters are scaled by alpha / rank; null is twice the rank, as in LLaVA-1.5."""
    dropout: Annotated[float, Fixed, Field(ge=0, lt=1)] = 0.05
    """Share of each adapter's input that is dropped while training."""
    targets: Annotated[tuple[str, ...] | None, Fixed, Field(min_length=1)] = None
    """Linear layers by the end of their name (`q_proj`), in the decoder. null: all of them."""
    quantize_base: Annotated[Literal["nf4", "int8"] | None, Fixed] = None
    """Keep the language model's frozen weights in 4 or 8 bits (QLoRA); needs bitsandbytes."""

    @property
    def scale_alpha(self) -> float:
        """The alpha in effect."""
        return 2.0 * (self.rank or 0) if self.alpha is None else self.alpha
