"""The experiment config: one YAML per run, `a.b=c` overrides on top, validated once, never edited afterwards.

Every field carries a line with its unit and legal values, and says whether it may change when a run resumes
(`Fixed`: the run refuses; `Free`: may change). Building things from the config is left to the components.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

TemplateName = Literal[
    "plain", "v0", "v1", "llama_2", "llama_3", "mistral_instruct", "mpt", "chatml", "qwen", "gemma", "phi"
]


class OnResume(enum.Enum):
    """What a resumed run does when a field differs from the value it was started with."""

    FIXED = "refuse"
    FREE = "allow"


Fixed = OnResume.FIXED
Free = OnResume.FREE


class Section(BaseModel):
    """Base of every config section: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class DataConfig(Section):
    """Which shards, and how a sample becomes tokens and pixels."""

    shards: Annotated[tuple[str, ...], Fixed, Field(min_length=1)]
    """Shard paths or URLs (file, s3, gs); globs, `{000000..000007}` ranges and folders of *.tar are expanded."""
    index_dir: Annotated[str | None, Free] = None
    """Folder of the Parquet index; null puts it under the run folder."""
    template: Annotated[TemplateName, Fixed] = "v1"
    """Conversation template: `plain` for projector pretraining on captions; for instructions the language model's."""
    image_aspect_ratio: Annotated[Literal["pad", "crop"], Fixed] = "pad"
    """`pad` keeps the whole image on a square of the mean colour; `crop` resizes the short edge and cuts the rest."""
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


