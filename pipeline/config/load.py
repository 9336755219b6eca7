"""Reading a config: one YAML per run, `a.b=c` overrides on top, validated once, with messages that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from pipeline.config.experiment import ExperimentConfig
from pipeline.config.section import Section
from pipeline.storage.urls import without_credentials


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
    return without_credentials(f"config {where}: {path}: {problem['msg'].removeprefix('Value error, ')}{found}")


def _known_keys(parents: tuple[int | str, ...]) -> list[str]:
    kind: Any = ExperimentConfig
    for parent in parents:
        if isinstance(kind, type) and issubclass(kind, Section):
            kind = kind.model_fields[str(parent)].annotation
        else:  # dict[name, Section] or tuple[Section, ...]
            kind = next(part for part in get_args(kind) if isinstance(part, type) and issubclass(part, Section))
    assert issubclass(kind, Section)
    return list(kind.model_fields)
