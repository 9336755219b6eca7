"""Config section `training`: what learns, how fast, on how much data per step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.section import Fixed, Free, Section


class CostConfig(Section):
    """What a sample takes on one worker; where any is set, ranks get even costs instead of even tokens."""

    token_ns: Annotated[float, Free, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Nanoseconds of forward and backward for each fused token."""
    token_pair_ns: Annotated[float, Free, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Nanoseconds for the square of a sample's fused length: its attention."""
    tile_ns: Annotated[float, Free, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Nanoseconds of the vision tower for each tile."""
    megapixel_ns: Annotated[float, Free, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Nanoseconds of decoding for each million pixels, where data workers are what a step waits for."""

    @property
    def is_set(self) -> bool:
        """Whether any is given."""
        return bool(self.token_ns or self.token_pair_ns or self.tile_ns or self.megapixel_ns)


class TrainingConfig(Section):
    """Optimisation: what learns, how fast, on how much data per step."""

    num_epochs: Annotated[int, Fixed, Field(ge=1)] = 1
    """Passes over the data; every epoch has its own order."""
    max_steps: Annotated[int | None, Fixed, Field(ge=1)] = None
    """Stop after this many optimizer steps; null runs all epochs. The schedule spans exactly the steps that run."""
    global_batch_size: Annotated[int, Fixed, Field(ge=1)]
    """Samples per optimizer step over all workers."""
    micro_batch_tokens: Annotated[int, Free, Field(ge=1)] = 4096
    """Most fused tokens packed into one forward pass of one worker; at least data.max_length."""
    cost: CostConfig = Field(default_factory=CostConfig)
    """What a sample takes; all zero balances ranks by tokens."""
    vision_batch_size: Annotated[int, Free, Field(ge=1)] = 64
    """Tiles per forward pass of the vision tower."""
    learning_rate: Annotated[float, Fixed, Field(gt=0)]
    """Peak learning rate of the language model (finetune) or of the projector (pretrain)."""
    mm_projector_lr: Annotated[float | None, Fixed, Field(gt=0)] = None
    """Peak learning rate of the projector when it differs; null uses learning_rate."""
    vision_tower_lr: Annotated[float | None, Fixed, Field(gt=0)] = None
    """Peak learning rate of the vision tower in finetuning (LLaVA-NeXT: 2e-6); null keeps the tower frozen."""
    weight_decay: Annotated[float, Fixed, Field(ge=0)] = 0.0
    """Decoupled weight decay; biases and norm weights are exempt."""
    warmup_ratio: Annotated[float, Fixed, Field(ge=0, le=1)] = 0.03
    """Share of all steps with linear warm-up."""
    lr_schedule: Annotated[Literal["cosine", "constant"], Fixed] = "cosine"
    """After warm-up: cosine to zero, or constant."""
    max_grad_norm: Annotated[float, Fixed, Field(gt=0, allow_inf_nan=True)] = 1.0
    """Gradients are scaled down to this global L2 norm; `.inf` leaves them as they are."""
    expert_balance: Annotated[float, Fixed, Field(ge=0)] = 0.0
    """Weight of the loss, a mean over tokens, that asks experts for equal loads in finetuning; usual is 0.001."""
    loss_spike_deviations: Annotated[float, Free, Field(gt=0, allow_inf_nan=True)] = 10.0
    """A step whose loss exceeds the recent median by so many robust deviations is recorded; `.inf` records none."""
    precision: Annotated[Literal["float32", "bfloat16"], Fixed] = "float32"
    """Arithmetic of forward and backward; bfloat16 keeps frozen weights in bfloat16 too."""
    master_dtype: Annotated[Literal["float32", "bfloat16"], Fixed] = "float32"
    """Storage type of what learns and of its optimizer state; bfloat16 halves memory and rounds stochastically."""
    linear_precision: Annotated[Literal["fp8"] | None, Fixed] = None
    """`fp8`: the decoder's linear layers multiply in 8-bit floats, on Hopper GPUs and newer; null: as `precision`."""
    optimizer: Annotated[Literal["adamw", "adamw_8bit"], Fixed] = "adamw"
    """`adamw_8bit`: moments of 2 bytes per parameter, not 8 (bitsandbytes, extra `eightbit`); updates are slower."""
    sharding: Annotated[Literal["none", "fsdp"], Free] = "none"
    """`none` replicates the model on each worker; `fsdp` shards parameters, gradients and optimizer state (FSDP2)."""
    fsdp_group_size: Annotated[int | None, Free, Field(ge=2)] = None
    """With `fsdp`, ranks that hold one copy of the model together, such as the GPUs of a machine (HSDP); null: all."""
    reduce_gradients: Annotated[Literal["micro_batch", "step"], Free] = "micro_batch"
    """With `fsdp`, sum gradients over ranks after each micro-batch, or once a step, kept whole till then."""
    reduce_dtype: Annotated[Literal["float32", "bfloat16"], Fixed] = "float32"
    """With `fsdp`, the type that gradients travel in; bfloat16 halves the bytes and rounds every sum."""
    gradient_checkpointing: Annotated[bool | Literal["selective"], Free] = False
    """Recompute decoder activations in backward: true all of a layer, `selective` all but matrix products."""
    compile: Annotated[bool, Free] = False
    """torch.compile the layers of decoder and tower; CUDA with `varlen` attention gains, others break the graph."""
    cpu_offload: Annotated[bool, Free] = False
    """With `fsdp` keep weights, gradients and optimizer state in host memory; saves device memory and costs time."""
    profile_steps: Annotated[tuple[int, int] | None, Free] = None
    """First and last step to record with torch's profiler, on rank 0; the trace goes to profile/ and to MLflow."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.cpu_offload and self.sharding != "fsdp":
            raise ValueError("training.cpu_offload needs training.sharding=fsdp; set it, or leave cpu_offload out")
        for name in ("fsdp_group_size", "reduce_gradients", "reduce_dtype"):
            value = getattr(self, name)
            if self.sharding != "fsdp" and value != type(self).model_fields[name].default:
                raise ValueError(f"training.{name}={value} needs training.sharding=fsdp; set it, or leave {name} out")
        if self.optimizer == "adamw_8bit" and self.sharding == "fsdp":
            raise ValueError(
                "training.optimizer=adamw_8bit cannot be sharded, its scales belong to whole tensors; set "
                "training.sharding=none or training.optimizer=adamw"
            )
        if self.optimizer == "adamw_8bit" and self.master_dtype == "bfloat16":
            raise ValueError(
                "training.optimizer=adamw_8bit rounds to nearest, which loses most updates of bfloat16 weights; set "
                "training.master_dtype=float32 or training.optimizer=adamw"
            )
        if self.linear_precision == "fp8" and self.precision != "bfloat16":
            raise ValueError(
                f"training.linear_precision=fp8 gives bfloat16 results, but training.precision is {self.precision}; "
                "set that to bfloat16, or training.linear_precision=null"
            )
        if self.linear_precision == "fp8" and self.sharding == "fsdp":
            raise ValueError(
                "training.linear_precision=fp8 keeps quantised weights whole on every worker; set "
                "training.sharding=none or training.linear_precision=null"
            )
        steps = self.profile_steps
        if steps is not None and not 0 <= steps[0] <= steps[1]:
            raise ValueError(
                f"training.profile_steps is {list(steps)}; expected first and last step, 0 <= first <= last"
            )
        return self
