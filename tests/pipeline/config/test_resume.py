"""What a run may change when it resumes: every field says so, and a refusal names every field at once."""

from __future__ import annotations

from typing import Annotated

import pytest

from pipeline.config import ConfigError, check_resumable, fields_with_policy, parse_config
from pipeline.config.experiment import ExperimentConfig
from pipeline.config.section import Fixed, Free, OnResume, Section


class Inner(Section):
    """Fields of a section within a section."""

    size: Annotated[int, Fixed] = 1
    """Size."""
    colour: Annotated[str | None, Free] = None
    """Colour."""


class Outer(Section):
    """A section with one in it."""

    name: Annotated[str, Free]
    """Name."""
    inner: Inner = Inner()


class Silent(Section):
    """A section with a field that says nothing."""

    inner: Inner = Inner()
    forgotten: int = 3
    """It should say something."""


def make_config(**changes: object) -> ExperimentConfig:
    tree = {
        "name": "tiny", "run_dir": "runs/tiny", "stage": "pretrain", "model": {"language_model": "lm"},
        "data": {"shards": ["a.tar"], "max_length": 31},
        "training": {"global_batch_size": 7, "learning_rate": 0.001, "micro_batch_tokens": 61},
    }  # fmt: skip
    return parse_config(tree | changes, where="test")


def test_fields_with_policy_names_fields_by_their_path_in_order() -> None:
    assert list(fields_with_policy(Outer)) == [
        ("name", OnResume.FREE),
        ("inner.size", OnResume.FIXED),
        ("inner.colour", OnResume.FREE),
    ]


def test_fields_with_policy_field_that_does_not_say_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"Silent\.forgotten does not declare Fixed or Free"):
        list(fields_with_policy(Silent))


def test_check_resumable_lists_every_fixed_field_that_differs_and_no_free_one() -> None:
    started = make_config()
    data, training = {"shards": ["b.tar"], "max_length": 31}, {
        "global_batch_size": 8, "learning_rate": 0.001, "micro_batch_tokens": 99,
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        check_resumable(started, make_config(name="other", run_dir="moved", data=data, training=training))
    first, *fields, last = str(caught.value).splitlines()
    assert first.startswith("run folder moved ")
    assert fields == [
        "  data.shards: the run was started with ('a.tar',), now ('b.tar',)",
        "  training.global_batch_size: the run was started with 7, now 8",
    ]
    assert last.startswith("restore the values")


def test_check_resumable_free_fields_alone_pass() -> None:
    training = {"global_batch_size": 7, "learning_rate": 0.001, "micro_batch_tokens": 99}
    check_resumable(make_config(), make_config(name="other", run_dir="moved", training=training))
