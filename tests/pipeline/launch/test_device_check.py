import pytest

from pipeline.config import ConfigError, TrainingConfig
from pipeline.launch.device_check import check_capability

FP8 = TrainingConfig(global_batch_size=3, learning_rate=1e-3, precision="bfloat16", linear_precision="fp8")
BF16 = TrainingConfig(global_batch_size=3, learning_rate=1e-3, precision="bfloat16")


@pytest.mark.parametrize("found", [(9, 0), (10, 0), (12, 1), None])
def test_new_gpus_and_those_that_do_not_tell_pass(found: tuple[int, int] | None) -> None:
    check_capability(FP8, lambda: found)


@pytest.mark.parametrize(("found", "shown"), [((8, 0), "8.0"), ((8, 9), "8.9"), ((7, 5), "7.5")])
def test_older_gpus_are_refused(found: tuple[int, int], shown: str) -> None:
    with pytest.raises(ConfigError, match=rf"capability 9\.0 or more \(Hopper\), found {shown}; set .*=null"):
        check_capability(FP8, lambda: found)


def test_nobody_is_asked_when_it_does_not_matter() -> None:
    def ask() -> tuple[int, int]:
        raise AssertionError("asked")

    check_capability(BF16, ask)
