"""Whether a run may continue with another config; each field declares whether it may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.load import ConfigError, load_config
from pipeline.config.section import OnResume, Section


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
    problems, was, is_now = [], started.model_dump(), now.model_dump()
    for path, policy in fields_with_policy(ExperimentConfig):
        before, after = _lookup(was, path), _lookup(is_now, path)
        if policy is OnResume.FIXED and before != after:
            problems.append(f"  {path}: the run was started with {before!r}, now {after!r}")
    if problems:
        raise ConfigError(
            f"run folder {now.run_dir} holds a run that these changes would invalidate:\n"
            + "\n".join(problems)
            + "\nrestore the values to resume it, or choose another run_dir to start a new run"
        )


def check_record_resumable(saved: Path, record: Mapping[str, Any]) -> None:
    """Check a run's config, as `ExperimentConfig.to_record` returns it, against the config.yaml it was started with.

    Raises:
        ConfigError: see `check_resumable`; or the file cannot be read.
    """
    check_resumable(load_config(saved), ExperimentConfig.model_validate(record))


def _lookup(values: Mapping[str, Any], path: str) -> Any:
    value: Any = values
    for part in path.split("."):
        value = value[part]
    return value
