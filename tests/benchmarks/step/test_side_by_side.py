from dataclasses import replace

import pytest
import torch

from benchmarks.step.baseline import StepResult
from benchmarks.step.scenarios import CPU_SCENARIOS
from benchmarks.step.side_by_side import Turn, UnequalError, check_equal, compare


@pytest.mark.parametrize("scenario", CPU_SCENARIOS[:2], ids=lambda scenario: scenario.stage)
def test_compare_both_sides_train_alike_for_two_steps(scenario: object) -> None:
    torch.set_num_threads(1)
    tiny = replace(scenario, shape="tiny", global_batch_size=17)  # type: ignore[type-var]
    results = compare(tiny, num_turns=2, with_memory=False)  # type: ignore[arg-type]
    assert results["samples"] == 17
    assert results["loss_difference"] < 2e-5
    assert results["losses"][1] < results["losses"][0]
    assert results["padded_tokens"] > results["useful_tokens"]


def test_check_equal_other_loss_or_norm_is_refused() -> None:
    turn = Turn(1.0, StepResult(2.0, 3.0))
    assert check_equal([turn], [turn]) == {"loss_difference": 0.0, "grad_norm_difference": 0.0}
    for other in (StepResult(2.001, 3.0), StepResult(2.0, 3.01), StepResult(float("nan"), 3.0)):
        with pytest.raises(UnequalError, match="do not train alike"):
            check_equal([turn], [Turn(1.0, other)])
