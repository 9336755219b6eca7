import pytest

from pipeline.config import TrainingConfig
from pipeline.tools.estimate.work import utilisation


@pytest.mark.parametrize(
    ("compiled", "linear_precision", "expected"),
    [(False, None, 0.37), (True, None, 0.50), (True, "fp8", 0.60), (False, "fp8", 0.37)],
)
def test_assumed_share_of_the_peak_follows_how_layers_run(
    compiled: bool, linear_precision: str | None, expected: float
) -> None:
    values = {"global_batch_size": 2, "learning_rate": 1.0, "precision": "bfloat16", "compile": compiled}
    training = TrainingConfig.model_validate({**values, "linear_precision": linear_precision})
    assert utilisation(training) == expected