class ModelConfig(Section):
    """The parts a LLaVA model is put together from."""

    language_model: Annotated[str, Fixed]
    """Hugging Face folder or hub id of the causal language model; for finetuning it may be a LLaVA folder."""
    vision_tower: Annotated[str | None, Fixed] = None
    """Hugging Face folder or hub id of the vision tower; null when the language model folder is a LLaVA model."""
    mm_projector_type: Annotated[str, Fixed] = "mlp2x_gelu"
    """linear, mlpNx_gelu, identity and more; `pool2_` or `shuffle2_` before it merges 2 x 2 patches."""
    mm_vision_select_layer: Annotated[int | tuple[int, ...], Fixed] = -2
    """Index into the tower's hidden states; 0 is the embedding output. A list joins several along the width."""
    mm_vision_select_feature: Annotated[Literal["patch", "cls_patch"], Fixed] = "patch"
    """`patch` drops the class token, `cls_patch` keeps it."""
    pretrain_mm_mlp_adapter: Annotated[str | None, Fixed] = None
    """Projector file (safetensors, or an original mm_projector.bin), or the folder of a finished pretraining run."""
    attention: Annotated[Literal["auto", "sdpa", "varlen", "flex", "flash_attention_2"], Free] = "auto"
    """Attention kernel for packed sequences."""


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
    vision_batch_size: Annotated[int, Free, Field(ge=1)] = 64
    """Images per forward pass of the frozen vision tower."""
    learning_rate: Annotated[float, Fixed, Field(gt=0)]
    """Peak learning rate of the language model (finetune) or of the projector (pretrain)."""
    mm_projector_lr: Annotated[float | None, Fixed, Field(gt=0)] = None
    """Peak learning rate of the projector when it differs; null uses learning_rate."""
    weight_decay: Annotated[float, Fixed, Field(ge=0)] = 0.0
    """Decoupled weight decay; biases and norm weights are exempt."""
    warmup_ratio: Annotated[float, Fixed, Field(ge=0, le=1)] = 0.03
    """Share of all steps with linear warm-up."""
    lr_schedule: Annotated[Literal["cosine", "constant"], Fixed] = "cosine"
    """After warm-up: cosine to zero, or constant."""
    max_grad_norm: Annotated[float, Fixed, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global L2 norm."""
    precision: Annotated[Literal["float32", "bfloat16"], Fixed] = "float32"
    """Arithmetic of forward and backward; bfloat16 keeps frozen weights in bfloat16 too."""
    master_dtype: Annotated[Literal["float32", "bfloat16"], Fixed] = "float32"
    """Storage type of what learns and of its optimizer state; bfloat16 halves memory and rounds stochastically."""
    sharding: Annotated[Literal["none", "fsdp"], Free] = "none"
    """`none` replicates the model on each worker; `fsdp` shards parameters, gradients and optimizer state (FSDP2)."""
    gradient_checkpointing: Annotated[bool | Literal["selective"], Free] = False
    """Recompute decoder activations in backward: true all of a layer, `selective` all but matrix products."""
    compile: Annotated[bool, Free] = False
    """torch.compile the layers of decoder and tower; CUDA with `varlen` attention gains, others break the graph."""


class CheckpointConfig(Section):
    """When progress is saved, and how much of it is kept."""

    every_steps: Annotated[int, Free, Field(ge=1)] = 100
    """Optimizer steps between checkpoints; the last step is always saved."""
    keep_last: Annotated[int, Free, Field(ge=1)] = 2
    """Newest checkpoints kept on disk."""


class ClusterConfig(Section):
    """Where the run executes."""

    launcher: Annotated[Literal["ray", "local"], Free] = "ray"
    """`ray` uses Ray Data and Ray Train; `local` is this process, or one rank of it under torchrun, without Ray."""
    num_workers: Annotated[int, Free, Field(ge=1)] = 1
    """Training workers (ranks) under Ray; torchrun sets its own number."""
    use_gpu: Annotated[bool, Free] = False
    """One GPU per worker and NCCL; otherwise CPU and gloo."""
    cpus_per_worker: Annotated[float, Free, Field(gt=0)] = 1
    """CPUs reserved for each training worker."""
    data_workers: Annotated[int, Free, Field(ge=0)] = 2
    """Parallel preprocessing tasks; 0 preprocesses in the training process (launcher `local` only)."""
    prefetch_steps: Annotated[int, Free, Field(ge=1)] = 2
    """Optimizer steps of data prepared ahead of each worker."""
    torch_threads: Annotated[int | None, Free, Field(ge=1)] = None
    """Intra-op threads of a CPU worker; null divides the machine's cores by the workers on it."""
    max_failures: Annotated[int, Free, Field(ge=0)] = 3
    """Worker-group restarts by Ray Train before the run fails."""


class TrackingConfig(Section):
    """MLflow; training itself never depends on it."""

    enabled: Annotated[bool, Free] = True
    """Write to MLflow at all; metrics.jsonl in the run folder is always written."""
    uri: Annotated[str | None, Free] = None
    """Tracking URI; null uses MLFLOW_TRACKING_URI, else a SQLite file."""
    experiment: Annotated[str, Free] = "ray-llava"
    """MLflow experiment, one per project."""
    log_model: Annotated[bool, Free] = True
    """Upload the finetuned model folder as an artifact; projectors are small and always uploaded."""


class ExperimentConfig(Section):
    """One training run."""

    name: Annotated[str, Free]
    """Run name shown in MLflow and in logs."""
    run_dir: Annotated[str, Free]
    """Folder of the run: config, index, checkpoints, metrics, results. The same folder resumes the same run."""
    stage: Annotated[Literal["pretrain", "finetune"], Fixed]
    """`pretrain` trains the projector only; `finetune` the projector and the language model."""
    seed: Annotated[int, Fixed, Field(ge=0)] = 0
    """Seed of sample order and of weight initialisation."""
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.training.micro_batch_tokens < self.data.max_length:
            raise ValueError(
                f"training.micro_batch_tokens ({self.training.micro_batch_tokens}) is smaller than data.max_length "
                f"({self.data.max_length}), so the longest sample would fit no micro-batch; raise the first or lower "
                "the second"
            )
        return self

    def with_absolute_paths(self) -> Self:
        """Return the config with local paths made absolute, so that workers in other folders find the same files.

        A model name is taken for a path when it exists here, else it stays what it is: a hub id.
        """

        def model_path(name: str | None) -> str | None:
            return str(Path(name).absolute()) if name is not None and Path(name).exists() else name

        shards = tuple(url if "://" in url else str(Path(url).absolute()) for url in self.data.shards)
        index_dir = self.data.index_dir and str(Path(self.data.index_dir).absolute())
        parts = self.model
        return self.model_copy(
            update={
                "run_dir": str(Path(self.run_dir).absolute()),
                "data": self.data.model_copy(update={"shards": shards, "index_dir": index_dir}),
                "model": parts.model_copy(
                    update={
                        "language_model": model_path(parts.language_model),
                        "vision_tower": model_path(parts.vision_tower),
                        "pretrain_mm_mlp_adapter": model_path(parts.pretrain_mm_mlp_adapter),
                    }
                ),
            }
        )

    def to_yaml(self) -> str:
        """Return the resolved config as YAML, in field order."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=False)


class ConfigError(ValueError):
    """The config file or an override is wrong; the message names the key and what was expected."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a YAML experiment config and apply `a.b=c` overrides.

    Args:
        path: YAML file.
        overrides: `section.key=value`; the value is parsed as YAML, so `3`, `true`, `null` and `[a, b]` work.

    Raises:
        ConfigError: missing or malformed file, unknown key (with the nearest known one) or illegal value.
    """
    source = Path(path)
    if not source.is_file():
        raise ConfigError(
            f"config {source}: no such file; pass a YAML experiment config, such as those in jobs/configs"
        )
    try:
        tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"config {source}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config {source}: expected a mapping of sections, found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree, where=str(source))


def parse_config(tree: Mapping[str, Any], where: str) -> ExperimentConfig:
    """Validate a config tree; `where` names its source in error messages.

    Raises:
        ConfigError: unknown key (with the nearest known one) or illegal value, all of them listed.
    """
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem, where) for problem in error.errors())) from error


def fields_with_policy(section: type[Section], prefix: str = "") -> Iterator[tuple[str, OnResume]]:
    """Yield every leaf field as `("data.max_length", OnResume.FIXED)`.

    Raises:
        TypeError: a field was declared without saying whether it may change on resume.
    """
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from fields_with_policy(info.annotation, f"{prefix}{name}.")
            continue
        policy = next((item for item in info.metadata if isinstance(item, OnResume)), None)
        if policy is None:
            raise TypeError(f"{section.__name__}.{name} does not declare Fixed or Free")
        yield f"{prefix}{name}", policy


def check_resumable(started: ExperimentConfig, now: ExperimentConfig) -> None:
    """Refuse to resume a run with a config that would change what it computes.

    Raises:
        ConfigError: a `Fixed` field differs; names each field and both values.
    """
    problems = []
    for path, policy in fields_with_policy(ExperimentConfig):
        before, after = _lookup(started, path), _lookup(now, path)
        if policy is OnResume.FIXED and before != after:
            problems.append(f"  {path}: the run was started with {before!r}, now {after!r}")
    if problems:
        raise ConfigError(
            f"run folder {now.run_dir} holds a run that these changes would falsify:\n"
            + "\n".join(problems)
            + "\nrestore the values to resume it, or choose another run_dir to start a new run"
        )


def _lookup(config: ExperimentConfig, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = value.__getattribute__(part)
    return value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"override {override!r}: expected section.key=value, such as training.learning_rate=1e-3")
    node = tree
    *parents, leaf = path.split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent} is a value, not a section")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _explain(problem: Any, where: str) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"config {where}: unknown key {path}; {hint}"
    if problem["type"] == "missing":
        return f"config {where}: {path} is required; add it to the file or pass {path}=VALUE"
    found = f" (found {problem['input']!r})" if problem["loc"] else ""
    return f"config {where}: {path}: {problem['msg'].removeprefix('Value error, ')}{found}"


def _known_keys(parents: tuple[int | str, ...]) -> list[str]:
    section: type[Section] = ExperimentConfig
    for parent in parents:
        annotation = section.model_fields[str(parent)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        section = annotation
    return list(section.model_fields)
