"""What is timed: model, stage and batch sizes, on both sides. The same samples go through every contender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from benchmarks.step.shapes import features_per_image
from benchmarks.step.workloads import (
    INSTRUCTION_MIXTURE,
    MAX_LENGTH,
    WITH_SEVERAL_IMAGES,
    TextSize,
    caption_sizes,
    instruction_sizes,
    plan_of,
)
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    ExperimentConfig,
    LoraConfig,
    ModelConfig,
    TrainingConfig,
)
from pipeline.plan.plan import Plan


class BaselineSettings(NamedTuple):
    """How `transformers.LlavaForConditionalGeneration` is run."""

    batch_size: int
    """Samples per padded batch."""
    gradient_checkpointing: bool
    group_by_length: bool = False
    """Sort the samples of a step by length before cutting batches, which keeps padding low."""

    @property
    def label(self) -> str:
        """Name in reports."""
        parts = [f"padded batches of {self.batch_size}"]
        parts += ["gradient checkpointing"] if self.gradient_checkpointing else []
        parts += ["grouped by length"] if self.group_by_length else []
        return ", ".join(parts)


class RivalSettings(NamedTuple):
    """How transformers' model is run on packed rows."""

    row_tokens: int
    layers: Literal["plain", "liger", "compiled"]
    attention: Literal["varlen", "fa4", "sdpa"] = "varlen"
    gradient_checkpointing: bool = False
    fp8: bool = False
    """Linear layers of the decoder through torchao, scaled by row."""

    @property
    def label(self) -> str:
        """Name in reports."""
        parts = [f"packed rows of {self.row_tokens} tokens", f"{self.layers} layers", f"{self.attention} attention"]
        parts += ["gradient checkpointing"] if self.gradient_checkpointing else []
        parts += ["FP8 (torchao)"] if self.fp8 else []
        return ", ".join(parts)


