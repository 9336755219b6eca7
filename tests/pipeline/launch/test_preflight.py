"""What the checks before a run read from configs."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.launch.preflight import num_positions


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
            131072,
        ),
        ({"text_config": {"max_position_embeddings": 512}}, 512),
    ],
)
def test_positions_of_a_language_model_count_its_rope_scaling(values: dict[str, Any], expected: int | None) -> None:
    assert num_positions(values) == expected