class OurSettings(NamedTuple):
    """How our step is run."""

    micro_batch_tokens: int
    compile: bool
    gradient_checkpointing: bool | Literal["selective"] = False
    attention: Literal["auto", "sdpa", "varlen", "flex", "flash_attention_4"] = "auto"
    linear_precision: Literal["fp8"] | None = None

    @property
    def label(self) -> str:
        """Name in reports."""
        parts = [f"packed rows of {self.micro_batch_tokens} tokens", "compiled" if self.compile else "eager"]
        parts += {"selective": ["selective recomputation"], True: ["full recomputation"], False: []}[
            self.gradient_checkpointing
        ]
        parts += [] if self.attention == "auto" else [f"{self.attention} attention"]
        parts += ["FP8"] if self.linear_precision == "fp8" else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Scenario:
    """One model and stage."""

    name: str
    shape: str
    """Key of `LANGUAGE_MODELS`."""
    stage: Literal["pretrain", "finetune"]
    master_dtype: Literal["float32", "bfloat16"]
    """Type in which trained weights and moments are stored, on both sides."""
    global_batch_size: int
    """Samples per optimizer step."""
    ours: tuple[OurSettings, ...]
    """The first is the one that is recommended and profiled."""
    baselines: tuple[BaselineSettings, ...]
    """The first is how it is usually run."""
    rivals: tuple[RivalSettings, ...] = ()
    """The first is the strongest."""
    lora_rank: int | None = None
    """Adapters in all linear layers of the decoder, with twice the rank as alpha; None trains the whole decoder."""
    num_steps: int = 3
    """Measured optimizer steps."""
    num_warmup_steps: int = 2
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic, and type of frozen weights, on both sides."""
    text_scale: float = 1.0
    """Factor on the text lengths of conversations."""
    has_several_images: bool = False
    """Whether a tenth of the conversations holds three images."""

    @property
    def quick(self) -> Scenario:
        """The same with one measured step and the first contender of each side."""
        return replace(self, ours=self.ours[:1], baselines=self.baselines[:1], rivals=self.rivals[:1], num_steps=1)

    @property
    def learning_rate(self) -> float:
        """Constant rate of both sides, so that they stay comparable step by step."""
        return 1e-3 if self.stage == "pretrain" else 2e-5

    @property
    def features_per_image(self) -> int:
        """Features of the tower that goes with the shape."""
        return features_per_image(self.shape)

    def sizes(self) -> list[TextSize]:
        """Draw the samples of all steps, warm-up included."""
        count = self.global_batch_size * (self.num_steps + self.num_warmup_steps)
        if self.stage == "pretrain":
            return caption_sizes(count, seed=1)
        mixture = WITH_SEVERAL_IMAGES if self.has_several_images else INSTRUCTION_MIXTURE
        return instruction_sizes(count, 2, self.features_per_image, mixture, self.text_scale)

    def plan(self, sizes: Sequence[TextSize], micro_batch_tokens: int) -> Plan:
        """Plan the steps."""
        return plan_of(sizes, self.features_per_image, self.global_batch_size, micro_batch_tokens)

    def config(self, settings: OurSettings, run_dir: str) -> ExperimentConfig:
        """Return the experiment config a training run of this scenario would have."""
        return ExperimentConfig(
            name=self.name,
            run_dir=run_dir,
            stage=self.stage,
            data=DataConfig(shards=("random",), max_length=int(self.text_scale * MAX_LENGTH)),
            model=ModelConfig(language_model="random", attention=settings.attention),
            training=TrainingConfig(
                global_batch_size=self.global_batch_size,
                micro_batch_tokens=settings.micro_batch_tokens,
                learning_rate=self.learning_rate,
                lr_schedule="constant",
                warmup_ratio=0.0,
                precision=self.precision,
                master_dtype=self.master_dtype,
                gradient_checkpointing=settings.gradient_checkpointing,
                compile=settings.compile,
                linear_precision=settings.linear_precision,
            ),
            lora=LoraConfig() if self.lora_rank is None else LoraConfig(rank=self.lora_rank, alpha=2 * self.lora_rank),
            cluster=ClusterConfig(use_gpu=settings.linear_precision == "fp8"),
        )


_PRETRAIN = Scenario(
    name="projector pretraining, CLIP-L/14-336 + 7B",
    shape="7b",
    stage="pretrain",
    master_dtype="float32",
    global_batch_size=128,
    ours=(
        OurSettings(32768, compile=True, linear_precision="fp8"),
        OurSettings(32768, compile=True),
        OurSettings(32768, compile=False),
    ),
    rivals=(RivalSettings(32768, "compiled", "fa4"), RivalSettings(16384, "liger")),
    baselines=(BaselineSettings(32, gradient_checkpointing=True), BaselineSettings(32, gradient_checkpointing=False)),
)
_FINETUNE_7B = Scenario(
    name="full finetuning, CLIP-L/14-336 + 7B",
    shape="7b",
    stage="finetune",
    master_dtype="bfloat16",
    global_batch_size=64,
    ours=(
        OurSettings(16384, compile=True, linear_precision="fp8"),
        OurSettings(16384, compile=True),
        OurSettings(16384, compile=False, gradient_checkpointing="selective"),
    ),
    baselines=(
        BaselineSettings(16, gradient_checkpointing=True),
        BaselineSettings(16, gradient_checkpointing=True, group_by_length=True),
        BaselineSettings(4, gradient_checkpointing=False),
    ),
    rivals=(RivalSettings(16384, "compiled", "fa4"), RivalSettings(8192, "liger")),
)
_LORA_7B = replace(
    _FINETUNE_7B,
    name="LoRA finetuning, CLIP-L/14-336 + 7B, rank 128",
    lora_rank=128,
    ours=(OurSettings(32768, compile=True, linear_precision="fp8"), OurSettings(32768, compile=True)),
    baselines=(),
    rivals=(RivalSettings(16384, "compiled", "fa4"), RivalSettings(8192, "liger")),
)
_FINETUNE_1B = Scenario(
    name="full finetuning, CLIP-L/14-336 + 1.5B",
    shape="1.5b",
    stage="finetune",
    master_dtype="float32",
    global_batch_size=128,
    ours=(
        OurSettings(40960, compile=True),
        OurSettings(40960, compile=True, linear_precision="fp8"),
        OurSettings(16384, compile=False),
    ),
    baselines=(
        BaselineSettings(16, gradient_checkpointing=True),
        BaselineSettings(16, gradient_checkpointing=True, group_by_length=True),
    ),
    rivals=(RivalSettings(32768, "compiled", "fa4"), RivalSettings(16384, "liger")),
)
_TINY_FINETUNE = Scenario(
    name="tiny finetune",
    shape="tiny",
    stage="finetune",
    master_dtype="bfloat16",
    global_batch_size=5,
    ours=(OurSettings(4096, compile=False, gradient_checkpointing="selective"),),
    baselines=(BaselineSettings(3, gradient_checkpointing=True, group_by_length=True),),
    num_steps=1,
    num_warmup_steps=1,
)
_TINY_PRETRAIN = replace(_TINY_FINETUNE, name="tiny pretrain", stage="pretrain", master_dtype="float32")

_CPU_SMALL = Scenario(
    name="full finetuning, 384 x 6",
    shape="384 x 6",
    stage="finetune",
    master_dtype="float32",
    global_batch_size=64,
    ours=(OurSettings(768, compile=False),),
    baselines=(BaselineSettings(8, gradient_checkpointing=False),),
    num_steps=1,
    num_warmup_steps=0,
    precision="float32",
    text_scale=0.25,
    has_several_images=True,
)
_CPU_LARGE = replace(_CPU_SMALL, name="full finetuning, 1024 x 8", shape="1024 x 8")
_CPU_PRETRAIN = replace(_CPU_SMALL, name="projector pretraining, 384 x 6", stage="pretrain")

CPU_SCENARIOS: Final = (_CPU_SMALL, _CPU_PRETRAIN, _CPU_LARGE)
"""Small enough for two cores: images of 64 features, a quarter of the text."""

SCENARIOS: Final[dict[Literal["full", "tiny"], tuple[Scenario, ...]]] = {
    "full": (_PRETRAIN, _FINETUNE_7B, _FINETUNE_1B, _LORA_7B),
    "tiny": (_TINY_PRETRAIN, _TINY_FINETUNE),
}
